"""The gate's socket: as much HTTP/1.1 as Envoy needs to ask one question and wait for the answer.

Every request of a limited revision passes here, so this is a protocol class without streams, tasks or parsing of what is not
looked at. A connection carries one question at a time; when Envoy closes it while the answer is still open, the request is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import cast

LONGEST_HEAD = 64 * 1024
"""Bytes of a request head; Envoy's is a few hundred."""

Reply = Callable[[int, str, Mapping[str, str]], None]
"""``reply(status, body, headers)``, called once."""
Ask = Callable[[str, Reply], Callable[[], None] | None]
"""``ask(path, reply)``: answers at once or later; returns what to call when the asker goes away before, None if it has answered."""


class GateServer:
    """The open socket and its connections."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()

    async def open(self, path: Path) -> None:
        """Serve questions on a Unix socket that only this user can open."""
        await asyncio.to_thread(path.unlink, missing_ok=True)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: _Connection(self._ask, self._connections), str(path), backlog=4096
        )
        await asyncio.to_thread(path.chmod, 0o600)

    def close(self) -> None:
        """Close it, and the connections too once what is being answered now is written: Envoy keeps them, and would go on
        asking a gate that is no more."""
        if self._server is not None:
            self._server.close()
            self._server = None
            asyncio.get_running_loop().call_soon(self._hang_up)

    def _hang_up(self) -> None:
        for connection in list(self._connections):
            connection.close()


class _Connection(asyncio.Protocol):
    def __init__(self, ask: Ask, connections: set[_Connection]) -> None:
        self._ask = ask
        self._connections = connections
        self._buffer = bytearray()
        self._cancel: Callable[[], None] | None = None
        self._transport: asyncio.Transport | None = None
        self._busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports for Unix sockets do not derive from asyncio.Transport, so the type cannot be asserted
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)

    def close(self) -> None:
        """Write what is to be written, then hang up."""
        if self._transport is not None:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._transport = None
        if self._cancel is not None:
            self._cancel()
            self._cancel = None

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._busy:
            self._next()

    def _next(self) -> None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > LONGEST_HEAD and self._transport is not None:
                self._transport.close()
            return
        words = bytes(self._buffer[: self._buffer.find(b"\r\n")]).split(b" ")
        del self._buffer[: end + 4]
        self._busy = True
        if len(words) != 3 or words[0] != b"GET":
            self._reply(HTTPStatus.BAD_REQUEST, "", {})
            return
        cancel = self._ask(words[1].decode("latin-1"), self._reply)
        if self._busy:
            self._cancel = cancel

    def _reply(self, status: int, body: str, headers: Mapping[str, str]) -> None:
        self._cancel = None
        if self._transport is None:
            return
        payload = body.encode()
        lines = [f"HTTP/1.1 {int(status)} {HTTPStatus(status).phrase}", f"content-length: {len(payload)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._transport.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + payload)
        self._busy = False
        if self._buffer:
            self._next()
