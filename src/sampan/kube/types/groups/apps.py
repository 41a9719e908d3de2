"""apps/v1: Deployment, ReplicaSet, StatefulSet, DaemonSet and ControllerRevision."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sampan.kube.objects import Object, controller_of, dig
from sampan.kube.types.groups import cells
from sampan.kube.types.groups.declare import declare, scale, status
from sampan.kube.types.groups.pod_defaults import default_template
from sampan.kube.types.groups.pod_warnings import pod_warnings
from sampan.kube.types.groups.storage import default_claim
from sampan.kube.types.groups.workload_validation import (
    is_zero,
    selector_unchanged,
    validate_int_or_percent,
    validate_workload,
)
from sampan.kube.types.problems import Problems
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy, columns

_STATEFUL_MUTABLE = frozenset(
    {
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
        "revisionHistoryLimit",
    }
)


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
        default_template(spec.setdefault("template", {}))

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

    def check(self, obj: Object, problems: Problems) -> None:
        spec = obj.get("spec") or {}
        counts = ("replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds")
        validate_workload(spec, problems, counts=counts)
        strategy = spec.get("strategy") or {}
        problems.one_of("spec.strategy.type", strategy.get("type"), ("Recreate", "RollingUpdate"))
        rolling = strategy.get("rollingUpdate")
        if strategy.get("type") == "Recreate" and rolling is not None:
            why = "may not be specified when strategy `type` is 'Recreate'"
            problems.forbidden("spec.strategy.rollingUpdate", why)
        elif strategy.get("type") == "RollingUpdate" and rolling is not None:
            here = "spec.strategy.rollingUpdate"
            validate_int_or_percent(
                rolling.get("maxUnavailable"), f"{here}.maxUnavailable", problems, limit_percent=True
            )
            validate_int_or_percent(rolling.get("maxSurge"), f"{here}.maxSurge", problems)
            if is_zero(rolling.get("maxUnavailable")) and is_zero(rolling.get("maxSurge")):
                why = "may not be 0 when `maxSurge` is 0"
                problems.invalid(f"{here}.maxUnavailable", rolling.get("maxUnavailable"), why)
        deadline, ready = spec.get("progressDeadlineSeconds"), spec.get("minReadySeconds") or 0
        if deadline is not None and deadline <= ready:
            problems.invalid("spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds")

    def check_update(self, new: Object, old: Object, problems: Problems) -> None:
        selector_unchanged(new, old, problems)

    def warnings(self, obj: Object) -> list[str]:
        return pod_warnings(dig(obj, "spec", "template", "spec", default={}), "spec.template.spec")


class ReplicaSetStrategy(BuiltinStrategy):
    """ReplicaSets."""

    columns = columns("Desired:integer", "Current:integer", "Ready:integer", wide=("Containers", "Images", "Selector"))
    has_generation = True

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        spec.setdefault("replicas", 1)
        default_template(spec.setdefault("template", {}))

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

    def check(self, obj: Object, problems: Problems) -> None:
        validate_workload(obj.get("spec") or {}, problems, counts=("replicas", "minReadySeconds"))

    def check_update(self, new: Object, old: Object, problems: Problems) -> None:
        selector_unchanged(new, old, problems)

    def warnings(self, obj: Object) -> list[str]:
        return pod_warnings(dig(obj, "spec", "template", "spec", default={}), "spec.template.spec")


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
        default_template(spec.setdefault("template", {}))
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

    def check(self, obj: Object, problems: Problems) -> None:
        spec = obj.get("spec") or {}
        validate_workload(
            spec, problems, counts=("replicas", "minReadySeconds", "revisionHistoryLimit"), kind="statefulset"
        )
        problems.one_of("spec.podManagementPolicy", spec.get("podManagementPolicy"), ("OrderedReady", "Parallel"))
        strategy = spec.get("updateStrategy") or {}
        problems.one_of("spec.updateStrategy.type", strategy.get("type"), ("RollingUpdate", "OnDelete"))
        rolling = strategy.get("rollingUpdate")
        if strategy.get("type") == "OnDelete" and rolling is not None:
            why = "only allowed for updateStrategy 'RollingUpdate'"
            problems.invalid("spec.updateStrategy.rollingUpdate", rolling, why)
        problems.at_least("spec.updateStrategy.rollingUpdate.partition", (rolling or {}).get("partition"))
        retention = spec.get("persistentVolumeClaimRetentionPolicy") or {}
        for moment in ("whenDeleted", "whenScaled"):
            here = f"spec.persistentVolumeClaimRetentionPolicy.{moment}"
            problems.one_of(here, retention.get(moment), ("Retain", "Delete"))
        problems.at_least("spec.ordinals.start", (spec.get("ordinals") or {}).get("start"))

    def check_update(self, new: Object, old: Object, problems: Problems) -> None:
        fresh, stored = new.get("spec") or {}, old.get("spec") or {}
        if any(fresh.get(field) != stored.get(field) for field in {*fresh, *stored} - _STATEFUL_MUTABLE):
            problems.forbidden(
                "spec",
                "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', "
                "'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
            )

    def warnings(self, obj: Object) -> list[str]:
        return pod_warnings(dig(obj, "spec", "template", "spec", default={}), "spec.template.spec")


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
        default_template(spec.setdefault("template", {}))

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

    def check(self, obj: Object, problems: Problems) -> None:
        spec = obj.get("spec") or {}
        validate_workload(spec, problems, counts=("minReadySeconds", "revisionHistoryLimit"), kind="daemonset")
        strategy = spec.get("updateStrategy") or {}
        problems.one_of("spec.updateStrategy.type", strategy.get("type"), ("RollingUpdate", "OnDelete"))
        if strategy.get("type") != "RollingUpdate":
            return
        here, rolling = "spec.updateStrategy.rollingUpdate", strategy.get("rollingUpdate") or {}
        unavailable, surge = rolling.get("maxUnavailable"), rolling.get("maxSurge")
        validate_int_or_percent(unavailable, f"{here}.maxUnavailable", problems, limit_percent=True)
        validate_int_or_percent(surge, f"{here}.maxSurge", problems, limit_percent=True)
        if is_zero(unavailable) and is_zero(surge):
            problems.required(f"{here}.maxUnavailable", "cannot be 0 when maxSurge is 0")
        elif not is_zero(unavailable) and not is_zero(surge):
            problems.invalid(f"{here}.maxSurge", surge, "may not be set when maxUnavailable is non-zero")

    def check_update(self, new: Object, old: Object, problems: Problems) -> None:
        selector_unchanged(new, old, problems)

    def warnings(self, obj: Object) -> list[str]:
        return pod_warnings(dig(obj, "spec", "template", "spec", default={}), "spec.template.spec")


class ControllerRevisionStrategy(BuiltinStrategy):
    """ControllerRevisions."""

    columns = columns("Controller", "Revision")
    has_status = False

    def row(self, obj: Object, now: datetime) -> list[Any]:
        owner = controller_of(obj)
        controller = cells.NONE
        if owner is not None:
            group = (owner.get("apiVersion") or "").rpartition("/")[0]
            kind = (owner.get("kind") or "").lower()
            controller = f"{kind}{'.' + group if group else ''}/{owner.get('name') or ''}"
        return [obj["metadata"]["name"], controller, str(obj.get("revision") or 0), cells.age(obj, now)]

    def check(self, obj: Object, problems: Problems) -> None:
        if obj.get("data") is None:
            problems.required("data", "data is mandatory")
        problems.at_least("revision", obj.get("revision"))

    def check_update(self, new: Object, old: Object, problems: Problems) -> None:
        problems.immutable("data", new.get("data"), old.get("data"))


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
