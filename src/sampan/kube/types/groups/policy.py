"""policy/v1: PodDisruptionBudget (Eviction is a subresource of pods)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sampan.kube.objects import Object
from sampan.kube.types.groups import cells
from sampan.kube.types.groups.declare import declare, status
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy, columns


class PodDisruptionBudgetStrategy(BuiltinStrategy):
    """PodDisruptionBudgets."""

    columns = columns("Min Available", "Max Unavailable", "Allowed Disruptions:integer")
    has_generation = True
    unconditional_update = False

    def prepare_create(self, obj: Object) -> None:
        counters = ("disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods")
        obj["status"] = dict.fromkeys(counters, 0)

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec, status = obj.get("spec") or {}, obj.get("status") or {}
        return [
            obj["metadata"]["name"],
            *(str(spec[field]) if field in spec else "N/A" for field in ("minAvailable", "maxUnavailable")),
            status.get("disruptionsAllowed") or 0,
            cells.age(obj, now),
        ]


def types() -> list[ResourceType]:
    """The kinds of this module."""
    return [
        declare(
            "policy/v1",
            "poddisruptionbudgets",
            "PodDisruptionBudget",
            PodDisruptionBudgetStrategy(),
            short=("pdb",),
            subresources=(status("PodDisruptionBudget"),),
        )
    ]
