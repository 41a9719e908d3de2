"""Nodes that fall silent, taints and what they end, stranded pods, disruption budgets."""

from __future__ import annotations

from typing import Any

import pytest

from sampan.kube.objects import Object
from sampan.kube.resources import DEPLOYMENTS, NODES, POD_DISRUPTION_BUDGETS, PODS
from sampan.kube.status import ApiError
from sampan.parts.workloads import pods
from sampan.parts.workloads.control import pod_gc

from .conftest import Cluster, template
from .test_deployment import deployment

TOLERATIONS = [
    {"key": f"node.kubernetes.io/{trouble}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
    for trouble in ("not-ready", "unreachable")
]
"""What admission gives every pod."""


def pod(name: str = "p", **spec: Any) -> Object:
    made = template({"app": "p"}, **spec)
    return {"metadata": {"name": name, **made["metadata"]}, "spec": made["spec"]}


async def taints(cluster: Cluster, node: str) -> set[tuple[str, str]]:
    found = (await cluster.get(NODES, node, None))["spec"].get("taints") or ()
    return {(one["key"].removeprefix("node.kubernetes.io/"), one["effect"]) for one in found}


async def ready(cluster: Cluster, node: str) -> tuple[str, str]:
    condition = pods.condition(await cluster.get(NODES, node, None), "Ready") or {}
    return condition["status"], condition["reason"]


async def test_a_node_that_reports_stays_ready(cluster: Cluster) -> None:
    await cluster.pass_time(600)
    assert await ready(cluster, "node-1") == ("True", "KubeletReady")
    assert await taints(cluster, "node-1") == set()


async def test_a_silent_node_becomes_unknown_and_loses_its_pods(cluster: Cluster) -> None:
    await cluster.kubelet.add_node("node-2")
    made = deployment(2)
    made["spec"]["template"]["spec"]["tolerations"] = TOLERATIONS
    await cluster.create(DEPLOYMENTS, made)
    await cluster.settle()
    cluster.kubelet.silent.add("node-1")
    await cluster.pass_time(70)
    assert await ready(cluster, "node-1") == ("Unknown", "NodeStatusUnknown")
    assert await taints(cluster, "node-1") == {("unreachable", "NoSchedule"), ("unreachable", "NoExecute")}
    there = [one for one in await cluster.pods() if one["spec"]["nodeName"] == "node-1"]
    assert [pods.is_ready(one) for one in there] == [False], "its pods are out of service before they are given up"
    assert "NodeNotReady" in await cluster.reasons("node-1")
    await cluster.pass_time(310)
    live = [one["spec"]["nodeName"] for one in await cluster.pods() if pods.is_active(one)]
    assert live == ["node-2", "node-2"]
    cluster.kubelet.silent.clear()
    await cluster.pass_time(20)
    assert await ready(cluster, "node-1") == ("True", "KubeletReady")
    assert await taints(cluster, "node-1") == set()


async def test_the_only_node_keeps_its_pods(cluster: Cluster) -> None:
    await cluster.create(DEPLOYMENTS, deployment(2))
    await cluster.settle()
    cluster.kubelet.silent.add("node-1")
    await cluster.pass_time(1000)
    assert await taints(cluster, "node-1") == {("unreachable", "NoSchedule")}
    assert all(pods.is_active(one) for one in await cluster.pods())


async def test_a_jump_of_the_clock_is_not_silence(cluster: Cluster) -> None:
    await cluster.kubelet.add_node("node-2")
    await cluster.settle()
    for seconds in (3 * 86400, 45, 60, 90, 3 * 86400):
        await cluster.pass_time(7)
        cluster.kubelet.silent.add("node-1")  # it comes to its report a moment after we come to look
        cluster.clock.jump(seconds)
        await cluster.settle()
        assert await ready(cluster, "node-1") == ("True", "KubeletReady"), seconds
        cluster.kubelet.silent.clear()
        await cluster.pass_time(21)
    cluster.kubelet.silent.add("node-1")
    await cluster.pass_time(120)
    assert await ready(cluster, "node-1") == ("Unknown", "NodeStatusUnknown")


async def test_a_node_that_says_it_is_not_ready_is_tainted_so(cluster: Cluster) -> None:
    await cluster.kubelet.add_node("node-2")
    await cluster.kubelet.report_node("node-1", "False")
    await cluster.settle()
    assert await taints(cluster, "node-1") == {("not-ready", "NoSchedule"), ("not-ready", "NoExecute")}
    await cluster.kubelet.report_node("node-1", "True")
    await cluster.settle()
    assert await taints(cluster, "node-1") == set()


async def test_pressure_and_cordon_are_taints(cluster: Cluster) -> None:
    node = await cluster.get(NODES, "node-1", None)
    pressure = {"type": "MemoryPressure", "status": "True", "reason": "x", "message": ""}
    changed = {"status": {"conditions": [*node["status"]["conditions"], pressure]}}
    await cluster.patch(NODES, "node-1", changed, namespace=None, subresource="status")
    await cluster.patch(NODES, "node-1", {"spec": {"unschedulable": True}}, namespace=None)
    await cluster.settle()
    assert await taints(cluster, "node-1") == {("memory-pressure", "NoSchedule"), ("unschedulable", "NoSchedule")}
    await cluster.patch(NODES, "node-1", {"spec": {"unschedulable": None}}, namespace=None)
    await cluster.settle()
    assert await taints(cluster, "node-1") == {("memory-pressure", "NoSchedule")}


async def test_taints_of_others_are_left_alone(cluster: Cluster) -> None:
    mine = {"spec": {"taints": [{"key": "mine", "effect": "NoSchedule"}], "unschedulable": True}}
    await cluster.patch(NODES, "node-1", mine, namespace=None)
    await cluster.settle()
    assert await taints(cluster, "node-1") == {("mine", "NoSchedule"), ("unschedulable", "NoSchedule")}


async def test_noexecute_ends_pods_when_their_toleration_does(cluster: Cluster) -> None:
    def tolerating(seconds: int | None) -> list[Object]:
        bound = {} if seconds is None else {"tolerationSeconds": seconds}
        return [{"key": "going", "operator": "Exists", "effect": "NoExecute", **bound}]

    await cluster.create(PODS, pod("never"))
    await cluster.create(PODS, pod("a-while", tolerations=tolerating(60)))
    await cluster.create(PODS, pod("always", tolerations=tolerating(None)))
    await cluster.settle()
    stamp = pods.format_time(cluster.clock.now())
    taint = {"spec": {"taints": [{"key": "going", "effect": "NoExecute", "timeAdded": stamp}]}}
    await cluster.patch(NODES, "node-1", taint, namespace=None)
    await cluster.settle()
    assert await cluster.names() == ["a-while", "always"]
    assert "TaintManagerEviction" in await cluster.reasons("never")
    await cluster.pass_time(61)
    assert await cluster.names() == ["always"]


async def test_pods_of_a_node_that_is_gone_are_collected(cluster: Cluster) -> None:
    await cluster.create(PODS, pod())
    await cluster.settle()
    cluster.kubelet.nodes.clear()
    await cluster.client.delete(NODES, "node-1")
    await cluster.pass_time(30)
    assert await cluster.names() == ["p"]
    await cluster.pass_time(20)
    assert await cluster.names() == []


async def test_finished_pods_are_kept_up_to_a_limit_the_newest(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_gc, "FINISHED_LIMIT", 2)
    for number in range(5):
        await cluster.create(PODS, pod(f"p{number}", nodeName="node-1"))
        await cluster.patch(PODS, f"p{number}", {"status": {"phase": "Succeeded"}}, subresource="status")
        cluster.clock.jump(1)
        await cluster.settle()
    assert sorted(one["metadata"]["name"] for one in await cluster.pods()) == ["p3", "p4"]


async def test_a_pod_that_was_never_placed_and_is_to_go_goes(cluster: Cluster) -> None:
    metadata = {"name": "held", "finalizers": ["example.com/wait"]}
    await cluster.create(PODS, {"metadata": metadata, "spec": {**pod()["spec"], "schedulerName": "nobody"}})
    await cluster.create(PODS, {"metadata": {"name": "other"}, "spec": {**pod()["spec"], "schedulerName": "nobody"}})
    await cluster.client.delete(PODS, "held", "default", grace_period=30)
    await cluster.settle()
    assert (await cluster.get(PODS, "held"))["metadata"]["deletionGracePeriodSeconds"] == 0
    await cluster.patch(PODS, "held", {"metadata": {"finalizers": None}})
    await cluster.settle()
    assert [one["metadata"]["name"] for one in await cluster.pods()] == ["other"]


# -- disruption budgets


async def budget(cluster: Cluster, **spec: Any) -> Object:
    made = {"metadata": {"name": "b"}, "spec": {"selector": {"matchLabels": {"app": "web"}}, **spec}}
    await cluster.create(POD_DISRUPTION_BUDGETS, made)
    await cluster.settle()
    return await cluster.status(POD_DISRUPTION_BUDGETS, "b")


async def test_a_budget_counts_healthy_pods(cluster: Cluster) -> None:
    await cluster.create(DEPLOYMENTS, deployment(4))
    status = await budget(cluster, minAvailable=3)
    counted = {name: value for name, value in status.items() if name != "conditions"}
    assert counted == {
        "observedGeneration": 1,
        "currentHealthy": 4,
        "desiredHealthy": 3,
        "expectedPods": 4,
        "disruptionsAllowed": 1,
    }
    (condition,) = status["conditions"]
    assert (condition["type"], condition["status"], condition["reason"]) == (
        "DisruptionAllowed",
        "True",
        "SufficientPods",
    )


async def test_percentages_are_of_what_the_controller_wants(cluster: Cluster) -> None:
    await cluster.create(DEPLOYMENTS, deployment(5))
    status = await budget(cluster, maxUnavailable="30%")
    assert (status["expectedPods"], status["desiredHealthy"], status["disruptionsAllowed"]) == (5, 3, 2)


async def test_evictions_stop_at_the_budget_until_replacements_are_ready(cluster: Cluster) -> None:
    await cluster.create(DEPLOYMENTS, deployment(3, plays={"play/linger": "10"}))
    await budget(cluster, minAvailable=2)
    names = await cluster.names()

    async def evict(name: str) -> int:
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": "default"}}
        try:
            await cluster.client.create(PODS, eviction, "default", name=name, subresource="eviction")
        except ApiError as error:
            return error.code
        return 201

    assert await evict(names[0]) == 201
    assert await evict(names[1]) == 429
    await cluster.settle()
    assert await evict(names[1]) == 201, "the replacement is ready"
