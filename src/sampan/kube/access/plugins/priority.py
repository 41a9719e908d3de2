"""Priority: a pod's priority class becomes a number, and there is at most one default class."""

from __future__ import annotations

from sampan.kube.access.interface import AdmissionRequest
from sampan.kube.access.plugins.plugin import Plugin
from sampan.kube.access.refusal import refused
from sampan.kube.objects import Object
from sampan.kube.resources import PODS, PRIORITY_CLASSES

PREEMPT = "PreemptLowerPriority"


class Priority(Plugin):
    """Fills ``priority``, ``preemptionPolicy`` and ``priorityClassName`` of pods."""

    operations = ("CREATE", "UPDATE")
    resources = (PODS, PRIORITY_CLASSES)

    async def admit(self, request: AdmissionRequest) -> None:
        if request.type.resource.plural != "pods":
            return
        pod = request.object
        assert pod is not None
        spec = pod.setdefault("spec", {})
        if request.operation == "UPDATE":
            # Both are immutable; a client that writes a manifest back without them means no change.
            old = (request.old_object or {}).get("spec") or {}
            for field in ("priority", "preemptionPolicy"):
                if spec.get(field) is None and old.get(field) is not None:
                    spec[field] = old[field]
            return
        name = spec.get("priorityClassName")
        found: Object | None
        if name:
            found = self.cache.get(PRIORITY_CLASSES, "", name)
            if found is None:
                raise refused(request, f"no PriorityClass with name {name} was found")
        else:
            found = self._default()
        value, policy = 0, PREEMPT
        if found is not None:
            spec["priorityClassName"] = found["metadata"]["name"]
            value, policy = found.get("value") or 0, found.get("preemptionPolicy") or PREEMPT
        given = spec.get("priority")
        if given is not None and given != value:
            raise refused(
                request,
                f"the integer value of priority ({given}) must not be provided in pod spec; "
                f"priority admission controller computed {value} from the given PriorityClass name",
            )
        given = spec.get("preemptionPolicy")
        if given and given != policy:
            raise refused(
                request,
                f"the string value of PreemptionPolicy ({given}) must not be provided in pod spec; "
                f"priority admission controller computed {policy} from the given PriorityClass name",
            )
        spec["priority"], spec["preemptionPolicy"] = value, policy

    async def validate(self, request: AdmissionRequest) -> None:
        if request.type.resource.plural != "priorityclasses":
            return
        obj = request.object
        assert obj is not None
        default = self._default()
        if obj.get("globalDefault") and default is not None and default["metadata"]["name"] != request.name:
            name = default["metadata"]["name"]
            raise refused(request, f"PriorityClass {name} is already marked as default. Only one default can exist")

    def _default(self) -> Object | None:
        """The default class; of several (from before the check) the one with the lowest value."""
        found = [each for each in self.cache.objects(PRIORITY_CLASSES) if each.get("globalDefault")]
        return min(found, key=lambda each: each.get("value") or 0, default=None)
