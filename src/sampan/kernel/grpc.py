"""The one gRPC server of Sampan: methods over bytes, on our own HTTP/2 (``kernel.http2``), in the loop's thread.

A `Method` is a path, a kind and a handler that gets the request's bytes and a `Call` to answer. `GrpcServer` serves a set of
them on one listening socket, TLS and plaintext alike (see ``kernel.sniff``). Nothing lies between the socket and the handler:
no other thread, no other server behind a pipe. That makes a short call cheaper than on any of the gRPC servers for Python,
lets handlers see the client's own address, and lets what many calls answer in one turn of the loop leave in one write.

Handlers of the hot kinds are plain functions, not coroutines, because a task a call costs more than many calls do; they may
answer later from anywhere on the loop. `unary`, `server_stream` and `bidirectional` wrap a coroutine and protobuf messages for
the rest.

What clients can make the server hold is bounded. A request is refused when it, or all unfinished requests together, grow too
large. A client that does not read its answers is not read from either and gets no more calls, and handlers can ask
(`Call.congested`) before they produce more for it. Connections without a call are closed after a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import struct
import threading
import urllib.parse
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal, Protocol, TypeVar, cast

from sampan.kernel import http2
from sampan.kernel.clock import Clock, Timer
from sampan.kernel.sniff import Peer, SniffingListener
from sampan.kernel.tasks import Tasks

log = logging.getLogger(__name__)

OK, CANCELLED, UNKNOWN, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND = 0, 1, 2, 3, 4, 5
PERMISSION_DENIED, RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, UNAUTHENTICATED = 7, 8, 12, 13, 14, 16

MAX_MESSAGE = 130 << 20
UNFINISHED = 256 << 20
"""Bytes of requests that are not complete yet, over all connections."""
BACKLOG = 4 << 20
"""Bytes a client may be behind before its connection is congested."""
BACKLOG_LIMIT = 16 << 20
"""Bytes a client may be behind before its connection gets no more calls."""
WRITE_BUFFER = 1 << 20
IDLE = 120.0
"""Seconds a connection may be open without a call, as in the reference's servers."""
IDLE_SCANS = 4
"""How often in that time idle connections are looked for."""


class Message(Protocol):
    """What this module needs of a protobuf message."""

    def SerializeToString(self) -> bytes: ...


M = TypeVar("M")


class GrpcError(Exception):
    """Ends a call with a gRPC status other than OK."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Call:
    """One call: what is known of it, and the ways to answer. Answering a finished call has no effect."""

    __slots__ = (
        *("_connection", "_incoming", "_open", "_parts", "_size", "_started", "_stream"),
        *("began", "metadata", "method", "on_cancel", "result"),
    )

    def __init__(self, connection: _Connection, stream: http2.Stream, method: Method, metadata: dict[str, str]) -> None:
        self._connection = connection
        self._stream = stream
        self._open = True
        self._started = False
        self._parts: list[bytes] | None = None
        self._size = 0
        self._incoming: _Incoming | None = None
        self.began = perf_counter()
        self.result = 0
        """What the handler wants to be known of the outcome; for `GrpcServer`'s ``answered``."""
        self.method = method
        self.metadata = metadata
        """Lower-case names; binary headers are left out. Shared between calls: not to be changed."""
        self.on_cancel: Callable[[], object] | None = None
        """Called when the client gives up or goes away."""

    @property
    def peer(self) -> Peer:
        """The client's address; what its PROXY header says, where the server believes those."""
        return self._connection.peer

    @property
    def deadline(self) -> float | None:
        """Seconds the client gave the call at its arrival; None: as long as it takes."""
        text = self.metadata.get("grpc-timeout")
        return _timeout(text) if text else None

    @property
    def congested(self) -> bool:
        """Whether the client is far behind with reading what it asked for."""
        connection = self._connection
        return connection.paused or connection.http2.waiting > BACKLOG

    def respond(self, payload: bytes) -> bool:
        """Answer a unary call; False when nobody waits for it any more."""
        if not self._open:
            return False
        self._open = False
        connection = self._connection
        connection.answered(self, perf_counter() - self.began)
        connection.http2.respond(self._stream, _HEAD, _PREFIX.pack(0, len(payload)) + payload, _DONE)
        self._let_go()
        connection.flush_soon()
        return True

    def send(self, *payloads: bytes) -> bool:
        """Send messages of a stream, buffering what the client does not take yet; False when the client is gone."""
        if not self._open:
            return False
        connection = self._connection
        if not self._started:
            self._started = True
            connection.http2.begin(self._stream, _HEAD)
        pieces: list[bytes] = []
        for payload in payloads:
            pieces += (_PREFIX.pack(0, len(payload)), payload)
        connection.http2.send(self._stream, b"".join(pieces))
        connection.flush_soon()
        return True

    def flush(self) -> None:
        """Write what was sent now, not at the end of this turn of the loop: for what must overtake everything else."""
        self._connection.flush()

    def end(self) -> None:
        """End a stream with status OK."""
        if self._open:
            self._finish(_DONE if self._started else _EMPTY)

    def fail(self, code: int, message: str) -> None:
        """End the call with another status."""
        if self._open:
            self._finish(_status(code, message, alone=not self._started))

    def abort(self, code: int, message: str) -> None:
        """`fail` a call that is under way, and stop its handler as if the client had gone."""
        cancel = self.on_cancel
        self.fail(code, message)
        if cancel is not None:
            cancel()

    async def drained(self) -> None:
        """Wait until the client is no longer far behind, or gone."""
        while self._open and self.congested:
            await self._connection.room()

    def _finish(self, block: bytes) -> None:
        self._open = False
        self._connection.answered(self, perf_counter() - self.began)
        self._connection.http2.finish(self._stream, block)
        self._let_go()
        self._connection.flush_soon()

    def _gone(self) -> None:
        if self._open:
            self._open = False
            cancel = self.on_cancel
            self._let_go()
            if cancel is not None:
                cancel()

    def _let_go(self) -> None:
        """Refer to nothing that refers to this call, so that it goes at once: collecting thousands of calls, each a cycle with its
        request, holds everything up for milliseconds."""
        del self._stream
        self.on_cancel = None


Handler = Callable[[bytes, Call], None]
Bidirectional = Callable[[AsyncIterator[bytes], Call], AsyncIterator[bytes]]


@dataclass(frozen=True, slots=True)
class Method:
    """One served method."""

    path: str
    kind: Literal["unary", "stream", "bidirectional"]
    handler: Handler | None = None
    bidirectional: Bidirectional | None = None


def unary(
    path: str, request: Any, handler: Callable[[Any, Call], Coroutine[Any, Any, Message]], tasks: Tasks
) -> Method:
    """A unary method from a coroutine over protobuf messages (``request`` is the message class)."""

    async def run(payload: bytes, call: Call) -> None:
        try:
            call.respond((await handler(request.FromString(payload), call)).SerializeToString())
        except Exception as error:
            _fail(path, call, error)

    def begin(payload: bytes, call: Call) -> None:
        task = tasks.start(path, run(payload, call))
        call.on_cancel = task.cancel

    return Method(path, "unary", begin)


def server_stream(
    path: str, request: Any, handler: Callable[[Any, Call], AsyncIterator[Message]], tasks: Tasks
) -> Method:
    """A server-streaming method from an asynchronous generator over protobuf messages."""

    async def run(payload: bytes, call: Call) -> None:
        try:
            async for message in handler(request.FromString(payload), call):
                if not call.send(message.SerializeToString()):
                    return
                await call.drained()
            call.end()
        except Exception as error:
            _fail(path, call, error)

    def begin(payload: bytes, call: Call) -> None:
        task = tasks.start(path, run(payload, call))
        call.on_cancel = task.cancel

    return Method(path, "stream", begin)


def bidirectional(
    path: str, request: Any, handler: Callable[[AsyncIterator[Any], Call], AsyncIterator[Message]]
) -> Method:
    """A bidirectional (or client-streaming) method from an asynchronous generator over protobuf messages."""

    async def run(payloads: AsyncIterator[bytes], call: Call) -> AsyncIterator[bytes]:
        async def parsed() -> AsyncIterator[Any]:
            async for payload in payloads:
                yield request.FromString(payload)

        async for message in handler(parsed(), call):
            yield message.SerializeToString()

    return Method(path, "bidirectional", bidirectional=run)


def _fail(path: str, call: Call, error: Exception) -> None:
    if isinstance(error, GrpcError):
        call.fail(error.code, str(error))
    elif type(error).__name__ == "DecodeError":
        call.fail(INVALID_ARGUMENT, "the request cannot be parsed")
    else:
        log.exception("%s failed", path, exc_info=error)
        call.fail(INTERNAL, "internal error; see the server's log")


class GrpcServer:
    """Serves methods on one socket."""

    def __init__(
        self,
        methods: Iterable[Method],
        *,
        clock: Clock,
        tasks: Tasks,
        tls: Callable[[], ssl.SSLContext] | None = None,
        max_message: int = MAX_MESSAGE,
        proxy_protocol: bool = False,
        answered: Callable[[Call, float], object] = lambda call, seconds: None,
    ) -> None:
        """``tls`` makes the server's context when the first TLS client comes (ALPN ``h2`` is added); None: plaintext only.

        ``proxy_protocol``: take a connection's HAProxy PROXY header (version 1 or 2), where it has one, for the client's
        address. ``answered`` hears of every answered call and how long it took.
        """
        self.answered = answered
        self.methods = {method.path: method for method in methods}
        self.max_message = max_message
        self.tasks = tasks
        self.stopping = False
        self.unfinished = 0
        """Bytes of requests that are not complete yet."""
        self.open: set[_Connection] = set()
        self._clock = clock
        self._tls = tls
        self._proxy_protocol = proxy_protocol
        self._listener: SniffingListener | None = None
        self._scan: Timer | None = None

    async def start(self, listener: socket.socket) -> None:
        """Serve on a listening socket (TCP or Unix), which is the server's from now on."""
        self._listener = SniffingListener(
            listener,
            lambda peer: _Connection(self, peer),
            clock=self._clock,
            tasks=self.tasks,
            tls=self._secure if self._tls else None,
            open_now=lambda: len(self.open),
            proxy_protocol=self._proxy_protocol,
        )
        self._listener.start()
        self._scan = self._clock.call_later(IDLE / IDLE_SCANS, self._close_idle)

    async def stop(self, grace: float = 0.2) -> None:
        """Stop: no new connections and calls, ``grace`` seconds for the unary calls under way, then everything is closed."""
        if self.stopping:
            return
        self.stopping = True
        if self._scan is not None:
            self._scan.cancel()
        if self._listener is not None:
            self._listener.close()
        finished = threading.Event()
        for connection in self.open:
            connection.leave(lambda: self._answered(finished))
        if not self._answered(finished):
            # by the machine's time, not the clock's: a clock that stands still must not keep the server from stopping
            await asyncio.to_thread(finished.wait, grace)
        for connection in list(self.open):
            connection.abandon()

    def _answered(self, finished: threading.Event) -> bool:
        if any(connection.busy for connection in self.open):
            return False
        finished.set()
        return True

    @property
    def connections(self) -> int:
        """Connections open now."""
        return len(self.open)

    def _secure(self) -> ssl.SSLContext:
        assert self._tls is not None
        context = self._tls()
        context.set_alpn_protocols(["h2"])
        return context

    def _close_idle(self) -> None:
        for connection in list(self.open):
            connection.scan()
        self._scan = self._clock.call_later(IDLE / IDLE_SCANS, self._close_idle)


class _Connection(asyncio.Protocol):
    """One client's connection: its bytes to the HTTP/2 state machine, its requests to the handlers."""

    def __init__(self, server: GrpcServer, peer: Peer) -> None:
        self.http2 = http2.Connection()
        self.peer = peer
        self.paused = False
        self._server = server
        self._methods = server.methods
        self.answered = server.answered
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._flushing = False
        self._unfinished = 0
        self._active = True
        self._idle_scans = 0
        self._waiters: list[asyncio.Future[None]] = []
        self._on_answered: Callable[[], object] | None = None

    # -- the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's
        self._transport = transport = cast(asyncio.Transport, transport)
        transport.set_write_buffer_limits(WRITE_BUFFER)
        if self._server.stopping:
            transport.abort()
            return
        self._server.open.add(self)
        self.flush()

    def data_received(self, data: bytes) -> None:
        self._active = True
        connection = self.http2
        for kind, stream, value, ended in connection.receive(data):
            if kind == http2.REQUEST:
                self._begin(stream, value, ended)
            elif kind == http2.BODY:
                call = stream.owner
                if call is None:
                    continue
                if call._incoming is not None:
                    call._incoming.feed(value, ended)
                elif ended and call._parts is None and value[:1] == b"\0" and _whole(value):
                    self._run(call, value[5:])
                else:
                    self._collect(stream, call, value, ended)
            elif stream.owner is not None:
                self._forget(stream.owner)
                stream.owner._gone()
        if self._waiters and not self.paused:
            self._wake()
        self.flush()

    def pause_writing(self) -> None:
        self.paused = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self.paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
            self.flush()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self._server.open.discard(self)
        self._server.unfinished -= self._unfinished
        self._unfinished = 0
        self._transport = None
        self.http2.closed = True
        for stream in list(self.http2.streams.values()):
            if stream.owner is not None:
                stream.owner._gone()
        self.http2.streams.clear()
        self._wake()
        if self._on_answered is not None:
            self._on_answered()

    def flush_soon(self) -> None:
        """Write once this turn of the loop is over, so that one write serves everything answered in it."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        self._flushing = False
        transport = self._transport
        if transport is None:
            return
        if self.paused:
            if self.http2.closed:
                transport.abort()
            return
        data = self.http2.take()
        if data:
            transport.write(data)
        if self.http2.closed:
            transport.close()
        elif self._on_answered is not None:
            self._on_answered()

    async def room(self) -> None:
        """Wait for a sign that the client has read something, or is gone."""
        if self._transport is not None:
            future: asyncio.Future[None] = self._loop.create_future()
            self._waiters.append(future)
            await future

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # -- the end

    @property
    def busy(self) -> bool:
        """Whether a unary call is under way."""
        return any(
            stream.owner is not None and stream.owner.method.kind == "unary" for stream in self.http2.streams.values()
        )

    def leave(self, on_answered: Callable[[], object]) -> None:
        """Take no new calls; hear whenever something was answered."""
        self._on_answered = on_answered
        self.http2.go_away()
        self.flush_soon()

    def abandon(self) -> None:
        """Give up what is open and hang up."""
        for stream in list(self.http2.streams.values()):
            call = stream.owner
            if call is not None and call._open:
                call.abort(UNAVAILABLE, "the server is shutting down")
        self.http2.closed = True
        self.flush()

    def scan(self) -> None:
        """Close the connection when it had no call for too long."""
        if self._active or self.http2.streams:
            self._active, self._idle_scans = False, 0
            return
        self._idle_scans += 1
        if self._idle_scans >= IDLE_SCANS:
            self.http2.go_away()
            self.http2.closed = True
            self.flush_soon()

    # -- requests

    def _begin(self, stream: http2.Stream, headers: dict[str, str], ended: bool) -> None:
        if not headers.get("content-type", "").startswith("application/grpc"):
            self.http2.finish(stream, _UNSUPPORTED)
            return
        method = self._methods.get(headers[":path"])
        if method is None:
            self.http2.finish(stream, _status(UNIMPLEMENTED, f"there is no method {headers[':path']}", alone=True))
            return
        if self._server.stopping:
            self.http2.finish(stream, _status(UNAVAILABLE, "the server is shutting down", alone=True))
            return
        if self.http2.waiting > BACKLOG_LIMIT:
            text = "read what earlier calls answered before making more"
            self.http2.finish(stream, _status(RESOURCE_EXHAUSTED, text, alone=True))
            return
        call = stream.owner = Call(self, stream, method, headers)
        if method.bidirectional is not None:
            call._incoming = _Incoming(self, stream, self._server.max_message, headers)
            task = self._server.tasks.start(method.path, self._converse(method.bidirectional, call._incoming, call))
            call.on_cancel = task.cancel
            if ended:
                call._incoming.feed(b"", ended)
        elif ended:
            call.fail(INTERNAL, "the request has no message")

    def _run(self, call: Call, payload: bytes) -> None:
        try:
            call.method.handler(payload, call)  # type: ignore[misc]
        except Exception as error:
            _fail(call.method.path, call, error)

    def _collect(self, stream: http2.Stream, call: Call, data: bytes, ended: bool) -> None:
        """A message that does not come in one piece, is compressed or malformed."""
        if not call._open:
            return
        parts = call._parts
        if parts is None:
            parts = call._parts = []
        parts.append(data)
        call._size += len(data)
        self._unfinished += len(data)
        self._server.unfinished += len(data)
        if call._size > self._server.max_message + 5 or self._server.unfinished > UNFINISHED:
            self._forget(call)
            call.fail(RESOURCE_EXHAUSTED, f"the request is larger than {self._server.max_message} bytes")
            return
        if not ended:
            self.http2.give_room(stream)
            return
        whole = b"".join(parts)
        self._forget(call)
        try:
            payload = _unframed(whole, call.metadata.get("grpc-encoding", ""), self._server.max_message)
        except GrpcError as error:
            call.fail(error.code, str(error))
            return
        self._run(call, payload)

    def _forget(self, call: Call) -> None:
        self._unfinished -= call._size
        self._server.unfinished -= call._size
        call._size = 0
        call._parts = []

    async def _converse(self, handler: Bidirectional, incoming: _Incoming, call: Call) -> None:
        try:
            async with contextlib.aclosing(handler(incoming, call)) as replies:  # type: ignore[type-var]
                async for reply in replies:
                    if not call.send(reply):
                        return
                    await call.drained()
            call.end()
        except Exception as error:
            _fail(call.method.path, call, error)


class _Incoming:
    """The messages of a client's stream, one after another; the client gets room as they are taken."""

    def __init__(self, connection: _Connection, stream: http2.Stream, limit: int, headers: dict[str, str]) -> None:
        self._connection = connection
        self._stream = stream
        self._limit = limit
        self._encoding = headers.get("grpc-encoding", "")
        self._buffer = bytearray()
        self._messages: deque[bytes | GrpcError] = deque()
        """As they came, in their frames."""
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    def feed(self, data: bytes, ended: bool) -> None:
        buffer = self._buffer
        buffer += data
        self._ended = self._ended or ended
        while len(buffer) >= 5:
            size = int.from_bytes(buffer[1:5], "big")
            if size > self._limit:
                self._messages.append(GrpcError(RESOURCE_EXHAUSTED, f"a message is larger than {self._limit} bytes"))
                buffer.clear()
                self._ended = True
                break
            if len(buffer) < 5 + size:
                if not self._messages:  # no message will come of less; where some wait, taking them gives room
                    self._connection.http2.give_room(self._stream)
                break
            self._messages.append(bytes(buffer[: 5 + size]))
            del buffer[: 5 + size]
        if (self._messages or self._ended) and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> _Incoming:
        return self

    async def __anext__(self) -> bytes:
        while not self._messages:
            if self._ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        message = self._messages.popleft()
        if isinstance(message, GrpcError):
            raise message
        self._connection.http2.give_room(self._stream)
        self._connection.flush_soon()
        # only now: of a few bytes a compressed one may become the largest there is
        return _unframed(message, self._encoding, self._limit)


# -- gRPC's framing


def _whole(data: bytes) -> bool:
    return len(data) >= 5 and int.from_bytes(data[1:5], "big") == len(data) - 5


def _unframed(data: bytes, encoding: str, limit: int) -> bytes:
    """The one message of a request's body."""
    if not _whole(data) or data[0] > 1:
        raise GrpcError(INTERNAL, "the request is not one message")
    if not data[0]:
        return data[5:]
    if encoding != "gzip":
        raise GrpcError(UNIMPLEMENTED, f"messages compressed with {encoding or 'nothing'} are not understood; gzip is")
    unzip = zlib.decompressobj(wbits=31)
    try:
        payload = unzip.decompress(data[5:], limit)
    except zlib.error as error:
        raise GrpcError(INTERNAL, f"a compressed message cannot be read: {error}") from None
    if unzip.unconsumed_tail:
        raise GrpcError(RESOURCE_EXHAUSTED, f"the request is larger than {limit} bytes")
    return payload


_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


def _timeout(text: str) -> float | None:
    unit = _UNITS.get(text[-1])
    return int(text[:-1]) * unit if unit is not None and text[:-1].isdecimal() and len(text) <= 9 else None


def _literal(name: str, value: str) -> bytes:
    """A header that touches no compression state."""
    return b"\x00" + _string(name) + _string(value)


def _string(text: str) -> bytes:
    data = text.encode()
    if len(data) < 127:
        return bytes((len(data),)) + data
    rest, size = len(data) - 127, bytearray(b"\x7f")
    while rest >= 128:
        size.append(rest & 127 | 128)
        rest >>= 7
    size.append(rest)
    return bytes(size) + data


def _status(code: int, message: str, *, alone: bool) -> bytes:
    """The trailers (or, ``alone``, the only header block) of a call that failed."""
    text = urllib.parse.quote(message[:1024], safe=" !\"#$&'()*+,-./:;<=>?@[]^_`{|}~")
    return (_HEAD if alone else b"") + _literal("grpc-status", str(code)) + _literal("grpc-message", text)


_PREFIX = struct.Struct(">BI")
_HEAD = b"\x88" + _literal("content-type", "application/grpc")
_DONE = _literal("grpc-status", "0")
_EMPTY = _HEAD + _DONE
_UNSUPPORTED = _literal(":status", "415")
