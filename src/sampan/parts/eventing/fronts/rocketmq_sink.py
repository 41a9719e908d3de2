"""The RocketMQ sink: events POSTed for a Topic or a RocketMQSink become messages, in CloudEvents' RocketMQ binding.

``POST /<topic>`` or ``POST /<namespace>/<sink>`` at the sink's host. In binary mode the message's body is the data and the attributes are properties
``CE_<name>``; in structured mode (and for events without data, since a RocketMQ body is never empty) the body is the JSON event.
202 means that the broker has stored the message.
"""

from __future__ import annotations

from aiohttp import web

from sampan.kernel.clock import Clock
from sampan.kernel.errors import SampanError
from sampan.kube.control.interface import Informers
from sampan.kube.objects import Key
from sampan.parts.eventing import cloudevents
from sampan.parts.eventing.cloudevents import Event
from sampan.parts.eventing.resources import ROCKETMQ_SINKS, TOPICS
from sampan.parts.eventing.streams import Streams, UnavailableError
from sampan.parts.eventing.tracing import HEADER, Tracing, passed_headers

PREFIX = "CE_"


class RocketMQSink:
    """Answers what is addressed to the sink's host."""

    def __init__(self, informers: Informers, streams: Streams, clock: Clock, tracing: Tracing) -> None:
        self._topics = informers.informer(TOPICS)
        self._sinks = informers.informer(ROCKETMQ_SINKS)
        self._streams = streams
        self._clock = clock
        self._tracing = tracing

    async def take(self, request: web.BaseRequest, body: bytes) -> web.Response:
        """Store one event."""
        if request.method != "POST":
            return web.Response(status=405, headers={"Allow": "POST"})
        parts = [part for part in request.path.split("/") if part]
        if len(parts) not in (1, 2):
            return web.Response(status=400, text="an event goes to /<topic> or /<namespace>/<sink>\n")
        event = cloudevents.decode(request.headers, body)
        key = Key(*parts) if len(parts) == 2 else Key("", parts[0])
        found = (self._sinks if len(parts) == 2 else self._topics).get(key)
        if found is None:
            return web.Response(
                status=404, text=f"there is no {'RocketMQSink' if len(parts) == 2 else 'Topic'} {key}\n"
            )
        spec = found.get("spec") or {}
        event.headers = passed_headers(request.headers)
        if len(parts) == 2:
            topic, options = spec["topic"], spec
        else:
            topic, options = spec.get("name") or key.name, {}
        with self._tracing.step(
            event, event.text("type") or "event", f"topic {topic}", "producer", headers=request.headers, begins=True
        ):
            await self._send(topic, event, options)
        return web.Response(status=202)

    async def _send(self, topic: str, event: Event, spec: dict[str, str]) -> None:
        from grpc import RpcError

        payload, properties = message_of(event, structured=spec.get("contentMode") == "structured")
        client, own = self._streams.client(), True
        if address := spec.get("namesrvAddr"):
            from sampan.parts.messaging import MessagingClient

            client, own = MessagingClient(address, clock=self._clock), False
        try:
            await client.send(
                topic,
                payload,
                tag=spec.get("tag") or "",
                properties=properties,
                message_group=(event.text("partitionkey") or "")[:64],
                trace_context=event.headers.get(HEADER) or event.text(HEADER) or "",
            )
        except (SampanError, RpcError) as error:
            raise UnavailableError(f"the message could not be stored: {error}") from None
        finally:
            if not own:
                await client.close()


def message_of(event: Event, *, structured: bool = False) -> tuple[bytes, dict[str, str]]:
    """A message's body and properties."""
    if structured or not event.data:
        headers, body = cloudevents.encode_structured(event)
        return body, {f"{PREFIX}contenttype": headers["Content-Type"]}
    properties = {f"{PREFIX}{name}": event.text(name) or "" for name in event.attributes}
    return event.data, properties
