"""apps/v1: Deployment, ReplicaSet, StatefulSet, DaemonSet and ControllerRevision."""

from __future__ import annotations

from sampan.kube.objects import Object
from sampan.kube.types.groups.declare import declare, scale, status
from sampan.kube.types.groups.pod_defaults import default_template
from sampan.kube.types.groups.storage import default_claim
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy


class DeploymentStrategy(BuiltinStrategy):
    """Deployments."""

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


class ReplicaSetStrategy(BuiltinStrategy):
    """ReplicaSets."""

    has_generation = True

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        spec.setdefault("replicas", 1)
        if "template" in spec:
            default_template(spec["template"])

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {"replicas": 0}


class StatefulSetStrategy(BuiltinStrategy):
    """StatefulSets."""

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


class DaemonSetStrategy(BuiltinStrategy):
    """DaemonSets."""

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


class ControllerRevisionStrategy(BuiltinStrategy):
    """ControllerRevisions."""

    has_status = False


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
