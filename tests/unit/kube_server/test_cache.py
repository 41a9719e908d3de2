"""The cache of decoded objects: never behind a write, and sharing what it decoded."""

from __future__ import annotations

from sampan.kube.resources import CONFIG_MAPS, NODES
from sampan.kube.server.cache import StoreCache

from .conftest import Cluster


async def test_it_is_current_the_moment_a_write_is_answered(cluster: Cluster) -> None:
    cache = StoreCache(cluster.store, cluster.types)
    assert cache.get(CONFIG_MAPS, "default", "a") is None and cache.objects(CONFIG_MAPS) == []
    before = cache.generation(CONFIG_MAPS)
    await cluster.client.create(CONFIG_MAPS, {"metadata": {"name": "a", "namespace": "default"}})
    found = cache.get(CONFIG_MAPS, "default", "a")
    assert found is not None and cache.objects(CONFIG_MAPS) == [found]
    assert cache.objects(CONFIG_MAPS, "default")[0] is found, "decoded once"
    assert cache.objects(CONFIG_MAPS, "other") == []
    assert cache.generation(CONFIG_MAPS) > before
    assert cache.generation(NODES) == 0
    await cluster.client.patch(CONFIG_MAPS, "a", {"data": {"x": "1"}}, "default")
    changed = cache.get(CONFIG_MAPS, "default", "a")
    assert changed is not None and changed["data"] == {"x": "1"} and "data" not in found
    await cluster.client.delete(CONFIG_MAPS, "a", "default")
    assert cache.get(CONFIG_MAPS, "default", "a") is None and cache.objects(CONFIG_MAPS) == []
    cache.close()
