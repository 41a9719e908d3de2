"""The default scheduler: gives every pending pod a node.

Informers keep a picture of the cluster (``scheduling.nodes.Cluster``) and a queue. One loop takes the most important pod
that is due, decides on the picture alone, *assumes* the pod on its node in the picture at once and binds it in the
background, so a decision never waits for a write. A pod that fits nowhere waits, with backoff, for a change of the cluster
that could help.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
from dataclasses import dataclass, field

from sampan.kernel.clock import Timer
from sampan.kube.client.resources import (
    NAMESPACES,
    NODES,
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    POD_DISRUPTION_BUDGETS,
    PODS,
    STORAGE_CLASSES,
)
from sampan.kube.control.controller import ControlContext
from sampan.kube.control.interface import Recorder
from sampan.kube.objects import Key, Object, copy
from sampan.kube.status import ApiError
from sampan.parts.workloads import pods
from sampan.parts.workloads.scheduling import filters, preemption, scores
from sampan.parts.workloads.scheduling.nodes import Cluster, NodeInfo, PodInfo

log = logging.getLogger(__name__)

NAME = "default-scheduler"
FIRST_BACKOFF = 1.0
"""Seconds before a pod that did not fit may be tried again; doubles up to `LAST_BACKOFF`."""
LAST_BACKOFF = 10.0
RETRY_ANYWAY = 300.0
"""Seconds after which a waiting pod is tried again even when nothing changed."""
BINDINGS = 64
"""Bindings under way at once."""
SELECTED_NODE = "volume.kubernetes.io/selected-node"


@dataclass(slots=True)
class _Waiting:
    """A pod that fitted nowhere."""

    key: Key
    attempts: int = 0
    not_before: float = 0.0
    timer: Timer | None = field(default=None)


class Scheduler:
    """Watches pods and nodes, decides and binds."""

    def __init__(self, context: ControlContext, recorder: Recorder) -> None:
        self._context = context
        self._client = context.client
        self._clock = context.clock
        self._recorder = recorder
        self._cluster = Cluster()
        self._stale = True
        """Something other than nodes and pods has changed since the picture took it in."""
        self._unplaced: dict[str, dict[str, PodInfo]] = {}
        self._bound_to: dict[str, str] = {}
        self._assumed: set[str] = set()
        self._heap: list[tuple[int, str, int, Key]] = []
        self._queued: set[Key] = set()
        self._order = itertools.count()
        self._waiting: dict[Key, _Waiting] = {}
        self._nominated: dict[Key, None] = {}
        """Unbound pods that preempted on a node; apart, because thousands may be waiting."""
        self._work = asyncio.Event()
        self._slots = asyncio.Semaphore(BINDINGS)

    async def start(self) -> None:
        """Fill the picture, then schedule in the context's tasks."""
        informers = self._context.informers
        watched = (NODES, PODS, NAMESPACES, PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, STORAGE_CLASSES)
        for resource in (*watched, POD_DISRUPTION_BUDGETS):
            await informers.informer(resource).wait_synced()
        informers.informer(NODES).on_change(self._node_changed)
        informers.informer(PODS).on_change(self._pod_changed)
        for resource in watched[2:]:
            informers.informer(resource).on_change(self._other_changed)
        self._context.tasks.keep("scheduler", self._run)

    # -- the picture

    def _node_changed(self, old: Object | None, new: Object | None) -> None:
        if new is None:
            assert old is not None
            gone = self._cluster.nodes.pop(old["metadata"]["name"], None)
            if gone is not None and gone.pods:
                self._unplaced[gone.name] = dict(gone.pods)
            return
        name = new["metadata"]["name"]
        info = self._cluster.nodes.get(name)
        if info is None:
            info = self._cluster.nodes[name] = NodeInfo(new)
            for placed in self._unplaced.pop(name, {}).values():
                info.add(placed)
        info.update(new)
        if old is None or _matters(old) != _matters(new):
            self._retry_waiting()

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        pod = new or old
        assert pod is not None
        key, uid = Key.of(pod), pod["metadata"]["uid"]
        node = pod["spec"].get("nodeName")
        if new is not None and not node and (new.get("status") or {}).get("nominatedNodeName"):
            self._nominated[key] = None
        else:
            self._nominated.pop(key, None)
        if new is None or pods.is_finished(pod):
            self._displace(uid)
            self._waiting.pop(key, None) if new is None else None
            self._retry_waiting()
        elif node:
            self._assumed.discard(uid)
            self._place(PodInfo.of(pod), node)
            self._waiting.pop(key, None)
            if old is not None and old["metadata"].get("labels") != pod["metadata"].get("labels"):
                self._retry_waiting()
        elif uid not in self._assumed and _is_mine(pod):
            if key in self._waiting and old is not None and old["spec"] == pod["spec"]:
                return  # only its status changed, most likely by our own report
            self._enqueue(pod)

    def _other_changed(self, old: Object | None, new: Object | None) -> None:
        self._stale = True
        self._retry_waiting()

    def _place(self, info: PodInfo, node: str) -> None:
        before = self._bound_to.get(info.uid)
        if before is not None and before != node:
            self._displace(info.uid)
        self._bound_to[info.uid] = node
        target = self._cluster.nodes.get(node)
        if target is not None:
            target.add(info)
        else:
            self._unplaced.setdefault(node, {})[info.uid] = info

    def _displace(self, uid: str) -> None:
        self._assumed.discard(uid)
        node = self._bound_to.pop(uid, None)
        if node is None:
            return
        if node in self._cluster.nodes:
            self._cluster.nodes[node].remove(uid)
        elif node in self._unplaced:
            self._unplaced[node].pop(uid, None)

    def _view(self) -> Cluster:
        if not self._stale:
            return self._cluster
        self._stale = False
        informers = self._context.informers
        self._cluster.namespace_labels = {
            one["metadata"]["name"]: one["metadata"].get("labels") or {}
            for one in informers.informer(NAMESPACES).objects()
        }
        self._cluster.claims = {Key.of(one): one for one in informers.informer(PERSISTENT_VOLUME_CLAIMS).objects()}
        self._cluster.volumes = _by_name(informers.informer(PERSISTENT_VOLUMES).objects())
        self._cluster.storage_classes = _by_name(informers.informer(STORAGE_CLASSES).objects())
        return self._cluster

    # -- the queue

    def _enqueue(self, pod: Object) -> None:
        key = Key.of(pod)
        if key in self._queued:
            return
        self._queued.add(key)
        priority = int(pod["spec"].get("priority") or 0)
        created = pod["metadata"].get("creationTimestamp") or ""
        heapq.heappush(self._heap, (-priority, created, next(self._order), key))
        self._work.set()

    def _retry_waiting(self) -> None:
        """The cluster changed: every waiting pod gets another try once its backoff is over."""
        now = self._clock.monotonic()
        for waiting in self._waiting.values():
            due = max(now, waiting.not_before)
            timer = waiting.timer
            if timer is None or timer.cancelled or timer.when > due:
                if timer is not None:
                    timer.cancel()
                waiting.timer = self._clock.call_at(due, self._retry, waiting.key)

    def _retry(self, key: Key) -> None:
        pod = self._context.informers.informer(PODS).get(key)
        if pod is not None and not pod["spec"].get("nodeName") and _is_mine(pod):
            self._enqueue(pod)
        else:
            self._waiting.pop(key, None)

    def _wait(self, key: Key, *, backoff: bool = True) -> None:
        waiting = self._waiting.setdefault(key, _Waiting(key))
        waiting.not_before = self._clock.monotonic()
        if backoff:
            waiting.not_before += min(FIRST_BACKOFF * 2.0 ** min(waiting.attempts, 10), LAST_BACKOFF)
            waiting.attempts += 1
        if waiting.timer is not None:
            waiting.timer.cancel()
        waiting.timer = self._clock.call_later(RETRY_ANYWAY, self._retry, key)

    async def _run(self) -> None:
        while True:
            while not self._heap:
                self._work.clear()
                await self._work.wait()
            key = heapq.heappop(self._heap)[3]
            self._queued.discard(key)
            pod = self._context.informers.informer(PODS).get(key)
            if (
                pod is None
                or pod["spec"].get("nodeName")
                or not _is_mine(pod)
                or pod["metadata"]["uid"] in self._assumed
            ):
                continue
            try:
                await self._schedule(key, pod)
            except ApiError as error:
                log.warning("scheduling %s: %s", key, error.message)
                self._wait(key)
            await self._clock.sleep(0)

    # -- one pod

    async def _schedule(self, key: Key, pod: Object) -> None:
        if pod["spec"].get("schedulingGates"):
            await self._report(pod, "SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates")
            return
        info, cluster = PodInfo.of(pod), self._view()
        nominated = self._nominated_against(info)
        reasons: dict[str, filters.Reason] = {}
        fitting = []
        check = filters.Check(info, cluster)
        for node in cluster:
            reason = check.reason(nominated.get(node.name, node))
            if reason is None:
                fitting.append(node)
            else:
                reasons[node.name] = reason
        if not fitting:
            await self._no_fit(key, info, cluster, reasons)
            return
        chosen = scores.best(info, fitting, cluster)
        unbound = self._unbound_claims(info)
        if unbound:
            self._wait(key, backoff=False)  # first, so that a claim bound in the meantime is not missed
            await self._select_node(unbound, chosen.name)
            return
        self._assumed.add(info.uid)
        self._place(info, chosen.name)
        await self._slots.acquire()
        self._context.tasks.start(f"bind/{key}", self._bind(key, info, chosen.name))

    def _nominated_against(self, info: PodInfo) -> dict[str, NodeInfo]:
        """Nodes as they will be once more important pods that preempted there have arrived."""
        views: dict[str, NodeInfo] = {}
        for key in self._nominated:
            if key not in self._waiting:
                continue
            other = self._context.informers.informer(PODS).get(key)
            node = ((other or {}).get("status") or {}).get("nominatedNodeName")
            if other is None or not node or node not in self._cluster.nodes or other["metadata"]["uid"] == info.uid:
                continue
            claimant = PodInfo.of(other)
            if claimant.priority >= info.priority:
                view = views.get(node) or self._cluster.nodes[node].without(())
                view.add(claimant)
                views[node] = view
        return views

    async def _bind(self, key: Key, info: PodInfo, node: str) -> None:
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": key.name, "namespace": key.namespace, "uid": info.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        try:
            await self._client.create(PODS, binding, key.namespace, name=key.name, subresource="binding")
        except ApiError as error:
            self._displace(info.uid)
            if not error.not_found:
                log.warning("binding %s to %s: %s", key, node, error.message)
                self._wait(key)
                self._retry_waiting()
            return
        finally:
            self._slots.release()
        self._waiting.pop(key, None)
        message = f"Successfully assigned {key} to {node}"
        self._recorder.event(info.pod, "Normal", "Scheduled", message, action="Binding")

    async def _no_fit(self, key: Key, info: PodInfo, cluster: Cluster, reasons: dict[str, filters.Reason]) -> None:
        message = filters.explain(reasons)
        self._wait(key)
        budgets = self._context.informers.informer(POD_DISRUPTION_BUDGETS).objects()
        found = preemption.find(info, cluster, reasons, budgets)
        if found is not None:
            await self._preempt(info, found)
        elif reasons:
            unhelpful = f"{len(reasons)} Preemption is not helpful for scheduling"
            if any(reason.resolvable for reason in reasons.values()):
                unhelpful = f"{len(reasons)} No preemption victims found for incoming pod"
            message += f" preemption: 0/{len(reasons)} nodes are available: {unhelpful}."
        self._recorder.event(info.pod, "Warning", "FailedScheduling", message, action="Scheduling")
        await self._report(info.pod, "Unschedulable", message, nominated=found.node if found is not None else None)

    async def _preempt(self, info: PodInfo, found: preemption.Preemption) -> None:
        for victim in found.victims:
            metadata = victim.pod["metadata"]
            if metadata.get("deletionTimestamp"):
                continue
            disrupted = copy(victim.pod)
            conditions = disrupted.setdefault("status", {}).setdefault("conditions", [])
            why = f"{NAME}: preempting to accommodate a higher priority pod"
            pods.set_condition(conditions, "DisruptionTarget", "True", "PreemptionByScheduler", why, self._clock.now())
            patch = {"status": {"conditions": conditions}}
            try:
                await self._client.patch(PODS, metadata["name"], patch, metadata["namespace"], subresource="status")
                await self._client.delete(PODS, metadata["name"], metadata["namespace"], uid=metadata["uid"])
            except ApiError as error:
                if not (error.not_found or error.conflict):
                    raise
            message = f"Preempted by pod {info.uid} on node {found.node}"
            self._recorder.event(victim.pod, "Normal", "Preempted", message, action="Preempting")

    def _unbound_claims(self, info: PodInfo) -> list[Object]:
        """The pod's claims that wait for a node to be chosen."""
        found = []
        for volume in info.pod["spec"].get("volumes") or ():
            if "persistentVolumeClaim" in volume:
                name = volume["persistentVolumeClaim"]["claimName"]
            elif "ephemeral" in volume:
                name = f"{info.pod['metadata']['name']}-{volume['name']}"
            else:
                continue
            claim = self._cluster.claims.get((info.namespace, name))
            if claim is not None and not claim["spec"].get("volumeName"):
                found.append(claim)
        return found

    async def _select_node(self, claims: list[Object], node: str) -> None:
        """Tell the provisioner of late-binding claims which node was chosen."""
        for claim in claims:
            metadata = claim["metadata"]
            if (metadata.get("annotations") or {}).get(SELECTED_NODE) is None:
                patch = {"metadata": {"annotations": {SELECTED_NODE: node}}}
                await self._client.patch(PERSISTENT_VOLUME_CLAIMS, metadata["name"], patch, metadata["namespace"])

    async def _report(self, pod: Object, reason: str, message: str, *, nominated: str | None = None) -> None:
        """Set PodScheduled=False; a pod that vanished meanwhile needs none."""
        status = copy(pod.get("status") or {})
        conditions = status.setdefault("conditions", [])
        pods.set_condition(conditions, "PodScheduled", "False", reason, message, self._clock.now())
        patch: Object = {"conditions": conditions}
        if nominated is not None:
            patch["nominatedNodeName"] = nominated
        if status == (pod.get("status") or {}) and nominated is None:
            return
        metadata = pod["metadata"]
        try:
            await self._client.patch(
                PODS, metadata["name"], {"status": patch}, metadata["namespace"], subresource="status"
            )
        except ApiError as error:
            if not (error.not_found or error.conflict):
                raise


def _is_mine(pod: Object) -> bool:
    return (
        not pod["spec"].get("nodeName")
        and pod["spec"].get("schedulerName", NAME) == NAME
        and not pods.is_terminating(pod)
        and not pods.is_finished(pod)
    )


def _matters(node: Object) -> tuple[object, ...]:
    """What of a node decides scheduling (its heartbeats do not)."""
    spec, status = node.get("spec") or {}, node.get("status") or {}
    return node["metadata"].get("labels"), spec.get("taints"), spec.get("unschedulable"), status.get("allocatable")


def _by_name(objects: list[Object]) -> dict[str, Object]:
    return {one["metadata"]["name"]: one for one in objects}
