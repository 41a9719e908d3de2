"""The traffic part: Envoy, its control plane, the gateway.

Read this first. ``sources`` translate objects to a ``model`` of plain values, ``envoy.build`` makes a snapshot of it, ``xds``
brings the snapshot to Envoy make-before-break, ``control.publisher`` is the loop around all that, and ``envoy.process`` keeps
Envoy running. Envoy survives the platform's core; only a stop that was asked for ends it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Annotated, Any

import msgspec

from sampan.kernel.clock import Clock
from sampan.kernel.errors import PortTakenError
from sampan.kernel.part import Part, PartSettings
from sampan.kernel.traces import Traces
from sampan.kube.client import resources as core
from sampan.kube.client.interface import Client
from sampan.kube.control.controller import ControlContext
from sampan.kube.control.definitions import install
from sampan.kube.status import ApiError
from sampan.parts.node import Routes
from sampan.parts.traffic import definitions, resources
from sampan.parts.traffic.access import AccessLog
from sampan.parts.traffic.control.publisher import Publisher
from sampan.parts.traffic.dataplane import DataPlane
from sampan.parts.traffic.envoy.gate import SLOT_LOG
from sampan.parts.traffic.envoy.process import Envoy
from sampan.parts.traffic.model import Certificate
from sampan.parts.traffic.places import Places, low_ports
from sampan.parts.traffic.sources import gateway_api, ingress
from sampan.parts.traffic.spans import GatewaySpans
from sampan.parts.traffic.xds.server import ControlPlane

log = logging.getLogger(__name__)


KNATIVE_WAIT = 10.0
"""Seconds an adopted Envoy is left with its configuration while the serving part comes up."""


class TrafficSettings(PartSettings):
    """Settings of the traffic part."""

    host: Annotated[str, msgspec.Meta(description="Address the gateway listens on.")] = "127.0.0.1"
    http_port: Annotated[
        int, msgspec.Meta(description="Port that serves what Gateways and Ingresses ask of port 80.")
    ] = 9080
    https_port: Annotated[int, msgspec.Meta(description="Port that serves what they ask of port 443.")] = 9443
    internal_port: Annotated[
        int, msgspec.Meta(description="port that serves cluster-local names of Knative Services.")
    ] = 9081
    internal_tls_port: Annotated[
        int, msgspec.Meta(description="Port that serves them with TLS, where `cluster-local-domain-tls` is on.")
    ] = 9444
    metrics_port: Annotated[
        int, msgspec.Meta(description="Port that serves Envoy's statistics to Prometheus, under `/metrics`.")
    ] = 19001
    workers: Annotated[int, msgspec.Meta(description="Envoy worker threads.", ge=1)] = 2
    load_interval: Annotated[float, msgspec.Meta(description="Seconds between Envoy's load reports.", gt=0)] = 0.5
    outlive: Annotated[
        bool, msgspec.Meta(description="Whether Envoy goes on serving when the platform's core dies (tests say no).")
    ] = True
    access_log: Annotated[bool, msgspec.Meta(description="Whether each request is a line of `logs/gateway.jsonl`.")] = (
        True
    )
    drain_seconds: Annotated[float, msgspec.Meta(description="Seconds requests under way have at a stop.", ge=0)] = 5.0


class TrafficPart(Part[TrafficSettings]):
    """Gateway and its data plane."""

    name = "traffic"
    needs = ("kubernetes",)
    settings_type = TrafficSettings

    _control_plane: ControlPlane
    _envoy: Envoy
    _publisher: Publisher
    _plane: DataPlane
    _access_log: AccessLog
    _came_up = False
    _asked_to_stop = False

    async def provision(self) -> None:
        await install(self.context.get(Client), definitions.all_definitions())
        for resource, obj in (
            (
                resources.GATEWAY_CLASSES,
                _class("gateway.networking.k8s.io/v1", "GatewayClass", "controllerName", gateway_api.CONTROLLER),
            ),
            (core.INGRESS_CLASSES, _class("networking.k8s.io/v1", "IngressClass", "controller", ingress.CONTROLLER)),
        ):
            try:
                await self.context.get(Client).create(resource, obj)
            except ApiError as error:
                if not error.already_exists:
                    raise

    async def start(self) -> None:
        context, settings = self.context, self.context.settings
        directory = context.data_dir / "envoy"
        directory.mkdir(parents=True, exist_ok=True)
        node = f"sampan-{context.data_dir.parent.name}"
        self._envoy = Envoy(
            directory,
            Clock(),  # a process of the machine's: it starts and ends however the platform's clock runs
            run=context.root / "run",
            node_id=node,
            concurrency=settings.workers,
            sockets=context.sockets,
            outlive=settings.outlive,
        )
        log_file = context.root / "logs" / "gateway.jsonl"  # written by a process of the machine's, likewise
        self._access_log = AccessLog(log_file, Clock(), self._envoy.reopen_logs)
        self._access_log.path.parent.mkdir(parents=True, exist_ok=True)
        if (traces := context.find(Traces)) is not None and settings.access_log:
            traces.ask(self.name, GatewaySpans(self._access_log.path, context.clock).find)
        await self._envoy.find()
        choose = context.listeners.choose
        metrics = self._envoy.port("gateway.metrics", settings.metrics_port, choose)
        context.listeners.record("gateway.metrics", settings.host, metrics)
        self._envoy.metrics = (settings.host, metrics)
        internal = self._envoy.port("gateway.internal", settings.internal_port, choose)
        context.listeners.record("gateway.internal", settings.host, internal)
        sealed = self._internal_tls()
        context.listeners.record("gateway.internal.tls", settings.host, sealed)
        plane = self._plane = DataPlane(context.sockets / "traffic-gate.sock", (settings.host, internal, sealed))
        self._control_plane = ControlPlane(
            self._envoy.xds_socket,
            context.clock,
            context.tasks,
            on_load=plane.loads.take,
            on_access=self._ended,
            load_interval=settings.load_interval,
        )
        self._control_plane.on_disconnect = plane.reset
        http = self._envoy.port("gateway", settings.http_port, choose)
        https = self._envoy.port("gateway.tls", settings.https_port, choose)
        context.listeners.record("gateway", settings.host, http)
        context.listeners.record("gateway.tls", settings.host, https)

        ports: dict[tuple[int, bool], int | None] = {(80, False): http, (443, False): https}

        def shared_port(port: int, udp: bool) -> int | None:
            if (port, udp) not in ports:
                ports[port, udp] = self._share(port, udp)
            return ports[port, udp]

        free = await asyncio.to_thread(low_ports)
        places = Places(settings.host, str(context.root), shared_port, low_ports=free)
        shared = context.get(ControlContext)
        control = ControlContext(shared.client, shared.informers, shared.clock, context.tasks)
        self._publisher = Publisher(
            control,
            self._control_plane,
            places,
            http,
            https,
            plane.gate_socket,
            (internal, sealed),
            self._default_certificate,
            self._access_log.path if settings.access_log else None,
        )
        plane.bind(self._publisher)
        context.provide(DataPlane, plane)
        context.provide(Routes, self._publisher)
        context.tasks.keep("access log", self._access_log.run)
        await self._publisher.start()
        if self._envoy.adopted:
            # it serves; it must not be told less than it knows before everything is known again
            context.tasks.start("control plane", self._open_when_complete())
        else:
            await self._control_plane.start()
        await self._envoy.start(context.tasks)

    async def _open_when_complete(self) -> None:
        """Let an adopted Envoy connect once the first configuration is made, with Knative's part where there is one."""
        await self._publisher.published()
        if await self._has_knative():
            try:
                async with self.context.clock.patience(KNATIVE_WAIT):
                    await self._publisher.knative_followed.wait()
            except TimeoutError:
                log.warning("Knative's Ingresses are not served: the serving part did not come up")
        await self._control_plane.start()

    async def _has_knative(self) -> bool:
        name = f"{resources.KNATIVE_INGRESSES.plural}.{resources.KNATIVE_INGRESSES.group}"
        try:
            await self.context.get(Client).get(core.CUSTOM_RESOURCE_DEFINITIONS, name)
        except ApiError as error:
            if not error.not_found:
                raise
            return False
        return True

    def _default_certificate(self) -> Certificate:
        """What hosts without a certificate of their own are served with: one of the platform's authority."""
        pair = self.context.authority.server_certificate(["localhost", self.context.settings.host], "gateway")
        return Certificate("sampan/default", pair.certificate.read_bytes(), pair.key.read_bytes())

    def _internal_tls(self) -> int:
        """The port of cluster-local names with TLS. Pods reach it through a Service: any does where the usual one is taken."""
        name, choose = "gateway.internal.tls", self.context.listeners.choose
        try:
            return self._envoy.port(name, self.context.settings.internal_tls_port, choose)
        except PortTakenError:
            return self._envoy.port(name, 0, choose)

    def _share(self, port: int, udp: bool) -> int | None:
        """The shared address's port for one that Gateways name, if it is free."""
        name = f"gateway.{port}{'.udp' if udp else ''}"
        try:
            chosen = self._envoy.port(name, port, self.context.listeners.choose)
        except PortTakenError as error:
            log.warning("port %d is served on the Gateways' own addresses only: %s", port, error)
            return None
        self.context.listeners.record(name, self.context.settings.host, chosen)
        return chosen

    async def ready(self) -> None:
        await self._publisher.published()
        await self._envoy.ready()
        self._came_up = True

    async def drain(self) -> None:
        self._asked_to_stop = True
        if hasattr(self, "_envoy"):  # else it was asked to stop before it had begun
            await self._envoy.drain(self.context.settings.drain_seconds)

    async def stop(self) -> None:
        if hasattr(self, "_envoy"):
            # a part that failed comes back soon: traffic goes on meanwhile
            if self._came_up and not self._asked_to_stop:
                await self._envoy.detach()
            else:
                await self._envoy.stop()
        if hasattr(self, "_control_plane"):
            await self._control_plane.stop()

    def _ended(self, log_name: str, batch: Any) -> None:
        if log_name == SLOT_LOG:
            self._plane.slots(batch)

    def status(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"envoy": self._envoy.pid, "published": self._publisher.generation}
        if self._envoy.restarts:
            facts["envoy_restarts"] = self._envoy.restarts
        if not self._control_plane.connections:
            facts["connected"] = False
        for (kind, name), (_, why) in self._control_plane.rejected().items():
            facts[f"rejected {kind.rpartition('.')[2]} {name}"] = why
        urls = self._urls()
        return {**facts, **({"urls": urls} if urls else {})}

    def _urls(self) -> dict[str, str]:
        """Where Ingresses can be opened: those with hosts of their own, or any on the gateway itself."""
        address = self.context.listeners.address("gateway")
        if address is None:
            return {}
        host, port = address
        suffix = "" if port == 80 else f":{port}"
        found = {}
        for one in self.context.get(ControlContext).informers.informer(core.INGRESSES).objects():
            hosts = [rule["host"] for rule in one["spec"].get("rules") or () if rule.get("host")]
            found[f"{one['metadata']['namespace']}/{one['metadata']['name']}"] = (
                f"http://{(hosts or [host])[0]}{suffix}"
            )
        return found


def _class(api_version: str, kind: str, field: str, controller: str) -> dict[str, Any]:
    annotations = {ingress.DEFAULT_CLASS: "true"} if kind == "IngressClass" else {}
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {"name": "sampan", "annotations": annotations},
        "spec": {field: controller},
    }
