"""Arithmetic and comparison, dispatched on the exact types of the operands, with CEL's overflow and zero errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from sampan.kube.cel.errors import CelError
from sampan.kube.cel.values import INT_MAX, INT_MIN, NUMBERS, UINT_MAX, Duration, Timestamp, UInt, equal, type_name

_Pair = tuple[type, type]


def _int(value: int) -> int:
    if INT_MIN <= value <= INT_MAX:
        return value
    raise CelError("integer overflow")


def _uint(value: int) -> UInt:
    if 0 <= value <= UINT_MAX:
        return UInt(value)
    raise CelError("unsigned integer overflow")


def _divided(a: int, b: int) -> int:
    if b == 0:
        raise CelError("division by zero")
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def _remainder(a: int, b: int) -> int:
    if b == 0:
        raise CelError("modulus by zero")
    return a - b * _divided(a, b)


def _float_divided(a: float, b: float) -> float:
    if b == 0:
        return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1.0, b)
    return a / b


def _span(nanoseconds: int) -> Duration:
    return Duration(_int(nanoseconds))


def _added_lists(a: list[Any], b: list[Any]) -> list[Any]:
    return a + b


ADD: dict[_Pair, Callable[[Any, Any], Any]] = {
    (int, int): lambda a, b: _int(a + b),
    (UInt, UInt): lambda a, b: _uint(int(a) + int(b)),
    (float, float): lambda a, b: a + b,
    (str, str): lambda a, b: a + b,
    (bytes, bytes): lambda a, b: a + b,
    (list, list): _added_lists,
    (Duration, Duration): lambda a, b: _span(a.nanoseconds + b.nanoseconds),
    (Timestamp, Duration): lambda a, b: Timestamp(a.nanoseconds + b.nanoseconds),
    (Duration, Timestamp): lambda a, b: Timestamp(a.nanoseconds + b.nanoseconds),
}
SUBTRACT: dict[_Pair, Callable[[Any, Any], Any]] = {
    (int, int): lambda a, b: _int(a - b),
    (UInt, UInt): lambda a, b: _uint(int(a) - int(b)),
    (float, float): lambda a, b: a - b,
    (Duration, Duration): lambda a, b: _span(a.nanoseconds - b.nanoseconds),
    (Timestamp, Timestamp): lambda a, b: _span(a.nanoseconds - b.nanoseconds),
    (Timestamp, Duration): lambda a, b: Timestamp(a.nanoseconds - b.nanoseconds),
}
MULTIPLY: dict[_Pair, Callable[[Any, Any], Any]] = {
    (int, int): lambda a, b: _int(a * b),
    (UInt, UInt): lambda a, b: _uint(int(a) * int(b)),
    (float, float): lambda a, b: a * b,
}
DIVIDE: dict[_Pair, Callable[[Any, Any], Any]] = {
    (int, int): lambda a, b: _int(_divided(a, b)),
    (UInt, UInt): lambda a, b: _uint(_divided(int(a), int(b))),
    (float, float): _float_divided,
}
MODULO: dict[_Pair, Callable[[Any, Any], Any]] = {
    (int, int): _remainder,
    (UInt, UInt): lambda a, b: _uint(_remainder(int(a), int(b))),
}
ARITHMETIC = {"_+_": ADD, "_-_": SUBTRACT, "_*_": MULTIPLY, "_/_": DIVIDE, "_%_": MODULO}

STATIC: dict[type, str] = {
    int: "int",
    UInt: "uint",
    float: "double",
    str: "string",
    bytes: "bytes",
    list: "list",
    Duration: "duration",
    Timestamp: "timestamp",
}
"""Static names of the classes operators work on."""
RESULTS: dict[str, dict[tuple[str, str], str]] = {
    name: {
        (STATIC[a], STATIC[b]): (
            "duration"
            if (name, a, b) == ("_-_", Timestamp, Timestamp)
            else "timestamp"
            if Timestamp in (a, b)
            else STATIC[a]
        )
        for a, b in table
    }
    for name, table in ARITHMETIC.items()
}
"""Result type names of the arithmetic operators, by operand type names."""

ORDERED = frozenset({str, bytes, bool, Duration, Timestamp})


def arithmetic(function: str, a: Any, b: Any) -> Any:
    """``a`` and ``b`` combined.

    Raises:
        CelError: no such combination, overflow, or division by zero.
    """
    implementation = ARITHMETIC[function].get((type(a), type(b)))
    if implementation is None:
        raise CelError(f"no such overload: {type_name(a)} {function.strip('_')} {type_name(b)}")
    return implementation(a, b)


def negated(value: Any) -> Any:
    """Minus ``value``."""
    if type(value) is int:
        return _int(-value)
    if type(value) is float:
        return -value
    raise CelError(f"no such overload: -{type_name(value)}")


def compared(a: Any, b: Any) -> int:
    """Less than, equal to or greater than 0 as ``a`` stands to ``b``; NaN is above everything.

    Raises:
        CelError: the two have no order.
    """
    kind = type(a)
    if (kind is type(b) and kind in ORDERED) or (kind in NUMBERS and type(b) in NUMBERS):
        return -1 if a < b else 0 if a == b else 1
    raise CelError(f"no such overload: {type_name(a)} < {type_name(b)}")


def contained(item: Any, container: Any) -> bool:
    """CEL's ``in``."""
    if type(container) is list:
        return any(equal(item, other) for other in container)
    if type(container) is dict:
        try:
            return item in container
        except TypeError:
            return False
    raise CelError(f"no such overload: {type_name(item)} in {type_name(container)}")
