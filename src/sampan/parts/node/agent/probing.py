"""Which probes of a pod run when, and what their verdicts do to it."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from sampan.parts.node.agent.probes import Kind, watch
from sampan.parts.node.agent.state import ContainerState

if TYPE_CHECKING:
    from sampan.parts.node.agent.worker import PodWorker


class Probing:
    """The probes of one pod."""

    def __init__(self, worker: PodWorker) -> None:
        self._worker = worker
        self._running: dict[str, list[asyncio.Task[None]]] = {}

    def start(self, state: ContainerState) -> None:
        """Watch a container: by its startup probe until it has passed, then by the others."""
        spec = self._worker.spec_of(state.name)
        kinds: list[Kind] = (
            ["startup"] if spec.get("startupProbe") and not state.started_up else ["liveness", "readiness"]
        )
        for kind in kinds:
            probe = spec.get(f"{kind}Probe")
            if not probe:
                continue
            identity = state.id

            def verdict(kind: Kind, ok: bool, message: str, identity: str = identity) -> None:
                self._verdict(state, identity, kind, ok, message)

            def failed(kind: Kind, message: str, identity: str = identity) -> None:
                if state.id == identity and state.running:
                    self._worker.event(
                        "Warning", "Unhealthy", f"{kind.capitalize()} probe failed: {message}", state.name
                    )

            jitter = (int(self._worker.uid.replace("-", "")[:6] or "0", 16) % 100) / 100
            work = partial(
                watch,
                kind,
                probe,
                handlers=self._worker.agent.handlers,
                container=state.id,
                spec=spec,
                address=self._worker.state.address,
                clock=self._worker.agent.clock,
                verdict=verdict,
                failed=failed,
                jitter=jitter,
            )
            task = self._worker.begin(f"{kind}-{state.name}", work)
            self._running.setdefault(state.name, []).append(task)

    def stop(self, state: ContainerState) -> None:
        """Watch it no more."""
        for task in self._running.pop(state.name, ()):
            if task is not asyncio.current_task():
                task.cancel()

    def _verdict(self, state: ContainerState, identity: str, kind: Kind, ok: bool, message: str) -> None:
        if state.id != identity or not state.running:
            return
        spec = self._worker.spec_of(state.name)
        if kind == "readiness":
            state.ready = ok
        elif ok:
            if kind == "startup":
                state.started_up = True
                state.ready = not spec.get("readinessProbe")
                self.start(state)
        else:
            probe = spec[f"{kind}Probe"]
            state.doomed = "Killing"
            state.doomed_message = f"Container {state.name} failed {kind} probe, will be restarted"
            state.grace = probe.get("terminationGracePeriodSeconds")
        self._worker.wake()
