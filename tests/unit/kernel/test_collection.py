"""The garbage collector runs seldom, and while nobody waits."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from sampan.kernel import collection
from sampan.kernel.clock import Clock, Timeline
from sampan.kernel.collection import QUIET, UTMOST, WORTH, YOUNG, Collector, due


class Knot:
    """Garbage that only the collector frees."""

    def __init__(self) -> None:
        self.itself = self


async def pass_time(clock: Clock) -> None:
    clock.jump(collection.BEAT)
    await asyncio.sleep(0.01)  # the loop calls what is due


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Collector, Clock]]:
    clock = Clock(Timeline(origin=0.0, base=0.0, wall_offset=0.0, rate=0.0))
    monkeypatch.setattr(collection, "Clock", lambda: clock)
    made = Collector()
    yield made, clock
    made.end()
    gc.unfreeze()


@pytest.mark.parametrize(
    ("survived", "busy", "now"),
    [(WORTH - 1, 0.0, False), (WORTH, QUIET, True), (WORTH, QUIET * 1.01, False), (UTMOST * 10, 1.0, False)],
)
def test_everything_is_collected_once_it_is_worth_it_and_nobody_waits(survived: int, busy: float, now: bool) -> None:
    assert due(survived, busy) is now


async def test_only_the_youngest_are_collected_by_themselves(collector: tuple[Collector, Clock]) -> None:
    collector[0].begin()
    assert gc.get_threshold()[:2] == (YOUNG, UTMOST)
    knots = [Knot() for _ in range(10)]
    watched = weakref.ref(knots[0])
    gc.collect(0)  # they grow older
    del knots
    kept: list[list[int]] = [[] for _ in range(YOUNG * 12)]
    assert gc.get_count()[1] >= 10, "a middle generation would have been collected after ten young ones"
    assert watched() is not None
    assert kept


async def test_a_quiet_process_collects_what_gathered(
    collector: tuple[Collector, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, clock = collector
    monkeypatch.setattr("sampan.kernel.collection.time.process_time", lambda: 1.0)
    made.begin()
    knot = Knot()
    watched = weakref.ref(knot)
    gc.collect(0)
    del knot
    await pass_time(clock)
    assert made.full == 0, "so little is not worth a pause"
    kept: list[list[int]] = [[] for _ in range(YOUNG * (WORTH + 1))]
    await pass_time(clock)
    assert kept
    assert watched() is None
    assert made.full == 1


async def test_the_end_gives_the_collector_back(collector: tuple[Collector, Clock]) -> None:
    before = gc.get_threshold()
    collector[0].begin()
    collector[0].end()
    collector[0].end()
    assert gc.get_threshold() == before
    assert collector[1].next_timer() is None
