"""Writing pod statuses, and telling readiness again where the object says otherwise."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.kube.objects import Object, dig
from sampan.parts.node.agent.worker import PodWorker
from sampan.parts.node.agent.writer import RETRY, StatusWriter


class World:
    """One pod, the API that keeps it, and its agent."""

    def __init__(self, tasks: Tasks) -> None:
        self.clock = Clock()
        self.clock.freeze()
        self.patches: list[Object] = []
        self.pod: Object = {
            "metadata": {"namespace": "default", "name": "web", "uid": "u1", "resourceVersion": "5"},
            "spec": {"containers": [{"name": "c", "image": "busybox"}]},
            "status": {},
        }
        self.agent = SimpleNamespace(clock=self.clock, tasks=tasks, client=self, runtime_up=True, after=self.after)
        self.writer = StatusWriter(cast(Any, self.agent))
        self.worker = PodWorker(cast(Any, self.agent), self.pod)
        self.worker.status = self.readiness("True")

    @staticmethod
    def readiness(value: str) -> Object:
        return {"phase": "Running", "conditions": [{"type": "Ready", "status": value}]}

    def after(self, seconds: float, work: Any, *arguments: Any) -> None:
        self.clock.call_later(seconds, work, *arguments)

    async def patch(self, resource: object, name: str, patch: Object, *_: object, **__: object) -> Object:
        self.patches.append(patch)
        return self.stored("True")

    def stored(self, value: str) -> Object:
        """The object with another readiness, and a later revision."""
        metadata = {**self.pod["metadata"], "resourceVersion": str(int(self.pod["metadata"]["resourceVersion"]) + 1)}
        self.pod = {**self.pod, "metadata": metadata, "status": self.readiness(value)}
        return self.pod

    async def seen(self, pod: Object) -> int:
        """How often the status was written in all, once the agent has seen this object."""
        self.worker.pod = pod
        self.writer.review(self.worker)
        await self.writer.flush(self.worker)
        return len(self.patches)


async def test_readiness_that_another_wrote_over_is_told_again() -> None:
    async with Tasks(Clock()) as tasks:
        world = World(tasks)
        old = world.pod
        world.writer.write(world.worker)
        await world.writer.flush(world.worker)
        assert len(world.patches) == 1
        assert await world.seen(old) == 1, "an object from before the write says nothing"
        assert await world.seen(world.pod) == 1
        assert await world.seen(world.stored("False")) == 2
        assert await world.seen(world.pod) == 2
        assert await world.seen(world.stored("False")) == 2, "not as fast as somebody insists"
        world.clock.jump(RETRY)
        while len(world.patches) < 3:
            await world.clock.sleep(0)
        await world.writer.flush(world.worker)
        assert len(world.patches) == 3


async def test_a_node_that_is_in_no_state_to_tell_does_not() -> None:
    async with Tasks(Clock()) as tasks:
        world = World(tasks)
        world.agent.runtime_up = False
        assert await world.seen(world.stored("False")) == 0
        world.agent.runtime_up = True
        assert await world.seen(world.pod) == 1


async def test_a_pod_that_becomes_ready_at_once_is_told_of_once() -> None:
    async with Tasks(Clock()) as tasks:
        world = World(tasks)
        world.worker.pod = {**world.pod, "status": {"phase": "Pending"}}
        world.worker.status = world.readiness("False")
        world.writer.write(world.worker)
        world.worker.status = world.readiness("True")
        world.writer.write(world.worker)
        await world.writer.flush(world.worker)
        assert [dig(one, "status", "conditions", 0, "status") for one in world.patches] == ["True"]


async def test_a_pod_that_takes_its_time_is_told_of_also_while_the_clock_stands_still() -> None:
    async with Tasks(Clock()) as tasks:
        world = World(tasks)
        world.worker.pod = {**world.pod, "status": {"phase": "Pending"}}
        world.worker.status = world.readiness("False")
        world.writer.write(world.worker)
        while not world.patches:
            await asyncio.sleep(0.005)
        assert dig(world.patches[0], "status", "phase") == "Running"


async def test_a_pod_that_is_no_longer_ready_is_told_of_at_once() -> None:
    async with Tasks(Clock()) as tasks:
        world = World(tasks)
        world.worker.pod = world.stored("True")
        world.worker.status = world.readiness("False")
        world.writer.write(world.worker)
        for _ in range(3):
            await asyncio.sleep(0)
        assert len(world.patches) == 1
