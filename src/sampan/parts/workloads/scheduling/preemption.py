"""Who must go so that a more important pod can run.

On each node that other pods keep the preemptor off, the smallest set of lower-priority pods is sought: all of them are taken
away, then as many as possible are put back, most important first and those a PodDisruptionBudget protects before the rest.
Among nodes the choice follows upstream: fewest budget violations, least important victims, fewest of them, youngest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sampan.kube.objects import Object
from sampan.kube.types.selectors import matches
from sampan.parts.workloads.scheduling.filters import Check, Reason
from sampan.parts.workloads.scheduling.nodes import Cluster, NodeInfo, PodInfo


@dataclass(frozen=True, slots=True)
class Preemption:
    """A node made free by deleting these pods."""

    node: str
    victims: list[PodInfo]
    violations: int


def find(
    info: PodInfo, cluster: Cluster, reasons: Mapping[str, Reason], budgets: Sequence[Object]
) -> Preemption | None:
    """The best preemption, or None where none helps or the pod may not preempt."""
    if info.pod["spec"].get("preemptionPolicy") == "Never":
        return None
    candidates = [
        candidate
        for name, reason in reasons.items()
        if reason.resolvable and (candidate := _on_node(info, cluster.nodes[name], cluster, budgets)) is not None
    ]
    return min(candidates, key=_rank, default=None)


def _on_node(info: PodInfo, node: NodeInfo, cluster: Cluster, budgets: Sequence[Object]) -> Preemption | None:
    lower = [other for other in node.pods.values() if other.priority < info.priority]
    if not lower:
        return None
    trial = node.without(other.uid for other in lower)
    if Check(info, cluster.with_node(trial)).reason(trial) is not None:
        return None
    allowances = {id(budget): int((budget.get("status") or {}).get("disruptionsAllowed") or 0) for budget in budgets}
    protected: list[PodInfo] = []
    free: list[PodInfo] = []
    for other in sorted(lower, key=_importance):
        covering = [budget for budget in budgets if _covers(budget, other)]
        for budget in covering:
            allowances[id(budget)] -= 1
        (protected if any(allowances[id(budget)] < 0 for budget in covering) else free).append(other)
    victims, violations = [], 0
    for group, is_protected in ((protected, True), (free, False)):
        for other in group:
            trial.add(other)
            if Check(info, cluster.with_node(trial)).reason(trial) is not None:
                trial.remove(other.uid)
                victims.append(other)
                violations += is_protected
    return Preemption(node.name, victims, violations) if victims else None


def _covers(budget: Object, info: PodInfo) -> bool:
    return budget["metadata"]["namespace"] == info.namespace and matches(budget["spec"].get("selector"), info.labels)


def _importance(info: PodInfo) -> tuple[int, str]:
    """Most important first: higher priority, longer running."""
    return (-info.priority, (info.pod.get("status") or {}).get("startTime") or "9999")


def _rank(candidate: Preemption) -> tuple[int, int, int, int, str]:
    priorities = [victim.priority for victim in candidate.victims]
    return (candidate.violations, max(priorities), sum(priorities), len(priorities), candidate.node)
