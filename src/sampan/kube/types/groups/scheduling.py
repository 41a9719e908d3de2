"""scheduling.k8s.io/v1 PriorityClass and coordination.k8s.io/v1 Lease."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sampan.kube.objects import Object, dig
from sampan.kube.types.groups import cells
from sampan.kube.types.groups.declare import declare
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy, columns


class PriorityClassStrategy(BuiltinStrategy):
    """PriorityClasses."""

    columns = columns("Value:integer", "Global-Default:boolean", "PreemptionPolicy", age_at=3)
    namespaced = False
    has_generation = True
    has_status = False

    def default(self, obj: Object) -> None:
        obj.setdefault("value", 0)
        obj.setdefault("preemptionPolicy", "PreemptLowerPriority")

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [
            obj["metadata"]["name"],
            obj.get("value") or 0,
            bool(obj.get("globalDefault")),
            cells.age(obj, now),
            obj.get("preemptionPolicy") or "",
        ]


class LeaseStrategy(BuiltinStrategy):
    """Leases."""

    columns = columns("Holder")
    has_status = False
    create_on_update = True
    unconditional_update = False

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [obj["metadata"]["name"], dig(obj, "spec", "holderIdentity", default=""), cells.age(obj, now)]


def types() -> list[ResourceType]:
    """The kinds of this module."""
    return [
        declare("scheduling.k8s.io/v1", "priorityclasses", "PriorityClass", PriorityClassStrategy(), short=("pc",)),
        declare("coordination.k8s.io/v1", "leases", "Lease", LeaseStrategy()),
    ]
