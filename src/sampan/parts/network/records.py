"""What DNS says about one Service, worked out from the Service and its EndpointSlices. Pure.

A Service with a cluster address answers with that address; a headless one with its ready endpoints, each of which also has a
name: its hostname, or its address with dashes. An ExternalName is an alias for a name anywhere.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sampan.kube.objects import Object, dig


class Port(NamedTuple):
    """What an SRV record needs of one port."""

    name: str
    protocol: str
    """In lower case."""
    number: int
    host: str
    """The endpoint it is on, by its name below the Service; "" is the Service itself."""


class ServiceRecords(NamedTuple):
    """A Service as the name server sees it."""

    alias: str
    """What an ExternalName points at, else ""."""
    addresses: tuple[bytes, ...]
    """Its addresses, packed: 4 bytes IPv4, 16 bytes IPv6."""
    endpoints: Mapping[str, tuple[bytes, ...]]
    """Addresses of ready endpoints by their name below the Service."""
    ports: tuple[Port, ...]


def is_ready(endpoint: Mapping[str, Any]) -> bool:
    """The endpoint takes traffic; an unset condition means yes."""
    ready = dig(endpoint, "conditions", "ready")
    return ready is None or bool(ready)


def endpoint_name(endpoint: Mapping[str, Any], address: str) -> str:
    """An endpoint's name below its Service."""
    hostname: str = endpoint.get("hostname") or ""
    return hostname or address.replace(".", "-").replace(":", "-")


def _pack(address: str) -> bytes | None:
    try:
        return ipaddress.ip_address(address).packed
    except ValueError:
        return None


def service_records(
    service: Object, slices: Sequence[Object], shown: Callable[[str], str] = lambda address: address
) -> ServiceRecords:
    """The records of one Service; ``shown`` maps a cluster address to the one clients are told."""
    spec = service["spec"]
    if spec.get("type") == "ExternalName":
        name = (spec.get("externalName") or "").rstrip(".").lower()
        packed = _pack(name)
        return ServiceRecords("" if packed else name, (packed,) if packed else (), {}, ())
    headless = spec.get("clusterIP") == "None"
    endpoints: dict[str, list[bytes]] = {}
    ports: list[Port] = []
    for one in slices:
        for endpoint in one.get("endpoints") or ():
            if not is_ready(endpoint):
                continue
            for address in endpoint.get("addresses") or ():
                packed = _pack(address)
                if packed is None:
                    continue
                name = endpoint_name(endpoint, address)
                known = endpoints.setdefault(name, [])
                if packed not in known:
                    known.append(packed)
                if headless:
                    ports += (
                        Port(port.get("name") or "", (port.get("protocol") or "TCP").lower(), port["port"], name)
                        for port in one.get("ports") or ()
                        if port.get("port")
                    )
    if headless:
        addresses = tuple(dict.fromkeys(packed for some in endpoints.values() for packed in some))
    else:
        given = spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else [])
        addresses = tuple(packed for address in given if (packed := _pack(shown(address))) is not None)
        ports = [
            Port(port.get("name") or "", (port.get("protocol") or "TCP").lower(), port["port"], "")
            for port in spec.get("ports") or ()
        ]
    return ServiceRecords(
        "", addresses, {name: tuple(some) for name, some in endpoints.items()}, tuple(dict.fromkeys(ports))
    )
