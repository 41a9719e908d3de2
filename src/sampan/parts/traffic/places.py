"""Where Gateways listen: an address of its own for each, and the platform's shared one.

A Gateway has its own loopback address, so that two of them never mix and its ports are the ones it names. Because nobody
types such an address by hand, everything is also served on the shared address (``127.0.0.1:9080``), where Gateways and
Ingresses are merged.
"""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import socket
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sampan.kube.objects import Key, Object

POOL = 127 << 24 | 80 << 16
"""Own addresses lie in 127.80.0.0/12."""
POOL_BITS = 20
PROBE = "127.95.255.254"
"""An address no Gateway gets: whether low ports can be bound is tried here."""
MOVED_BY = 9000
"""What is added to a port that cannot be bound: 80 becomes 9080."""


class Place(NamedTuple):
    """One address and port a listener is served on, and where plain and secure HTTP are reached beside it."""

    address: str
    port: int
    http: int = 80
    https: int = 443


SharedPort = Callable[[int, bool], int | None]
"""``(port, is UDP)`` to the port on the shared address; None: not served there."""


class Places:
    """Hands out places; an address stays with its Gateway while that lives, and across restarts."""

    def __init__(self, shared: str, seed: str, shared_port: SharedPort, *, low_ports: bool = True) -> None:
        """``seed`` tells this platform from others on the machine; ``low_ports``: ports below 1024 can be bound."""
        self.shared = shared
        self._seed = seed
        self._shared_port = shared_port
        self._low_ports = low_ports
        self._owned: dict[Key, str] = {}

    def address(self, gateway: Object) -> str:
        """The Gateway's own address: the loopback address it asks for, or one from the pool."""
        for wanted in gateway["spec"].get("addresses") or ():
            if wanted.get("value") and self.usable(wanted):
                value: str = wanted["value"]
                return self.shared if value == "localhost" else value
        key = Key.of(gateway)
        if key not in self._owned:
            taken = set(self._owned.values())
            number = int.from_bytes(hashlib.blake2b(f"{self._seed}/{key}".encode(), digest_size=4).digest(), "big")
            while (address := self._in_pool(number)) in taken or address == PROBE:
                number += 1
            self._owned[key] = address
        return self._owned[key]

    def usable(self, wanted: Mapping[str, Any]) -> bool:
        """Whether an entry of ``spec.addresses`` is one we can listen on."""
        value, kind = wanted.get("value"), wanted.get("type") or "IPAddress"
        if not value:
            return kind == "IPAddress"
        if kind == "Hostname":
            return bool(value == "localhost")
        if value == self.shared:
            return kind == "IPAddress"
        try:
            return kind == "IPAddress" and ipaddress.ip_address(value) in ipaddress.ip_network("127.0.0.0/8")
        except ValueError:
            return False

    def keep(self, gateways: Mapping[Key, Object]) -> None:
        """Release the addresses of Gateways that are gone."""
        self._owned = {key: address for key, address in self._owned.items() if key in gateways}

    def own(self, address: str, port: int) -> Place:
        """Where a port is served on a Gateway's own address."""
        return Place(address, self._moved(port), self._moved(80), self._moved(443))

    def on_shared(self, port: int, *, udp: bool) -> Place | None:
        """Where a port is served on the shared address."""
        chosen = self._shared_port(port, udp)
        if chosen is None:
            return None
        return Place(self.shared, chosen, self._shared_port(80, False) or 80, self._shared_port(443, False) or 443)

    def _moved(self, port: int) -> int:
        return port if self._low_ports or port >= 1024 else port + MOVED_BY

    @staticmethod
    def _in_pool(number: int) -> str:
        return str(ipaddress.ip_address(POOL | number % (1 << POOL_BITS)))


def low_ports() -> bool:
    """Whether this process (and so Envoy) has the right to listen on ports 80 and 443."""
    for port in (80, 443):
        try:
            socket.create_server((PROBE, port)).close()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:  # another platform is trying just now: so it can be done
                return False
    return True
