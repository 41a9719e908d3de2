"""Averages over the last seconds: one bucket a second, even or exponential weights."""

from __future__ import annotations

import math

PRECISION = 6
"""Decimal digits of an average."""
_REMAINDER = 0.0001
_LEAST = 0.2


class Window:
    """Values of the last ``seconds`` seconds in one-second buckets.

    Until a whole window has passed since the first value, the average is over the time passed. Costs one float a second of
    window; adding is O(1), an average O(window).
    """

    def __init__(self, seconds: float) -> None:
        self._size = max(1, math.ceil(seconds))
        self._buckets = [0.0] * self._size
        self._first: int | None = None
        self._last = 0

    @property
    def size(self) -> int:
        """Buckets kept."""
        return self._size

    def add(self, now: float, value: float) -> None:
        """Add to the bucket of ``now``; values older than the window are dropped."""
        second = math.floor(now)
        if self._first is None:
            self._first = self._last = second
        if second > self._last:
            self._forget(second)
            self._last = second
        elif self._last - second >= self._size:
            return
        if value:  # most are zero, and share that one
            self._buckets[second % self._size] += value

    def _forget(self, second: int) -> None:
        """Empty the buckets between the last value and ``second``."""
        if second - self._last >= self._size:
            self._buckets = [0.0] * self._size
            self._first = second
            return
        for passed in range(self._last + 1, second + 1):
            self._buckets[passed % self._size] = 0.0

    def is_empty(self, now: float) -> bool:
        """Nothing was added within the window."""
        return self._first is None or math.floor(now) - self._last >= self._size

    def average(self, now: float, *, weighted: bool = False) -> float:
        """The average at ``now``; 0 when empty."""
        if self._first is None or self.is_empty(now):
            return 0.0
        second = math.floor(now)
        values = self._values(second)
        if weighted:
            return round(_exponential(values), PRECISION)
        elapsed = min(second - self._first + 1, self._size)
        return round(sum(values) / elapsed, PRECISION)

    def _values(self, second: int) -> list[float]:
        """Bucket values, newest first; seconds without a value are 0."""
        assert self._first is not None
        oldest = max(second - self._size + 1, self._first)
        return [self._buckets[one % self._size] if one <= self._last else 0.0 for one in range(second, oldest - 1, -1)]


def _exponential(values: list[float]) -> float:
    """Newest first, each older value weighing a constant factor less; the weights of a full window sum to 0.9999."""
    factor = max(1 - _REMAINDER ** (1 / len(values)), _LEAST)
    total, weight = 0.0, factor
    for value in values:
        total += value * weight
        weight *= 1 - factor
    return total
