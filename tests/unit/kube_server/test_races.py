"""Writes that meet on one object while the disk is slow: nobody is told of a race that the server can settle itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sampan.kernel.clock import Clock
from sampan.kube.access.admission import AdmissionChain
from sampan.kube.access.interface import MASTER
from sampan.kube.access.rbac import AlwaysAllow
from sampan.kube.client.inprocess import InProcessClient
from sampan.kube.resources import CONFIG_MAPS
from sampan.kube.server.cache import StoreCache
from sampan.kube.server.verbs import Api
from sampan.kube.status import ApiError
from sampan.kube.store.core import Store
from sampan.kube.store.interface import Record
from sampan.kube.store.memory import MemoryLog
from sampan.kube.types.builtin import builtin_types
from sampan.kube.types.resource import TypeRegistry


class SlowLog(MemoryLog):
    """A log that takes nothing while `gate` is clear."""

    blocking = True

    def __init__(self) -> None:
        super().__init__(keep=True)
        self.gate = threading.Event()
        self.gate.set()

    def append(self, records: list[Record]) -> None:
        assert self.gate.wait(10)
        super().append(records)


class World:
    """Verbs over a slow log, and the log's gate."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.log = SlowLog()
        self.store = Store(self.log, self.clock)

    async def open(self) -> None:
        await self.store.open()
        types = TypeRegistry(builtin_types())
        cache = StoreCache(self.store, types)
        api = Api(self.store, types, self.clock, cache=cache, authorizer=AlwaysAllow(), admission=AdmissionChain([]))
        self.client = InProcessClient(api, MASTER)
        self._closing = (api, cache)

    async def close(self) -> None:
        for one in self._closing:
            one.close()
        await self.store.close()

    async def under_way(self, *calls: Any) -> list[asyncio.Task[Any]]:
        """Start calls while the log takes nothing and let each get as far as it can."""
        self.log.gate.clear()
        tasks = []
        for call in calls:
            tasks.append(asyncio.create_task(call))
            for _ in range(20):
                await asyncio.sleep(0)
        return tasks


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    await world.open()
    yield world
    world.log.gate.set()
    await world.close()


def patch(world: World, key: str) -> Any:
    return world.client.patch(CONFIG_MAPS, "a", {"data": {key: "v"}}, "default")


async def made(world: World, **metadata: Any) -> dict[str, Any]:
    return await world.client.create(CONFIG_MAPS, {"metadata": {"name": "a", "namespace": "default", **metadata}})


async def test_a_steered_clock_ends_no_write_that_waits_for_another(world: World) -> None:
    await made(world)
    tasks = await world.under_way(*(patch(world, f"k{number}") for number in range(12)))
    for _ in range(5):
        world.clock.jump(3600)
        await asyncio.sleep(0.002)
    world.log.gate.set()
    await asyncio.gather(*tasks)
    assert set((await world.client.get(CONFIG_MAPS, "a", "default"))["data"]) == {f"k{n}" for n in range(12)}


async def test_a_deletion_waits_for_the_write_it_met_and_deletes_its_outcome(world: World) -> None:
    await made(world)
    tasks = await world.under_way(patch(world, "x"), world.client.delete(CONFIG_MAPS, "a", "default"))
    world.log.gate.set()
    _, answer = await asyncio.gather(*tasks)
    assert answer["status"] == "Success"


async def test_of_two_deletions_one_finds_nothing(world: World) -> None:
    await made(world)
    deletions = (world.client.delete(CONFIG_MAPS, "a", "default") for _ in range(2))
    tasks = await world.under_way(*deletions)
    world.log.gate.set()
    first, second = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(first, dict) and first["status"] == "Success"
    assert isinstance(second, ApiError) and second.not_found


async def test_a_write_that_meets_a_deletion_finds_nothing(world: World) -> None:
    await made(world)
    tasks = await world.under_way(world.client.delete(CONFIG_MAPS, "a", "default"), patch(world, "x"))
    world.log.gate.set()
    _, late = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(late, ApiError) and late.not_found


async def test_a_deletion_with_preconditions_is_told_of_the_race(world: World) -> None:
    revision = (await made(world))["metadata"]["resourceVersion"]
    tasks = await world.under_way(
        patch(world, "x"), world.client.delete(CONFIG_MAPS, "a", "default", revision=revision)
    )
    world.log.gate.set()
    _, late = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(late, ApiError) and late.conflict
