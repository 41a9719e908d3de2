"""What workload controllers ask of a pod, and how they make one from a template."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sampan.kube.objects import Object, copy, owner_reference

_FNV_OFFSET = 2166136261
_FNV_PRIME = 16777619
_SAFE_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"


def phase(pod: Mapping[str, Any]) -> str:
    """The pod's phase; a pod without status is Pending."""
    return (pod.get("status") or {}).get("phase") or "Pending"


def is_finished(pod: Mapping[str, Any]) -> bool:
    """Succeeded or Failed."""
    return phase(pod) in ("Succeeded", "Failed")


def is_terminating(pod: Mapping[str, Any]) -> bool:
    """Deletion has begun."""
    return bool(pod["metadata"].get("deletionTimestamp"))


def is_active(pod: Mapping[str, Any]) -> bool:
    """Neither finished nor terminating: it counts towards a controller's replicas."""
    return not is_finished(pod) and not is_terminating(pod)


def condition(obj: Mapping[str, Any], type_: str) -> Mapping[str, Any] | None:
    """A condition of any object's status by type."""
    for candidate in (obj.get("status") or {}).get("conditions") or ():
        if candidate["type"] == type_:
            found: Mapping[str, Any] = candidate
            return found
    return None


def is_ready(pod: Mapping[str, Any]) -> bool:
    """The Ready condition is True."""
    ready = condition(pod, "Ready")
    return ready is not None and ready["status"] == "True"


def available_in(pod: Mapping[str, Any], min_ready_seconds: int, now: datetime) -> float | None:
    """Seconds until the pod counts as available: 0 when it does, None while it is not ready."""
    ready = condition(pod, "Ready")
    if ready is None or ready["status"] != "True":
        return None
    if not min_ready_seconds:
        return 0.0
    since = ready.get("lastTransitionTime")
    if not since:
        return None
    return max(0.0, min_ready_seconds - (now - parse_time(since)).total_seconds())


def parse_time(text: str) -> datetime:
    """An RFC 3339 timestamp of an object as an aware datetime."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def format_time(moment: datetime) -> str:
    """RFC 3339 with whole seconds, as metav1.Time is written."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def restarts(pod: Mapping[str, Any]) -> int:
    """The most restarts of any container."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    return max((status.get("restartCount") or 0 for status in statuses), default=0)


def deletion_rank(pod: Mapping[str, Any], now: datetime) -> tuple[Any, ...]:
    """Sort key by which upstream's ActivePodsWithRanks deletes first: unscheduled, then Pending < Unknown < Running, not
    ready, lower deletion cost, ready for a shorter time, more restarts, younger.
    """
    metadata = pod["metadata"]
    ready = condition(pod, "Ready")
    is_up = ready is not None and ready["status"] == "True"
    ready_since = ready.get("lastTransitionTime") if ready is not None and is_up else None
    annotations = metadata.get("annotations") or {}
    try:
        cost = int(annotations.get("controller.kubernetes.io/pod-deletion-cost", "0"))
    except ValueError:
        cost = 0
    return (
        bool((pod.get("spec") or {}).get("nodeName")),
        {"Pending": 0, "Unknown": 1}.get(phase(pod), 2),
        is_up,
        cost,
        -parse_time(ready_since).timestamp() if ready_since else -now.timestamp(),
        -restarts(pod),
        -parse_time(metadata["creationTimestamp"]).timestamp() if metadata.get("creationTimestamp") else 0,
    )


def from_template(template: Mapping[str, Any], owner: Mapping[str, Any], *, name: str | None = None) -> Object:
    """A pod made from a pod template for a controller owner; named ``name``, or generated from the owner's name."""
    metadata: Object = copy(template.get("metadata") or {})
    for field in ("name", "namespace", "creationTimestamp", "uid", "resourceVersion", "generateName"):
        metadata.pop(field, None)
    if name is None:
        metadata["generateName"] = f"{owner['metadata']['name']}-"
    else:
        metadata["name"] = name
    metadata["namespace"] = owner["metadata"]["namespace"]
    metadata["ownerReferences"] = [owner_reference(owner)]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": copy(template.get("spec") or {})}


def template_hash(template: Mapping[str, Any], collision_count: int | None = None) -> str:
    """A short stable name for a pod template: FNV-1a of its canonical form in the generateName alphabet."""
    value = _FNV_OFFSET
    for byte in _canonical(template).encode():
        value = ((value ^ byte) * _FNV_PRIME) & 0xFFFFFFFF
    if collision_count is not None:
        for byte in str(collision_count).encode():
            value = ((value ^ byte) * _FNV_PRIME) & 0xFFFFFFFF
    return "".join(_SAFE_ALPHABET[ord(digit) % len(_SAFE_ALPHABET)] for digit in str(value))


def _canonical(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ",".join(
            f"{key!r}:{_canonical(value[key])}" for key in sorted(value) if value[key] not in (None, {}, [])
        )
        return "{" + inner + "}"
    if isinstance(value, list):
        return "[" + ",".join(_canonical(item) for item in value) + "]"
    return repr(value)


def set_condition(
    conditions: list[Object],
    type_: str,
    status: str,
    reason: str,
    message: str,
    now: datetime,
    *,
    updates: bool = False,
) -> None:
    """Set a condition in place; ``lastTransitionTime`` moves only when its status does.

    ``updates``: the kind also keeps ``lastUpdateTime`` (Deployments).
    """
    stamp = format_time(now)
    for existing in conditions:
        if existing["type"] == type_:
            if (existing["status"], existing.get("reason"), existing.get("message")) == (status, reason, message):
                return
            if existing["status"] != status:
                existing["lastTransitionTime"] = stamp
            existing.update(status=status, reason=reason, message=message)
            if updates:
                existing["lastUpdateTime"] = stamp
            return
    fresh: Object = {"type": type_, "status": status, "lastTransitionTime": stamp, "reason": reason, "message": message}
    if updates:
        fresh["lastUpdateTime"] = stamp
    conditions.append(fresh)
