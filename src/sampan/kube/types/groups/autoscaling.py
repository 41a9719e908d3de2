"""autoscaling/v2 and v1 HorizontalPodAutoscaler: stored as v2, served as both.

The v1 shape knows only a CPU utilisation target. What else a v2 object has (other metrics, behavior, current metrics,
conditions) travels in annotations of the v1 view, as upstream does it, so that a v1 client's read-modify-write loses nothing.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from sampan.kube.objects import Object, Resource, copy, dig
from sampan.kube.types import names
from sampan.kube.types.groups import cells
from sampan.kube.types.groups.declare import declare, status
from sampan.kube.types.problems import Problems
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy, columns

METRICS = "autoscaling.alpha.kubernetes.io/metrics"
CURRENT_METRICS = "autoscaling.alpha.kubernetes.io/current-metrics"
CONDITIONS = "autoscaling.alpha.kubernetes.io/conditions"
BEHAVIOR = "autoscaling.alpha.kubernetes.io/behavior"
STORED = Resource("autoscaling", "v2", "horizontalpodautoscalers")


class HorizontalPodAutoscalerStrategy(BuiltinStrategy):
    """HorizontalPodAutoscalers (v2)."""

    columns = columns("Reference", "Targets", "MinPods", "MaxPods:integer", "Replicas:integer")

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        spec.setdefault("minReplicas", 1)
        if not spec.get("metrics"):
            target = {"type": "Utilization", "averageUtilization": 80}
            spec["metrics"] = [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]
        behavior = spec.get("behavior")
        if behavior:
            up = behavior.setdefault("scaleUp", {})
            up.setdefault("stabilizationWindowSeconds", 0)
            _default_rules(up, [("Pods", 4), ("Percent", 100)])
            _default_rules(behavior.setdefault("scaleDown", {}), [("Percent", 100)])

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {"currentReplicas": 0, "desiredReplicas": 0}

    def row(self, obj: Object, now: datetime) -> list[Any]:
        if self.kind.version == "v1":
            obj = to_v2(obj)
        spec, status = obj.get("spec") or {}, obj.get("status") or {}
        target = spec.get("scaleTargetRef") or {}
        current = status.get("currentMetrics") or ()
        texts = [
            _target(metric, current[index] if index < len(current) else {})
            for index, metric in enumerate(spec.get("metrics") or ())
        ]
        shown = ", ".join(texts[:MOST_METRICS]) or cells.NONE
        if len(texts) > MOST_METRICS:
            shown += f" + {len(texts) - MOST_METRICS} more..."
        return [
            obj["metadata"]["name"],
            f"{target.get('kind')}/{target.get('name')}",
            shown,
            str(spec["minReplicas"]) if "minReplicas" in spec else cells.UNSET,
            spec.get("maxReplicas") or 0,
            status.get("currentReplicas") or 0,
            cells.age(obj, now),
        ]

    def check(self, obj: Object, problems: Problems) -> None:
        spec = obj.get("spec") or {}
        least, most = spec.get("minReplicas"), spec.get("maxReplicas") or 0
        if least is not None and least < 1:
            problems.invalid("spec.minReplicas", least, "must be greater than or equal to 1")
        if most < 1:
            problems.invalid("spec.maxReplicas", most, "must be greater than 0")
        if least is not None and most < least:
            problems.invalid("spec.maxReplicas", most, "must be greater than or equal to `minReplicas`")
        reference = spec.get("scaleTargetRef") or {}
        for field in ("kind", "name"):
            if not reference.get(field):
                problems.required(f"spec.scaleTargetRef.{field}")
            else:
                value = reference[field]
                problems.invalid_all(f"spec.scaleTargetRef.{field}", value, names.path_segment(value))
        for index, metric in enumerate(spec.get("metrics") or ()):
            _check_metric(metric, f"spec.metrics[{index}]", problems)
        for direction in ("scaleUp", "scaleDown"):
            rules = (spec.get("behavior") or {}).get(direction) or {}
            _check_rules(rules, f"spec.behavior.{direction}", problems)


class HorizontalPodAutoscalerV1Strategy(HorizontalPodAutoscalerStrategy):
    """HorizontalPodAutoscalers in the shape of v1."""

    def check(self, obj: Object, problems: Problems) -> None:
        super().check(to_v2(obj), problems)

    def default(self, obj: Object) -> None:
        obj.setdefault("spec", {}).setdefault("minReplicas", 1)
        annotations = obj["metadata"].get("annotations") or {}
        if METRICS not in annotations:
            obj["spec"].setdefault("targetCPUUtilizationPercentage", 80)


def _check_metric(metric: Object, path: str, problems: Problems) -> None:
    kind = metric.get("type") or ""
    problems.one_of(f"{path}.type", kind, tuple(sorted(_SOURCES)))
    if kind not in _SOURCES:
        return
    source = metric.get(_SOURCES[kind])
    here = f"{path}.{_SOURCES[kind]}"
    if source is None:
        problems.required(here, "must populate information for the given metric source")
        return
    if kind in ("Resource", "ContainerResource") and not source.get("name"):
        problems.required(f"{here}.name", "must specify a resource name")
    if kind in ("Pods", "Object", "External") and not dig(source, "metric", "name"):
        problems.required(f"{here}.metric.name", "must specify a metric name")
    target = source.get("target") or {}
    problems.one_of(f"{here}.target.type", target.get("type"), ("Utilization", "Value", "AverageValue"))
    given = [field for field in ("averageUtilization", "averageValue", "value") if target.get(field) is not None]
    if not given:
        problems.required(f"{here}.target", "must set either a target raw value or a target utilization")
    utilization = target.get("averageUtilization")
    if utilization is not None and utilization < 1:
        problems.invalid(f"{here}.target.averageUtilization", utilization, "must be greater than 0")


def _check_rules(rules: Object, path: str, problems: Problems) -> None:
    window = rules.get("stabilizationWindowSeconds")
    problems.at_least(f"{path}.stabilizationWindowSeconds", window)
    if window is not None and window > 3600:
        problems.invalid(f"{path}.stabilizationWindowSeconds", window, "must be less than or equal to 3600")
    choices = ("Disabled", "Max", "Min")
    problems.one_of(f"{path}.selectPolicy", rules.get("selectPolicy"), choices, required=False)
    for index, policy in enumerate(rules.get("policies") or ()):
        here = f"{path}.policies[{index}]"
        problems.one_of(f"{here}.type", policy.get("type"), ("Percent", "Pods"))
        for field in ("value", "periodSeconds"):
            if (policy.get(field) or 0) <= 0:
                problems.invalid(f"{here}.{field}", policy.get(field) or 0, "must be greater than zero")
        if (policy.get("periodSeconds") or 0) > 1800:
            problems.invalid(f"{here}.periodSeconds", policy["periodSeconds"], "must be less than or equal to 1800")


MOST_METRICS = 2
_SOURCES = {
    "Resource": "resource",
    "ContainerResource": "containerResource",
    "Pods": "pods",
    "Object": "object",
    "External": "external",
}


def _target(metric: Any, current: Any) -> str:
    """``cpu: 10%/80%`` for resources, ``current/target`` for the rest."""
    kind = metric.get("type") or ""
    source = _SOURCES.get(kind, "")
    wanted = dig(metric, source, "target", default={})
    values = dig(current, source, "current", default={})
    text = "<unknown>"
    if wanted.get("averageUtilization") is not None:
        if values.get("averageUtilization") is not None:
            text = f"{values['averageUtilization']}%"
        text = f"{text}/{wanted['averageUtilization']}%"
    elif wanted.get("averageValue") is not None:
        average = " (avg)" if kind in ("Object", "External") else ""
        text = f"{values.get('averageValue') or text}/{wanted['averageValue']}{average}"
    else:
        text = f"{values.get('value') or text}/{wanted.get('value')}"
    name = dig(metric, source, "name", default="") if kind in ("Resource", "ContainerResource") else ""
    return f"{name}: {text}" if name else text


def _default_rules(rules: Object, policies: list[tuple[str, int]]) -> None:
    rules.setdefault("selectPolicy", "Max")
    if not rules.get("policies"):
        rules["policies"] = [{"type": kind, "value": value, "periodSeconds": 15} for kind, value in policies]


def _cpu(metric: Any) -> bool:
    source = metric.get("resource") or {}
    return metric.get("type") == "Resource" and source.get("name") == "cpu"


def to_v1(stored: Object) -> Object:
    """The v1 view of a v2 object."""
    obj: Object = copy(stored)
    obj["apiVersion"] = "autoscaling/v1"
    kept: dict[str, Any] = {}
    spec, current = obj.get("spec") or {}, obj.get("status") or {}
    others = []
    for metric in spec.pop("metrics", None) or ():
        target = (metric.get("resource") or {}).get("target") or {}
        if _cpu(metric) and target.get("type") == "Utilization" and "targetCPUUtilizationPercentage" not in spec:
            spec["targetCPUUtilizationPercentage"] = target.get("averageUtilization")
        else:
            others.append(metric)
    if others:
        kept[METRICS] = others
    if behavior := spec.pop("behavior", None):
        kept[BEHAVIOR] = behavior
    others = []
    for metric in current.pop("currentMetrics", None) or ():
        values = (metric.get("resource") or {}).get("current") or {}
        if _cpu(metric) and values.get("averageUtilization") is not None:
            current["currentCPUUtilizationPercentage"] = values["averageUtilization"]
        others.append(metric)
    if others:
        kept[CURRENT_METRICS] = others
    if conditions := current.pop("conditions", None):
        kept[CONDITIONS] = conditions
    if kept:
        annotations = obj["metadata"].setdefault("annotations", {})
        annotations.update({key: json.dumps(value, separators=(",", ":")) for key, value in kept.items()})
    return obj


def to_v2(served: Object) -> Object:
    """The v2 object a v1 view stands for. Annotations that are no JSON are left alone."""
    obj: Object = copy(served)
    obj["apiVersion"] = "autoscaling/v2"
    annotations = (obj.get("metadata") or {}).get("annotations") or {}
    taken: dict[str, Any] = {}
    for key in (METRICS, BEHAVIOR, CURRENT_METRICS, CONDITIONS):
        if key in annotations:
            try:
                taken[key] = json.loads(annotations[key])
            except ValueError:
                continue
            del annotations[key]
    if not annotations and "annotations" in (obj.get("metadata") or {}):
        del obj["metadata"]["annotations"]
    spec = obj.setdefault("spec", {})
    metrics = []
    utilization = spec.pop("targetCPUUtilizationPercentage", None)
    if utilization is not None:
        target = {"type": "Utilization", "averageUtilization": utilization}
        metrics.append({"type": "Resource", "resource": {"name": "cpu", "target": target}})
    if isinstance(taken.get(METRICS), list):
        metrics += taken[METRICS]
    if metrics:
        spec["metrics"] = metrics
    if isinstance(taken.get(BEHAVIOR), dict):
        spec["behavior"] = taken[BEHAVIOR]
    current = obj.get("status")
    if current is not None:
        utilization = current.pop("currentCPUUtilizationPercentage", None)
        if isinstance(taken.get(CURRENT_METRICS), list):
            current["currentMetrics"] = taken[CURRENT_METRICS]
        elif utilization is not None:
            values = {"averageUtilization": utilization, "averageValue": "0"}
            current["currentMetrics"] = [{"type": "Resource", "resource": {"name": "cpu", "current": values}}]
        if isinstance(taken.get(CONDITIONS), list):
            current["conditions"] = taken[CONDITIONS]
    return obj


def types() -> list[ResourceType]:
    """The kinds of this module."""
    kind = "HorizontalPodAutoscaler"
    return [
        declare(
            "autoscaling/v2",
            "horizontalpodautoscalers",
            kind,
            HorizontalPodAutoscalerStrategy(),
            short=("hpa",),
            categories=("all",),
            subresources=(status(kind),),
        ),
        declare(
            "autoscaling/v1",
            "horizontalpodautoscalers",
            kind,
            HorizontalPodAutoscalerV1Strategy(),
            short=("hpa",),
            categories=("all",),
            subresources=(status(kind),),
            storage=STORED,
            to_storage=to_v2,
            from_storage=to_v1,
        ),
    ]
