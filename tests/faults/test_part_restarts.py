"""The Kubernetes API fails in a running platform: it comes back where it was, and what stands on it with it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil

from sampan.kernel.platform import Platform
from sampan.kube.client import Client
from sampan.kube.resources import NAMESPACES, PODS
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


async def test_pods_live_through_a_failure_of_the_api(tmp_path: Path) -> None:
    platform = Platform(PARTS, tmp_path, only=["workloads", "node"], flags=["platform.ports=auto"])
    async with platform:
        before = await _process(platform.get(Client), "sleeper", tmp_path)
        platform._runs["kubernetes"].fail(OSError("the disk went away"))
        async with asyncio.timeout(60):
            while (status := await platform.status()).state != "ready" or not status.parts[0].restarts:
                await asyncio.sleep(0.02)
        await _process(platform.get(Client), "bell", tmp_path)  # the agent that came back runs new pods, too
        assert psutil.pid_exists(before)
        found = await platform.get(Client).get(PODS, "sleeper", "default")
        [container] = found["status"]["containerStatuses"]
        assert container["restartCount"] == 0
        assert "running" in container["state"]


async def _process(client: Client, name: str, folder: Path) -> int:
    """Make a pod, and wait until it runs: its process's number on this machine."""
    mark = f"{folder}/{name}"
    container = {
        "name": name,
        "image": "busybox",
        "command": ["sleep", "600"],
        "env": [{"name": "MARK", "value": mark}],
    }
    spec = {"containers": [container], "terminationGracePeriodSeconds": 1}
    await client.create(PODS, {"kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": spec})
    async with asyncio.timeout(60):
        while (await client.get(PODS, name, "default")).get("status", {}).get("phase") != "Running":
            await asyncio.sleep(0.05)
    [process] = [one for one in psutil.process_iter(["environ"]) if (one.info["environ"] or {}).get("MARK") == mark]
    return int(process.pid)
