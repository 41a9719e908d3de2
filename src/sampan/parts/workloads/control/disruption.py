"""PodDisruptionBudget: how many pods may be evicted right now.

The eviction subresource decides by ``status.disruptionsAllowed``; this controller keeps that number true.
"""

from __future__ import annotations

import math
from datetime import timedelta

from sampan.kube.client import resources
from sampan.kube.client.resources import POD_DISRUPTION_BUDGETS, PODS
from sampan.kube.control.controller import Controller
from sampan.kube.control.interface import For, Source, Watches
from sampan.kube.objects import Key, Object, Resource, controller_of, copy
from sampan.kube.status import ApiError
from sampan.kube.types.selectors import matches
from sampan.parts.workloads import pods

EVICTION_GRACE = timedelta(minutes=2)
"""An evicted pod that is still not terminating after this long counts as present again."""

_SCALES: dict[str, Resource] = {
    "ReplicaSet": resources.REPLICA_SETS,
    "Deployment": resources.DEPLOYMENTS,
    "StatefulSet": resources.STATEFUL_SETS,
    "ReplicationController": resources.REPLICATION_CONTROLLERS,
}


class DisruptionController(Controller):
    """PodDisruptionBudgets of policy/v1."""

    name = "disruption-controller"

    def sources(self) -> list[Source]:
        return [For(POD_DISRUPTION_BUDGETS), Watches(PODS, self._budgets_of)]

    def _budgets_of(self, pod: Object) -> list[Key]:
        labels = pod["metadata"].get("labels") or {}
        budgets = self.informer(POD_DISRUPTION_BUDGETS).objects(pod["metadata"]["namespace"])
        return [Key.of(one) for one in budgets if matches(one["spec"].get("selector"), labels)]

    async def reconcile(self, key: Key) -> float | None:
        budget = self.informer(POD_DISRUPTION_BUDGETS).get(key)
        if budget is None:
            return None
        now = self.clock.now()
        covered = [
            pod
            for pod in self.informer(PODS).select(key.namespace, budget["spec"].get("selector"))
            if not pods.is_finished(pod)
        ]
        status: Object = copy(budget.get("status") or {})
        try:
            expected, desired = await self._expectation(budget, covered)
        except ApiError as error:
            message = f"Failed to calculate the number of expected pods: {error.message}"
            self.recorder.event(budget, "Warning", "CalculateExpectedPodCountFailed", message)
            conditions = status.setdefault("conditions", [])
            pods.set_condition(conditions, "DisruptionAllowed", "False", "SyncFailed", error.message, now)
            status["disruptionsAllowed"] = 0
            await self._write(budget, status)
            return None
        disrupted, again = self._disrupted(status, covered)
        healthy = sum(
            pods.is_ready(pod) and not pods.is_terminating(pod) and pod["metadata"]["name"] not in disrupted
            for pod in covered
        )
        allowed = max(0, healthy - desired) if expected > 0 else 0
        status.pop("disruptedPods", None)
        if disrupted:
            status["disruptedPods"] = disrupted
        status |= {
            "observedGeneration": budget["metadata"].get("generation", 0),
            "currentHealthy": healthy,
            "desiredHealthy": desired,
            "expectedPods": expected,
            "disruptionsAllowed": allowed,
        }
        conditions = status.setdefault("conditions", [])
        verdict = ("True", "SufficientPods") if allowed > 0 else ("False", "InsufficientPods")
        pods.set_condition(conditions, "DisruptionAllowed", *verdict, "", now)
        for condition in conditions:
            condition["observedGeneration"] = status["observedGeneration"]
        await self._write(budget, status)
        return again

    async def _expectation(self, budget: Object, covered: list[Object]) -> tuple[int, int]:
        """(expected pods, pods that must stay healthy)."""
        spec = budget["spec"]
        if spec.get("maxUnavailable") is not None:
            expected = await self._scale_of(covered)
            value = spec["maxUnavailable"]
            unavailable = value if isinstance(value, int) else math.ceil(int(value.rstrip("%")) * expected / 100)
            return expected, max(0, expected - unavailable)
        value = spec.get("minAvailable", 1)
        if isinstance(value, int):
            return len(covered), value
        expected = await self._scale_of(covered)
        return expected, math.ceil(int(value.rstrip("%")) * expected / 100)

    async def _scale_of(self, covered: list[Object]) -> int:
        """How many pods the controllers of the covered pods want in all."""
        scales: dict[str, int] = {}
        for pod in covered:
            owner = controller_of(pod)
            if owner is None or owner["uid"] in scales:
                continue
            namespace = pod["metadata"]["namespace"]
            kind, name, uid = owner["kind"], owner["name"], owner["uid"]
            if kind == "ReplicaSet":
                replica_set = self.informer(resources.REPLICA_SETS).get(Key(namespace, name))
                above = controller_of(replica_set) if replica_set is not None else None
                if above is not None and above["kind"] == "Deployment":
                    kind, name, uid = "Deployment", above["name"], above["uid"]
            resource = _SCALES.get(kind)
            if resource is None:
                api_version = owner["apiVersion"]
                raise ApiError(422, "Invalid", f"{api_version}, Kind={kind} does not implement the scale subresource")
            target = self.informer(resource).get(Key(namespace, name))
            if target is not None:
                scales[uid] = int(target["spec"].get("replicas", 1))
        return sum(scales.values())

    def _disrupted(self, status: Object, covered: list[Object]) -> tuple[dict[str, str], float | None]:
        """Evictions the API server has granted whose pods are not terminating yet, and when to look again."""
        names = {pod["metadata"]["name"]: pod for pod in covered}
        kept, again = {}, None
        for name, stamp in (status.get("disruptedPods") or {}).items():
            pod = names.get(name)
            if pod is None or pods.is_terminating(pod):
                continue
            left = (pods.parse_time(stamp) + EVICTION_GRACE - self.clock.now()).total_seconds()
            if left > 0:
                kept[name] = stamp
                again = left if again is None else min(again, left)
            else:
                self.recorder.event(pod, "Warning", "NotDeleted", "Pod was expected by PDB to be deleted but it wasn't")
        return kept, again

    async def _write(self, budget: Object, status: Object) -> None:
        if status != (budget.get("status") or {}):
            await self.client.update(POD_DISRUPTION_BUDGETS, {**budget, "status": status}, subresource="status")
