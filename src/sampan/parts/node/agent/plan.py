"""The agent's decision: from a pod, what was seen of it, and the time, to what to do now. Pure.

The worker calls `plan` whenever anything changed, does what it says, and calls again. A decision names only what must begin;
what is under way (``busy``) is left alone. The rules are the kubelet's: init containers one after the other, sidecars started
among them and kept, restarts with backoff, and an end in which the sidecars leave last, in reverse order.
"""

from __future__ import annotations

from dataclasses import dataclass

from sampan.kube.objects import Object
from sampan.parts.node.agent.state import BACKOFF_RESET, ContainerState, PodState, container_hash, grace_period, roles


@dataclass(frozen=True)
class SetUp:
    """Make volumes and sandbox."""


@dataclass(frozen=True)
class Start:
    """Start a container's process."""

    container: str


@dataclass(frozen=True)
class Kill:
    """End a container's process: hook, SIGTERM, grace, SIGKILL."""

    container: str
    grace: float
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class TearDown:
    """Remove sandbox and volumes; nothing runs any more."""


@dataclass(frozen=True)
class Finish:
    """Remove the object: its deletion is complete."""


@dataclass(frozen=True)
class End:
    """End the pod as failed."""

    reason: str
    message: str


Action = SetUp | Start | Kill | TearDown | Finish | End


@dataclass
class Decision:
    """What to begin, and when to look again if nothing happens before."""

    actions: list[Action]
    look_again_at: float | None = None

    def wait(self, at: float) -> None:
        """Look again at a monotonic time, or earlier."""
        self.look_again_at = at if self.look_again_at is None else min(self.look_again_at, at)


def restart_wanted(policy: str, container: ContainerState) -> bool:
    """The policy wants an ended container to run again."""
    assert container.ended is not None
    if container.role == "ephemeral":
        return False
    if container.role == "sidecar":
        return True
    if container.role == "init":
        return container.ended.code != 0 and policy != "Never"
    return policy == "Always" or (policy == "OnFailure" and container.ended.code != 0)


def plan(pod: Object, state: PodState, now: float, wall: float) -> Decision:
    """Decide."""
    decision = Decision([])
    deleting = bool(pod["metadata"].get("deletionTimestamp"))
    deadline = pod["spec"].get("activeDeadlineSeconds")
    if deadline is not None and not state.ending and not state.finished and not deleting and state.started:
        left = state.started + deadline - wall
        if left <= 0:
            return Decision([End("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")])
        decision.wait(now + left)
    if deleting or state.ending or state.finished:
        _end(pod, state, decision, deleting)
        return decision
    if not state.sandbox:
        if not state.sandbox_busy:
            if now >= state.sandbox_retry_at:
                decision.actions.append(SetUp())
            else:
                decision.wait(state.sandbox_retry_at)
        return decision
    policy = pod["spec"].get("restartPolicy") or "Always"
    _doomed(pod, state, decision)
    if not _init(pod, state, policy, decision, now):
        return decision
    for spec, role in roles(pod):
        container = state.containers[spec["name"]]
        if role == "main" or (role == "ephemeral" and _target_runs(spec, state)):
            _keep(container, policy, decision, now)
    return decision


def _doomed(pod: Object, state: PodState, decision: Decision) -> None:
    """Running containers that must be replaced."""
    for spec, role in roles(pod):
        container = state.containers[spec["name"]]
        if container.running and not container.busy:
            if (
                role != "ephemeral"
                and container.hash
                and container.hash != container_hash(spec)
                and not container.doomed
            ):
                container.doomed = "Killing"
                container.doomed_message = f"Container {container.name} definition changed, will be restarted"
            if container.doomed:
                grace = grace_period(pod) if container.grace is None else float(container.grace)
                decision.actions.append(Kill(container.name, grace, container.doomed, container.doomed_message))


def _init(pod: Object, state: PodState, policy: str, decision: Decision, now: float) -> bool:
    """Bring the init containers forward; True once the main ones may run."""
    for spec, role in roles(pod):
        if role not in ("init", "sidecar"):
            continue
        container = state.containers[spec["name"]]
        if role == "sidecar":
            _keep(container, policy, decision, now)
            if not container.started_up and not state.initialized:
                return False
            continue
        if state.initialized:
            continue
        if container.running or container.busy:
            return False
        if container.ended is not None and container.ended.code == 0:
            continue
        if container.ended is not None and not restart_wanted(policy, container):
            state.finished = "Failed"
            _end(pod, state, decision, False)
            return False
        _keep(container, policy, decision, now)
        return False
    state.initialized = True
    return True


def _keep(container: ContainerState, policy: str, decision: Decision, now: float) -> None:
    """Have a container run, as its policy and backoff allow."""
    if container.running or container.busy:
        return
    if container.ended is not None and not restart_wanted(policy, container):
        return
    if now >= container.retry_at:
        decision.actions.append(Start(container.name))
    else:
        decision.wait(container.retry_at)


def _target_runs(spec: Object, state: PodState) -> bool:
    target = spec.get("targetContainerName")
    return not target or (target in state.containers and state.containers[target].running)


def completed(pod: Object, state: PodState) -> str:
    """``Succeeded`` or ``Failed`` once every main container has ended for good, else ""."""
    if not state.initialized:
        return ""
    policy = pod["spec"].get("restartPolicy") or "Always"
    ends = [state.containers[spec["name"]] for spec, role in roles(pod) if role == "main"]
    if any(container.ended is None or container.running or container.busy for container in ends):
        return ""
    if any(restart_wanted(policy, container) for container in ends):
        return ""
    return "Succeeded" if all(c.ended is not None and c.ended.code == 0 for c in ends) else "Failed"


def _end(pod: Object, state: PodState, decision: Decision, deleting: bool) -> None:
    """End what runs, the sidecars after the others and one by one from the last; then clear away."""
    grace = grace_period(pod) if state.ending_grace is None or deleting else state.ending_grace
    listed = [(state.containers[spec["name"]], role) for spec, role in roles(pod)]
    alive = [(container, role) for container, role in listed if container.running or container.busy]
    first = [container for container, role in alive if role != "sidecar"]
    targets = first or [container for container, _role in reversed(alive)][:1]
    for container in targets:
        if container.running and container.busy != "killing":
            decision.actions.append(Kill(container.name, grace, "Killing", f"Stopping container {container.name}"))
    if alive or state.sandbox_busy:
        return
    if not state.removed:
        decision.actions.append(TearDown())
    elif deleting:
        decision.actions.append(Finish())


def crashed(container: ContainerState, now: float) -> None:
    """Set the backoff after a container's end: the first restart is immediate, then 10, 20, 40, ... 300 seconds."""
    ended = container.ended
    if ended is None:
        return
    ran = ended.finished - ended.started
    if ran >= BACKOFF_RESET:
        container.delay = 0.0
    container.retry_at = now + container.delay
