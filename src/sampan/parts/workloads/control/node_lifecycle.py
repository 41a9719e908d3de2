"""Node lifecycle: notices nodes that stopped reporting, taints them, and evicts what does not tolerate that.

A node reports by its Lease and its status. One that has not for `GRACE` seconds becomes Ready=Unknown and is tainted
``node.kubernetes.io/unreachable``; one that says it is not ready, ``node.kubernetes.io/not-ready``. Its pods are no longer
ready then, so Services leave them out. NoExecute taints end pods after their toleration runs out; they are withheld while no
node at all is ready, for then the trouble is more likely ours (and with one node there is nowhere to go).

When the clock jumps, a node's heartbeats of the time jumped over never happened. So silence counts only as far as this
controller was awake to listen: it looks every `LOOK` seconds, and where it is woken later than it asked to be by more than
that, the time between does not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sampan.kube.client.resources import LEASES, NODES, PODS
from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.interface import For, Source, Watches
from sampan.kube.objects import Key, Object, copy, dig
from sampan.kube.status import ApiError
from sampan.parts.workloads import pods
from sampan.parts.workloads.scheduling.affinity import tolerates

GRACE = 50.0
"""Seconds without a report after which a node counts as unreachable (upstream 1.32)."""
LOOK = 10.0
"""Seconds between looks at a node that reports."""
ON_NODE = "node"
"""The index of pods by the node they are bound to."""
LEASE_NAMESPACE = "kube-node-lease"
NOT_READY = "node.kubernetes.io/not-ready"
UNREACHABLE = "node.kubernetes.io/unreachable"
PRESSURES = {
    "MemoryPressure": "node.kubernetes.io/memory-pressure",
    "DiskPressure": "node.kubernetes.io/disk-pressure",
    "PIDPressure": "node.kubernetes.io/pid-pressure",
    "NetworkUnavailable": "node.kubernetes.io/network-unavailable",
}
UNSCHEDULABLE = "node.kubernetes.io/unschedulable"


class NodeLifecycleController(Controller):
    """Conditions and taints of nodes that report badly or not at all."""

    name = "node-lifecycle-controller"

    def __init__(self, context: ControlContext) -> None:
        super().__init__(context)
        self._heard: dict[str, tuple[object, float]] = {}
        self._told: dict[str, str] = {}
        """Each node's readiness when the others were last looked at because of it."""
        self._looks: dict[str, float] = {}
        """When each node was to be looked at again."""
        self.informer(PODS).add_index(ON_NODE, on_node)

    def sources(self) -> list[Source]:
        return [For(NODES), Watches(LEASES, self._lease_keys), Watches(PODS, self._stranded)]

    def _stranded(self, pod: Object) -> list[Key]:
        """A ready pod on a node that is not."""
        node = self.informer(NODES).get(Key("", pod["spec"].get("nodeName") or ""))
        return [] if node is None or is_ready(node) or not pods.is_ready(pod) else [Key.of(node)]

    def _lease_keys(self, lease: Object) -> list[Key]:
        metadata = lease["metadata"]
        return [Key("", metadata["name"])] if metadata["namespace"] == LEASE_NAMESPACE else []

    async def reconcile(self, key: Key) -> float | None:
        node = self.informer(NODES).get(key)
        if node is None:
            self._heard.pop(key.name, None)
            self._looks.pop(key.name, None)
            return None
        silent = self._silence(node)
        changed: Object = copy(node)
        if silent >= GRACE:
            await self._mark_unknown(changed)
        ready = str((pods.condition(changed, "Ready") or {}).get("status", ""))
        await self._taint(changed, ready)
        if ready in ("False", "Unknown"):
            await self._unready_pods(key.name)
        if ready != (pods.condition(node, "Ready") or {}).get("status", "") or self._told.get(key.name) != ready:
            # whether NoExecute taints are due depends on all nodes
            self._told[key.name] = ready
            for other in self.informer(NODES).objects():
                self.queue.add(Key.of(other))
        after = max(1.0, min(LOOK, GRACE - silent)) if silent < GRACE else GRACE
        self._looks[key.name] = self.clock.monotonic() + after
        return after

    async def _unready_pods(self, node: str) -> None:
        for pod in self.informer(PODS).indexed(ON_NODE, node):
            if not pods.is_ready(pod):
                continue
            metadata = pod["metadata"]
            conditions = copy(pod["status"]["conditions"])
            current = next(one for one in conditions if one["type"] == "Ready")
            current.update(status="False", lastTransitionTime=pods.format_time(self.clock.now()))
            patch = {"metadata": {"uid": metadata["uid"]}, "status": {"conditions": conditions}}
            try:
                await self.client.patch(PODS, metadata["name"], patch, metadata["namespace"], subresource="status")
            except ApiError as error:
                if not (error.not_found or error.conflict):
                    raise
                continue
            self.recorder.event(pod, "Warning", "NodeNotReady", "Node is not ready")

    def _silence(self, node: Object) -> float:
        """Seconds since the node's lease or heartbeat last changed, by our own clock, not the node's."""
        name = node["metadata"]["name"]
        lease = self.informer(LEASES).get(Key(LEASE_NAMESPACE, name))
        ready = pods.condition(node, "Ready") or {}
        beat = (dig(lease, "spec", "renewTime"), ready.get("lastHeartbeatTime"))
        now = self.clock.monotonic()
        known = self._heard.get(name)
        if known is None or known[0] != beat:
            self._heard[name] = (beat, now)
            return 0.0
        late = now - self._looks.get(name, now)
        if late > LOOK and ready.get("status") != "Unknown":
            self._heard[name] = (beat, known[1] + late)
        return now - self._heard[name][1]

    async def _mark_unknown(self, node: Object) -> None:
        conditions = node.setdefault("status", {}).setdefault("conditions", [])
        before, now = copy(conditions), self.clock.now()
        message = "Kubelet stopped posting node status."
        for kind in ("Ready", "MemoryPressure", "DiskPressure", "PIDPressure"):
            current = pods.condition(node, kind)
            if current is None:
                unheard = "Kubelet never posted node status."
                pods.set_condition(conditions, kind, "Unknown", "NodeStatusNeverUpdated", unheard, now)
            elif current["status"] != "Unknown":
                pods.set_condition(conditions, kind, "Unknown", "NodeStatusUnknown", message, now)
        if conditions != before:
            node.update(await self.client.update(NODES, node, subresource="status"))
            self.recorder.event(
                node, "Normal", "NodeNotReady", f"Node {node['metadata']['name']} status is now: NodeNotReady"
            )

    async def _taint(self, node: Object, ready: str) -> None:
        wanted: dict[tuple[str, str], Object] = {}

        def want(key: str, effect: str) -> None:
            wanted[key, effect] = {"key": key, "effect": effect}

        if ready in ("False", "Unknown"):
            trouble = NOT_READY if ready == "False" else UNREACHABLE
            want(trouble, "NoSchedule")
            others = (
                one for one in self.informer(NODES).objects() if one["metadata"]["name"] != node["metadata"]["name"]
            )
            if any(is_ready(one) for one in others):
                want(trouble, "NoExecute")
        for kind, taint in PRESSURES.items():
            if (pods.condition(node, kind) or {}).get("status") == "True":
                want(taint, "NoSchedule")
        if dig(node, "spec", "unschedulable"):
            want(UNSCHEDULABLE, "NoSchedule")
        ours = {NOT_READY, UNREACHABLE, UNSCHEDULABLE, *PRESSURES.values()}
        current: list[Object] = dig(node, "spec", "taints", default=[])
        kept = [one for one in current if one["key"] not in ours or (one["key"], one.get("effect")) in wanted]
        present = {(one["key"], one.get("effect")) for one in kept}
        stamp = pods.format_time(self.clock.now())
        added = [
            {**taint, "timeAdded": stamp} if taint["effect"] == "NoExecute" else taint
            for identity, taint in wanted.items()
            if identity not in present
        ]
        if added or len(kept) != len(current):
            metadata = node["metadata"]
            patch = {
                "metadata": {"resourceVersion": metadata["resourceVersion"]},
                "spec": {"taints": [*kept, *added] or None},
            }
            await self.client.patch(NODES, metadata["name"], patch)


def is_ready(node: Object) -> bool:
    """The node's Ready condition is True."""
    return (pods.condition(node, "Ready") or {}).get("status") == "True"


def on_node(pod: Object) -> list[str]:
    """The index value of `ON_NODE`."""
    name = pod["spec"].get("nodeName")
    return [name] if name else []


class TaintEvictionController(Controller):
    """Ends pods whose toleration of a NoExecute taint is over, or who have none."""

    name = "taint-eviction-controller"

    def __init__(self, context: ControlContext) -> None:
        super().__init__(context)
        self.informer(PODS).add_index(ON_NODE, on_node)

    def sources(self) -> list[Source]:
        return [For(PODS), Watches(NODES, self._pods_on)]

    def _pods_on(self, node: Object) -> list[Key]:
        if not any(taint.get("effect") == "NoExecute" for taint in dig(node, "spec", "taints", default=())):
            return []
        return [Key.of(pod) for pod in self.informer(PODS).indexed(ON_NODE, node["metadata"]["name"])]

    async def reconcile(self, key: Key) -> float | None:
        pod = self.informer(PODS).get(key)
        if pod is None or pods.is_terminating(pod) or not pod["spec"].get("nodeName"):
            return None
        node = self.informer(NODES).get(Key("", pod["spec"]["nodeName"]))
        taints = [one for one in dig(node, "spec", "taints", default=[]) if one.get("effect") == "NoExecute"]
        if not taints:
            return None
        left = min(self._tolerated_for(pod, taint) for taint in taints)
        if left == float("inf"):
            return None
        if left > 0:
            return left
        await self._evict(pod)
        return None

    def _tolerated_for(self, pod: Object, taint: Mapping[str, Any]) -> float:
        """Seconds the pod may still stay under this taint."""
        matching = [one for one in pod["spec"].get("tolerations") or () if tolerates([one], taint)]
        if not matching:
            return 0.0
        bounds = [one["tolerationSeconds"] for one in matching if one.get("tolerationSeconds") is not None]
        if not bounds:
            return float("inf")
        added = taint.get("timeAdded")
        since = (self.clock.now() - pods.parse_time(added)).total_seconds() if added else 0.0
        return max(0.0, float(min(bounds)) - since)

    async def _evict(self, pod: Object) -> None:
        metadata = pod["metadata"]
        conditions = copy((pod.get("status") or {}).get("conditions") or [])
        why = "Taint manager: deleting due to NoExecute taint"
        pods.set_condition(conditions, "DisruptionTarget", "True", "DeletionByTaintManager", why, self.clock.now())
        self.recorder.event(pod, "Normal", "TaintManagerEviction", f"Marking for deletion Pod {Key.of(pod)}")
        try:
            patch = {"status": {"conditions": conditions}}
            await self.client.patch(PODS, metadata["name"], patch, metadata["namespace"], subresource="status")
            await self.client.delete(PODS, metadata["name"], metadata["namespace"], uid=metadata["uid"])
        except ApiError as error:
            if not (error.not_found or error.conflict):
                raise
