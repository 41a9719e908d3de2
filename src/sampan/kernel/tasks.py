"""Supervised tasks: nothing runs in the background without an owner that sees it fail.

A `Tasks` group owns every task started in it. `Tasks.start` is for work whose failure is the owner's failure: the
first one cancels the group and is raised where the owner waits. `Tasks.keep` is for loops that must go on: a failure is
logged, counted and followed by a restart with exponential backoff.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from sampan.kernel.clock import Clock

log = logging.getLogger(__name__)

T = TypeVar("T")

RESTART_FIRST = 0.1
"""Seconds before a kept task's first restart; doubles at each further failure."""
RESTART_LIMIT = 30.0
"""Seconds between restarts at most; a task that ran this long starts again from `RESTART_FIRST`."""


class Tasks:
    """A group of tasks with one owner; an async context manager that waits for, or cancels, all of them.

    Leaving the ``async with`` block normally cancels what still runs (a service's background work ends with its owner);
    use `wait` first to let the tasks finish.
    """

    def __init__(
        self, clock: Clock, name: str = "tasks", on_failure: Callable[[BaseException], object] | None = None
    ) -> None:
        """``on_failure`` hears of the failure that ends the group, as it happens."""
        self._on_failure = on_failure
        self._clock = clock
        self._name = name
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failure: BaseException | None = None
        self._failed = asyncio.Event()
        self._closed = False
        self.restarts: dict[str, int] = {}
        """How often each kept task was restarted, by name."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cancel()
        if self._failure is not None and error is None:
            raise self._failure

    def start(self, name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run ``work``; its failure cancels the group and is raised by `wait` or at the end of the block.

        Raises:
            RuntimeError: the group was already cancelled.
        """
        if self._closed:
            work.close()
            raise RuntimeError(f"{self._name} is closed; {name} was not started")
        task = asyncio.get_running_loop().create_task(work, name=f"{self._name}/{name}")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def keep(self, name: str, work: Callable[[], Coroutine[Any, Any, object]]) -> asyncio.Task[None]:
        """Run ``work()`` for as long as the group lives, restarting it with backoff whenever it fails or returns."""
        return self.start(name, self._kept(name, work))

    async def wait(self) -> None:
        """Wait until every task has ended or one has failed.

        Raises:
            BaseException: the first failure among the tasks.
        """
        while self._tasks and self._failure is None:
            failed = asyncio.get_running_loop().create_task(self._failed.wait())
            try:
                await asyncio.wait([*self._tasks, failed], return_when=asyncio.FIRST_COMPLETED)
            finally:
                failed.cancel()
        if self._failure is not None:
            raise self._failure

    async def cancel(self) -> None:
        """Cancel every task and wait until they are gone; no further task can be started."""
        self._closed = True
        current = asyncio.current_task()
        while pending := [task for task in self._tasks if task is not current]:
            for task in pending:
                task.cancel()
            await asyncio.wait(pending)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if self._failure is None and not self._closed:
            self._failure = error
            self._failed.set()
            for other in self._tasks:
                other.cancel()
            if self._on_failure is not None:
                self._on_failure(error)
        else:
            log.error("%s failed while its group was ending", task.get_name(), exc_info=error)

    async def _kept(self, name: str, work: Callable[[], Coroutine[Any, Any, object]]) -> None:
        delay = RESTART_FIRST
        while True:
            began = self._clock.monotonic()
            try:
                await work()
                log.warning("%s/%s returned; it is kept, so it starts again", self._name, name)
            except Exception:
                log.exception("%s/%s failed; restarting in %.1f s", self._name, name, delay)
            if self._clock.monotonic() - began >= RESTART_LIMIT:
                delay = RESTART_FIRST
            self.restarts[name] = self.restarts.get(name, 0) + 1
            await self._clock.sleep(delay)
            delay = min(delay * 2, RESTART_LIMIT)
