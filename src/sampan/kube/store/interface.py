"""The versioned object store, as the API server sees it.

One log of changes, one strictly increasing revision for all keys. The store keeps every live entry in memory, so reads are
plain calls; writes are group-committed by a `LogDriver` and are durable when the call returns. Watches are served from a
bounded history of recent changes. Drivers (sqlite, memory; the seam for etcd and PostgreSQL) only append to, replay and compact
the log.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

from sampan.kernel.errors import SampanError


class Entry(NamedTuple):
    """One live object."""

    key: str
    """``/registry/<group or core>/<plural>/[<namespace>/]<name>``."""
    revision: int
    """Revision of its last change; equals the ``resourceVersion`` inside ``value``."""
    created: int
    """Revision at which it was created."""
    value: bytes
    """Canonical encoding (``kube.objects.encode``), shared by all readers."""


class Change(NamedTuple):
    """One change of one key."""

    revision: int
    key: str
    value: bytes | None
    """The encoding after the change; None: deleted."""
    previous: bytes | None
    """The encoding before the change; None: created."""

    @property
    def created(self) -> bool:
        return self.previous is None

    @property
    def deleted(self) -> bool:
        return self.value is None


class ConflictError(SampanError):
    """The key is not at the expected revision; ``current`` is its revision, 0 when it does not exist."""

    def __init__(self, key: str, current: int) -> None:
        super().__init__(f"{key} is at revision {current}")
        self.key = key
        self.current = current


class CompactedError(SampanError):
    """The revision is older than the retained history, which begins after ``compacted``."""

    def __init__(self, requested: int, compacted: int) -> None:
        super().__init__(f"revision {requested} is compacted (history begins after {compacted})")
        self.requested = requested
        self.compacted = compacted


class StoreError(SampanError):
    """The log did not take a write (or the store is closed): nothing of it is visible, reads go on."""


class FullError(StoreError):
    """The log cannot grow (disk full); nothing of the write was stored, reads go on."""


class Watch(Protocol):
    """A stream of changes in revision order; ends with `close` or, for a slow reader, with `SlowWatchError`.

    Read it either by iteration or by `batch`. Changes are equal for every watch, so what is derived from one (an encoded event) can
    be shared, keyed by its revision.
    """

    def __aiter__(self) -> AsyncIterator[Change]: ...

    async def batch(self) -> list[Change]:
        """Every change that waits, or the next one when none does; empty: the watch was closed.

        Raises:
            SlowWatchError: the reader was cut off.
        """
        ...

    def progress(self) -> int:
        """Every change up to this revision has been handed to the reader (for bookmarks)."""
        ...

    def close(self) -> None: ...


class SlowWatchError(SampanError):
    """The reader fell behind the retained history and was cut off."""


class Store(Protocol):
    """The store's core; all methods belong to the event loop's thread."""

    @property
    def revision(self) -> int:
        """The latest durable revision."""
        ...

    @property
    def compacted(self) -> int:
        """History up to here is gone."""
        ...

    def get(self, key: str) -> Entry | None:
        """The live entry of a key."""
        ...

    def range(self, prefix: str, after: str = "", limit: int = 0) -> Iterable[Entry]:
        """Live entries whose key begins with ``prefix`` and is greater than ``after``, in key order."""
        ...

    def range_at(self, prefix: str, revision: int, after: str = "", limit: int = 0) -> Iterable[Entry]:
        """Like `range` but as of an earlier revision (for later pages of a list).

        Raises:
            CompactedError: the revision is no longer retained.
        """
        ...

    def count(self, prefix: str) -> int:
        """How many live keys begin with ``prefix``."""
        ...

    async def put(self, key: str, encode: Callable[[int], bytes], expected: int | None) -> Entry:
        """Write a key; ``encode(revision)`` gives the value. Durable on return.

        ``expected``: the revision the key must be at, 0 = must not exist, None = whatever.

        Raises:
            ConflictError: the key is elsewhere (also where a write still under way put it).
            FullError: the disk is full.
            StoreError: the log failed otherwise, or the store is closed.
        """
        ...

    async def delete(self, key: str, expected: int | None, encode: Callable[[int], bytes] | None = None) -> Change:
        """Delete a key. ``encode(revision)`` gives the last state that watchers see (default: the entry's own value at the
        deletion's revision).

        Raises:
            ConflictError: the key is elsewhere or does not exist.
            FullError, StoreError: as for `put`.
        """
        ...

    @property
    def founding(self) -> bool:
        """Whether this is a log's first run, before `found`: writes are then in the log when they return, not yet on disk."""
        ...

    async def flushed(self) -> None:
        """Return when everything visible is on disk. At once, but while `founding`.

        Raises:
            StoreError: the disk failed.
        """
        ...

    async def settled(self, key: str) -> None:
        """Wait until no write of the key is under way: its fate, good or bad, is then what `get` says.

        For who lost a race and wants to try again on what won it. Not bounded in time, as a commit is not.
        """
        ...

    def watch(self, prefix: str, after: int) -> Watch:
        """Changes of keys under ``prefix`` with a revision greater than ``after``.

        Raises:
            CompactedError: ``after`` is older than the retained history.
        """
        ...

    def history(self, prefix: str, after: int) -> Iterable[Change]:
        """Changes under ``prefix`` with a revision in (``after``, `revision`], oldest first, without waiting.

        Together with `subscribe` in the same step of the loop it makes a gapless push watch.

        Raises:
            CompactedError: ``after`` is older than the retained history.
        """
        ...

    def subscribe(self, prefix: str, listener: Callable[[Change], None]) -> Callable[[], None]:
        """Call ``listener`` synchronously with each change under ``prefix`` as it becomes visible (before the writer is
        answered); returns a function that unsubscribes. For in-process caches that must never lag a write.
        """
        ...


class Record(NamedTuple):
    """One row of the log, as a driver stores it. ``value`` None is a deletion."""

    revision: int
    key: str
    created: int
    previous: int
    """Revision of the row this one supersedes; 0 for a creation."""
    value: bytes | None


class LogDriver(Protocol):
    """Where the log is kept. Methods may block: the core calls them on a thread of its own, one at a time."""

    blocking: bool
    """False: the methods only touch memory, so the core calls them on the event loop."""

    def open(self) -> None:
        """Open or create.

        Raises:
            DataDirectoryError: a newer format, or not ours.
        """
        ...

    def replay(self) -> Iterator[Record]:
        """Every row that is still kept, in revision order."""
        ...

    def bounds(self) -> tuple[int, int]:
        """(compacted revision, last revision)."""
        ...

    def append(self, records: list[Record]) -> None:
        """Write a batch and make it durable, all or nothing.

        Raises:
            FullError: no room.
            StoreError: another failure; nothing of the batch is kept.
        """
        ...

    def relax(self) -> None:
        """From now on `append` need not wait for the disk: what a crash of the machine loses of it is a tail."""
        ...

    def flush(self, *, strict: bool) -> None:
        """Make what was appended durable; ``strict``: and every append from now on.

        Raises:
            StoreError: the disk failed.
        """
        ...

    def compact(self, revision: int) -> bool:
        """Forget what a reader at ``revision`` or later cannot see: rows superseded at or before it, tombstones up to it.

        Works in small steps so that appends go on in between; returns True while there is more to forget.
        """
        ...

    def close(self) -> None: ...
