"""Letting go of a pod that is asked: before its programs are told to end, the Services that send requests to it have heard.

A pod's deletion is seen at once by its node, and a moment later by whoever routes to it. A program that stops listening in
between refuses connections that were made in good faith; on a cluster that is what preStop hooks that sleep are for. So the stop
signal of a pod that is among the ready endpoints of a Service waits until no slice names it as ready any more, until the routes
of this process (`Routes`), which may be slow on a busy machine, have followed, and `SETTLE` longer for requests under way and
for routes elsewhere; for neither of them longer than `PATIENCE`. The endpoints may have let go before the node gets to it: the
routes and the requests under way still have their time then. A pod no Service asks is not held up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator

from sampan.kernel.clock import Clock
from sampan.kube.control.interface import Informer
from sampan.kube.objects import Object
from sampan.parts.node import Routes

PATIENCE = 2.0
"""Seconds that endpoints may take to leave a pod out, and then the routes to follow them."""
SETTLE = 0.1
"""Seconds after that: for requests under way, and for routes elsewhere."""
_READY, _ENDING = "ready-pod", "ending-pod"


def ready_pods(slice: Object) -> Iterable[str]:
    """The uids of the pods a slice sends requests to."""
    for uid, conditions in _pods(slice):
        if conditions.get("ready", True) and not conditions.get("terminating"):
            yield uid


def ending_pods(slice: Object) -> Iterable[str]:
    """The uids of the pods that a slice says are being ended."""
    return (uid for uid, conditions in _pods(slice) if conditions.get("terminating"))


def _pods(slice: Object) -> Iterator[tuple[str, Object]]:
    for endpoint in slice.get("endpoints") or ():
        uid = (endpoint.get("targetRef") or {}).get("uid")
        if uid:
            yield uid, endpoint.get("conditions") or {}


class LettingGo:
    """Knows which pods of this node are asked."""

    def __init__(self, slices: Informer, clock: Clock, routes: Callable[[], Routes | None] = lambda: None) -> None:
        """``routes``: those of this process, where there are any by now."""
        self._routes = routes
        self._slices = slices
        self._clock = clock
        self._waiting: dict[str, asyncio.Event] = {}
        slices.add_index(_READY, ready_pods)
        slices.add_index(_ENDING, ending_pods)
        slices.on_change(self._changed)

    def asked(self, uid: str) -> bool:
        """Some Service sends requests to the pod."""
        return bool(self._slices.indexed(_READY, uid))

    def _changed(self, _old: Object | None, _new: Object | None) -> None:
        for uid, event in self._waiting.items():
            if not self.asked(uid):
                event.set()

    async def wait(self, uid: str) -> None:
        """Wait until nobody asks the pod any more; at once where nobody did."""
        rate = self._clock.timeline.rate
        if not rate:  # a clock that stands still would hold everybody up
            return
        if self.asked(uid):
            await self._let_go(uid)
        elif not self._slices.indexed(_ENDING, uid):
            return
        routes = self._routes()
        if routes is not None:
            with contextlib.suppress(TimeoutError):
                async with self._clock.patience(PATIENCE):
                    await routes.complete()
        await self._clock.sleep(SETTLE * max(1.0, rate))

    async def _let_go(self, uid: str) -> None:
        event = self._waiting.setdefault(uid, asyncio.Event())
        try:
            with contextlib.suppress(TimeoutError):
                async with self._clock.patience(PATIENCE):
                    await event.wait()
        finally:
            self._waiting.pop(uid, None)
