"""Matching of nodes and pods by selectors: node affinity, pod affinity terms, taints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sampan.kube.objects import Object
from sampan.kube.types.selectors import matches
from sampan.parts.workloads.scheduling.nodes import Cluster, NodeInfo, PodInfo


def tolerates(tolerations: Iterable[Mapping[str, Any]], taint: Mapping[str, Any]) -> bool:
    """Some toleration covers the taint."""
    for toleration in tolerations:
        if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
            continue
        if toleration.get("key") and toleration["key"] != taint["key"]:
            continue
        operator = toleration.get("operator") or "Equal"
        if operator == "Exists" or (
            toleration.get("key")
            and operator == "Equal"
            and (toleration.get("value") or "") == (taint.get("value") or "")
        ):
            return True
    return False


def untolerated(pod: Object, node: NodeInfo, effects: tuple[str, ...]) -> Mapping[str, Any] | None:
    """The first taint of these effects the pod does not tolerate."""
    tolerations = pod["spec"].get("tolerations") or ()
    for taint in node.taints:
        if taint.get("effect") in effects and not tolerates(tolerations, taint):
            return taint
    return None


def node_requirement(requirement: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """One NodeSelectorRequirement against a label (or field) map."""
    key, operator, values = requirement["key"], requirement["operator"], requirement.get("values") or []
    present, value = key in labels, labels.get(key)
    match operator:
        case "In":
            return present and value in values
        case "NotIn":
            return not present or value not in values
        case "Exists":
            return present
        case "DoesNotExist":
            return not present
        case "Gt" | "Lt":
            try:
                left, right = int(value or ""), int(values[0])
            except (ValueError, IndexError):
                return False
            return left > right if operator == "Gt" else left < right
    return False


def node_term(term: Mapping[str, Any], node: NodeInfo) -> bool:
    """One NodeSelectorTerm; an empty term matches nothing."""
    expressions, fields = term.get("matchExpressions") or (), term.get("matchFields") or ()
    if not expressions and not fields:
        return False
    return all(node_requirement(one, node.labels) for one in expressions) and all(
        node_requirement(one, {"metadata.name": node.name}) for one in fields
    )


def node_selector(selector: Mapping[str, Any], node: NodeInfo) -> bool:
    """A NodeSelector: any of its terms."""
    return any(node_term(term, node) for term in selector.get("nodeSelectorTerms") or ())


def wants_node(pod: Object, node: NodeInfo) -> bool:
    """nodeSelector and required node affinity."""
    spec = pod["spec"]
    selector: Mapping[str, str] = spec.get("nodeSelector") or {}
    if not selector.items() <= node.labels.items():
        return False
    required = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    )
    return required is None or node_selector(required, node)


def terms(pod: Object, kind: str, *, required: bool) -> list[Mapping[str, Any]]:
    """Pod (anti-)affinity terms; preferred ones with their ``weight`` beside ``podAffinityTerm``."""
    affinity = (pod["spec"].get("affinity") or {}).get(kind) or {}
    field = (
        "requiredDuringSchedulingIgnoredDuringExecution"
        if required
        else "preferredDuringSchedulingIgnoredDuringExecution"
    )
    return affinity.get(field) or []


def term_matches(term: Mapping[str, Any], owner: Object, candidate: PodInfo, cluster: Cluster) -> bool:
    """A pod affinity term of ``owner`` selects ``candidate``."""
    namespaces: list[str] = term.get("namespaces") or []
    if term.get("namespaceSelector") is not None:
        labels = cluster.namespace_labels.get(candidate.namespace, {})
        in_namespace = candidate.namespace in namespaces or matches(term["namespaceSelector"], labels)
    else:
        in_namespace = candidate.namespace in (namespaces or [owner["metadata"]["namespace"]])
    return in_namespace and matches(with_keys(term, owner), candidate.labels)


def with_keys(constraint: Mapping[str, Any], owner: Object) -> Object | None:
    """The constraint's label selector narrowed by ``matchLabelKeys`` (and ``mismatchLabelKeys``) of the owner."""
    selector = constraint.get("labelSelector")
    labels = owner["metadata"].get("labels") or {}
    extra = [
        {"key": key, "operator": operator, "values": [labels[key]]}
        for field, operator in (("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn"))
        for key in constraint.get(field) or ()
        if key in labels
    ]
    if selector is None or not extra:
        return selector
    return {**selector, "matchExpressions": [*(selector.get("matchExpressions") or ()), *extra]}
