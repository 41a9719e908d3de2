"""Pods that misbehave, each as a user would meet it: what the API tells is upstream's, and the node serves its neighbours."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from sampan.kube.client import Client
from sampan.kube.resources import EVENTS, NODES, PODS
from sampan.testing.platform import Platform

PARTS = ["kubernetes", "node", "workloads"]
Pod = dict[str, Any]


class Cluster:
    """One platform and a well-behaved neighbour on its node."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.client = platform.get(Client)

    async def create(self, name: str, container: Pod, **spec: Any) -> None:
        spec = {
            "terminationGracePeriodSeconds": 1,
            **spec,
            "containers": [{"name": "c", "image": "busybox", **container}],
        }
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        await self.client.create(PODS, pod, "default")

    async def until(self, name: str, reached: Callable[[Pod], object], seconds: float = 40.0) -> Pod:
        ends = time.monotonic() + seconds
        while True:
            pod = await self.client.get(PODS, name, "default")
            if reached(pod):
                return pod
            if time.monotonic() > ends:
                pytest.fail(f"{name}: {pod.get('status')}")
            await asyncio.sleep(0.05)

    async def event(self, name: str, reason: str, seconds: float = 30.0) -> str:
        ends = time.monotonic() + seconds
        while True:
            for event in (await self.client.list(EVENTS, "default")).items:
                if event["involvedObject"]["name"] == name and event["reason"] == reason:
                    return str(event["message"])
            if time.monotonic() > ends:
                pytest.fail(f"no event {reason} about {name}")
            await asyncio.sleep(0.05)

    async def healthy(self) -> None:
        """The node is Ready and starts a pod at once."""
        name = f"neighbour-{time.monotonic_ns()}"
        await self.create(name, {"command": ["sleep", "1000"]})
        await self.until(name, ready)
        node = (await self.client.list(NODES)).items[0]
        assert next(c for c in node["status"]["conditions"] if c["type"] == "Ready")["status"] == "True"


def ready(pod: Pod) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod.get("status", {}).get("conditions", ()))


def container(pod: Pod) -> Pod:
    statuses: list[Pod] = pod.get("status", {}).get("containerStatuses") or [{}]
    return statuses[0]


def waiting(pod: Pod) -> str:
    return str(container(pod).get("state", {}).get("waiting", {}).get("reason", ""))


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Platform(only=PARTS, settings={"node.housekeeping": 0.5}) as platform:
        yield Cluster(platform)


async def test_a_probe_that_hangs_fails_by_its_timeout(cluster: Cluster) -> None:
    probe = {"exec": {"command": ["sleep", "1000"]}, "timeoutSeconds": 1, "periodSeconds": 1, "failureThreshold": 1}
    await cluster.create("hangs", {"command": ["sleep", "1000"], "livenessProbe": probe})
    await cluster.until("hangs", lambda pod: container(pod).get("restartCount", 0) >= 1)
    assert 'command timed out: "sleep 1000" timed out after 1s' in await cluster.event("hangs", "Unhealthy")
    assert "Container c failed liveness probe, will be restarted" in await cluster.event("hangs", "Killing")
    await cluster.healthy()


async def test_a_container_that_ignores_sigterm_is_killed_after_its_grace(cluster: Cluster) -> None:
    script = "trap '' TERM; touch /tmp/deaf-$HOSTNAME; while :; do sleep 0.1; done"
    is_deaf = {"exec": {"command": ["sh", "-c", "test -e /tmp/deaf-$HOSTNAME"]}, "periodSeconds": 1}
    await cluster.create("deaf", {"command": ["sh", "-c", script], "readinessProbe": is_deaf})
    await cluster.until("deaf", ready)
    began = time.monotonic()
    await cluster.client.delete(PODS, "deaf", "default")
    while any(pod["metadata"]["name"] == "deaf" for pod in (await cluster.client.list(PODS, "default")).items):
        assert time.monotonic() - began < 40
        await asyncio.sleep(0.05)
    assert time.monotonic() - began >= 0.9


async def test_what_forks_without_end_meets_its_own_limit(cluster: Cluster) -> None:
    if not any(await asyncio.to_thread(lambda: list(Path("/sys/fs/cgroup").glob("**/sampan-*/pids.max")))):
        pytest.skip("this machine gives no pids controller")
    script = "n=0; while :; do sleep 1000 & n=$((n+1)); done"
    before = len(psutil.pids())
    await cluster.create("bomb", {"command": ["sh", "-c", script]})
    await cluster.until("bomb", lambda pod: bool(container(pod).get("state")))
    await cluster.healthy()
    await asyncio.sleep(1.0)
    assert len(psutil.pids()) - before < 4200
    await cluster.client.delete(PODS, "bomb", "default", grace_period=0)
    await cluster.healthy()


async def test_a_flood_of_logs_is_kept_within_bounds(cluster: Cluster) -> None:
    await cluster.create(
        "flood", {"command": ["sh", "-c", "yes 'a line of some length that is written again and again'"]}
    )
    pod = await cluster.until("flood", ready)
    await asyncio.sleep(1.5)
    await cluster.healthy()
    logs = cluster.platform.data_dir / "parts/node/run/pods" / pod["metadata"]["uid"] / "logs"
    assert sum(file.stat().st_size for file in await asyncio.to_thread(lambda: list(logs.rglob("*.log*")))) <= 5 * (
        11 << 20
    )


WRITE = ["sh", "-c", "head -c 8000000 /dev/zero > $0; sleep 1000"]


async def test_what_fills_an_empty_dir_beyond_its_size_is_evicted(cluster: Cluster) -> None:
    volumes = [{"name": "scratch", "emptyDir": {"sizeLimit": "4Mi"}}]
    mounts = [{"name": "scratch", "mountPath": "/scratch"}]
    await cluster.create("greedy", {"command": [*WRITE, "/scratch/file"], "volumeMounts": mounts}, volumes=volumes)
    pod = await cluster.until("greedy", lambda pod: pod["status"].get("phase") == "Failed")
    assert pod["status"]["reason"] == "Evicted"
    assert pod["status"]["message"].startswith('Usage of EmptyDir volume "scratch" exceeds the limit "4Mi".')
    assert container(pod)["state"]["terminated"]["exitCode"] in (137, 143)
    assert "exceeds the limit" in await cluster.event("greedy", "Evicted")
    left = cluster.platform.data_dir / "parts/node/run/pods" / pod["metadata"]["uid"] / "volumes"
    await cluster.healthy()
    assert not left.exists()


async def test_what_writes_more_than_its_ephemeral_storage_is_evicted(cluster: Cluster) -> None:
    limits = {"limits": {"ephemeral-storage": "4Mi"}}
    await cluster.create("writes", {"command": [*WRITE, "/var/tmp/file"], "resources": limits})
    pod = await cluster.until("writes", lambda pod: pod["status"].get("phase") == "Failed")
    assert pod["status"]["reason"] == "Evicted"
    message = "Pod ephemeral local storage usage exceeds the total limit of containers 4Mi."
    assert pod["status"]["message"].startswith(message)
    await cluster.create("modest", {"command": ["sleep", "1000"], "resources": limits})
    await cluster.until("modest", ready)
    await asyncio.sleep(1.2)
    assert (await cluster.client.get(PODS, "modest", "default"))["status"]["phase"] == "Running"


async def test_images_commands_and_configuration_that_are_not_there(cluster: Cluster) -> None:
    environment = [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "nowhere", "key": "k"}}}]
    await cluster.create("image", {"image": "no-such-image:1"})
    await cluster.create("never", {"image": "no-such-image:1", "imagePullPolicy": "Never"})
    await cluster.create("name", {"image": "UPPER//case"})
    await cluster.create("command", {"command": ["/no/such/command"]})
    await cluster.create("denied", {"command": ["/etc/hostname"]})
    await cluster.create("config", {"command": ["true"], "env": environment})
    await cluster.create(
        "volume",
        {"command": ["true"], "volumeMounts": [{"name": "v", "mountPath": "/v"}]},
        volumes=[{"name": "v", "configMap": {"name": "nowhere"}}],
    )
    await cluster.create("huge", {"command": ["true"], "resources": {"requests": {"cpu": "1000"}}})
    await cluster.until("image", lambda pod: waiting(pod) == "ImagePullBackOff")
    await cluster.until("never", lambda pod: waiting(pod) == "ErrImageNeverPull")
    await cluster.until("name", lambda pod: waiting(pod) == "InvalidImageName")
    for name, words in (("command", "no such file or directory"), ("denied", "permission denied")):
        pod = await cluster.until(name, lambda pod: waiting(pod) in ("RunContainerError", "CrashLoopBackOff"))
        assert words in (container(pod)["state"]["waiting"]["message"] + str(container(pod).get("lastState")))
    pod = await cluster.until("config", lambda pod: waiting(pod) == "CreateContainerConfigError")
    assert 'configmap "nowhere" not found' in container(pod)["state"]["waiting"]["message"]
    assert 'MountVolume.SetUp failed for volume "v" : configmap "nowhere" not found' in await cluster.event(
        "volume", "FailedMount"
    )
    assert waiting(await cluster.client.get(PODS, "volume", "default")) == "ContainerCreating"
    assert "Insufficient cpu" in await cluster.event("huge", "FailedScheduling")
    pod = await cluster.until("huge", lambda pod: pod["status"].get("conditions"))
    scheduled = next(c for c in pod["status"]["conditions"] if c["type"] == "PodScheduled")
    assert (scheduled["status"], scheduled["reason"]) == ("False", "Unschedulable")
    assert "Failed to pull image" in await cluster.event("image", "Failed")
    assert "Back-off pulling image" in await cluster.event("image", "BackOff")
    await cluster.healthy()


async def test_a_node_short_of_disk_says_so_and_ends_who_uses_most() -> None:
    # more is to stay free than there is
    settings = {"node.housekeeping": 1.0, "node.disk_reserve": 1 << 60, "node.memory_reserve": 0}
    async with Platform(only=PARTS, settings=settings) as platform:
        cluster = Cluster(platform)
        node = (await cluster.client.list(NODES)).items[0]["metadata"]["name"]
        mounts = [{"name": "scratch", "mountPath": "/scratch"}]
        volumes = [{"name": "scratch", "emptyDir": {}}]
        greedy = {"command": [*WRITE, "/scratch/file"], "volumeMounts": mounts}
        await cluster.create("greedy", greedy, volumes=volumes, nodeName=node)
        pod = await cluster.until("greedy", lambda pod: pod["status"].get("phase") == "Failed")
        assert pod["status"]["reason"] == "Evicted"
        assert "The node was low on resource: ephemeral-storage. Threshold quantity: " in pod["status"]["message"]
        assert "Container c was using" in pod["status"]["message"]
        target = next(c for c in pod["status"]["conditions"] if c["type"] == "DisruptionTarget")
        assert (target["status"], target["reason"]) == ("True", "TerminationByKubelet")
        found = (await cluster.client.list(NODES)).items[0]
        pressure = next(c for c in found["status"]["conditions"] if c["type"] == "DiskPressure")
        assert (pressure["status"], pressure["reason"]) == ("True", "KubeletHasDiskPressure")
        await cluster.create("later", {"command": ["sleep", "1000"]})
        assert "node.kubernetes.io/disk-pressure" in await cluster.event("later", "FailedScheduling")
