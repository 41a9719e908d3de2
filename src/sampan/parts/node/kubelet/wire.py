"""The byte streams below the streaming protocols: a WebSocket, or a connection taken over after ``101 Switching Protocols``.

Both look like `Wire`: receive chunks, send chunks with backpressure, close.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from aiohttp import WSMsgType, web

BUFFER_LIMIT = 256 * 1024


class Wire(Protocol):
    """A two-way stream of bytes."""

    async def receive(self) -> bytes:
        """The next chunk; empty at the end."""
        ...

    async def send(self, data: bytes) -> None:
        """Send a chunk, waiting while the peer is slow. Raises ConnectionError when it is gone."""
        ...

    async def close(self) -> None: ...


class WebSocketWire:
    """SPDY inside a WebSocket: binary messages are an arbitrary split of the stream."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self._socket = socket

    async def receive(self) -> bytes:
        while True:
            message = await self._socket.receive()
            if message.type is WSMsgType.BINARY:
                if message.data:
                    data: bytes = message.data
                    return data
            elif message.type is WSMsgType.TEXT:
                return str(message.data).encode()
            else:
                return b""

    async def send(self, data: bytes) -> None:
        await self._socket.send_bytes(data)

    async def close(self) -> None:
        await self._socket.close()


class Upgraded(web.StreamResponse):
    """Tells aiohttp that the connection has been answered and taken over."""

    def __init__(self) -> None:
        super().__init__(status=101)
        self.force_close()

    async def prepare(self, request: web.BaseRequest) -> Any:
        return None

    async def write_eof(self, data: bytes | bytearray | memoryview = b"") -> None:
        return None


class RawWire(asyncio.Protocol):
    """A connection taken over from aiohttp."""

    def __init__(self, transport: asyncio.Transport, before: Any) -> None:
        self._transport = transport
        self._before = before
        """aiohttp's protocol of the connection, which still wants to hear of its end."""
        self._chunks: asyncio.Queue[bytes] = asyncio.Queue()
        self._writable = asyncio.Event()
        self._writable.set()
        self._waiting = 0
        self._lost = False

    @staticmethod
    def take(request: web.BaseRequest, head: str) -> RawWire:
        """Answer ``request`` with a raw head and own its connection from now on. Raises ConnectionError."""
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        wire = RawWire(transport, request.protocol)
        transport.set_protocol(wire)
        transport.write(head.encode())
        return wire

    def data_received(self, data: bytes) -> None:
        self._chunks.put_nowait(data)
        self._waiting += len(data)
        if self._waiting > BUFFER_LIMIT:
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        self._chunks.put_nowait(b"")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._writable.set()
        self._chunks.put_nowait(b"")
        self._before.connection_lost(exc)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def receive(self) -> bytes:
        data = await self._chunks.get()
        if self._waiting > BUFFER_LIMIT >= self._waiting - len(data) and not self._lost:
            self._transport.resume_reading()
        self._waiting -= len(data)
        return data

    async def send(self, data: bytes) -> None:
        await self._writable.wait()
        if self._lost:
            raise ConnectionResetError("the client is gone")
        self._transport.write(data)

    async def close(self) -> None:
        if not self._lost:
            self._transport.close()
