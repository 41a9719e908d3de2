"""Resource quantities (``100m``, ``1Gi``) and semantic versions as values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from sampan.kube.cel.errors import CelError
from sampan.kube.cel.functions import Library
from sampan.kube.cel.values import INT_MAX, INT_MIN

library = Library()
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))([eE][+-]?\d{1,3}|[KMGTPE]i|[numkMGTPE]|)")
_SCALES = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}


@dataclass(frozen=True, slots=True)
class Quantity:
    """An exact amount; equal when the amounts are, however written."""

    amount: Fraction
    cel_type = "kubernetes.Quantity"


def _quantity(text: str) -> Quantity:
    match = _QUANTITY.fullmatch(text) if len(text) < 100 else None
    if match is None:
        raise CelError("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")
    number, suffix = Fraction(Decimal(match[1])), match[2]
    if suffix in _BINARY:
        return Quantity(number * 1024 ** _BINARY[suffix])
    exponent = _SCALES[suffix] if suffix in _SCALES else int(suffix[1:])
    return Quantity(number * Fraction(10) ** exponent)


library("quantity(string) -> kubernetes.Quantity")(_quantity)


@library("isQuantity(string) -> bool")
def is_quantity(text: str) -> bool:
    try:
        _quantity(text)
    except CelError:
        return False
    return True


@library("<kubernetes.Quantity>.sign() -> int")
def sign(quantity: Quantity) -> int:
    return (quantity.amount > 0) - (quantity.amount < 0)


@library("<kubernetes.Quantity>.isInteger() -> bool")
def is_integer(quantity: Quantity) -> bool:
    return quantity.amount.denominator == 1 and INT_MIN <= quantity.amount <= INT_MAX


@library("<kubernetes.Quantity>.asInteger() -> int")
def as_integer(quantity: Quantity) -> int:
    if not is_integer(quantity):
        raise CelError("cannot convert value to integer")
    return int(quantity.amount)


@library("<kubernetes.Quantity>.asApproximateFloat() -> double")
def as_float(quantity: Quantity) -> float:
    return float(quantity.amount)


def _other(value: Any) -> Fraction:
    return value.amount if isinstance(value, Quantity) else Fraction(value)


@library("<kubernetes.Quantity>.add(kubernetes.Quantity) -> kubernetes.Quantity")
@library("<kubernetes.Quantity>.add(int) -> kubernetes.Quantity")
def add(quantity: Quantity, other: Any) -> Quantity:
    return Quantity(quantity.amount + _other(other))


@library("<kubernetes.Quantity>.sub(kubernetes.Quantity) -> kubernetes.Quantity")
@library("<kubernetes.Quantity>.sub(int) -> kubernetes.Quantity")
def sub(quantity: Quantity, other: Any) -> Quantity:
    return Quantity(quantity.amount - _other(other))


@library("<kubernetes.Quantity>.compareTo(kubernetes.Quantity) -> int")
def compare_to(quantity: Quantity, other: Quantity) -> int:
    return (quantity.amount > other.amount) - (quantity.amount < other.amount)


@library("<kubernetes.Quantity>.isGreaterThan(kubernetes.Quantity) -> bool")
def is_greater(quantity: Quantity, other: Quantity) -> bool:
    return quantity.amount > other.amount


@library("<kubernetes.Quantity>.isLessThan(kubernetes.Quantity) -> bool")
def is_less(quantity: Quantity, other: Quantity) -> bool:
    return quantity.amount < other.amount


# -- semantic versions

_NUMBER = r"(0|[1-9]\d*)"
_SEMVER = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-([0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?")


@dataclass(frozen=True, slots=True)
class Semver:
    """A version, without its build metadata (which does not count)."""

    major: int
    minor: int
    patch: int
    pre: tuple[str, ...]
    cel_type = "kubernetes.Semver"

    def rank(self) -> tuple[Any, ...]:
        """What versions are ordered by: a release is above its pre-releases, numbers are below words."""
        pre = tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in self.pre)
        return self.major, self.minor, self.patch, not self.pre, pre


def _semver(text: str, normalize: bool = False) -> Semver:
    if normalize:
        core, dash, rest = text.removeprefix("v").partition("-")
        numbers = [part.lstrip("0") or "0" for part in core.split(".")]
        text = ".".join([*numbers, "0", "0"][: max(3, len(numbers))]) + dash + rest
    match = _SEMVER.fullmatch(text)
    if match is None:
        raise CelError(f"Semver {text!r} parse error during conversion from string")
    return Semver(int(match[1]), int(match[2]), int(match[3]), tuple(match[4].split(".")) if match[4] else ())


library("semver(string) -> kubernetes.Semver", "semver(string, bool) -> kubernetes.Semver")(_semver)


@library("isSemver(string) -> bool", "isSemver(string, bool) -> bool")
def is_semver(text: str, normalize: bool = False) -> bool:
    try:
        _semver(text, normalize)
    except CelError:
        return False
    return True


@library("<kubernetes.Semver>.major() -> int")
def major(version: Semver) -> int:
    return version.major


@library("<kubernetes.Semver>.minor() -> int")
def minor(version: Semver) -> int:
    return version.minor


@library("<kubernetes.Semver>.patch() -> int")
def patch(version: Semver) -> int:
    return version.patch


@library("<kubernetes.Semver>.compareTo(kubernetes.Semver) -> int")
def compare_versions(version: Semver, other: Semver) -> int:
    return (version.rank() > other.rank()) - (version.rank() < other.rank())


@library("<kubernetes.Semver>.isGreaterThan(kubernetes.Semver) -> bool")
def is_later(version: Semver, other: Semver) -> bool:
    return version.rank() > other.rank()


@library("<kubernetes.Semver>.isLessThan(kubernetes.Semver) -> bool")
def is_earlier(version: Semver, other: Semver) -> bool:
    return version.rank() < other.rank()
