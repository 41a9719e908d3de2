"""Quantities: ``100m``, ``1.5Gi``, ``2e3``; exact decimal numbers with a suffix that says how they like to be written.

There are three families of notation: binary (``Ki``, ``Mi``, ...), decimal (``n``, ``u``, ``m``, none, ``k``, ``M``, ...) and
exponent (``e3``). Arithmetic is on the exact value (`parse`); writing keeps the family of the number it belongs to (`format`),
without a fraction and with the largest suffix that allows that, which is the canonical form upstream stores.
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal, localcontext
from functools import lru_cache

_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?", re.ASCII)
_BINARY = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_DIGITS = 60
"""Digits of precision: more than any quantity within `_LENGTH` characters needs."""
_LENGTH = 40
_SMALLEST = Decimal("1e-9")
"""Finer amounts are rounded up to this."""
_LARGEST = Decimal(2**63 - 1)
"""Larger amounts count as this."""


@lru_cache(maxsize=4096)
def _parse(text: str) -> Decimal:
    match = _QUANTITY.fullmatch(text)
    if match is None or len(text) > _LENGTH:
        raise ValueError("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")
    number, suffix = match.group(1), match.group(2) or ""
    with localcontext() as context:
        context.prec = _DIGITS
        if suffix.endswith("i"):
            value = Decimal(number) * (1 << (10 * _BINARY.index(suffix)))
        elif len(suffix) > 1:
            power = max(-30, min(int(suffix[1:]), 30))
            value = Decimal(number).scaleb(power)
        else:
            value = Decimal(number).scaleb(_DECIMAL[suffix])
        if value and abs(value) < _SMALLEST:
            return _SMALLEST if value > 0 else -_SMALLEST
        return max(-_LARGEST, min(value, _LARGEST))


def parse(value: str | int | float) -> Decimal:
    """The exact amount; JSON numbers are quantities too.

    Raises:
        ValueError: not a quantity.
    """
    return _parse(value if isinstance(value, str) else repr(value))


def family(text: str | float) -> str:
    """How a quantity is written: ``BinarySI``, ``DecimalSI`` or ``DecimalExponent``."""
    text = str(text)
    if text.endswith("i"):
        return "BinarySI"
    if text[-1:].isdecimal() and ("e" in text or "E" in text):
        return "DecimalExponent"
    return "DecimalSI"


def format(amount: Decimal | int, notation: str = "DecimalSI") -> str:
    """The canonical text of an amount in a family of notation.

    Binary notation falls back to decimal where the amount has a fraction or is below 1024, as upstream does.
    """
    with localcontext() as context:
        context.prec = _DIGITS
        amount = Decimal(amount)
        if not amount:
            return "0"
        whole = amount == amount.to_integral_value()
        if notation == "BinarySI" and whole and abs(amount) >= 1024:
            number, step = int(amount), 0
            while step < len(_BINARY) - 1 and number % 1024 == 0:
                number //= 1024
                step += 1
            return f"{number}{_BINARY[step]}"
        amount = amount.quantize(_SMALLEST, ROUND_CEILING) if not whole else amount
        power = -9
        number = int(amount.scaleb(9))
        while power < 18 and number % 1000 == 0:
            number //= 1000
            power += 3
        if notation == "DecimalExponent":
            return f"{number}e{power}" if power else str(number)
        suffix = next(suffix for suffix, value in _DECIMAL.items() if value == power)
        return f"{number}{suffix}"


@lru_cache(maxsize=4096)
def canonical(value: str | int | float) -> str:
    """The canonical text of a quantity, in its own notation.

    Raises:
        ValueError: not a quantity.
    """
    return format(parse(value), family(value))


def compare(left: str | int | float, right: str | int | float) -> int:
    """Negative, zero or positive, as the left quantity is less than, equal to or more than the right.

    Raises:
        ValueError: one is not a quantity.
    """
    one, other = parse(left), parse(right)
    return (one > other) - (one < other)


def add(left: str | int | float, right: str | int | float) -> str:
    """The canonical text of the sum, in the notation of the left (of the right, when the left is zero).

    Raises:
        ValueError: one is not a quantity.
    """
    amount = parse(left)
    with localcontext() as context:
        context.prec = _DIGITS
        return format(amount + parse(right), family(left if amount else right))
