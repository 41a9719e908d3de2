"""The Gateway API: Gateways and their routes as listeners, and every status they get.

A Gateway of ours becomes listeners; a route is attached to those listeners its parentRef names, that allow its kind and
namespace and share a host name with it. What is wrong is told in the objects' conditions, in upstream's reason words, and
everything else is served.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
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


Placed = tuple[list[list[Rule]], tuple[Target, ...] | None]
"""Rules for every copy of a listener, or the targets of a stream."""


class Placement(NamedTuple):
    """A route on one listener of a Gateway."""

    gateway: Key
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
    placements: list[Placement]
    clusters: frozenset[str]


@dataclass(slots=True)
class Result:
    """Listeners and statuses."""

    listeners: list[Listener] = field(default_factory=list)
    statuses: Statuses = field(default_factory=dict)
    warnings: list[tuple[Object, str, str]] = field(default_factory=list)
    """(object, reason, message) to tell in events, for kinds whose status has no place for it."""


class GatewaySource:
    """Translates; remembers the rules of routes that did not change."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._memo: dict[tuple[str, Key, Place | None], tuple[Object, tuple[Any, ...], Translated]] = {}
        self._attachments: dict[tuple[str, Key], Attachment] = {}
        self._version = -1

    def translate(self, world: World, backends: Backends) -> Result:
        """Everything the Gateway API objects of a world ask for."""
        result = Result()
        sockets: dict[Key, list[Socket]] = {}
        classes = {
            key.name for key, one in world.gateway_classes.items() if one["spec"]["controllerName"] == CONTROLLER
        }
        self._places.keep(world.gateways)
        for key, gateway in sorted(world.gateways.items(), key=by_age):
            if gateway["spec"]["gatewayClassName"] in classes:
                sockets[key] = [self._socket(world, gateway, spec) for spec in gateway["spec"].get("listeners") or ()]
                _find_conflicts(sockets[key])
        # a route is attached anew when it changed, or anything but routes and endpoints did
        known = self._attachments if self._version == world.version else {}
        self._attachments, self._version = {}, world.version
        for kind, routes, resource in (
            ("HTTPRoute", world.http_routes, resources.HTTP_ROUTES),
            ("GRPCRoute", world.grpc_routes, resources.GRPC_ROUTES),
            ("TLSRoute", world.tls_routes, resources.TLS_ROUTES),
            ("TCPRoute", world.tcp_routes, resources.TCP_ROUTES),
            ("UDPRoute", world.udp_routes, resources.UDP_ROUTES),
        ):
            for key, route in sorted(routes.items(), key=by_age):
                attachment = known.get((kind, key))
                if attachment is None or attachment.route is not route:
                    attachment = self._attach(world, backends, sockets, kind, key, route)
                self._attachments[kind, key] = attachment
                self._apply(attachment, backends, sockets, kind, key)
                if attachment.status is not None:
                    result.statuses[resource, key] = attachment.status
        for key, served in sockets.items():
            result.statuses[resources.GATEWAYS, key] = self._gateway_status(world.gateways[key], served)
            result.listeners += [listener for socket in served if socket.programmed for _, listener in socket.served]
        for name in classes:
            key = Key("", name)
            generation = world.gateway_classes[key]["metadata"].get("generation", 0)
            accepted = Condition("Accepted", True, "Accepted", "GatewayClass is served by Sampan")
            result.statuses[resources.GATEWAY_CLASSES, key] = {
                "conditions": [accepted.at(generation)],
                "supportedFeatures": [{"name": one} for one in SUPPORTED_FEATURES],
            }
        self._policy_statuses(world, backends, sockets, result)
        return result

    # -- gateways

    def _socket(self, world: World, gateway: Object, spec: Mapping[str, Any]) -> Socket:
        key, protocol = Key.of(gateway), spec["protocol"]
        known = protocol in _KINDS
        place = self._places.own(self._places.address(gateway), spec["port"])
        listener = Listener(
            owner=f"gateway/{key}",
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
            origin = Origin(GROUP, "Gateway", key.namespace)
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
        return Socket(gateway, spec, listener, served, kinds, accepted, conflicted, resolved)

    def _gateway_status(self, gateway: Object, served: list[Socket]) -> Object:
        generation = gateway["metadata"].get("generation", 0)
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
        listeners = []
        for socket in served:
            program = Condition("Programmed", socket.programmed, "Programmed" if socket.programmed else "Invalid")
            listeners.append(
                {
                    "name": socket.spec["name"],
                    "supportedKinds": [{"group": GROUP, "kind": kind} for kind in socket.kinds],
                    "attachedRoutes": len(socket.attached),
                    "conditions": [
                        one.at(generation) for one in (socket.accepted, socket.conflicted, socket.resolved, program)
                    ],
                }
            )
        return {
            "addresses": [{"type": "IPAddress", "value": self._places.address(gateway)}],
            "conditions": [accepted.at(generation), programmed.at(generation)],
            "listeners": listeners,
        }

    # -- routes

    def _attach(
        self,
        world: World,
        backends: Backends,
        sockets: Mapping[Key, list[Socket]],
        kind: str,
        key: Key,
        route: Object,
    ) -> Attachment:
        """Attach a route to every parent of ours."""
        parents: list[Object] = []
        placements: list[Placement] = []
        backends.used = set()
        generation = route["metadata"].get("generation", 0)
        for reference in route["spec"].get("parentRefs") or ():
            if (reference.get("group", GROUP), reference.get("kind", "Gateway")) != (GROUP, "Gateway"):
                continue
            parent = Key(reference.get("namespace") or key.namespace, reference["name"])
            served = sockets.get(parent)
            if served is None:
                continue
            accepted, usable = self._find_sockets(world, served, reference, kind, key, route)
            if kind in ("HTTPRoute", "GRPCRoute"):
                conditions, placed = self._place_rules(backends, kind, key, route, accepted, usable)
            else:
                resolved, targets = self._stream_targets(backends, kind, key, route)
                conditions = [accepted, resolved]
                placed = [([], targets) for _ in usable]
            if conditions[0].status:
                for (socket, hosts), (rules, to) in zip(usable, placed, strict=True):
                    placements.append(Placement(parent, served.index(socket), hosts, rules, to))
            entry = {"parentRef": dict(reference), "controllerName": CONTROLLER}
            parents.append({**entry, "conditions": [one.at(generation) for one in conditions]})
        before = dig(route, "status", "parents", default=[])
        kept = [one for one in before if one.get("controllerName") != CONTROLLER]
        status = {"parents": kept + parents} if parents or len(kept) != len(before) else None
        return Attachment(route, status, placements, frozenset(backends.used))

    def _apply(
        self, attachment: Attachment, backends: Backends, sockets: Mapping[Key, list[Socket]], kind: str, key: Key
    ) -> None:
        """Put a route on its listeners."""
        for name in attachment.clusters:
            backends.again(name)
        for placement in attachment.placements:
            socket = sockets[placement.gateway][placement.position]
            socket.attached.add((kind, key))
            for position, (_, listener) in enumerate(socket.served):
                for host in placement.hosts if kind != "TCPRoute" and kind != "UDPRoute" else [""]:
                    if placement.targets is None:
                        listener.host(host).rules.extend(placement.rules[position])
                    else:
                        # of several routes the oldest keeps the port or name
                        listener.targets.setdefault(host, placement.targets)

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
        kind: str,
        key: Key,
        route: Object,
        accepted: Condition,
        usable: list[tuple[Socket, list[str]]],
    ) -> tuple[list[Condition], list[Placed]]:
        """An HTTP or gRPC route's conditions, and its rules for every copy of every listener."""
        translated = self._rules(backends, kind, key, route, None)
        placed: list[Placed] = []
        for socket, _ in usable:
            rules = [translated.rules] * len(socket.served)
            if translated.redirects:
                rules = [
                    self._rules(backends, kind, key, route, place, listener.protocol == "HTTPS").rules
                    for place, listener in socket.served
                ]
            placed.append((rules, None))
        return _route_conditions(accepted, translated), placed

    def _rules(
        self, backends: Backends, kind: str, key: Key, route: Object, place: Place | None, secure: bool = False
    ) -> Translated:
        """The rules as served at a place (which only matters to redirects); those that did not change are the same objects."""
        fresh = grpc_rules(route, backends) if kind == "GRPCRoute" else http_rules(route, backends, place, secure)
        shape = tuple(rule.action for rule in fresh.rules)
        known = self._memo.get((kind, key, place))
        if known is not None and known[0] is route and known[1] == shape:
            fresh.rules = known[2].rules  # their wire form is already there
        else:
            self._memo[kind, key, place] = (route, shape, fresh)
        return fresh

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

    def _policy_statuses(
        self, world: World, backends: Backends, sockets: Mapping[Key, list[Socket]], result: Result
    ) -> None:
        """``status.ancestors`` of BackendTLSPolicies: one entry a Gateway that reaches the Service."""
        if not world.backend_tls_policies:
            return
        reaching = _gateways_by_service(world, sockets)
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
            others = [
                one for one in dig(policy, "status", "ancestors", default=[]) if one.get("controllerName") != CONTROLLER
            ]
            ours = [
                {
                    "ancestorRef": {"group": GROUP, "kind": "Gateway", "namespace": one.namespace, "name": one.name},
                    "controllerName": CONTROLLER,
                    "conditions": [condition.at(generation) for condition in conditions],
                }
                for one, conditions in sorted(ancestors.items())
            ]
            result.statuses[resources.BACKEND_TLS_POLICIES, key] = {"ancestors": others + ours}


SUPPORTED_FEATURES = sorted(
    [
        "BackendTLSPolicy",
        "GRPCRoute",
        "Gateway",
        "GatewayPort8080",
        "HTTPRoute",
        "HTTPRouteBackendProtocolH2C",
        "HTTPRouteBackendProtocolWebSocket",
        "HTTPRouteBackendRequestHeaderModification",
        "HTTPRouteBackendTimeout",
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
        "ReferenceGrant",
        "TLSRoute",
        "UDPRoute",
    ]
)


def _find_conflicts(sockets: list[Socket]) -> None:
    """Mark listeners of one Gateway that cannot share their port."""
    by_port: dict[tuple[int, bool], list[Socket]] = defaultdict(list)
    for socket in sockets:
        by_port[socket.spec["port"], socket.spec["protocol"] == "UDP"].append(socket)
    for sharing in by_port.values():
        layers = {"TLS" if one.spec["protocol"] in ("HTTPS", "TLS") else one.spec["protocol"] for one in sharing}
        if len(layers) > 1:
            for one in sharing:
                message = f"port {one.spec['port']} is asked for in several protocols"
                one.conflicted = Condition("Conflicted", True, "ProtocolConflict", message)
                one.accepted = Condition("Accepted", False, "ProtocolConflict", message)
            continue
        seen: dict[tuple[str, str], Socket] = {}
        for one in sharing:
            identity = (one.spec["protocol"], one.listener.hostname)
            if identity in seen:
                message = (
                    f"host name {one.listener.hostname or '*'} is taken by another listener on port {one.spec['port']}"
                )
                for clashing in (one, seen[identity]):
                    clashing.conflicted = Condition("Conflicted", True, "HostnameConflict", message)
                    clashing.accepted = Condition("Accepted", False, "HostnameConflict", message)
            seen[identity] = one


def _allows(world: World, socket: Socket, namespace: str) -> bool:
    allowed = dig(socket.spec, "allowedRoutes", "namespaces", default={})
    match allowed.get("from", "Same"):
        case "All":
            return True
        case "Selector":
            return matches(allowed.get("selector"), world.namespace_labels(namespace))
        case "Same":
            return bool(namespace == socket.gateway["metadata"]["namespace"])
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


def _gateways_by_service(world: World, sockets: Mapping[Key, list[Socket]]) -> dict[Key, set[Key]]:
    """Which of our Gateways reach a Service through an attached route."""
    found: dict[Key, set[Key]] = defaultdict(set)
    routes = {"HTTPRoute": world.http_routes, "GRPCRoute": world.grpc_routes}
    for gateway, served in sockets.items():
        for socket in served:
            for kind, key in socket.attached:
                route = routes.get(kind, {}).get(key)
                for rule in dig(route, "spec", "rules", default=[]):
                    for reference in rule.get("backendRefs") or ():
                        found[Key(reference.get("namespace") or key.namespace, reference["name"])].add(gateway)
    return found
