"""A container's probes: when to run them, and what their results mean. One task a probed container.

The startup probe gates the others; readiness starts false; a threshold of equal results in a row changes the verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from sampan.kernel.clock import Clock
from sampan.kube.objects import Object
from sampan.parts.node.agent.handlers import Handlers, Outcome

Kind = Literal["startup", "liveness", "readiness"]
Verdict = Callable[[Kind, bool, str], None]
"""``verdict(kind, passed, message)`` when a threshold is reached."""
Failure = Callable[[Kind, str], None]


class Verdicts:
    """Counts results in a row. Pure."""

    def __init__(self, probe: Object, verdict: bool | None = None) -> None:
        self._success = int(probe.get("successThreshold") or 1)
        self._failure = int(probe.get("failureThreshold") or 3)
        self._last: bool | None = None
        self._row = 0
        self.verdict = verdict

    def add(self, ok: bool) -> bool:
        """Count a result; True when the verdict is reached (again)."""
        self._row = self._row + 1 if ok == self._last else 1
        self._last = ok
        if self._row < (self._success if ok else self._failure):
            return False
        self.verdict = ok
        return True


async def watch(
    kind: Kind,
    probe: Object,
    *,
    handlers: Handlers,
    container: str,
    spec: Object,
    address: str,
    clock: Clock,
    verdict: Verdict,
    failed: Failure,
    jitter: float,
) -> None:
    """Run one probe for as long as its container lives (a startup probe until it passes)."""
    period = float(probe.get("periodSeconds") or 10)
    timeout = float(probe.get("timeoutSeconds") or 1)
    # the first run comes at once after the initial delay; runs are spread so that many pods do not probe in step
    await clock.sleep(float(probe.get("initialDelaySeconds") or 0))
    counts = Verdicts(probe)
    machine = Clock()
    started = machine.monotonic()
    first, passed = True, False
    while True:
        began = clock.monotonic()
        outcome: Outcome = await handlers.run(probe, container, spec, address, timeout)
        if not outcome.ok:
            failed(kind, outcome.message)
        before = counts.verdict
        passed = passed or outcome.ok
        reached = counts.add(outcome.ok)
        if reached:
            if counts.verdict != before or kind != "readiness":
                verdict(kind, outcome.ok, outcome.message)
            if kind == "startup" and outcome.ok:
                return
            if kind != "readiness" and not outcome.ok:
                return
        pause = period - (clock.monotonic() - began)
        if first and outcome.ok:
            pause += jitter * period
        starting = kind == "readiness" and not passed
        if starting:
            # a starting program is looked at more often than its period says, ever less so: everybody waits for it, and
            # failures of something that is not ready yet count for nothing
            pause = min(period, max(0.02, (machine.monotonic() - started) * 0.25))
        first = False
        # programs start on the machine's time, also while the platform's is frozen
        await (machine if starting else clock).sleep(max(0.0, pause))
