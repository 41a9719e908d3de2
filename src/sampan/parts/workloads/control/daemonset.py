"""DaemonSet: one pod on every node that the template's constraints allow.

Pods are pinned by node affinity on the node's name and then go through the scheduler, as upstream's do. A rolling update
either replaces up to ``maxUnavailable`` pods at a time or, with ``maxSurge``, starts the new one first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from sampan.kube.client.resources import CONTROLLER_REVISIONS, DAEMON_SETS, NODES, PODS
from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.indexes import BySelector
from sampan.kube.control.interface import For, Owns, Source, Watches
from sampan.kube.objects import Key, Object, controller_of, copy, dig
from sampan.kube.status import ApiError
from sampan.kube.types.selectors import matches
from sampan.parts.workloads import pods, revisions
from sampan.parts.workloads.claims import claim
from sampan.parts.workloads.overlay import Overlay
from sampan.parts.workloads.rollout import share
from sampan.parts.workloads.scheduling import affinity
from sampan.parts.workloads.scheduling.nodes import NodeInfo

TOLERATED = (
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
)
FIRST_BACKOFF = 1.0
LAST_BACKOFF = 900.0
"""Seconds before a failed daemon pod is replaced; doubles with each failure on the same node."""
_SELECTING = BySelector(lambda one: one["spec"].get("selector"))
HOST_NETWORK_TOLERATED = ("node.kubernetes.io/network-unavailable", "NoSchedule")


class DaemonSetController(Controller):
    """DaemonSets of apps/v1."""

    name = "daemonset-controller"
    workers = 2

    def __init__(self, context: ControlContext) -> None:
        super().__init__(context)
        self._overlay = Overlay(self.informer(PODS), self.clock)
        self._failures: dict[tuple[str, str], tuple[int, float, str]] = {}
        """By set and node: failures in a row, when the last may be replaced, and which pod that was."""

    def sources(self) -> list[Source]:
        return [
            For(DAEMON_SETS),
            Owns(PODS, "DaemonSet"),
            Owns(CONTROLLER_REVISIONS, "DaemonSet"),
            Watches(NODES, self._all),
            Watches(PODS, self._orphan_keys),
        ]

    def _all(self, node: Object) -> list[Key]:
        return [Key.of(one) for one in self.informer(DAEMON_SETS).objects()]

    def _orphan_keys(self, pod: Object) -> list[Key]:
        labels = pod["metadata"].get("labels")
        if controller_of(pod) is not None or not labels:
            return []
        candidates = _SELECTING.candidates(self.informer(DAEMON_SETS), pod["metadata"]["namespace"], labels)
        return [Key.of(one) for one in candidates if matches(one["spec"].get("selector"), labels)]

    async def reconcile(self, key: Key) -> float | None:
        daemon_set = self.informer(DAEMON_SETS).get(key)
        if daemon_set is None:
            live = {one["metadata"]["uid"] for one in self.informer(DAEMON_SETS).objects()}
            self._failures = {key: value for key, value in self._failures.items() if key[0] in live}
            return None
        held: float | None = None
        uid = daemon_set["metadata"]["uid"]
        owned = self._overlay.correct(uid, self.informer(PODS).indexed("owner", uid))
        claimed = await claim(self, PODS, daemon_set, daemon_set["spec"]["selector"], owned)
        history = await revisions.sync(self, daemon_set)
        by_node: dict[str, list[Object]] = {}
        for pod in claimed:
            by_node.setdefault(node_of(pod), []).append(pod)
        eligible = {node["metadata"]["name"]: should_run(daemon_set, node) for node in self.informer(NODES).objects()}
        if not daemon_set["metadata"].get("deletionTimestamp"):
            held = await self._manage(daemon_set, eligible, by_node, history.update)
        again = await self._report(daemon_set, eligible, by_node, history)
        return min((wait for wait in (held, again) if wait is not None), default=None)

    async def _manage(
        self,
        daemon_set: Object,
        eligible: Mapping[str, tuple[bool, bool]],
        by_node: dict[str, list[Object]],
        revision: str,
    ) -> float | None:
        """Create and delete what is due; returns seconds until a held-back pod is."""
        again: float | None = None
        create: list[str] = []
        delete: list[Object] = []
        for node, (run, stay) in eligible.items():
            here = by_node.get(node, [])
            ended = [pod for pod in here if pods.is_finished(pod) and not pods.is_terminating(pod)]
            held = self._held_back(daemon_set, node, ended)
            if held > 0:
                again = held if again is None else min(again, held)
                continue
            for pod in ended:
                phase = pods.phase(pod)
                message = f"Found {phase.lower()} daemon pod {Key.of(pod)} on node {node}, will try to {'kill' if phase == 'Failed' else 'delete'} it"
                self.recorder.event(
                    daemon_set, "Warning" if phase == "Failed" else "Normal", f"{phase}DaemonPod", message
                )
            delete += ended
            alive = [pod for pod in here if pod not in ended]
            if run and not alive:
                create.append(node)
            elif not stay:
                delete += [pod for pod in alive if not pods.is_terminating(pod)]
            elif len([pod for pod in alive if pods.is_active(pod)]) > 1 and not self._surging(
                daemon_set, alive, revision
            ):
                active = sorted((pod for pod in alive if pods.is_active(pod)), key=_keep_order)
                delete += active[1:]
        delete += [
            pod
            for node, here in by_node.items()
            if node not in eligible
            for pod in here
            if not pods.is_terminating(pod)
        ]
        if dig(daemon_set, "spec", "updateStrategy", "type") != "OnDelete":
            surge, replace = self._rolling(daemon_set, eligible, by_node, revision)
            create += [node for node in surge if node not in create]
            delete += [pod for pod in replace if pod not in delete]
        results = await asyncio.gather(
            *(self._create(daemon_set, node, revision) for node in create),
            *(self._delete(daemon_set, pod) for pod in delete),
        )
        failure = next((result for result in results if result is not None), None)
        if failure is not None:
            raise failure
        return again

    def _held_back(self, daemon_set: Object, node: str, ended: list[Object]) -> float:
        """Seconds for which a pod that ended stays, so that one that always fails at once is not restarted in a frenzy."""
        key, now = (daemon_set["metadata"]["uid"], node), self.clock.monotonic()
        if not any(pods.phase(pod) == "Failed" for pod in ended):
            return 0.0
        uid = ended[0]["metadata"]["uid"]
        count, due, known = self._failures.get(key, (0, 0.0, ""))
        if uid != known:
            count = 1 if now - due > 2 * LAST_BACKOFF else count + 1
            due = now + min(FIRST_BACKOFF * 2.0 ** (count - 1), LAST_BACKOFF) if count > 1 else now
            self._failures[key] = (count, due, uid)
        return due - now

    def _surging(self, daemon_set: Object, alive: list[Object], revision: str) -> bool:
        """Two pods on a node are right while a surge update waits for the new one."""
        surge = share(dig(daemon_set, "spec", "updateStrategy", "rollingUpdate", "maxSurge", default=0), 1, up=True)
        return bool(surge) and len({revisions.of(pod) == revision for pod in alive}) == 2

    def _rolling(
        self,
        daemon_set: Object,
        eligible: Mapping[str, tuple[bool, bool]],
        by_node: dict[str, list[Object]],
        revision: str,
    ) -> tuple[list[str], list[Object]]:
        """(nodes that get a surge pod, old pods to delete) in this step of a rolling update."""
        rolling = dig(daemon_set, "spec", "updateStrategy", "rollingUpdate", default={})
        desired = sum(run for run, _ in eligible.values())
        max_surge = share(rolling.get("maxSurge", 0), desired, up=True)
        max_unavailable = share(rolling.get("maxUnavailable", 1), desired, up=True)
        if not max_surge and not max_unavailable:
            max_unavailable = 1
        now, min_ready = self.clock.now(), daemon_set["spec"].get("minReadySeconds") or 0
        unavailable, surging = 0, 0
        candidates: list[tuple[str, Object, bool]] = []
        ready_to_go: list[Object] = []
        for node, (run, _) in eligible.items():
            if not run:
                continue
            active = [pod for pod in by_node.get(node, []) if pods.is_active(pod)]
            old = next((pod for pod in active if revisions.of(pod) != revision), None)
            new = next((pod for pod in active if revisions.of(pod) == revision), None)
            old_available = old is not None and pods.available_in(old, min_ready, now) == 0.0
            new_available = new is not None and pods.available_in(new, min_ready, now) == 0.0
            if not old_available and not new_available:
                unavailable += 1
            if old is None:
                continue
            if new is not None:
                surging += 1
                if new_available or not old_available:
                    ready_to_go.append(old)
            else:
                candidates.append((node, old, old_available))
        if max_surge:
            room = max_surge - surging
            nodes = [node for node, _, is_available in sorted(candidates, key=lambda one: one[2])][: max(0, room)]
            return nodes, ready_to_go
        replace = [old for _, old, is_available in candidates if not is_available]
        room = max_unavailable - unavailable
        replace += [old for _, old, is_available in candidates if is_available][: max(0, room)]
        return [], replace

    async def _create(self, daemon_set: Object, node: str, revision: str) -> ApiError | None:
        pod = pods.from_template(daemon_set["spec"]["template"], daemon_set)
        pod["metadata"].setdefault("labels", {})[revisions.HASH_LABEL] = revision
        spec = pod["spec"]
        _pin(spec, node)
        tolerations = spec.setdefault("tolerations", [])
        wanted = [*TOLERATED, *([HOST_NETWORK_TOLERATED] if spec.get("hostNetwork") else [])]
        for taint, effect in wanted:
            toleration = {"key": taint, "operator": "Exists", "effect": effect}
            if toleration not in tolerations:
                tolerations.append(toleration)
        try:
            created = await self.client.create(PODS, pod, daemon_set["metadata"]["namespace"])
        except ApiError as error:
            self.recorder.event(daemon_set, "Warning", "FailedCreate", f"Error creating: {error.message}")
            return error
        self._overlay.created(daemon_set["metadata"]["uid"], created)
        self.recorder.event(daemon_set, "Normal", "SuccessfulCreate", f"Created pod: {created['metadata']['name']}")
        return None

    async def _delete(self, daemon_set: Object, pod: Object) -> ApiError | None:
        metadata = pod["metadata"]
        try:
            await self.client.delete(PODS, metadata["name"], metadata["namespace"], uid=metadata["uid"])
        except ApiError as error:
            if not (error.not_found or error.conflict):
                return error
        self._overlay.deleted(pod)
        self.recorder.event(daemon_set, "Normal", "SuccessfulDelete", f"Deleted pod: {metadata['name']}")
        return None

    async def _report(
        self,
        daemon_set: Object,
        eligible: Mapping[str, tuple[bool, bool]],
        by_node: dict[str, list[Object]],
        history: revisions.History,
    ) -> float | None:
        now, min_ready = self.clock.now(), daemon_set["spec"].get("minReadySeconds") or 0
        counters = dict.fromkeys(
            ("currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady"), 0
        )
        optional = dict.fromkeys(("updatedNumberScheduled", "numberAvailable"), 0)
        waits = []
        for node, (run, _) in eligible.items():
            here = [pod for pod in by_node.get(node, []) if pods.is_active(pod)]
            if not run:
                counters["numberMisscheduled"] += bool(here)
                continue
            counters["desiredNumberScheduled"] += 1
            if not here:
                continue
            counters["currentNumberScheduled"] += 1
            newest = min(here, key=lambda pod: (revisions.of(pod) != history.update, _keep_order(pod)))
            ready_waits = [wait for pod in here if (wait := pods.available_in(pod, min_ready, now)) is not None]
            counters["numberReady"] += bool(ready_waits)
            optional["numberAvailable"] += any(wait == 0.0 for wait in ready_waits)
            optional["updatedNumberScheduled"] += revisions.of(newest) == history.update
            waits += [wait for wait in ready_waits if wait]
        unavailable = counters["desiredNumberScheduled"] - optional["numberAvailable"]
        status: Object = {**counters, **{name: count for name, count in optional.items() if count}}
        if unavailable:
            status["numberUnavailable"] = unavailable
        status["observedGeneration"] = daemon_set["metadata"].get("generation", 0)
        if history.collisions:
            status["collisionCount"] = history.collisions
        if dig(daemon_set, "status", "conditions"):
            status["conditions"] = daemon_set["status"]["conditions"]
        if status != (daemon_set.get("status") or {}):
            await self.client.update(DAEMON_SETS, {**daemon_set, "status": status}, subresource="status")
        return min(waits) if waits else None


def node_of(pod: Object) -> str:
    """The node a daemon pod is on or pinned to."""
    if pod["spec"].get("nodeName"):
        name: str = pod["spec"]["nodeName"]
        return name
    terms = dig(
        pod, "spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"
    )
    for term in terms or ():
        for one in term.get("matchFields") or ():
            if one["key"] == "metadata.name" and one["operator"] == "In" and len(one["values"]) == 1:
                pinned: str = one["values"][0]
                return pinned
    return ""


def should_run(daemon_set: Object, node: Object) -> tuple[bool, bool]:
    """(a pod should be started on the node, a running one may stay)."""
    pod: Object = {"metadata": {}, "spec": copy(daemon_set["spec"]["template"]["spec"])}
    pinned = pod["spec"].get("nodeName")
    if pinned and pinned != node["metadata"]["name"]:
        return False, False
    tolerations = pod["spec"].setdefault("tolerations", [])
    tolerations += [{"key": key, "operator": "Exists", "effect": effect} for key, effect in TOLERATED]
    if pod["spec"].get("hostNetwork"):
        key, effect = HOST_NETWORK_TOLERATED
        tolerations.append({"key": key, "operator": "Exists", "effect": effect})
    info = NodeInfo(node)
    if not affinity.wants_node(pod, info):
        return False, False
    if affinity.untolerated(pod, info, ("NoExecute",)) is not None:
        return False, False
    return affinity.untolerated(pod, info, ("NoSchedule",)) is None, True


def _pin(spec: Object, node: str) -> None:
    """Restrict required node affinity to one node by name, keeping what else the template requires."""
    field = {"key": "metadata.name", "operator": "In", "values": [node]}
    node_affinity = spec.setdefault("affinity", {}).setdefault("nodeAffinity", {})
    required: Any = node_affinity.setdefault("requiredDuringSchedulingIgnoredDuringExecution", {})
    terms = required.get("nodeSelectorTerms") or [{}]
    # upstream replaces the terms outright; the node was already checked against the template's own
    required["nodeSelectorTerms"] = [{"matchFields": [field]} for _ in terms[:1]]


def _keep_order(pod: Object) -> tuple[bool, bool, str, str]:
    """Which of two pods on one node stays: the scheduled, the ready, the older."""
    metadata = pod["metadata"]
    return (
        not pod["spec"].get("nodeName"),
        not pods.is_ready(pod),
        metadata.get("creationTimestamp") or "",
        metadata["name"],
    )
