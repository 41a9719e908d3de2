"""Controllers whose every fifth write fails, before or after it took effect: nothing is lost and nothing is counted twice."""

from __future__ import annotations

import random
from typing import Any

import pytest

from sampan.kube.objects import Object
from sampan.kube.resources import DAEMON_SETS, DEPLOYMENTS, JOBS, REPLICA_SETS, STATEFUL_SETS
from sampan.kube.status import ApiError

from .conftest import Cluster
from .test_daemonset import daemon_set
from .test_deployment import deployment
from .test_job import job
from .test_statefulset import stateful_set


def shake(cluster: Cluster, seed: int, share: float = 0.2) -> None:
    """Let this share of all writes through the client fail from now on; `calm` ends it."""
    dice = random.Random(seed)
    for verb in ("create", "update", "patch", "delete"):
        genuine = getattr(cluster.client, verb)

        async def shaken(*args: Any, genuine: Any = genuine, **options: Any) -> Object:
            luck = dice.random()
            if luck < share / 2:
                raise ApiError(500, "InternalError", "the disk was busy")
            made: Object = await genuine(*args, **options)
            if luck < share:
                raise ApiError(504, "Timeout", "done, but nobody said so")
            return made

        setattr(cluster.client, verb, shaken)


def calm(cluster: Cluster) -> None:
    for verb in ("create", "update", "patch", "delete"):
        delattr(cluster.client, verb)


@pytest.mark.parametrize("seed", range(4))
async def test_everything_ends_up_right(cluster: Cluster, seed: int) -> None:
    await cluster.create(DEPLOYMENTS, deployment(4))
    await cluster.create(STATEFUL_SETS, stateful_set(3))
    await cluster.create(DAEMON_SETS, daemon_set())
    shake(cluster, seed)
    indexed = job({"play/exit": "0"}, completions=8, parallelism=3, completionMode="Indexed")
    plain = job({"play/exit": "0", "play/after": "3"}, completions=8, parallelism=3)
    calm_create = type(cluster.client).create
    for name, made in (("indexed", indexed), ("plain", plain)):
        made["metadata"]["name"] = name
        await calm_create(cluster.client, JOBS, made, "default")
    await cluster.pass_time(60)
    image = {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "nginx:2"}]}}}}
    genuine = type(cluster.client).patch
    for resource, name in ((DEPLOYMENTS, "web"), (STATEFUL_SETS, "web"), (DAEMON_SETS, "agent")):
        await genuine(cluster.client, resource, name, image, "default", patch_type="strategic")
    await cluster.pass_time(120)
    calm(cluster)
    await cluster.pass_time(1500)  # the longest backoffs end
    status = await cluster.status(DEPLOYMENTS, "web")
    assert (status["replicas"], status["updatedReplicas"], status["availableReplicas"]) == (4, 4, 4)
    assert sorted(one["spec"]["replicas"] for one in await cluster.list(REPLICA_SETS)) == [0, 4]
    status = await cluster.status(STATEFUL_SETS, "web")
    assert (status["readyReplicas"], status["updatedReplicas"]) == (3, 3)
    assert status["currentRevision"] == status["updateRevision"]
    status = await cluster.status(DAEMON_SETS, "agent")
    assert (status["numberAvailable"], status["updatedNumberScheduled"]) == (1, 1)
    for name in ("indexed", "plain"):
        status = await cluster.status(JOBS, name)
        assert status["succeeded"] == 8, name
        assert "failed" not in status
        assert status["uncountedTerminatedPods"] == {}
        assert status["conditions"][-1]["type"] == "Complete"
        ended = [one for one in await cluster.pods(f"job-name={name}") if one["metadata"].get("finalizers")]
        assert ended == []
    expected = {"nginx:2"}
    running = [one for one in await cluster.pods() if one["status"]["phase"] == "Running"]
    assert {one["spec"]["containers"][0]["image"] for one in running} == expected
    assert len(running) == 4 + 3 + 1
