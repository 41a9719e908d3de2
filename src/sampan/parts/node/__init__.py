"""The node agent: pods as processes, probes, logs, exec, images, volumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from sampan.kube.objects import Object


class ImageDigests(Protocol):
    """What an image's name stands for on this node; provided under this type by the node part."""

    async def digest(self, image: str) -> str:
        """``repository@sha256:...`` of what a name stands for at the moment; empty where the node's store has no such image."""


OnAddress = Callable[[Object, str, bool], None]
"""``on_address(pod, address, runs)``: a pod has its address and nothing of it runs yet; then, a container of it has begun."""


class PodAddresses:
    """Tells the addresses of this node's pods as soon as they have them, some time before their statuses say so.

    Provided under this type by the node part.
    """

    def __init__(self) -> None:
        self._listeners: list[OnAddress] = []

    def subscribe(self, listener: OnAddress) -> Callable[[], None]:
        """Call ``listener`` from now on; returns what ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def tell(self, pod: Object, address: str, runs: bool) -> None:
        """A pod has its address, or a container of it has begun."""
        for listener in list(self._listeners):
            listener(pod, address, runs)


class Routes(Protocol):
    """Who sends requests to pods, provided under this type by the part that does: a pod is not told to end before it knows."""

    async def complete(self) -> None:
        """Return when the endpoints known now are those that requests are sent to."""


def tier_here(scratch: Path) -> tuple[str, str]:
    """The isolation tier (``T1`` to ``T3``) a node would have on this machine, tried out in throw-away processes under the folder
    ``scratch``, and what keeps it from a better one. Forks, so for a process without threads; Linux only."""
    from sampan.parts.node.runtime.tiers import tier_here

    return tier_here(scratch)


def shared_ports() -> str:
    """What makes pods without addresses of their own share this machine's ports; "" where nothing does. Forks."""
    from sampan.parts.node.runtime.keeper.sockets import probe

    return probe()
