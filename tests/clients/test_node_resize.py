"""Resizing running pods with kubectl: what is granted, what is applied, and what is refused."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sampan.testing.platform import Platform
from tests.clients.test_node_kubectl import KUBECTL, Kubectl, pod

pytestmark = [pytest.mark.skipif(KUBECTL is None, reason="needs kubectl"), pytest.mark.xdist_group("node-kubectl")]

ASKED = {"requests": {"cpu": "100m", "memory": "32Mi"}, "limits": {"cpu": "200m", "memory": "64Mi"}}


@pytest.fixture
async def kubectl() -> AsyncIterator[Kubectl]:
    async with Platform(only=["kubernetes", "node", "workloads"]) as platform:
        yield Kubectl(platform.kubeconfig)


async def resize(kubectl: Kubectl, name: str, resources: dict[str, Any], code: int = 0) -> str:
    patch = {"spec": {"containers": [{"name": "c", "resources": resources}]}}
    process = await kubectl.start("patch", "pod", name, "--subresource", "resize", "--patch", json.dumps(patch))
    out, err = await process.communicate()
    assert process.returncode == code, err.decode()
    return (out + err).decode()


async def until(kubectl: Kubectl, name: str, reached: Any) -> dict[str, Any]:
    for _ in range(300):
        found: dict[str, Any] = await kubectl.get("pod", name)
        conditions = {c["type"]: c for c in found["status"]["conditions"]}
        if reached(found["status"]["containerStatuses"][0], conditions):
            return {**found["status"]["containerStatuses"][0], "conditions": conditions}
        await asyncio.sleep(0.1)
    pytest.fail(json.dumps(found["status"], indent=1))


def limits(uid: str, file: str) -> list[int]:
    # other platforms' groups go away meanwhile, which a walk does not mind
    folders = (Path(folder) for folder, _, files in os.walk("/sys/fs/cgroup") if file in files)
    found = ((folder / file).read_text().strip() for folder in folders if folder.parent.name == uid)
    return [int(text) for text in found if text.isdigit()]


async def memory_limit(kubectl: Kubectl, name: str) -> int:
    """What the kernel holds the container to, by the machine's kind of cgroups; 0 where memory is not limited here."""
    uid = (await kubectl.get("pod", name))["metadata"]["uid"]
    for file in ("memory.limit_in_bytes", "memory.max"):
        if found := await asyncio.to_thread(limits, uid, file):
            return min(found)
    return 0


async def test_a_running_pod_gets_what_it_asks_for_anew(kubectl: Kubectl) -> None:
    await kubectl.apply(
        pod("box", "busybox", "sleep", "1000", container={"resources": ASKED}),
        pod(
            "again",
            "busybox",
            "sleep",
            "1000",
            container={
                "resources": ASKED,
                "resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"}],
            },
        ),
    )
    await kubectl.ready("pod/box", "pod/again")
    before = await memory_limit(kubectl, "box")
    more = {"requests": {"cpu": "200m", "memory": "48Mi"}, "limits": {"cpu": "400m", "memory": "128Mi"}}
    await resize(kubectl, "box", more)
    done = await until(kubectl, "box", lambda status, _: status.get("resources") == more)
    assert done["allocatedResources"] == more["requests"]
    assert done["restartCount"] == 0
    assert not {"PodResizePending", "PodResizeInProgress"} & done["conditions"].keys()
    if before:
        assert (before, await memory_limit(kubectl, "box")) == (64 << 20, 128 << 20)
    await resize(kubectl, "again", more)
    done = await until(kubectl, "again", lambda status, _: status.get("resources") == more and status["ready"])
    assert done["restartCount"] == 1


async def test_a_resize_that_cannot_be_is_said_so_and_may_be_taken_back(kubectl: Kubectl) -> None:
    await kubectl.apply(pod("box", "busybox", "sleep", "1000", container={"resources": ASKED}))
    await kubectl.ready("pod/box")
    huge = {"requests": {"cpu": "900", "memory": "32Mi"}, "limits": {"cpu": "900", "memory": "64Mi"}}
    await resize(kubectl, "box", huge)
    status = await until(kubectl, "box", lambda _, conditions: "PodResizePending" in conditions)
    assert status["conditions"]["PodResizePending"]["reason"] == "Infeasible"
    assert (
        "Node didn't have enough capacity: cpu, requested: 900000"
        in status["conditions"]["PodResizePending"]["message"]
    )
    assert (status["resources"], status["allocatedResources"]) == (ASKED, ASKED["requests"])
    await resize(kubectl, "box", ASKED)
    await until(kubectl, "box", lambda _, conditions: "PodResizePending" not in conditions)
    await kubectl.shows("get", "events", words=("ResizeInfeasible",))


async def test_what_a_resize_may_not_change(kubectl: Kubectl) -> None:
    await kubectl.apply(pod("box", "busybox", "sleep", "1000", container={"resources": ASKED}))
    equal = {"requests": ASKED["limits"], "limits": ASKED["limits"]}
    assert "Pod QOS Class may not change as a result of resizing" in await resize(kubectl, "box", equal, 1)
    gone = {"limits": {"memory": None}}
    assert "resource limits cannot be removed" in await resize(kubectl, "box", gone, 1)
    disk = {"limits": {"ephemeral-storage": "1Gi"}}
    assert "only cpu and memory resources are mutable" in await resize(kubectl, "box", disk, 1)
