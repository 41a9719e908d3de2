"""RocketMQSource: the messages of a RocketMQ topic as events, through the public protocol.

Without ``namesrvAddr`` the topic is the platform's own; with one it is the ``host:port`` of a RocketMQ 5 proxy (gRPC). A message
is acknowledged when the sink has answered 2xx; otherwise it is left to come again, later each time, as a consumer that answers
"consume later" has it.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import msgspec

from sampan.kernel.clock import Clock
from sampan.kube.control.conditions import ConditionSet
from sampan.kube.control.interface import For, Source
from sampan.kube.objects import Key, Object, dig
from sampan.parts.eventing import cloudevents
from sampan.parts.eventing.cloudevents import Event
from sampan.parts.eventing.consumer import Consumer, Slot
from sampan.parts.eventing.control.pulling import PullingController
from sampan.parts.eventing.control.sources import emit, overrides, resolve_sink, source_fields
from sampan.parts.eventing.control.status import write_status
from sampan.parts.eventing.delivery import Delivery
from sampan.parts.eventing.names import group_of
from sampan.parts.eventing.resources import ROCKETMQ_SOURCES
from sampan.parts.eventing.streams import proxy_address

if TYPE_CHECKING:
    from sampan.parts.messaging import Received

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


class RocketMQSourceController(PullingController[_Settings, Consumer]):
    """Runs a consumer a source."""

    name = "rocketmqsource-controller"
    condition = "Deployed"

    def sources(self) -> list[Source]:
        return [For(ROCKETMQ_SOURCES)]

    async def reconcile(self, key: Key) -> float | None:
        source = self.informer(ROCKETMQ_SOURCES).get(key)
        if source is None or source["metadata"].get("deletionTimestamp"):
            await self.end(key)
            return None
        conditions = ConditionSet(source, DEPENDENTS, self.clock.now())
        url = await resolve_sink(self, self._shared, source, conditions)
        again = await self.keep(source, url, conditions)
        fields = source_fields(url, [(EVENT_TYPE, EVENT_SOURCE)])
        await write_status(self, ROCKETMQ_SOURCES, source, conditions, fields)
        return again

    async def settings(self, source: Object, url: str) -> _Settings:
        spec = source["spec"]
        access, secret = [
            await self.secret(source, dig(spec, "accessToken", name)) for name in ("accessKey", "secretKey")
        ]
        group = spec.get("groupName") or group_of(source)
        return _Settings(
            url=url,
            topic=spec["topic"],
            group=re.sub(r"[^\w%|-]", "-", group, flags=re.ASCII),
            address=proxy_address(spec.get("namesrvAddr") or ""),
            access_key=access,
            secret_key=secret,
            expression=spec.get("tag") or "*",
            extensions=tuple(sorted(overrides(source).items())),
        )

    def members(self, key: Key, settings: _Settings) -> tuple[list[Consumer], Callable[[], Awaitable[None]]]:
        from sampan.parts.messaging import Membership

        client, clock = self._shared.streams.connect(settings.address, settings.access_key, settings.secret_key)

        async def handle(message: Received, slot: Slot) -> bool:
            outcome = await emit(
                self._shared,
                settings.url,
                event_of(message),
                dict(settings.extensions),
                Delivery(),
                key.namespace,
                origin=f"rocketmqsource {key}",
                waited=max(0.0, clock.time() - message.stored_ms / 1000) if message.stored_ms else None,
            )
            return outcome.ok

        consumer = Consumer(
            lambda: client,
            clock,
            self.context.tasks,
            settings.group,
            settings.topic,
            handle,
            expression=settings.expression,
            member=Membership(client, settings.group, {settings.topic: settings.expression}, Clock()),
            changed=lambda: self.queue.add(key),
        )
        return [consumer], client.close


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
