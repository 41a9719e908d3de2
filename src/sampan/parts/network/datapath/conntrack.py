"""Forgets tracked UDP flows that go elsewhere than to an endpoint of their Service.

The kernel remembers where a flow was sent for as long as it goes on; a client that never stops asking would ask a dead
endpoint for ever, or, when it asked before the Service was known, nobody at all. Flows of TCP end by themselves.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from sampan.kernel.netlink import attributes

_NETFILTER = 12
_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_NESTED = 0x8000
_UDP = 17

End = tuple[str, int]
"""Address and port."""


class Flow(NamedTuple):
    """A tracked flow that somebody sent to one address, and that another answers."""

    asked: End
    answering: End
    protocol: int
    original: bytes
    """The flow's own direction, as the kernel names it."""


def _end(data: bytes, address: int, port: int) -> End:
    parts = attributes(data)
    addresses, ports = attributes(parts[1]), attributes(parts[2])
    return socket.inet_ntoa(addresses[address]), int(struct.unpack(">H", ports[port][:2])[0])


def parse(body: bytes) -> Flow | None:
    """A flow from a message's attributes; None for one without ports."""
    parts = attributes(body)
    try:
        protocol = attributes(attributes(parts[1])[2])[1][0]
        return Flow(_end(parts[1], 2, 3), _end(parts[2], 1, 2), protocol, parts[1])
    except (KeyError, struct.error, OSError, IndexError):
        return None


def _message(kind: int, flags: int, body: bytes = b"") -> bytes:
    header = struct.pack(">BBH", socket.AF_INET, 0, 0)
    return struct.pack("=IHHII", 20 + len(body), kind, _REQUEST | flags, 1, 0) + header + body


def _answers(link: socket.socket) -> Iterator[tuple[int, bytes]]:
    while True:
        answer, offset = link.recv(1 << 18), 0
        while offset + 16 <= len(answer):
            length, kind = struct.unpack_from("=IH", answer, offset)
            yield kind, answer[offset + 16 : offset + length]
            offset += max(16, (length + 3) & ~3)


def flows() -> Iterator[Flow]:
    """The flows tracked now. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER) as link:
        link.send(_message(_GET, _DUMP))
        for kind, body in _answers(link):
            if kind == _DONE:
                return
            if kind == _ERROR:
                code = -struct.unpack_from("=i", body)[0]
                raise OSError(code, f"conntrack: {os.strerror(code)}")
            flow = parse(body[4:])
            if flow is not None:
                yield flow


def forget(flow: Flow) -> None:
    """Track a flow no longer; one that has ended is fine. Raises OSError."""
    original = struct.pack("=HH", 4 + len(flow.original), 1 | _NESTED) + flow.original
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER) as link:
        link.send(_message(_DELETE, _ACK, original))
        _, body = next(_answers(link))
        code = -struct.unpack_from("=i", body)[0]
        if code not in (0, errno.ENOENT):
            raise OSError(code, f"conntrack: {os.strerror(code)}")


def forget_stale(endpoints: Mapping[End, Collection[End]]) -> int:
    """Forget the UDP flows to frontends that go elsewhere than to their endpoints of now; how many. Raises OSError."""
    stale = [
        flow
        for flow in flows()
        if flow.protocol == _UDP and flow.asked in endpoints and flow.answering not in endpoints[flow.asked]
    ]
    for flow in stale:
        forget(flow)
    return len(stale)
