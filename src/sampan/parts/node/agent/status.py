"""A pod's status from what the agent has seen: phases, conditions, container statuses. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sampan.kube.objects import Object, copy, dig
from sampan.kube.types.duration import format_time
from sampan.kube.types.qos import qos_class
from sampan.parts.node.agent.plan import completed, restart_wanted
from sampan.parts.node.agent.state import ContainerState, Ended, PodState, roles

RUNTIME = "sampan"
PASSING_CONDITIONS = ("PodResizePending", "PodResizeInProgress")
"""Conditions that are there only while they are true."""


def _time(wall: float) -> str:
    return format_time(datetime.fromtimestamp(wall, UTC))


def _terminated(ended: Ended) -> Object:
    told: Object = {
        "exitCode": ended.code,
        "reason": ended.reason or ("Completed" if ended.code == 0 else "Error"),
        "startedAt": _time(ended.started),
        "finishedAt": _time(ended.finished),
        "containerID": f"{RUNTIME}://{ended.container}",
    }
    if ended.signal:
        told["signal"] = ended.signal
    if ended.message:
        told["message"] = ended.message
    return {"terminated": told}


def _waiting(reason: str, message: str = "") -> Object:
    told = {"reason": reason}
    if message:
        told["message"] = message
    return {"waiting": told}


def container_state(pod: Object, state: PodState, container: ContainerState, now: float) -> tuple[Object, Object]:
    """``state`` and ``lastState`` of a container status."""
    last = _terminated(container.last) if container.last else {}
    if container.running and container.busy != "starting":
        return {"running": {"startedAt": _time(container.started)}}, last
    policy = pod["spec"].get("restartPolicy") or "Always"
    over = bool(state.ending or state.finished or pod["metadata"].get("deletionTimestamp"))
    ended = container.ended
    if ended is not None and (over or not restart_wanted(policy, container)):
        return _terminated(ended), last
    if container.running:
        return _waiting("ContainerCreating" if state.initialized else "PodInitializing"), last
    if container.reason:
        if ended is not None:
            last = _terminated(ended)
        return _waiting(container.reason, container.message), last
    if ended is not None:
        if container.delay and now < container.retry_at:
            uid = pod["metadata"]["uid"]
            name = f"{pod['metadata']['name']}_{pod['metadata']['namespace']}({uid})"
            words = "5m0s" if container.delay >= 300 else _seconds(container.delay)
            message = f"back-off {words} restarting failed container={container.name} pod={name}"
            return _waiting("CrashLoopBackOff", message), _terminated(ended)
        return _terminated(ended), last
    has_init = bool(pod["spec"].get("initContainers"))
    waits_for_init = has_init and not state.initialized and container.role == "main"
    return _waiting("PodInitializing" if waits_for_init or (has_init and state.sandbox) else "ContainerCreating"), last


def _seconds(delay: float) -> str:
    minutes, seconds = divmod(int(delay), 60)
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


def _container_status(pod: Object, state: PodState, spec: Object, now: float) -> Object:
    container = state.containers[spec["name"]]
    current, last = container_state(pod, state, container, now)
    # what changes while a first process starts is told once it runs
    shown = container.busy != "starting" or container.restarts > 0
    status: Object = {
        "name": container.name,
        "image": container.image if shown and container.image else spec.get("image", ""),
        "imageID": container.image_id if shown else "",
        "restartCount": container.restarts,
        "ready": _ready(container),
        "started": container.running and container.started_up,
        "state": current,
        "lastState": last,
    }
    if container.id and shown:
        status["containerID"] = f"{RUNTIME}://{container.id}"
    if container.role in ("init", "ephemeral"):
        status["started"] = container.running
    granted = spec.get("resources") if container.allocated is None else container.allocated
    if resources := (container.applied if container.running and container.applied is not None else granted):
        status["resources"] = copy(resources)
    if requests := dig(granted, "requests"):
        status["allocatedResources"] = copy(requests)
    if container.user:
        status["user"] = copy(container.user)
    return status


def _ready(container: ContainerState) -> bool:
    if container.role == "init":
        return container.ended is not None and container.ended.code == 0
    return container.running and container.ready


def phase(pod: Object, state: PodState) -> str:
    """Pending, Running, Succeeded or Failed."""
    if state.finished:
        return state.finished
    if state.ending and not any(c.running or c.busy for c in state.containers.values()):
        return "Failed"  # said once nothing runs any more: whoever replaces the pod must not meet it
    over = completed(pod, state)
    if over:
        return over
    if not state.initialized:
        return "Pending"
    mains = [state.containers[spec["name"]] for spec, role in roles(pod) if role == "main"]
    if any((c.running and c.busy != "starting") or c.ended or c.last for c in mains):
        return "Running"
    return "Pending"


def pod_status(pod: Object, state: PodState, now: float, wall: float, host: str, told: Object | None = None) -> Object:
    """The whole status to write; ``told`` is the last one, which ``pod`` may not show yet.

    Times follow from what was told: taken from the object alone, two writes that are under way at once would each restore
    the other's times for ever.
    """
    old: Object = told or pod.get("status") or {}
    current = phase(pod, state)
    status: Object = {"phase": current, "qosClass": old.get("qosClass") or qos_class(pod["spec"])}
    status["observedGeneration"] = pod["metadata"].get("generation", 1)
    if state.ending and current == "Failed":
        status["reason"] = state.ending
        status["message"] = state.ending_message
    status["hostIP"] = host
    status["hostIPs"] = [{"ip": host}]
    if state.address:
        status["podIP"] = state.address
        status["podIPs"] = [{"ip": state.address}]
    status["startTime"] = old.get("startTime") or _time(state.started)
    groups: dict[str, list[Object]] = {"init": [], "main": [], "ephemeral": []}
    for spec, role in roles(pod):
        groups["init" if role == "sidecar" else role].append(_container_status(pod, state, spec, now))
    for group, name in (
        ("init", "initContainerStatuses"),
        ("main", "containerStatuses"),
        ("ephemeral", "ephemeralContainerStatuses"),
    ):
        if groups[group]:
            status[name] = groups[group]
    status["conditions"] = conditions(pod, state, current, wall, told)
    return {key: value for key, value in status.items() if value not in (None, "")}


def conditions(pod: Object, state: PodState, current: str, wall: float, told: Object | None = None) -> list[Object]:
    """The agent's conditions of a pod, not those of others; times move only when a status does."""
    old = {condition["type"]: condition for condition in dig(pod, "status", "conditions", default=())}
    own = {**old, **{condition["type"]: condition for condition in dig(told, "conditions", default=())}}
    mains = [state.containers[spec["name"]] for spec, role in roles(pod) if role == "main"]
    sidecars = [state.containers[spec["name"]] for spec, role in roles(pod) if role == "sidecar"]
    inits = [state.containers[spec["name"]] for spec, role in roles(pod) if role in ("init", "sidecar")]
    over = current in ("Succeeded", "Failed")
    wanted: list[tuple[str, bool, str, str]] = [("PodReadyToStartContainers", state.sandbox and not over, "", "")]
    open_inits = [c.name for c in inits if not (c.started_up if c.role == "sidecar" else _ready(c))]
    initialized = state.initialized or not inits
    words = f"containers with incomplete status: {_listed(open_inits)}"
    wanted.append(
        ("Initialized", initialized, "" if initialized else "ContainersNotInitialized", "" if initialized else words)
    )
    if current == "Succeeded":
        wanted[-1] = ("Initialized", True, "PodCompleted", "")
    unready = [c.name for c in [*sidecars, *mains] if not _ready(c)]
    gates = [gate["conditionType"] for gate in pod["spec"].get("readinessGates") or ()]
    if over:
        reason = "PodCompleted" if current == "Succeeded" else "PodFailed"
        wanted += [("Ready", False, reason, ""), ("ContainersReady", False, reason, "")]
    elif unready:
        words = f"containers with unready status: {_listed(unready)}"
        wanted += [
            ("Ready", False, "ContainersNotReady", words),
            ("ContainersReady", False, "ContainersNotReady", words),
        ]
    else:
        failing = [gate for gate in gates if dig(old.get(gate), "status") != "True"]
        if failing:
            words = "; ".join(
                f'the status of pod readiness gate "{gate}" is not "True", but {dig(old.get(gate), "status", default="Unknown")}'
                if gate in old
                else f'corresponding condition of pod readiness gate "{gate}" does not exist.'
                for gate in failing
            )
            wanted.append(("Ready", False, "ReadinessGatesNotReady", words))
        else:
            wanted.append(("Ready", True, "", ""))
        wanted.append(("ContainersReady", True, "", ""))
    if state.resize_pending is not None:
        wanted.append(("PodResizePending", True, *state.resize_pending))
    if state.disrupted:
        wanted.append(("DisruptionTarget", True, "TerminationByKubelet", state.disrupted))
    if not over and (resizing := [c for c in state.containers.values() if _resizing(c)]):
        errors = [c.resize_error for c in resizing if c.resize_error]
        wanted.append(("PodResizeInProgress", True, "Error" if errors else "", errors[0] if errors else ""))
    result = []
    generation = pod["metadata"].get("generation", 1)
    for kind, value, reason, message in wanted:
        text = "True" if value else "False"
        before = own.get(kind)
        since = before.get("lastTransitionTime") if before and before.get("status") == text else None
        condition: dict[str, Any] = {"type": kind, "status": text, "lastProbeTime": None}
        condition["lastTransitionTime"] = since or _time(wall)
        condition["observedGeneration"] = generation
        if reason:
            condition["reason"] = reason
        if message:
            condition["message"] = message
        result.append(condition)
    scheduled = own.get("PodScheduled") or {
        "type": "PodScheduled",
        "status": "True",
        "lastProbeTime": None,
        "lastTransitionTime": _time(wall),
    }
    return [*result, scheduled]


def _resizing(container: ContainerState) -> bool:
    """It runs with other resources than it was granted."""
    return container.running and container.applied is not None and container.applied != container.allocated


def _listed(names: list[str]) -> str:
    return f"[{' '.join(names)}]"
