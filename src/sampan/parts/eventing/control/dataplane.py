"""What the controllers of eventing share: addressing, streams, the dispatcher, where the ingress stands."""

from __future__ import annotations

from dataclasses import dataclass

from sampan.kube.control.controller import ControlContext
from sampan.kube.control.interface import Queue
from sampan.kube.objects import Key
from sampan.parts.eventing.addressing import Addressing
from sampan.parts.eventing.dispatcher import Dispatcher
from sampan.parts.eventing.streams import Streams
from sampan.parts.eventing.tracing import Tracing
from sampan.parts.eventing.transport import Transport


@dataclass(frozen=True)
class Shared:
    """Handed to every controller of the part."""

    context: ControlContext
    addressing: Addressing
    streams: Streams
    dispatcher: Dispatcher
    transport: Transport
    tracing: Tracing

    async def dead_letter(self, delivery: object, namespace: str, queue: Queue, asking: Key) -> str:
        """The URL of a delivery spec's dead-letter sink; empty where it has none.

        Raises:
            UnresolvedError: there is one, without a URL.
        """
        sink = delivery.get("deadLetterSink") if isinstance(delivery, dict) else None
        return await self.addressing.resolve(sink, namespace, queue, asking) if sink else ""
