"""A pod that Services ask is not told to end before they have heard; the clock jumps by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from sampan.kernel.autojump import autojump
from sampan.kernel.clock import Clock
from sampan.kube.objects import Object
from sampan.parts.node.agent.letting_go import PATIENCE, SETTLE, LettingGo, ready_pods


def slice_of(*endpoints: tuple[str, bool, bool]) -> Object:
    """Endpoints are (uid, ready, terminating)."""
    return {
        "endpoints": [
            {"targetRef": {"uid": uid}, "conditions": {"ready": ready, "terminating": terminating}}
            for uid, ready, terminating in endpoints
        ]
    }


class Slices:
    """As much of an informer as is asked for."""

    def __init__(self) -> None:
        self.now: Object = slice_of()
        self._listeners: list[Callable[[Object | None, Object | None], None]] = []
        self._indexes: dict[str, Any] = {}

    def add_index(self, name: str, index: Any) -> None:
        self._indexes[name] = index

    def on_change(self, listener: Callable[[Object | None, Object | None], None]) -> None:
        self._listeners.append(listener)

    def indexed(self, index: str, value: str) -> list[Object]:
        return [self.now] if value in self._indexes[index](self.now) else []

    def put(self, new: Object) -> None:
        old, self.now = self.now, new
        for listener in self._listeners:
            listener(old, new)


def made() -> tuple[Slices, LettingGo, Clock]:
    slices, clock = Slices(), Clock()
    return slices, LettingGo(cast(Any, slices), clock), clock


async def test_who_is_asked_by_nobody_is_not_held_up() -> None:
    slices, letting_go, clock = made()
    slices.put(slice_of(("other", True, False), ("mine", False, False)))
    began = clock.monotonic()
    with autojump(clock):
        await letting_go.wait("mine")
    assert clock.monotonic() - began < SETTLE / 2


async def test_who_is_asked_waits_until_the_slices_have_let_go() -> None:
    slices, letting_go, clock = made()
    slices.put(slice_of(("mine", True, False)))
    with autojump(clock):
        began = clock.monotonic()
        waiting = asyncio.gather(letting_go.wait("mine"), letting_go.wait("mine"))
        await clock.sleep(0.5)
        assert not waiting.done()
        slices.put(slice_of(("mine", False, True), ("new", True, False)))
        await waiting
        assert 0.5 + SETTLE <= clock.monotonic() - began < PATIENCE


async def test_nobody_waits_for_ever() -> None:
    slices, letting_go, clock = made()
    slices.put(slice_of(("mine", True, False)))
    with autojump(clock):
        began = clock.monotonic()
        await letting_go.wait("mine")
        assert PATIENCE <= clock.monotonic() - began < PATIENCE + 1


class Gateway:
    """Routes that follow ``seconds`` later, or (None) never."""

    def __init__(self, clock: Clock, seconds: float | None) -> None:
        self._clock, self._seconds = clock, seconds

    async def complete(self) -> None:
        if self._seconds is None:
            await asyncio.Event().wait()
        else:
            await self._clock.sleep(self._seconds)


@pytest.mark.parametrize(("takes", "waits"), [(0.7, 0.7), (None, PATIENCE)])
async def test_routes_have_followed_or_had_their_time(takes: float | None, waits: float) -> None:
    slices, clock = Slices(), Clock()
    letting_go = LettingGo(cast(Any, slices), clock, lambda: Gateway(clock, takes))
    slices.put(slice_of(("mine", True, False)))
    with autojump(clock):
        waiting = asyncio.ensure_future(letting_go.wait("mine"))
        await clock.sleep(0.5)
        slices.put(slice_of(("mine", False, True)))
        began = clock.monotonic()
        await waiting
        assert waits + SETTLE <= clock.monotonic() - began < waits + SETTLE + 0.5


async def test_endpoints_that_let_go_before_the_node_got_to_it_still_give_routes_their_time() -> None:
    slices, clock = Slices(), Clock()
    letting_go = LettingGo(cast(Any, slices), clock, lambda: Gateway(clock, 0.7))
    slices.put(slice_of(("mine", False, True), ("new", True, False)))
    with autojump(clock):
        began = clock.monotonic()
        await letting_go.wait("mine")
        assert 0.7 + SETTLE <= clock.monotonic() - began < PATIENCE


def test_addresses_that_are_published_while_they_end_are_let_go_of() -> None:
    assert list(ready_pods(slice_of(("a", True, False), ("b", True, True), ("c", False, False)))) == ["a"]
    assert list(ready_pods({"endpoints": [{"addresses": ["10.0.0.1"]}]})) == []
