"""The string and regular-expression extensions."""

from __future__ import annotations

from typing import Any

from sampan.kube.cel.errors import CelError
from sampan.kube.cel.functions import Library
from sampan.kube.cel.standard import pattern, shown, to_string
from sampan.kube.cel.values import Duration, Timestamp, TypeValue, UInt, type_name

library = Library()
_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")
_UPPER = str.maketrans("abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_SPACE = " \t\n\v\f\r\x85\xa0       　　  "
RESULT_LIMIT = 1_000_000
"""Characters a replacement may produce at most."""


@library("<string>.charAt(int) -> string")
def char_at(text: str, index: int) -> str:
    if not 0 <= index <= len(text):
        raise CelError(f"index out of range: {index}")
    return text[index : index + 1]


@library("<string>.indexOf(string) -> int", "<string>.indexOf(string, int) -> int")
def index_of(text: str, part: str, start: int = 0) -> int:
    if start < 0 or (start > 0 and start > len(text)):
        raise CelError(f"index out of range: {start}")
    return text.find(part, start)


@library("<string>.lastIndexOf(string) -> int", "<string>.lastIndexOf(string, int) -> int")
def last_index_of(text: str, part: str, start: int | None = None) -> int:
    if start is None:
        return text.rfind(part)
    if not 0 <= start < max(len(text), 1):
        raise CelError(f"index out of range: {start}")
    return text.rfind(part, 0, start + len(part))


@library("<string>.lowerAscii() -> string")
def lower_ascii(text: str) -> str:
    return text.translate(_LOWER)


@library("<string>.upperAscii() -> string")
def upper_ascii(text: str) -> str:
    return text.translate(_UPPER)


@library("<string>.replace(string, string) -> string", "<string>.replace(string, string, int) -> string")
def replace(text: str, old: str, new: str, limit: int = -1) -> str:
    count = text.count(old) if limit < 0 else min(limit, text.count(old))
    if len(text) + count * (len(new) - len(old)) > RESULT_LIMIT:
        raise CelError("the replacement is too large")
    return text.replace(old, new, limit)


@library("<string>.split(string) -> list(string)", "<string>.split(string, int) -> list(string)")
def split(text: str, separator: str, limit: int = -1) -> list[str]:
    if limit == 0:
        return []
    if separator == "":
        return list(text) if limit < 0 or len(text) <= limit else [*text[: limit - 1], text[limit - 1 :]]
    return text.split(separator, limit - 1 if limit > 0 else -1)


@library("<list(string)>.join() -> string", "<list(string)>.join(string) -> string")
def join(items: list[Any], separator: str = "") -> str:
    for item in items:
        if type(item) is not str:
            raise CelError(f"no such overload: join of {type_name(item)}")
    return separator.join(items)


@library("<string>.substring(int) -> string", "<string>.substring(int, int) -> string")
def substring(text: str, start: int, end: int | None = None) -> str:
    end = len(text) if end is None else end
    if not 0 <= start <= len(text):
        raise CelError(f"index out of range: {start}")
    if not 0 <= end <= len(text):
        raise CelError(f"index out of range: {end}")
    if start > end:
        raise CelError(f"invalid substring range. start: {start}, end: {end}")
    return text[start:end]


@library("<string>.trim() -> string")
def trim(text: str) -> str:
    return text.strip(_SPACE)


@library("<string>.reverse() -> string")
def reverse(text: str) -> str:
    return text[::-1]


@library("strings.quote(string) -> string")
def quote(text: str) -> str:
    out = []
    for char in text:
        out.append(_QUOTED.get(char, char))
    return '"' + "".join(out) + '"'


_QUOTED = {
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
    "\\": "\\\\",
    '"': '\\"',
}


@library("<string>.find(string) -> string")
def find(text: str, expression: str) -> str:
    found = pattern(expression).search(text)
    return found.group() if found else ""


@library("<string>.findAll(string) -> list(string)", "<string>.findAll(string, int) -> list(string)")
def find_all(text: str, expression: str, limit: int = -1) -> list[str]:
    found: list[str] = []
    for match in pattern(expression).finditer(text):
        if 0 <= limit <= len(found):
            break
        found.append(match.group())
    return found


@library("<string>.format(list) -> string")
def format_(template: str, args: list[Any]) -> str:
    """``%s %d %f %e %b %o %x %X`` with a precision for ``f`` and ``e``."""
    out: list[str] = []
    used = 0
    at = 0
    while at < len(template):
        char = template[at]
        at += 1
        if char != "%":
            out.append(char)
            continue
        if template[at : at + 1] == "%":
            out.append("%")
            at += 1
            continue
        precision = ""
        if template[at : at + 1] == ".":
            at += 1
            while template[at : at + 1].isdecimal():
                precision += template[at]
                at += 1
        verb = template[at : at + 1]
        at += 1
        if used >= len(args):
            raise CelError(f"index {used} out of range")
        if precision and int(precision) > 100:
            raise CelError("could not parse formatting clause: precision is too large")
        out.append(_formatted(verb, args[used], int(precision or 6)))
        used += 1
        if sum(map(len, out[-1:])) > RESULT_LIMIT:
            raise CelError("the formatted string is too large")
    return "".join(out)


def _formatted(verb: str, value: Any, precision: int) -> str:
    number = type(value) in (int, UInt)
    if verb == "s":
        return _as_text(value)
    if verb == "d" and (number or type(value) is float):
        return str(int(value)) if number else shown(value)
    if verb in ("f", "e") and (number or type(value) is float):
        if type(value) is float and value in (float("inf"), float("-inf")):
            return "∞" if value > 0 else "-∞"
        return f"{value:.{precision}{verb}}"
    if verb == "b" and (number or type(value) is bool):
        return f"{int(value):b}"
    if verb == "o" and number:
        return f"{int(value):o}"
    if verb in ("x", "X"):
        if number:
            return f"{int(value):{verb}}"
        if isinstance(value, str | bytes):
            digits = (value.encode() if isinstance(value, str) else value).hex()
            return digits.upper() if verb == "X" else digits
    if not verb or verb not in "sdfeboxX":
        raise CelError(f'could not parse formatting clause: unrecognized formatting clause "{verb}"')
    raise CelError(f"error during formatting: {verb!r} does not apply to {type_name(value)}")


def _as_text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, list):
        return "[" + ", ".join(map(_as_text, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(sorted(f"{_as_text(key)}: {_as_text(item)}" for key, item in value.items())) + "}"
    if isinstance(value, TypeValue):
        return value.name
    if isinstance(value, bool | int | float | str | bytes | Duration | Timestamp):
        return to_string(value) if not isinstance(value, str) else value
    raise CelError(
        f"string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps, was given {type_name(value)}"
    )
