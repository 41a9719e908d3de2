"""KafkaSource: the records of Kafka topics as events.

Each source is one or more (``consumers``) members of a consumer group. What the sink does not take is tried again as ``delivery``
says; then it goes to the dead-letter sink, or is dropped and counted, and its offset is passed. The client library is an
extra; without it a source says so in its condition.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec
from prometheus_client import CollectorRegistry

from sampan.kernel.telemetry import counter
from sampan.kube.control.conditions import ConditionSet
from sampan.kube.control.interface import For, Source
from sampan.kube.objects import Key, Object
from sampan.parts.eventing.control.dataplane import Shared
from sampan.parts.eventing.control.pulling import PullingController
from sampan.parts.eventing.control.sources import emit, overrides, resolve_sink, source_fields
from sampan.parts.eventing.control.status import write_status
from sampan.parts.eventing.delivery import Delivery
from sampan.parts.eventing.dispatcher import dead_letter
from sampan.parts.eventing.errors import ConnectionSettingsError
from sampan.parts.eventing.kafka import reader, records
from sampan.parts.eventing.kafka.reader import Connection, Reader
from sampan.parts.eventing.kafka.records import Record
from sampan.parts.eventing.resources import KAFKA_KEY_TYPE, KAFKA_SOURCES

log = logging.getLogger(__name__)

DEPENDENTS = ("SinkProvided", "ConsumerGroup", "OIDCIdentityCreated")
DELIVERY = Delivery(retry=10, delay=0.3, timeout=600.0)
"""For a source without a ``delivery``."""
MOST_MEMBERS = 32
"""Members of a group that one source runs at most: they share a process."""
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


class _Settings(msgspec.Struct, frozen=True):
    """What a running source depends on; another value means other members."""

    connection: Connection
    topics: tuple[str, ...]
    group: str
    earliest: bool
    ordered: bool
    members: int
    key_type: str
    url: str
    dead_letter: str
    delivery: Delivery
    extensions: tuple[tuple[str, str], ...]


class KafkaSourceController(PullingController[_Settings, Reader]):
    """Runs the members of each source."""

    name = "kafkasource-controller"
    condition = "ConsumerGroup"

    def __init__(self, shared: Shared, metrics: CollectorRegistry) -> None:
        super().__init__(shared)
        self._dropped = counter(
            metrics,
            "event_dropped_total",
            "Events that no subscriber and no dead-letter sink took",
            ("subscriber",),
        )

    def sources(self) -> list[Source]:
        return [For(KAFKA_SOURCES)]

    async def reconcile(self, key: Key) -> float | None:
        source = self.informer(KAFKA_SOURCES).get(key)
        if source is None or source["metadata"].get("deletionTimestamp"):
            await self.end(key)
            return None
        conditions = ConditionSet(source, DEPENDENTS, self.clock.now())
        conditions.true("OIDCIdentityCreated", "authentication-oidc feature disabled")
        again: float | None = None
        url = await resolve_sink(self, self._shared, source, conditions)
        if reader.AVAILABLE:
            again = await self.keep(source, url, conditions)
        else:
            conditions.false(
                "ConsumerGroup", "ClientMissing", "The Kafka client is not installed; run: pip install 'sampan[kafka]'"
            )
        topics = source["spec"]["topics"]
        types = [(records.EVENT_TYPE, records.source_of(key.namespace, key.name, topic)) for topic in topics]
        fields = {
            **source_fields(url, types),
            "consumers": self.running(key),
            "selector": "",
        }
        await write_status(self, KAFKA_SOURCES, source, conditions, fields)
        return again

    async def settings(self, source: Object, url: str) -> _Settings:
        spec, key = source["spec"], Key.of(source)
        delivery = spec.get("delivery")
        connection = await self._connection(source)
        connection.options()  # what is wrong with them is told before anything runs
        return _Settings(
            connection=connection,
            topics=tuple(spec["topics"]),
            group=spec["consumerGroup"],
            earliest=spec.get("initialOffset") == "earliest",
            ordered=spec.get("ordering") != "unordered",
            members=max(0, min(int(spec.get("consumers", 1)), MOST_MEMBERS)),
            key_type=(source["metadata"].get("labels") or {}).get(KAFKA_KEY_TYPE, "string"),
            url=url,
            dead_letter=await self._shared.dead_letter(delivery, key.namespace, self.queue, key),
            delivery=Delivery.of(delivery) if delivery else DELIVERY,
            extensions=tuple(sorted(overrides(source).items())),
        )

    async def _connection(self, source: Object) -> Connection:
        servers = tuple(part.strip() for one in source["spec"]["bootstrapServers"] for part in one.split(",") if part)
        net = source["spec"].get("net") or {}
        sasl, tls = net.get("sasl") or {}, net.get("tls") or {}
        found = Connection(servers)
        if sasl.get("enable"):
            mechanism = (await self._secret(source, sasl.get("type"))).strip().upper() or "PLAIN"
            if mechanism not in MECHANISMS:
                raise ConnectionSettingsError(
                    f"net.sasl.type is {mechanism}; it must be one of {', '.join(MECHANISMS)}"
                )
            user, password = [await self._secret(source, sasl.get(name)) for name in ("user", "password")]
            found = msgspec.structs.replace(found, mechanism=mechanism, user=user, password=password)
        if tls.get("enable"):
            certificate, private, authority = [
                await self._secret(source, tls.get(name)) for name in ("cert", "key", "caCert")
            ]
            found = msgspec.structs.replace(found, tls=True, certificate=certificate, key=private, authority=authority)
        return found

    async def _secret(self, source: Object, field: object) -> str:
        """The value of a Secret that a field names; empty where it names none."""
        return await self.secret(source, field.get("secretKeyRef") if isinstance(field, dict) else None)

    def members(self, key: Key, settings: _Settings) -> tuple[Sequence[Reader], None]:
        async def handle(record: Record) -> None:
            await self._deliver(key, settings, record)

        members = [
            Reader(
                settings.connection,
                settings.topics,
                settings.group,
                self.clock,
                handle,
                lambda: self.queue.add(key),
                earliest=settings.earliest,
                ordered=settings.ordered,
                name=f"sampan-{key.namespace}-{key.name}-{number}",
            )
            for number in range(settings.members)
        ]
        return members, None

    async def _deliver(self, key: Key, settings: _Settings, record: Record) -> None:
        event = records.event_of(record, key.namespace, key.name, settings.key_type)
        extensions = dict(settings.extensions)
        outcome = await emit(
            self._shared,
            settings.url,
            event,
            extensions,
            settings.delivery,
            key.namespace,
            origin=f"kafkasource {key}",
        )
        if outcome.ok:
            return
        said = outcome.status or outcome.reason
        if settings.dead_letter:
            letter = dead_letter(event, settings.url, outcome)
            buried = await emit(
                self._shared, settings.dead_letter, letter, extensions, settings.delivery, key.namespace
            )
            if buried.ok:
                return
            said = f"{said}; the dead-letter sink: {buried.status or buried.reason}"
        self._dropped.labels(f"kafkasource/{key}").inc()
        log.error("kafkasource %s: %s of %s is dropped: %s", key, event.text("id"), record.topic, said)
