"""Ending a container, and what is told of its end: exit code, reason, termination message, backoff."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING

from sampan.kube.objects import dig
from sampan.parts.node.agent.plan import crashed
from sampan.parts.node.agent.state import ContainerState, Ended
from sampan.parts.node.runtime.interface import Container

if TYPE_CHECKING:
    from sampan.parts.node.agent.worker import PodWorker

TERMINATION_MESSAGE_LIMIT = 4096
FALLBACK_LINES, FALLBACK_BYTES = 80, 2048
HOOK_OVERRUN = 2.0
"""Seconds a container still gets after a preStop hook used up the grace period."""


class Ending:
    """Ends the containers of one pod and notes their ends."""

    def __init__(self, worker: PodWorker) -> None:
        self._worker = worker

    async def kill(self, state: ContainerState, grace: float, reason: str, message: str) -> None:
        """preStop hook, stop signal, grace, SIGKILL; returns once the process has ended."""
        agent, clock, spec = self._worker.agent, self._worker.agent.clock, self._worker.spec_of(state.name)
        state.ready = False
        if message:
            self._worker.event("Normal", reason or "Killing", message, state.name)
        self._worker.probing.stop(state)
        deadline = clock.monotonic() + grace
        hook = dig(spec, "lifecycle", "preStop")
        if hook and grace > 0 and state.running:
            outcome = await agent.handlers.run(hook, state.id, spec, self._worker.state.address, grace)
            if not outcome.ok:
                self._worker.event("Warning", "FailedPreStopHook", f"PreStopHook failed: {outcome.message}", state.name)
            deadline = max(deadline, clock.monotonic() + HOOK_OVERRUN)
        image = self._worker.images.get(state.name)
        name = dig(spec, "lifecycle", "stopSignal") or (image.config.stop_signal if image else "") or "SIGTERM"
        if state.running and grace > 0:
            if self._worker.pod["metadata"].get("deletionTimestamp"):
                await agent.letting_go.wait(self._worker.uid)
            await agent.runtime.signal(state.id, _signal(name))
        while state.running:
            left = deadline - clock.monotonic()
            if left <= 0:
                await agent.runtime.signal(state.id, signal.SIGKILL, everyone=True)
                left = 5.0
            event = self._worker.kills.get(state.name) or asyncio.Event()
            event.clear()
            if self._worker.pod["metadata"].get("deletionTimestamp"):
                asked = self._worker.pod["metadata"].get("deletionGracePeriodSeconds")
                if asked is not None and asked < grace:
                    deadline = min(deadline, clock.monotonic() + asked)
                    grace = asked
                    left = max(0.0, deadline - clock.monotonic())
            with contextlib.suppress(TimeoutError):
                async with clock.timeout(max(0.001, left)):
                    await event.wait()
        state.busy = ""
        self._worker.kills.pop(state.name, None)
        self._worker.wake()

    def note(self, container: Container) -> None:
        """A process of this pod has ended: what is told of it, and when its container may run again."""
        state = next(one for one in self._worker.state.containers.values() if one.id == container.id)
        record = container.exit
        assert record is not None
        self._worker.probing.stop(state)
        state.running = state.ready = state.started_up = False
        reason = "OOMKilled" if record.oom else "Completed" if record.code == 0 else "Error"
        message = ""
        if record.error == "lost":
            reason, message = "ContainerStatusUnknown", "The container could not be located when the pod was terminated"
        elif record.error:
            reason, message = "StartError", f"failed to start container: {record.error}"
        else:
            message = self._termination_message(state, record.code)
        state.ended = Ended(
            128 if record.error and record.error != "lost" else record.code,
            record.finished_at,
            container.started_at or state.started,
            record.signal,
            reason,
            message,
            container.id,
        )
        crashed(state, self._worker.agent.clock.monotonic())
        if state.delay and self._worker.state.sandbox and not self._worker.pod["metadata"].get("deletionTimestamp"):
            name = f"{self._worker.pod['metadata']['name']}_{self._worker.pod['metadata']['namespace']}({self._worker.uid})"
            text = f"Back-off restarting failed container {state.name} in pod {name}"
            policy = self._worker.pod["spec"].get("restartPolicy") or "Always"
            if policy == "Always" or (policy == "OnFailure" and record.code):
                self._worker.event("Warning", "BackOff", text, state.name)
        if event := self._worker.kills.get(state.name):
            event.set()

    def _termination_message(self, state: ContainerState, code: int) -> str:
        """What the container left at its termination path, else the end of its log if asked. Small files only."""
        path = self._worker.agent.layout.container(self._worker.uid, state.id) / "termination-log"
        try:
            with path.open("rb") as file:
                text = file.read(TERMINATION_MESSAGE_LIMIT).decode(errors="replace")
        except OSError:
            text = ""
        spec = self._worker.spec_of(state.name)
        if text or code == 0 or spec.get("terminationMessagePolicy") != "FallbackToLogsOnError":
            return text
        try:
            with self._worker.agent.layout.log(self._worker.uid, state.name, state.restarts).open("rb") as file:
                file.seek(0, 2)
                file.seek(max(0, file.tell() - 16384))
                lines = file.read().decode(errors="replace").splitlines()[-FALLBACK_LINES:]
        except OSError:
            return ""
        return "\n".join(line.split(" ", 3)[3] for line in lines if line.count(" ") >= 3)[-FALLBACK_BYTES:]


def _signal(name: str) -> int:
    if name.isdecimal():
        return int(name)
    try:
        return int(signal.Signals[name if name.startswith("SIG") else f"SIG{name}"])
    except KeyError:
        return int(signal.SIGTERM)
