"""Which of the nodes a pod fits is best: upstream's default score plugins and weights, each normalised to 0-100."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sampan.parts.workloads.scheduling import affinity
from sampan.parts.workloads.scheduling.filters import spread_counts
from sampan.parts.workloads.scheduling.nodes import Cluster, NodeInfo, PodInfo

BEST = 100.0

Score = Callable[[PodInfo, Sequence[NodeInfo], Cluster], list[float]]


def _load(info: PodInfo, node: NodeInfo, name: str) -> float:
    """The share of a resource in use with the pod on the node."""
    offered = node.allocatable.get(name, 0)
    if offered <= 0:
        return 1.0
    return min(1.0, (node.load.get(name, 0) + info.load[name]) / offered)


def least_allocated(info: PodInfo, nodes: Sequence[NodeInfo], cluster: Cluster) -> list[float]:
    """Prefer the emptier node."""
    return [BEST * (2 - _load(info, node, "cpu") - _load(info, node, "memory")) / 2 for node in nodes]


def balanced(info: PodInfo, nodes: Sequence[NodeInfo], cluster: Cluster) -> list[float]:
    """Prefer nodes whose CPU and memory would be used evenly."""
    return [BEST * (1 - abs(_load(info, node, "cpu") - _load(info, node, "memory")) / 2) for node in nodes]


def fewer_taints(info: PodInfo, nodes: Sequence[NodeInfo], cluster: Cluster) -> list[float]:
    """Avoid PreferNoSchedule taints the pod does not tolerate."""
    tolerations = info.pod["spec"].get("tolerations") or ()
    counts = [
        float(
            sum(
                taint.get("effect") == "PreferNoSchedule" and not affinity.tolerates(tolerations, taint)
                for taint in node.taints
            )
        )
        for node in nodes
    ]
    return _normalise(counts, reverse=True)


def preferred_nodes(info: PodInfo, nodes: Sequence[NodeInfo], cluster: Cluster) -> list[float]:
    """Preferred node affinity."""
    node_affinity = (info.pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    preferred = node_affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or ()
    sums = [
        float(sum(term["weight"] for term in preferred if affinity.node_term(term["preference"], node)))
        for node in nodes
    ]
    return _normalise(sums)


def preferred_pods(info: PodInfo, nodes: Sequence[NodeInfo], cluster: Cluster) -> list[float]:
    """Preferred pod affinity and anti-affinity."""
    weighted = [(term, 1) for term in affinity.terms(info.pod, "podAffinity", required=False)]
    weighted += [(term, -1) for term in affinity.terms(info.pod, "podAntiAffinity", required=False)]
    totals = [0.0] * len(nodes)
    for preference, sign in weighted:
        term = preference["podAffinityTerm"]
        key = term["topologyKey"]
        domains: dict[str, int] = {}
        for node in cluster:
            if key in node.labels:
                hits = sum(affinity.term_matches(term, info.pod, other, cluster) for other in node.pods.values())
                domains[node.labels[key]] = domains.get(node.labels[key], 0) + hits
        for position, node in enumerate(nodes):
            totals[position] += sign * preference["weight"] * domains.get(node.labels.get(key, ""), 0)
    return _normalise(totals)


def spread(info: PodInfo, nodes: Sequence[NodeInfo], cluster: Cluster) -> list[float]:
    """ScheduleAnyway constraints; without constraints, spread a controller's pods over nodes."""
    constraints = [
        one
        for one in info.pod["spec"].get("topologySpreadConstraints") or ()
        if one.get("whenUnsatisfiable") == "ScheduleAnyway"
    ]
    if not constraints:
        return _normalise([float(_siblings(info, node)) for node in nodes], reverse=True)
    totals = [0.0] * len(nodes)
    for constraint in constraints:
        counts = spread_counts(info, constraint, cluster)
        for position, node in enumerate(nodes):
            totals[position] += counts.get(node.labels.get(constraint["topologyKey"], ""), 0)
    return _normalise(totals, reverse=True)


def _siblings(info: PodInfo, node: NodeInfo) -> int:
    if not info.labels:
        return 0
    wanted = info.labels.items()
    return sum(other.namespace == info.namespace and wanted <= other.labels.items() for other in node.pods.values())


def _normalise(values: Sequence[float], *, reverse: bool = False) -> list[float]:
    low, high = min(values), max(values)
    if high == low:
        return [BEST if reverse else 0.0] * len(values)
    scaled = [BEST * (value - low) / (high - low) for value in values]
    return [BEST - value for value in scaled] if reverse else scaled


SCORES: tuple[tuple[Score, int], ...] = (
    (least_allocated, 1),
    (balanced, 1),
    (fewer_taints, 3),
    (preferred_nodes, 2),
    (preferred_pods, 2),
    (spread, 2),
)


def best(info: PodInfo, nodes: Sequence[NodeInfo], cluster: Cluster) -> NodeInfo:
    """The node with the highest weighted sum; the first by name among equals."""
    if len(nodes) == 1:
        return nodes[0]
    totals = [0.0] * len(nodes)
    for score, weight in SCORES:
        for position, value in enumerate(score(info, nodes, cluster)):
            totals[position] += weight * value
    return min(zip(totals, nodes, strict=True), key=lambda pair: (-pair[0], pair[1].name))[1]
