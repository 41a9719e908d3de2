"""One listening port for TLS and plaintext: look at a connection's first byte before its protocol begins.

Half of the official clients of some protocols insist on TLS, half on plaintext. The listener here peeks at the first byte of
each connection: 0x16 begins a TLS handshake, which is terminated here, anything else is plaintext. Behind a load balancer that
is told to, it first takes the HAProxy PROXY header (version 1 or 2) off the connection and believes it about where the client is.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any, NamedTuple

from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks

log = logging.getLogger(__name__)

TLS_HANDSHAKE = 0x16
FIRST_BYTE_TIMEOUT = 10.0
"""Seconds a connection may stay silent at first, and a TLS handshake may take."""
PROXY_V1, PROXY_V2 = b"PROXY ", b"\r\n\r\n\x00\r\nQUIT\n"
PROXY_V1_LIMIT, PROXY_V2_LIMIT = 107, 4096
"""The longest headers taken, in bytes."""
KEEPALIVE = 60
"""Seconds of silence after which the kernel asks whether the client's machine is still there."""


class Peer(NamedTuple):
    """Who is at the other end."""

    host: str
    port: int


LOCAL = Peer("", 0)
"""Whoever is at the other end of a Unix socket."""


class ProxyHeaderError(ValueError):
    """A PROXY header is malformed."""


class SniffingListener:
    """Accepts on one socket and gives every connection, freed of TLS, a protocol."""

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[Peer], asyncio.Protocol],
        *,
        clock: Clock,
        tasks: Tasks,
        tls: Callable[[], ssl.SSLContext] | None = None,
        open_now: Callable[[], int] = lambda: 0,
        max_connections: int = 10_000,
        proxy_protocol: bool = False,
    ) -> None:
        """``open_now`` says how many connections there are; beyond ``max_connections`` new ones are closed at once."""
        self._listener = listener
        self._protocol = protocol
        self._clock = clock
        self._tasks = tasks
        self._tls = tls
        self._context: ssl.SSLContext | None = None
        self._max_connections = max_connections
        self._proxy_protocol = proxy_protocol
        self._open_now = open_now
        self._arriving = 0
        self._accepting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to accept."""
        self._listener.setblocking(False)
        self._accepting = self._tasks.keep("accept", self._accept)

    def close(self) -> None:
        """Stop accepting; connections that have a protocol are its own affair."""
        if self._accepting is not None:
            self._accepting.cancel()
        self._listener.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, address = await loop.sock_accept(self._listener)
            if self._arriving + self._open_now() >= self._max_connections:
                connection.close()
                continue
            peer = LOCAL
            if connection.family != socket.AF_UNIX:
                peer = Peer(_plain(address[0]), address[1])
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                if hasattr(socket, "TCP_KEEPIDLE"):
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE)
            self._arriving += 1
            self._tasks.start("arrival", self._arrive(connection, peer))

    async def _arrive(self, connection: socket.socket, peer: Peer) -> None:
        loop = asyncio.get_running_loop()
        connection.setblocking(False)
        try:
            async with self._clock.patience(FIRST_BYTE_TIMEOUT):
                first = await _peek(loop, connection)
                if self._proxy_protocol and first in (b"P", b"\r"):
                    peer = await _proxied(loop, connection, peer)
                    first = await _peek(loop, connection)
                if not first:
                    connection.close()
                    return
                secure: dict[str, Any] = {}
                if first[0] == TLS_HANDSHAKE:
                    if self._tls is None:
                        connection.close()
                        return
                    if self._context is None:
                        self._context = await asyncio.to_thread(self._tls)
                    secure = {"ssl": self._context}
                await loop.connect_accepted_socket(lambda: self._protocol(peer), connection, **secure)
        except (OSError, TimeoutError, ProxyHeaderError) as error:
            log.debug("a connection did not come about: %s", error)
            connection.close()
        except Exception:  # one connection must not end the listener
            log.exception("a connection could not be served")
            connection.close()
        finally:
            self._arriving -= 1


def _plain(host: str) -> str:
    """An IPv4 client of a socket that takes both is known by its IPv4 address."""
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host.partition("%")[0])
    return str(address.ipv4_mapped or address)


async def _proxied(loop: asyncio.AbstractEventLoop, connection: socket.socket, peer: Peer) -> Peer:
    """Take the PROXY header off a connection, if it has one: the client's address."""
    begun = await _peek(loop, connection, len(PROXY_V1))
    if begun == PROXY_V2[: len(begun)]:
        head = await _exactly(loop, connection, 16)
        if not head.startswith(PROXY_V2):
            raise ProxyHeaderError("what looks like a PROXY header is none")
        size = int.from_bytes(head[14:16], "big")
        if size > PROXY_V2_LIMIT:
            raise ProxyHeaderError("the PROXY header is too long")
        return parse_v2(head, await _exactly(loop, connection, size)) or peer
    if not begun.startswith(PROXY_V1):
        return peer
    line = bytearray()
    while not line.endswith(b"\r\n"):
        if len(line) >= PROXY_V1_LIMIT:
            raise ProxyHeaderError("the PROXY header is too long")
        line += await _exactly(loop, connection, 1)
    return parse_v1(bytes(line)) or peer


def parse_v1(line: bytes) -> Peer | None:
    """The client a version 1 header names; None: it says unknown.

    Raises:
        ProxyHeaderError: it is malformed.
    """
    try:
        fields = str(line, "ascii").removesuffix("\r\n").split(" ")
        if fields[1] == "UNKNOWN":
            return None
        _, family, source, _, port, _ = fields
        address = ipaddress.ip_address(source)
        if family != f"TCP{address.version}" or not 0 <= int(port) < 65536:
            raise ValueError
    except (ValueError, IndexError):
        raise ProxyHeaderError(f"the PROXY header {line!r} is malformed") from None
    return Peer(_plain(str(address)), int(port))


def parse_v2(head: bytes, body: bytes) -> Peer | None:
    """The client a version 2 header (its 16 bytes, and what follows) names; None: a health check, or no Internet address.

    Raises:
        ProxyHeaderError: it is malformed.
    """
    version, command, family = head[12] >> 4, head[12] & 15, head[13]
    if version != 2 or command > 1:
        raise ProxyHeaderError("the PROXY header is of an unknown version")
    if command == 0 or family not in (0x11, 0x21):
        return None
    size = 4 if family == 0x11 else 16
    if len(body) < 2 * size + 4:
        raise ProxyHeaderError("the PROXY header is cut short")
    address = ipaddress.ip_address(body[:size])
    return Peer(_plain(str(address)), int.from_bytes(body[2 * size : 2 * size + 2], "big"))


async def _exactly(loop: asyncio.AbstractEventLoop, connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await loop.sock_recv(connection, size - len(data))
        if not more:
            raise ProxyHeaderError("the connection ended inside the PROXY header")
        data += more
    return data


async def _peek(loop: asyncio.AbstractEventLoop, connection: socket.socket, size: int = 1) -> bytes:
    """The first ``size`` bytes without taking them off the socket; fewer when the peer closed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
    while True:
        with contextlib.suppress(BlockingIOError):
            data = connection.recv(size, socket.MSG_PEEK)
            if len(data) == size or not data:
                break
        readable: asyncio.Future[None] = loop.create_future()
        loop.add_reader(connection, _resolve, readable)
        try:
            await readable
        finally:
            loop.remove_reader(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    return data


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
