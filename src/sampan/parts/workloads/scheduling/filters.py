"""What keeps a pod off a node. Each filter gives the reason in upstream's words, or None where the pod fits.

A `Check` is about one pod and one state of the cluster. What is the same for every node (how many pods of a kind each topology
domain has, which domains repel the pod) it works out once, when a filter first asks; so a decision costs one pass over the
pods for each constraint, and one over the nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from sampan.kube.objects import Object
from sampan.kube.types.selectors import matches
from sampan.parts.workloads.scheduling import affinity
from sampan.parts.workloads.scheduling.nodes import Cluster, NodeInfo, PodInfo

HOSTNAME = "kubernetes.io/hostname"


class Reason(NamedTuple):
    """Why a pod does not fit a node."""

    text: str
    resolvable: bool = False
    """Removing other pods could help."""
    everywhere: bool = False
    """It has nothing to do with the node."""


class Spread(NamedTuple):
    """A topology spread constraint with the state it is judged by."""

    key: str
    counts: Counter[str]
    lowest: int
    itself: int
    max_skew: int


class Attraction(NamedTuple):
    """A required affinity term with the domains that meet it."""

    key: str
    domains: set[str]
    alone: bool
    """No pod anywhere matches, but the pod itself does: it may be the first."""


class Check:
    """One pod against the nodes of a cluster."""

    def __init__(self, info: PodInfo, cluster: Cluster) -> None:
        self.info = info
        self.cluster = cluster

    def reason(self, node: NodeInfo) -> Reason | None:
        """The first reason the pod does not fit the node."""
        for one in FILTERS:
            reason = one(self, node)
            if reason is not None:
                return reason
        return None

    @cached_property
    def spreads(self) -> list[Spread]:
        """The DoNotSchedule constraints."""
        found = []
        for constraint in self.info.pod["spec"].get("topologySpreadConstraints") or ():
            if constraint.get("whenUnsatisfiable") != "DoNotSchedule":
                continue
            counts = spread_counts(self.info, constraint, self.cluster)
            enough = len(counts) >= (constraint.get("minDomains") or 1)
            lowest = min(counts.values(), default=0) if enough else 0
            itself = int(matches(affinity.with_keys(constraint, self.info.pod), self.info.labels))
            found.append(Spread(constraint["topologyKey"], counts, lowest, itself, constraint["maxSkew"]))
        return found

    @cached_property
    def attractions(self) -> list[Attraction]:
        """The required affinity terms."""
        found = []
        for term in affinity.terms(self.info.pod, "podAffinity", required=True):
            key, hits = term["topologyKey"], self._domains(term)
            anywhere = bool(hits) or any(self._has_match(term, node) for node in self.cluster if key not in node.labels)
            alone = not anywhere and affinity.term_matches(term, self.info.pod, self.info, self.cluster)
            found.append(Attraction(key, hits, alone))
        return found

    @cached_property
    def repulsions(self) -> list[tuple[str, set[str]]]:
        """The pod's own required anti-affinity: domains with a pod it must not meet."""
        return [(term["topologyKey"], self._domains(term)) for term in self.info.repels]

    @cached_property
    def repelled(self) -> set[tuple[str, str]]:
        """(topology key, domain) of the pods that must not meet this one."""
        return {
            (term["topologyKey"], domain)
            for node in self.cluster
            for other in node.repelling.values()
            for term in other.repels
            if (domain := node.labels.get(term["topologyKey"])) is not None
            and affinity.term_matches(term, other.pod, self.info, self.cluster)
        }

    def _domains(self, term: Mapping[str, Any]) -> set[str]:
        key = term["topologyKey"]
        return {node.labels[key] for node in self.cluster if key in node.labels and self._has_match(term, node)}

    def _has_match(self, term: Mapping[str, Any], node: NodeInfo) -> bool:
        return any(affinity.term_matches(term, self.info.pod, other, self.cluster) for other in node.pods.values())


Filter = Callable[[Check, NodeInfo], Reason | None]


def unschedulable(check: Check, node: NodeInfo) -> Reason | None:
    """A cordoned node, unless the pod tolerates that."""
    if not (node.node.get("spec") or {}).get("unschedulable"):
        return None
    taint = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
    if affinity.tolerates(check.info.pod["spec"].get("tolerations") or (), taint):
        return None
    return Reason("node(s) were unschedulable")


def taints(check: Check, node: NodeInfo) -> Reason | None:
    """NoSchedule and NoExecute taints."""
    taint = affinity.untolerated(check.info.pod, node, ("NoSchedule", "NoExecute"))
    if taint is None:
        return None
    return Reason(f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value') or ''}}}")


def node_affinity(check: Check, node: NodeInfo) -> Reason | None:
    """nodeSelector and required node affinity."""
    return (
        None
        if affinity.wants_node(check.info.pod, node)
        else Reason("node(s) didn't match Pod's node affinity/selector")
    )


def ports(check: Check, node: NodeInfo) -> Reason | None:
    """Host ports, which clash across wildcard and specific addresses."""
    taken = [port for other in node.pods.values() for port in other.ports]
    for protocol, address, port in check.info.ports:
        for other_protocol, other_address, other_port in taken:
            same_address = "0.0.0.0" in (address, other_address) or address == other_address  # noqa: S104 - wildcard
            if (protocol, port) == (other_protocol, other_port) and same_address:
                return Reason("node(s) didn't have free ports for the requested pod ports", resolvable=True)
    return None


def resources(check: Check, node: NodeInfo) -> Reason | None:
    """CPU, memory, extended resources and the pod count; all that lack are named."""
    offered = node.allocatable
    lacking = []
    if len(node.pods) + 1 > offered.get("pods", 110):
        lacking.append("Too many pods")
    for name, asked in check.info.requests.items():
        if asked > 0 and node.requested.get(name, 0) + asked > offered.get(name, 0):
            lacking.append(f"Insufficient {name}")
    if not lacking:
        return None
    hopeless = any(asked > offered.get(name, 0) for name, asked in check.info.requests.items() if asked > 0)
    return Reason(", ".join(lacking), resolvable=not hopeless)


def volumes(check: Check, node: NodeInfo) -> Reason | None:
    """Claims must exist and be bound (or wait for this pod), and their volumes be reachable from the node."""
    for volume in check.info.pod["spec"].get("volumes") or ():
        if "persistentVolumeClaim" in volume:
            name = volume["persistentVolumeClaim"]["claimName"]
        elif "ephemeral" in volume:
            name = f"{check.info.pod['metadata']['name']}-{volume['name']}"
        else:
            continue
        claim = check.cluster.claims.get((check.info.namespace, name))
        if claim is None or claim["metadata"].get("deletionTimestamp"):
            return Reason(f'persistentvolumeclaim "{name}" not found', everywhere=True)
        bound = claim["spec"].get("volumeName")
        if not bound:
            storage_class = check.cluster.storage_classes.get(claim["spec"].get("storageClassName") or "")
            if storage_class is None or storage_class.get("volumeBindingMode") != "WaitForFirstConsumer":
                return Reason("pod has unbound immediate PersistentVolumeClaims", everywhere=True)
            continue
        required = ((check.cluster.volumes.get(bound, {}).get("spec") or {}).get("nodeAffinity") or {}).get("required")
        if required is not None and not affinity.node_selector(required, node):
            return Reason("node(s) had volume node affinity conflict")
    return None


def topology_spread(check: Check, node: NodeInfo) -> Reason | None:
    """DoNotSchedule topology spread constraints."""
    for spread in check.spreads:
        domain = node.labels.get(spread.key)
        if domain is None:
            return Reason("node(s) didn't match pod topology spread constraints (missing required label)")
        if spread.counts.get(domain, 0) + spread.itself - spread.lowest > spread.max_skew:
            return Reason("node(s) didn't match pod topology spread constraints", resolvable=True)
    return None


def spread_counts(info: PodInfo, constraint: Mapping[str, Any], cluster: Cluster) -> Counter[str]:
    """Matching pods in each topology domain the pod may use."""
    key = constraint["topologyKey"]
    selector = affinity.with_keys(constraint, info.pod)
    counts: Counter[str] = Counter()
    for node in cluster:
        if key not in node.labels or not _counts(info.pod, constraint, node):
            continue
        counts[node.labels[key]] += sum(
            other.namespace == info.namespace
            and not other.pod["metadata"].get("deletionTimestamp")
            and matches(selector, other.labels)
            for other in node.pods.values()
        )
    return counts


def _counts(pod: Object, constraint: Mapping[str, Any], node: NodeInfo) -> bool:
    if constraint.get("nodeAffinityPolicy", "Honor") == "Honor" and not affinity.wants_node(pod, node):
        return False
    if constraint.get("nodeTaintsPolicy", "Ignore") == "Honor":
        return affinity.untolerated(pod, node, ("NoSchedule", "NoExecute")) is None
    return True


def pod_affinity(check: Check, node: NodeInfo) -> Reason | None:
    """Required affinity: each term needs a matching pod in the node's domain (or the pod itself, when it is the first)."""
    for attraction in check.attractions:
        domain = node.labels.get(attraction.key)
        if domain is None or not (attraction.alone or domain in attraction.domains):
            return Reason("node(s) didn't match pod affinity rules")
    return None


def pod_anti_affinity(check: Check, node: NodeInfo) -> Reason | None:
    """Required anti-affinity of the pod, and of the pods that are already there against it."""
    for key, domains in check.repulsions:
        if node.labels.get(key) in domains:
            return Reason("node(s) didn't match pod anti-affinity rules", resolvable=True)
    for key, domain in check.repelled:
        if node.labels.get(key) == domain:
            return Reason("node(s) didn't satisfy existing pods anti-affinity rules", resolvable=True)
    return None


FILTERS: tuple[Filter, ...] = (
    unschedulable,
    taints,
    node_affinity,
    ports,
    resources,
    volumes,
    topology_spread,
    pod_affinity,
    pod_anti_affinity,
)
"""In upstream's order: the first reason found is the one reported."""


def explain(reasons: Mapping[str, Reason]) -> str:
    """``0/3 nodes are available: 1 Insufficient cpu, 2 Too many pods.``"""
    if not reasons:
        return "no nodes available to schedule pods"
    general = next((reason.text for reason in reasons.values() if reason.everywhere), None)
    if general is not None:
        return f"0/{len(reasons)} nodes are available: {general}."
    counted = Counter(text for reason in reasons.values() for text in reason.text.split(", "))
    listed = ", ".join(sorted(f"{count} {text}" for text, count in counted.items()))
    return f"0/{len(reasons)} nodes are available: {listed}."
