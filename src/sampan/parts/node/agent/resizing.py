"""Resizing in place: a running pod's new requests and limits (`kubectl edit --subresource resize`) become its processes'.

What a pod asks for is first *allocated*, all of it or nothing, if the node has room: otherwise the condition PodResizePending
says ``Infeasible`` (never on this node) or ``Deferred`` (not now). What is allocated is then *applied* to each running
container, by its cgroup or, where its ``resizePolicy`` says so, by a restart; meanwhile there is PodResizeInProgress.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING

from sampan.kube.objects import Object, copy, dig
from sampan.kube.types import quantity
from sampan.parts.node.agent import launching
from sampan.parts.node.agent.state import ContainerState, PodState, remembered, roles
from sampan.parts.node.errors import NodeError

if TYPE_CHECKING:
    from sampan.parts.node.agent.worker import PodWorker

KINDS = ("cpu", "memory")
RETRY = 10.0
"""Seconds until what could not be applied is tried again."""


def amounts(resources: Object | None, which: str) -> dict[str, Decimal]:
    """The cpu and memory of ``requests`` or ``limits``."""
    found: Mapping[str, str] = dig(resources, which, default={})
    return {kind: quantity.parse(found[kind]) for kind in KINDS if kind in found}


def changed(old: Object | None, new: Object | None) -> set[str]:
    """Which of cpu and memory differ."""
    kinds: set[str] = set()
    for which in ("requests", "limits"):
        before, after = amounts(old, which), amounts(new, which)
        kinds |= {kind for kind in KINDS if before.get(kind) != after.get(kind)}
    return kinds


def asked(containers: Iterable[Object | None]) -> dict[str, Decimal]:
    """What containers with these resources ask of a node together."""
    total = dict.fromkeys(KINDS, Decimal(0))
    for resources in containers:
        requests = {**amounts(resources, "limits"), **amounts(resources, "requests")}
        for kind, amount in requests.items():
            total[kind] += amount
    return total


def restarts(spec: Object, kinds: set[str]) -> bool:
    """The container's policy wants it restarted for a change of these."""
    policies = {policy["resourceName"]: policy["restartPolicy"] for policy in spec.get("resizePolicy") or ()}
    return any(policies.get(kind) == "RestartContainer" for kind in kinds)


def obstacle(
    wanted: Mapping[str, Decimal], others: Mapping[str, Decimal], allocatable: Mapping[str, str]
) -> tuple[str, str] | None:
    """Why a pod cannot have what it asks for: a reason of PodResizePending and a message; None: it can."""
    for kind in KINDS:
        room = quantity.parse(allocatable.get(kind) or "0")
        if wanted[kind] > room:
            return "Infeasible", (
                f"Node didn't have enough capacity: {kind}, requested: {_whole(kind, wanted[kind])}, "
                f"capacity: {_whole(kind, room)}"
            )
    for kind in KINDS:
        room = quantity.parse(allocatable.get(kind) or "0")
        if wanted[kind] + others[kind] > room:
            return "Deferred", (
                f"Node didn't have enough resource: {kind}, requested: {_whole(kind, wanted[kind])}, "
                f"used: {_whole(kind, others[kind])}, capacity: {_whole(kind, room)}"
            )
    return None


def _whole(kind: str, amount: Decimal) -> int:
    """Millicores, or bytes."""
    return int(amount * 1000) if kind == "cpu" else int(amount)


class Resizing:
    """Resizes the containers of one pod."""

    def __init__(self, worker: PodWorker) -> None:
        self._worker = worker

    def review(self) -> None:
        """See whether the pod asks for something else than it has, and begin what can be done about it."""
        worker, state = self._worker, self._worker.state
        listed = [(spec, state.containers[spec["name"]]) for spec, role in roles(worker.pod) if role != "ephemeral"]
        for spec, container in listed:
            if container.allocated is None:
                container.allocated = copy(spec.get("resources") or {})
        if state.finished or state.ending or worker.pod["metadata"].get("deletionTimestamp"):
            state.resize_pending = None
            return
        if any(changed(container.allocated, spec.get("resources")) for spec, container in listed):
            self._allocate(listed, state)
        else:
            state.resize_pending = None
        now = worker.agent.clock.monotonic()
        for spec, container in listed:
            if not container.running or container.busy or container.doomed or container.resizing:
                continue
            kinds = changed(container.applied, container.allocated)
            if not kinds or now < container.resize_at:
                continue
            if restarts(spec, kinds):
                container.doomed = "Killing"
                container.doomed_message = f"Container {container.name} resize requires restart"
                continue
            container.resizing = True
            worker.begin(f"resize-{container.name}", partial(self._apply, container))

    def _allocate(self, listed: list[tuple[Object, ContainerState]], state: PodState) -> None:
        worker = self._worker
        others = dict.fromkeys(KINDS, Decimal(0))
        for other in worker.agent.workers.values():
            if other is not worker and not other.state.finished:
                for kind, amount in asked(
                    other.state.containers[spec["name"]].allocated
                    for spec, role in roles(other.pod)
                    if role in ("main", "sidecar")
                ).items():
                    others[kind] += amount
        wanted = asked(spec.get("resources") for spec, container in listed if container.role in ("main", "sidecar"))
        before = state.resize_pending
        state.resize_pending = obstacle(wanted, others, worker.agent.allocatable)
        if state.resize_pending is not None:
            if before != state.resize_pending:
                worker.event("Warning", f"Resize{state.resize_pending[0]}", state.resize_pending[1])
            return
        for spec, container in listed:
            container.allocated = copy(spec.get("resources") or {})
        worker.event("Normal", "ResizeStarted", "Pod resize started")

    async def _apply(self, container: ContainerState) -> None:
        """Give a running container the limits that were allocated to it."""
        worker, agent = self._worker, self._worker.agent
        identity, resources = container.id, container.allocated
        try:
            limits = launching.limits({"resources": resources or {}})
            usage = (await agent.runtime.usage([identity])).get(identity)
            if limits.memory and usage is not None and usage.memory_bytes > limits.memory:
                raise NodeError(
                    f"attempting to set pod memory limit ({limits.memory}) below current usage ({usage.memory_bytes})"
                )
            await agent.runtime.update(identity, limits, {"resources": remembered(resources)})
        except (NodeError, OSError) as error:
            if container.resize_error != str(error):
                worker.event("Warning", "ResizeError", f"Error: {error}", container.name)
            container.resize_error = str(error)
            container.resize_at = agent.clock.monotonic() + RETRY
            agent.after(RETRY, worker.wake)
        else:
            if container.id == identity:
                container.applied, container.resize_error = resources, ""
                worker.event("Normal", "ResizeCompleted", f"Container {container.name} resized", container.name)
        finally:
            container.resizing = False
