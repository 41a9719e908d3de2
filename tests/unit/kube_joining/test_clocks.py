"""A joined node's clock goes as the platform's."""

from __future__ import annotations

from typing import Any

import pytest

from sampan.kernel.clock import Clock, machine_time
from sampan.kube.access.plugins.node_restriction import JOINED
from sampan.kube.control.node_clocks import CLOCK, NodeClocks, Reading, reading, told
from sampan.kube.joining.following import follow, keep_following
from sampan.kube.resources import NODES
from tests.unit.kube_control.conftest import World


def test_a_clock_that_goes_with_the_machines_needs_no_telling() -> None:
    assert reading(Clock()) is None


@pytest.mark.parametrize("seconds", [3600.0, -7200.0, 3 * 365 * 86400.0])
@pytest.mark.parametrize("rate", [1.0, 0.0, 20.0])
def test_who_follows_reads_the_same_time(seconds: float, rate: float) -> None:
    leading, following = Clock(), Clock()
    leading.jump(seconds)
    leading.run(rate)
    before = following.monotonic()
    follow(following, reading(leading))
    assert following.time() == pytest.approx(leading.time(), abs=0.5)
    assert following.timeline.rate == rate
    assert following.monotonic() >= before
    leading.run(1.0)
    leading.jump(machine_time() - leading.time())
    follow(following, reading(leading))
    assert following.time() == pytest.approx(machine_time(), abs=0.5)
    assert following.timeline.rate == 1.0


def test_being_told_once_more_moves_nothing() -> None:
    clock = Clock()
    for _ in range(2):
        follow(clock, Reading(machine_time() + 60, machine_time(), 1.0))
        assert clock.time() == pytest.approx(machine_time() + 60, abs=0.5)
    timeline = clock.timeline
    follow(clock, Reading(machine_time() + 60, machine_time(), 1.0))
    assert clock.timeline == timeline


@pytest.mark.parametrize("text", ["", "no JSON", "{}", '{"platform": "x", "machine": 1, "rate": 1}'])
def test_what_cannot_be_read_tells_nothing(text: str) -> None:
    assert told({"metadata": {"annotations": {CLOCK: text}}}) is None


async def test_steering_reaches_joined_nodes_and_only_those(world: World) -> None:
    await NodeClocks(world.context).start()
    await world.client.create(NODES, {"metadata": {"name": "far", "annotations": {JOINED: "true"}}})
    await world.client.create(NODES, {"metadata": {"name": "here"}})
    theirs = Clock()
    keep_following(theirs, world.context.informers.informer(NODES), "far")
    world.clock.jump(7 * 86400)

    async def follows() -> bool:
        return abs(theirs.time() - world.clock.time()) < 0.5

    await world.until(follows)
    nodes: dict[str, Any] = {name: await world.client.get(NODES, name) for name in ("far", "here")}
    assert told(nodes["far"]) is not None
    assert told(nodes["here"]) is None
