"""The ingress: takes events over HTTP for brokers (by path) and channels (by host), and answers once they are on disk.

``POST /<namespace>/<broker>`` is the broker's way; a channel is addressed by its Service's name in ``Host``. Whatever else
listens here (job sinks, webhooks of sources) registers itself by host or path prefix with `Ingress.add`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter

from aiohttp import web
from prometheus_client import CollectorRegistry

from sampan.kernel.clock import Clock
from sampan.kernel.http import BodyTooLargeError, SlowClientError, read_body
from sampan.kernel.telemetry import counter, histogram
from sampan.kube.control.interface import Informer
from sampan.kube.objects import Key, Object
from sampan.parts.eventing import cloudevents
from sampan.parts.eventing.cloudevents import Event
from sampan.parts.eventing.dispatcher import TTL
from sampan.parts.eventing.errors import MalformedEventError, NotAnEventError
from sampan.parts.eventing.names import topic_of
from sampan.parts.eventing.resources import CLUSTER_DOMAIN
from sampan.parts.eventing.streams import Streams, UnavailableError
from sampan.parts.eventing.tracing import Tracing, passed_headers

log = logging.getLogger(__name__)

FIRST_TTL = 255
"""How often an event may enter a broker: its first time and 254 replies."""
ALLOW = {"Allow": "POST, OPTIONS"}
WEBHOOK = {**ALLOW, "WebHook-Allowed-Origin": "*", "WebHook-Allowed-Rate": "*"}
CHANNEL_SUFFIX = "-kn-channel"
PARTITION_KEY = "partitionkey"
"""Extension whose events keep their order."""

Take = Callable[[web.BaseRequest, bytes], Awaitable[web.Response]]
Observe = Callable[[str, Key, Event], None]
"""Hears of each accepted event: ``Broker`` or ``InMemoryChannel``, its key, the event."""


UNKNOWN = Key("", "unknown")
"""In metrics, whatever is not there: anybody may make up names, and each would stay for ever."""


class Ingress:
    """The HTTP handler."""

    def __init__(
        self,
        brokers: Informer,
        channels: Informer,
        streams: Streams,
        clock: Clock,
        metrics: CollectorRegistry,
        tracing: Tracing,
        *,
        limit: int,
    ) -> None:
        """``limit``: bytes of an event at most."""
        self._brokers = brokers
        self._channels = channels
        self._streams = streams
        self._clock = clock
        self._machine = Clock()
        self._limit = limit
        self._tracing = tracing
        self._others: dict[str, Take] = {}
        self._observe: list[Observe] = []
        self._count = counter(
            metrics, "event_count_total", "Events that came to a broker or channel", ("namespace_name", "response_code")
        )
        self._seconds = histogram(metrics, "event_store_seconds", "Seconds until an event was on disk")

    def add(self, host: str, take: Take) -> None:
        """Let ``take(request, body)`` answer what is addressed to a host, or (``/name``) to longer paths that begin so."""
        self._others[host] = take

    def on_event(self, observe: Observe) -> None:
        """Call ``observe`` with each accepted event."""
        self._observe.append(observe)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        host = (request.host or "").partition(":")[0].lower()
        try:
            if other := self._others.get(host) or self._others.get(_prefix(request.path)):
                return await other(request, await self._body(request))
            if request.method == "OPTIONS":
                return web.Response(headers=WEBHOOK)
            if request.method != "POST":
                return _refused(405, f"{request.method} is not allowed; POST an event")
            if channel := _channel(host):
                return await self._to_channel(request, channel)
            return await self._to_broker(request)
        except BodyTooLargeError as error:
            return _refused(413, f"the event is too large: {error}")
        except SlowClientError as error:
            return _refused(408, str(error))
        except (NotAnEventError, MalformedEventError) as error:
            return _refused(400, str(error))
        except UnavailableError as error:
            return _refused(503, str(error), {"Retry-After": "1"})

    async def _body(self, request: web.BaseRequest) -> bytes:
        return await read_body(request, self._machine, limit=self._limit)

    async def _events(self, request: web.BaseRequest) -> list[Event]:
        """The event of a request, or those of a batch."""
        body, headers = await self._body(request), request.headers
        if headers.get("content-type", "").lower().startswith(cloudevents.BATCH):
            events = cloudevents.decode_batch(headers, body)
            if not events:
                raise MalformedEventError("the batch is empty")
        else:
            events = [cloudevents.decode(headers, body)]
        passed = passed_headers(headers)
        return [Event(one.attributes, one.data, one.mode, passed) for one in events] if passed else events

    async def _to_broker(self, request: web.BaseRequest) -> web.Response:
        path = request.path.removesuffix("/")
        if not path:
            return _refused(404, "an event goes to /<namespace>/<broker>")
        parts = path.split("/")[1:]
        if len(parts) != 2 or not all(parts):
            return _refused(400, "malformed path; an event goes to /<namespace>/<broker>")
        events = await self._events(request)
        key = Key(parts[0], parts[1])
        if self._brokers.get(key) is None:
            return self._answered(UNKNOWN, 404, f"there is no Broker {key}")
        for event in events:
            _lives_left(event)  # of a batch all enter or none
        await asyncio.gather(*(self.enter(str(key), event) for event in events))
        return self._answered(key, 202)

    async def _to_channel(self, request: web.BaseRequest, key: Key) -> web.Response:
        if request.path not in ("", "/"):
            return _refused(400, "a channel takes events at / only")
        events = await self._events(request)
        channel = self._channels.get(key)
        if channel is None:
            return self._answered(UNKNOWN, 404, f"there is no InMemoryChannel {key}")
        await asyncio.gather(*(self._into(channel, key, event) for event in events))
        return self._answered(key, 202)

    async def _into(self, channel: Object, key: Key, event: Event) -> None:
        with self._tracing.step(
            event, event.text("type") or "event", f"channel {key}", "producer", headers=event.headers, begins=True
        ):
            await self._store(topic_of(channel), event)
        for observe in self._observe:
            observe("InMemoryChannel", key, event)

    async def enter(self, broker: str, event: Event) -> None:
        """Store an event in a broker (``namespace/name``), with its arrival time and one life less.

        Raises:
            MalformedEventError: the event has entered brokers too often, or its count is no number.
            UnavailableError: it cannot be stored now, or the broker is gone.
        """
        namespace, _, name = broker.partition("/")
        key = Key(namespace, name)
        found = self._brokers.get(key)
        if found is None:
            raise UnavailableError(f"there is no Broker {broker}")
        left = _lives_left(event)
        arrival = self._clock.now().isoformat(timespec="microseconds").replace("+00:00", "Z")
        event = event.with_attributes(knativebrokerttl=left, knativearrivaltime=arrival)
        with self._tracing.step(
            event, event.text("type") or "event", f"broker {key}", "producer", headers=event.headers, begins=True
        ):
            await self._store(topic_of(found), event)
        for observe in self._observe:
            observe("Broker", key, event)

    async def _store(self, topic: str, event: Event) -> None:
        began = perf_counter()
        await self._streams.publish(topic, cloudevents.pack(event), (event.text(PARTITION_KEY) or "")[:64])
        self._seconds.observe(perf_counter() - began)

    def _answered(self, key: Key, code: int, why: str = "") -> web.Response:
        self._count.labels(str(key), str(code)).inc()
        return web.Response(status=code, headers=ALLOW) if not why else _refused(code, why)


def _lives_left(event: Event) -> int:
    """How often an event may still enter a broker after this time.

    Raises:
        MalformedEventError: it may not even now.
    """
    ttl = event.attributes.get(TTL)
    try:
        left = FIRST_TTL if ttl is None else int(ttl) - 1
    except ValueError:
        raise MalformedEventError(f"attribute {TTL} is not a number") from None
    if left <= 0:
        raise MalformedEventError(f"the event has entered brokers {FIRST_TTL} times: replies go round in a circle")
    return left


def _prefix(path: str) -> str:
    """The first segment of a path longer than any broker's."""
    parts = path.split("/", 3)
    return f"/{parts[1]}" if len(parts) > 3 and parts[3] else ""


def _channel(host: str) -> Key | None:
    """The channel that a host stands for."""
    name, _, rest = host.partition(".")
    if not name.endswith(CHANNEL_SUFFIX) or not rest:
        return None
    namespace = rest.removesuffix(f".{CLUSTER_DOMAIN}").removesuffix(".svc")
    return None if "." in namespace else Key(namespace, name.removesuffix(CHANNEL_SUFFIX))


def _refused(code: int, why: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(status=code, text=why + "\n", headers={**ALLOW, **(headers or {})})
