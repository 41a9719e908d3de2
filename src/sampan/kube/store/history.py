"""The bounded ring of recent changes: where watches resume and older list pages are read.

A change is kept together with the entry it replaced, so the state at any retained revision can be worked out by undoing
what came later. The ring is bounded by count and by the bytes that only it keeps alive (the superseded encodings; the
newest ones are the store's own anyway). What falls out moves ``floor``: history up to there is gone.

Costs: append O(1); `since` and `as_of` O(log n + changes after the revision).
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from sampan.kube.store.interface import Change, CompactedError, Entry

HISTORY_COUNT = 10_000
"""Changes kept at most."""
HISTORY_BYTES = 32 << 20
"""Bytes of superseded encodings kept at most."""


class Past(NamedTuple):
    """A change and the live entry that it ended (None: it created the key)."""

    change: Change
    before: Entry | None

    @property
    def weight(self) -> int:
        """Bytes that this keeps alive."""
        weight = 0 if self.before is None else len(self.before.value)
        if self.change.value is None and self.change.previous is not None:
            weight += len(self.change.previous)
        return weight


_GONE = Past(Change(0, "", None, None), None)
"""Stands where a dropped change was until the list is shortened."""


def _revision(past: Past) -> int:
    return past.change.revision


class History:
    """Recent changes in revision order."""

    def __init__(self, floor: int, count: int = HISTORY_COUNT, size: int = HISTORY_BYTES) -> None:
        self.floor = floor
        """History up to this revision is gone."""
        self._count = count
        self._size = size
        self._ring: list[Past] = []
        self._first = 0
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._ring) - self._first

    @property
    def bytes(self) -> int:
        """Bytes that the ring keeps alive."""
        return self._bytes

    def append(self, past: Past) -> None:
        """Add the newest change, dropping the oldest ones beyond the bounds."""
        self._ring.append(past)
        self._bytes += past.weight
        while len(self) > self._count or (self._bytes > self._size and len(self) > 1):
            self._drop()

    def trim(self, revision: int, keep: int) -> None:
        """Drop changes up to ``revision``, but keep the newest ``keep`` ones."""
        while len(self) > keep:
            oldest = self._ring[self._first]
            if oldest.change.revision > revision:
                break
            self._drop()

    def since(self, prefix: str, after: int) -> list[Change]:
        """Changes under ``prefix`` with a revision greater than ``after``.

        Raises:
            CompactedError: ``after`` is older than the ring.
        """
        return [past.change for past in self._after(after) if past.change.key.startswith(prefix)]

    def as_of(self, prefix: str, revision: int) -> dict[str, Entry | None]:
        """What differed from now under ``prefix`` at ``revision``: each changed key with its entry then (None: absent).

        Raises:
            CompactedError: ``revision`` is older than the ring.
        """
        then: dict[str, Entry | None] = {}
        for past in self._after(revision):
            if past.change.key.startswith(prefix):
                then.setdefault(past.change.key, past.before)
        return then

    def _after(self, revision: int) -> list[Past]:
        if revision < self.floor:
            raise CompactedError(revision, self.floor)
        # The newest change is most often the one asked from, so that case must not search.
        if not len(self) or _revision(self._ring[-1]) <= revision:
            return []
        start = bisect_right(self._ring, revision, lo=self._first, key=_revision)
        return self._ring[start:]

    def _drop(self) -> None:
        oldest = self._ring[self._first]
        self.floor = oldest.change.revision
        self._bytes -= oldest.weight
        self._ring[self._first] = _GONE
        self._first += 1
        if self._first > 1024 and self._first * 2 > len(self._ring):
            del self._ring[: self._first]
            self._first = 0
