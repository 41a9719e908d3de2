"""Tasks have an owner that sees them fail."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from sampan.kernel.autojump import autojump
from sampan.kernel.clock import Clock, Timeline
from sampan.kernel.tasks import RESTART_LIMIT, Tasks


def frozen() -> Clock:
    return Clock(Timeline(origin=0.0, base=0.0, wall_offset=0.0, rate=0.0))


async def test_the_first_failure_cancels_the_group_and_is_raised() -> None:
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    async def fail() -> None:
        raise KeyError("first")

    with pytest.raises(KeyError, match="first"):
        async with Tasks(frozen()) as tasks:
            tasks.start("forever", forever())
            await asyncio.sleep(0)
            tasks.start("fail", fail())
            await tasks.wait()
    assert ended == ["cancelled"]


async def test_leaving_the_block_ends_what_still_runs() -> None:
    async with Tasks(frozen()) as tasks:
        task = tasks.start("forever", asyncio.Event().wait())
    assert task.cancelled()
    with pytest.raises(RuntimeError, match="closed"):
        tasks.start("late", asyncio.sleep(0))


async def test_a_kept_task_is_restarted_with_growing_delays() -> None:
    clock, starts = frozen(), list[float]()

    async def fail() -> None:
        starts.append(clock.monotonic())
        raise ValueError("again")

    with autojump(clock):
        async with Tasks(clock) as tasks:
            tasks.keep("loop", fail)
            await clock.sleep(3.15)
    delays = [round(later - earlier, 6) for earlier, later in itertools.pairwise(starts)]
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6]
    assert tasks.restarts == {"loop": 6}


async def test_a_kept_task_that_ran_long_starts_over_with_the_first_delay() -> None:
    clock, starts = frozen(), list[float]()

    async def work() -> None:
        starts.append(clock.monotonic())
        if len(starts) == 3:
            await clock.sleep(RESTART_LIMIT)
        raise ValueError("again")

    with autojump(clock):
        async with Tasks(clock) as tasks:
            tasks.keep("loop", work)
            await clock.sleep(RESTART_LIMIT + 0.55)
    assert round(starts[3] - starts[2], 6) == RESTART_LIMIT + 0.1


async def test_cancelling_from_within_does_not_deadlock() -> None:
    tasks = Tasks(frozen())

    async def closes_its_own_group() -> None:
        await tasks.cancel()

    task = tasks.start("closer", closes_its_own_group())
    await task
    assert not task.cancelled()
