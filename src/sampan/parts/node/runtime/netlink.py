"""The few rtnetlink requests a node makes: the pod range's local route, and a veth pair for a pod with a network namespace.

Raw messages over one socket: no ``ip`` commands (2.7 ms each) and no netlink library (a tenth of a second to import).
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from typing import Final

from sampan.kernel.netlink import attributes

_NEWLINK, _DELLINK, _NEWADDR, _NEWROUTE, _DELROUTE, _GETROUTE = 16, 17, 20, 24, 25, 26
_REQUEST, _ACK, _EXCL, _CREATE, _REPLACE = 1, 4, 0x200, 0x400, 0x100
_TABLE_LOCAL, _TABLE_MAIN = 255, 254
_LOCAL, _UNICAST, _UNREACHABLE = 2, 1, 7
_DUMP = 0x300
_DONE, _ERROR = 3, 2
_PEERS = 0x73
"""The origin (protocol) of our routes to other nodes: a number nobody else uses."""
UP: Final = 1


def _attribute(kind: int, value: bytes) -> bytes:
    length = 4 + len(value)
    return struct.pack("=HH", length, kind) + value + bytes(-length % 4)


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _request(kind: int, flags: int, body: bytes) -> None:
    """One request and its acknowledgement. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as link:
        message = struct.pack("=IHHII", 16 + len(body), kind, _REQUEST | _ACK | flags, 1, 0) + body
        link.send(message)
        answer = link.recv(1 << 16)
    code = struct.unpack_from("=i", answer, 16)[0]
    if code:
        raise OSError(-code, f"netlink: {os.strerror(-code)}")


def _route(
    kind: int, flags: int, network: str, device: str, *, table: int, scope: int, sort: int, via: str = ""
) -> None:
    parsed = ipaddress.ip_network(network)
    family = socket.AF_INET if parsed.version == 4 else socket.AF_INET6
    body = struct.pack("=BBBBBBBBI", family, parsed.prefixlen, 0, 0, table, 4, scope, sort, 0)
    if parsed.prefixlen:
        body += _attribute(1, parsed.network_address.packed)
    if via:
        body += _attribute(5, ipaddress.ip_address(via).packed)
    if device:
        body += _attribute(4, struct.pack("=I", socket.if_nametoindex(device)))
    _request(kind, flags, body)


def add_local_route(network: str) -> None:
    """Make every address of a range the machine's own (AnyIP), as ``ip route add local <range> dev lo``. Raises OSError."""
    try:
        _route(_NEWROUTE, _CREATE | _EXCL, network, "lo", table=_TABLE_LOCAL, scope=254, sort=_LOCAL)
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise


def remove_local_route(network: str) -> None:
    """Take the range back; a missing route is fine. Raises OSError."""
    try:
        _route(_DELROUTE, 0, network, "lo", table=_TABLE_LOCAL, scope=255, sort=_LOCAL)
    except OSError as error:
        if error.errno not in (errno.ESRCH, errno.ENOENT):
            raise


def add_unreachable(network: str) -> None:
    """Addresses of a range that have no route of their own lead nowhere, instead of outside. Raises OSError."""
    _route(_NEWROUTE, _CREATE | _REPLACE, network, "", table=_TABLE_MAIN, scope=0, sort=_UNREACHABLE)


def remove_unreachable(network: str) -> None:
    """Take that back; a missing one is fine. Raises OSError."""
    try:
        _route(_DELROUTE, 0, network, "", table=_TABLE_MAIN, scope=255, sort=_UNREACHABLE)
    except OSError as error:
        if error.errno not in (errno.ESRCH, errno.ENOENT):
            raise


def add_veth(name: str, peer: str, pid: int) -> None:
    """A veth pair whose peer stands in the network namespace of a process. Raises OSError."""
    other = struct.pack("=BBHiII", 0, 0, 0, 0, 0, 0) + _text(3, peer) + _attribute(19, struct.pack("=I", pid))
    info = _text(1, "veth") + _attribute(2, _attribute(1, other))
    body = struct.pack("=BBHiII", 0, 0, 0, 0, 0, 0) + _text(3, name) + _attribute(18, info)
    _request(_NEWLINK, _CREATE | _EXCL, body)


def set_up(name: str) -> None:
    """Bring an interface up. Raises OSError."""
    _request(_NEWLINK, 0, struct.pack("=BBHiII", 0, 0, 0, socket.if_nametoindex(name), UP, UP))


def remove_link(name: str) -> None:
    """Remove an interface; a missing one is fine. Raises OSError."""
    try:
        _request(_DELLINK, 0, struct.pack("=BBHiII", 0, 0, 0, 0, 0, 0) + _text(3, name))
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise


def add_address(name: str, address: str, prefix: int) -> None:
    """Give an interface an IPv4 address. Raises OSError."""
    packed = ipaddress.ip_address(address).packed
    body = struct.pack("=BBBBI", socket.AF_INET, prefix, 0, 0, socket.if_nametoindex(name))
    _request(_NEWADDR, _CREATE | _REPLACE, body + _attribute(2, packed) + _attribute(1, packed))


def add_host_route(address: str, device: str) -> None:
    """One address is behind an interface, though the range around it is local. Raises OSError."""
    _route(_NEWROUTE, _CREATE | _REPLACE, f"{address}/32", device, table=_TABLE_LOCAL, scope=253, sort=_UNICAST)


def add_link_route(network: str, device: str) -> None:
    """A range is directly behind an interface. Raises OSError."""
    _route(_NEWROUTE, _CREATE | _REPLACE, network, device, table=_TABLE_MAIN, scope=253, sort=_UNICAST)


def add_default_route(device: str, via: str) -> None:
    """Everything else goes via this gateway. Raises OSError."""
    _route(_NEWROUTE, _CREATE | _REPLACE, "0.0.0.0/0", device, table=_TABLE_MAIN, scope=0, sort=_UNICAST, via=via)


def add_peer_route(network: str, gateway: str) -> None:
    """The range of another node's pods is behind that node's address, in a network of ours. Raises OSError."""
    _peer_route(_NEWROUTE, _CREATE | _REPLACE, network, gateway)


def remove_peer_route(network: str) -> None:
    """Take the route to another node's pods back; a missing one is fine. Raises OSError."""
    try:
        _peer_route(_DELROUTE, 0, network, "")
    except OSError as error:
        if error.errno not in (errno.ESRCH, errno.ENOENT):
            raise


def _peer_route(kind: int, flags: int, network: str, gateway: str) -> None:
    parsed = ipaddress.IPv4Network(network)
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, parsed.prefixlen, 0, 0, _TABLE_MAIN, _PEERS, 0, _UNICAST, 0)
    body += _attribute(1, parsed.network_address.packed)
    if gateway:
        body += _attribute(5, ipaddress.IPv4Address(gateway).packed)
    _request(kind, flags, body)


def peer_routes() -> dict[str, str]:
    """Our routes to other nodes: range to gateway. Raises OSError."""
    found: dict[str, str] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as link:
        body = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)
        link.send(struct.pack("=IHHII", 16 + len(body), _GETROUTE, _REQUEST | _DUMP, 1, 0) + body)
        while True:
            answer, offset = link.recv(1 << 18), 0
            while offset < len(answer):
                length, kind = struct.unpack_from("=IH", answer, offset)
                if kind == _DONE:
                    return found
                if kind == _ERROR:
                    code = -struct.unpack_from("=i", answer, offset + 16)[0]
                    raise OSError(code, f"netlink: {os.strerror(code)}")
                _, prefix, _, _, table, origin = struct.unpack_from("=BBBBBB", answer, offset + 16)
                values = attributes(answer[offset + 28 : offset + length])
                if origin == _PEERS and table == _TABLE_MAIN and 1 in values and 5 in values:
                    found[f"{ipaddress.IPv4Address(values[1])}/{prefix}"] = str(ipaddress.IPv4Address(values[5]))
                offset += (length + 3) & ~3
