"""autoscaling/v2 and v1 HorizontalPodAutoscaler: stored as v2, served as both.

The v1 shape knows only a CPU utilisation target. What else a v2 object has (other metrics, behavior, current metrics,
conditions) travels in annotations of the v1 view, as upstream does it, so that a v1 client's read-modify-write loses nothing.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from sampan.kube.objects import Object, Resource, copy, dig
from sampan.kube.types.groups import cells
from sampan.kube.types.groups.declare import declare, status
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


class HorizontalPodAutoscalerV1Strategy(HorizontalPodAutoscalerStrategy):
    """HorizontalPodAutoscalers in the shape of v1."""

    def default(self, obj: Object) -> None:
        obj.setdefault("spec", {}).setdefault("minReplicas", 1)
        annotations = obj["metadata"].get("annotations") or {}
        if METRICS not in annotations:
            obj["spec"].setdefault("targetCPUUtilizationPercentage", 80)


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
