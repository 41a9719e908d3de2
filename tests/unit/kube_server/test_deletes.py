"""Deletion: at once, gracefully, by finalizers, and what a dependent's fate is to be."""

from __future__ import annotations

from typing import Any

import pytest

from sampan.kube.objects import Resource
from sampan.kube.resources import CONFIG_MAPS, JOBS, NODES, POD_DISRUPTION_BUDGETS, PODS
from sampan.kube.server.call import Call
from sampan.kube.server.options import DeleteOptions, delete_options
from sampan.kube.status import ApiError

from .conftest import Cluster


def config_map(name: str = "a", **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "default", **metadata}}


async def running_pod(cluster: Cluster, name: str = "p", **spec: Any) -> dict[str, Any]:
    made = await cluster.client.create(
        PODS,
        {
            "metadata": {"name": name, "namespace": "default", "labels": {"app": "web"}},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}], **spec},
        },
    )
    made["status"] = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    return await cluster.client.update(PODS, made, subresource="status")


async def gone(cluster: Cluster, resource: Resource, name: str) -> bool:
    try:
        await cluster.client.get(resource, name, "default")
    except ApiError as error:
        return error.not_found
    return False


async def test_most_kinds_answer_with_a_status(cluster: Cluster) -> None:
    made = await cluster.client.create(CONFIG_MAPS, config_map())
    answer = await cluster.client.delete(CONFIG_MAPS, "a", "default")
    assert (answer["kind"], answer["status"]) == ("Status", "Success")
    assert answer["details"] == {"name": "a", "kind": "configmaps", "uid": made["metadata"]["uid"]}


async def test_finalizers_hold_an_object_until_the_last_is_removed(cluster: Cluster) -> None:
    await cluster.client.create(CONFIG_MAPS, config_map(finalizers=["example.com/a", "example.com/b"]))
    marked = await cluster.client.delete(CONFIG_MAPS, "a", "default")
    assert marked["metadata"]["deletionTimestamp"] and marked["metadata"]["deletionGracePeriodSeconds"] == 0
    again = await cluster.client.delete(CONFIG_MAPS, "a", "default")
    assert again["metadata"]["resourceVersion"] == marked["metadata"]["resourceVersion"]
    marked["metadata"]["finalizers"].append("example.com/c")
    with pytest.raises(ApiError, match="no new finalizers can be added"):
        await cluster.client.update(CONFIG_MAPS, marked)
    await cluster.client.patch(CONFIG_MAPS, "a", {"metadata": {"finalizers": ["example.com/b"]}}, "default")
    assert not await gone(cluster, CONFIG_MAPS, "a")
    last = await cluster.client.patch(CONFIG_MAPS, "a", {"metadata": {"finalizers": None}}, "default")
    assert await gone(cluster, CONFIG_MAPS, "a")
    assert last["metadata"]["resourceVersion"] == str(cluster.store.revision)


async def test_running_pods_go_gracefully_and_only_ever_faster(cluster: Cluster) -> None:
    await running_pod(cluster)
    marked = await cluster.client.delete(PODS, "p", "default")
    assert marked["metadata"]["deletionGracePeriodSeconds"] == 30
    longer = await cluster.client.delete(PODS, "p", "default", grace_period=60)
    assert longer["metadata"]["deletionGracePeriodSeconds"] == 30
    shorter = await cluster.client.delete(PODS, "p", "default", grace_period=5)
    assert shorter["metadata"]["deletionGracePeriodSeconds"] == 5
    last = await cluster.client.delete(PODS, "p", "default", grace_period=0, uid=marked["metadata"]["uid"])
    assert last["kind"] == "Pod"
    assert await gone(cluster, PODS, "p")


async def test_preconditions_are_checked(cluster: Cluster) -> None:
    made = await cluster.client.create(CONFIG_MAPS, config_map())
    with pytest.raises(ApiError, match=f"UID in precondition: x, UID in object meta: {made['metadata']['uid']}"):
        await cluster.client.delete(CONFIG_MAPS, "a", "default", uid="x")
    with pytest.raises(ApiError) as raised:
        await cluster.client.delete(CONFIG_MAPS, "a", "default", revision="1")
    assert raised.value.conflict


@pytest.mark.parametrize(
    ("policy", "finalizers"), [("Foreground", ["foregroundDeletion"]), ("Orphan", ["orphan"]), ("Background", None)]
)
async def test_propagation_is_a_finalizer_for_the_collector(
    cluster: Cluster, policy: Any, finalizers: list[str] | None
) -> None:
    await cluster.client.create(CONFIG_MAPS, config_map())
    answer = await cluster.client.delete(CONFIG_MAPS, "a", "default", propagation=policy)
    if finalizers is None:
        assert await gone(cluster, CONFIG_MAPS, "a")
    else:
        assert answer["metadata"]["finalizers"] == finalizers


async def test_jobs_keep_their_pods_unless_told(cluster: Cluster) -> None:
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}
    await cluster.client.create(
        JOBS, {"metadata": {"name": "j", "namespace": "default"}, "spec": {"template": template}}
    )
    type = cluster.types.find(JOBS)
    assert type is not None
    call = Call(cluster.client._user, type, "default", "j")
    answer = await cluster.api.delete(call, DeleteOptions())
    assert answer.object["metadata"]["finalizers"] == ["orphan"]
    assert "child pods are preserved by default" in call.warnings[0]


async def test_a_collection_is_deleted_by_selector(cluster: Cluster) -> None:
    for index in range(130):
        await cluster.client.create(CONFIG_MAPS, config_map(f"m{index}", labels={"odd": str(index % 2)}))
    await cluster.client.delete_collection(CONFIG_MAPS, "default", label_selector="odd=1")
    left = (await cluster.client.list(CONFIG_MAPS)).items
    assert len(left) == 65 and all(item["metadata"]["labels"]["odd"] == "0" for item in left)


async def test_cluster_scoped_objects_have_no_namespace(cluster: Cluster) -> None:
    await cluster.client.create(NODES, {"metadata": {"name": "n"}})
    assert "namespace" not in (await cluster.client.get(NODES, "n"))["metadata"]
    await cluster.client.delete(NODES, "n")


async def test_eviction_asks_the_budget(cluster: Cluster) -> None:
    await running_pod(cluster)
    selector = {"matchLabels": {"app": "web"}}
    made = await cluster.client.create(
        POD_DISRUPTION_BUDGETS,
        {"metadata": {"name": "b", "namespace": "default"}, "spec": {"minAvailable": 1, "selector": selector}},
    )
    counts = {"currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}
    made["status"] = {"disruptionsAllowed": 0, "observedGeneration": made["metadata"]["generation"], **counts}
    made = await cluster.client.update(POD_DISRUPTION_BUDGETS, made, subresource="status")
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}}
    with pytest.raises(ApiError, match="Cannot evict pod as it would violate") as raised:
        await cluster.client.create(PODS, eviction, "default", name="p", subresource="eviction")
    assert raised.value.code == 429
    assert raised.value.details["causes"][0]["reason"] == "DisruptionBudget"
    made["status"]["disruptionsAllowed"] = 1
    await cluster.client.update(POD_DISRUPTION_BUDGETS, made, subresource="status")
    await cluster.client.create(PODS, eviction, "default", name="p", subresource="eviction")
    assert (await cluster.client.get(PODS, "p", "default"))["metadata"]["deletionTimestamp"]
    budget = await cluster.client.get(POD_DISRUPTION_BUDGETS, "b", "default")
    assert budget["status"]["disruptionsAllowed"] == 0 and "p" in budget["status"]["disruptedPods"]


def test_options_come_from_body_or_query() -> None:
    assert delete_options({"gracePeriodSeconds": ["3"]}, None).grace_period == 3
    assert delete_options({"gracePeriodSeconds": ["3"]}, {"gracePeriodSeconds": 4}).grace_period == 4
    with pytest.raises(ApiError, match="Unsupported value"):
        delete_options({}, {"propagationPolicy": "Sideways"})
    with pytest.raises(ApiError, match="cannot be both set"):
        delete_options({}, {"propagationPolicy": "Orphan", "orphanDependents": True})
