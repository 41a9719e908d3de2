"""The machine's addresses: under which others reach what listens here, and at which port."""

from __future__ import annotations

import os
import socket
from functools import cache
from ipaddress import IPv6Address, ip_address
from pathlib import Path

WILDCARDS = ("0.0.0.0", "::", "")  # noqa: S104


def advertised(host: str) -> str:
    """The address to tell others for a listener on ``host``: itself, or for a wildcard the machine's own address towards the
    outside (127.0.0.1 where it has none)."""
    if host not in WILDCARDS:
        return host
    try:
        return towards("192.0.2.1", 9)
    except OSError:
        return _first_interface()


def _first_interface() -> str:
    """The first IPv4 address that is not loopback, on a machine without a default route."""
    import psutil

    for addresses in psutil.net_if_addrs().values():
        for one in addresses:
            if one.family == socket.AF_INET and not one.address.startswith("127."):
                return str(one.address)
    return "127.0.0.1"


def towards(host: str, port: int) -> str:
    """The address this machine has towards another. Raises OSError (there is no route)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.connect((host, port))  # sends nothing; the kernel chooses the source
        return str(asked.getsockname()[0])


def is_own(address: str) -> bool:
    """The IPv4 address is this machine's (in this network namespace)."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
            bound.bind((address, 0))
    except OSError:
        return False
    return True


def is_here(address: str) -> bool:
    """Connections from here to this address, IPv4 or IPv6, arrive on this machine (in this network namespace)."""
    try:
        found = ip_address(address)
    except ValueError:
        return False
    if isinstance(found, IPv6Address):
        found = found.ipv4_mapped or found
    if found.is_loopback or found.is_unspecified:
        return True
    family = socket.AF_INET if found.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as asked:
            asked.connect(
                (str(found), 9)
            )  # sends nothing; to an address of its own the kernel speaks from that address
            return ip_address(asked.getsockname()[0]) == found
    except OSError:
        return False


PRIVATE_PORTS = 1024
"""Ports below this are the ones that may need rights."""
_SHIFTED = 65536 - PRIVATE_PORTS


def door(address: str, port: int) -> int:
    """The port that what listens at ``port`` of a pod's or Service's address is really at.

    On machines where pods have addresses of the loopback network and this user may not listen on low ports, port 80 of such an
    address is at 64592 of it: the top 1,024 ports stand for the lowest 1,024. Everywhere else it is the port itself.
    """
    if port <= 0 or port >= _lowest_port() or not is_convention(address):
        return port
    return _SHIFTED + port


def is_convention(address: str) -> bool:
    """An address that pods, their localhosts, Services and load balancers have by convention: 127.64.0.0/10 or 127.7.0.0/16."""
    start, _, rest = address.partition(".")
    if start != "127":
        return False
    second = rest.partition(".")[0]
    return second == "7" or (second.isdecimal() and 64 <= int(second) < 128)


@cache
def _lowest_port() -> int:
    """The lowest port this process may listen on, at most `PRIVATE_PORTS`."""
    capability_of_low_ports = 10
    try:
        status = Path("/proc/self/status").read_text()
        effective = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)
        if effective >> capability_of_low_ports & 1:
            return 0
        return min(PRIVATE_PORTS, int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()))
    except (OSError, ValueError, StopIteration):
        return 0 if os.geteuid() == 0 else PRIVATE_PORTS
