"""core/v1 Node and node.k8s.io/v1 RuntimeClass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from sampan.kube.objects import Object, dig
from sampan.kube.types.groups.declare import PROXY, declare, status
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy


class NodeStrategy(BuiltinStrategy):
    """Nodes."""

    namespaced = False
    selectable_paths: ClassVar = {"spec.unschedulable": ("spec", "unschedulable")}

    def fields(self, obj: Object) -> Mapping[str, str]:
        return {**super().fields(obj), "spec.unschedulable": "true" if dig(obj, "spec", "unschedulable") else "false"}

    def default(self, obj: Object) -> None:
        obj.setdefault("spec", {})
        status = obj.get("status")
        if status and "allocatable" not in status and status.get("capacity"):
            status["allocatable"] = dict(status["capacity"])

    def prepare_create(self, obj: Object) -> None:
        # Node agents register with their status.
        obj.setdefault("status", {})


class RuntimeClassStrategy(BuiltinStrategy):
    """RuntimeClasses."""

    namespaced = False
    has_status = False


def types() -> list[ResourceType]:
    """The kinds of this module."""
    return [
        declare(
            "v1",
            "nodes",
            "Node",
            NodeStrategy(),
            short=("no",),
            subresources=(("proxy", "NodeProxyOptions", PROXY), status("Node")),
        ),
        declare("node.k8s.io/v1", "runtimeclasses", "RuntimeClass", RuntimeClassStrategy()),
    ]
