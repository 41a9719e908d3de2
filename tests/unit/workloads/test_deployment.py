"""Deployments from the outside: what kubectl would see."""

from __future__ import annotations

from typing import Any

import pytest

from sampan.kube.objects import Object
from sampan.kube.resources import DEPLOYMENTS, PODS, REPLICA_SETS
from sampan.parts.workloads import pods

from .conftest import Cluster, template


def deployment(replicas: int = 3, image: str = "nginx:1", plays: dict[str, str] | None = None, **spec: Any) -> Object:
    made = template({"app": "web"}, plays=plays)
    made["spec"]["containers"][0]["image"] = image
    return {
        "metadata": {"name": "web"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": made, **spec},
    }


def conditions(status: Object) -> dict[str, tuple[str, str]]:
    return {one["type"]: (one["status"], one["reason"]) for one in status["conditions"]}


async def test_a_new_deployment_becomes_complete(cluster: Cluster) -> None:
    await cluster.create(DEPLOYMENTS, deployment())
    await cluster.settle()
    status = await cluster.status(DEPLOYMENTS, "web")
    assert {name: value for name, value in status.items() if name != "conditions"} == {
        "observedGeneration": 1,
        "replicas": 3,
        "updatedReplicas": 3,
        "readyReplicas": 3,
        "availableReplicas": 3,
    }
    assert conditions(status) == {
        "Available": ("True", "MinimumReplicasAvailable"),
        "Progressing": ("True", "NewReplicaSetAvailable"),
    }


async def test_a_replica_set_carries_template_hash_and_revision(cluster: Cluster) -> None:
    await cluster.create(DEPLOYMENTS, deployment())
    await cluster.settle()
    (replica_set,) = await cluster.list(REPLICA_SETS)
    digest = replica_set["metadata"]["labels"]["pod-template-hash"]
    assert replica_set["metadata"]["name"] == f"web-{digest}"
    assert replica_set["spec"]["selector"]["matchLabels"] == {"app": "web", "pod-template-hash": digest}
    assert replica_set["metadata"]["annotations"] == {
        "deployment.kubernetes.io/revision": "1",
        "deployment.kubernetes.io/desired-replicas": "3",
        "deployment.kubernetes.io/max-replicas": "4",
    }
    made = await cluster.get(DEPLOYMENTS, "web")
    assert made["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "1"
    assert {pod["metadata"]["labels"]["pod-template-hash"] for pod in await cluster.pods()} == {digest}


@pytest.mark.parametrize("run", [1, 32])
async def test_a_new_image_rolls_out_within_surge_and_unavailable(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, run: int
) -> None:
    # with 1 the controllers take turns after every key, as they do when each write takes its time
    monkeypatch.setattr("sampan.kube.control.queue.FAIR_RUN", run)
    await cluster.create(DEPLOYMENTS, deployment(replicas=10))
    await cluster.settle()
    counts: list[tuple[int, int]] = []

    def seen(old: Object | None, new: Object | None) -> None:
        live = cluster.kubelet.informer(PODS).objects("default")
        wanted = sum(one["spec"]["replicas"] for one in cluster.kubelet.informer(REPLICA_SETS).objects())
        counts.append((wanted, sum(pods.is_ready(pod) and pods.is_active(pod) for pod in live)))

    cluster.kubelet.informer(PODS).on_change(seen)
    counts.clear()
    await cluster.patch(
        DEPLOYMENTS, "web", {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "nginx:2"}]}}}}
    )
    await cluster.settle()
    assert max(total for total, _ in counts) <= 13  # 25 % of 10, rounded up
    assert min(ready for _, ready in counts) >= 8  # 25 % of 10, rounded down
    assert {pod["spec"]["containers"][0]["image"] for pod in await cluster.pods()} == {"nginx:2"}
    sizes = {
        one["metadata"]["annotations"]["deployment.kubernetes.io/revision"]: one["spec"]["replicas"]
        for one in await cluster.list(REPLICA_SETS)
    }
    assert sizes == {"1": 0, "2": 10}
    assert conditions(await cluster.status(DEPLOYMENTS, "web"))["Progressing"] == ("True", "NewReplicaSetAvailable")


async def test_going_back_reuses_the_old_replica_set_under_a_new_revision(cluster: Cluster) -> None:
    await cluster.create(DEPLOYMENTS, deployment())
    await cluster.settle()
    first = (await cluster.names(REPLICA_SETS))[0]
    for image in ("nginx:2", "nginx:1"):
        await cluster.patch(
            DEPLOYMENTS, "web", {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}}
        )
        await cluster.settle()
    assert len(await cluster.names(REPLICA_SETS)) == 2
    annotations = (await cluster.get(REPLICA_SETS, first))["metadata"]["annotations"]
    assert annotations["deployment.kubernetes.io/revision"] == "3"
    assert annotations["deployment.kubernetes.io/revision-history"] == "1"


async def test_a_recreate_never_runs_two_versions(cluster: Cluster) -> None:
    await cluster.create(DEPLOYMENTS, deployment(strategy={"type": "Recreate"}, plays={"play/linger": "5"}))
    await cluster.settle()
    versions: list[set[str]] = []
    cluster.kubelet.informer(PODS).on_change(
        lambda old, new: versions.append(
            {pod["spec"]["containers"][0]["image"] for pod in cluster.kubelet.informer(PODS).objects()}
        )
    )
    await cluster.patch(
        DEPLOYMENTS, "web", {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "nginx:2"}]}}}}
    )
    await cluster.pass_time(10)
    assert all(len(one) <= 1 for one in versions)
    assert versions[-1] == {"nginx:2"}
    assert (await cluster.status(DEPLOYMENTS, "web"))["availableReplicas"] == 3


async def test_a_rollout_that_stands_still_exceeds_its_deadline_and_may_still_succeed(cluster: Cluster) -> None:
    await cluster.create(DEPLOYMENTS, deployment(1, plays={"play/ready": "false"}, progressDeadlineSeconds=60))
    await cluster.pass_time(50)
    assert conditions(await cluster.status(DEPLOYMENTS, "web"))["Progressing"] == ("True", "ReplicaSetUpdated")
    await cluster.pass_time(20)
    assert conditions(await cluster.status(DEPLOYMENTS, "web"))["Progressing"] == ("False", "ProgressDeadlineExceeded")
    await cluster.patch(
        DEPLOYMENTS, "web", {"spec": {"template": {"metadata": {"annotations": {"play/ready": "true"}}}}}
    )
    await cluster.settle()
    assert conditions(await cluster.status(DEPLOYMENTS, "web"))["Progressing"] == ("True", "NewReplicaSetAvailable")


async def test_a_paused_deployment_scales_but_does_not_roll(cluster: Cluster) -> None:
    await cluster.create(DEPLOYMENTS, deployment(4))
    await cluster.settle()
    await cluster.patch(
        DEPLOYMENTS,
        "web",
        {
            "spec": {
                "paused": True,
                "replicas": 6,
                "template": {"spec": {"containers": [{"name": "c", "image": "nginx:2"}]}},
            }
        },
    )
    await cluster.settle()
    assert [pod["spec"]["containers"][0]["image"] for pod in await cluster.pods()] == ["nginx:1"] * 6
    assert conditions(await cluster.status(DEPLOYMENTS, "web"))["Progressing"] == ("Unknown", "DeploymentPaused")
    await cluster.patch(DEPLOYMENTS, "web", {"spec": {"paused": False}})
    await cluster.settle()
    assert [pod["spec"]["containers"][0]["image"] for pod in await cluster.pods()] == ["nginx:2"] * 6


async def test_scaling_in_the_middle_of_a_rollout_keeps_the_proportions(cluster: Cluster) -> None:
    await cluster.create(
        DEPLOYMENTS,
        deployment(10, strategy={"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}}),
    )
    await cluster.settle()
    broken = {"spec": {"template": {"metadata": {"annotations": {"play/ready": "false"}}}}}
    await cluster.patch(DEPLOYMENTS, "web", broken)
    await cluster.settle()
    sizes = sorted(one["spec"]["replicas"] for one in await cluster.list(REPLICA_SETS))
    assert sizes == [5, 8]  # the example of the upstream documentation
    await cluster.patch(DEPLOYMENTS, "web", {"spec": {"replicas": 15}})
    await cluster.settle()
    sizes = sorted(one["spec"]["replicas"] for one in await cluster.list(REPLICA_SETS))
    assert sizes == [7, 11]


async def test_history_is_trimmed_to_its_limit(cluster: Cluster) -> None:
    await cluster.create(DEPLOYMENTS, deployment(1, revisionHistoryLimit=2))
    for number in range(2, 7):
        await cluster.settle()
        await cluster.patch(
            DEPLOYMENTS,
            "web",
            {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": f"nginx:{number}"}]}}}},
        )
    await cluster.settle()
    revisions = sorted(
        one["metadata"]["annotations"]["deployment.kubernetes.io/revision"] for one in await cluster.list(REPLICA_SETS)
    )
    assert revisions == ["4", "5", "6"]


async def test_availability_waits_for_min_ready_seconds(cluster: Cluster) -> None:
    await cluster.create(DEPLOYMENTS, deployment(2, minReadySeconds=30))
    await cluster.pass_time(20)
    status = await cluster.status(DEPLOYMENTS, "web")
    assert status["readyReplicas"] == 2
    assert "availableReplicas" not in status
    assert status["unavailableReplicas"] == 2
    await cluster.pass_time(12)
    assert (await cluster.status(DEPLOYMENTS, "web"))["availableReplicas"] == 2


async def test_a_deployment_adopts_a_matching_replica_set(cluster: Cluster) -> None:
    await cluster.create(DEPLOYMENTS, deployment())
    await cluster.settle()
    names = await cluster.names()
    await cluster.client.delete(DEPLOYMENTS, "web", "default", propagation="Orphan")
    await cluster.settle()
    assert await cluster.names() == names
    await cluster.create(DEPLOYMENTS, deployment())
    await cluster.settle()
    assert await cluster.names() == names
    assert (await cluster.status(DEPLOYMENTS, "web"))["availableReplicas"] == 3


async def test_foreground_deletion_takes_everything(cluster: Cluster) -> None:
    await cluster.create(DEPLOYMENTS, deployment())
    await cluster.settle()
    await cluster.client.delete(DEPLOYMENTS, "web", "default", propagation="Foreground")
    await cluster.settle()
    assert await cluster.find(DEPLOYMENTS, "web") is None
    assert await cluster.list(REPLICA_SETS) == []
    assert await cluster.pods() == []


async def test_a_settled_deployment_writes_nothing(cluster: Cluster) -> None:
    await cluster.create(DEPLOYMENTS, deployment(5))
    await cluster.settle()
    before = cluster.store.revision
    for one in await cluster.list(REPLICA_SETS):
        await cluster.patch(REPLICA_SETS, one["metadata"]["name"], {"metadata": {"labels": {"touched": "yes"}}})
    await cluster.settle()
    assert cluster.store.revision == before + 1


async def test_a_pod_deleted_behind_its_back_is_replaced(cluster: Cluster) -> None:
    await cluster.create(DEPLOYMENTS, deployment())
    await cluster.settle()
    gone = (await cluster.names())[0]
    await cluster.client.delete(PODS, gone, "default")
    await cluster.settle()
    names = await cluster.names()
    assert len(names) == 3
    assert gone not in names


async def test_events_tell_the_rollout(cluster: Cluster) -> None:
    await cluster.create(DEPLOYMENTS, deployment(1))
    await cluster.settle()
    (replica_set,) = await cluster.names(REPLICA_SETS)
    assert await cluster.events("web") == [("ScalingReplicaSet", f"Scaled up replica set {replica_set} from 0 to 1")]
    (pod,) = await cluster.names()
    assert await cluster.events(replica_set) == [("SuccessfulCreate", f"Created pod: {pod}")]
