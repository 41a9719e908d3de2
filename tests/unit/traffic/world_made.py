"""Worlds for tests, written as the objects a user writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sampan.kube.objects import Key, Object
from sampan.parts.traffic.envoy.build import Builder
from sampan.parts.traffic.model import Model
from sampan.parts.traffic.places import Places
from sampan.parts.traffic.references import Backends
from sampan.parts.traffic.sources.gateway_api import CONTROLLER, GatewaySource, Result
from sampan.parts.traffic.world import Changes, World
from sampan.parts.traffic.xds.snapshot import Snapshot

FIELDS = {
    "Gateway": "gateways",
    "ListenerSet": "listener_sets",
    "HTTPRoute": "http_routes",
    "GRPCRoute": "grpc_routes",
    "TLSRoute": "tls_routes",
    "TCPRoute": "tcp_routes",
    "Service": "services",
    "Secret": "secrets",
    "Namespace": "namespaces",
    "ReferenceGrant": "reference_grants",
}


class MadeWorld:
    """A world with our GatewayClass and what is put into it; what the Gateway API source makes of it."""

    def __init__(self, *, low_ports: bool = True) -> None:
        self.services: dict[Key, Object] = {}
        self.slices: dict[Key, list[Object]] = {}
        self.knative_ingresses: dict[Key, Object] = {}
        self.serverless_services: dict[Key, Object] = {}
        self.world = World(
            services=self.services,
            slices=lambda service: self.slices.get(service, ()),
            knative_ingresses=self.knative_ingresses,
            serverless_services=self.serverless_services,
        )
        self.put(
            {
                "kind": "GatewayClass",
                "metadata": {"name": "sampan", "namespace": ""},
                "spec": {"controllerName": CONTROLLER},
            }
        )
        self.places = Places("127.0.0.1", "test", lambda port, _: port + 9000, low_ports=low_ports)
        self.source = GatewaySource(self.places)
        self._builder = Builder(Path("gate.sock"))
        self.backends = Backends(self.world)

    def put(self, *objects: Object) -> None:
        """Create or replace objects."""
        for one in objects:
            metadata: Object = {"namespace": "default", "generation": 1, **one["metadata"]}
            made = {**one, "metadata": metadata}
            field = FIELDS.get(one["kind"], "gateway_classes")
            getattr(self.world, field)[Key.of(made)] = made
            self.world.note(field, Key.of(made))

    def take(self, *objects: Object) -> None:
        """Delete objects."""
        for one in objects:
            field = FIELDS[one["kind"]]
            key = Key(one["metadata"].get("namespace", "default"), one["metadata"]["name"])
            if getattr(self.world, field).pop(key, None) is not None:
                self.world.note(field, key)

    def service(self, name: str, *ports: int, namespace: str = "default") -> None:
        """A Service with an endpoint 10.0.0.1 for every port."""
        entries = [{"name": f"p{port}", "port": port, "protocol": "TCP"} for port in ports or (80,)]
        self.put({"kind": "Service", "metadata": {"name": name, "namespace": namespace}, "spec": {"ports": entries}})
        key = Key(namespace, name)
        made = {"metadata": {}, "ports": entries, "endpoints": [{"addresses": ["10.0.0.1"]}]}
        self.slices[key] = [made]
        self.world.changed.endpoints.add(key)

    def translate(self) -> Result:
        self.backends.follow()
        result = self.source.translate(self.world, self.backends)
        self.world.changed = Changes()
        return result

    def snapshot(self) -> Snapshot:
        result = self.translate()
        return self._builder.build(Model(result.listeners, self.backends.made))


def gateway(name: str, *listeners: Object, **spec: Any) -> Object:
    return {
        "kind": "Gateway",
        "metadata": {"name": name},
        "spec": {"gatewayClassName": "sampan", "listeners": list(listeners), **spec},
    }


def listener(name: str = "http", port: int = 80, protocol: str = "HTTP", **more: Any) -> Object:
    return {"name": name, "port": port, "protocol": protocol, **more}


def http_route(name: str, *backends: str, parent: str = "gw", **spec: Any) -> Object:
    refs = [{"name": backend, "port": 80} for backend in backends]
    return {
        "kind": "HTTPRoute",
        "metadata": {"name": name},
        "spec": {"parentRefs": [{"name": parent}], "rules": [{"backendRefs": refs}], **spec},
    }


def told(entry: Object) -> dict[str, str]:
    """``{type: "status reason"}`` of an entry's conditions."""
    return {one["type"]: f"{one['status']} {one['reason']}" for one in entry["conditions"]}
