"""The eventing part: Knative Eventing on the platform. Read this first.

Producers POST CloudEvents to the ``ingress`` (``fronts``), which stores them in ``streams`` (topics of the messaging part)
before it answers. For each Trigger and Subscription the ``dispatcher`` reads its topic, filters, delivers over the
``transport``, retries by the ``delivery`` spec, and brings replies back. ``control`` holds a controller a kind: brokers and
triggers, channels and flows, sources and sinks. ``cloudevents``, ``cesql``, ``filters``, ``delivery`` and ``schedule`` are
plain functions over values.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from sampan.kernel.clock import Clock
from sampan.kernel.http import HttpServer
from sampan.kernel.part import Part, PartSettings
from sampan.kernel.traces import Traces
from sampan.kube.access.interface import Admission
from sampan.kube.client import Client
from sampan.kube.client.resources import CONFIG_MAPS, ENDPOINT_SLICES, NAMESPACES, SERVICES
from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.definitions import install
from sampan.kube.objects import Object, Resource
from sampan.kube.resources import SERVICE_NAME
from sampan.kube.status import ApiError
from sampan.kube.types.resource import TypeRegistry
from sampan.parts.eventing.addressing import Addressing
from sampan.parts.eventing.admission import EventingAdmission
from sampan.parts.eventing.attempts import Attempts
from sampan.parts.eventing.configmaps import DEFAULTS, Config
from sampan.parts.eventing.control.api_server_source import ApiServerSourceController
from sampan.parts.eventing.control.broker import BrokerController
from sampan.parts.eventing.control.channels import (
    ChannelController,
    InMemoryChannelController,
    SubscriptionController,
)
from sampan.parts.eventing.control.container_source import ContainerSourceController
from sampan.parts.eventing.control.dataplane import Shared
from sampan.parts.eventing.control.event_types import EventTypeController
from sampan.parts.eventing.control.flows import ParallelController, SequenceController
from sampan.parts.eventing.control.github_source import PREFIX, GitHubSourceController
from sampan.parts.eventing.control.job_sink import JobSinkController
from sampan.parts.eventing.control.kafka_source import KafkaSourceController
from sampan.parts.eventing.control.leftovers import sweep
from sampan.parts.eventing.control.ping_source import PingSourceController
from sampan.parts.eventing.control.rocketmq_sink import RocketMQSinkController
from sampan.parts.eventing.control.rocketmq_source import RocketMQSourceController
from sampan.parts.eventing.control.sink_binding import BindingAdmission, SinkBindingController
from sampan.parts.eventing.control.trigger import TriggerController
from sampan.parts.eventing.definitions import all_definitions
from sampan.parts.eventing.dispatcher import Dispatcher
from sampan.parts.eventing.fronts.ingress import Ingress
from sampan.parts.eventing.fronts.rocketmq_sink import RocketMQSink
from sampan.parts.eventing.resources import (
    BROKERS,
    IN_MEMORY_CHANNELS,
    INGRESS_SERVICE,
    JOB_HOST,
    JOB_SERVICE,
    SYSTEM_NAMESPACE,
    TOPIC_HOST,
    TOPIC_SERVICE,
)
from sampan.parts.eventing.streams import Streams
from sampan.parts.eventing.tracing import Tracing
from sampan.parts.eventing.transport import ServiceResolver, Transport


class EventingSettings(PartSettings):
    """Settings of the eventing part."""

    host: Annotated[str, msgspec.Meta(description="Address the ingress listens on.")] = "127.0.0.1"
    ingress_port: Annotated[int, msgspec.Meta(description="Port that takes events: POST /<namespace>/<broker>.")] = 9082
    max_event_bytes: Annotated[
        int, msgspec.Meta(description="Largest event that is taken; messaging's limit for a body is above it.", ge=1024)
    ] = 1_048_576
    public_url: Annotated[
        str, msgspec.Meta(description="Address under which GitHub reaches the ingress; empty: where it listens.")
    ] = ""


class EventingPart(Part[EventingSettings]):
    """Knative Eventing."""

    name = "eventing"
    needs = ("kubernetes", "messaging")
    wants = ("workloads", "traffic", "serving")
    settings_type = EventingSettings

    _socket: socket.socket
    _server: HttpServer | None = None
    _streams: Streams | None = None
    _transport: Transport | None = None
    _dispatcher: Dispatcher | None = None
    _attempts: Attempts | None = None
    _sink: RocketMQSink | None = None
    _running_sources: Sequence[
        RocketMQSourceController | KafkaSourceController | PingSourceController | ApiServerSourceController
    ] = ()

    async def provision(self) -> None:
        context, client = self.context, self.context.get(Client)
        self._socket = context.listeners.bind("eventing.ingress", context.settings.ingress_port, context.settings.host)
        await install(client, all_definitions())
        await _create(
            client, NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM_NAMESPACE}}
        )
        await asyncio.gather(*(_create(client, CONFIG_MAPS, _config_map(*one)) for one in DEFAULTS.items()))

    async def start(self) -> None:
        context, shared = self.context, self.context.get(ControlContext)
        control = ControlContext(shared.client, shared.informers, shared.clock, context.tasks, shared.metrics)
        maps = control.informers.informer(CONFIG_MAPS)
        await maps.wait_synced()
        config = Config(maps.get)
        admission = context.get(Admission)
        admission.add(EventingAdmission(config))
        resolver, addressing = ServiceResolver(control.informers), Addressing(control.informers)
        self._streams = streams = Streams(
            lambda: context.listeners.address("messaging.grpc"),
            context.clock,
            context.tasks,
            context.root / "messaging" / "credentials.json",
            context.data_dir / "streams",
        )
        self._transport = transport = Transport(resolver, context.clock, lambda: context.authority.certificate_pem)
        self._attempts = Attempts(context.data_dir / "attempts.jsonl")
        await asyncio.to_thread(self._attempts.open)
        tracing = Tracing(context.tracer, context.find(Traces) or Traces(context.clock))
        brokers, channels = (control.informers.informer(one) for one in (BROKERS, IN_MEMORY_CHANNELS))
        ingress = Ingress(
            brokers, channels, streams, context.clock, context.metrics, tracing, limit=context.settings.max_event_bytes
        )
        self._dispatcher = dispatcher = Dispatcher(
            streams, transport, context.clock, context.tasks, context.metrics, ingress.enter, tracing, self._attempts
        )
        for cache in (resolver, addressing, brokers, channels):
            await cache.wait_synced()
        for service in (INGRESS_SERVICE, TOPIC_SERVICE, JOB_SERVICE):
            await self._publish_service(shared.client, service)
        admission.add(BindingAdmission(control.informers))
        everything = Shared(control, addressing, streams, dispatcher, transport, tracing)
        rocketmq = RocketMQSourceController(everything)
        self._sink = RocketMQSink(control.informers, streams, context.clock, tracing, rocketmq.secret)
        ingress.add(TOPIC_HOST, self._sink.take)
        self._running_sources = [
            rocketmq,
            KafkaSourceController(everything, context.metrics),
            PingSourceController(everything),
            ApiServerSourceController(everything, context.get(TypeRegistry)),
        ]
        event_types, job_sinks = EventTypeController(everything, config), JobSinkController(everything)
        ingress.add(JOB_HOST, job_sinks.take)
        host, port = self._socket.getsockname()[:2]
        github = GitHubSourceController(everything, context.settings.public_url or f"http://{host}:{port}")
        ingress.add(f"/{PREFIX}", github.take)
        ingress.on_event(event_types.observe)
        controllers: list[Controller] = [
            BrokerController(everything),
            TriggerController(everything),
            InMemoryChannelController(everything),
            ChannelController(everything),
            SubscriptionController(everything),
            SequenceController(everything),
            ParallelController(everything),
            SinkBindingController(everything),
            ContainerSourceController(everything),
            event_types,
            job_sinks,
            github,
            RocketMQSinkController(everything),
            *self._running_sources,
        ]
        for controller in controllers:
            await controller.start()
        if streams.used:
            context.tasks.start("leftovers", sweep(everything))
        self._server = HttpServer(ingress.handle, self._socket, Clock())
        await self._server.start()

    async def drain(self) -> None:
        if self._server is not None:
            await self._server.drain()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop()
            self._server = None
        for source in self._running_sources:
            await source.close()
        if self._sink is not None:
            await self._sink.close()
        if self._dispatcher is not None:
            await self._dispatcher.close()
        if self._attempts is not None:
            self._attempts.close()
        if self._transport is not None:
            await self._transport.close()
        if self._streams is not None:
            await self._streams.close()

    def status(self) -> dict[str, Any]:
        return {"subscribers": 0 if self._dispatcher is None else len(self._dispatcher)}

    async def _publish_service(self, client: Client, name: str) -> None:
        """A Service under which pods reach the ingress."""
        host, port = self._socket.getsockname()[:2]
        metadata = {"name": name, "namespace": SYSTEM_NAMESPACE}
        service: Object = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"ports": [{"name": "http", "port": 80, "targetPort": port, "protocol": "TCP"}]},
        }
        await client.apply(SERVICES, service, field_manager="sampan", force=True)
        endpoint_slice: Object = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**metadata, "labels": {SERVICE_NAME: name}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [host], "conditions": {"ready": True}}],
            "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        }
        await client.apply(ENDPOINT_SLICES, endpoint_slice, field_manager="sampan", force=True)


def _config_map(name: str, data: Mapping[str, str]) -> Object:
    metadata = {
        "name": name,
        "namespace": SYSTEM_NAMESPACE,
        "labels": {"app.kubernetes.io/name": "knative-eventing"},
    }
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": dict(data)}


async def _create(client: Client, resource: Resource, obj: Object) -> None:
    """Create an object unless it is there: what a user changed in it stays."""
    try:
        await client.create(resource, obj, obj["metadata"].get("namespace"))
    except ApiError as error:
        if not error.already_exists:
            raise
