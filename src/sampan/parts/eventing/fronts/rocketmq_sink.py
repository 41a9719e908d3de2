"""The RocketMQ sink: events POSTed for a Topic or a RocketMQSink become messages, in CloudEvents' RocketMQ binding.

``POST /<topic>`` or ``POST /<namespace>/<sink>`` at the sink's host. In binary mode the message's body is the data and the
attributes are properties ``CE_<name>``; in structured mode (and for events without data, since a RocketMQ body is never empty)
the body is the JSON event. Events of one ``partitionkey`` keep their order where the topic takes ordered messages. 202 means
that the broker has stored the message; what it refuses is answered with the refusal's own status.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from aiohttp import web

from sampan.kernel.clock import Clock
from sampan.kernel.errors import SampanError
from sampan.kube.control.interface import Informers
from sampan.kube.objects import Key, Object, dig
from sampan.kube.status import ApiError
from sampan.parts.eventing import cloudevents
from sampan.parts.eventing.cloudevents import Event
from sampan.parts.eventing.errors import ConnectionSettingsError
from sampan.parts.eventing.resources import ROCKETMQ_SINKS, TOPICS
from sampan.parts.eventing.streams import Streams, UnavailableError, proxy_address, said
from sampan.parts.eventing.tracing import HEADER, Tracing, passed_headers

if TYPE_CHECKING:
    from sampan.parts.messaging import MessagingClient

PREFIX = "CE_"
ROUTE_AGE = 30.0
"""Seconds that a topic's route is believed."""
CONNECTIONS = 64
"""Connections to brokers elsewhere that are kept; of more, the one used longest ago is closed. Sinks go, and keys change."""
NORMAL, FIFO = 1, 2
"""Kinds of messages a queue takes, as the protocol counts them."""
GROUP_LIMIT = 64
"""Characters of a message group."""

ReadSecret = Callable[[Object, object], Awaitable[str]]
"""The value that a selector of an object names."""


class RocketMQSink:
    """Answers what is addressed to the sink's host."""

    def __init__(
        self, informers: Informers, streams: Streams, clock: Clock, tracing: Tracing, secret: ReadSecret
    ) -> None:
        self._topics = informers.informer(TOPICS)
        self._sinks = informers.informer(ROCKETMQ_SINKS)
        self._streams = streams
        self._clock = clock
        self._tracing = tracing
        self._secret = secret
        self._clients: dict[tuple[str, str, str], MessagingClient] = {}
        self._takes: dict[tuple[str, str], tuple[float, frozenset[int]]] = {}
        """When a topic's route was asked for, and what kinds of messages it takes."""

    async def close(self) -> None:
        """Close the connections to brokers elsewhere."""
        for client in self._clients.values():
            await client.close()
        self._clients.clear()

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
        topic = spec["topic"] if len(parts) == 2 else spec.get("name") or key.name
        with self._tracing.step(
            event, event.text("type") or "event", f"topic {topic}", "producer", headers=request.headers, begins=True
        ):
            return await self._store(topic, event, found if len(parts) == 2 else {})

    async def _store(self, topic: str, event: Event, sink: Object) -> web.Response:
        from grpc import RpcError

        from sampan.parts.messaging import MessagingClientError

        try:
            await self._send(topic, event, sink)
        except (ApiError, ConnectionSettingsError) as error:
            return web.Response(status=500, text=f"the RocketMQSink cannot be used: {error}\n")
        except MessagingClientError as error:
            if 400 <= error.code // 100 < 500:
                return web.Response(status=error.code // 100, text=f"the broker refuses the message: {error}\n")
            raise UnavailableError(f"the message could not be stored: {error}") from None
        except (SampanError, RpcError) as error:
            raise UnavailableError(f"the message could not be stored: {said(error)}") from None
        return web.Response(status=202)

    async def _send(self, topic: str, event: Event, sink: Object) -> None:
        spec = sink.get("spec") or {}
        client = await self._client(sink)
        payload, properties = message_of(event, structured=spec.get("contentMode") == "structured")
        await client.send(
            topic,
            payload,
            tag=spec.get("tag") or "",
            properties=properties,
            message_group=group_of(event, await self._kinds(client, spec.get("namesrvAddr") or "", topic)),
            trace_context=event.headers.get(HEADER) or event.text(HEADER) or "",
        )

    async def _client(self, sink: Object) -> MessagingClient:
        """The connection a sink's messages go over: one for each address and pair of keys."""
        address = proxy_address(dig(sink, "spec", "namesrvAddr", default=""))
        if not address:
            return self._streams.client()
        access, secret = [
            await self._secret(sink, dig(sink, "spec", "accessToken", name)) for name in ("accessKey", "secretKey")
        ]
        found = self._clients.pop((address, access, secret), None)
        if found is None:
            found, _ = self._streams.connect(address, access, secret)
        self._clients[(address, access, secret)] = found  # the newest
        if len(self._clients) > CONNECTIONS:
            await self._clients.pop(next(iter(self._clients))).close()
        return found

    async def _kinds(self, client: MessagingClient, address: str, topic: str) -> frozenset[int]:
        """What kinds of messages a topic takes; nothing where it does not say."""
        asked, kinds = self._takes.get((address, topic), (-ROUTE_AGE, frozenset()))
        now = self._clock.monotonic()
        if now - asked >= ROUTE_AGE:
            kinds = frozenset(kind for queue in await client.route(topic) for kind in queue.accept_message_types)
            self._takes[(address, topic)] = (now, kinds)
        return kinds


def group_of(event: Event, kinds: frozenset[int]) -> str:
    """The message group that keeps an event's order, where the topic takes messages that have one."""
    if FIFO not in kinds:
        return ""
    key = event.text("partitionkey") or ("" if NORMAL in kinds else event.text("source")) or ""
    return key[:GROUP_LIMIT]


def message_of(event: Event, *, structured: bool = False) -> tuple[bytes, dict[str, str]]:
    """A message's body and properties."""
    if structured or not event.data:
        headers, body = cloudevents.encode_structured(event)
        return body, {f"{PREFIX}contenttype": headers["Content-Type"]}
    properties = {f"{PREFIX}{name}": event.text(name) or "" for name in event.attributes}
    return event.data, properties
