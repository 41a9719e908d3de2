"""RocketMQSource: the messages of a RocketMQ topic as events, through the public protocol.

Without ``namesrvAddr`` the topic is the platform's own; with one it is the ``host:port`` of a RocketMQ 5 proxy (gRPC). A message
is acknowledged when the sink has answered 2xx; otherwise it is left to come again, later each time, as a consumer that answers
"consume later" has it.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from sampan.kube.client.resources import SECRETS
from sampan.kube.control.conditions import ConditionSet
from sampan.kube.control.controller import Controller
from sampan.kube.control.interface import For, Source
from sampan.kube.objects import Key, Object, dig
from sampan.kube.status import ApiError
from sampan.parts.eventing import cloudevents
from sampan.parts.eventing.cloudevents import Event
from sampan.parts.eventing.control.dataplane import Shared
from sampan.parts.eventing.control.sources import emit, overrides, resolve_sink, source_fields
from sampan.parts.eventing.control.status import write_status
from sampan.parts.eventing.delivery import Delivery
from sampan.parts.eventing.names import group_of
from sampan.parts.eventing.resources import ROCKETMQ_SOURCES
from sampan.parts.eventing.streams import Consumer, Slot

if TYPE_CHECKING:
    from sampan.parts.messaging import MessagingClient, Received

EVENT_TYPE = "RocketMQEventType"
EVENT_SOURCE = "rocketmq"
DEPENDENTS = ("SinkProvided", "Deployed")


class _Settings(msgspec.Struct, frozen=True):
    """What a running source depends on; another value means another consumer."""

    url: str
    topic: str
    group: str
    address: str
    access_key: str
    secret_key: str
    expression: str
    extensions: tuple[tuple[str, str], ...]


class _Running(msgspec.Struct, eq=False):
    settings: _Settings
    consumer: Consumer
    client: object | None


class RocketMQSourceController(Controller):
    """Runs a consumer a source."""

    name = "rocketmqsource-controller"

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared.context)
        self._shared = shared
        self._running: dict[Key, _Running] = {}

    def sources(self) -> list[Source]:
        return [For(ROCKETMQ_SOURCES)]

    async def reconcile(self, key: Key) -> float | None:
        source = self.informer(ROCKETMQ_SOURCES).get(key)
        if source is None or source["metadata"].get("deletionTimestamp"):
            await self._stop(key)
            return None
        conditions = ConditionSet(source, DEPENDENTS, self.clock.now())
        url = await resolve_sink(self, self._shared, source, conditions)
        again: float | None = None
        if not url:
            await self._stop(key)
            conditions.unknown("Deployed", "SinkNotProvided", "The sink is not resolved.")
        else:
            try:
                await self._run(key, await self._settings(source, url))
                conditions.true("Deployed")
            except ApiError as error:
                await self._stop(key)
                conditions.false("Deployed", "SecretMissing", str(error))
                again = 5.0
        fields = source_fields(url, [(EVENT_TYPE, EVENT_SOURCE)])
        await write_status(self, ROCKETMQ_SOURCES, source, conditions, fields)
        return again

    async def _settings(self, source: Object, url: str) -> _Settings:
        spec = source["spec"]
        access, secret = [
            await self._secret(source, dig(spec, "accessToken", name)) for name in ("accessKey", "secretKey")
        ]
        group = spec.get("groupName") or group_of(source)
        return _Settings(
            url=url,
            topic=spec["topic"],
            group=re.sub(r"[^\w%|-]", "-", group, flags=re.ASCII),
            address=spec.get("namesrvAddr") or "",
            access_key=access,
            secret_key=secret,
            expression=spec.get("tag") or "*",
            extensions=tuple(sorted(overrides(source).items())),
        )

    async def _secret(self, source: Object, selector: object) -> str:
        if not isinstance(selector, dict):
            return ""
        secret = await self.client.get(SECRETS, selector.get("name") or "", source["metadata"]["namespace"])
        return base64.b64decode((secret.get("data") or {}).get(selector.get("key") or "", "")).decode()

    async def _run(self, key: Key, settings: _Settings) -> None:
        known = self._running.get(key)
        if known is not None:
            if known.settings == settings:
                return
            await self._stop(key)
        client: MessagingClient | None = None
        connect: Callable[[], MessagingClient] = self._shared.streams.client
        if settings.address:
            from sampan.parts.messaging import MessagingClient

            client = MessagingClient(
                settings.address,
                clock=self.clock,
                access_key=settings.access_key,
                secret_key=settings.secret_key,
            )
            opened = client
            connect = lambda: opened  # noqa: E731

        async def handle(message: Received, slot: Slot) -> bool:
            event = event_of(message)
            extensions = dict(settings.extensions)
            outcome = await emit(
                self._shared,
                settings.url,
                event,
                extensions,
                Delivery(),
                key.namespace,
                origin=f"rocketmqsource {key}",
                waited=max(0.0, self.clock.time() - message.stored_ms / 1000) if message.stored_ms else None,
            )
            return outcome.ok

        consumer = Consumer(
            connect,
            self.clock,
            self.context.tasks,
            settings.group,
            settings.topic,
            handle,
            expression=settings.expression,
        )
        self._running[key] = _Running(settings, consumer, client)
        consumer.start()

    async def _stop(self, key: Key) -> None:
        known = self._running.pop(key, None)
        if known is None:
            return
        await known.consumer.close()
        if known.client is not None:
            await known.client.close()  # type: ignore[attr-defined]

    async def close(self) -> None:
        """Stop every source; messages in hand are given back."""
        for key in list(self._running):
            await self._stop(key)


def event_of(message: Received) -> Event:
    """The event of a message: its description as JSON, the body in base64."""
    data = {
        "Topic": message.topic,
        "Body": base64.b64encode(message.body).decode(),
        "Flag": 0,
        "TransactionId": "",
        "Batch": False,
        "Queue": {"topic": message.topic, "brokerName": "", "queueId": message.queue},
        "MsgId": message.id,
        "StoreSize": len(message.body),
        "QueueOffset": message.offset,
        "SysFlag": 0,
        "BornTimestamp": message.born_ms,
        "BornHost": "",
        "StoreTimestamp": message.stored_ms,
        "StoreHost": "",
        "CommitLogOffset": 0,
        "BodyCRC": zlib.crc32(message.body),
        "ReconsumeTimes": message.attempt - 1,
        "PreparedTransactionOffset": 0,
        "Properties": {**message.properties, **({"TAGS": message.tag} if message.tag else {})},
    }
    event = cloudevents.make(
        EVENT_TYPE,
        EVENT_SOURCE,
        message.id,
        msgspec.json.encode(data),
        datacontenttype="application/json",
        subject=message.topic,
    )
    if message.trace_context:
        event.attributes["traceparent"] = message.trace_context
    return event
