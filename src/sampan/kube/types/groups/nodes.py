"""core/v1 Node and node.k8s.io/v1 RuntimeClass."""

from __future__ import annotations

from typing import ClassVar

from sampan.kube.types.groups.declare import PROXY, declare, status
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy


class NodeStrategy(BuiltinStrategy):
    """Nodes."""

    namespaced = False
    selectable_paths: ClassVar = {"spec.unschedulable": ("spec", "unschedulable")}


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
