"""The list and set extensions."""

from __future__ import annotations

from functools import cmp_to_key
from itertools import pairwise
from typing import Any

from sampan.kube.cel.errors import CelError
from sampan.kube.cel.functions import Library
from sampan.kube.cel.operators import arithmetic, compared, contained
from sampan.kube.cel.values import NONE, Duration, Optional, equal

library = Library()
RANGE_LIMIT = 100_000
"""Elements `lists.range` may make at most."""


@library("<list(A)>.isSorted() -> bool")
def is_sorted(items: list[Any]) -> bool:
    return all(compared(a, b) <= 0 for a, b in pairwise(items))


@library("<list(A)>.sum() -> A")
def total(items: list[Any]) -> Any:
    if not items:
        return 0
    result = Duration(0) if isinstance(items[0], Duration) else type(items[0])(0)
    if any(isinstance(item, float) for item in items):
        items, result = [float(item) for item in items], 0.0
    for item in items:
        result = arithmetic("_+_", result, item)
    return result


@library("<list(A)>.min() -> A")
def least(items: list[Any]) -> Any:
    if not items:
        raise CelError("min called on empty list")
    return min(items, key=cmp_to_key(compared))


@library("<list(A)>.max() -> A")
def greatest(items: list[Any]) -> Any:
    if not items:
        raise CelError("max called on empty list")
    return max(items, key=cmp_to_key(compared))


@library("<list>.indexOf(dyn) -> int")
def index_of(items: list[Any], wanted: Any) -> int:
    return next((at for at, item in enumerate(items) if equal(item, wanted)), -1)


@library("<list>.lastIndexOf(dyn) -> int")
def last_index_of(items: list[Any], wanted: Any) -> int:
    return next((at for at in range(len(items) - 1, -1, -1) if equal(items[at], wanted)), -1)


@library("<list(A)>.slice(int, int) -> list(A)")
def part(items: list[Any], start: int, end: int) -> list[Any]:
    if start < 0 or end < 0:
        raise CelError(f"cannot slice({start}, {end}), negative indexes not supported")
    if start > end:
        raise CelError(f"cannot slice({start}, {end}), start index must be less than or equal to end index")
    if end > len(items):
        raise CelError(f"cannot slice({start}, {end}), list is length {len(items)}")
    return items[start:end]


@library("<list>.flatten() -> list", "<list>.flatten(int) -> list")
def flatten(items: list[Any], depth: int = 1) -> list[Any]:
    if depth < 0:
        raise CelError("level must be non-negative")
    out: list[Any] = []
    for item in items:
        if isinstance(item, list) and depth > 0:
            out.extend(flatten(item, depth - 1))
        else:
            out.append(item)
    return out


@library("<list(A)>.distinct() -> list(A)")
def distinct(items: list[Any]) -> list[Any]:
    out: list[Any] = []
    for item in items:
        if not contained(item, out):
            out.append(item)
    return out


@library("<list(A)>.sort() -> list(A)")
def ordered(items: list[Any]) -> list[Any]:
    return sorted(items, key=cmp_to_key(compared))


@library("<list(A)>.reverse() -> list(A)")
def reverse(items: list[Any]) -> list[Any]:
    return items[::-1]


@library("<list(A)>.first() -> optional_type(A)")
def first(items: list[Any]) -> Optional:
    return Optional(items[0]) if items else NONE


@library("<list(A)>.last() -> optional_type(A)")
def last(items: list[Any]) -> Optional:
    return Optional(items[-1]) if items else NONE


@library("lists.range(int) -> list(int)")
def numbers(end: int) -> list[int]:
    if end > RANGE_LIMIT:
        raise CelError(f"lists.range({end}) is too long")
    return list(range(end))


@library("sets.contains(list(A), list(A)) -> bool")
def set_contains(whole: list[Any], items: list[Any]) -> bool:
    return all(contained(item, whole) for item in items)


@library("sets.equivalent(list(A), list(A)) -> bool")
def set_equivalent(a: list[Any], b: list[Any]) -> bool:
    return all(contained(item, a) for item in b) and all(contained(item, b) for item in a)


@library("sets.intersects(list(A), list(A)) -> bool")
def set_intersects(a: list[Any], b: list[Any]) -> bool:
    return any(contained(item, b) for item in a)
