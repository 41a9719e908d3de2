"""The serving part: Knative Serving on the platform.

Read this first. ``control`` holds one controller a kind (Service → Configuration → Revision → Deployment; Route → internal
Ingress), ``autoscaling`` decides how many pods a revision gets, ``activator`` holds requests while there is none. The traffic part
carries the requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import msgspec

from sampan.kernel.part import Part, PartSettings
from sampan.kube.access.interface import Admission
from sampan.kube.client import Client
from sampan.kube.client.resources import CONFIG_MAPS, ENDPOINT_SLICES, NAMESPACES, SERVICES
from sampan.kube.control.controller import ControlContext
from sampan.kube.control.definitions import install
from sampan.kube.objects import Key, Object, Resource, dig
from sampan.kube.resources import SERVICE_NAME
from sampan.kube.status import ApiError
from sampan.parts.node import ImageDigests, PodAddresses
from sampan.parts.serving import keys
from sampan.parts.serving.activator.gate import Gate
from sampan.parts.serving.admission import ServingAdmission
from sampan.parts.serving.configmaps import DEFAULTS, Config
from sampan.parts.serving.control.certificate import CertificateController
from sampan.parts.serving.control.configuration import ConfigurationController
from sampan.parts.serving.control.domain_mapping import DomainMappingController
from sampan.parts.serving.control.podautoscaler import PodAutoscalerController
from sampan.parts.serving.control.revision import RevisionController
from sampan.parts.serving.control.route import RouteController
from sampan.parts.serving.control.serverless_service import ServerlessServiceController
from sampan.parts.serving.control.service import ServiceController
from sampan.parts.serving.definitions import all_definitions
from sampan.parts.serving.resources import ROUTES, SYSTEM_NAMESPACE
from sampan.parts.traffic import ClusterLoad, DataPlane


class ServingSettings(PartSettings):
    """Settings of the serving part."""

    domain: Annotated[
        str, msgspec.Meta(description="Domain of Services where the ConfigMap config-domain names none.")
    ] = "localhost"


class ServingPart(Part[ServingSettings]):
    """Knative Serving."""

    name = "serving"
    needs = ("kubernetes", "workloads", "traffic")
    settings_type = ServingSettings

    _gate: Gate | None = None
    _unfollow: Callable[[], None] | None = None
    _autoscalers: PodAutoscalerController

    async def provision(self) -> None:
        client = self.context.get(Client)
        await install(client, all_definitions())
        await _create(
            client, NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM_NAMESPACE}}
        )
        made = (_config_map(name, data) for name, data in DEFAULTS.items())
        await asyncio.gather(*(_create(client, CONFIG_MAPS, one) for one in made))
        # where Knative's own components look for whom to trust
        bundle = _config_map("sampan-trust-bundle", {"ca.crt": self.context.authority.certificate_pem.decode()})
        bundle["metadata"]["labels"][keys.TRUST_BUNDLE] = "true"
        await client.apply(CONFIG_MAPS, bundle, field_manager="sampan", force=True)

    async def start(self) -> None:
        shared = self.context.get(ControlContext)
        plane = self.context.get(DataPlane)
        context = ControlContext(shared.client, shared.informers, shared.clock, self.context.tasks, shared.metrics)
        maps = context.informers.informer(CONFIG_MAPS)
        await maps.wait_synced()
        config = Config(maps.get, self.context.settings.domain)
        self.context.get(Admission).add(ServingAdmission(config, shared.client))
        await self._internal_gateway(shared.client, plane)
        self._autoscalers = PodAutoscalerController(context, config)
        for controller in (
            ServiceController(context),
            ConfigurationController(context, config),
            RevisionController(context, config, lambda: self.context.find(ImageDigests)),
            RouteController(context, config),
            self._autoscalers,
            ServerlessServiceController(context),
            DomainMappingController(context, config),
            CertificateController(context, self.context.authority),
        ):
            await controller.start()
        self._unfollow = plane.loads.subscribe(self._served)
        self._gate = gate = Gate(context, plane, self._autoscalers.scaler, lambda: self.context.find(PodAddresses))
        self._autoscalers.busy = gate.busy
        await gate.start()
        await plane.follow_knative()

    async def stop(self) -> None:
        if self._unfollow is not None:
            self._unfollow()
            self._unfollow = None
        if self._gate is not None:
            await self._gate.stop()

    def _served(self, load: ClusterLoad) -> None:
        """Envoy's report of one cluster: ``namespace/revision/80`` and its variants are ours."""
        parts = load.cluster.split("/")
        if len(parts) >= 3 and parts[2] == "80":
            key = Key(parts[0], parts[1])
            self._autoscalers.scaler.served(key, load.total.in_progress, load.total.issued, load.interval)

    async def _internal_gateway(self, client: Client, plane: DataPlane) -> None:
        """The Service behind every cluster-local name."""
        host, *ports = plane.internal
        named = list(zip((("http2", 80), ("https", 443)), ports, strict=True))
        metadata = {"name": "gateway", "namespace": SYSTEM_NAMESPACE}
        service: Object = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {
                "ports": [
                    {"name": name, "port": outer, "targetPort": port, "protocol": "TCP"}
                    for (name, outer), port in named
                ]
            },
        }
        await client.apply(SERVICES, service, field_manager="sampan", force=True)
        endpoint_slice: Object = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**metadata, "labels": {SERVICE_NAME: "gateway"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [host], "conditions": {"ready": True}}],
            "ports": [{"name": name, "port": port, "protocol": "TCP"} for (name, _), port in named],
        }
        await client.apply(ENDPOINT_SLICES, endpoint_slice, field_manager="sampan", force=True)

    def status(self) -> dict[str, Any]:
        ports = {
            scheme: "" if address is None or address[1] == usual else f":{address[1]}"
            for scheme, usual, name in (("http", 80, "gateway"), ("https", 443, "gateway.tls"))
            for address in (self.context.listeners.address(name),)
        }
        routes = self.context.get(ControlContext).informers.informer(ROUTES).objects()
        # a cluster-local name is nothing a person can open from here
        urls = {
            str(Key.of(one)): f"{url}{ports[url.partition(':')[0]]}"
            for one in routes
            if (url := dig(one, "status", "url")) and not url.endswith(".svc.cluster.local")
        }
        return {**(self._gate.status() if self._gate is not None else {}), **({"urls": urls} if urls else {})}


def _config_map(name: str, data: Mapping[str, str]) -> Object:
    metadata = {
        "name": name,
        "namespace": SYSTEM_NAMESPACE,
        "labels": {"app.kubernetes.io/name": "knative-serving", "app.kubernetes.io/component": "controller"},
    }
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": dict(data)}


async def _create(client: Client, resource: Resource, obj: Object) -> None:
    """Create an object unless it is there: what a user changed in it stays."""
    try:
        await client.create(resource, obj, obj["metadata"].get("namespace"))
    except ApiError as error:
        if not error.already_exists:
            raise
