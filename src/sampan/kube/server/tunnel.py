"""Raw byte tunnels: a request that asks for an upgrade is replayed to a backend, and both connections are joined.

The API server takes no part in what flows (WebSocket, SPDY, or anything else the two ends agree on). Until the backend has
answered 101 nothing is given up: any other answer comes back as an ordinary response.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Iterable, Mapping
from typing import Any

from aiohttp import web

from sampan.kernel.clock import Clock
from sampan.kernel.departure import reset, until_left
from sampan.kernel.tasks import Tasks
from sampan.kube.server.relay import travels
from sampan.kube.status import ApiError, internal

HEAD_LIMIT = 64 * 1024
"""Bytes of a backend's response head."""
BODY_LIMIT = 1024 * 1024
"""Bytes of a refusal's body that are read."""
ANSWER_SECONDS = 30.0
"""Seconds a backend has to answer an upgrade."""
BUFFER_LIMIT = 256 * 1024
"""Bytes that may wait for the slower end before the faster one is paused."""

_DROPPED = frozenset({"host", "authorization", "content-length", "transfer-encoding", "cookie"})


class Backend:
    """Where to connect."""

    __slots__ = ("context", "host", "port", "server_name")

    def __init__(self, host: str, port: int, context: ssl.SSLContext | None, server_name: str | None = None) -> None:
        self.host = host
        self.port = port
        self.context = context
        self.server_name = server_name

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection.

        Raises:
            ApiError: 500, it cannot be reached.
        """
        try:
            name = (self.server_name or self.host) if self.context is not None else None
            return await asyncio.open_connection(self.host, self.port, ssl=self.context, server_hostname=name)
        except OSError as error:
            raise internal(f"error dialing backend: dial tcp {self}: {dial_problem(error)}") from None


def dial_problem(error: OSError) -> str:
    """Why a connection could not be opened, in Go's words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"tls: failed to verify certificate: {error.verify_message} (a node of an earlier version has to be started "
            "again, or to join again with a token)"
        )
    return f"connect: {os.strerror(error.errno).lower()}" if error.errno else str(error)


class Tunnelled(web.StreamResponse):
    """Stands for a response that has already been written to the connection."""

    def __init__(self) -> None:
        super().__init__(status=101)
        self.force_close()

    async def prepare(self, request: web.BaseRequest) -> Any:
        """Nothing: the head is the backend's."""
        return None

    async def write_eof(self, data: bytes | bytearray | memoryview = b"") -> None:
        """Nothing: the end is the connection's."""


def wants_upgrade(request: web.BaseRequest) -> bool:
    """The client asks to leave HTTP."""
    return "upgrade" in request.headers.get("Connection", "").lower() and "Upgrade" in request.headers


async def tunnel(
    request: web.BaseRequest,
    backend: Backend,
    path: str,
    clock: Clock,
    *,
    headers: Iterable[tuple[str, str]] = (),
    keep_authorization: bool = False,
) -> web.StreamResponse:
    """Replay an upgrade request to ``path`` of a backend and join the connections until either ends.

    Raises:
        ApiError: the backend cannot be reached or does not answer.
    """
    reader, writer = await backend.connect()
    try:
        writer.write(_head(request, backend, path, headers, keep_authorization))
        async with clock.patience(ANSWER_SECONDS):
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        if status != 101:
            return await _refusal(reader, head, status, clock)
        await _join(request, reader, writer, head, clock)
        return Tunnelled()
    except TimeoutError:
        raise internal(f"error dialing backend: {backend} did not answer in time") from None
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, IndexError):
        raise internal(f"unable to upgrade connection: {backend} gave no valid response") from None
    finally:
        writer.close()


def _head(
    request: web.BaseRequest,
    backend: Backend,
    path: str,
    headers: Iterable[tuple[str, str]],
    keep_authorization: bool,
) -> bytes:
    lines = [f"{request.method} {path} HTTP/1.1", f"Host: {backend}"]
    for name, value in request.headers.items():
        lowered = name.lower()
        if not travels(name):
            continue
        if lowered not in _DROPPED or (keep_authorization and lowered == "authorization"):
            lines.append(f"{name}: {value}")
    lines += [f"{name}: {value}" for name, value in headers]
    if request.method != "GET":
        lines.append("Content-Length: 0")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")


async def _refusal(reader: asyncio.StreamReader, head: bytes, status: int, clock: Clock) -> web.StreamResponse:
    """The backend's ordinary answer."""
    fields: dict[str, str] = {}
    for line in head.decode("latin-1").split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            fields[name.strip().lower()] = value.strip()
    length = fields.get("content-length", "")
    async with clock.patience(ANSWER_SECONDS):
        if length.isdecimal():
            body = await reader.readexactly(min(int(length), BODY_LIMIT))
        elif "chunked" in fields.get("transfer-encoding", ""):
            body = await _chunked(reader)
        else:
            body = await reader.read(BODY_LIMIT)
    kind = fields.get("content-type", "text/plain")
    return web.Response(body=body, status=status, headers={"Content-Type": kind})


async def _chunked(reader: asyncio.StreamReader) -> bytes:
    blocks: list[bytes] = []
    size = 0
    while size < BODY_LIMIT:
        length = int((await reader.readline()).split(b";")[0], 16)
        if not length:
            break
        blocks.append(await reader.readexactly(length))
        size += length
        await reader.readexactly(2)
    return b"".join(blocks)


class _Client(asyncio.Protocol):
    """The client's end: what arrives goes to the backend."""

    def __init__(self, transport: asyncio.Transport, writer: asyncio.StreamWriter, before: Any) -> None:
        self._transport = transport
        self._writer = writer
        self._before = before
        self.closed = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()
        self._drained = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        if self._writer.is_closing():
            return
        self._writer.write(data)
        if self._writer.transport.get_write_buffer_size() > BUFFER_LIMIT:
            self._transport.pause_reading()
            self._drained.set()

    async def resume(self) -> None:
        """Let a paused client go on whenever the backend has caught up; runs until cancelled."""
        while True:
            await self._drained.wait()
            self._drained.clear()
            try:
                await self._writer.drain()
            except ConnectionError:
                return  # the reading side sees it too, and ends the tunnel
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def eof_received(self) -> bool:
        if self._writer.can_write_eof():
            self._writer.write_eof()
            return True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()
        self.writable.set()
        self._writer.close()
        self._before.connection_lost(exc)


async def _join(
    request: web.BaseRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes, clock: Clock
) -> None:
    transport = request.transport
    if transport is None or transport.is_closing():
        return
    client = _Client(transport, writer, request.protocol)
    transport.set_protocol(client)
    transport.write(head)
    async with Tasks(clock, "tunnel") as tasks:
        tasks.start("resume", client.resume())
        tasks.start("departure", _end_together(transport, writer))
        try:
            while data := await reader.read(65536):
                transport.write(data)
                await client.writable.wait()
                if client.closed.is_set():
                    break
        except ConnectionError:
            pass  # the backend is gone: so is the tunnel
        finally:
            transport.close()


async def _end_together(client: asyncio.Transport, backend: asyncio.StreamWriter) -> None:
    """End both when the client goes while the backend takes nothing: neither is read from then."""
    await until_left(client, Clock())
    reset(backend.transport)
    client.abort()


def error_text(status: int, body: bytes) -> ApiError:
    """What a backend's refusal in plain text is to an API client."""
    text = body.decode("utf-8", "replace").strip()
    reasons: Mapping[int, str] = {400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound"}
    if status in reasons:
        return ApiError(status, reasons[status], text)
    return internal(text or f"the backend answered {status}")
