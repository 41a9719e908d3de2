"""The versioned object store: one log, one revision, every live entry in memory.

A write takes this road, all on the event loop except the append itself:

1. `Store.put` checks the expected revision against the key's newest state, *including writes still under way*, takes the
   next revision and encodes the value with it.
2. The write joins the queue. When no batch is under way the whole queue becomes one (`commit.CommitThread`): the driver
   appends it and makes it durable.
3. Only then the batch becomes visible, in revision order: live entries and sorted keys (`keys.KeyIndex`), the recent
   changes (`history.History`), listeners and watches (`fanout.Fanout`), and at last the writers are answered.

A failed batch fails its writers and everyone queued behind them (who may have built on them); memory is as if they had
never been. Revisions they took are skipped, never given out again.

A log's very first run may be *founded*: the hundred objects that every cluster has are written one after another, by who
would write them again if they were lost, and nobody else has anything to lose yet. So appends do not wait for the disk until
`Store.found` flushes them all at once. Who must answer an outside client earlier asks for `Store.flushed` first.

Reading is plain memory access and never waits. Compaction runs in small steps between batches, so it delays no write for
long.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

from sampan.kernel.clock import Clock, Timer
from sampan.kube.objects import with_revision
from sampan.kube.store import interface
from sampan.kube.store.commit import CommitThread
from sampan.kube.store.fanout import BACKLOG_BYTES, BACKLOG_COUNT, Fanout, StoreWatch
from sampan.kube.store.history import HISTORY_BYTES, HISTORY_COUNT, History, Past
from sampan.kube.store.interface import (
    Change,
    ConflictError,
    Entry,
    LogDriver,
    Record,
    StoreError,
)
from sampan.kube.store.keys import KeyIndex

log = logging.getLogger(__name__)

FIRST_REVISION = 1
"""The revision of a store that was never written: not 0, which means "any" to Kubernetes clients."""
COMPACT_EVERY = 300.0
"""Seconds between compactions; each forgets what was superseded before the previous one."""
COMPACT_KEEP = 1_000
"""Newest changes that a compaction always keeps."""
OPEN_KEEP = 2_000
"""Newest revisions whose history is there again after `Store.open`; who watched before them must list anew."""
COMPACT_ROWS = 50_000
"""Changes since the last compaction at which one begins early, so that opening the log stays quick."""
BATCH_COUNT = 2_000
"""Writes in one batch at most."""
BATCH_BYTES = 8 << 20
"""Bytes in one batch at most (a single larger write still goes)."""


class _Write(NamedTuple):
    """A write between acceptance and durability."""

    record: Record
    entry: Entry | None
    """What the key will be; None: deleted."""
    change: Change
    before: Entry | None
    answer: asyncio.Future[None]


class Store(interface.Store):
    """The store over a `LogDriver`; implements ``store.interface.Store``. `open` before use, `close` at the end."""

    def __init__(
        self,
        driver: LogDriver,
        clock: Clock,
        *,
        history_count: int = HISTORY_COUNT,
        history_bytes: int = HISTORY_BYTES,
        backlog_count: int = BACKLOG_COUNT,
        backlog_bytes: int = BACKLOG_BYTES,
        compact_every: float = COMPACT_EVERY,
        compact_keep: int = COMPACT_KEEP,
        founding: bool = False,
    ) -> None:
        """``founding``: if the log is empty, appends wait for the disk only from `found` on."""
        self._driver = driver
        self._clock = clock
        self._compact_every = compact_every
        self._compact_keep = compact_keep
        self._live: dict[str, Entry] = {}
        self._keys = KeyIndex()
        self._history = History(self._live, FIRST_REVISION, history_count, history_bytes)
        self._fanout = Fanout(FIRST_REVISION, backlog_count, backlog_bytes)
        self._taken = FIRST_REVISION
        self._ahead: dict[str, _Write] = {}
        self._settling: dict[str, asyncio.Event] = {}
        self._queue: list[_Write] = []
        self._batch: list[_Write] = []
        self._flush_scheduled = False
        self._thread: CommitThread | None = None
        self._open = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._compaction: Timer | None = None
        self._compacting = False
        self._compaction_mark = FIRST_REVISION
        self._uncompacted = 0
        self._founding = founding
        self._flushing: asyncio.Future[None] | None = None
        self._flush_covers = 0
        self.writes = 0
        """Writes made durable since the start."""
        self.commits = 0
        """Batches they went in."""
        self.failed_commits = 0
        """Batches that failed."""

    # -- life

    async def open(self) -> None:
        """Open the log and read what lives.

        Raises:
            DataDirectoryError: the log is of a newer format or not a log.
            StoreError: it cannot be read.
        """
        self._thread = CommitThread(self._clock, blocking=self._driver.blocking)
        try:
            await self._thread.call(self._load)
        except BaseException:
            await self._thread.call(self._driver.close)
            self._thread.stop()
            raise
        self._compaction_mark = self._fanout.revision
        self._open = True
        self._arm_compaction()

    async def close(self) -> None:
        """Finish the writes under way, end all watches and close the log; idempotent."""
        if not self._open:
            return
        self._open = False
        if self._compaction is not None:
            self._compaction.cancel()
        await self._idle.wait()
        self._fanout.close()
        assert self._thread is not None
        await self._thread.call(self._driver.close)
        self._thread.stop()

    def _load(self) -> None:
        self._driver.open()
        compacted, last = self._driver.bounds()
        self._history.floor = max(compacted, last - OPEN_KEEP, FIRST_REVISION)
        live = self._live
        for record in self._driver.replay():
            before = live.pop(record.key, None)
            if record.value is not None:
                live[record.key] = Entry(record.key, record.revision, record.created, record.value)
            if record.revision > compacted:
                self._uncompacted += 1
                if before is None and record.previous:
                    raise StoreError(f"the log lacks revision {record.previous} of {record.key}; it is damaged")
            if record.revision > self._history.floor:
                self._history.append(_past(record, before))
        self._keys = KeyIndex(live)
        self._taken = self._fanout.revision = max(last, FIRST_REVISION)
        self._founding = self._founding and self._driver.blocking and not last
        if self._founding:
            self._driver.relax()

    # -- reading

    @property
    def revision(self) -> int:
        """The latest durable revision."""
        return self._fanout.revision

    @property
    def compacted(self) -> int:
        """History up to here is gone."""
        return self._history.floor

    @property
    def history_bytes(self) -> int:
        """Bytes that the history of changes holds."""
        return self._history.bytes

    @property
    def watches(self) -> int:
        """How many watches stand."""
        return len(self._fanout)

    @property
    def cut_off(self) -> int:
        """How many watches were cut off for being slow."""
        return self._fanout.cut_off

    def get(self, key: str) -> Entry | None:
        """The live entry of a key."""
        return self._live.get(key)

    def range(self, prefix: str, after: str = "", limit: int = 0) -> list[Entry]:
        """Live entries whose key begins with ``prefix`` and is greater than ``after``, in key order."""
        live = self._live
        return [live[key] for key in self._keys.range(prefix, after, limit)]

    def range_at(self, prefix: str, revision: int, after: str = "", limit: int = 0) -> list[Entry]:
        """Like `range` but as of an earlier revision.

        Raises:
            CompactedError: the revision is no longer retained.
        """
        differing = self._history.as_of(prefix, revision)
        if not differing:
            return self.range(prefix, after, limit)
        then = (entry for entry in differing.values() if entry is not None and entry.key > after)
        # Of the present keys at most len(differing) drop out, so a page needs no more than that many extra ones.
        now = self.range(prefix, after, limit + len(differing) if limit else 0)
        entries = [entry for entry in now if entry.key not in differing]
        entries += then
        entries.sort()
        return entries[:limit] if limit else entries

    def count(self, prefix: str) -> int:
        """How many live keys begin with ``prefix``."""
        return self._keys.count(prefix)

    def collections(self) -> dict[str, int]:
        """How many live keys each collection (``/registry/<group>/<plural>/``) has."""
        return self._keys.sizes()

    def watch(self, prefix: str, after: int) -> StoreWatch:
        """Changes of keys under ``prefix`` with a revision greater than ``after``.

        Raises:
            CompactedError: ``after`` is older than the retained history.
            StoreError: the store is closed.
        """
        self._check_open()
        return self._fanout.watch(prefix, self._history.since(prefix, after))

    def history(self, prefix: str, after: int) -> list[Change]:
        """Changes under ``prefix`` with a revision in (``after``, `revision`], oldest first.

        Raises:
            CompactedError: ``after`` is older than the retained history.
        """
        return self._history.since(prefix, after)

    def subscribe(self, prefix: str, listener: Callable[[Change], None]) -> Callable[[], None]:
        """Call ``listener`` with each change under ``prefix`` as it becomes visible; returns what unsubscribes."""
        return self._fanout.subscribe(prefix, listener)

    # -- writing

    async def put(self, key: str, encode: Callable[[int], bytes], expected: int | None) -> Entry:
        """Write a key, durably; see ``store.interface.Store.put``."""
        self._check_open()
        before = self._newest(key)
        _check(key, before, expected)
        revision = self._taken + 1
        value = encode(revision)
        created = revision if before is None else before.created
        entry = Entry(key if before is None else before.key, revision, created, value)
        record = Record(revision, entry.key, created, 0 if before is None else before.revision, value)
        await self._submit(record, entry, before, None if before is None else before.value)
        return entry

    async def delete(self, key: str, expected: int | None, encode: Callable[[int], bytes] | None = None) -> Change:
        """Delete a key, durably; see ``store.interface.Store.delete``."""
        self._check_open()
        before = self._newest(key)
        _check(key, before, expected)
        if before is None:
            raise ConflictError(key, 0)
        revision = self._taken + 1
        last = with_revision(before.value, revision) if encode is None else encode(revision)
        record = Record(revision, before.key, before.created, before.revision, None)
        return await self._submit(record, None, before, last)

    @property
    def founding(self) -> bool:
        """Whether writes are not on disk yet when they return; see ``store.interface.Store.founding``."""
        return self._founding

    async def found(self) -> None:
        """Flush what was written since `open`, and be durable before the answer from now on.

        Raises:
            StoreError: the disk failed, or the store is closed.
        """
        if self._founding:
            self._check_open()
            assert self._thread is not None
            await self._thread.call(lambda: self._driver.flush(strict=True))
            self._founding = False

    async def flushed(self) -> None:
        """Return when everything visible is on disk; see ``store.interface.Store.flushed``."""
        if not self._founding:
            return
        self._check_open()
        assert self._thread is not None
        if self._flushing is None or self._flushing.done() or self._flush_covers < self.revision:
            self._flush_covers = self.revision
            self._flushing = self._thread.begin(lambda: self._driver.flush(strict=False))
        await asyncio.shield(self._flushing)

    async def settled(self, key: str) -> None:
        """Wait until no write of the key is under way; see ``store.interface.Store.settled``."""
        while key in self._ahead:
            await self._settling.setdefault(key, asyncio.Event()).wait()

    def _check_open(self) -> None:
        if not self._open:
            raise StoreError("the store is closed")

    def _newest(self, key: str) -> Entry | None:
        ahead = self._ahead.get(key)
        return self._live.get(key) if ahead is None else ahead.entry

    async def _submit(
        self, record: Record, entry: Entry | None, before: Entry | None, previous: bytes | None
    ) -> Change:
        assert self._thread is not None
        self._taken = record.revision
        change = Change(record.revision, record.key, record.value, previous)
        loop = asyncio.get_running_loop()
        write = _Write(record, entry, change, before, loop.create_future())
        self._ahead[record.key] = write
        self._queue.append(write)
        self._idle.clear()
        if not self._driver.blocking:
            self._flush()
        elif not self._batch and not self._flush_scheduled:
            # Not at once: other tasks that are ready in this turn of the loop join the batch.
            self._flush_scheduled = True
            loop.call_soon(self._flush)
        await write.answer
        return change

    def _flush(self) -> None:
        self._flush_scheduled = False
        assert self._thread is not None
        if self._batch or not self._queue:
            return
        size = 0
        for count, write in enumerate(self._queue):
            size += len(write.record.value or b"")
            if count >= BATCH_COUNT or (size > BATCH_BYTES and count):
                self._batch, self._queue = self._queue[:count], self._queue[count:]
                break
        else:
            self._batch, self._queue = self._queue, []
        records = [write.record for write in self._batch]
        self._thread.submit(lambda: self._driver.append(records), self._appended)

    def _appended(self, _: None, error: BaseException | None) -> None:
        batch, self._batch = self._batch, []
        if error is None:
            self.commits += 1
            self.writes += len(batch)
            self._flush()  # the next batch is written while this one is published
            for write in batch:
                self._publish(write)
            for write in batch:
                if not write.answer.done():
                    write.answer.set_result(None)
        else:
            self.failed_commits += 1
            self._fail(batch, error)
        if not self._batch and not self._queue and not self._compacting:
            self._idle.set()
        if self._uncompacted > COMPACT_ROWS:
            self._compact()

    def _publish(self, write: _Write) -> None:
        record, entry, key = write.record, write.entry, write.record.key
        if self._ahead.get(key) is write:
            del self._ahead[key]
            if key in self._settling:
                self._settling.pop(key).set()
        if entry is not None:
            if write.before is None:
                self._keys.add(key)
            self._live[key] = entry
        else:
            self._keys.remove(key)
            del self._live[key]
        self._uncompacted += 1
        last = write.change.previous if entry is None else None
        self._history.append(Past(record.revision, key, write.before, last))
        self._fanout.publish(write.change)
        assert self._fanout.revision == record.revision

    def _fail(self, batch: list[_Write], error: BaseException) -> None:
        failure = error if isinstance(error, StoreError) else StoreError(f"the log failed: {error}")
        if failure is not error:
            log.error("the log failed", exc_info=error)
        failed = batch + self._queue
        self._queue = []
        self._ahead.clear()
        for settled in self._settling.values():
            settled.set()
        self._settling.clear()
        for write in failed:
            if not write.answer.done():
                write.answer.set_exception(type(failure)(*failure.args))

    # -- compaction

    def _arm_compaction(self) -> None:
        if self._open:
            self._compaction = self._clock.call_later(self._compact_every, self._compact)

    def _compact(self) -> None:
        """Forget history older than the previous compaction, in memory and in the log."""
        if self._compacting or not self._open:
            return
        if self._compaction is not None:
            self._compaction.cancel()
        self._compacting = True
        self._uncompacted = 0
        self._idle.clear()
        self._history.trim(self._compaction_mark, self._compact_keep)
        self._compaction_mark = self.revision
        self._compact_step(self._history.floor)

    def _compact_step(self, target: int) -> None:
        assert self._thread is not None

        def stepped(more: bool, error: BaseException | None) -> None:
            if error is not None:
                log.warning("compaction up to revision %d failed and will be tried again: %s", target, error)
            if error is None and more and self._open:
                self._compact_step(target)
                return
            self._compacting = False
            if not self._batch and not self._queue:
                self._idle.set()
            self._arm_compaction()

        self._thread.submit(lambda: self._driver.compact(target), stepped)

    def __iter__(self) -> Iterator[Entry]:
        """All live entries, in no particular order."""
        return iter(list(self._live.values()))


def _check(key: str, current: Entry | None, expected: int | None) -> None:
    revision = 0 if current is None else current.revision
    if expected is not None and expected != revision:
        raise ConflictError(key, revision)


def _past(record: Record, before: Entry | None) -> Past:
    last = with_revision(before.value, record.revision) if record.value is None and before is not None else None
    return Past(record.revision, record.key, before, last)
