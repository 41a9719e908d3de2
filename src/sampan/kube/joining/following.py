"""A joined node's clock follows the platform's, by what its Node was told (`kube.control.node_clocks`)."""

from __future__ import annotations

from sampan.kernel.clock import Clock, machine_time
from sampan.kube.control.interface import Informer
from sampan.kube.control.node_clocks import AGREES, Reading, told
from sampan.kube.objects import Object


def follow(clock: Clock, reading: Reading | None) -> None:
    """Let a clock go as a reading says; None: with the machine's."""
    machine = machine_time()
    behind = (machine if reading is None else reading.at(machine)) - clock.time()
    rate = 1.0 if reading is None else reading.rate
    if abs(behind) >= AGREES:
        clock.jump(behind)
    if rate != clock.timeline.rate:
        clock.run(rate)


def keep_following(clock: Clock, nodes: Informer, name: str) -> None:
    """Follow whatever the Node of this name is told, from now on."""

    def changed(old: Object | None, new: Object | None) -> None:
        if new is not None and new["metadata"]["name"] == name and (old is None or told(old) != told(new)):
            follow(clock, told(new))

    nodes.on_change(changed)
