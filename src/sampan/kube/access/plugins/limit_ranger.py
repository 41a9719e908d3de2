"""LimitRanger: containers get the namespace's default requests and limits, and nothing leaves the allowed range."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from sampan.kube.access.interface import AdmissionRequest
from sampan.kube.access.plugins.plugin import Plugin
from sampan.kube.access.quota import pod_resources
from sampan.kube.access.refusal import refused
from sampan.kube.objects import Object, dig
from sampan.kube.resources import LIMIT_RANGES, PERSISTENT_VOLUME_CLAIMS, PODS
from sampan.kube.types import quantity

ANNOTATION = "kubernetes.io/limit-ranger"
Amounts = dict[str, Decimal]


class LimitRanger(Plugin):
    """Applies the LimitRanges of a namespace to pods and claims."""

    operations = ("CREATE", "UPDATE")
    resources = (PODS, PERSISTENT_VOLUME_CLAIMS)

    async def admit(self, request: AdmissionRequest) -> None:
        if request.type.resource.plural != "pods" or request.operation != "CREATE":
            return
        pod = request.object
        assert pod is not None
        notes: list[str] = []
        for item in self._items(request.namespace, "Container"):
            limits, requests = _container_defaults(item)
            for kind in ("containers", "initContainers"):
                label = "container" if kind == "containers" else "init container"
                for container in pod.get("spec", {}).get(kind) or ():
                    notes += _fill(container, limits, requests, label)
        if notes:
            annotations = pod["metadata"].setdefault("annotations", {})
            annotations[ANNOTATION] = f"LimitRanger plugin set: {'; '.join(notes)}"

    async def validate(self, request: AdmissionRequest) -> None:
        obj = request.object
        assert obj is not None
        if request.type.resource.plural == "pods":
            if request.operation != "CREATE":
                return
            problems = list(self._pod_problems(request.namespace, obj.get("spec") or {}))
        else:
            problems = list(self._claim_problems(request.namespace, obj))
        if problems:
            raise refused(request, problems[0] if len(problems) == 1 else f"[{', '.join(problems)}]")

    def _items(self, namespace: str, kind: str) -> Iterator[Mapping[str, Any]]:
        for found in self.cache.objects(LIMIT_RANGES, namespace):
            for item in dig(found, "spec", "limits", default=()):
                if item.get("type") == kind:
                    yield item

    def _pod_problems(self, namespace: str, spec: Mapping[str, Any]) -> Iterator[str]:
        for item in self._items(namespace, "Container"):
            for container in [*(spec.get("containers") or ()), *(spec.get("initContainers") or ())]:
                resources = container.get("resources") or {}
                yield from _problems(item, _amounts(resources.get("requests")), _amounts(resources.get("limits")))
        for item in self._items(namespace, "Pod"):
            yield from _problems(item, pod_resources(spec, "requests"), pod_resources(spec, "limits"))

    def _claim_problems(self, namespace: str, claim: Object) -> Iterator[str]:
        requests = _amounts(dig(claim, "spec", "resources", "requests"))
        for item in self._items(namespace, "PersistentVolumeClaim"):
            for name, least in (item.get("min") or {}).items():
                yield from _below(item, name, least, requests, {})
            for name, most in (item.get("max") or {}).items():
                if name in requests and requests[name] > quantity.parse(most):
                    shown = _shown(requests[name], most)
                    yield f"maximum {name} usage per {item['type']} is {most}, but request is {shown}"


def _container_defaults(item: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(limits, requests) for containers that lack them: the defaults, then upstream's fallbacks to max and min."""
    limits = {**(item.get("max") or {}), **(item.get("default") or {})}
    requests = {**(item.get("min") or {}), **limits, **(item.get("defaultRequest") or {})}
    return limits, requests


def _fill(container: Object, limits: Mapping[str, Any], requests: Mapping[str, Any], label: str) -> list[str]:
    resources = container.setdefault("resources", {})
    notes = []
    for kind, defaults, word in (("limits", limits, "limit"), ("requests", requests, "request")):
        given = resources.get(kind) or {}
        missing = {name: value for name, value in defaults.items() if name not in given}
        if missing:
            resources[kind] = {**given, **missing}
            notes.append(f"{', '.join(sorted(missing))} {word} for {label} {container.get('name', '')}")
    return sorted(notes, reverse=True)


def _amounts(quantities: Mapping[str, Any] | None) -> Amounts:
    return {name: quantity.parse(value) for name, value in (quantities or {}).items()}


def _problems(item: Mapping[str, Any], requests: Amounts, limits: Amounts) -> Iterator[str]:
    for name, least in (item.get("min") or {}).items():
        yield from _below(item, name, least, requests, limits)
    for name, most in (item.get("max") or {}).items():
        text = f"maximum {name} usage per {item['type']} is {quantity.canonical(most)}"
        bound = quantity.parse(most)
        if name not in limits:
            yield f"{text}.  No limit is specified"
        elif limits[name] > bound:
            yield f"{text}, but limit is {_shown(limits[name], most)}"
        elif requests.get(name, bound) > bound:
            yield f"{text}, but request is {_shown(requests[name], most)}"
    for name, ratio in (item.get("maxLimitRequestRatio") or {}).items():
        text = f"{name} max limit to request ratio per {item['type']} is {quantity.canonical(ratio)}, but"
        if not requests.get(name):
            yield f"{text} no request is specified or request is 0"
        elif not limits.get(name):
            yield f"{text} no limit is specified or limit is 0"
        elif limits[name] / requests[name] > quantity.parse(ratio):
            yield f"{text} provided ratio is {limits[name] / requests[name]:f}"


def _below(item: Mapping[str, Any], name: str, least: Any, requests: Amounts, limits: Amounts) -> Iterator[str]:
    text = f"minimum {name} usage per {item['type']} is {quantity.canonical(least)}"
    bound = quantity.parse(least)
    if name not in requests:
        yield f"{text}.  No request is specified"
    elif requests[name] < bound:
        yield f"{text}, but request is {_shown(requests[name], least)}"
    elif limits.get(name, bound) < bound:
        yield f"{text}, but limit is {_shown(limits[name], least)}"


def _shown(amount: Decimal, like: Any) -> str:
    return quantity.format(amount, quantity.family(like))
