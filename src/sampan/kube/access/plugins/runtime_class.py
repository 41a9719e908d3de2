"""RuntimeClass: the class a pod names adds its overhead, node selector and tolerations to it."""

from __future__ import annotations

from sampan.kube.access.interface import AdmissionRequest
from sampan.kube.access.plugins.plugin import Plugin
from sampan.kube.access.refusal import refused
from sampan.kube.objects import copy, dig
from sampan.kube.resources import PODS, RUNTIME_CLASSES


class RuntimeClass(Plugin):
    """Applies a runtime class to new pods."""

    operations = ("CREATE",)
    resources = (PODS,)

    async def admit(self, request: AdmissionRequest) -> None:
        assert request.object is not None
        spec = request.object["spec"]
        name = spec.get("runtimeClassName")
        if not name:
            if spec.get("overhead"):
                raise refused(
                    request, "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"
                )
            return
        found = self.cache.get(RUNTIME_CLASSES, "", name)
        if found is None:
            raise refused(request, f'pod rejected: RuntimeClass "{name}" not found')
        overhead = dig(found, "overhead", "podFixed")
        if spec.get("overhead") and spec["overhead"] != (overhead or {}):
            raise refused(request, "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")
        if overhead:
            spec["overhead"] = copy(overhead)
        scheduling = found.get("scheduling") or {}
        for key, value in (scheduling.get("nodeSelector") or {}).items():
            chosen = spec.setdefault("nodeSelector", {})
            if chosen.setdefault(key, value) != value:
                raise refused(
                    request,
                    f"conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; pod.spec.nodeSelector[{key}] = {chosen[key]}",
                )
        for toleration in scheduling.get("tolerations") or ():
            if toleration not in (spec.get("tolerations") or ()):
                spec["tolerations"] = [*(spec.get("tolerations") or ()), copy(toleration)]
