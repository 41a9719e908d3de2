"""The Gateway API: Gateways and their routes as listeners, and every status they get.

A Gateway of ours becomes listeners; a route is attached to those listeners its parentRef names, that allow its kind and
namespace and share a host name with it. What is wrong is told in the objects' conditions, in upstream's reason words, and
everything else is served.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from sampan.kube.objects import Key, Object, Resource, dig
from sampan.kube.types.selectors import matches
from sampan.parts.traffic import resources
from sampan.parts.traffic.model import Listener, Rule, Target, intersect
from sampan.parts.traffic.places import Place, Places
from sampan.parts.traffic.references import GROUP, Backends, Origin, Problem, certificate, client_authority
from sampan.parts.traffic.sources.routes import Translated, grpc_rules, http_rules
from sampan.parts.traffic.world import World, by_age

log = logging.getLogger(__name__)

CONTROLLER = "sampan.dev/gateway-controller"
"""``spec.controllerName`` of the GatewayClasses we serve."""

_KINDS = {
    "HTTP": ("HTTPRoute", "GRPCRoute"),
    "HTTPS": ("HTTPRoute", "GRPCRoute"),
    "TLS": ("TLSRoute",),
    "TCP": ("TCPRoute",),
    "UDP": ("UDPRoute",),
}

Statuses = dict[tuple[Resource, Key], Object]


@dataclass(slots=True)
class Condition:
    """One condition without its times."""

    type: str
    status: bool
    reason: str
    message: str = ""

    def at(self, generation: int) -> Object:
        return {
            "type": self.type,
            "status": "True" if self.status else "False",
            "reason": self.reason,
            "message": self.message,
            "observedGeneration": generation,
        }


@dataclass(slots=True)
class Socket:
    """A Gateway listener as it is served: on the Gateway's own address, and on the shared one where there is room."""

    gateway: Object
    owner: Object
    """The Gateway, or the ListenerSet that brings the listener to it."""
    spec: Mapping[str, Any]
    listener: Listener
    served: list[tuple[Place, Listener]]
    """Every copy, ``listener`` first."""
    kinds: list[str]
    accepted: Condition
    conflicted: Condition
    resolved: Condition
    attached: set[tuple[str, Key]] = field(default_factory=set)

    @property
    def usable(self) -> bool:
        return self.accepted.status and not self.conflicted.status

    @property
    def programmed(self) -> bool:
        needs_certificate = self.spec["protocol"] == "HTTPS" or (
            self.spec["protocol"] == "TLS" and not self.listener.passthrough
        )
        has_certificate = bool(self.listener.certificates) or not needs_certificate
        return self.usable and has_certificate and bool(self.kinds)


class Parent(NamedTuple):
    """What routes attach to."""

    kind: str
    key: Key


Placed = tuple[list[list[Rule]], tuple[Target, ...] | None]
"""Rules for every copy of a listener, or the targets of a stream."""


class Placement(NamedTuple):
    """A route on one listener of a parent."""

    parent: Parent
    position: int
    hosts: list[str]
    rules: list[list[Rule]]
    """For every copy of the listener."""
    targets: tuple[Target, ...] | None
    """For streams."""


@dataclass(slots=True)
class Attachment:
    """What became of a route: kept as long as neither it nor what it depends on changes."""

    route: Object
    status: Object | None
    placements: list[Placement] = field(default_factory=list)
    clusters: frozenset[str] = frozenset()
    services: frozenset[Key] = frozenset()
    translated: dict[Place | None, Translated] = field(default_factory=dict)


@dataclass(slots=True)
class Result:
    """Listeners and statuses."""

    listeners: list[Listener] = field(default_factory=list)
    statuses: Statuses = field(default_factory=dict)
    changed: set[tuple[Resource, Key]] = field(default_factory=set)
    """Entries of ``statuses`` that are new or were replaced or taken away by the last translation."""
    warnings: list[tuple[Object, str, str]] = field(default_factory=list)
    """(object, reason, message) to tell in events, for kinds whose status has no place for it."""

    def tell(self, entry: tuple[Resource, Key], status: Object | None) -> None:
        """Replace a status; None takes it away."""
        if status is None:
            if self.statuses.pop(entry, None) is not None:
                self.changed.add(entry)
        elif self.statuses.get(entry) != status:
            self.statuses[entry] = status
            self.changed.add(entry)


_ROUTES = (
    ("HTTPRoute", "http_routes", resources.HTTP_ROUTES),
    ("GRPCRoute", "grpc_routes", resources.GRPC_ROUTES),
    ("TLSRoute", "tls_routes", resources.TLS_ROUTES),
    ("TCPRoute", "tcp_routes", resources.TCP_ROUTES),
    ("UDPRoute", "udp_routes", resources.UDP_ROUTES),
)
_RESOURCE_OF = {kind: resource for kind, _, resource in _ROUTES}
_FIELD_OF = {kind: name for kind, name, _ in _ROUTES}
_STREAMS = ("TLSRoute", "TCPRoute", "UDPRoute")


class GatewaySource:
    """Translates, and keeps what it made: of thousands of routes a change costs those it touches.

    Whatever is not followed object by object (Gateways, grants, policies, ...) makes everything anew.
    """

    def __init__(self, places: Places) -> None:
        self._places = places
        self._sockets: dict[Parent, list[Socket]] = {}
        self._attachments: dict[tuple[str, Key], Attachment] = {}
        self._dependents: dict[Key, set[tuple[str, Key]]] = {}
        """Routes by the Services they name."""
        self._result = Result()
        self._version = -1

    def translate(self, world: World, backends: Backends) -> Result:
        """Everything the Gateway API objects of a world ask for; the same `Result` every time, brought up to date."""
        self._result.changed = set()
        touched = set(world.changed.routes)
        for service in world.changed.services:
            touched |= self._dependents.get(service, set())
        if self._version != world.version or any(kind in _STREAMS for kind, _ in touched):
            self._version = world.version
            self._everything(world, backends)
        elif touched:
            self._some(world, backends, touched)
        return self._result

    def serves_nothing_of(self, kind: str, key: Key) -> bool:
        """Every rule of a route is refused."""
        found = self._attachments[kind, key]
        return all(rule.wire.standing == "refused" for _, _, rules in self._places_of(found) for rule in rules)

    def routes_to(self, cluster: str) -> list[tuple[Resource, Key]]:
        """Routes that send to a cluster."""
        return [(_RESOURCE_OF[kind], key) for (kind, key), one in self._attachments.items() if cluster in one.clusters]

    def listeners_with(self, certificate: str) -> list[tuple[tuple[Resource, Key], str]]:
        """(status entry, name) of the listeners that present a certificate."""
        return [
            (_entry(parent), socket.spec["name"])
            for parent, served in self._sockets.items()
            for socket in served
            if any(one.name == certificate for one in socket.listener.certificates)
        ]

    def listeners_at(self, name: str) -> list[tuple[tuple[Resource, Key], str]]:
        """(status entry, name) of the listeners whose own place an Envoy listener or route configuration serves."""
        place = name.removeprefix("udp/").partition("/")[0]
        return [
            (_entry(parent), socket.spec["name"])
            for parent, served in self._sockets.items()
            for socket in served
            if f"{socket.listener.address}:{socket.listener.port}" == place
            and name.startswith("udp/") == (socket.listener.protocol == "UDP")
        ]

    def _everything(self, world: World, backends: Backends) -> None:
        result = self._result
        told = set(result.statuses)
        statuses: Statuses = {}
        classes = {
            key.name for key, one in world.gateway_classes.items() if one["spec"]["controllerName"] == CONTROLLER
        }
        self._places.keep(world.gateways)
        self._sockets = {}
        for key, gateway in sorted(world.gateways.items(), key=by_age):
            if gateway["spec"]["gatewayClassName"] in classes:
                try:
                    served = [
                        self._socket(world, gateway, gateway, spec) for spec in gateway["spec"].get("listeners") or ()
                    ]
                    _find_conflicts(served)
                except Exception as error:
                    log.exception("Gateway %s cannot be translated", key)
                    statuses[resources.GATEWAYS, key] = _untranslatable(gateway, error)
                    continue
                self._sockets[Parent("Gateway", key)] = served
        for key, extra in sorted(world.listener_sets.items(), key=by_age):
            self._add_set(world, key, extra, statuses)
        known, self._attachments, self._dependents = self._attachments, {}, {}
        for kind, name, _ in _ROUTES:
            routes: dict[Key, Object] = getattr(world, name)
            for key, route in sorted(routes.items(), key=by_age):
                self._enter(kind, key, self._attach(world, backends, kind, key, route, known.get((kind, key))))
        for old in known.values():
            backends.release(old.clusters)
        for parent in self._sockets:
            statuses[_entry(parent)] = self._parent_status(world, parent)
        for name in classes:
            key = Key("", name)
            generation = world.gateway_classes[key]["metadata"].get("generation", 0)
            accepted = Condition("Accepted", True, "Accepted", "GatewayClass is served by Sampan")
            statuses[resources.GATEWAY_CLASSES, key] = {
                "conditions": [accepted.at(generation)],
                "supportedFeatures": [{"name": one} for one in SUPPORTED_FEATURES],
            }
        for (kind, key), attachment in self._attachments.items():
            if attachment.status is not None:
                statuses[_RESOURCE_OF[kind], key] = attachment.status
        statuses |= self._policy_statuses(world, backends)
        for entry in told - set(statuses):
            result.tell(entry, None)
        for entry, status in statuses.items():
            result.tell(entry, status)
        result.listeners = [
            listener
            for served in self._sockets.values()
            for socket in served
            if socket.programmed
            for _, listener in socket.served
        ]

    def _some(self, world: World, backends: Backends, touched: set[tuple[str, Key]]) -> None:
        """Attach these HTTP and gRPC routes anew; everything else stands as it is."""
        parents: set[Parent] = set()
        hosts: set[tuple[int, str]] = set()
        listeners: dict[int, Listener] = {}
        for kind, key in touched:
            route: Object | None = getattr(world, _FIELD_OF[kind]).get(key)
            old = self._attachments.get((kind, key))
            if old is not None:
                parents |= {placement.parent for placement in old.placements}
                for listener, host, rules in self._places_of(old):
                    listener.hosts[host or "*"].remove(rules)
                    hosts.add((id(listener), host))
                    listeners[id(listener)] = listener
                self._leave(kind, key, old)
            new = None
            if route is not None:
                new = self._attach(world, backends, kind, key, route, old)
                self._enter(kind, key, new)
                parents |= {placement.parent for placement in new.placements}
            if old is not None:
                backends.release(old.clusters)
            self._result.tell((_RESOURCE_OF[kind], key), new.status if new is not None else None)
        for number, host in hosts:
            listeners[number].drop_empty(host)
        for parent in parents:
            self._result.tell(_entry(parent), self._parent_status(world, parent))
        for entry, status in self._policy_statuses(world, backends).items():
            self._result.tell(entry, status)

    def _places_of(self, attachment: Attachment) -> Iterator[tuple[Listener, str, list[Rule]]]:
        """Where an HTTP or gRPC route's rules are: (listener, host, rules)."""
        for placement in attachment.placements:
            socket = self._sockets[placement.parent][placement.position]
            for (_, listener), rules in zip(socket.served, placement.rules, strict=True):
                for host in placement.hosts:
                    yield listener, host, rules

    def _enter(self, kind: str, key: Key, attachment: Attachment) -> None:
        """Put a route on its listeners."""
        self._attachments[kind, key] = attachment
        for service in attachment.services:
            self._dependents.setdefault(service, set()).add((kind, key))
        for placement in attachment.placements:
            socket = self._sockets[placement.parent][placement.position]
            socket.attached.add((kind, key))
            if placement.targets is not None:
                for _, listener in socket.served:
                    for host in placement.hosts if kind == "TLSRoute" else [""]:
                        # of several routes the oldest keeps the port or name
                        listener.targets.setdefault(host, placement.targets)
        if kind not in _STREAMS:
            for listener, host, rules in self._places_of(attachment):
                listener.host(host).add(rules)

    def _leave(self, kind: str, key: Key, attachment: Attachment) -> None:
        del self._attachments[kind, key]
        for service in attachment.services:
            self._dependents[service].discard((kind, key))
            if not self._dependents[service]:
                del self._dependents[service]
        for placement in attachment.placements:
            self._sockets[placement.parent][placement.position].attached.discard((kind, key))

    # -- gateways

    def _add_set(self, world: World, key: Key, extra: Object, statuses: Statuses) -> None:
        """Put the listeners of a ListenerSet beside those of its Gateway, which win every conflict, as older sets do."""
        reference = extra["spec"]["parentRef"]
        parent = _parent({"kind": "Gateway", **reference}, key.namespace)
        if parent is None or parent.kind != "Gateway" or parent not in self._sockets:
            return
        gateway = world.gateways[parent.key]
        allowed = dig(gateway, "spec", "allowedListeners", "namespaces", default={})
        if not _from(world, allowed, "None", gateway, key.namespace):
            generation, message = extra["metadata"].get("generation", 0), "the Gateway allows no listeners from here"
            statuses[resources.LISTENER_SETS, key] = {
                "conditions": [
                    Condition(kind, False, "NotAllowed", message).at(generation) for kind in ("Accepted", "Programmed")
                ],
                "listeners": [],
            }
            return
        try:
            served = [self._socket(world, gateway, extra, spec) for spec in extra["spec"].get("listeners") or ()]
            _find_conflicts([*self._of_gateway(parent.key), *served], new=served)
        except Exception as error:
            log.exception("ListenerSet %s cannot be translated", key)
            statuses[resources.LISTENER_SETS, key] = _untranslatable(extra, error)
            return
        self._sockets[Parent("ListenerSet", key)] = served

    def _of_gateway(self, key: Key) -> list[Socket]:
        """A Gateway's own listeners and those of its sets."""
        return [socket for served in self._sockets.values() for socket in served if Key.of(socket.gateway) == key]

    def _socket(self, world: World, gateway: Object, owner: Object, spec: Mapping[str, Any]) -> Socket:
        key, protocol = Key.of(owner), spec["protocol"]
        known = protocol in _KINDS
        place = self._places.own(self._places.address(gateway), spec["port"])
        listener = Listener(
            owner=f"gateway/{Key.of(gateway)}",
            name=spec["name"],
            address=place.address,
            port=place.port,
            protocol=protocol if known else "HTTP",
            hostname=(spec.get("hostname") or "").lower(),
        )
        accepted = Condition("Accepted", True, "Accepted")
        if not known:
            accepted = Condition("Accepted", False, "UnsupportedProtocol", f"protocol {protocol} is not supported")
        resolved = Condition("ResolvedRefs", True, "ResolvedRefs")
        wanted = [(one.get("group") or GROUP, one["kind"]) for one in dig(spec, "allowedRoutes", "kinds", default=[])]
        kinds = [kind for kind in _KINDS.get(protocol, ()) if not wanted or (GROUP, kind) in wanted]
        if len(kinds) < len(set(wanted)):
            resolved = Condition(
                "ResolvedRefs", False, "InvalidRouteKinds", "some of the allowed kinds cannot be served"
            )
        tls = spec.get("tls") or {}
        listener.passthrough = protocol == "TLS" and tls.get("mode") == "Passthrough"
        if protocol in ("HTTPS", "TLS") and not listener.passthrough:
            origin = Origin(GROUP, "Gateway" if owner is gateway else "ListenerSet", key.namespace)
            for reference in tls.get("certificateRefs") or ():
                found = certificate(world, origin, reference)
                if isinstance(found, Problem):
                    resolved = Condition("ResolvedRefs", False, *found)
                else:
                    listener.certificates.append(found)
            if not tls.get("certificateRefs"):
                resolved = Condition(
                    "ResolvedRefs", False, "InvalidCertificateRef", "the listener names no certificate"
                )
        if protocol == "HTTPS":
            authority, listener.client_required = client_authority(world, gateway, spec["port"])
            if isinstance(authority, Problem):
                resolved = Condition("ResolvedRefs", False, *authority)
                listener.certificates.clear()  # nobody could be let in
            else:
                listener.client_ca = authority
        conflicted = Condition("Conflicted", False, "NoConflicts")
        served = [(place, listener)]
        shared = self._places.on_shared(spec["port"], udp=protocol == "UDP")
        if shared is not None and shared[:2] != place[:2]:
            copied = replace(listener, address=shared.address, port=shared.port, hosts={}, targets={})
            served.append((shared, copied))
        return Socket(gateway, owner, spec, listener, served, kinds, accepted, conflicted, resolved)

    def _parent_status(self, world: World, parent: Parent) -> Object:
        served = self._sockets[parent]
        if parent.kind == "ListenerSet":
            return self._set_status(world.listener_sets[parent.key], served)
        return self._gateway_status(world.gateways[parent.key], served)

    def _gateway_status(self, gateway: Object, served: list[Socket]) -> Object:
        generation, key = gateway["metadata"].get("generation", 0), Key.of(gateway)
        valid = all(socket.usable and socket.resolved.status for socket in served)
        any_usable = any(socket.usable for socket in served)
        addresses = gateway["spec"].get("addresses") or []
        unusable = [one for one in addresses if not self._places.usable(one)]
        if not any_usable:
            accepted = Condition("Accepted", False, "ListenersNotValid", "no listener is valid")
        elif unusable:
            accepted = Condition(
                "Accepted", False, "UnsupportedAddress", f"address {unusable[0].get('value')} is not a loopback address"
            )
        else:
            accepted = Condition("Accepted", True, "Accepted" if valid else "ListenersNotValid")
        ready = accepted.status and any(socket.programmed for socket in served)
        programmed = Condition("Programmed", ready, "Programmed" if ready else "Invalid")
        status: Object = {
            "addresses": [{"type": "IPAddress", "value": self._places.address(gateway)}],
            "conditions": [accepted.at(generation), programmed.at(generation)],
            "listeners": _listener_statuses(served, generation),
        }
        sets = {
            parent
            for parent, others in self._sockets.items()
            if parent.kind == "ListenerSet" and any(Key.of(one.gateway) == key and one.usable for one in others)
        }
        if sets:
            status["attachedListenerSets"] = len(sets)
        return status

    def _set_status(self, extra: Object, served: list[Socket]) -> Object:
        generation = extra["metadata"].get("generation", 0)
        usable = any(socket.usable for socket in served)
        valid = all(socket.usable and socket.resolved.status for socket in served)
        accepted = Condition("Accepted", usable, "Accepted" if valid else "ListenersNotValid")
        ready = usable and any(socket.programmed for socket in served)
        programmed = Condition("Programmed", ready, "Programmed" if ready else "Invalid")
        return {
            "conditions": [accepted.at(generation), programmed.at(generation)],
            "listeners": _listener_statuses(served, generation),
        }

    # -- routes

    def _attach(
        self, world: World, backends: Backends, kind: str, key: Key, route: Object, old: Attachment | None
    ) -> Attachment:
        """Attach a route to every parent of ours. ``old``: what it was, whose unchanged rules are kept."""
        made = Attachment(route, None)
        backends.used, backends.asked = set(), set()
        generation = route["metadata"].get("generation", 0)
        before = old.translated if old is not None else {}
        parents: list[Object] = []
        try:
            for reference in route["spec"].get("parentRefs") or ():
                parent = _parent(reference, key.namespace)
                served = self._sockets.get(parent) if parent is not None else None
                if parent is None or served is None:
                    continue
                accepted, usable = self._find_sockets(world, served, reference, kind, key, route)
                if kind in _STREAMS:
                    resolved, targets = self._stream_targets(backends, kind, key, route)
                    conditions = [accepted, resolved]
                    placed: list[Placed] = [([], targets) for _ in usable]
                else:
                    conditions, placed = self._place_rules(backends, made, before, kind, accepted, usable)
                if conditions[0].status:
                    for (socket, hosts), (rules, to) in zip(usable, placed, strict=True):
                        made.placements.append(Placement(parent, served.index(socket), hosts, rules, to))
                entry = {"parentRef": dict(reference), "controllerName": CONTROLLER}
                parents.append({**entry, "conditions": [one.at(generation) for one in conditions]})
        except Exception as error:
            # whatever an object holds that nobody thought of must cost that object alone
            log.exception("%s %s cannot be translated", kind, key)
            made.placements.clear()
            refused = Condition("Accepted", False, "UnsupportedValue", f"cannot be translated: {error!r}")
            parents = [
                {"parentRef": dict(one), "controllerName": CONTROLLER, "conditions": [refused.at(generation)]}
                for one in route["spec"].get("parentRefs") or ()
                if _parent(one, key.namespace) in self._sockets
            ]
        made.clusters, made.services = frozenset(backends.used), frozenset(backends.asked)
        backends.hold(made.clusters)
        ours = any(one.get("controllerName") == CONTROLLER for one in dig(route, "status", "parents", default=[]))
        if parents or ours or (old is not None and old.status is not None):
            made.status = {"parents": parents}
        return made

    def _find_sockets(
        self,
        world: World,
        served: list[Socket],
        reference: Mapping[str, Any],
        kind: str,
        key: Key,
        route: Object,
    ) -> tuple[Condition, list[tuple[Socket, list[str]]]]:
        candidates = [
            socket
            for socket in served
            if reference.get("sectionName") in (None, "", socket.spec["name"])
            and reference.get("port") in (None, socket.spec["port"])
        ]
        if not candidates:
            return Condition("Accepted", False, "NoMatchingParent", "no listener of that name and port"), []
        allowed = [socket for socket in candidates if kind in socket.kinds and _allows(world, socket, key.namespace)]
        if not allowed:
            message = "no listener allows routes of this kind from this namespace"
            return Condition("Accepted", False, "NotAllowedByListeners", message), []
        found = []
        for socket in allowed:
            hosts = _shared_hosts(socket.listener.hostname, route["spec"].get("hostnames") or [])
            if hosts and socket.usable:
                found.append((socket, hosts))
        if not found:
            return Condition("Accepted", False, "NoMatchingListenerHostname", "no listener shares a host name"), []
        return Condition("Accepted", True, "Accepted"), found

    def _place_rules(
        self,
        backends: Backends,
        made: Attachment,
        before: Mapping[Place | None, Translated],
        kind: str,
        accepted: Condition,
        usable: list[tuple[Socket, list[str]]],
    ) -> tuple[list[Condition], list[Placed]]:
        """An HTTP or gRPC route's conditions, and its rules for every copy of every listener."""

        def rules(place: Place | None, secure: bool = False) -> Translated:
            """The rules as served at a place (which only matters to redirects)."""
            if place not in made.translated:
                route = made.route
                fresh = (
                    grpc_rules(route, backends) if kind == "GRPCRoute" else http_rules(route, backends, place, secure)
                )
                known = before.get(place)
                if known is not None:
                    # an unchanged rule stays the same object, because its wire form is there already
                    fresh.rules = [
                        known.rules[at] if at < len(known.rules) and known.rules[at] == rule else rule
                        for at, rule in enumerate(fresh.rules)
                    ]
                made.translated[place] = fresh
            return made.translated[place]

        translated = rules(None)
        placed: list[Placed] = []
        for socket, _ in usable:
            copies = [translated.rules] * len(socket.served)
            if translated.redirects:
                copies = [rules(place, listener.protocol == "HTTPS").rules for place, listener in socket.served]
            placed.append((copies, None))
        return _route_conditions(accepted, translated), placed

    def _stream_targets(
        self, backends: Backends, kind: str, key: Key, route: Object
    ) -> tuple[Condition, tuple[Target, ...]]:
        """Whether a TLS, TCP or UDP route's references resolve, and its targets: its first rule's backends."""
        origin = Origin(GROUP, kind, key.namespace)
        resolved = Condition("ResolvedRefs", True, "ResolvedRefs")
        targets = []
        rules = route["spec"].get("rules") or [{}]
        for reference in rules[0].get("backendRefs") or ():
            cluster = backends.resolve(origin, reference, stream="UDP" if kind == "UDPRoute" else "TCP")
            weight = 1 if reference.get("weight") is None else int(reference["weight"])
            if isinstance(cluster, Problem):
                resolved = Condition("ResolvedRefs", False, *cluster)
                cluster = ""
            targets.append(Target(cluster, weight))
        return resolved, tuple(targets)

    # -- policies

    def _policy_statuses(self, world: World, backends: Backends) -> Statuses:
        """``status.ancestors`` of BackendTLSPolicies: one entry a Gateway that reaches the Service."""
        if not world.backend_tls_policies:
            return {}
        statuses: Statuses = {}
        reaching = _gateways_by_service(world, self._sockets)
        for key, policy in world.backend_tls_policies.items():
            generation = policy["metadata"].get("generation", 0)
            authority = backends.policies.authority(policy)
            ancestors: dict[Key, list[Condition]] = {}
            for target in policy["spec"].get("targetRefs") or ():
                service = Key(key.namespace, target["name"])
                port = {"name": target.get("sectionName")}
                in_force = backends.policies.of(service, port) is policy
                for gateway in reaching.get(service, ()):
                    if isinstance(authority, Problem):
                        conditions = [
                            Condition("Accepted", False, "NoValidCACertificate", authority.message),
                            Condition("ResolvedRefs", False, *authority),
                        ]
                    elif not in_force:
                        message = "an older policy targets the same Service"
                        conditions = [Condition("Accepted", False, "Conflicted", message)]
                        conditions.append(Condition("ResolvedRefs", True, "ResolvedRefs"))
                    else:
                        conditions = [Condition("Accepted", True, "Accepted")]
                        conditions.append(Condition("ResolvedRefs", True, "ResolvedRefs"))
                    ancestors[gateway] = conditions
            ours = [
                {
                    "ancestorRef": {"group": GROUP, "kind": "Gateway", "namespace": one.namespace, "name": one.name},
                    "controllerName": CONTROLLER,
                    "conditions": [condition.at(generation) for condition in conditions],
                }
                for one, conditions in sorted(ancestors.items())
            ]
            statuses[resources.BACKEND_TLS_POLICIES, key] = {"ancestors": ours}
        return statuses


SUPPORTED_FEATURES = sorted(
    [
        "BackendTLSPolicy",
        "BackendTLSPolicySANValidation",
        "GRPCRoute",
        "Gateway",
        "GatewayHTTPListenerIsolation",
        "GatewayPort8080",
        "GatewayStaticAddresses",
        "HTTPRoute",
        "HTTPRouteBackendProtocolH2C",
        "HTTPRouteBackendProtocolWebSocket",
        "HTTPRouteBackendRequestHeaderModification",
        "HTTPRouteBackendTimeout",
        "HTTPRoute303RedirectStatusCode",
        "HTTPRoute307RedirectStatusCode",
        "HTTPRoute308RedirectStatusCode",
        "HTTPRouteNamedRouteRule",
        "HTTPRouteCORS",
        "HTTPRouteDestinationPortMatching",
        "HTTPRouteHostRewrite",
        "HTTPRouteMethodMatching",
        "HTTPRouteParentRefPort",
        "HTTPRoutePathRedirect",
        "HTTPRoutePathRewrite",
        "HTTPRoutePortRedirect",
        "HTTPRouteQueryParamMatching",
        "HTTPRouteRequestMirror",
        "HTTPRouteRequestMultipleMirrors",
        "HTTPRouteRequestPercentageMirror",
        "HTTPRouteRequestTimeout",
        "HTTPRouteResponseHeaderModification",
        "HTTPRouteSchemeRedirect",
        "ListenerSet",
        "ReferenceGrant",
        "TCPRoute",
        "TLSRoute",
        "TLSRouteModeTerminate",
        "UDPRoute",
    ]
)


def _listener_statuses(served: list[Socket], generation: int) -> list[Object]:
    found = []
    for socket in served:
        program = Condition("Programmed", socket.programmed, "Programmed" if socket.programmed else "Invalid")
        told = (socket.accepted, socket.conflicted, socket.resolved, program)
        found.append(
            {
                "name": socket.spec["name"],
                "supportedKinds": [{"group": GROUP, "kind": kind} for kind in socket.kinds],
                "attachedRoutes": len(socket.attached),
                "conditions": [one.at(generation) for one in told],
            }
        )
    return found


def _entry(parent: Parent) -> tuple[Resource, Key]:
    """Where the status of a parent stands."""
    return (resources.LISTENER_SETS if parent.kind == "ListenerSet" else resources.GATEWAYS), parent.key


def _untranslatable(owner: Object, error: Exception) -> Object:
    """The status of a Gateway or ListenerSet that nobody thought of."""
    generation, message = owner["metadata"].get("generation", 0), f"cannot be translated: {error!r}"
    kinds = ("Accepted", "Programmed")
    return {
        "conditions": [Condition(kind, False, "Invalid", message).at(generation) for kind in kinds],
        "listeners": [],
    }


def _parent(reference: Mapping[str, Any], namespace: str) -> Parent | None:
    """What a parentRef names; None for kinds that are not ours."""
    group, kind = reference.get("group", GROUP), reference.get("kind", "Gateway")
    if group != GROUP or kind not in ("Gateway", "ListenerSet"):
        return None
    return Parent(kind, Key(reference.get("namespace") or namespace, reference["name"]))


def _find_conflicts(sockets: list[Socket], new: list[Socket] | None = None) -> None:
    """Mark listeners of one Gateway that cannot share their port; only the ``new`` ones, where the others came first."""
    by_port: dict[tuple[int, bool], list[Socket]] = defaultdict(list)
    for socket in sockets:
        by_port[socket.spec["port"], socket.spec["protocol"] == "UDP"].append(socket)
    for sharing in by_port.values():
        layers: dict[str, list[Socket]] = defaultdict(list)
        for one in sharing:
            layers["TLS" if one.spec["protocol"] in ("HTTPS", "TLS") else one.spec["protocol"]].append(one)
        if len(layers) > 1:
            first = next(iter(layers.values()))
            clashing = sharing if new is None else [one for one in sharing if one not in first and one in new]
            _mark(clashing, "ProtocolConflict", f"port {sharing[0].spec['port']} is asked for in several protocols")
            if new is None:
                continue
        seen: dict[tuple[str, str], Socket] = {}
        for one in sharing:
            identity = (one.spec["protocol"], one.listener.hostname)
            if identity in seen:
                name, port = one.listener.hostname or "*", one.spec["port"]
                pair = [one, seen[identity]] if new is None else [one]
                _mark(pair, "HostnameConflict", f"host name {name} is taken by another listener on port {port}")
            seen.setdefault(identity, one)


def _mark(sockets: list[Socket], reason: str, message: str) -> None:
    for one in sockets:
        one.conflicted = Condition("Conflicted", True, reason, message)
        one.accepted = Condition("Accepted", False, reason, message)


def _allows(world: World, socket: Socket, namespace: str) -> bool:
    """Whether a listener lets routes of a namespace attach."""
    allowed = dig(socket.spec, "allowedRoutes", "namespaces", default={})
    return _from(world, allowed, "Same", socket.owner, namespace)


def _from(world: World, allowed: Mapping[str, Any], default: str, owner: Object, namespace: str) -> bool:
    """Whether ``{from, selector}`` of an owner covers a namespace."""
    match allowed.get("from", default):
        case "All":
            return True
        case "Selector":
            return matches(allowed.get("selector"), world.namespace_labels(namespace))
        case "Same":
            return bool(namespace == owner["metadata"]["namespace"])
    return False


def _shared_hosts(listener: str, route: list[str]) -> list[str]:
    """The hosts under which a route is served on a listener."""
    if not route:
        return [listener]
    return [shared for host in route if (shared := intersect(listener, host.lower())) is not None]


def _route_conditions(accepted: Condition, translated: Translated) -> list[Condition]:
    conditions = [accepted]
    if accepted.status and translated.invalid:
        message = "; ".join(problem.message for problem in translated.invalid)
        if translated.rules:
            conditions.append(
                Condition("PartiallyInvalid", True, translated.invalid[0].reason, f"Dropped Rule: {message}")
            )
        else:
            conditions[0] = Condition("Accepted", False, translated.invalid[0].reason, message)
    if translated.unresolved:
        conditions.insert(1, Condition("ResolvedRefs", False, *translated.unresolved[0]))
    else:
        conditions.insert(1, Condition("ResolvedRefs", True, "ResolvedRefs"))
    return conditions


def _gateways_by_service(world: World, sockets: Mapping[Parent, list[Socket]]) -> dict[Key, set[Key]]:
    """Which of our Gateways reach a Service through an attached route."""
    found: dict[Key, set[Key]] = defaultdict(set)
    routes = {"HTTPRoute": world.http_routes, "GRPCRoute": world.grpc_routes}
    for served in sockets.values():
        for socket in served:
            for kind, key in socket.attached:
                route = routes.get(kind, {}).get(key)
                for rule in dig(route, "spec", "rules", default=[]):
                    for reference in rule.get("backendRefs") or ():
                        found[Key(reference.get("namespace") or key.namespace, reference["name"])].add(
                            Key.of(socket.gateway)
                        )
    return found
