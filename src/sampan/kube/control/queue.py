"""The work queue: which keys to look at, each once, one worker a key, failures ever later.

A key that is added while it waits is there once; a key that is added while a worker has it comes back when the worker is
done, so no two workers ever have the same key and no change is missed. Failed keys return after an exponential delay, as
client-go's default rate limiter has it (5 ms doubling to 1,000 s). All delays are the clock's.

For one event loop; `add` and its kin never wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

from sampan.kernel.clock import Clock, Timer
from sampan.kube.control.measures import ControllerMetrics

K = TypeVar("K", bound=Hashable)

RETRY_FIRST = 0.005
"""Seconds after a key's first failure; doubles with each further one."""
RETRY_LIMIT = 1000.0
"""Seconds between retries of a key at most."""
FAIR_RUN = 32
"""Keys handed out without a wait after which the rest of the process has its turn."""


class WorkQueue(Generic[K]):
    """Keys to reconcile."""

    def __init__(
        self,
        clock: Clock,
        *,
        first: float = RETRY_FIRST,
        limit: float = RETRY_LIMIT,
        metrics: ControllerMetrics | None = None,
    ) -> None:
        self._clock = clock
        self._first = first
        self._limit = limit
        self._metrics = metrics
        self._waiting: deque[K] = deque()
        self._dirty: dict[K, float] = {}
        """Keys that want work, with the time since when."""
        self._active: dict[K, float] = {}
        self._later: dict[K, Timer] = {}
        self._failures: dict[K, int] = {}
        self._getters: deque[asyncio.Future[None]] = deque()
        self._run = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, key: K) -> None:
        """Have the key worked on as soon as a worker is free."""
        if key in self._dirty:
            return
        self._dirty[key] = self._clock.monotonic()
        if self._metrics is not None:
            self._metrics.adds.inc()
        if key not in self._active:
            self._enqueue(key)

    def add_after(self, key: K, seconds: float) -> None:
        """Add the key in ``seconds``; of several pending times the earliest counts."""
        if seconds <= 0:
            self.add(key)
            return
        when = self._clock.monotonic() + seconds
        pending = self._later.get(key)
        if pending is not None:
            if pending.when <= when:
                return
            pending.cancel()
        self._later[key] = self._clock.call_at(when, self._due, key)

    def retry(self, key: K) -> float:
        """Add the key after its backoff, which grows until `forget`; returns the seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        # Beyond 2**60 the delay has long been at its limit; the bound keeps the float finite.
        delay = min(self._first * 2.0 ** min(failures, 60), self._limit)
        if self._metrics is not None:
            self._metrics.retries.inc()
        self.add_after(key, delay)
        return delay

    def retry_now(self, key: K) -> None:
        """Add the key at once, but count a failure."""
        self._failures[key] = self._failures.get(key, 0) + 1
        if self._metrics is not None:
            self._metrics.retries.inc()
        self.add(key)

    def forget(self, key: K) -> None:
        """The key did well: its next failure starts from the first delay."""
        self._failures.pop(key, None)

    def failures(self, key: K) -> int:
        """How often the key failed since `forget`."""
        return self._failures.get(key, 0)

    async def get(self) -> K:
        """The next key, as soon as there is one; `done` must follow."""
        self._run = self._run + 1 if self._waiting else 0
        if self._run >= FAIR_RUN:
            self._run = 0
            await self._clock.sleep(0)  # reconciles that wait for nothing must not keep everybody else from running
        while not self._waiting:
            getter = asyncio.get_running_loop().create_future()
            self._getters.append(getter)
            try:
                await getter
            except BaseException:
                if getter.done() and not getter.cancelled() and self._waiting:
                    self._wake()
                elif getter in self._getters:
                    self._getters.remove(getter)
                raise
        key = self._waiting.popleft()
        now = self._clock.monotonic()
        since = self._dirty.pop(key)
        self._active[key] = now
        if self._metrics is not None:
            self._metrics.depth.set(len(self._waiting))
            self._metrics.queued.observe(now - since)
        return key

    def done(self, key: K) -> None:
        """The worker is done with the key; if it was added meanwhile, it goes to the end of the queue."""
        began = self._active.pop(key)
        if self._metrics is not None:
            self._metrics.worked.observe(self._clock.monotonic() - began)
        if key in self._dirty:
            self._enqueue(key)

    def clear(self) -> None:
        """Forget every key that waits and every timer."""
        for timer in self._later.values():
            timer.cancel()
        for key in self._waiting:
            del self._dirty[key]
        self._waiting.clear()
        self._later.clear()
        self._failures.clear()

    def _due(self, key: K) -> None:
        del self._later[key]
        self.add(key)

    def _enqueue(self, key: K) -> None:
        self._waiting.append(key)
        if self._metrics is not None:
            self._metrics.depth.set(len(self._waiting))
        self._wake()

    def _wake(self) -> None:
        while self._getters:
            getter = self._getters.popleft()
            if not getter.done():
                getter.set_result(None)
                return
