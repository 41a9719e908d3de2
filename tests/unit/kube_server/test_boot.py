"""What every cluster has before anyone uses it."""

from __future__ import annotations

import asyncio

from sampan.kube.resources import CONFIG_MAPS, ENDPOINT_SLICES, NAMESPACES, PRIORITY_CLASSES, SERVICES
from sampan.kube.server.boot import boot, keep
from sampan.kube.status import ApiError

from .conftest import Cluster


async def test_the_first_start_makes_it_and_the_next_changes_nothing(cluster: Cluster) -> None:
    await boot(cluster.api, "127.0.0.1", 6443, "PEM")
    names = {item["metadata"]["name"] for item in (await cluster.client.list(NAMESPACES)).items}
    assert names == {"default", "kube-system", "kube-public", "kube-node-lease"}
    service = await cluster.client.get(SERVICES, "kubernetes", "default")
    assert (service["spec"]["clusterIP"], service["spec"]["ports"][0]["targetPort"]) == ("10.96.0.1", 6443)
    classes = {item["metadata"]["name"]: item["value"] for item in (await cluster.client.list(PRIORITY_CLASSES)).items}
    assert classes == {"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}
    published = await cluster.client.get(CONFIG_MAPS, "extension-apiserver-authentication", "kube-system")
    assert published["data"]["requestheader-client-ca-file"] == "PEM"
    before = cluster.store.revision
    await boot(cluster.api, "127.0.0.1", 6443, "PEM")
    assert cluster.store.revision == before


async def test_a_new_address_is_published(cluster: Cluster) -> None:
    await boot(cluster.api, "127.0.0.1", 6443)
    await boot(cluster.api, "192.0.2.1", 7443)
    service = await cluster.client.get(SERVICES, "kubernetes", "default")
    piece = await cluster.client.get(ENDPOINT_SLICES, "kubernetes", "default")
    assert service["spec"]["ports"][0]["targetPort"] == 7443
    assert (piece["endpoints"][0]["addresses"], piece["ports"][0]["port"]) == (["192.0.2.1"], 7443)


async def test_its_own_service_comes_back_when_deleted(cluster: Cluster) -> None:
    await boot(cluster.api, "127.0.0.1", 6443)
    keeping = asyncio.ensure_future(keep(cluster.api, "127.0.0.1", 6443))
    await asyncio.sleep(0)
    await cluster.client.delete(SERVICES, "kubernetes", "default")
    async with asyncio.timeout(5):
        while True:
            try:
                service = await cluster.client.get(SERVICES, "kubernetes", "default")
                break
            except ApiError:
                await asyncio.sleep(0.01)
    assert service["spec"]["clusterIP"] == "10.96.0.1"
    keeping.cancel()
