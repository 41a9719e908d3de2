"""The thread that touches the log: one job at a time, results delivered to the event loop.

While it makes one batch durable, further writes gather in the core; when it is done they go as the next batch. That is
group commit: under load one fsync carries many writes, alone a write waits for nothing but its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from sampan.kernel.clock import Clock

T = TypeVar("T")

_Job = tuple[Callable[[], Any], Callable[[Any, BaseException | None], None]]


class CommitThread:
    """Runs a driver's calls. A driver that does not block is called on the loop's own thread instead."""

    def __init__(self, clock: Clock, *, blocking: bool) -> None:
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        if blocking:
            self._thread = threading.Thread(target=self._run, name="store-log", daemon=True)
            self._thread.start()

    def submit(self, work: Callable[[], T], done: Callable[[T, BaseException | None], None]) -> None:
        """Run ``work()`` and then, on the loop, ``done(result, error)``."""
        if self._thread is None:
            done(*_outcome(work))
            return
        # A clock that jumps on its own must not take this wait for idleness. It is released one turn of the loop later,
        # after those who wait for the result have run.
        hold = self._clock.hold()
        hold.__enter__()

        def finished(result: Any, error: BaseException | None) -> None:
            self._loop.call_soon(hold.__exit__, None, None, None)
            done(result, error)

        self._jobs.put((work, finished))

    async def call(self, work: Callable[[], T]) -> T:
        """Run ``work()`` and return what it returns or raise what it raises."""
        return await self.begin(work)

    def begin(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Run ``work()``; its outcome becomes the future's, for any number of waiters."""
        future: asyncio.Future[T] = self._loop.create_future()

        def done(result: T, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        self.submit(work, done)
        return future

    def stop(self) -> None:
        """End the thread once its jobs are done; returns when it has ended."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, done = job
            result, error = _outcome(work)
            try:
                self._loop.call_soon_threadsafe(done, result, error)
            except RuntimeError:
                # The loop was closed without closing the store; nobody is left to answer.
                return
            # While this thread waits for the next job it must not keep the last batch alive.
            del job, work, done, result, error


def _outcome(work: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return work(), None
    except BaseException as error:
        return None, error
