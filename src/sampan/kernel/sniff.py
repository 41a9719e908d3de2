"""One listening port for TLS and plaintext: look at a connection's first byte, then pump it to a local server.

gRPC servers terminate either TLS or plaintext on a port, and half of the official clients of some protocols insist on the
one, half on the other. The listener here peeks at the first byte of each connection: 0x16 begins a TLS handshake (terminated
here), anything else is plaintext. What comes out is copied to and from a Unix socket; each direction stops reading while the
other side does not take what was sent, so a slow peer costs two socket buffers, not memory.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any, cast

from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks

log = logging.getLogger(__name__)

TLS_HANDSHAKE = 0x16
FIRST_BYTE_TIMEOUT = 10.0
"""Seconds a connection may stay silent at first, and a TLS handshake may take."""
HIGH_WATER = 1 << 20


class SniffingListener:
    """Accepts on one socket and pumps every connection to the Unix socket at ``target``."""

    def __init__(
        self,
        listener: socket.socket,
        target: str,
        *,
        clock: Clock,
        tasks: Tasks,
        tls: Callable[[], ssl.SSLContext] | None = None,
        max_connections: int = 10_000,
    ) -> None:
        self._listener = listener
        self._target = target
        self._clock = clock
        self._tasks = tasks
        self._tls = tls
        self._context: ssl.SSLContext | None = None
        self._max_connections = max_connections
        self._open: set[_Side] = set()
        self._arriving = 0

    @property
    def connections(self) -> int:
        """Connections open now."""
        return len(self._open) + self._arriving

    def start(self) -> None:
        """Begin to accept."""
        self._listener.setblocking(False)
        self._tasks.keep("accept", self._accept)

    def close(self) -> None:
        """Stop accepting and close every connection."""
        self._listener.close()
        for side in list(self._open):
            side.abort()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._listener)
            if self.connections >= self._max_connections:
                connection.close()
                continue
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._arriving += 1
            self._tasks.start("arrival", self._arrive(connection))

    async def _arrive(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with self._clock.patience(FIRST_BYTE_TIMEOUT):
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
                outer, inner = _Side(self._open), _Side(None)
                outer.peer, inner.peer = inner, outer
                await loop.create_unix_connection(lambda: inner, self._target)
                try:
                    await loop.connect_accepted_socket(lambda: outer, connection, **secure)
                except (OSError, ssl.SSLError):
                    inner.abort()
                    raise
        except (OSError, TimeoutError) as error:
            log.debug("a connection did not come about: %s", error)
            connection.close()
        except Exception:  # one connection must not end the listener
            log.exception("a connection could not be served")
            connection.close()
        finally:
            self._arriving -= 1


class _Side(asyncio.Protocol):
    """One end of a pumped connection."""

    def __init__(self, register: set[_Side] | None) -> None:
        self.peer: _Side | None = None
        self.transport: asyncio.Transport | None = None
        self._register = register
        self._early: list[bytes] = []
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's
        self.transport = transport = cast(asyncio.Transport, transport)
        transport.set_write_buffer_limits(HIGH_WATER)
        if self._register is not None:
            self._register.add(self)
        for data in self._early:
            transport.write(data)
        self._early.clear()
        if self._ended:
            transport.close()

    def write(self, data: bytes) -> None:
        if self.transport is None:
            self._early.append(data)
        else:
            self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        if self.peer is not None:
            self.peer.write(data)

    def pause_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None and not self.peer.transport.is_closing():
            self.peer.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if self._register is not None:
            self._register.discard(self)
        if self.peer is not None:
            self.peer._ended = True
            if self.peer.transport is not None:
                self.peer.transport.close()
            self.peer = None

    def abort(self) -> None:
        self._ended = True
        if self.transport is not None:
            self.transport.abort()


async def _peek(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> bytes:
    """The first byte without taking it off the socket; empty when the peer closed."""
    connection.setblocking(False)
    while True:
        try:
            return connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            pass
        readable: asyncio.Future[None] = loop.create_future()
        loop.add_reader(connection, _resolve, readable)
        try:
            await readable
        finally:
            loop.remove_reader(connection)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
