"""DaemonSets: one pod a node, updates, taints."""

from __future__ import annotations

from typing import Any

from sampan.kube.objects import Object
from sampan.kube.resources import DAEMON_SETS, NODES, PODS
from sampan.parts.workloads import pods

from .conftest import Cluster, template


def daemon_set(plays: dict[str, str] | None = None, pod_spec: Object | None = None, **spec: Any) -> Object:
    made = template({"app": "agent"}, plays=plays, **(pod_spec or {}))
    return {
        "metadata": {"name": "agent"},
        "spec": {"selector": {"matchLabels": {"app": "agent"}}, "template": made, **spec},
    }


async def nodes_of(cluster: Cluster) -> list[str]:
    return sorted(pod["spec"]["nodeName"] for pod in await cluster.pods() if pods.is_active(pod))


IMAGE = {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "nginx:2"}]}}}}


async def test_every_node_gets_one_also_later_ones(cluster: Cluster) -> None:
    await cluster.kubelet.add_node("node-2")
    await cluster.create(DAEMON_SETS, daemon_set())
    await cluster.settle()
    assert await nodes_of(cluster) == ["node-1", "node-2"]
    await cluster.kubelet.add_node("node-3")
    await cluster.settle()
    assert await nodes_of(cluster) == ["node-1", "node-2", "node-3"]
    assert await cluster.status(DAEMON_SETS, "agent") == {
        "currentNumberScheduled": 3,
        "numberMisscheduled": 0,
        "desiredNumberScheduled": 3,
        "numberReady": 3,
        "updatedNumberScheduled": 3,
        "numberAvailable": 3,
        "observedGeneration": 1,
    }


async def test_selector_and_cordon_decide_where(cluster: Cluster) -> None:
    await cluster.kubelet.add_node("node-2", disk="ssd")
    await cluster.create(DAEMON_SETS, daemon_set(pod_spec={"nodeSelector": {"disk": "ssd"}}))
    await cluster.settle()
    assert await nodes_of(cluster) == ["node-2"]
    await cluster.patch(NODES, "node-2", {"spec": {"unschedulable": True}}, namespace=None)
    await cluster.patch(NODES, "node-1", {"metadata": {"labels": {"disk": "ssd"}}}, namespace=None)
    await cluster.settle()
    assert await nodes_of(cluster) == ["node-1", "node-2"], "a daemon stays on a cordoned node"
    await cluster.patch(NODES, "node-2", {"metadata": {"labels": {"disk": "hdd"}}}, namespace=None)
    await cluster.settle()
    assert await nodes_of(cluster) == ["node-1"]


async def test_a_taint_keeps_new_ones_off_and_noexecute_ends_running_ones(cluster: Cluster) -> None:
    await cluster.kubelet.add_node("node-2")
    taint = {"spec": {"taints": [{"key": "dedicated", "value": "x", "effect": "NoSchedule"}]}}
    await cluster.patch(NODES, "node-2", taint, namespace=None)
    await cluster.create(DAEMON_SETS, daemon_set())
    await cluster.settle()
    assert await nodes_of(cluster) == ["node-1"]
    taint = {"spec": {"taints": [{"key": "dedicated", "value": "x", "effect": "NoExecute"}]}}
    await cluster.patch(NODES, "node-1", taint, namespace=None)
    await cluster.settle()
    assert await nodes_of(cluster) == []


async def test_a_rolling_update_replaces_as_many_as_may_be_unavailable(cluster: Cluster) -> None:
    for number in (2, 3, 4):
        await cluster.kubelet.add_node(f"node-{number}")
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 2, "maxSurge": 0}}
    await cluster.create(DAEMON_SETS, daemon_set(plays={"play/linger": "5"}, updateStrategy=strategy))
    await cluster.settle()
    await cluster.patch(DAEMON_SETS, "agent", IMAGE)
    await cluster.settle()
    assert sum(pods.is_terminating(pod) for pod in await cluster.pods()) == 2
    await cluster.pass_time(15)
    status = await cluster.status(DAEMON_SETS, "agent")
    assert (status["updatedNumberScheduled"], status["numberAvailable"]) == (4, 4)


async def test_a_surge_update_starts_the_new_one_first(cluster: Cluster) -> None:
    await cluster.kubelet.add_node("node-2")
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    await cluster.create(DAEMON_SETS, daemon_set(updateStrategy=strategy))
    await cluster.settle()
    fewest: list[int] = []

    def note(old: Object | None, new: Object | None) -> None:
        live = cluster.kubelet.informer(PODS).objects()
        fewest.append(len({pod["spec"].get("nodeName") for pod in live if pods.is_ready(pod) and pods.is_active(pod)}))

    cluster.kubelet.informer(PODS).on_change(note)
    await cluster.patch(DAEMON_SETS, "agent", IMAGE)
    await cluster.settle()
    assert min(fewest) == 2
    assert [pod["spec"]["containers"][0]["image"] for pod in await cluster.pods()] == ["nginx:2"] * 2


async def test_a_daemon_that_fails_again_and_again_is_restarted_ever_later(cluster: Cluster) -> None:
    cluster.kubelet.plays = {"play/exit": "1"}
    await cluster.create(DAEMON_SETS, daemon_set())
    await cluster.pass_time(60)
    created = (await cluster.reasons("agent")).count("SuccessfulCreate")
    events = [one for one in await cluster.events("agent") if one[0] == "SuccessfulCreate"]
    assert 4 <= len(events) <= 9, (created, events)
