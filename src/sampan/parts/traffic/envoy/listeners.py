"""Listeners as Envoy listeners, and the route configurations and secrets they refer to.

All the model's listeners on one address and port share one Envoy listener. On a plain HTTP port they share one route
configuration; on a TLS port each host pattern has a filter chain, certificates and routes of its own, and a request whose
Host belongs to another pattern than its server name is answered 421.
"""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from sampan.parts.traffic.envoy import gate
from sampan.parts.traffic.envoy.bootstrap import XDS_CLUSTER
from sampan.parts.traffic.envoy.routes import NO_SUCH_CLUSTER, in_order, route_configuration
from sampan.parts.traffic.model import (
    EVERYTHING,
    Host,
    Listener,
    Match,
    Respond,
    Rule,
    Target,
    matches_host,
    specificity,
)
from sampan.parts.traffic.xds import schema
from sampan.parts.traffic.xds.snapshot import Resource

ACCESS_LOG = "sampan-access"
_FROM_CONTROL_PLANE = {"ads": {}, "resourceApiVersion": "V3"}
_HCM = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"


MISDIRECTED = Rule(Match(EVERYTHING), Respond(421), name="misdirected")


class Built:
    """Resources of all listeners."""

    def __init__(self, access_log: bool) -> None:
        self.access_log = access_log
        self.listeners: list[Resource] = []
        self.routes: list[Resource] = []
        self.secrets: dict[str, Resource] = {}
        self.known: dict[object, str] = {}
        """Route configurations by their content."""


def build(listeners: Iterable[Listener], *, access_log: bool = True) -> Built:
    """Envoy listeners, route configurations and secrets for the model's listeners."""
    built = Built(access_log)
    by_socket: dict[tuple[str, int, bool], list[Listener]] = defaultdict(list)
    for listener in listeners:
        by_socket[listener.address, listener.port, listener.protocol == "UDP"].append(listener)
    for (address, port, udp), sharing in sorted(by_socket.items()):
        # several Gateways may meet on the shared address: the oldest decides what is spoken on a port
        layer = _layer(sharing[0])
        sharing = [one for one in sharing if _layer(one) == layer]
        if udp:
            _add_udp(built, address, port, sharing)
        elif layer == "TCP":
            _add_tcp(built, address, port, sharing)
        elif layer == "HTTP":
            _add_http(built, address, port, sharing)
        else:
            _add_tls(built, address, port, sharing)
    return built


def _layer(listener: Listener) -> str:
    return "TLS" if listener.protocol == "HTTPS" else listener.protocol


# -- plain HTTP


def _add_http(built: Built, address: str, port: int, sharing: Sequence[Listener]) -> None:
    name = f"{address}:{port}"
    hosts = [host for group in _groups(sharing) for host in _merged(_isolated(group, sharing))]
    routes_name = _add_routes(built, name, hosts)
    chain = {"filters": [_connection_manager(name, routes_name, built, sharing)]}
    _add_listener(built, name, address, port, [chain])


def _add_routes(built: Built, name: str, hosts: list[Host]) -> str:
    """A route configuration; the name of an equal one where there is one (a lone Gateway's copy on the shared address)."""
    content = tuple((host.domain, tuple(map(id, host.rules))) for host in hosts)
    known = built.known.get(content)
    if known is not None:
        return known
    built.known[content] = name
    built.routes.append(Resource.of(name, route_configuration(name, hosts)))
    return name


def _groups(sharing: Sequence[Listener]) -> list[list[Listener]]:
    """Listeners by host pattern, the most specific first; those with one pattern answer together."""
    groups: dict[str, list[Listener]] = defaultdict(list)
    for listener in sharing:
        groups[listener.hostname].append(listener)
    return [groups[pattern] for pattern in sorted(groups, key=lambda one: (specificity(one), one), reverse=True)]


def _isolated(group: Sequence[Listener], sharing: Sequence[Listener]) -> list[Host]:
    """The group's hosts, without those a more specific listener of the port answers for, and its bare pattern."""
    pattern = group[0].hostname
    rivals = [one.hostname for one in sharing if specificity(one.hostname) > specificity(pattern)]
    kept = [
        host
        for listener in group
        for host in listener.hosts.values()
        if not any(matches_host(rival, host.domain) for rival in rivals)
    ]
    if all(host.domain != (pattern or "*") for host in kept):
        kept.append(Host(pattern or "*"))
    return kept


def _merged(hosts: Iterable[Host]) -> list[Host]:
    """One entry a domain, rules in order; a narrower domain falls through to the rules of the wider ones over it."""
    rules: dict[str, list[Rule]] = defaultdict(list)
    for host in hosts:
        rules[host.domain] += host.rules
    wide = sorted((domain for domain in rules if domain.startswith("*")), key=specificity, reverse=True)
    ordered = {domain: in_order(own) for domain, own in rules.items()}
    merged = []
    for domain in sorted(rules, key=lambda one: (specificity(one), one), reverse=True):
        through = [rule for other in wide if other != domain and matches_host(other, domain) for rule in ordered[other]]
        merged.append(Host(domain, ordered[domain] + through))
    return merged


# -- TLS


def _add_tls(built: Built, address: str, port: int, sharing: Sequence[Listener]) -> None:
    name = f"{address}:{port}"
    chains = []
    secure = [one for one in sharing if one.protocol == "HTTPS" and one.certificates]
    for group in _groups(secure):
        chains.append(_https_chain(built, name, group, secure))
    for group in _groups([one for one in sharing if one.protocol == "TLS"]):
        for listener in group:
            chains += _tls_chains(built, name, listener)
    inspector = {
        "name": "envoy.filters.listener.tls_inspector",
        "typedConfig": schema.any_of("envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"),
    }
    _add_listener(built, name, address, port, _distinct(chains), filters=[inspector])


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


def _https_chain(built: Built, name: str, group: Sequence[Listener], sharing: Sequence[Listener]) -> dict[str, Any]:
    """One host pattern's chain. A Host that belongs to another pattern than the server name did is misdirected."""
    pattern = group[0].hostname or "*"
    hosts = _merged(_isolated(group, sharing))
    own = {host.domain for host in hosts}
    foreign = {one.hostname or "*" for one in sharing} | {"*"}
    hosts += [Host(domain, [MISDIRECTED]) for domain in sorted(foreign - own - {pattern})]
    routes_name = _add_routes(built, f"{name}/{pattern}", hosts)
    return {
        **_server_names(pattern),
        "filters": [_connection_manager(name, routes_name, built, group)],
        "transportSocket": _downstream_tls(built, group, ["h2", "http/1.1"]),
    }


def _tls_chains(built: Built, name: str, listener: Listener) -> list[dict[str, Any]]:
    chains = []
    for server_name, targets in listener.targets.items():
        chain: dict[str, Any] = {
            **_server_names(server_name),
            "filters": [_tcp_proxy(f"{name}/{server_name or '*'}", targets)],
        }
        if not listener.passthrough:
            if not listener.certificates:
                continue
            chain["transportSocket"] = _downstream_tls(built, [listener], [])
        chains.append(chain)
    return chains


def _server_names(hostname: str) -> dict[str, Any]:
    match: dict[str, Any] = {"transportProtocol": "tls"}
    if hostname not in ("", "*"):
        match["serverNames"] = [hostname]
    return {"filterChainMatch": match}


def _downstream_tls(built: Built, group: Sequence[Listener], alpn: list[str]) -> dict[str, Any]:
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
        built.secrets[secret] = Resource.of(secret, schema.resource(schema.SECRET, content))
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


def _add_tcp(built: Built, address: str, port: int, sharing: Sequence[Listener]) -> None:
    targets = _stream_targets(sharing)
    if targets:
        name = f"{address}:{port}"
        _add_listener(built, name, address, port, [{"filters": [_tcp_proxy(name, targets)]}])


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


def _add_udp(built: Built, address: str, port: int, sharing: Sequence[Listener]) -> None:
    live = [target for target in _stream_targets(sharing) if target.weight]
    if not live:
        return
    name = f"udp/{address}:{port}"
    route = schema.any_of("envoy.extensions.filters.udp.udp_proxy.v3.Route", cluster=live[0].cluster or NO_SUCH_CLUSTER)
    matcher = {"onNoMatch": {"action": {"name": "route", "typedConfig": route}}}
    typed = schema.any_of("envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig", statPrefix=name, matcher=matcher)
    content = {
        "name": name,
        "address": {"socketAddress": {"protocol": "UDP", "address": address, "portValue": port}},
        "listenerFilters": [{"name": "envoy.filters.udp_listener.udp_proxy", "typedConfig": typed}],
    }
    built.listeners.append(Resource.of(name, schema.resource(schema.LISTENER, content)))


# -- shared


def _add_listener(
    built: Built,
    name: str,
    address: str,
    port: int,
    chains: list[dict[str, Any]],
    filters: Sequence[dict[str, Any]] = (),
) -> None:
    if not chains:
        return
    content: dict[str, Any] = {
        "name": name,
        "address": {"socketAddress": {"address": address, "portValue": port}},
        "filterChains": chains,
        "perConnectionBufferLimitBytes": 1 << 20,
    }
    if filters:
        content["listenerFilters"] = list(filters)
    built.listeners.append(Resource.of(name, schema.resource(schema.LISTENER, content)))


def _connection_manager(name: str, routes_name: str, built: Built, sharing: Sequence[Listener]) -> dict[str, Any]:
    """One HTTP connection manager. Envoy's default timeouts would end idle streams, so they are off here; rules set theirs."""
    cors = {
        "name": "envoy.filters.http.cors",
        "typedConfig": schema.any_of("envoy.extensions.filters.http.cors.v3.Cors"),
    }
    router = {
        "name": "envoy.filters.http.router",
        "typedConfig": schema.any_of("envoy.extensions.filters.http.router.v3.Router", suppressEnvoyHeaders=True),
    }
    access_log = {
        "name": "envoy.access_loggers.http_grpc",
        "typedConfig": schema.any_of(
            "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
            commonConfig={
                "logName": ACCESS_LOG,
                "transportApiVersion": "V3",
                "grpcService": {"envoyGrpc": {"clusterName": XDS_CLUSTER}},
            },
            additionalRequestHeadersToLog=["traceparent"],
        ),
    }
    # even a log that its filter keeps silent costs every request something
    gated = any(listener.owner == "knative" for listener in sharing)
    typed = schema.any_of(
        _HCM,
        statPrefix=name,
        rds={"routeConfigName": routes_name, "configSource": _FROM_CONTROL_PLANE},
        httpFilters=[cors, gate.http_filter(), router],
        accessLog=[*([access_log] if built.access_log else []), *([gate.slot_log()] if gated else [])],
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
    )
    return {"name": "envoy.filters.network.http_connection_manager", "typedConfig": typed}
