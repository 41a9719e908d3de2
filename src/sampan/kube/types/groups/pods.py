"""core/v1 Pod: its strategy, and every subresource a pod has."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

from sampan.kube.objects import Kind, Object, dig
from sampan.kube.types.groups import pod_table
from sampan.kube.types.groups.declare import CONNECT, PROXY, READ_WRITE, declare, status
from sampan.kube.types.groups.pod_defaults import default_pod_spec, quality_of_service
from sampan.kube.types.groups.pod_validation import validate_pod_spec, validate_pod_update
from sampan.kube.types.groups.pod_warnings import pod_warnings
from sampan.kube.types.problems import Problems
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy, columns

DEFAULT_GRACE = 30


class PodStrategy(BuiltinStrategy):
    """Pods."""

    columns = columns("Ready", "Status", "Restarts", wide=("IP", "Node", "Nominated Node", "Readiness Gates"))
    delete_returns_object = True
    selectable_paths: ClassVar = {
        "spec.nodeName": ("spec", "nodeName"),
        "spec.restartPolicy": ("spec", "restartPolicy"),
        "spec.schedulerName": ("spec", "schedulerName"),
        "spec.serviceAccountName": ("spec", "serviceAccountName"),
        "spec.hostNetwork": ("spec", "hostNetwork"),
        "status.phase": ("status", "phase"),
        "status.podIP": ("status", "podIP"),
        "status.podIPs": ("status", "podIPs"),
        "status.nominatedNodeName": ("status", "nominatedNodeName"),
    }

    def default(self, obj: Object) -> None:
        default_pod_spec(obj.setdefault("spec", {}))

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {"phase": "Pending", "qosClass": quality_of_service(obj["spec"])}
        if obj["spec"].get("schedulingGates"):
            gated = {
                "type": "PodScheduled",
                "status": "False",
                "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
            }
            obj["status"]["conditions"] = [gated]

    def fields(self, obj: Object) -> Mapping[str, str]:
        # Spelled out: every field-selected watch of pods (each node agent has one) asks this for every change.
        metadata, spec, status = obj["metadata"], obj.get("spec") or {}, obj.get("status") or {}
        return {
            "metadata.name": metadata["name"],
            "metadata.namespace": metadata.get("namespace", ""),
            "spec.nodeName": spec.get("nodeName", ""),
            "spec.restartPolicy": spec.get("restartPolicy", ""),
            "spec.schedulerName": spec.get("schedulerName", ""),
            "spec.serviceAccountName": spec.get("serviceAccountName", ""),
            "spec.hostNetwork": "true" if spec.get("hostNetwork") else "false",
            "status.phase": status.get("phase", ""),
            "status.podIP": status.get("podIP", ""),
            "status.podIPs": ",".join(address.get("ip", "") for address in status.get("podIPs") or ()),
            "status.nominatedNodeName": status.get("nominatedNodeName", ""),
        }

    def check(self, obj: Object, problems: Problems) -> None:
        validate_pod_spec(obj.get("spec") or {}, "spec", problems)

    def check_update(self, new: Object, old: Object, problems: Problems) -> None:
        validate_pod_update(new, old, problems)

    def deletion_grace(self, obj: Object, requested: int | None) -> int:
        """The request's, else the pod's own, else 30; a pod that is on no node or has finished goes at once."""
        if not dig(obj, "spec", "nodeName") or dig(obj, "status", "phase") in ("Failed", "Succeeded"):
            return 0
        if requested is not None:
            return max(requested, 0)
        grace = dig(obj, "spec", "terminationGracePeriodSeconds")
        return DEFAULT_GRACE if grace is None else max(int(grace), 1 if grace < 0 else 0)

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return pod_table.row(obj, now)

    def row_conditions(self, obj: Object) -> list[Object]:
        return pod_table.conditions(obj)

    def warnings(self, obj: Object) -> list[str]:
        return pod_warnings(obj.get("spec") or {}, "spec")


def types() -> list[ResourceType]:
    """The kinds of this module."""
    return [
        declare(
            "v1",
            "pods",
            "Pod",
            PodStrategy(),
            short=("po",),
            categories=("all",),
            subresources=(
                ("attach", "PodAttachOptions", CONNECT),
                ("binding", "Binding", ("create",)),
                ("ephemeralcontainers", "Pod", READ_WRITE),
                ("eviction", Kind("policy", "v1", "Eviction"), ("create",)),
                ("exec", "PodExecOptions", CONNECT),
                ("log", "Pod", ("get",)),
                ("portforward", "PodPortForwardOptions", CONNECT),
                ("proxy", "PodProxyOptions", PROXY),
                ("resize", "Pod", READ_WRITE),
                status("Pod"),
            ),
        )
    ]
