"""DefaultTolerationSeconds: pods stay on a node that is lost for five minutes unless they say otherwise."""

from __future__ import annotations

from typing import Any

from sampan.kube.access.interface import AdmissionRequest
from sampan.kube.access.plugins.plugin import Plugin
from sampan.kube.resources import PODS

SECONDS = 300
TAINTS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


class DefaultTolerations(Plugin):
    """Adds the two NoExecute tolerations that a pod lacks."""

    operations = ("CREATE", "UPDATE")
    resources = (PODS,)

    async def admit(self, request: AdmissionRequest) -> None:
        assert request.object is not None
        spec = request.object.setdefault("spec", {})
        tolerations: list[Any] = spec.get("tolerations") or []
        for key in TAINTS:
            if not any(
                toleration.get("key", "") in (key, "") and toleration.get("effect", "") in ("NoExecute", "")
                for toleration in tolerations
            ):
                made = {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS}
                tolerations = [*tolerations, made]
        if tolerations:
            spec["tolerations"] = tolerations
