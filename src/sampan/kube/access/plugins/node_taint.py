"""TaintNodesByCondition: a new node takes no pods until it has said that it is ready."""

from __future__ import annotations

from sampan.kube.access.interface import AdmissionRequest
from sampan.kube.access.plugins.plugin import Plugin
from sampan.kube.resources import NODES

NOT_READY = {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}


class NodeTaint(Plugin):
    """Adds the not-ready taint to new nodes; the node lifecycle controller takes it off."""

    operations = ("CREATE",)
    resources = (NODES,)

    async def admit(self, request: AdmissionRequest) -> None:
        assert request.object is not None
        spec = request.object.setdefault("spec", {})
        taints = spec.get("taints") or []
        if not any(
            taint.get("key") == NOT_READY["key"] and taint.get("effect") == NOT_READY["effect"] for taint in taints
        ):
            spec["taints"] = [*taints, dict(NOT_READY)]
