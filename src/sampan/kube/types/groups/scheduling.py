"""scheduling.k8s.io/v1 PriorityClass and coordination.k8s.io/v1 Lease."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sampan.kube.objects import Object, dig
from sampan.kube.types.groups import cells
from sampan.kube.types.groups.declare import declare
from sampan.kube.types.problems import Problems
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy, columns

MOST_USER_PRIORITY = 1_000_000_000
_SYSTEM = {"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}


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

    def check(self, obj: Object, problems: Problems) -> None:
        name, value = obj["metadata"].get("name") or "", obj.get("value") or 0
        if name.startswith("system-"):
            if _SYSTEM.get(name) != value:
                why = "priority class names with 'system-' prefix are reserved for system use only"
                problems.forbidden("metadata.name", why)
        elif value > MOST_USER_PRIORITY:
            why = f"maximum allowed value of a user defined priority is {MOST_USER_PRIORITY}"
            problems.forbidden("value", why)
        policies = ("Never", "PreemptLowerPriority")
        problems.one_of("preemptionPolicy", obj.get("preemptionPolicy"), policies)

    def check_update(self, new: Object, old: Object, problems: Problems) -> None:
        if (new.get("value") or 0) != (old.get("value") or 0):
            problems.forbidden("value", "may not be changed in an update.")
        problems.immutable("preemptionPolicy", new.get("preemptionPolicy"), old.get("preemptionPolicy"))


class LeaseStrategy(BuiltinStrategy):
    """Leases."""

    columns = columns("Holder")
    has_status = False
    create_on_update = True
    unconditional_update = False

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [obj["metadata"]["name"], dig(obj, "spec", "holderIdentity", default=""), cells.age(obj, now)]

    def check(self, obj: Object, problems: Problems) -> None:
        spec = obj.get("spec") or {}
        seconds, transitions = spec.get("leaseDurationSeconds"), spec.get("leaseTransitions")
        if seconds is not None and seconds <= 0:
            problems.invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0")
        if transitions is not None and transitions < 0:
            problems.invalid("spec.leaseTransitions", transitions, "must be greater than or equal to 0")


def types() -> list[ResourceType]:
    """The kinds of this module."""
    return [
        declare("scheduling.k8s.io/v1", "priorityclasses", "PriorityClass", PriorityClassStrategy(), short=("pc",)),
        declare("coordination.k8s.io/v1", "leases", "Lease", LeaseStrategy()),
    ]
