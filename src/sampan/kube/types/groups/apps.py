"""apps/v1: Deployment, ReplicaSet, StatefulSet, DaemonSet and ControllerRevision."""

from __future__ import annotations

from sampan.kube.types.groups.declare import declare, scale, status
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy


class DeploymentStrategy(BuiltinStrategy):
    """Deployments."""

    has_generation = True


class ReplicaSetStrategy(BuiltinStrategy):
    """ReplicaSets."""

    has_generation = True


class StatefulSetStrategy(BuiltinStrategy):
    """StatefulSets."""

    has_generation = True


class DaemonSetStrategy(BuiltinStrategy):
    """DaemonSets."""

    has_generation = True


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
