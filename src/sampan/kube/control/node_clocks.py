"""Tells nodes on other machines how the platform's clock goes.

A joined node has a clock of its own process, on a machine whose monotonic reading is another. So each steering is told in terms
of wall time, which machines share: at this machine reading the platform's was that one, and so fast it goes. It stands in an
annotation of the Node; a clock that goes with the machine's needs none.
"""

from __future__ import annotations

import msgspec

from sampan.kernel.clock import Clock, Timeline, machine_time
from sampan.kube.access.plugins.node_restriction import JOINED
from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.interface import For, Source
from sampan.kube.objects import Key, Object
from sampan.kube.resources import NODES

CLOCK = "sampan.dev/clock"
"""Annotation: the platform's clock, as a `Reading`."""
AGREES = 0.25
"""Seconds by which readings may differ and still be the same: the machines' own clocks differ too."""


class Reading(msgspec.Struct, frozen=True):
    """How the platform's clock goes: readings in seconds since the epoch, and the rate (0: it is frozen)."""

    platform: float
    machine: float
    rate: float

    def at(self, machine: float) -> float:
        """The platform's wall reading at a machine's."""
        return self.platform + (machine - self.machine) * self.rate


def reading(clock: Clock) -> Reading | None:
    """How a clock goes; None: with the machine's."""
    machine, platform, rate = machine_time(), clock.time(), clock.timeline.rate
    if rate == 1.0 and abs(platform - machine) < AGREES:
        return None
    return Reading(round(platform, 3), round(machine, 3), rate)


def told(node: Object) -> Reading | None:
    """What a Node was told of the platform's clock; None: nothing, or nothing one can read."""
    text = (node["metadata"].get("annotations") or {}).get(CLOCK)
    try:
        return msgspec.json.decode(text, type=Reading) if text else None
    except msgspec.MsgspecError:
        return None


class NodeClocks(Controller):
    """Keeps the annotation of joined nodes."""

    name = "node-clocks"

    def __init__(self, context: ControlContext) -> None:
        super().__init__(context)
        self._reading = reading(self.clock)
        self.clock.on_steer(self._steered)

    def sources(self) -> list[Source]:
        return [For(NODES)]

    def _steered(self, _: Timeline) -> None:
        self._reading = reading(self.clock)
        for node in self.informer(NODES).objects():
            self.queue.add(Key.of(node))

    async def reconcile(self, key: Key) -> float | None:
        node = self.informer(NODES).get(key)
        if node is None or JOINED not in (node["metadata"].get("annotations") or {}):
            return None
        if told(node) != self._reading:
            text = msgspec.json.encode(self._reading).decode() if self._reading is not None else None
            await self.client.patch(NODES, key.name, {"metadata": {"annotations": {CLOCK: text}}})
        return None
