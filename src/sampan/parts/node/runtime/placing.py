"""Where the sockets of a pod go that has an address by convention (tiers T2 and T3): pure decisions.

Such a pod shares the machine's ports. So what it binds is put at its own address, as the eBPF programs of T1 do: a wildcard
server at the pod's 127.x.y.z, a server on localhost at the pod's hidden loopback address, low ports at their `door`. What it
connects to is found there again: its own localhost first (then the machine's), pods and Services at their doors, cluster
addresses where their forwarders listen. Everything else is left to the kernel as it was asked.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sampan.kernel.addresses import door, is_convention
from sampan.parts.node.runtime.addresses import hidden_address

INET, INET6 = 2, 10
_NAMES = 53
_MAPPED = bytes(10) + b"\xff\xff"
_LOCALHOST6 = bytes(15) + b"\x01"


class Address(NamedTuple):
    """A socket address of one of the IP families."""

    family: int
    host: str
    """IPv4 in dots, also where an IPv6 socket speaks it; otherwise IPv6."""
    port: int
    mapped: bool = False
    """An IPv4 address in IPv6's form."""

    def tuple(self) -> tuple[str, int]:
        """As Python's sockets take it."""
        return (f"::ffff:{self.host}" if self.mapped else self.host), self.port


def parse(data: bytes) -> Address | None:
    """A ``struct sockaddr``; None for another family or a torn one."""
    if len(data) < 8:
        return None
    (family,) = struct.unpack_from("=H", data)
    (port,) = struct.unpack_from(">H", data, 2)
    if family == INET:
        return Address(INET, str(ipaddress.IPv4Address(data[4:8])), port)
    if family != INET6 or len(data) < 24:
        return None
    host = data[8:24]
    if host.startswith(_MAPPED):
        return Address(INET6, str(ipaddress.IPv4Address(host[12:])), port, mapped=True)
    return Address(INET6, str(ipaddress.IPv6Address(host)), port)


@dataclass
class PodPlaces:
    """The sockets of one pod."""

    address: str
    services: Sequence[ipaddress.IPv4Network] = ()
    """The cluster addresses that forwarders stand for."""
    names: str = ""
    """Who answers in the place of ``resolvers``; "": they do."""
    resolvers: Sequence[str] = ()
    _served: dict[tuple[int, int], str] = field(default_factory=dict)
    """Socket type and port → the address of the pod it is served at; the hidden one goes before."""

    def bind(self, asked: Address, *, only6: bool) -> Address | None:
        """Where to bind instead; None: as asked. ``only6``: the socket speaks IPv6 only."""
        if not asked.port:
            return None  # such a port collides with nobody, and a client's source must stay open
        if asked.family == INET6 and not asked.mapped:
            if asked.host not in ("::", "::1"):
                return None
            if only6:
                # pods have no IPv6 address; one that insists on both families has what it needs with the other
                return Address(INET6, "::1", 0) if asked.host == "::" else None
            host = self.address if asked.host == "::" else hidden_address(self.address)
        elif asked.host in ("0.0.0.0", self.address):  # noqa: S104 - read, not bound
            host = self.address
        elif asked.host == "127.0.0.1":
            host = hidden_address(self.address)
        else:
            return None
        return Address(asked.family, host, door(host, asked.port), mapped=asked.family == INET6)

    def bound(self, kind: int, asked: Address, placed: Address) -> None:
        """A socket of this type was bound there."""
        if placed.host != self.address and (kind, asked.port) in self._served:
            self._served[kind, asked.port] = placed.host
        self._served.setdefault((kind, asked.port), placed.host)

    def connect(self, kind: int, asked: Address, *, only6: bool) -> Address | None:
        """Where to connect instead; None: as asked."""
        host = asked.host
        if asked.family == INET6 and not asked.mapped:
            if host != "::1" or only6:
                return None
            host = "127.0.0.1"
        if asked.port == _NAMES and self.names and host in self.resolvers:
            host = self.names
        elif host in ("127.0.0.1", "0.0.0.0"):  # noqa: S104 - read, not bound
            served = self._served.get((kind, asked.port))
            if served is None:
                return None  # the machine's own localhost
            host = served
        elif not is_convention(host):
            if not host.startswith("10.") or not any(ipaddress.IPv4Address(host) in one for one in self.services):
                return None
            host = "127." + host.partition(".")[2]
        return Address(asked.family, host, door(host, asked.port), mapped=asked.family == INET6)
