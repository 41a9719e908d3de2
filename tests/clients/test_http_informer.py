"""Informers of another process: the same machinery over the HTTP client, against the real server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import sampan.testing
from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.kube.control import SharedInformers
from sampan.kube.objects import Key
from sampan.kube.resources import CONFIG_MAPS


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(40):
        while not condition():
            await asyncio.sleep(0.01)


async def test_an_informer_over_http_follows_the_server() -> None:
    clock = Clock()

    def boat(name: str) -> dict[str, object]:
        return {"metadata": {"name": name, "labels": {"crew": "yes"}}, "data": {"oars": "2"}}

    async with (
        sampan.testing.Platform(only=["kubernetes"], settings={"kubernetes.store": "memory"}) as platform,
        platform.client() as client,
        Tasks(clock) as tasks,
    ):
        await client.create(CONFIG_MAPS, boat("first"), "default")
        informer = SharedInformers(client, clock, tasks).informer(CONFIG_MAPS, label_selector="crew")
        await informer.wait_synced()
        assert [obj["kind"] for obj in informer.objects()] == ["ConfigMap"]
        await client.create(CONFIG_MAPS, boat("second"), "default")
        await client.patch(CONFIG_MAPS, "first", {"data": {"oars": "4"}}, "default")
        await _until(lambda: len(informer) == 2)
        await _until(lambda: (informer.get(Key("default", "first")) or {})["data"]["oars"] == "4")
        await client.patch(CONFIG_MAPS, "second", {"metadata": {"labels": {"crew": None}}}, "default")
        await client.delete(CONFIG_MAPS, "first", "default")
        await _until(lambda: len(informer) == 0)
