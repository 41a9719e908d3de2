"""policy/v1: PodDisruptionBudget (Eviction is a subresource of pods)."""

from __future__ import annotations

from sampan.kube.objects import Object
from sampan.kube.types.groups.declare import declare, status
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy


class PodDisruptionBudgetStrategy(BuiltinStrategy):
    """PodDisruptionBudgets."""

    has_generation = True
    unconditional_update = False

    def prepare_create(self, obj: Object) -> None:
        counters = ("disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods")
        obj["status"] = dict.fromkeys(counters, 0)


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
