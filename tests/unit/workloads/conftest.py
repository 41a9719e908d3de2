"""Every workload controller over the API server's verbs and a store in memory, with a played kubelet; no sockets.

The clock jumps by itself to the next timer while a test waits (`Cluster.until`, `Cluster.pass_time`), so hours take milliseconds.
"""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.kube.access.admission import AdmissionChain
from sampan.kube.access.interface import MASTER
from sampan.kube.access.rbac import AlwaysAllow
from sampan.kube.client.inprocess import InProcessClient
from sampan.kube.control import ControlContext, Controller, SharedInformers
from sampan.kube.control.events import STEP, EventRecorder
from sampan.kube.control.garbage import GarbageCollector
from sampan.kube.control.local import LocalFeed
from sampan.kube.control.storage_protection import ClaimProtection, VolumeProtection
from sampan.kube.objects import Object, Resource
from sampan.kube.resources import EVENTS, PODS
from sampan.kube.server.cache import StoreCache
from sampan.kube.server.verbs import Api
from sampan.kube.status import ApiError
from sampan.kube.store.core import Store
from sampan.kube.store.memory import MemoryLog
from sampan.kube.types.builtin import builtin_types
from sampan.kube.types.resource import TypeRegistry
from sampan.parts.workloads.control.scheduler import NAME, Scheduler
from sampan.parts.workloads.control.volumes import ClaimController, VolumeController
from sampan.parts.workloads.part import CONTROLLERS
from tests.kubelet import FakeKubelet

SETTLED = 25
"""Turns of the event loop with nothing written after which nothing more will be without time passing."""


class Cluster:
    """What a test of the controllers needs."""

    def __init__(self, client: InProcessClient, clock: Clock, store: Store, kubelet: FakeKubelet) -> None:
        self.client = client
        self.clock = clock
        self.store = store
        self.kubelet = kubelet
        self.in_threads: set[asyncio.Future[Any]] = set()
        """Work handed to threads that is not done."""

    async def create(self, resource: Resource, obj: Object, namespace: str | None = "default") -> Object:
        return await self.client.create(resource, obj, namespace)

    async def get(self, resource: Resource, name: str, namespace: str | None = "default") -> Object:
        return await self.client.get(resource, name, namespace)

    async def find(self, resource: Resource, name: str, namespace: str | None = "default") -> Object | None:
        try:
            return await self.client.get(resource, name, namespace)
        except ApiError as error:
            if error.not_found:
                return None
            raise

    async def status(self, resource: Resource, name: str) -> Object:
        found: Object = (await self.get(resource, name)).get("status") or {}
        return found

    async def patch(self, resource: Resource, name: str, patch: Object, **options: Any) -> Object:
        return await self.client.patch(resource, name, patch, options.pop("namespace", "default"), **options)

    async def list(self, resource: Resource, selector: str | None = None) -> builtins.list[Object]:
        return (await self.client.list(resource, label_selector=selector)).items

    async def pods(self, selector: str | None = None) -> builtins.list[Object]:
        """Pods by name."""
        return sorted(await self.list(PODS, selector), key=lambda pod: pod["metadata"]["name"])

    async def names(self, resource: Resource = PODS, selector: str | None = None) -> builtins.list[str]:
        return sorted(one["metadata"]["name"] for one in await self.list(resource, selector))

    async def events(self, name: str) -> builtins.list[tuple[str, str]]:
        """(reason, message) of the events about an object, in order, when the moment to write them has come."""
        await self.pass_time(2 * STEP)
        found = [one for one in await self.list(EVENTS) if one["involvedObject"]["name"] == name]
        found.sort(key=lambda one: int(one["metadata"]["name"].rpartition(".")[2], 16))
        return [(one["reason"], one["message"]) for one in found]

    async def reasons(self, name: str) -> builtins.list[str]:
        return [reason for reason, _ in await self.events(name)]

    async def settle(self) -> None:
        """Until nothing happens any more without time passing."""
        quiet, revision = 0, self.store.revision
        while quiet < SETTLED:
            await asyncio.sleep(0.001 if self.in_threads else 0)
            quiet = quiet + 1 if self.store.revision == revision and not self.in_threads else 0
            revision = self.store.revision

    async def pass_time(self, seconds: float) -> None:
        """Let this much time pass, timer by timer, settling after each."""
        end = self.clock.monotonic() + seconds
        await self.settle()
        while (due := self.clock.next_timer()) is not None and due <= end:
            self.clock.jump(max(0.0, due - self.clock.monotonic()))
            await asyncio.sleep(0.0)
            await self.settle()
        self.clock.jump(max(0.0, end - self.clock.monotonic()))
        await self.settle()


@contextmanager
def _frozen() -> Iterator[Clock]:
    clock = Clock()
    clock.freeze()
    yield clock


def _count_threads(cluster: Cluster) -> None:
    loop = asyncio.get_running_loop()
    run = loop.run_in_executor

    def counted(executor: Any, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        future = run(executor, function, *args)
        cluster.in_threads.add(future)
        future.add_done_callback(cluster.in_threads.discard)
        return future

    vars(loop)["run_in_executor"] = counted


async def started(directory: Path) -> AsyncIterator[Cluster]:
    """A cluster with all controllers and one node."""
    with _frozen() as clock:
        store = Store(MemoryLog(), clock)
        await store.open()
        types = TypeRegistry(builtin_types())
        cache = StoreCache(store, types)
        api = Api(store, types, clock, cache=cache, authorizer=AlwaysAllow(), admission=AdmissionChain([]))
        client = InProcessClient(api, MASTER)
        async with Tasks(clock) as tasks:
            feed = LocalFeed(store, types)
            context = ControlContext(client, SharedInformers(client, clock, tasks, feed), clock, tasks)
            kubelet = FakeKubelet(context)
            recorder = EventRecorder(client, clock, tasks, NAME)
            controllers: list[Controller | GarbageCollector | Scheduler] = [
                *(kind(context) for kind in CONTROLLERS),
                ClaimController(context, directory),
                VolumeController(context, directory),
                ClaimProtection(context),
                VolumeProtection(context),
                GarbageCollector(context, types, feed),
                Scheduler(context, recorder),
                kubelet,
            ]
            for controller in controllers:
                await controller.start()
            await kubelet.add_node()
            cluster = Cluster(client, clock, store, kubelet)
            _count_threads(cluster)
            await cluster.settle()
            yield cluster
        api.close()
        cache.close()
        await store.close()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """All controllers, the scheduler, and one node."""
    async for running in started(tmp_path):
        yield running


def template(
    labels: dict[str, str], *, restart: str = "Always", plays: dict[str, str] | None = None, **spec: Any
) -> Object:
    """A pod template with one container."""
    return {
        "metadata": {"labels": labels} | ({"annotations": plays} if plays else {}),
        "spec": {"restartPolicy": restart, "containers": [{"name": "c", "image": "nginx:1"}], **spec},
    }
