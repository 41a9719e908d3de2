"""The scheduler from the outside: where pods go, what is said of those that fit nowhere."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sampan.kube.objects import Object
from sampan.kube.resources import DEPLOYMENTS, NODES, PODS
from sampan.parts.workloads import pods

from .conftest import Cluster, template
from .test_deployment import deployment


def pod(name: str = "p", labels: dict[str, str] | None = None, cpu: str = "", **spec: Any) -> Object:
    made = template(labels or {"app": "p"}, **spec)
    if cpu:
        made["spec"]["containers"][0]["resources"] = {"requests": {"cpu": cpu}}
    return {"metadata": {"name": name, **made["metadata"]}, "spec": made["spec"]}


async def where(cluster: Cluster) -> dict[str, str]:
    return {one["metadata"]["name"]: one["spec"].get("nodeName", "") for one in await cluster.pods()}


async def verdict(cluster: Cluster, name: str = "p") -> tuple[str, str]:
    condition = pods.condition(await cluster.get(PODS, name), "PodScheduled") or {}
    return condition.get("reason", ""), condition.get("message", "")


def affinity(kind: str, labels: dict[str, str], key: str = "kubernetes.io/hostname") -> Object:
    term = {"labelSelector": {"matchLabels": labels}, "topologyKey": key}
    return {"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}


async def test_a_pod_is_bound_and_told_so(cluster: Cluster) -> None:
    await cluster.create(PODS, pod())
    await cluster.settle()
    made = await cluster.get(PODS, "p")
    assert made["spec"]["nodeName"] == "node-1"
    assert (pods.condition(made, "PodScheduled") or {})["status"] == "True"
    assert ("Scheduled", "Successfully assigned default/p to node-1") in await cluster.events("p")


async def test_a_pod_that_asks_too_much_is_told_why_and_taken_up_when_there_is_room(cluster: Cluster) -> None:
    await cluster.create(PODS, pod(cpu="100"))
    await cluster.settle()
    reason, message = await verdict(cluster)
    assert reason == "Unschedulable"
    assert message == (
        "0/1 nodes are available: 1 Insufficient cpu. "
        "preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
    )
    assert ("FailedScheduling", message) in await cluster.events("p")
    await cluster.kubelet.add_node("big", cpu="200")
    await cluster.pass_time(5)
    assert await where(cluster) == {"p": "big"}


async def test_no_node_at_all(cluster: Cluster) -> None:
    cluster.kubelet.nodes.clear()
    await cluster.client.delete(NODES, "node-1")
    await cluster.create(PODS, pod())
    await cluster.settle()
    assert await verdict(cluster) == ("Unschedulable", "no nodes available to schedule pods")


async def test_requests_fill_a_node_exactly(cluster: Cluster) -> None:
    for number in range(5):
        await cluster.create(PODS, pod(f"p{number}", cpu="2"))
    await cluster.settle()
    assert Counter((await where(cluster)).values()) == {"node-1": 4, "": 1}
    await cluster.client.delete(PODS, "p0", "default")
    await cluster.pass_time(5)
    assert set((await where(cluster)).values()) == {"node-1"}


async def test_gated_pods_wait_for_their_gate(cluster: Cluster) -> None:
    await cluster.create(PODS, pod(schedulingGates=[{"name": "example.com/quota"}]))
    await cluster.settle()
    assert (await verdict(cluster))[0] == "SchedulingGated"
    await cluster.patch(PODS, "p", {"spec": {"schedulingGates": None}})
    await cluster.settle()
    assert await where(cluster) == {"p": "node-1"}


async def test_other_schedulers_pods_are_left_alone(cluster: Cluster) -> None:
    await cluster.create(PODS, pod(schedulerName="mine"))
    await cluster.settle()
    assert await where(cluster) == {"p": ""}


async def test_selectors_affinity_and_taints_choose_the_node(cluster: Cluster) -> None:
    await cluster.kubelet.add_node("node-2", disk="ssd")
    await cluster.kubelet.add_node("node-3", disk="ssd")
    taint = {"spec": {"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]}}
    await cluster.patch(NODES, "node-3", taint, namespace=None)
    await cluster.settle()
    await cluster.create(PODS, pod("selected", nodeSelector={"disk": "ssd"}))
    tolerations = [{"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}]
    fields = [{"key": "metadata.name", "operator": "In", "values": ["node-3"]}]
    required = {"nodeSelectorTerms": [{"matchFields": fields}]}
    pinned: Object = {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}}
    await cluster.create(PODS, pod("pinned", tolerations=tolerations, **pinned))
    await cluster.create(PODS, pod("kept-off", **pinned))
    await cluster.settle()
    assert await where(cluster) == {"selected": "node-2", "pinned": "node-3", "kept-off": ""}
    assert (await verdict(cluster, "kept-off"))[1].startswith(
        "0/3 nodes are available: 1 node(s) had untolerated taint {gpu: yes}, "
        "2 node(s) didn't match Pod's node affinity/selector."
    )


async def test_replicas_spread_over_equal_nodes(cluster: Cluster) -> None:
    await cluster.kubelet.add_node("node-2")
    await cluster.kubelet.add_node("node-3")
    await cluster.create(DEPLOYMENTS, deployment(6))
    await cluster.settle()
    assert Counter((await where(cluster)).values()) == {"node-1": 2, "node-2": 2, "node-3": 2}


async def test_anti_affinity_keeps_apart_also_against_newcomers(cluster: Cluster) -> None:
    await cluster.kubelet.add_node("node-2")
    for name in ("a", "b", "c"):
        await cluster.create(PODS, pod(name, {"app": "x"}, **affinity("podAntiAffinity", {"app": "x"})))
    await cluster.settle()
    placed = await where(cluster)
    assert sorted(placed.values()) == ["", "node-1", "node-2"]
    await cluster.create(PODS, pod("plain", {"app": "x"}))
    await cluster.settle()
    message = (await verdict(cluster, "plain"))[1]
    assert "2 node(s) didn't satisfy existing pods anti-affinity rules" in message


async def test_affinity_brings_together_and_the_first_may_begin(cluster: Cluster) -> None:
    await cluster.kubelet.add_node("node-2")
    for name in ("a", "b", "c"):
        await cluster.create(PODS, pod(name, {"app": "x"}, **affinity("podAffinity", {"app": "x"})))
    await cluster.create(PODS, pod("lost", {"app": "y"}, **affinity("podAffinity", {"app": "nobody"})))
    await cluster.settle()
    placed = await where(cluster)
    assert placed.pop("lost") == ""
    assert len(set(placed.values())) == 1


async def test_topology_spread_is_kept_within_its_skew(cluster: Cluster) -> None:
    for number, zone in ((2, "a"), (3, "b")):
        await cluster.kubelet.add_node(f"node-{number}", zone=zone)
    constraint = {
        "maxSkew": 1,
        "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "x"}},
    }
    for number in range(4):
        await cluster.create(PODS, pod(f"p{number}", {"app": "x"}, topologySpreadConstraints=[constraint]))
    await cluster.settle()
    assert Counter((await where(cluster)).values()) == {"node-2": 2, "node-3": 2}
    await cluster.patch(NODES, "node-3", {"spec": {"unschedulable": True}}, namespace=None)
    for number in (4, 5):
        await cluster.create(PODS, pod(f"p{number}", {"app": "x"}, topologySpreadConstraints=[constraint]))
    await cluster.settle()
    assert Counter((await where(cluster)).values()) == {"node-2": 3, "node-3": 2, "": 1}


async def test_host_ports_clash(cluster: Cluster) -> None:
    ports = [{"containerPort": 80, "hostPort": 8080}]
    for name in ("a", "b"):
        await cluster.create(PODS, pod(name, containers=[{"name": "c", "image": "x", "ports": ports}]))
    await cluster.settle()
    assert sorted((await where(cluster)).values()) == ["", "node-1"]


async def test_the_more_important_goes_first_and_pushes_others_out(cluster: Cluster) -> None:
    for number in range(4):
        await cluster.create(PODS, pod(f"low{number}", cpu="2", priority=1 if number else 5))
    await cluster.settle()
    await cluster.create(PODS, pod("high", cpu="4", priority=1000))
    await cluster.settle()
    assert (await cluster.status(PODS, "high"))["nominatedNodeName"] == "node-1"
    await cluster.pass_time(5)
    placed = await where(cluster)
    assert placed["high"] == "node-1"
    assert "low0" in placed, "the more important of the unimportant stays"
    assert len(placed) == 3


async def test_who_must_not_preempt_waits(cluster: Cluster) -> None:
    await cluster.create(PODS, pod("low", cpu="8"))
    await cluster.settle()
    await cluster.create(PODS, pod("meek", cpu="8", priority=1000, preemptionPolicy="Never"))
    await cluster.pass_time(30)
    assert await where(cluster) == {"low": "node-1", "meek": ""}


async def test_a_missing_claim_is_named(cluster: Cluster) -> None:
    volumes = [{"name": "d", "persistentVolumeClaim": {"claimName": "gone"}}]
    await cluster.create(PODS, pod(volumes=volumes))
    await cluster.settle()
    message = (await verdict(cluster))[1]
    assert message.startswith('0/1 nodes are available: persistentvolumeclaim "gone" not found.')


async def test_a_cordoned_node_takes_nobody(cluster: Cluster) -> None:
    await cluster.patch(NODES, "node-1", {"spec": {"unschedulable": True}}, namespace=None)
    await cluster.create(PODS, pod())
    await cluster.settle()
    assert await where(cluster) == {"p": ""}
    await cluster.patch(NODES, "node-1", {"spec": {"unschedulable": None}}, namespace=None)
    await cluster.pass_time(5)
    assert await where(cluster) == {"p": "node-1"}


async def test_a_pod_that_fits_nowhere_is_not_written_again_and_again(cluster: Cluster) -> None:
    await cluster.create(PODS, pod(cpu="100"))
    await cluster.pass_time(30)
    before = (await cluster.get(PODS, "p"))["metadata"]["resourceVersion"]
    await cluster.pass_time(1200)
    assert (await cluster.get(PODS, "p"))["metadata"]["resourceVersion"] == before
