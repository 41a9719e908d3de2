"""scheduling.k8s.io/v1 PriorityClass and coordination.k8s.io/v1 Lease."""

from __future__ import annotations

from sampan.kube.objects import Object
from sampan.kube.types.groups.declare import declare
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy


class PriorityClassStrategy(BuiltinStrategy):
    """PriorityClasses."""

    namespaced = False
    has_generation = True
    has_status = False

    def default(self, obj: Object) -> None:
        obj.setdefault("value", 0)
        obj.setdefault("preemptionPolicy", "PreemptLowerPriority")


class LeaseStrategy(BuiltinStrategy):
    """Leases."""

    has_status = False
    create_on_update = True
    unconditional_update = False


def types() -> list[ResourceType]:
    """The kinds of this module."""
    return [
        declare("scheduling.k8s.io/v1", "priorityclasses", "PriorityClass", PriorityClassStrategy(), short=("pc",)),
        declare("coordination.k8s.io/v1", "leases", "Lease", LeaseStrategy()),
    ]
