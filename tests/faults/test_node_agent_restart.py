"""The platform goes and comes back; the pods stay, each exactly once."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import psutil

from sampan.kube.resources import NODES, PODS
from sampan.testing.platform import Platform

PARTS = ["kubernetes", "node"]


async def until_running(client: Any, names: list[str]) -> dict[str, Any]:
    async with asyncio.timeout(40):
        while True:
            pods = {item["metadata"]["name"]: item for item in (await client.list(PODS, "default")).items}
            ready = [
                name
                for name in names
                if any(
                    c["type"] == "Ready" and c["status"] == "True"
                    for c in pods[name].get("status", {}).get("conditions", ())
                )
            ]
            if len(ready) == len(names):
                return pods
            await asyncio.sleep(0.05)


def containers(pods: dict[str, Any]) -> dict[str, str]:
    return {name: pod["status"]["containerStatuses"][0]["containerID"] for name, pod in pods.items()}


def pod_processes(name: str) -> list[psutil.Process]:
    """The processes of a pod, wherever they hang now."""
    found = psutil.process_iter(["environ", "name"])
    return [each for each in found if (each.info["environ"] or {}).get("HOSTNAME") == name]


async def create(client: Any, name: str, node: str, *command: str) -> None:
    spec = {
        "nodeName": node,
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "c", "image": "busybox", "command": list(command)}],
    }
    await client.create(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}, "default")


async def test_running_pods_survive_a_restart_and_gone_ones_are_ended(tmp_path: Path) -> None:
    settings = {"node.keep_pods": True}
    async with Platform(only=PARTS, data_dir=tmp_path, settings=settings) as first:
        client = first.client()
        node = (await client.list(NODES)).items[0]["metadata"]["name"]
        await create(client, "stays", node, "sleep", "1000")
        await create(client, "ends", node, "sh", "-c", "trap 'exit 3' USR1; while :; do sleep 0.1; done")
        before = containers(await until_running(client, ["stays", "ends"]))
    async with asyncio.timeout(40):
        while not [each for each in pod_processes("ends") if each.info["name"] == "sleep"]:
            await asyncio.sleep(0.05)  # its trap is not set yet
    for process in pod_processes("ends"):
        if process.info["name"] == "sh":
            process.send_signal(signal.SIGUSR1)
    async with asyncio.timeout(40):
        while pod_processes("ends"):
            await asyncio.sleep(0.05)
    async with Platform(only=PARTS, data_dir=tmp_path) as second:
        client = second.client()
        async with asyncio.timeout(30):
            while True:
                pods = await until_running(client, ["stays"])
                ends = pods["ends"]["status"]["containerStatuses"][0]
                if ends["restartCount"] == 1:
                    break
                await asyncio.sleep(0.05)
        assert containers(pods)["stays"] == before["stays"]
        assert pods["stays"]["status"]["containerStatuses"][0]["restartCount"] == 0
        assert ends["lastState"]["terminated"]["exitCode"] == 3


async def test_a_killed_keeper_is_replaced_and_its_pods_restarted(tmp_path: Path) -> None:
    async with Platform(only=PARTS, data_dir=tmp_path) as platform:
        client = platform.client()
        node = (await client.list(NODES)).items[0]["metadata"]["name"]
        names = [f"p{number}" for number in range(3)]
        for name in names:
            await create(client, name, node, "sleep", "1000")
        before = containers(await until_running(client, names))
        keeper = int((tmp_path / "parts/node/run/keeper.pid").read_text())
        os.kill(keeper, signal.SIGKILL)
        async with asyncio.timeout(40):
            while True:
                pods = await until_running(client, names)
                if all(pod["status"]["containerStatuses"][0]["restartCount"] == 1 for pod in pods.values()):
                    break
                await asyncio.sleep(0.05)
        after = containers(pods)
        assert not set(before.values()) & set(after.values())
        last = pods["p0"]["status"]["containerStatuses"][0]["lastState"]["terminated"]
        assert (last["exitCode"], last["reason"]) == (137, "ContainerStatusUnknown")
        sleeping = [process for name in names for process in pod_processes(name)]
        assert len(sleeping) == len(names)


async def test_pods_end_also_when_that_takes_longer_than_the_platform_waits(tmp_path: Path) -> None:
    def keepers() -> list[psutil.Process]:
        lines = ((each, each.info["cmdline"] or []) for each in psutil.process_iter(["cmdline"]))
        return [each for each, line in lines if any(str(tmp_path) in word for word in line)]

    async with Platform(only=PARTS, data_dir=tmp_path, settings={"platform.drain_seconds": 0.0}) as platform:
        client = platform.client()
        node = (await client.list(NODES)).items[0]["metadata"]["name"]
        await create(client, "endless", node, "sleep", "1000")
        await until_running(client, ["endless"])
        assert keepers()
    async with asyncio.timeout(40):
        while pod_processes("endless") or await asyncio.to_thread(keepers):
            await asyncio.sleep(0.05)
