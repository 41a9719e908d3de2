"""Which connections a Service takes and where each may go, as kube-proxy decides it. Pure.

A `Frontend` is an address, port and protocol somebody may connect to; its `Backends` are the endpoints one of which is
chosen for each connection. Ready endpoints are chosen; where there is none, those that still serve while they terminate.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from sampan.kube.objects import Object, dig
from sampan.parts.network.records import is_ready

Protocol = Literal["TCP", "UDP"]
Reach = Literal["cluster", "node", "external"]

AFFINITY_SECONDS = 10800
"""How long a client stays with its endpoint (``sessionAffinity: ClientIP``) where the Service does not say."""
SOURCE_RANGES = "service.beta.kubernetes.io/load-balancer-source-ranges"
"""The annotation that was there before ``spec.loadBalancerSourceRanges``."""
_SKIPPED_LABELS = ("service.kubernetes.io/headless", "service.kubernetes.io/service-proxy-name")


class Frontend(NamedTuple):
    """Something to connect to."""

    address: str
    port: int
    protocol: str


class Backends(NamedTuple):
    """Where connections to a frontend go."""

    endpoints: tuple[tuple[str, int], ...]
    affinity: int = 0
    """Seconds a client stays with its endpoint; 0: each connection goes anywhere."""
    drop: bool = False
    """With no endpoint: time out instead of refusing (a traffic policy of ``Local`` leaves none)."""
    reach: Reach = "cluster"
    """``cluster`` and ``external`` are addresses of their own; ``node`` is a port of the node."""
    name: str = ""
    """The Service's port, for messages."""
    sources: tuple[str, ...] = ()
    """Networks that clients must be in (``loadBalancerSourceRanges``); empty: from anywhere."""

    def admitted(self) -> list[ipaddress.IPv4Network]:
        """Those of ``sources`` that IPv4 clients can be in, none within another."""
        given = (ipaddress.ip_network(one) for one in self.sources)
        return list(ipaddress.collapse_addresses(one for one in given if isinstance(one, ipaddress.IPv4Network)))


def endpoints_of(port: Mapping[str, Any], slices: Sequence[Object], node: str = "") -> tuple[tuple[str, int], ...]:
    """Endpoints behind one Service port, those of ``node`` only where given."""
    ready: dict[tuple[str, int], None] = {}
    leaving: dict[tuple[str, int], None] = {}
    for one in slices:
        if one.get("addressType") not in (None, "IPv4"):
            continue
        number = _number(port, one)
        if number is None:
            continue
        for endpoint in one.get("endpoints") or ():
            if node and endpoint.get("nodeName") not in (None, node):
                continue
            conditions = endpoint.get("conditions") or {}
            serving = conditions.get("serving")
            if is_ready(endpoint):
                ready.update(((address, number), None) for address in endpoint["addresses"])
            elif conditions.get("terminating") and serving is not False:
                leaving.update(((address, number), None) for address in endpoint["addresses"])
    return tuple(ready or leaving)


def _number(port: Mapping[str, Any], one: Object) -> int | None:
    for candidate in one.get("ports") or ():
        same = (candidate.get("protocol") or "TCP") == (port.get("protocol") or "TCP")
        if same and (candidate.get("name") or "") == (port.get("name") or ""):
            number: int | None = candidate.get("port")
            return number if number is not None and 0 < number < 65536 else None  # the API takes any number
    return None


def is_proxied(service: Object) -> bool:
    """The Service has an address that connections can be translated from."""
    labels = service["metadata"].get("labels") or {}
    spec = service["spec"]
    return (
        spec.get("type") != "ExternalName"
        and spec.get("clusterIP") not in (None, "", "None")
        and not any(label in labels for label in _SKIPPED_LABELS)
    )


def affinity_of(service: Object) -> int:
    """Seconds a client stays with its endpoint, or 0."""
    spec = service["spec"]
    if spec.get("sessionAffinity") != "ClientIP":
        return 0
    seconds: int = dig(spec, "sessionAffinityConfig", "clientIP", "timeoutSeconds", default=AFFINITY_SECONDS)
    return seconds


def source_ranges(service: Object) -> tuple[str, ...]:
    """Networks a load balancer takes clients from; one that is none is left out, all of them mean everywhere."""
    given = list(service["spec"].get("loadBalancerSourceRanges") or ())
    if not given:
        given = [one for one in dig(service, "metadata", "annotations", SOURCE_RANGES, default="").split(",") if one]
    found = []
    for one in given:
        try:
            found.append(str(ipaddress.ip_network(one.strip(), strict=False)))
        except ValueError:
            continue  # validation refuses it in the field; the annotation is free text
    return () if "0.0.0.0/0" in found else tuple(dict.fromkeys(found))


class Health(NamedTuple):
    """What a load balancer asks the node about a Service of ``externalTrafficPolicy: Local``."""

    port: int
    namespace: str
    name: str
    local: int
    """Ready endpoints on this node."""


def health_of(service: Object, slices: Sequence[Object], node: str = "") -> Health | None:
    """The health check of a Service that has one."""
    spec, metadata = service["spec"], service["metadata"]
    port = spec.get("healthCheckNodePort")
    if not port or spec.get("type") != "LoadBalancer" or spec.get("externalTrafficPolicy") != "Local":
        return None
    here = {
        address
        for one in slices
        for endpoint in one.get("endpoints") or ()
        if is_ready(endpoint) and not (node and endpoint.get("nodeName") not in (None, node))
        for address in endpoint["addresses"]
    }
    return Health(port, metadata["namespace"], metadata["name"], len(here))


@functools.lru_cache(1 << 14)
def is_ipv4(address: str) -> bool:
    """The text is an IPv4 address."""
    try:
        ipaddress.IPv4Address(address)
    except ValueError:
        return False
    return True


def frontends(
    service: Object, slices: Sequence[Object], node: str = "", node_addresses: Sequence[str] = ()
) -> dict[Frontend, Backends]:
    """Everything one Service can be connected to at, and where that leads.

    ``node`` is this node's name (for traffic policies of ``Local``), ``node_addresses`` those under which pods reach its node
    ports.
    """
    if not is_proxied(service):
        return {}
    spec = service["spec"]
    made: dict[Frontend, Backends] = {}
    affinity = affinity_of(service)
    inner_local = spec.get("internalTrafficPolicy") == "Local"
    outer_local = spec.get("externalTrafficPolicy") == "Local"
    cluster = [address for address in spec.get("clusterIPs") or [spec["clusterIP"]] if is_ipv4(address)]
    balancers = [
        one["ip"]
        for one in dig(service, "status", "loadBalancer", "ingress", default=())
        if is_ipv4(one.get("ip") or "") and one.get("ipMode") != "Proxy"
    ]
    external = [address for address in spec.get("externalIPs") or () if is_ipv4(address)]
    sources = source_ranges(service)
    metadata = service["metadata"]
    for port in spec.get("ports") or ():
        protocol = port.get("protocol") or "TCP"
        if protocol not in ("TCP", "UDP"):
            continue
        name = f"{metadata['namespace']}/{metadata['name']}:{port.get('name') or port['port']}"
        everywhere = endpoints_of(port, slices)
        here = endpoints_of(port, slices, node) if inner_local or outer_local else everywhere
        inner = Backends(here if inner_local else everywhere, affinity, inner_local and bool(everywhere), name=name)
        outer = Backends(here if outer_local else everywhere, affinity, outer_local and bool(everywhere), name=name)
        for address in cluster:
            made[Frontend(address, port["port"], protocol)] = inner
        for address in external:
            made[Frontend(address, port["port"], protocol)] = outer._replace(reach="external")
        for address in balancers:
            made[Frontend(address, port["port"], protocol)] = outer._replace(reach="external", sources=sources)
        if port.get("nodePort"):
            for address in node_addresses:
                made[Frontend(address, port["nodePort"], protocol)] = outer._replace(reach="node")
    return made


def reached(one: Object, is_here: Callable[[str], bool], here: Mapping[str, tuple[str, int]] | None = None) -> Object:
    """An EndpointSlice as this machine reaches it.

    ``here`` replaces the endpoints, by protocol. Else a loopback address that is not of a pod of a node that ``is_here`` is
    another machine's, and leads nowhere.
    """
    if here is None:
        kept = [
            endpoint
            for endpoint in one.get("endpoints") or ()
            if is_here(endpoint.get("nodeName") or "")
            or not any(each.startswith("127.") for each in endpoint["addresses"])
        ]
        return {**one, "endpoints": kept}
    ports = [
        {**port, "port": here[port.get("protocol") or "TCP"][1]}
        for port in one.get("ports") or ()
        if (port.get("protocol") or "TCP") in here
    ]
    addresses = list(dict.fromkeys(address for address, _ in here.values()))
    return {**one, "endpoints": [{"addresses": addresses, "conditions": {"ready": True}}], "ports": ports}
