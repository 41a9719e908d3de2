"""The Kubernetes API fails in a running platform: it comes back where it was, and what stands on it with it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sampan.kernel.platform import Platform
from sampan.kube.client import Client
from sampan.kube.resources import NAMESPACES
from sampan.parts import PARTS


async def test_the_api_comes_back_with_its_objects_at_its_address(tmp_path: Path) -> None:
    platform = Platform(PARTS, tmp_path, only=["workloads"], flags=["platform.ports=auto"])
    async with platform:
        address = platform.listeners.address("kubernetes")
        client = platform.get(Client)
        await client.create(NAMESPACES, {"kind": "Namespace", "metadata": {"name": "kept"}})
        platform._runs["kubernetes"].fail(OSError("the disk went away"))
        async with asyncio.timeout(20):
            while (status := await platform.status()).state != "ready" or not status.parts[0].restarts:
                await asyncio.sleep(0.02)
        assert {part.name: part.restarts for part in status.parts} == {"kubernetes": 1, "workloads": 0}
        assert platform.listeners.address("kubernetes") == address
        again = platform.get(Client)
        assert again is not client
        assert (await again.get(NAMESPACES, "kept"))["metadata"]["name"] == "kept"
