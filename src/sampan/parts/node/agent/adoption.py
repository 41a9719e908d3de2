"""Picking up what runs after an agent restart: from a pod's last status and the runtime's list to the worker's state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sampan.kube.objects import Object, dig
from sampan.kube.types.duration import parse_time
from sampan.parts.node.agent.state import Ended, recalled
from sampan.parts.node.runtime.interface import Container

if TYPE_CHECKING:
    from sampan.parts.node.agent.worker import PodWorker


def adopt(worker: PodWorker, address: str, containers: list[Container]) -> None:
    """Give a worker what runs of its pod since before an agent restart."""
    worker.state.sandbox, worker.state.address = True, address
    known: dict[str, Object] = {}
    for status in [
        *dig(worker.pod, "status", "containerStatuses", default=()),
        *dig(worker.pod, "status", "initContainerStatuses", default=()),
    ]:
        state = worker.state.containers.get(status["name"])
        known[(status.get("containerID") or "").rpartition("/")[2]] = status
        if state is not None:
            state.restarts = status.get("restartCount", 0)
            state.last = _ended(dig(status, "lastState", "terminated"))
            state.image, state.image_id = status.get("image", ""), status.get("imageID", "")
            state.ended = _ended(dig(status, "state", "terminated"))
    for container in sorted(containers, key=lambda one: (one.attempt, one.started_at)):
        state = worker.state.containers.get(container.labels.get("container", ""))
        if state is None:
            continue
        state.id, state.restarts = container.id, max(container.attempt, state.restarts)
        state.hash = container.labels.get("hash", "")
        state.applied = recalled(container.labels.get("resources", ""))
        state.allocated = state.applied
        state.image, state.image_id = container.labels.get("image", ""), container.labels.get("image_id", "")
        state.started = container.started_at
        if container.exit is not None:
            state.running = True
            worker.ending.note(container)
        else:
            state.running, state.ended = True, None
            # what was ready stays so until a probe says otherwise: an agent's restart takes nothing out of Services
            spec, status = worker.spec_of(state.name), known.get(container.id, {})
            state.started_up = not spec.get("startupProbe") or bool(status.get("started"))
            state.ready = state.started_up and (not spec.get("readinessProbe") or bool(status.get("ready")))
            worker.probing.start(state)
    mains = [state for state in worker.state.containers.values() if state.role == "main"]
    worker.state.initialized = any(state.id for state in mains)


def _ended(terminated: Object | None) -> Ended | None:
    if not terminated:
        return None

    def seconds(name: str) -> float:
        return parse_time(terminated[name]).timestamp() if terminated.get(name) else 0.0

    return Ended(
        terminated["exitCode"],
        seconds("finishedAt"),
        seconds("startedAt"),
        terminated.get("signal", 0),
        terminated.get("reason", ""),
        terminated.get("message", ""),
        (terminated.get("containerID") or "").rpartition("/")[2],
    )
