"""Held messages waiting for their time, by position: a timing wheel without a limit on how far ahead.

Timers are kept a second to a bucket, two integers each; only the bucket whose second has come is sorted to the millisecond.
So a million delayed messages cost 16 MB, setting and cancelling one is constant time, and precision is a millisecond.
"""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_right
from collections.abc import Iterator

NEVER = 1 << 62


class Timers:
    """Due times (ms since the epoch) of log positions."""

    def __init__(self) -> None:
        self._buckets: dict[int, array[int]] = {}
        self._seconds: list[int] = []
        self._current: list[tuple[int, int]] = []
        self._gone: set[int] = set()
        self.count = 0

    def set(self, due_ms: int, position: int) -> None:
        """Remember a position until its time."""
        self.count += 1
        second = due_ms // 1000
        bucket = self._buckets.get(second)
        if bucket is None:
            bucket = self._buckets[second] = array("q")
            heapq.heappush(self._seconds, second)
        bucket.append(due_ms)
        bucket.append(position)

    def cancel(self, due_ms: int, position: int) -> bool:
        """Forget a position; False when it was not set (any more)."""
        bucket = self._buckets.get(due_ms // 1000)
        if bucket is not None:
            for at in range(0, len(bucket), 2):
                if bucket[at + 1] == position:
                    bucket[at : at + 2] = bucket[-2:]
                    del bucket[-2:]
                    self.count -= 1
                    return True
        if (due_ms, position) in self._current and position not in self._gone:
            self._gone.add(position)
            self.count -= 1
            return True
        return False

    def holds(self, due_ms: int, position: int) -> bool:
        """Whether this timer is set."""
        bucket = self._buckets.get(due_ms // 1000, ())
        if any(bucket[at + 1] == position for at in range(0, len(bucket), 2)):
            return True
        return (due_ms, position) in self._current and position not in self._gone

    def next_due(self) -> int:
        """No timer is due before this time (ms); `NEVER` when there is none."""
        due = self._current[0][0] if self._current else NEVER
        while self._seconds and not self._buckets[self._seconds[0]]:
            del self._buckets[heapq.heappop(self._seconds)]
        if self._seconds:
            due = min(due, self._seconds[0] * 1000)
        return due

    def due(self, now_ms: int, limit: int) -> list[tuple[int, int]]:
        """Take up to ``limit`` ``(due, position)`` whose time has come, earliest first."""
        while self._seconds and self._seconds[0] * 1000 <= now_ms:
            bucket = self._buckets.pop(heapq.heappop(self._seconds))
            for at in range(0, len(bucket), 2):
                heapq.heappush(self._current, (bucket[at], bucket[at + 1]))
        taken: list[tuple[int, int]] = []
        while self._current and len(taken) < limit and self._current[0][0] <= now_ms:
            entry = heapq.heappop(self._current)
            if entry[1] in self._gone:
                self._gone.discard(entry[1])
                continue
            taken.append(entry)
            self.count -= 1
        return taken

    def ahead(self, now_ms: int, bounds: tuple[int, ...]) -> list[int]:
        """How many timers are due before each bound (seconds from now, ascending) and not before the bound below it."""
        counts = [0] * len(bounds)
        last = len(bounds) - 1
        for second, bucket in self._buckets.items():
            counts[min(last, bisect_right(bounds, second - now_ms // 1000))] += len(bucket) // 2
        counts[0] += sum(1 for _, position in self._current if position not in self._gone)
        return counts

    def lists(self) -> list[array[int]]:
        """All that is set, as pairs of due time and position: first a list of the caller's own, then those in use, which grow at
        their ends and lose what is cancelled."""
        gone = self._gone
        current = array("q", [value for entry in self._current if entry[1] not in gone for value in entry])
        return [current, *self._buckets.values()]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for entry in self._current:
            if entry[1] not in self._gone:
                yield entry
        for bucket in self._buckets.values():
            for at in range(0, len(bucket), 2):
                yield bucket[at], bucket[at + 1]
