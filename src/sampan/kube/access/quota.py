"""What objects cost: the accounting behind ResourceQuota, for admission and for the controller that fills ``status.used``.

`usage` says what one object counts for, under the names a quota's ``hard`` may limit; `covers` says whether a quota's scopes
take the object in at all; `used` sums up a namespace. Amounts are exact decimals; `written` turns them back to quantities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any

from sampan.kube.objects import Object, Resource, dig
from sampan.kube.resources import (
    CONFIG_MAPS,
    PERSISTENT_VOLUME_CLAIMS,
    PODS,
    REPLICATION_CONTROLLERS,
    RESOURCE_QUOTAS,
    SECRETS,
    SERVICES,
)
from sampan.kube.types import quantity

Usage = dict[str, Decimal]
ONE = Decimal(1)

_CLASS_MARK = ".storageclass.storage.k8s.io/"
_COUNTED = {
    each.plural: each for each in (REPLICATION_CONTROLLERS, SECRETS, CONFIG_MAPS, RESOURCE_QUOTAS, SERVICES, PODS)
}
_POD_NAMES = ("cpu", "memory", "ephemeral-storage", "pods")


def usage(resource: Resource, obj: Object) -> Usage:
    """What an object counts for, by quota name."""
    counted: Usage = {f"count/{resource.qualified}": ONE}
    if resource.group:
        return counted
    plural = resource.plural
    if plural == "pods":
        if not finished(obj):
            counted |= _pod(obj.get("spec") or {})
    elif plural == "services":
        counted |= _service(obj.get("spec") or {})
    elif plural == "persistentvolumeclaims":
        counted |= _claim(obj)
    elif plural in _COUNTED:
        counted[plural] = ONE
    return counted


def finished(pod: Object) -> bool:
    """Whether a pod has ended for good and so costs nothing but its object."""
    return dig(pod, "status", "phase") in ("Succeeded", "Failed")


def pod_resources(spec: Mapping[str, Any], kind: str) -> Usage:
    """The ``requests`` or ``limits`` that a pod as a whole stands for.

    Init containers run one after the other before the rest, so only the greediest counts; those that restart always
    (sidecars) stay and add up. The pod's overhead comes on top.
    """
    total: Usage = {}
    for container in spec.get("containers") or ():
        _add(total, container, kind)
    running: Usage = {}
    peak: Usage = {}
    for container in spec.get("initContainers") or ():
        if container.get("restartPolicy") == "Always":
            _add(total, container, kind)
            _add(running, container, kind)
            at_once = running
        else:
            at_once = dict(running)
            _add(at_once, container, kind)
        for name, amount in at_once.items():
            peak[name] = max(peak.get(name, amount), amount)
    for name, amount in peak.items():
        total[name] = max(total.get(name, amount), amount)
    for name, value in (spec.get("overhead") or {}).items():
        if kind == "requests" or name in total:
            total[name] = total.get(name, Decimal(0)) + quantity.parse(value)
    return total


def _add(total: Usage, container: Mapping[str, Any], kind: str) -> None:
    for name, value in ((container.get("resources") or {}).get(kind) or {}).items():
        total[name] = total.get(name, Decimal(0)) + quantity.parse(value)


def _pod(spec: Mapping[str, Any]) -> Usage:
    counted: Usage = {"pods": ONE}
    for name, amount in pod_resources(spec, "requests").items():
        counted[f"requests.{name}"] = amount
        if name in ("cpu", "memory", "ephemeral-storage") or name.startswith("hugepages-"):
            counted[name] = amount
    for name, amount in pod_resources(spec, "limits").items():
        counted[f"limits.{name}"] = amount
    return counted


def _service(spec: Mapping[str, Any]) -> Usage:
    counted: Usage = {"services": ONE}
    kind = spec.get("type") or "ClusterIP"
    ports = len(spec.get("ports") or ())
    if kind == "NodePort":
        counted["services.nodeports"] = Decimal(ports)
    elif kind == "LoadBalancer":
        counted["services.loadbalancers"] = ONE
        if spec.get("allocateLoadBalancerNodePorts") is False:
            ports = sum(1 for port in spec.get("ports") or () if port.get("nodePort"))
        counted["services.nodeports"] = Decimal(ports)
    return counted


def _claim(claim: Object) -> Usage:
    counted: Usage = {"persistentvolumeclaims": ONE}
    spec = claim.get("spec") or {}
    storage = dig(spec, "resources", "requests", "storage")
    name = spec.get("storageClassName") or ""
    if name:
        counted[f"{name}{_CLASS_MARK}persistentvolumeclaims"] = ONE
    if storage is not None:
        amount = quantity.parse(storage)
        counted["requests.storage"] = amount
        if name:
            counted[f"{name}{_CLASS_MARK}requests.storage"] = amount
    return counted


# -- scopes


def covers(quota: Object, resource: Resource, obj: Object) -> bool:
    """Whether a quota counts an object, as far as its scopes say; a quota with scopes counts pods only."""
    spec = quota.get("spec") or {}
    scopes = spec.get("scopes") or ()
    expressions = dig(spec, "scopeSelector", "matchExpressions", default=())
    if not scopes and not expressions:
        return True
    if resource.group or resource.plural != "pods":
        return False
    pod = obj.get("spec") or {}
    return all(_in_scope(pod, {"scopeName": scope, "operator": "Exists"}) for scope in scopes) and all(
        _in_scope(pod, expression) for expression in expressions
    )


def _in_scope(spec: Mapping[str, Any], expression: Mapping[str, Any]) -> bool:
    scope, operator, values = expression.get("scopeName"), expression.get("operator"), expression.get("values") or ()
    if scope == "Terminating":
        return spec.get("activeDeadlineSeconds") is not None
    if scope == "NotTerminating":
        return spec.get("activeDeadlineSeconds") is None
    if scope == "BestEffort":
        return best_effort(spec)
    if scope == "NotBestEffort":
        return not best_effort(spec)
    if scope == "CrossNamespacePodAffinity":
        return _crosses_namespaces(spec)
    if scope == "PriorityClass":
        name = spec.get("priorityClassName") or ""
        if operator == "In":
            return name in values
        if operator == "NotIn":
            return name not in values
        return bool(name) if operator == "Exists" else not name
    return False


def best_effort(spec: Mapping[str, Any]) -> bool:
    """Whether no container asks for cpu or memory."""
    containers = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    return not any(
        name in ("cpu", "memory") and quantity.parse(value)
        for container in containers
        for kind in ("requests", "limits")
        for name, value in ((container.get("resources") or {}).get(kind) or {}).items()
    )


def _crosses_namespaces(spec: Mapping[str, Any]) -> bool:
    for kind in ("podAffinity", "podAntiAffinity"):
        affinity = dig(spec, "affinity", kind, default={})
        terms = list(affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or ())
        preferred = affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or ()
        terms += [term.get("podAffinityTerm") or {} for term in preferred]
        if any(term.get("namespaces") or term.get("namespaceSelector") is not None for term in terms):
            return True
    return False


# -- sums


def counted_resource(name: str, known: Iterable[Resource] = ()) -> Resource | None:
    """The resource whose objects count towards a quota name; ``known`` are candidates for ``count/<plural>.<group>``."""
    if name.startswith("count/"):
        qualified = name.removeprefix("count/")
        if "." not in qualified:
            return Resource("", "v1", qualified)
        return next((resource for resource in known if resource.qualified == qualified), None)
    if name in _COUNTED:
        return _COUNTED[name]
    if name.startswith("services."):
        return SERVICES
    if name in ("persistentvolumeclaims", "requests.storage") or _CLASS_MARK in name:
        return PERSISTENT_VOLUME_CLAIMS
    if name in _POD_NAMES or name.startswith(("requests.", "limits.", "hugepages-")):
        return PODS
    return None


def used(
    quota: Object, objects: Callable[[Resource], Iterable[Object]], known: Iterable[Resource] = ()
) -> dict[str, str]:
    """``status.used`` of a quota: ``objects`` lists a resource in the quota's namespace.

    Names that nothing counts towards are left out.
    """
    hard = dig(quota, "spec", "hard", default={})
    known = list(known)
    totals: Usage = {}
    by_resource: dict[Resource, list[str]] = {}
    for name in hard:
        resource = counted_resource(name, known)
        if resource is not None:
            totals[name] = Decimal(0)
            by_resource.setdefault(resource, []).append(name)
    for resource, names in by_resource.items():
        for obj in objects(resource):
            if covers(quota, resource, obj):
                counted = usage(resource, obj)
                for name in names:
                    if name in counted:
                        totals[name] += counted[name]
    return written(totals, hard)


def written(amounts: Mapping[str, Decimal], like: Mapping[str, Any]) -> dict[str, str]:
    """Amounts as quantities, each in the notation of the limit of the same name."""
    return {name: quantity.format(amount, quantity.family(like.get(name, ""))) for name, amount in amounts.items()}


def unspecified(hard: Iterable[str], spec: Mapping[str, Any]) -> str:
    """Which limited compute resources containers of a pod leave open, as upstream words it; "" when none."""
    containers = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    missing: list[str] = []
    for name in sorted(hard):
        kind, _, resource = name.rpartition(".")
        if resource not in ("cpu", "memory") or kind not in ("", "requests", "limits"):
            continue
        lacking = [
            container.get("name", "")
            for container in containers
            if resource not in ((container.get("resources") or {}).get(kind or "requests") or {})
        ]
        if lacking:
            missing.append(f"{name} for: {','.join(sorted(lacking))}")
    return f"must specify {'; '.join(missing)}" if missing else ""
