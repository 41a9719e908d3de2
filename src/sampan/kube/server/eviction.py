"""Eviction: a delete of a pod that its disruption budgets have a say in."""

from __future__ import annotations

from sampan.kernel.clock import Clock
from sampan.kube.access.interface import ObjectCache
from sampan.kube.objects import Object, copy, dig
from sampan.kube.resources import POD_DISRUPTION_BUDGETS
from sampan.kube.server.call import Answer, Call
from sampan.kube.server.deletes import Deleter
from sampan.kube.server.options import delete_options
from sampan.kube.server.writes import Writer, timestamp
from sampan.kube.status import ApiError, internal, not_found, too_many_requests
from sampan.kube.types.resource import TypeRegistry
from sampan.kube.types.selectors import matches

_REFUSED = "Cannot evict pod as it would violate the pod's disruption budget."
_FINISHED = ("Succeeded", "Failed")


class Evictor:
    """Answers ``pods/<name>/eviction``."""

    def __init__(self, writer: Writer, deleter: Deleter, types: TypeRegistry, cache: ObjectCache, clock: Clock) -> None:
        self._writer = writer
        self._deleter = deleter
        self._types = types
        self._cache = cache
        self._clock = clock

    async def evict(self, call: Call, eviction: Object) -> Answer:
        """Delete the pod if its budget allows one more disruption, and take that from the budget.

        Raises:
            ApiError: 404; 429, the budget does not allow it now; 500, several budgets select the pod.
        """
        pod = self._cache.get(call.type.resource, call.namespace, call.name)
        if pod is None:
            raise not_found(call.type.resource, call.name)
        options = delete_options({}, eviction.get("deleteOptions"))
        if call.options.dry_run:
            options.dry_run = True
        if not self._is_free(pod):
            await self._take(call, pod, dry_run=options.dry_run)
        options.uid = options.uid or pod["metadata"]["uid"]
        await self._deleter.delete(
            Call(call.user, call.type, call.namespace, call.name, "", call.options, call.warnings), options
        )
        return Answer(
            {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}, None, 201
        )

    @staticmethod
    def _is_free(pod: Object) -> bool:
        """A pod that does not count: finished, not started, or already going."""
        phase = dig(pod, "status", "phase")
        return phase in _FINISHED or phase == "Pending" or bool(pod["metadata"].get("deletionTimestamp"))

    async def _take(self, call: Call, pod: Object, *, dry_run: bool) -> None:
        budgets = [
            budget
            for budget in self._cache.objects(POD_DISRUPTION_BUDGETS, call.namespace)
            if matches(dig(budget, "spec", "selector"), pod["metadata"].get("labels"))
        ]
        if not budgets:
            return
        if len(budgets) > 1:
            raise internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
            )
        ready = any(
            condition.get("type") == "Ready" and condition.get("status") == "True"
            for condition in dig(pod, "status", "conditions", default=())
        )
        policy = dig(budgets[0], "spec", "unhealthyPodEvictionPolicy", default="IfHealthyBudget")
        status = budgets[0].get("status") or {}
        if not ready:
            healthy = (status.get("currentHealthy") or 0) >= (status.get("desiredHealthy") or 0)
            if policy == "AlwaysAllow" or (healthy and (status.get("desiredHealthy") or 0) > 0):
                return
        type = self._types.find(POD_DISRUPTION_BUDGETS)
        assert type is not None
        budget_call = Call(call.user, type, call.namespace, budgets[0]["metadata"]["name"], "status")
        budget_call.options.dry_run = dry_run
        now = timestamp(self._clock.now())

        async def change(budget: Object) -> Object:
            _check(budget)
            taken: Object = copy(budget)
            taken["metadata"].pop("resourceVersion", None)
            taken["status"]["disruptionsAllowed"] -= 1
            taken["status"].setdefault("disruptedPods", {})[call.name] = now
            return taken

        await self._writer.change(budget_call, change)


def _check(budget: Object) -> None:
    name = budget["metadata"]["name"]
    status = budget.get("status") or {}
    if (status.get("observedGeneration") or 0) < (budget["metadata"].get("generation") or 0):
        raise _refusal(f"The disruption budget {name} is still being processed by the server.", 10)
    if (status.get("disruptionsAllowed") or 0) > 0:
        return
    raise _refusal(
        f"The disruption budget {name} needs {status.get('desiredHealthy') or 0} healthy pods "
        f"and has {status.get('currentHealthy') or 0} currently"
    )


def _refusal(cause: str, retry_after: int = 0) -> ApiError:
    details = {"causes": [{"reason": "DisruptionBudget", "message": cause}]}
    error = too_many_requests(_REFUSED, retry_after, details)
    if not retry_after:
        error.retry_after = None
        error.details.pop("retryAfterSeconds", None)
    return error
