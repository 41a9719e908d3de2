"""What keeps a pod off a node. Each filter gives the reason in upstream's words, or None where the pod fits.

`Reason.resolvable` tells preemption whether removing other pods could help.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
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


Filter = Callable[[PodInfo, NodeInfo, Cluster], Reason | None]


def unschedulable(info: PodInfo, node: NodeInfo, cluster: Cluster) -> Reason | None:
    """A cordoned node, unless the pod tolerates that."""
    if not (node.node.get("spec") or {}).get("unschedulable"):
        return None
    taint = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
    if affinity.tolerates(info.pod["spec"].get("tolerations") or (), taint):
        return None
    return Reason("node(s) were unschedulable")


def taints(info: PodInfo, node: NodeInfo, cluster: Cluster) -> Reason | None:
    """NoSchedule and NoExecute taints."""
    taint = affinity.untolerated(info.pod, node, ("NoSchedule", "NoExecute"))
    if taint is None:
        return None
    return Reason(f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value') or ''}}}")


def node_affinity(info: PodInfo, node: NodeInfo, cluster: Cluster) -> Reason | None:
    """nodeSelector and required node affinity."""
    return None if affinity.wants_node(info.pod, node) else Reason("node(s) didn't match Pod's node affinity/selector")


def ports(info: PodInfo, node: NodeInfo, cluster: Cluster) -> Reason | None:
    """Host ports, which clash across wildcard and specific addresses."""
    taken = [port for other in node.pods.values() for port in other.ports]
    for protocol, address, port in info.ports:
        for other_protocol, other_address, other_port in taken:
            same_address = "0.0.0.0" in (address, other_address) or address == other_address  # noqa: S104 - wildcard
            if (protocol, port) == (other_protocol, other_port) and same_address:
                return Reason("node(s) didn't have free ports for the requested pod ports", resolvable=True)
    return None


def resources(info: PodInfo, node: NodeInfo, cluster: Cluster) -> Reason | None:
    """CPU, memory, extended resources and the pod count; all that lack are named."""
    offered = node.allocatable()
    lacking = []
    if len(node.pods) + 1 > offered.get("pods", 110):
        lacking.append("Too many pods")
    for name, asked in info.requests.items():
        if asked > 0 and node.requested.get(name, 0) + asked > offered.get(name, 0):
            lacking.append(f"Insufficient {name}")
    if not lacking:
        return None
    hopeless = any(asked > offered.get(name, 0) for name, asked in info.requests.items() if asked > 0)
    return Reason(", ".join(lacking), resolvable=not hopeless)


def volumes(info: PodInfo, node: NodeInfo, cluster: Cluster) -> Reason | None:
    """Claims must exist and be bound (or wait for this pod), and their volumes be reachable from the node."""
    for volume in info.pod["spec"].get("volumes") or ():
        if "persistentVolumeClaim" in volume:
            name = volume["persistentVolumeClaim"]["claimName"]
        elif "ephemeral" in volume:
            name = f"{info.pod['metadata']['name']}-{volume['name']}"
        else:
            continue
        claim = cluster.claims.get((info.namespace, name))
        if claim is None or claim["metadata"].get("deletionTimestamp"):
            return Reason(f'persistentvolumeclaim "{name}" not found')
        bound = claim["spec"].get("volumeName")
        if not bound:
            storage_class = cluster.storage_classes.get(claim["spec"].get("storageClassName") or "")
            if storage_class is None or storage_class.get("volumeBindingMode") != "WaitForFirstConsumer":
                return Reason("pod has unbound immediate PersistentVolumeClaims")
            continue
        required = ((cluster.volumes.get(bound, {}).get("spec") or {}).get("nodeAffinity") or {}).get("required")
        if required is not None and not affinity.node_selector(required, node):
            return Reason("node(s) had volume node affinity conflict")
    return None


def topology_spread(info: PodInfo, node: NodeInfo, cluster: Cluster) -> Reason | None:
    """DoNotSchedule topology spread constraints."""
    for constraint in info.pod["spec"].get("topologySpreadConstraints") or ():
        if constraint.get("whenUnsatisfiable") != "DoNotSchedule":
            continue
        key = constraint["topologyKey"]
        if key not in node.labels:
            return Reason("node(s) didn't match pod topology spread constraints (missing required label)")
        counts = spread_counts(info, constraint, cluster)
        selector = affinity.with_keys(constraint, info.pod)
        itself = 1 if matches(selector, info.labels) else 0
        lowest = min(counts.values(), default=0) if len(counts) >= (constraint.get("minDomains") or 1) else 0
        if counts.get(node.labels[key], 0) + itself - lowest > constraint["maxSkew"]:
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


def pod_affinity(info: PodInfo, node: NodeInfo, cluster: Cluster) -> Reason | None:
    """Required affinity: each term needs a matching pod in the node's domain (or the pod itself, when it is the first)."""
    for term in affinity.terms(info.pod, "podAffinity", required=True):
        domain = node.labels.get(term["topologyKey"])
        if domain is None:
            return Reason("node(s) didn't match pod affinity rules")
        anywhere = False
        for other_node in cluster:
            for other in other_node.pods.values():
                if affinity.term_matches(term, info.pod, other, cluster):
                    anywhere = True
                    if other_node.labels.get(term["topologyKey"]) == domain:
                        break
            else:
                continue
            break
        else:
            if anywhere or not affinity.term_matches(term, info.pod, info, cluster):
                return Reason("node(s) didn't match pod affinity rules")
    return None


def pod_anti_affinity(info: PodInfo, node: NodeInfo, cluster: Cluster) -> Reason | None:
    """Required anti-affinity of the pod, and of the pods that are already there against it."""
    own = affinity.terms(info.pod, "podAntiAffinity", required=True)
    for other_node in cluster:
        for other in other_node.pods.values():
            for term in own:
                if _same_domain(term, node, other_node) and affinity.term_matches(term, info.pod, other, cluster):
                    return Reason("node(s) didn't match pod anti-affinity rules", resolvable=True)
            for term in affinity.terms(other.pod, "podAntiAffinity", required=True):
                if _same_domain(term, node, other_node) and affinity.term_matches(term, other.pod, info, cluster):
                    return Reason("node(s) didn't satisfy existing pods anti-affinity rules", resolvable=True)
    return None


def _same_domain(term: Mapping[str, Any], left: NodeInfo, right: NodeInfo) -> bool:
    key = term["topologyKey"]
    return key in left.labels and left.labels[key] == right.labels.get(key)


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


def check(info: PodInfo, node: NodeInfo, cluster: Cluster) -> Reason | None:
    """The first reason the pod does not fit the node."""
    for one in FILTERS:
        reason = one(info, node, cluster)
        if reason is not None:
            return reason
    return None


def explain(reasons: Mapping[str, Reason]) -> str:
    """``0/3 nodes are available: 1 Insufficient cpu, 2 Too many pods.``"""
    if not reasons:
        return "no nodes available to schedule pods"
    counted = Counter(text for reason in reasons.values() for text in reason.text.split(", "))
    listed = ", ".join(sorted(f"{count} {text}" for text, count in counted.items()))
    return f"0/{len(reasons)} nodes are available: {listed}."
