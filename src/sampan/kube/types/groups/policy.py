"""policy/v1: PodDisruptionBudget (Eviction is a subresource of pods)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sampan.kube.objects import Object
from sampan.kube.types import selectors
from sampan.kube.types.groups import cells
from sampan.kube.types.groups.declare import declare, status
from sampan.kube.types.groups.workload_validation import validate_int_or_percent
from sampan.kube.types.problems import Problems
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

    def check(self, obj: Object, problems: Problems) -> None:
        spec = obj.get("spec") or {}
        if spec.get("minAvailable") is not None and spec.get("maxUnavailable") is not None:
            why = "minAvailable and maxUnavailable cannot be both set"
            problems.invalid("spec", spec, why)
        for field in ("minAvailable", "maxUnavailable"):
            validate_int_or_percent(spec.get(field), f"spec.{field}", problems, limit_percent=True)
        selectors.validate_object(spec.get("selector"), "spec.selector", problems)
        policies = ("IfHealthyBudget", "AlwaysAllow")
        policy = spec.get("unhealthyPodEvictionPolicy")
        problems.one_of("spec.unhealthyPodEvictionPolicy", policy, policies, required=False)


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
