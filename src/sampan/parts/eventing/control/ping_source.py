"""PingSource: an event by a schedule, in its time zone, to the second. It sleeps by the platform's clock, so steering it rings."""

from __future__ import annotations

import base64
import logging
from datetime import datetime
from zoneinfo import ZoneInfo

import msgspec

from sampan.kernel.tasks import Tasks
from sampan.kube.control.conditions import ConditionSet
from sampan.kube.control.controller import Controller
from sampan.kube.control.interface import For, Source
from sampan.kube.objects import Key, Object
from sampan.parts.eventing import cloudevents, schedule
from sampan.parts.eventing.control.dataplane import Shared
from sampan.parts.eventing.control.sources import emit, overrides, resolve_sink, source_fields
from sampan.parts.eventing.control.status import write_status
from sampan.parts.eventing.delivery import Delivery
from sampan.parts.eventing.resources import PING_SOURCES

log = logging.getLogger(__name__)

EVENT_TYPE = "dev.knative.sources.ping"
DELIVERY = Delivery(retry=5, delay=0.05)


class _Ping(msgspec.Struct, frozen=True):
    """What a running source depends on."""

    url: str
    schedule: str
    timezone: str
    data: bytes | None
    content_type: str
    extensions: tuple[tuple[str, str], ...]


class _Running(msgspec.Struct, eq=False):
    ping: _Ping
    tasks: Tasks


class PingSourceController(Controller):
    """Runs a timer a source."""

    name = "pingsource-controller"

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared.context)
        self._shared = shared
        self._running: dict[Key, _Running] = {}

    def sources(self) -> list[Source]:
        return [For(PING_SOURCES)]

    async def reconcile(self, key: Key) -> float | None:
        source = self.informer(PING_SOURCES).get(key)
        if source is None or source["metadata"].get("deletionTimestamp"):
            await self._stop(key)
            return None
        conditions = ConditionSet(source, ("SinkProvided", "Deployed", "OIDCIdentityCreated"), self.clock.now())
        conditions.true("OIDCIdentityCreated", "authentication-oidc feature disabled")
        url = await resolve_sink(self, self._shared, source, conditions)
        if url:
            await self._run(key, _ping(source, url))
            conditions.true("Deployed")
        else:
            await self._stop(key)
            conditions.unknown("Deployed", "SinkNotProvided", "The sink is not resolved.")
        await write_status(self, PING_SOURCES, source, conditions, source_fields(url, [(EVENT_TYPE, _source_of(key))]))
        return None

    async def close(self) -> None:
        """Stop every source."""
        for key in list(self._running):
            await self._stop(key)

    async def _run(self, key: Key, ping: _Ping) -> None:
        known = self._running.get(key)
        if known is not None:
            if known.ping == ping:
                return
            await self._stop(key)
        tasks = Tasks(self.clock, f"pingsource/{key}")
        self._running[key] = _Running(ping, tasks)
        tasks.keep("schedule", lambda: self._ring(key, ping, tasks))

    async def _stop(self, key: Key) -> None:
        known = self._running.pop(key, None)
        if known is not None:
            await known.tasks.cancel()

    async def _ring(self, key: Key, ping: _Ping, tasks: Tasks) -> None:
        parsed = schedule.parse(ping.schedule)
        zone = ZoneInfo(ping.timezone or "UTC")
        last = self.clock.time()
        while True:
            due = parsed.following(datetime.fromtimestamp(last, zone)).timestamp()
            await self.clock.sleep_until(due)
            # a clock that was steered far ahead rings once, as a cron that slept does
            last = max(due, self.clock.time())
            tasks.start("event", self._emit(key, ping, due))

    async def _emit(self, key: Key, ping: _Ping, due: float) -> None:
        stamp = self.clock.now()
        event = cloudevents.make(
            EVENT_TYPE,
            _source_of(key),
            f"{key.namespace}-{key.name}-{int(due)}",
            ping.data,
            time=stamp.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        )
        if ping.data is not None:
            event = event.with_attributes(datacontenttype=ping.content_type)
        outcome = await emit(
            self._shared, ping.url, event, dict(ping.extensions), DELIVERY, key.namespace, origin=f"pingsource {key}"
        )
        if not outcome.ok:
            log.warning("PingSource %s: the sink did not take the event: %s", key, outcome.status or outcome.reason)


def _ping(source: Object, url: str) -> _Ping:
    spec = source["spec"]
    data: bytes | None = None
    if spec.get("dataBase64"):
        data = base64.b64decode(spec["dataBase64"])
    elif spec.get("data"):
        data = spec["data"].encode()
    return _Ping(
        url=url,
        schedule=spec["schedule"],
        timezone=spec.get("timezone") or "",
        data=data,
        content_type=spec.get("contentType") or "application/json",
        extensions=tuple(sorted(overrides(source).items())),
    )


def _source_of(key: Key) -> str:
    return f"/apis/v1/namespaces/{key.namespace}/pingsources/{key.name}"
