"""The functions of the language itself: sizes, conversions, string tests, calendar fields, optionals."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, timedelta, timezone, tzinfo
from functools import lru_cache
from typing import Any

from sampan.kube.cel.errors import CelError
from sampan.kube.cel.functions import Library
from sampan.kube.cel.values import (
    INT_MAX,
    INT_MIN,
    NONE,
    UINT_MAX,
    Duration,
    Optional,
    Timestamp,
    TypeValue,
    UInt,
    type_name,
)

library = Library()


@lru_cache(maxsize=1024)
def pattern(expression: str) -> Any:
    """A compiled RE2 pattern (linear time, whatever the input).

    Raises:
        CelError: it is not a pattern.
    """
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(expression, options)
    except re2.error as error:
        raise CelError(f"error parsing regexp: {error}") from None


@library("size(string) -> int", "<string>.size() -> int", "size(list) -> int", "<list>.size() -> int")
@library("size(bytes) -> int", "<bytes>.size() -> int", "size(map) -> int", "<map>.size() -> int")
def size(value: Any) -> int:
    return len(value)


@library("type(dyn) -> type")
def type_of(value: Any) -> TypeValue:
    name = type_name(value)
    return TypeValue(name)


@library("dyn(dyn) -> dyn")
def dyn(value: Any) -> Any:
    return value


def _unconvertible(wanted: str) -> CelError:
    return CelError(f"type conversion error from 'string' to '{wanted}'")


@library("bool(bool) -> bool", "bool(string) -> bool")
def to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("1", "t", "T", "true", "True", "TRUE"):
        return True
    if value in ("0", "f", "F", "false", "False", "FALSE"):
        return False
    raise _unconvertible("bool")


@library("int(int) -> int", "int(uint) -> int", "int(double) -> int", "int(string) -> int")
@library("int(timestamp) -> int", "int(duration) -> int")
def to_int(value: Any) -> int:
    if isinstance(value, Timestamp):
        return value.nanoseconds // 10**9
    if isinstance(value, Duration):
        return value.nanoseconds
    number = _number(value, int)
    if not INT_MIN <= number <= INT_MAX:
        raise CelError("integer overflow")
    return number


@library("uint(uint) -> uint", "uint(int) -> uint", "uint(double) -> uint", "uint(string) -> uint")
def to_uint(value: Any) -> UInt:
    number = _number(value, int)
    if not 0 <= number <= UINT_MAX:
        raise CelError("unsigned integer overflow")
    return UInt(number)


def _number(value: Any, wanted: Callable[[Any], Any]) -> int:
    if isinstance(value, str):
        digits = value[1:] if value[:1] == "-" else value
        if not (digits.isascii() and digits.isdecimal() and len(digits) < 21):
            raise _unconvertible("int")
    if isinstance(value, float) and not math.isfinite(value):
        raise CelError("integer overflow")
    return int(wanted(value))


@library("double(double) -> double", "double(int) -> double", "double(uint) -> double", "double(string) -> double")
def to_double(value: Any) -> float:
    try:
        return float(value)
    except ValueError:
        raise _unconvertible("double") from None


def shown(value: float) -> str:
    """A double as Go's ``%g`` shows it."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value.is_integer() and abs(value) < 1e21 else repr(value)


@library("string(string) -> string", "string(int) -> string", "string(uint) -> string", "string(bool) -> string")
@library(
    "string(double) -> string", "string(bytes) -> string", "string(timestamp) -> string", "string(duration) -> string"
)
def to_string(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return shown(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise CelError("invalid UTF-8 in bytes, cannot convert to string") from None
    return str(int(value)) if isinstance(value, int) else str(value)


@library("bytes(bytes) -> bytes", "bytes(string) -> bytes")
def to_bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else value


@library("duration(duration) -> duration", "duration(string) -> duration")
def to_duration(value: Any) -> Duration:
    if isinstance(value, Duration):
        return value
    try:
        return Duration.parse(value)
    except CelError:
        raise _unconvertible("google.protobuf.Duration") from None


@library("timestamp(timestamp) -> timestamp", "timestamp(string) -> timestamp", "timestamp(int) -> timestamp")
def to_timestamp(value: Any) -> Timestamp:
    if isinstance(value, str):
        try:
            return Timestamp.parse(value)
        except CelError:
            raise _unconvertible("google.protobuf.Timestamp") from None
    return value if isinstance(value, Timestamp) else Timestamp(value * 10**9)


@library("<string>.startsWith(string) -> bool")
def starts_with(text: str, prefix: str) -> bool:
    return text.startswith(prefix)


@library("<string>.endsWith(string) -> bool")
def ends_with(text: str, suffix: str) -> bool:
    return text.endswith(suffix)


@library("<string>.contains(string) -> bool")
def contains(text: str, part: str) -> bool:
    return part in text


@library("<string>.matches(string) -> bool", "matches(string, string) -> bool")
def matches(text: str, expression: str) -> bool:
    return pattern(expression).search(text) is not None


# -- calendar


def _zone(name: str) -> tzinfo:
    if name in ("", "UTC"):
        return UTC
    if name[-3:-2] == ":" and name[:-3].lstrip("+-").isdecimal() and name[-2:].isdecimal():
        hours, minutes = int(name[:-3].lstrip("+-")), int(name[-2:])
        offset = timedelta(hours=hours, minutes=minutes)
        return timezone(-offset if name.startswith("-") else offset)
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise CelError(f"unknown time zone {name}") from None


_CALENDAR: dict[str, Callable[[Any], int]] = {
    "getFullYear": lambda moment: moment.year,
    "getMonth": lambda moment: moment.month - 1,
    "getDate": lambda moment: moment.day,
    "getDayOfMonth": lambda moment: moment.day - 1,
    "getDayOfWeek": lambda moment: (moment.weekday() + 1) % 7,
    "getDayOfYear": lambda moment: moment.timetuple().tm_yday - 1,
    "getHours": lambda moment: moment.hour,
    "getMinutes": lambda moment: moment.minute,
    "getSeconds": lambda moment: moment.second,
    "getMilliseconds": lambda moment: moment.microsecond // 1000,
}


def _calendar(field: Callable[[Any], int]) -> Callable[..., int]:
    return lambda moment, zone="": field(moment.at(_zone(zone)))


for _name, _field in _CALENDAR.items():
    library(f"<timestamp>.{_name}() -> int", f"<timestamp>.{_name}(string) -> int")(_calendar(_field))

_WHOLE = {"getHours": 3600 * 10**9, "getMinutes": 60 * 10**9, "getSeconds": 10**9, "getMilliseconds": 10**6}


def _whole(unit: int) -> Callable[[Duration], int]:
    return lambda span: int(math.copysign(abs(span.nanoseconds) // unit, span.nanoseconds))


for _name, _unit in _WHOLE.items():
    library(f"<duration>.{_name}() -> int")(_whole(_unit))


# -- optionals


@library("optional.of(A) -> optional_type(A)")
def optional_of(value: Any) -> Optional:
    return Optional(value)


@library("optional.none() -> optional_type(dyn)")
def optional_none() -> Optional:
    return NONE


@library("optional.ofNonZeroValue(A) -> optional_type(A)")
def optional_of_non_zero(value: Any) -> Optional:
    if isinstance(value, Duration | Timestamp):
        return Optional(value) if value.nanoseconds else NONE
    return Optional(value) if value else NONE


@library("<optional_type(A)>.hasValue() -> bool")
def has_value(optional: Optional) -> bool:
    return optional.present


@library("<optional_type(A)>.value() -> A")
def value_of(optional: Optional) -> Any:
    return optional.value


@library("<optional_type(A)>.orValue(dyn) -> A")
def or_value(optional: Optional, other: Any) -> Any:
    return optional.value if optional.present else other


@library("<optional_type(A)>.or(optional_type(A)) -> optional_type(A)")
def or_else(optional: Optional, other: Optional) -> Optional:
    return optional if optional.present else other
