"""Run-time values. JSON values are used as they are; what JSON lacks has a class here.

========================= =====================
CEL                       Python
========================= =====================
bool, string, bytes, null bool, str, bytes, None
int, uint, double         int, `UInt`, float
list, map                 list, dict
duration, timestamp       `Duration`, `Timestamp`
type, optional            `TypeValue`, `Optional`
========================= =====================

Any other class takes part by naming its type in ``cel_type``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from sampan.kube.cel.errors import CelError

INT_MIN, INT_MAX, UINT_MAX = -(2**63), 2**63 - 1, 2**64 - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class UInt(int):
    """An unsigned 64-bit integer."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, order=True)
class Duration:
    """A span of time in nanoseconds."""

    nanoseconds: int
    cel_type = "duration"

    @staticmethod
    def parse(text: str) -> Duration:
        """From Go's form, ``1h30m``, ``-1.5s``, ``100ms``."""
        sign = -1 if text.startswith("-") else 1
        body = text.lstrip("+-") if text[:1] in "+-" else text
        if body == "0":
            return Duration(0)
        if not _DURATION.fullmatch(body):
            raise CelError(f"time: invalid duration {text!r}")
        total = 0
        for whole, fraction, unit in _DURATION_PART.findall(body):
            scale = _UNITS[unit]
            total += int(whole or 0) * scale
            if fraction:
                total += int(fraction) * scale // 10 ** len(fraction)
        if total > INT_MAX:
            raise CelError(f"time: invalid duration {text!r}")
        return Duration(sign * total)

    def __str__(self) -> str:
        seconds, rest = divmod(abs(self.nanoseconds), 10**9)
        fraction = f".{rest:09d}".rstrip("0") if rest else ""
        return f"{'-' if self.nanoseconds < 0 else ''}{seconds}{fraction}s"


_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_DURATION_PART = re.compile(r"(\d*)(?:\.(\d*))?(ns|us|µs|ms|s|m|h)")
_DURATION = re.compile(r"(?:(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|ms|s|m|h))+")
_TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?([Zz]|[+-]\d\d:\d\d)")


@dataclass(frozen=True, slots=True, order=True)
class Timestamp:
    """A point in time in nanoseconds since the epoch."""

    nanoseconds: int
    cel_type = "timestamp"

    @staticmethod
    def parse(text: str) -> Timestamp:
        """From RFC 3339."""
        match = _TIMESTAMP.fullmatch(text)
        try:
            if match is None:
                raise ValueError
            zone = "+00:00" if match[4] in "Zz" else match[4]
            moment = datetime.fromisoformat(f"{match[1]}T{match[2]}{zone}")
        except ValueError:
            raise CelError(f"parsing time {text!r} as RFC 3339 failed") from None
        seconds = (moment - _EPOCH) // timedelta(seconds=1)
        return Timestamp(seconds * 10**9 + int((match[3] or "0").ljust(9, "0")))

    def at(self, zone: tzinfo) -> datetime:
        """The calendar fields in a time zone (to the microsecond)."""
        return (_EPOCH + timedelta(microseconds=self.nanoseconds // 1000)).astimezone(zone)

    def __str__(self) -> str:
        seconds, rest = divmod(self.nanoseconds, 10**9)
        fraction = f".{rest:09d}".rstrip("0") if rest else ""
        return f"{(_EPOCH + timedelta(seconds=seconds)).strftime('%Y-%m-%dT%H:%M:%S')}{fraction}Z"


@dataclass(frozen=True, slots=True)
class TypeValue:
    """A type as a value, such as ``type(1)`` gives."""

    name: str
    cel_type = "type"


class Optional:
    """A value that may be absent."""

    __slots__ = ("_value", "present")
    cel_type = "optional_type"
    _value: Any

    def __init__(self, value: Any, present: bool = True) -> None:
        self._value = value
        self.present = present

    @property
    def value(self) -> Any:
        if not self.present:
            raise CelError("optional.none() dereference")
        return self._value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Optional) or self.present != other.present:
            return False
        return not self.present or equal(self._value, other._value)

    __hash__ = None  # type: ignore[assignment]


NONE = Optional(None, present=False)


class Lazy:
    """A record whose fields are computed when first read, such as a policy's ``variables``."""

    __slots__ = ("_compute", "_known")
    cel_type = "map"

    def __init__(self, compute: Mapping[str, Callable[[], Any]]) -> None:
        self._compute = compute
        self._known: dict[str, Any] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._compute

    def __getitem__(self, name: str) -> Any:
        if name not in self._known:
            self._known[name] = self._compute[name]()
        return self._known[name]


_NAMES: dict[type, str] = {
    bool: "bool",
    int: "int",
    UInt: "uint",
    float: "double",
    str: "string",
    bytes: "bytes",
    list: "list",
    dict: "map",
    type(None): "null_type",
}
NUMBERS = (int, float, UInt)


def type_name(value: Any) -> str:
    """The name of a value's CEL type."""
    name = _NAMES.get(type(value))
    if name is None:
        name = getattr(value, "cel_type", None)
        if name is None:
            raise CelError(f"no CEL type for {type(value).__name__}")
    return name


def equal(a: Any, b: Any) -> bool:
    """CEL equality: numbers by value across their types, everything else only within its type."""
    kind = type(a)
    if kind is type(b):
        if kind is list:
            return len(a) == len(b) and all(map(equal, a, b))
        if kind is dict:
            return len(a) == len(b) and all(key in b and equal(value, b[key]) for key, value in a.items())
        return bool(a == b)
    if kind in NUMBERS and type(b) in NUMBERS:
        return bool(a == b)
    return False


def same_set(a: list[Any], b: list[Any]) -> bool:
    """Equality of lists whose order does not count."""
    return (
        len(a) == len(b) and all(any(equal(x, y) for y in b) for x in a) and all(any(equal(x, y) for y in a) for x in b)
    )
