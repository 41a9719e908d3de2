"""The log driver that keeps nothing: for tests and for platforms that may forget everything when they stop.

It is also the specification of `LogDriver` that the other drivers are tested against: what `replay` yields after any
sequence of appends and compactions is what every driver must yield.
"""

from __future__ import annotations

from collections.abc import Iterator

from sampan.kube.store.interface import Record


class MemoryLog:
    """A log in a list. ``keep`` False stores no rows at all (the core's own memory is enough to serve)."""

    blocking = False

    def __init__(self, *, keep: bool = False) -> None:
        self._keep = keep
        self._rows: dict[int, Record] = {}
        self._compacted = 0
        self._last = 0

    def open(self) -> None:
        """Nothing to do; a kept log can be opened again and again."""

    def replay(self) -> Iterator[Record]:
        """The kept rows in revision order."""
        yield from list(self._rows.values())

    def bounds(self) -> tuple[int, int]:
        """(compacted revision, last revision); without kept rows all history counts as compacted."""
        return (self._compacted if self._keep else self._last), self._last

    def append(self, records: list[Record]) -> None:
        """Take a batch."""
        if self._keep:
            self._rows.update((record.revision, record) for record in records)
        self._last = records[-1].revision

    def relax(self) -> None:
        """Nothing to do."""

    def flush(self, *, strict: bool) -> None:
        """Nothing to do."""

    def compact(self, revision: int) -> bool:
        """Forget superseded rows and tombstones up to ``revision``, in one step."""
        gone = [record.previous for record in self._rows.values() if record.previous and record.revision <= revision]
        gone += [
            record.revision for record in self._rows.values() if record.value is None and record.revision <= revision
        ]
        for old in gone:
            self._rows.pop(old, None)
        self._compacted = max(self._compacted, revision)
        return False

    def close(self) -> None:
        """Nothing to do."""
