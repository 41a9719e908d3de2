"""ReplicaSets and ReplicationControllers: numbers, adoption, choice of victims, failures."""

from __future__ import annotations

from sampan.kube.objects import Object, controller_of
from sampan.kube.resources import PODS, REPLICA_SETS, REPLICATION_CONTROLLERS
from sampan.kube.status import ApiError
from sampan.parts.workloads import pods

from .conftest import Cluster, template


def replica_set(replicas: int = 2, **spec: object) -> Object:
    return {
        "metadata": {"name": "rs"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "rs"}},
            "template": template({"app": "rs"}),
            **spec,
        },
    }


async def test_status_counts_what_runs(cluster: Cluster) -> None:
    await cluster.create(REPLICA_SETS, replica_set())
    await cluster.settle()
    assert await cluster.status(REPLICA_SETS, "rs") == {
        "replicas": 2,
        "fullyLabeledReplicas": 2,
        "readyReplicas": 2,
        "availableReplicas": 2,
        "observedGeneration": 1,
    }


async def test_an_orphan_is_adopted_and_a_relabelled_pod_released(cluster: Cluster) -> None:
    lonely = {"metadata": {"name": "lonely", "labels": {"app": "rs"}}, "spec": template({})["spec"]}
    await cluster.create(PODS, lonely)
    await cluster.create(REPLICA_SETS, replica_set())
    await cluster.settle()
    assert len(await cluster.pods()) == 2
    assert (controller_of(await cluster.get(PODS, "lonely")) or {})["name"] == "rs"
    await cluster.patch(PODS, "lonely", {"metadata": {"labels": {"app": "other"}}})
    await cluster.settle()
    assert controller_of(await cluster.get(PODS, "lonely")) is None
    assert len(await cluster.pods("app=rs")) == 2


async def test_scaling_down_takes_the_cheapest_first(cluster: Cluster) -> None:
    await cluster.create(REPLICA_SETS, replica_set(3))
    await cluster.settle()
    names = await cluster.names()
    for name, cost in zip(names, ("5", "-1", "7"), strict=True):
        await cluster.patch(
            PODS, name, {"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": cost}}}
        )
    await cluster.patch(REPLICA_SETS, "rs", {"spec": {"replicas": 1}})
    await cluster.settle()
    assert await cluster.names() == [names[2]]
    assert [reason for reason in await cluster.reasons("rs") if reason == "SuccessfulDelete"] == [
        "SuccessfulDelete"
    ] * 2


async def test_what_cannot_be_created_is_reported_and_tried_again(cluster: Cluster) -> None:
    create = cluster.client.create
    refusing = True

    async def refuse(resource: object, obj: Object, namespace: str | None = None, **options: str) -> Object:
        if refusing and resource == PODS and not options:
            raise ApiError(403, "Forbidden", 'pods "rs-x" is forbidden: exceeded quota: q')
        return await create(resource, obj, namespace, **options)  # type: ignore[arg-type]

    cluster.client.create = refuse  # type: ignore[method-assign, assignment]
    await cluster.create(REPLICA_SETS, replica_set(5))
    await cluster.settle()
    (condition,) = (await cluster.status(REPLICA_SETS, "rs"))["conditions"]
    assert (condition["type"], condition["status"], condition["reason"]) == ("ReplicaFailure", "True", "FailedCreate")
    assert "exceeded quota" in condition["message"]
    refusing = False
    await cluster.pass_time(60)
    assert "conditions" not in await cluster.status(REPLICA_SETS, "rs")
    assert len(await cluster.pods()) == 5


async def test_finished_pods_are_replaced(cluster: Cluster) -> None:
    cluster.kubelet.plays = {"play/exit": "1", "play/after": "30"}
    await cluster.create(REPLICA_SETS, replica_set(1))
    await cluster.settle()
    cluster.kubelet.plays = {}
    await cluster.pass_time(40)
    found = await cluster.pods()
    assert sorted(pods.phase(pod) for pod in found) in (["Failed", "Running"], ["Running"])


async def test_a_replication_controller_has_a_plain_selector(cluster: Cluster) -> None:
    made = {
        "metadata": {"name": "rc"},
        "spec": {"replicas": 2, "selector": {"app": "rc"}, "template": template({"app": "rc"})},
    }
    await cluster.create(REPLICATION_CONTROLLERS, made)
    await cluster.settle()
    assert (await cluster.status(REPLICATION_CONTROLLERS, "rc"))["readyReplicas"] == 2
