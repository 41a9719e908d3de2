"""Listeners as Envoy listeners, and the route configurations and secrets they refer to.

All the model's listeners on one address and port share one Envoy listener. On a plain HTTP port they share one route
configuration; on a TLS port each host pattern has a filter chain, certificates and routes of its own, and a request whose
Host belongs to another pattern than its server name is answered 421.
"""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sampan.parts.traffic.envoy import access, forwarded, gate
from sampan.parts.traffic.envoy.hosts import Configuration, Plan, groups, plans
from sampan.parts.traffic.envoy.routes import NO_SUCH_CLUSTER, SESSION_FILTER
from sampan.parts.traffic.model import EVERYTHING, Host, Listener, Match, Respond, Rule, Target
from sampan.parts.traffic.xds import schema
from sampan.parts.traffic.xds.snapshot import Resource

_FROM_CONTROL_PLANE = {"ads": {}, "resourceApiVersion": "V3"}
_HCM = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"


_TIMED_OUT = {
    "filter": {"responseFlagFilter": {"flags": ["UT", "DT"]}},
    "statusCode": 504,
    "body": {"inlineString": "request timeout"},
}
"""What a request over its time is answered on ports that serve Knative Services, whose clients know the words."""
MISDIRECTED = Rule(Match(EVERYTHING), Respond(421), name="misdirected")


class Built(NamedTuple):
    """Resources of all listeners."""

    listeners: list[Resource]
    routes: list[Resource]
    secrets: list[Resource]


@dataclass(slots=True)
class _Port:
    """What is known of an address and port while the listeners that share it stay the same."""

    shapes: tuple[int, ...]
    configurations: list[Configuration]
    listener: Callable[[list[str]], _Made]
    """Makes the Envoy listener for route configurations of these names."""
    names: list[str] | None = None
    made: _Made | None = None


class _Made(NamedTuple):
    listener: Resource | None
    secrets: dict[str, Resource]


class Ports:
    """Makes listeners, route configurations and secrets, and keeps what did not change."""

    def __init__(self, access_log: Path | None) -> None:
        """``access_log``: the file each request is a line of."""
        self._access_log = access_log
        self._ports: dict[tuple[str, int, bool], _Port] = {}
        self._sent: dict[str, Configuration] = {}
        self.epoch = 0
        """To be counted up when the standing of rules changed."""

    def build(self, listeners: Iterable[Listener]) -> Built:
        """Everything for the model's listeners."""
        by_socket: dict[tuple[str, int, bool], list[Listener]] = defaultdict(list)
        for listener in listeners:
            by_socket[listener.address, listener.port, listener.protocol == "UDP"].append(listener)
        known, self._ports, self._sent = self._ports, {}, {}
        made: list[Resource] = []
        routes: list[Resource] = []
        secrets: dict[str, Resource] = {}
        names: dict[tuple[bytes, ...], str] = {}
        for where, sharing in sorted(by_socket.items()):
            port = known.get(where)
            shapes = tuple(listener.shape for listener in sharing)
            if port is None or port.shapes != shapes:
                port = self._plan(*where, sharing, shapes)
            self._ports[where] = port
            used = []
            for configuration in port.configurations:
                parts = configuration.parts(self.epoch)
                if parts not in names:  # a lone Gateway's copy on the shared address has its configuration too
                    names[parts] = configuration.name
                    routes.append(configuration.resource(parts))
                    self._sent[configuration.name] = configuration
                used.append(names[parts])
            if port.made is None or port.names != used:
                port.names, port.made = used, port.listener(used)
            if port.made.listener is not None:
                made.append(port.made.listener)
            secrets |= port.made.secrets
        return Built(made, routes, list(secrets.values()))

    def trust(self, refused: Collection[str] = ()) -> None:
        """Envoy took every route configuration but these."""
        for name, configuration in self._sent.items():
            if name not in refused:
                configuration.trust()

    def suspects(self, name: str) -> list[Rule]:
        """Which rules may be why Envoy refused a route configuration."""
        configuration = self._sent.get(name)
        return configuration.suspects() if configuration is not None else []

    def refused(self) -> dict[str, dict[str, None]]:
        """Why rules are left out, by the name of the object they come from."""
        found: dict[str, dict[str, None]] = defaultdict(dict)
        for configuration in self._sent.values():
            for plan in configuration.plans:
                for rule in plan.refused:
                    found[rule.name][rule.wire.reason] = None
        return found

    def _plan(self, address: str, port: int, udp: bool, sharing: list[Listener], shapes: tuple[int, ...]) -> _Port:
        # several Gateways may meet on the shared address: the oldest decides what is spoken on a port
        layer = _layer(sharing[0])
        sharing = [one for one in sharing if _layer(one) == layer]
        name = f"{address}:{port}"
        if udp:
            return _Port(shapes, [], lambda _: _udp(address, port, sharing))
        if layer == "TCP":
            return _Port(shapes, [], lambda _: _tcp(address, port, sharing))
        if layer == "HTTP":
            hosts = [plan for group in groups(sharing) for plan in plans(group, sharing)]
            return _Port(
                shapes,
                [Configuration(name, hosts)],
                lambda names: _http(address, port, sharing, names[0], self._access_log),
            )
        secure = groups([one for one in sharing if one.protocol == "HTTPS" and one.certificates])
        return _Port(
            shapes,
            [_https_configuration(name, group, [one for other in secure for one in other]) for group in secure],
            lambda names: _tls(address, port, sharing, secure, names, self._access_log),
        )


def _layer(listener: Listener) -> str:
    return "TLS" if listener.protocol == "HTTPS" else listener.protocol


# -- plain HTTP


def _http(address: str, port: int, sharing: Sequence[Listener], routes_name: str, access_log: Path | None) -> _Made:
    name = f"{address}:{port}"
    chain = {"filters": [_connection_manager(name, routes_name, access_log, sharing)]}
    return _Made(_listener(name, address, port, [chain]), {})


# -- TLS


def _tls(
    address: str,
    port: int,
    sharing: Sequence[Listener],
    secure: list[list[Listener]],
    names: list[str],
    access_log: Path | None,
) -> _Made:
    """``secure``: the HTTPS listeners by host pattern, ``names`` their route configurations."""
    name = f"{address}:{port}"
    secrets: dict[str, Resource] = {}
    chains = [
        {
            **_server_names(group[0].hostname),
            "filters": [_connection_manager(name, routes_name, access_log, group)],
            "transportSocket": _downstream_tls(secrets, group, ["h2", "http/1.1"]),
        }
        for group, routes_name in zip(secure, names, strict=True)
    ]
    for group in groups([one for one in sharing if one.protocol == "TLS"]):
        for listener in group:
            chains += _tls_chains(secrets, name, listener)
    inspector = {
        "name": "envoy.filters.listener.tls_inspector",
        "typedConfig": schema.any_of("envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"),
    }
    return _Made(_listener(name, address, port, _distinct(chains), filters=[inspector]), secrets)


def _distinct(chains: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Envoy refuses two chains with the same match: the first keeps it."""
    seen: set[tuple[str, ...]] = set()
    kept = []
    for chain in chains:
        names = tuple(chain.get("filterChainMatch", {}).get("serverNames", ()))
        if names not in seen:
            seen.add(names)
            kept.append(chain)
    return kept


def _https_configuration(name: str, group: Sequence[Listener], sharing: Sequence[Listener]) -> Configuration:
    """One host pattern's routes. A Host that belongs to another pattern than the server name did is misdirected."""
    pattern = group[0].hostname or "*"
    hosts = plans(group, sharing)
    own = {plan.domain for plan in hosts}
    foreign = {one.hostname or "*" for one in sharing} | {"*"}
    hosts += [Plan(domain, [Host(domain, [MISDIRECTED])]) for domain in sorted(foreign - own - {pattern})]
    return Configuration(f"{name}/{pattern}", hosts)


def _tls_chains(secrets: dict[str, Resource], name: str, listener: Listener) -> list[dict[str, Any]]:
    chains = []
    for server_name, targets in listener.targets.items():
        chain: dict[str, Any] = {
            **_server_names(server_name),
            "filters": [_tcp_proxy(f"{name}/{server_name or '*'}", targets)],
        }
        if not listener.passthrough:
            if not listener.certificates:
                continue
            chain["transportSocket"] = _downstream_tls(secrets, [listener], [])
        chains.append(chain)
    return chains


def _server_names(hostname: str) -> dict[str, Any]:
    match: dict[str, Any] = {"transportProtocol": "tls"}
    if hostname not in ("", "*"):
        match["serverNames"] = [hostname]
    return {"filterChainMatch": match}


def _downstream_tls(secrets: dict[str, Resource], group: Sequence[Listener], alpn: list[str]) -> dict[str, Any]:
    context: dict[str, Any] = {"tlsCertificateSdsSecretConfigs": []}
    if alpn:
        context["alpnProtocols"] = alpn
    for certificate in dict.fromkeys(one for listener in group for one in listener.certificates):
        secret = f"certificate/{certificate.name}"
        content = {
            "name": secret,
            "tlsCertificate": {
                "certificateChain": {"inlineBytes": base64.b64encode(certificate.chain).decode()},
                "privateKey": {"inlineBytes": base64.b64encode(certificate.key).decode()},
            },
        }
        secrets[secret] = Resource.of(secret, schema.resource(schema.SECRET, content))
        context["tlsCertificateSdsSecretConfigs"].append({"name": secret, "sdsConfig": _FROM_CONTROL_PLANE})
    typed: dict[str, Any] = {"commonTlsContext": context}
    authorities = [listener.client_ca for listener in group if listener.client_ca is not None]
    if authorities:
        trusted = base64.b64encode(b"\n".join(dict.fromkeys(authorities))).decode()
        context["validationContext"] = {"trustedCa": {"inlineBytes": trusted}}
        if any(listener.client_ca is not None and listener.client_required for listener in group):
            typed["requireClientCertificate"] = True
        else:
            context["validationContext"]["trustChainVerification"] = "ACCEPT_UNTRUSTED"
    name = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
    return {"name": "envoy.transport_sockets.tls", "typedConfig": schema.any_of(name, **typed)}


# -- TCP and UDP


def _tcp(address: str, port: int, sharing: Sequence[Listener]) -> _Made:
    targets = _stream_targets(sharing)
    name = f"{address}:{port}"
    return _Made(_listener(name, address, port, [{"filters": [_tcp_proxy(name, targets)]}]) if targets else None, {})


def _stream_targets(sharing: Sequence[Listener]) -> Sequence[Target]:
    """Where a TCP or UDP port goes: the first listener that has a route decides."""
    return next((listener.targets[""] for listener in sharing if listener.targets.get("")), ())


def _tcp_proxy(name: str, targets: Sequence[Target]) -> dict[str, Any]:
    live = [target for target in targets if target.weight]
    destination: dict[str, Any]
    if len(live) == 1:
        destination = {"cluster": live[0].cluster or NO_SUCH_CLUSTER}
    elif live:
        weighted = [{"name": target.cluster or NO_SUCH_CLUSTER, "weight": target.weight} for target in live]
        destination = {"weightedClusters": {"clusters": weighted}}
    else:
        destination = {"cluster": NO_SUCH_CLUSTER}
    typed = schema.any_of(
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", statPrefix=name, idleTimeout="0s", **destination
    )
    return {"name": "envoy.filters.network.tcp_proxy", "typedConfig": typed}


def _udp(address: str, port: int, sharing: Sequence[Listener]) -> _Made:
    live = [target for target in _stream_targets(sharing) if target.weight]
    if not live:
        return _Made(None, {})
    name = f"udp/{address}:{port}"
    route = schema.any_of("envoy.extensions.filters.udp.udp_proxy.v3.Route", cluster=live[0].cluster or NO_SUCH_CLUSTER)
    matcher = {"onNoMatch": {"action": {"name": "route", "typedConfig": route}}}
    typed = schema.any_of("envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig", statPrefix=name, matcher=matcher)
    content = {
        "name": name,
        "address": {"socketAddress": {"protocol": "UDP", "address": address, "portValue": port}},
        "listenerFilters": [{"name": "envoy.filters.udp_listener.udp_proxy", "typedConfig": typed}],
    }
    return _Made(Resource.of(name, schema.resource(schema.LISTENER, content)), {})


# -- shared


def _listener(
    name: str, address: str, port: int, chains: list[dict[str, Any]], filters: Sequence[dict[str, Any]] = ()
) -> Resource | None:
    if not chains:
        return None
    content: dict[str, Any] = {
        "name": name,
        "address": {"socketAddress": {"address": address, "portValue": port}},
        "filterChains": chains,
        "perConnectionBufferLimitBytes": 1 << 20,
        # with the kernel's sharing of ports, two platforms on one address would take half of each other's connections
        "enableReusePort": False,
        "connectionBalanceConfig": {"exactBalance": {}},
    }
    if filters:
        content["listenerFilters"] = list(filters)
    return Resource.of(name, schema.resource(schema.LISTENER, content))


def _connection_manager(
    name: str, routes_name: str, access_log: Path | None, sharing: Sequence[Listener]
) -> dict[str, Any]:
    """One HTTP connection manager. Envoy's default timeouts would end idle streams, so they are off here; rules set theirs."""
    cors = {
        "name": "envoy.filters.http.cors",
        "typedConfig": schema.any_of("envoy.extensions.filters.http.cors.v3.Cors"),
        "disabled": True,  # a rule with such a policy turns it on
    }
    sessions = {
        "name": SESSION_FILTER,
        "typedConfig": schema.any_of("envoy.extensions.filters.http.stateful_session.v3.StatefulSession"),
        "disabled": True,  # likewise
    }
    router = {
        "name": "envoy.filters.http.router",
        "typedConfig": schema.any_of("envoy.extensions.filters.http.router.v3.Router", suppressEnvoyHeaders=True),
    }
    # even a log that its filter keeps silent costs every request something
    gated = any(listener.owner == "knative" for listener in sharing)
    typed = schema.any_of(
        _HCM,
        statPrefix=name,
        rds={"routeConfigName": routes_name, "configSource": _FROM_CONTROL_PLANE},
        httpFilters=[cors, sessions, *([forwarded.http_filter()] if gated else []), gate.http_filter(), router],
        accessLog=[*([access.file_log(access_log)] if access_log else []), *([gate.slot_log()] if gated else [])],
        useRemoteAddress=True,
        normalizePath=True,
        streamIdleTimeout="0s",
        requestTimeout="0s",
        upgradeConfigs=[{"upgradeType": "websocket"}],
        httpProtocolOptions={"acceptHttp10": True},
        http2ProtocolOptions={"allowConnect": True, "maxConcurrentStreams": 1000},
        serverHeaderTransformation="PASS_THROUGH",
        commonHttpProtocolOptions={"idleTimeout": "3600s"},
        stripTrailingHostDot=True,
        **({"localReplyConfig": {"mappers": [_TIMED_OUT]}} if gated else {}),
    )
    return {"name": "envoy.filters.network.http_connection_manager", "typedConfig": typed}
