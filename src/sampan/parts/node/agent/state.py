"""What the agent has seen of one pod: the facts a decision is made from.

`PodState` is filled by the worker (runtime events, probe results, failed attempts) and read by `plan` and `status`, which are
pure. Times are the platform's: ``*_at`` monotonic seconds where something waits for them, ``started``/``finished`` wall seconds
where they are shown.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from sampan.kube.objects import Object, dig

Role = Literal["init", "sidecar", "main", "ephemeral"]

BACKOFF_FIRST = 10.0
BACKOFF_LIMIT = 300.0
BACKOFF_RESET = 600.0
"""Seconds a container must have run for its crashes to be forgotten."""


@dataclass
class Ended:
    """How a container's last process ended."""

    code: int
    finished: float
    started: float
    signal: int = 0
    reason: str = ""
    message: str = ""
    container: str = ""


@dataclass
class ContainerState:
    """One container of a pod."""

    name: str
    role: Role
    id: str = ""
    """The runtime's id of the newest process; "" before the first."""
    image: str = ""
    image_id: str = ""
    running: bool = False
    started: float = 0.0
    started_up: bool = False
    """The startup probe has passed (or there is none), and the postStart hook is done."""
    ready: bool = False
    ended: Ended | None = None
    """How the newest process ended."""
    last: Ended | None = None
    """How the one before it ended."""
    restarts: int = 0
    hash: str = ""
    """Of the container's spec when it was started."""
    reason: str = ""
    message: str = ""
    """Why it waits."""
    retry_at: float = 0.0
    """When to try again what failed."""
    delay: float = 0.0
    """The restart or retry delay in force."""
    doomed: str = ""
    """Why the running process must end (a failed liveness probe, a changed spec)."""
    doomed_message: str = ""
    grace: int | None = None
    """Seconds of grace for that end, where it differs from the pod's."""
    busy: str = ""
    """An action under way: ``starting`` or ``killing``."""
    user: dict[str, Any] = field(default_factory=dict)
    allocated: Object | None = None
    """The resources the node has granted; None before it was asked."""
    applied: Object | None = None
    """The resources its process runs with."""
    resizing: bool = False
    resize_error: str = ""
    """Why they could not be applied."""
    resize_at: float = 0.0
    """When to try that again."""


@dataclass
class PodState:
    """One pod."""

    containers: dict[str, ContainerState] = field(default_factory=dict)
    sandbox: bool = False
    sandbox_busy: bool = False
    sandbox_retry_at: float = 0.0
    sandbox_reason: str = ""
    sandbox_message: str = ""
    sandbox_delay: float = 0.0
    address: str = ""
    started: float = 0.0
    """When the agent first saw the pod, wall seconds."""
    initialized: bool = False
    """All init containers have done their work once."""
    ending: str = ""
    """Reason for which the agent ends the pod (DeadlineExceeded, Evicted, ...)."""
    ending_message: str = ""
    ending_grace: float | None = None
    """Seconds of grace for that end, where it differs from the pod's."""
    disrupted: str = ""
    """The node ended it for its own sake: the message of the condition DisruptionTarget."""
    finished: Literal["", "Succeeded", "Failed"] = ""
    resize_pending: tuple[str, str] | None = None
    """Reason and message for which the node does not grant what the pod asks for now."""
    removed: bool = False
    """Its processes, sandbox and volumes are gone; only the object remains."""


def roles(pod: Object) -> list[tuple[dict[str, Any], Role]]:
    """The pod's containers in the order they start."""
    spec = pod["spec"]
    listed: list[tuple[dict[str, Any], Role]] = []
    for container in spec.get("initContainers") or ():
        listed.append((container, "sidecar" if container.get("restartPolicy") == "Always" else "init"))
    listed += [(container, "main") for container in spec.get("containers") or ()]
    listed += [(container, "ephemeral") for container in spec.get("ephemeralContainers") or ()]
    return listed


def container_hash(container: dict[str, Any]) -> str:
    """Changes when a running container must be replaced: its image (all else of a pod's spec is fixed)."""
    told = {key: container.get(key) for key in ("name", "image")}
    return hashlib.sha256(msgspec.json.encode(told, order="sorted")).hexdigest()[:16]


def next_delay(delay: float) -> float:
    """10, 20, 40, ... 300 seconds."""
    return BACKOFF_FIRST if delay == 0 else min(delay * 2, BACKOFF_LIMIT)


def grace_period(pod: Object) -> float:
    """Seconds between SIGTERM and SIGKILL."""
    metadata = pod["metadata"]
    if metadata.get("deletionTimestamp") and metadata.get("deletionGracePeriodSeconds") is not None:
        return float(metadata["deletionGracePeriodSeconds"])
    seconds = dig(pod, "spec", "terminationGracePeriodSeconds")
    return 30.0 if seconds is None else float(seconds)


def remembered(resources: Object | None) -> str:
    """Resources as a label of the runtime's."""
    return msgspec.json.encode(resources or {}).decode()


def recalled(label: str) -> Object | None:
    """Resources from a label of the runtime's; None where there is none."""
    if not label:
        return None
    resources: Object = msgspec.json.decode(label)
    return resources
