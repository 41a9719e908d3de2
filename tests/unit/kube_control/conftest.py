"""A real API in memory, without sockets, with controllers' context around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest

from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.kube.access.admission import AdmissionChain
from sampan.kube.access.interface import MASTER
from sampan.kube.access.rbac import AlwaysAllow
from sampan.kube.client.inprocess import InProcessClient
from sampan.kube.control import ControlContext, SharedInformers
from sampan.kube.control.local import LocalFeed
from sampan.kube.objects import Object, Resource
from sampan.kube.server.cache import StoreCache
from sampan.kube.server.verbs import Api
from sampan.kube.status import ApiError
from sampan.kube.store import MemoryLog, Store
from sampan.kube.types.builtin import builtin_types
from sampan.kube.types.resource import TypeRegistry


@dataclass
class World:
    """An API server and the context of controllers on it."""

    client: InProcessClient
    clock: Clock
    types: TypeRegistry
    context: ControlContext
    feed: LocalFeed

    async def create(self, resource: Resource, name: str, namespace: str | None = None, **fields: object) -> Object:
        """Create an object; ``owners`` are objects it is owned by, other fields stand at the top."""
        metadata: Object = {"name": name}
        if namespace:
            metadata["namespace"] = namespace
        for key in ("labels", "finalizers", "ownerReferences"):
            if key in fields:
                metadata[key] = fields.pop(key)
        return await self.client.create(resource, {"metadata": metadata, **fields})

    async def find(self, resource: Resource, name: str, namespace: str | None = None) -> Object | None:
        """The object, or None."""
        try:
            return await self.client.get(resource, name, namespace)
        except ApiError as error:
            if not error.not_found:
                raise
            return None

    async def until(self, condition: Callable[[], object]) -> None:
        """Let the controllers work until an awaitable condition gives true."""
        for _ in range(400):
            if await condition():  # type: ignore[misc]
                return
            await asyncio.sleep(0.001)
        pytest.fail("the controllers did not get there")

    async def gone(self, resource: Resource, name: str, namespace: str | None = None) -> None:
        """Wait until the object is gone."""

        async def absent() -> bool:
            return await self.find(resource, name, namespace) is None

        await self.until(absent)

    async def settle(self) -> None:
        """Let everything run that needs no time."""
        for _ in range(20):
            await asyncio.sleep(0)
        await asyncio.sleep(0.005)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    clock = Clock()
    store = Store(MemoryLog(), clock)
    await store.open()
    types = TypeRegistry(builtin_types())
    cache = StoreCache(store, types)
    api = Api(store, types, clock, cache=cache, authorizer=AlwaysAllow(), admission=AdmissionChain([]))
    client = InProcessClient(api, MASTER)
    async with Tasks(clock) as tasks:
        informers = SharedInformers(client, clock, tasks)
        yield World(client, clock, types, ControlContext(client, informers, clock, tasks), LocalFeed(store, types))
        await tasks.cancel()
    api.close()
    cache.close()
    await store.close()
