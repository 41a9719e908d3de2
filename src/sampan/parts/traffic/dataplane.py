"""What the traffic part offers other parts of its process: the load signal, the gate, early endpoints.

`DataPlane` is provided under its own type; a part that wants it asks its context for it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sampan.kube.objects import Key
from sampan.parts.traffic.control.publisher import KNATIVE, Publisher
from sampan.parts.traffic.envoy.gate import METADATA
from sampan.parts.traffic.load import LoadSignal

Released = Callable[[str], None]


class DataPlane:
    """The gateway as seen from Python."""

    def __init__(self, gate_socket: Path, internal: tuple[str, int, int]) -> None:
        self.gate_socket = gate_socket
        """Unix socket on which the gate is expected to answer (HTTP/1.1, ``GET /namespace/revision``): 200 lets the request
        pass, with ``x-slot`` (an identifier) and ``x-slot-pod`` (``address:port``) to send it to one pod and report its end; any
        other status is the request's answer."""
        self.internal = internal
        """(host, port, port with TLS) where cluster-local names are served."""
        self.loads = LoadSignal()
        self._publisher: Publisher | None = None
        self._released: list[Released] = []
        self._reset: list[Callable[[], None]] = []

    def bind(self, publisher: Publisher) -> None:
        """The part has started."""
        self._publisher = publisher

    async def announce(self, service: Key, endpoints: frozenset[tuple[str, int]]) -> None:
        """Send a Service's traffic to these addresses too, ahead of its EndpointSlices; Envoy knows them on return."""
        assert self._publisher is not None
        await self._publisher.announce(service, endpoints)

    async def follow_knative(self) -> None:
        """Serve Knative's internal Ingresses; their definitions must exist."""
        assert self._publisher is not None
        await self._publisher.follow(*KNATIVE)

    def on_released(self, listener: Released) -> Callable[[], None]:
        """Call ``listener(slot)`` when a request that held a place has ended; returns what ends it."""
        self._released.append(listener)
        return lambda: self._released.remove(listener)

    def on_reset(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener()`` when an Envoy went away with requests whose end nobody will report; returns what ends it."""
        self._reset.append(listener)
        return lambda: self._reset.remove(listener)

    # -- the part's side

    def slots(self, batch: Any) -> None:
        """A batch of the slot log."""
        for entry in batch.http_logs.log_entry:
            fields = entry.common_properties.metadata.filter_metadata[METADATA].fields
            if "slot" in fields:
                for listener in list(self._released):
                    listener(fields["slot"].string_value)

    def reset(self) -> None:
        """An Envoy's stream ended."""
        for listener in list(self._reset):
            listener()
