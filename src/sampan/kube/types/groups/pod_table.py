"""How a pod reads in ``kubectl get pods``: readiness, the one word for its state, restarts."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from sampan.kube.objects import Object, dig
from sampan.kube.types import duration
from sampan.kube.types.groups import cells


class PodSummary(NamedTuple):
    """The cells that take more than reading a field."""

    ready: int
    total: int
    state: str
    restarts: int
    last_restart: str
    """When the last one ended; empty: unknown."""


def summarise(pod: Mapping[str, Any]) -> PodSummary:
    """What is going on in a pod, as upstream condenses it."""
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    phase = status.get("phase") or ""
    state = status.get("reason") or phase
    if cells.condition(pod, "PodScheduled").get("reason") == "SchedulingGated":
        state = "SchedulingGated"
    sidecars = {c.get("name") for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always"}
    total, ready = len(spec.get("containers") or ()) + len(sidecars), 0
    restarts = sidecar_restarts = 0
    last = sidecar_last = ""
    initializing = False
    for index, container in enumerate(status.get("initContainerStatuses") or ()):
        count, ended = container.get("restartCount") or 0, _last_end(container)
        restarts, last = restarts + count, max(last, ended)
        sidecar = container.get("name") in sidecars
        if sidecar:
            sidecar_restarts, sidecar_last = sidecar_restarts + count, max(sidecar_last, ended)
        terminated, waiting = dig(container, "state", "terminated"), dig(container, "state", "waiting")
        if terminated is not None and not terminated.get("exitCode"):
            continue
        if sidecar and container.get("started"):
            ready += bool(container.get("ready"))
            continue
        if terminated is not None:
            state = f"Init:{_ending(terminated)}"
        elif waiting and waiting.get("reason") not in (None, "", "PodInitializing"):
            state = f"Init:{waiting['reason']}"
        else:
            state = f"Init:{index}/{len(spec.get('initContainers') or ())}"
        initializing = True
        break
    if not initializing or cells.is_true(pod, "Initialized"):
        restarts, last, running = sidecar_restarts, sidecar_last, False
        for container in reversed(status.get("containerStatuses") or ()):
            restarts, last = restarts + (container.get("restartCount") or 0), max(last, _last_end(container))
            terminated, waiting = dig(container, "state", "terminated"), dig(container, "state", "waiting")
            if waiting and waiting.get("reason"):
                state = waiting["reason"]
            elif terminated is not None:
                state = _ending(terminated)
            elif container.get("ready") and dig(container, "state", "running") is not None:
                running, ready = True, ready + 1
        if state == "Completed" and running:
            state = "Running" if cells.is_true(pod, "Ready") else "NotReady"
    if pod["metadata"].get("deletionTimestamp"):
        if status.get("reason") == "NodeLost":
            state = "Unknown"
        elif phase not in ("Succeeded", "Failed"):
            state = "Terminating"
    return PodSummary(ready, total, state, restarts, last)


def _last_end(container: Mapping[str, Any]) -> str:
    return str(dig(container, "lastState", "terminated", "finishedAt", default=""))


def _ending(terminated: Mapping[str, Any]) -> str:
    if reason := terminated.get("reason"):
        return str(reason)
    if signal := terminated.get("signal"):
        return f"Signal:{signal}"
    return f"ExitCode:{terminated.get('exitCode') or 0}"


def row(pod: Object, now: datetime) -> list[Any]:
    """The cells of a pod."""
    summary = summarise(pod)
    restarts = str(summary.restarts)
    if summary.restarts and summary.last_restart:
        restarts = f"{restarts} ({duration.age(summary.last_restart, now)} ago)"
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    gates = [gate.get("conditionType") for gate in spec.get("readinessGates") or ()]
    return [
        pod["metadata"]["name"],
        f"{summary.ready}/{summary.total}",
        summary.state,
        restarts,
        cells.age(pod, now),
        next((address.get("ip") for address in status.get("podIPs") or ()), status.get("podIP")) or cells.NONE,
        spec.get("nodeName") or cells.NONE,
        status.get("nominatedNodeName") or cells.NONE,
        f"{sum(cells.is_true(pod, gate) for gate in gates)}/{len(gates)}" if gates else cells.NONE,
    ]


def conditions(pod: Mapping[str, Any]) -> list[Object]:
    """Row conditions: kubectl hides finished pods where it is asked to."""
    phase = dig(pod, "status", "phase")
    if phase not in ("Succeeded", "Failed"):
        return []
    message = "The pod has completed successfully." if phase == "Succeeded" else "The pod failed."
    return [{"type": "Completed", "status": "True", "reason": phase, "message": message}]
