"""Who hears of a change: watches and subscriptions, indexed by the prefix they asked for.

A change is offered only to the prefixes of its key that somebody registered (one dictionary look-up for each distinct
prefix length), so idle watches cost nothing however many there are. All watches share the `Change` objects of what happens while
they stand. A watch that does not read is cut off when its backlog passes a limit, by count or by bytes, and never slows a writer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable

from sampan.kube.store.interface import Change, SlowWatchError

log = logging.getLogger(__name__)

BACKLOG_COUNT = 4_096
"""Unread live changes at which a watch is cut off (on top of what it began with)."""
BACKLOG_BYTES = 16 << 20
"""Bytes of unread live changes at which a watch is cut off."""

Listener = Callable[[Change], None]


class StoreWatch:
    """One reader's stream of changes; see ``store.interface.Watch``."""

    __slots__ = ("_backlog", "_bytes", "_closed", "_fanout", "_limit", "_prefix", "_slow", "_waiter")

    def __init__(self, fanout: Fanout, prefix: str, backlog: Iterable[Change]) -> None:
        self._fanout = fanout
        self._prefix = prefix
        self._backlog = deque(backlog)
        self._limit = len(self._backlog) + fanout.backlog_count
        self._bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        self._slow = False

    def __aiter__(self) -> AsyncIterator[Change]:
        return self

    async def __anext__(self) -> Change:
        while not self._backlog:
            if self._ended():
                raise StopAsyncIteration
            await self._wait()
        change = self._backlog.popleft()
        if not self._backlog:
            self._read_all()
        return change

    async def batch(self) -> list[Change]:
        """Every change that waits, or the next one when none does; empty: closed."""
        while not self._backlog:
            if self._ended():
                return []
            await self._wait()
        changes = list(self._backlog)
        self._backlog.clear()
        self._read_all()
        return changes

    def progress(self) -> int:
        """Every change up to this revision has been handed to the reader."""
        return self._backlog[0].revision - 1 if self._backlog else self._fanout.revision

    def close(self) -> None:
        """End the stream; idempotent."""
        if not self._closed:
            self._closed = True
            self._backlog.clear()
            self._fanout.forget(self._prefix, self)
            self._wake()

    def offer(self, change: Change) -> None:
        """Queue a change for the reader, or cut the reader off."""
        self._backlog.append(change)
        value = change.value if change.value is not None else change.previous
        self._bytes += len(value or b"")
        if len(self._backlog) > self._limit or self._bytes > self._fanout.backlog_bytes:
            self._slow = True
            self._fanout.cut_off += 1
            self.close()
        elif self._waiter is not None:
            self._wake()

    def _read_all(self) -> None:
        self._bytes = 0
        self._limit = self._fanout.backlog_count

    def _ended(self) -> bool:
        if self._slow:
            raise SlowWatchError(f"the watch of {self._prefix} did not read fast enough and was cut off")
        return self._closed

    async def _wait(self) -> None:
        if self._waiter is not None:
            raise RuntimeError("a watch has one reader")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Fanout:
    """The index of watches and listeners by prefix."""

    def __init__(self, revision: int, backlog_count: int = BACKLOG_COUNT, backlog_bytes: int = BACKLOG_BYTES) -> None:
        self.revision = revision
        """The latest revision that was published."""
        self.backlog_count = backlog_count
        self.backlog_bytes = backlog_bytes
        self.cut_off = 0
        """Watches cut off for being slow, so far."""
        self._watches: dict[str, dict[StoreWatch, None]] = {}
        self._listeners: dict[str, list[Listener]] = {}
        self._lengths: Counter[int] = Counter()

    def __len__(self) -> int:
        return sum(map(len, self._watches.values()))

    def watch(self, prefix: str, backlog: Iterable[Change]) -> StoreWatch:
        """A new watch that begins with ``backlog``."""
        watch = StoreWatch(self, prefix, backlog)
        self._watches.setdefault(prefix, {})[watch] = None
        self._lengths[len(prefix)] += 1
        return watch

    def forget(self, prefix: str, watch: StoreWatch) -> None:
        """Drop a watch (called by its ``close``)."""
        watches = self._watches[prefix]
        del watches[watch]
        if not watches:
            del self._watches[prefix]
        self._released(prefix)

    def subscribe(self, prefix: str, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` with each change; returns what ends that."""
        self._listeners.setdefault(prefix, []).append(listener)
        self._lengths[len(prefix)] += 1

        def unsubscribe() -> None:
            listeners = self._listeners.get(prefix, [])
            if listener in listeners:
                listeners.remove(listener)
                if not listeners:
                    del self._listeners[prefix]
                self._released(prefix)

        return unsubscribe

    def publish(self, change: Change) -> None:
        """Tell everyone concerned. The change is already visible in the store."""
        self.revision = change.revision
        for length in tuple(self._lengths):
            prefix = change.key[:length]
            if len(prefix) < length:
                continue
            for listener in tuple(self._listeners.get(prefix, ())):
                try:
                    listener(change)
                except Exception:
                    # The change is durable: one listener's fault must reach neither the writer nor the others.
                    log.exception("a listener of %s failed at revision %d", prefix, change.revision)
            watches = self._watches.get(prefix)
            if watches:
                for watch in tuple(watches):
                    watch.offer(change)

    def close(self) -> None:
        """End every watch and drop every listener."""
        for watch in [watch for watches in self._watches.values() for watch in watches]:
            watch.close()
        self._listeners.clear()
        self._lengths.clear()

    def _released(self, prefix: str) -> None:
        self._lengths[len(prefix)] -= 1
        if self._lengths[len(prefix)] <= 0:
            del self._lengths[len(prefix)]
