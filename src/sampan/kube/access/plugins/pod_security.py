"""PodSecurity: the Pod Security Standards as a namespace's labels ask for them.

Labels ``pod-security.kubernetes.io/enforce``, ``/warn`` and ``/audit`` name a level (privileged, baseline, restricted).
Enforcing refuses pods; warning and auditing also look into the pod templates of workloads. The checks are in
``access.pod_security_checks``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sampan.kube.access.interface import AdmissionRequest
from sampan.kube.access.plugins.plugin import Plugin
from sampan.kube.access.pod_security_checks import LEVELS, Violation, violations
from sampan.kube.access.refusal import name_of, refused
from sampan.kube.objects import Object, dig
from sampan.kube.resources import (
    CRON_JOBS,
    DAEMON_SETS,
    DEPLOYMENTS,
    JOBS,
    NAMESPACES,
    POD_TEMPLATES,
    PODS,
    REPLICA_SETS,
    REPLICATION_CONTROLLERS,
    STATEFUL_SETS,
)
from sampan.kube.status import FieldError, invalid

PREFIX = "pod-security.kubernetes.io/"
_VERSION = re.compile(r"latest|v1\.(0|[1-9]\d*)")
EXISTING_PODS_LIMIT = 3000
"""Existing pods looked at when a namespace's level rises."""


class PodSecurity(Plugin):
    """Enforces, warns and audits."""

    operations = ("CREATE", "UPDATE")
    resources = (
        PODS,
        NAMESPACES,
        DEPLOYMENTS,
        REPLICA_SETS,
        STATEFUL_SETS,
        DAEMON_SETS,
        JOBS,
        CRON_JOBS,
        REPLICATION_CONTROLLERS,
        POD_TEMPLATES,
    )
    subresources = ("", "ephemeralcontainers")

    async def validate(self, request: AdmissionRequest) -> None:
        obj = request.object
        assert obj is not None
        plural = request.type.resource.plural
        if plural == "namespaces":
            self._namespace(request, obj)
            return
        namespace = self.cache.get(NAMESPACES, "", request.namespace)
        labels: Mapping[str, str] = dig(namespace, "metadata", "labels", default={})
        if not any(key.startswith(PREFIX) for key in labels):
            return
        pod = obj if plural == "pods" else _template(obj, plural)
        if pod is None or (plural == "pods" and request.operation == "UPDATE" and _unchanged(request)):
            return
        spec, annotations = pod.get("spec") or {}, dig(pod, "metadata", "annotations", default={})
        refusal = ""
        for mode in ("enforce", "audit", "warn"):
            level, version = policy(labels, mode)
            if level == "privileged" or (mode == "enforce" and plural != "pods"):
                continue
            found = violations(level, spec, annotations)
            if not found:
                continue
            text = f'PodSecurity "{level}:{version}": {_listed(found)}'
            if mode == "enforce":
                refusal = f"violates {text}"
            elif mode == "audit":
                request.audit["pod-security.kubernetes.io/audit-violations"] = f"would violate {text}"
            elif not refusal:
                request.warnings.append(f"would violate {text}")
        if refusal:
            raise refused(request, refusal)

    def _namespace(self, request: AdmissionRequest, namespace: Object) -> None:
        labels: Mapping[str, str] = dig(namespace, "metadata", "labels", default={})
        problems = []
        for mode in ("enforce", "audit", "warn"):
            level, version = labels.get(f"{PREFIX}{mode}"), labels.get(f"{PREFIX}{mode}-version")
            if level is not None and level not in LEVELS:
                message = f'Invalid value: "{level}": must be one of privileged, baseline, restricted'
                problems.append(FieldError(f"metadata.labels[{PREFIX}{mode}]", "FieldValueInvalid", message))
            if version is not None and not _VERSION.fullmatch(version):
                message = f'Invalid value: "{version}": must be "latest" or "v1.x"'
                problems.append(FieldError(f"metadata.labels[{PREFIX}{mode}-version]", "FieldValueInvalid", message))
        before: Mapping[str, str] = dig(request.old_object, "metadata", "labels", default={})
        if problems and any(labels.get(key) != before.get(key) for key in labels if key.startswith(PREFIX)):
            raise invalid("", "Namespace", name_of(request), problems)
        level, version = policy(labels, "enforce")
        if request.operation == "UPDATE" and LEVELS.index(level) > LEVELS.index(policy(before, "enforce")[0]):
            self._warn_of_existing(request, level, version)

    def _warn_of_existing(self, request: AdmissionRequest, level: str, version: str) -> None:
        by_reason: dict[str, list[str]] = {}
        for pod in self.cache.objects(PODS, request.name)[:EXISTING_PODS_LIMIT]:
            found = violations(level, pod.get("spec") or {}, pod["metadata"].get("annotations") or {})
            if found:
                reasons = ", ".join(violation.reason for violation in found)
                by_reason.setdefault(reasons, []).append(pod["metadata"]["name"])
        if not by_reason:
            return
        request.warnings.append(
            f'existing pods in namespace "{request.name}" violate the new PodSecurity enforce level "{level}:{version}"'
        )
        for reasons, names in sorted(by_reason.items()):
            names.sort()
            others = len(names) - 1
            more = f" (and {others} other pod{'s' if others > 1 else ''})" if others else ""
            request.warnings.append(f"{names[0]}{more}: {reasons}")


def policy(labels: Mapping[str, str], mode: str) -> tuple[str, str]:
    """(level, version) of a mode; an unknown level counts as restricted, so that a slip does not open the door."""
    level = labels.get(f"{PREFIX}{mode}", "privileged")
    return (level if level in LEVELS else "restricted"), labels.get(f"{PREFIX}{mode}-version", "latest")


def _template(obj: Object, plural: str) -> Object | None:
    if plural == "podtemplates":
        return obj.get("template")
    path = ("spec", "jobTemplate", "spec", "template") if plural == "cronjobs" else ("spec", "template")
    template: Object | None = dig(obj, *path)
    return template


def _unchanged(request: AdmissionRequest) -> bool:
    """Whether an update leaves alone all that the standards look at (the images may change)."""
    same: bool = _judged(request.object) == _judged(request.old_object)
    return same


def _judged(pod: Object | None) -> Any:
    spec = dict((pod or {}).get("spec") or {})
    for kind in ("containers", "initContainers", "ephemeralContainers"):
        spec[kind] = [{**container, "image": ""} for container in spec.get(kind) or ()]
    for field in ("tolerations", "activeDeadlineSeconds", "terminationGracePeriodSeconds"):
        spec.pop(field, None)
    annotations = dig(pod, "metadata", "annotations", default={})
    return spec, {key: value for key, value in annotations.items() if "apparmor" in key}


def _listed(found: list[Violation]) -> str:
    return ", ".join(f"{violation.reason} ({violation.detail})" for violation in found)
