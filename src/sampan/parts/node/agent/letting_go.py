"""Letting go of a pod that is asked: before its programs are told to end, the Services that send requests to it have heard.

A pod's deletion is seen at once by its node, and a moment later by whoever routes to it. A program that stops listening in
between refuses connections that were made in good faith; on a cluster that is what preStop hooks that sleep are for. So the stop
signal of a pod that is among the ready endpoints of a Service waits until no slice names it as ready any more, and `SETTLE`
longer for the routes to follow; never longer than `PATIENCE`. A pod no Service asks is not held up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from sampan.kernel.clock import Clock
from sampan.kube.control.interface import Informer
from sampan.kube.objects import Object

PATIENCE = 2.0
SETTLE = 0.1
"""Seconds that routes may follow the endpoints later."""
_INDEX = "ready-pod"


def ready_pods(slice: Object) -> Iterable[str]:
    """The uids of the pods a slice sends requests to."""
    for endpoint in slice.get("endpoints") or ():
        conditions = endpoint.get("conditions") or {}
        if conditions.get("ready", True) and not conditions.get("terminating"):
            uid = (endpoint.get("targetRef") or {}).get("uid")
            if uid:
                yield uid


class LettingGo:
    """Knows which pods of this node are asked."""

    def __init__(self, slices: Informer, clock: Clock) -> None:
        self._slices = slices
        self._clock = clock
        self._waiting: dict[str, asyncio.Event] = {}
        slices.add_index(_INDEX, ready_pods)
        slices.on_change(self._changed)

    def asked(self, uid: str) -> bool:
        """Some Service sends requests to the pod."""
        return bool(self._slices.indexed(_INDEX, uid))

    def _changed(self, _old: Object | None, _new: Object | None) -> None:
        for uid, event in self._waiting.items():
            if not self.asked(uid):
                event.set()

    async def wait(self, uid: str) -> None:
        """Wait until nobody asks the pod any more; at once where nobody did."""
        rate = self._clock.timeline.rate
        if not self.asked(uid) or not rate:  # a clock that stands still would hold everybody up
            return
        event = self._waiting.setdefault(uid, asyncio.Event())
        try:
            with contextlib.suppress(TimeoutError):
                async with self._clock.patience(PATIENCE):
                    await event.wait()
        finally:
            self._waiting.pop(uid, None)
        await self._clock.sleep(SETTLE * max(1.0, rate))
