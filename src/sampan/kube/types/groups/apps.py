"""apps/v1: Deployment, ReplicaSet, StatefulSet, DaemonSet and ControllerRevision."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sampan.kube.objects import Object, controller_of, dig
from sampan.kube.types.groups import cells
from sampan.kube.types.groups.declare import declare, scale, status
from sampan.kube.types.groups.pod_defaults import default_template
from sampan.kube.types.groups.storage import default_claim
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy, columns


class DeploymentStrategy(BuiltinStrategy):
    """Deployments."""

    columns = columns("Ready", "Up-to-date:integer", "Available:integer", wide=("Containers", "Images", "Selector"))
    has_generation = True

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        spec.setdefault("replicas", 1)
        spec.setdefault("revisionHistoryLimit", 10)
        spec.setdefault("progressDeadlineSeconds", 600)
        strategy = spec.setdefault("strategy", {})
        if not strategy.get("type"):
            strategy["type"] = "RollingUpdate"
        if strategy["type"] == "RollingUpdate":
            rolling = strategy.setdefault("rollingUpdate", {})
            rolling.setdefault("maxUnavailable", "25%")
            rolling.setdefault("maxSurge", "25%")
        if "template" in spec:
            default_template(spec["template"])

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {}

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec, status = obj.get("spec") or {}, obj.get("status") or {}
        return [
            obj["metadata"]["name"],
            f"{status.get('readyReplicas') or 0}/{spec.get('replicas') or 0}",
            status.get("updatedReplicas") or 0,
            status.get("availableReplicas") or 0,
            cells.age(obj, now),
            *cells.containers(spec.get("template")),
            cells.selector(spec.get("selector")),
        ]


class ReplicaSetStrategy(BuiltinStrategy):
    """ReplicaSets."""

    columns = columns("Desired:integer", "Current:integer", "Ready:integer", wide=("Containers", "Images", "Selector"))
    has_generation = True

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        spec.setdefault("replicas", 1)
        if "template" in spec:
            default_template(spec["template"])

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {"replicas": 0}

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec, status = obj.get("spec") or {}, obj.get("status") or {}
        return [
            obj["metadata"]["name"],
            spec.get("replicas") or 0,
            status.get("replicas") or 0,
            status.get("readyReplicas") or 0,
            cells.age(obj, now),
            *cells.containers(spec.get("template")),
            cells.selector(spec.get("selector")),
        ]


class StatefulSetStrategy(BuiltinStrategy):
    """StatefulSets."""

    columns = columns("Ready", wide=("Containers", "Images"))
    has_generation = True

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        spec.setdefault("replicas", 1)
        if not spec.get("podManagementPolicy"):
            spec["podManagementPolicy"] = "OrderedReady"
        strategy = spec.setdefault("updateStrategy", {})
        if not strategy.get("type"):
            strategy["type"] = "RollingUpdate"
        if strategy["type"] == "RollingUpdate":
            strategy.setdefault("rollingUpdate", {}).setdefault("partition", 0)
        retention = spec.setdefault("persistentVolumeClaimRetentionPolicy", {})
        for moment in ("whenDeleted", "whenScaled"):
            if not retention.get(moment):
                retention[moment] = "Retain"
        spec.setdefault("revisionHistoryLimit", 10)
        if "template" in spec:
            default_template(spec["template"])
        for claim in spec.get("volumeClaimTemplates") or ():
            claim.setdefault("apiVersion", "v1")
            claim.setdefault("kind", "PersistentVolumeClaim")
            default_claim(claim)
            claim.setdefault("status", {}).setdefault("phase", "Pending")

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {"replicas": 0, "availableReplicas": 0}

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec, status = obj.get("spec") or {}, obj.get("status") or {}
        ready = f"{status.get('readyReplicas') or 0}/{spec.get('replicas') or 0}"
        return [obj["metadata"]["name"], ready, cells.age(obj, now), *cells.containers(spec.get("template"))]


class DaemonSetStrategy(BuiltinStrategy):
    """DaemonSets."""

    columns = columns(
        "Desired:integer",
        "Current:integer",
        "Ready:integer",
        "Up-to-date:integer",
        "Available:integer",
        "Node Selector",
        wide=("Containers", "Images", "Selector"),
    )
    has_generation = True

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        strategy = spec.setdefault("updateStrategy", {})
        if not strategy.get("type"):
            strategy["type"] = "RollingUpdate"
        if strategy["type"] == "RollingUpdate":
            rolling = strategy.setdefault("rollingUpdate", {})
            rolling.setdefault("maxUnavailable", 1)
            rolling.setdefault("maxSurge", 0)
        spec.setdefault("revisionHistoryLimit", 10)
        if "template" in spec:
            default_template(spec["template"])

    def prepare_create(self, obj: Object) -> None:
        counters = ("currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady")
        obj["status"] = dict.fromkeys(counters, 0)

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec, status = obj.get("spec") or {}, obj.get("status") or {}
        return [
            obj["metadata"]["name"],
            status.get("desiredNumberScheduled") or 0,
            status.get("currentNumberScheduled") or 0,
            status.get("numberReady") or 0,
            status.get("updatedNumberScheduled") or 0,
            status.get("numberAvailable") or 0,
            cells.labels(dig(spec, "template", "spec", "nodeSelector")),
            cells.age(obj, now),
            *cells.containers(spec.get("template")),
            cells.selector(spec.get("selector")),
        ]


class ControllerRevisionStrategy(BuiltinStrategy):
    """ControllerRevisions."""

    columns = columns("Controller", "Revision")
    has_status = False

    def row(self, obj: Object, now: datetime) -> list[Any]:
        owner = controller_of(obj)
        controller = cells.NONE
        if owner is not None:
            group = owner["apiVersion"].rpartition("/")[0]
            controller = f"{owner['kind'].lower()}{'.' + group if group else ''}/{owner['name']}"
        return [obj["metadata"]["name"], controller, str(obj.get("revision") or 0), cells.age(obj, now)]


def types() -> list[ResourceType]:
    """The kinds of this module."""
    return [
        declare("apps/v1", "controllerrevisions", "ControllerRevision", ControllerRevisionStrategy()),
        declare(
            "apps/v1",
            "daemonsets",
            "DaemonSet",
            DaemonSetStrategy(),
            short=("ds",),
            categories=("all",),
            subresources=(status("DaemonSet"),),
        ),
        declare(
            "apps/v1",
            "deployments",
            "Deployment",
            DeploymentStrategy(),
            short=("deploy",),
            categories=("all",),
            subresources=(scale(), status("Deployment")),
        ),
        declare(
            "apps/v1",
            "replicasets",
            "ReplicaSet",
            ReplicaSetStrategy(),
            short=("rs",),
            categories=("all",),
            subresources=(scale(), status("ReplicaSet")),
        ),
        declare(
            "apps/v1",
            "statefulsets",
            "StatefulSet",
            StatefulSetStrategy(),
            short=("sts",),
            categories=("all",),
            subresources=(scale(), status("StatefulSet")),
        ),
    ]
