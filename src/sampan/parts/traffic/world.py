"""The objects the sources read, as one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sampan.kernel.addresses import door
from sampan.kube.objects import Key, Object, dig
from sampan.parts.traffic.model import Endpoint

Objects = dict[Key, Object]


class Known(Protocol):
    """Objects that are had by key alone: there are many, most are looked at seldom, and who has them may keep them small."""

    def get(self, key: Key, /) -> Object | None: ...


def _nothing() -> dict[Key, Object]:
    return {}


def _no_slices(service: Key) -> Sequence[Object]:
    return ()


ROUTE_KINDS = {"http_routes": "HTTPRoute", "grpc_routes": "GRPCRoute"}
"""Fields whose objects are followed one by one: there may be thousands, and one of them changes."""
LOOKED_UP = ("secrets", "config_maps")
"""Fields of which only what somebody refers to matters."""


@dataclass(slots=True)
class Changes:
    """What changed since the last publication, where it is followed object by object."""

    routes: set[tuple[str, Key]] = field(default_factory=set)
    """(kind, key)."""
    services: set[Key] = field(default_factory=set)
    endpoints: set[Key] = field(default_factory=set)
    """Services whose addresses changed."""
    ingresses: set[Key] = field(default_factory=set)
    knative_ingresses: set[Key] = field(default_factory=set)


@dataclass(slots=True)
class World:
    """Objects by kind and key; a kind nobody has is empty."""

    gateway_classes: Objects = field(default_factory=dict)
    gateways: Objects = field(default_factory=dict)
    listener_sets: Objects = field(default_factory=dict)
    http_routes: Objects = field(default_factory=dict)
    grpc_routes: Objects = field(default_factory=dict)
    tls_routes: Objects = field(default_factory=dict)
    tcp_routes: Objects = field(default_factory=dict)
    udp_routes: Objects = field(default_factory=dict)
    reference_grants: Objects = field(default_factory=dict)
    backend_tls_policies: Objects = field(default_factory=dict)
    ingresses: Objects = field(default_factory=dict)
    ingress_classes: Objects = field(default_factory=dict)
    knative_ingresses: Known = field(default_factory=_nothing)
    services: Known = field(default_factory=_nothing)
    slices: Callable[[Key], Sequence[Object]] = _no_slices
    """EndpointSlices of a Service."""
    secrets: Objects = field(default_factory=dict)
    config_maps: Objects = field(default_factory=dict)
    namespaces: Objects = field(default_factory=dict)
    version: int = 0
    """Counts changes of what is not in ``changed``."""
    serverless_services: Known = field(default_factory=_nothing)
    early: dict[Key, frozenset[tuple[str, int]]] = field(default_factory=dict)
    """Addresses of Services announced ahead of their EndpointSlices."""
    changed: Changes = field(default_factory=Changes)
    _asked: set[tuple[str, Key]] = field(default_factory=set)

    def note(self, name: str, key: Key) -> bool:
        """An object of the field ``name`` was put, replaced or taken away; False where that makes no difference."""
        if name in ROUTE_KINDS:
            self.changed.routes.add((ROUTE_KINDS[name], key))
        elif name in ("services", "serverless_services"):  # the latter say something about Services of their names
            self.changed.services.add(key)
        elif name == "knative_ingresses":
            self.changed.knative_ingresses.add(key)
        elif name == "ingresses":
            self.changed.ingresses.add(key)
        elif name in LOOKED_UP and (name, key) not in self._asked:
            return False
        else:
            self.version += 1
        return True

    def secret(self, key: Key) -> Object | None:
        """A Secret that something refers to; from now on its changes matter."""
        self._asked.add(("secrets", key))
        return self.secrets.get(key)

    def config_map(self, key: Key) -> Object | None:
        """A ConfigMap that something refers to; from now on its changes matter."""
        self._asked.add(("config_maps", key))
        return self.config_maps.get(key)

    def namespace_labels(self, name: str) -> Mapping[str, str]:
        """Labels of a namespace."""
        labels: Mapping[str, str] = dig(self.namespaces.get(Key("", name)), "metadata", "labels", default={})
        return labels

    def service_port(self, service: Key, port: int | str, protocol: str = "TCP") -> Object | None:
        """A port of a Service by number or name."""
        found = self.services.get(service)
        for candidate in dig(found, "spec", "ports", default=[]):
            if port in (candidate["port"], candidate.get("name")) and candidate.get("protocol", "TCP") == protocol:
                result: Object = candidate
                return result
        return None

    def endpoints(self, service: Key, port: Object) -> tuple[Endpoint, ...]:
        """The addresses behind a Service port: ready ones, and terminating ones that still serve as a last resort."""
        found: dict[tuple[str, int], Endpoint] = {}
        for one in self.slices(service):
            if one.get("addressType") == "FQDN":
                continue  # names are for whoever resolves them; a data plane takes addresses
            number = next(
                (
                    candidate["port"]
                    for candidate in one.get("ports") or ()
                    if (candidate.get("name") or "") == (port.get("name") or "")
                ),
                None,
            )
            if number is None:
                continue
            for endpoint in one.get("endpoints") or ():
                conditions = endpoint.get("conditions") or {}
                ready = conditions.get("ready", True) is not False
                last_resort = conditions.get("serving", False) and conditions.get("terminating", False)
                if ready or last_resort:
                    for address in endpoint["addresses"]:
                        place = (address, door(address, number))
                        found[place] = Endpoint(*place, healthy=ready)
        for address, number in self.early.get(service, ()):
            if (address, number) not in found:
                found[address, number] = Endpoint(address, number)
        # a dual-stack Service has its pods twice: one family is enough
        four = [one for one in found.values() if ":" not in one.address]
        return tuple(sorted(four if any(one.healthy for one in four) else found.values()))


def by_age(item: tuple[Key, Object]) -> tuple[str, Key]:
    """Sort key of (key, object) pairs: the older first, then by key, as the Gateway API settles every tie."""
    return item[1]["metadata"].get("creationTimestamp") or "", item[0]
