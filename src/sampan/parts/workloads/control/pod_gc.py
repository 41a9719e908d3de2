"""Pod garbage collection: pods nobody else will end.

Pods bound to a node that is gone, terminating pods that were never scheduled, and finished pods beyond the threshold.
"""

from __future__ import annotations

from sampan.kube.client.resources import NODES, PODS
from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.interface import For, Source, Watches
from sampan.kube.objects import Key, Object, copy
from sampan.kube.status import ApiError
from sampan.parts.workloads import pods
from sampan.parts.workloads.control.node_lifecycle import ON_NODE, on_node

FINISHED_LIMIT = 12_500
"""Finished pods kept in all, as upstream's ``--terminated-pod-gc-threshold``."""
QUARANTINE = 40.0
"""Seconds a node must have been missing before its pods are taken for lost."""


_LEFT = "left"
_UNSCHEDULED, _FINISHED = "unscheduled", "finished"


def _left(pod: Object) -> tuple[str, ...]:
    """What an index knows a pod as that nobody else may end: among thousands of others there are few."""
    if pods.is_terminating(pod) and not pod["spec"].get("nodeName"):
        return (_UNSCHEDULED,)
    return (_FINISHED,) if pods.is_finished(pod) else ()


class PodGarbageController(Controller):
    """Reconciles nodes (what became of their pods) under one key each, and unscheduled terminating pods."""

    name = "pod-garbage-collector"

    def __init__(self, context: ControlContext) -> None:
        super().__init__(context)
        self._missing: dict[str, float] = {}
        self.informer(PODS).add_index(ON_NODE, on_node)
        self.informer(PODS).add_index(_LEFT, _left)

    def sources(self) -> list[Source]:
        return [For(NODES), Watches(PODS, self._node_keys)]

    def _node_keys(self, pod: Object) -> list[Key]:
        node = pod["spec"].get("nodeName")
        keys = [Key("", node)] if node else []
        return [*keys, Key("", "")] if _left(pod) else keys

    async def reconcile(self, key: Key) -> float | None:
        if not key.name:
            await self._unscheduled()
            return None
        if self.informer(NODES).get(key) is not None:
            self._missing.pop(key.name, None)
            return None
        stranded = self.informer(PODS).indexed(ON_NODE, key.name)
        if not stranded:
            self._missing.pop(key.name, None)
            return None
        since = self._missing.setdefault(key.name, self.clock.monotonic())
        left = QUARANTINE - (self.clock.monotonic() - since)
        if left > 0:
            return left
        for pod in stranded:
            await self._end(pod, "DeletionByPodGC", "PodGC: node no longer exists")
        return None

    async def _unscheduled(self) -> None:
        for pod in self.informer(PODS).indexed(_LEFT, _UNSCHEDULED):
            await self._end(pod, None, "")
        finished = self.informer(PODS).indexed(_LEFT, _FINISHED)
        if len(finished) > FINISHED_LIMIT:
            finished.sort(key=lambda pod: pod["metadata"]["creationTimestamp"])
            for pod in finished[: len(finished) - FINISHED_LIMIT]:
                await self._end(pod, None, "")

    async def _end(self, pod: Object, reason: str | None, message: str) -> None:
        metadata = pod["metadata"]
        try:
            if reason is not None and not pods.is_finished(pod):
                status = copy(pod.get("status") or {})
                status["phase"] = "Failed"
                conditions = status.setdefault("conditions", [])
                pods.set_condition(conditions, "DisruptionTarget", "True", reason, message, self.clock.now())
                patch = {"status": {"phase": "Failed", "conditions": conditions}}
                await self.client.patch(PODS, metadata["name"], patch, metadata["namespace"], subresource="status")
            await self.client.delete(PODS, metadata["name"], metadata["namespace"], grace_period=0, uid=metadata["uid"])
        except ApiError as error:
            if not (error.not_found or error.conflict):
                raise
