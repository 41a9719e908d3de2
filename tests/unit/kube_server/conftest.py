"""An API server's verbs over a store in memory, without sockets and with a steered clock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from sampan.kernel.clock import Clock
from sampan.kube.access.admission import AdmissionChain
from sampan.kube.access.interface import MASTER
from sampan.kube.access.rbac import AlwaysAllow
from sampan.kube.client.inprocess import InProcessClient
from sampan.kube.server.cache import StoreCache
from sampan.kube.server.verbs import Api
from sampan.kube.store.core import Store
from sampan.kube.store.memory import MemoryLog
from sampan.kube.types.builtin import builtin_types
from sampan.kube.types.resource import TypeRegistry


@dataclass
class Cluster:
    """What a test of the verbs needs."""

    api: Api
    client: InProcessClient
    clock: Clock
    store: Store
    types: TypeRegistry
    extra: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    clock = Clock()
    store = Store(MemoryLog(), clock)
    await store.open()
    types = TypeRegistry(builtin_types())
    cache = StoreCache(store, types)
    api = Api(store, types, clock, cache=cache, authorizer=AlwaysAllow(), admission=AdmissionChain([]))
    yield Cluster(api, InProcessClient(api, MASTER), clock, store, types)
    api.close()
    cache.close()
    await store.close()
