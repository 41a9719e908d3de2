"""The one gRPC server of Sampan: methods over bytes, on whichever implementation this machine has.

A `Method` is a path, a kind and a handler that gets the request's bytes and a `Call` to answer. `GrpcServer` serves a set of
them on one listening socket, TLS and plaintext alike (see ``kernel.sniff``). Where its wheel exists, unary and
server-streaming methods run on pygrpc-native, whose HTTP/2 work happens outside the GIL and which hands calls over in batches
(six times grpc.aio on one core); bidirectional methods, and everything elsewhere, run on grpc.aio. Nothing above this module can tell.

Handlers of the hot kinds are plain functions, not coroutines, because a task a call costs more than many calls do; they may
answer later from anywhere on the loop. `unary` and `server_stream` wrap a coroutine and protobuf messages for the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import socket
import ssl
import tempfile
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from sampan.kernel.clock import Clock
from sampan.kernel.sniff import SniffingListener
from sampan.kernel.tasks import Tasks

log = logging.getLogger(__name__)

OK, CANCELLED, UNKNOWN, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND = 0, 1, 2, 3, 4, 5
PERMISSION_DENIED, RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, UNAUTHENTICATED = 7, 8, 12, 13, 14, 16

MAX_MESSAGE = 130 << 20
STREAM_FULL, STREAM_CLOSED = 1, 2
"""What the native server answers when a stream has no room, or no client any more."""
RETRIES = 50
"""Turns of the loop a full stream is tried again before a thread waits for its client."""
BATCH = 256
"""Calls taken over from the native server at a time."""


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

    __slots__ = ("deadline", "metadata", "on_cancel", "peer")

    def __init__(self, metadata: dict[str, str], peer: str, deadline: float | None) -> None:
        self.metadata = metadata
        """Lower-case names; binary headers are left out."""
        self.peer = peer
        self.deadline = deadline
        """Seconds the client gave the call at its arrival; None: as long as it takes."""
        self.on_cancel: Callable[[], object] | None = None
        """Called when the client gives up or goes away."""

    def respond(self, payload: bytes) -> bool:
        """Answer a unary call; False when nobody waits for it any more."""
        raise NotImplementedError

    def send(self, payload: bytes) -> bool:
        """Send one message of a stream, buffering what the client does not take yet; False when the client is gone."""
        raise NotImplementedError

    def end(self) -> None:
        """End a stream with status OK."""
        raise NotImplementedError

    def fail(self, code: int, message: str) -> None:
        """End the call with another status."""
        raise NotImplementedError


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
        native: bool = True,
    ) -> None:
        """``tls`` makes the server's context when the first TLS client comes (ALPN ``h2`` is added); None: plaintext only."""
        self._methods = list(methods)
        self._clock = clock
        self._tasks = tasks
        self._tls = tls
        self._max_message = max_message
        self._native = native
        self._front: Any = None
        self._table: list[Method] = []
        self._calls: dict[int, _NativeCall] = {}
        self._aio: Any = None
        self._sockets: Path | None = None
        self._listener: SniffingListener | None = None
        self._stopping = False

    @property
    def native(self) -> bool:
        """Whether the hot kinds run on pygrpc-native."""
        return self._front is not None

    async def start(self, listener: socket.socket) -> None:
        """Serve on a listening socket, which is the server's from now on."""
        self._sockets = Path(tempfile.mkdtemp(prefix="sampan-grpc-"))
        target = f"{self._sockets}/native"
        front_type = _native_front() if self._native else None
        if front_type is not None:
            self._front = front_type(
                f"unix:{target}",
                [],
                io_threads=1,
                call_details=True,
                delay_stream_headers=True,
                max_metadata_size=64 << 10,
                max_concurrent_streams=4096,
            )
            self._table = [method for method in self._methods if method.kind != "bidirectional"]
            self._front.add_methods([(method.path, method.kind == "stream") for method in self._table])
        rest = [method for method in self._methods if self._front is None or method.kind == "bidirectional"]
        if rest:
            target_aio = f"{self._sockets}/aio"
            await self._start_aio(rest, target_aio)
            if self._front is None:
                target = target_aio
            else:
                self._front.set_fallback(target_aio)
        if self._front is not None:
            self._front.start()
            loop = asyncio.get_running_loop()
            threading.Thread(target=self._take, args=(loop,), name="grpc-calls", daemon=True).start()
        self._listener = SniffingListener(
            listener, target, clock=self._clock, tasks=self._tasks, tls=self._secure if self._tls else None
        )
        self._listener.start()

    async def stop(self, grace: float = 0.2) -> None:
        """Stop: no new connections, ``grace`` seconds for the calls under way, then everything is closed."""
        self._stopping = True
        if self._listener is not None:
            self._listener.close()
        if self._aio is not None:
            await self._aio.stop(grace)
        if self._front is not None:
            await asyncio.to_thread(self._front.close)
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)

    @property
    def connections(self) -> int:
        """Connections open now."""
        return self._listener.connections if self._listener is not None else 0

    def _secure(self) -> ssl.SSLContext:
        assert self._tls is not None
        context = self._tls()
        context.set_alpn_protocols(["h2"])
        return context

    # -- pygrpc-native

    def _take(self, loop: asyncio.AbstractEventLoop) -> None:
        front = self._front
        while (events := front.recv_batch_details(BATCH)) is not None:
            try:
                loop.call_soon_threadsafe(self._on_events, events)
            except RuntimeError:
                front.close()  # the loop is gone
                return

    def _on_events(self, events: list[tuple[Any, ...]]) -> None:
        calls, table, front = self._calls, self._table, self._front
        for kind, call_id, method_id, payload, _, details in events:
            if kind != 0:
                call = calls.pop(call_id, None)
                if call is not None and call.on_cancel is not None:
                    call.on_cancel()
                continue
            if self._stopping:
                front.fail(call_id, UNAVAILABLE, "the server is shutting down")
                continue
            method = table[method_id]
            if len(payload) > self._max_message:
                front.fail(call_id, RESOURCE_EXHAUSTED, f"the request is larger than {self._max_message} bytes")
                continue
            call = calls[call_id] = _NativeCall(self, call_id, dict(details[0]), details[1], details[2])
            try:
                method.handler(payload, call)
            except Exception as error:
                _fail(method.path, call, error)

    # -- grpc.aio

    async def _start_aio(self, methods: list[Method], path: str) -> None:
        import grpc
        from grpc import aio

        options = [
            ("grpc.max_receive_message_length", self._max_message),
            ("grpc.max_send_message_length", -1),
            ("grpc.http2.min_ping_interval_without_data_ms", 1000),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.max_metadata_size", 64 << 10),
        ]
        server = aio.server(options=options)
        services: dict[str, dict[str, Any]] = {}
        for method in methods:
            service, name = method.path[1:].split("/")
            services.setdefault(service, {})[name] = _aio_handler(method, grpc, self._tasks)
        for service, handlers in services.items():
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        self._aio = server


class _NativeCall(Call):
    __slots__ = ("_backlog", "_ended", "_id", "_retries", "_server")

    def __init__(
        self, server: GrpcServer, id: int, metadata: dict[str, str], peer: str, deadline: float | None
    ) -> None:
        super().__init__(metadata, peer, deadline)
        self._server = server
        self._id = id
        self._backlog: deque[bytes] | None = None
        self._retries = 0
        self._ended = False

    def respond(self, payload: bytes) -> bool:
        if self._server._calls.pop(self._id, None) is None:
            return False
        answered: bool = self._server._front.respond(self._id, payload)
        return answered

    def send(self, payload: bytes) -> bool:
        if self._id not in self._server._calls:
            return False
        if self._backlog is not None:
            self._backlog.append(payload)
            return True
        sent = self._server._front.stream_try_send(self._id, payload)
        if sent == STREAM_FULL:
            self._backlog = deque((payload,))
            self._retries = 0
            asyncio.get_running_loop().call_soon(self._retry)
        return bool(sent != STREAM_CLOSED)

    def end(self) -> None:
        self._ended = True
        if self._backlog is None and self._server._calls.pop(self._id, None) is not None:
            self._server._front.stream_end(self._id)

    def fail(self, code: int, message: str) -> None:
        if self._server._calls.pop(self._id, None) is not None:
            self._server._front.fail(self._id, code, message)

    def _retry(self) -> None:
        """Send on: the native server holds few messages of a stream at a time, and is mostly ready again a moment later."""
        backlog, front = self._backlog, self._server._front
        while backlog and self._id in self._server._calls:
            sent = front.stream_try_send(self._id, backlog[0])
            if sent == STREAM_FULL:
                self._retries += 1
                if self._retries > RETRIES:
                    self._server._tasks.start("grpc backlog", self._drain())
                else:
                    asyncio.get_running_loop().call_soon(self._retry)
                return
            self._retries = 0
            if sent == STREAM_CLOSED:
                self._server._calls.pop(self._id, None)
            backlog.popleft()
        self._drained()

    async def _drain(self) -> None:
        """Send what the client is too slow for, waiting for room in a thread."""
        backlog, front = self._backlog or deque(), self._server._front

        def send_all() -> bool:
            return all(front.stream_send(self._id, backlog.popleft()) for _ in range(len(backlog)))

        while backlog and self._id in self._server._calls:
            if not await asyncio.to_thread(send_all):
                self._server._calls.pop(self._id, None)
        self._drained()

    def _drained(self) -> None:
        self._backlog = None
        if self._ended:
            self.end()


class _AioCall(Call):
    __slots__ = ("_answer", "_context", "_queue")

    def __init__(self, context: Any) -> None:
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        remaining = context.time_remaining()
        super().__init__(metadata, context.peer(), remaining if remaining and remaining < 1e8 else None)
        self._context = context
        self._answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._queue: asyncio.Queue[bytes | GrpcError | None] = asyncio.Queue()

    def respond(self, payload: bytes) -> bool:
        if self._answer.done():
            return False
        self._answer.set_result(payload)
        return True

    def send(self, payload: bytes) -> bool:
        if self._answer.done():
            return False
        self._queue.put_nowait(payload)
        return True

    def end(self) -> None:
        self._queue.put_nowait(None)

    def fail(self, code: int, message: str) -> None:
        error = GrpcError(code, message)
        self._queue.put_nowait(error)
        if not self._answer.done():
            self._answer.set_exception(error)
            self._answer.exception()

    def gone(self) -> None:
        if not self._answer.done():
            self._answer.cancel()
            if self.on_cancel is not None:
                self.on_cancel()


def _aio_handler(method: Method, grpc: Any, tasks: Tasks) -> Any:
    codes = {code.value[0]: code for code in grpc.StatusCode}

    async def answer(payload: bytes, context: Any) -> bytes:
        call = _AioCall(context)
        try:
            method.handler(payload, call)  # type: ignore[misc]
        except Exception as error:
            _fail(method.path, call, error)
        try:
            return await call._answer
        except GrpcError as error:
            await context.abort(codes[error.code], str(error))
            raise
        finally:
            call.gone()

    async def stream(payload: bytes, context: Any) -> AsyncIterator[bytes]:
        call = _AioCall(context)
        try:
            method.handler(payload, call)  # type: ignore[misc]
            while (item := await call._queue.get()) is not None:
                if isinstance(item, GrpcError):
                    await context.abort(codes[item.code], str(item))
                else:
                    yield item
            call._answer.cancel()
        finally:
            call.gone()

    async def converse(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        call = _AioCall(context)
        assert method.bidirectional is not None
        try:
            async with contextlib.aclosing(method.bidirectional(requests, call)) as replies:  # type: ignore[type-var]
                async for reply in replies:
                    yield reply
        except GrpcError as error:
            await context.abort(codes[error.code], str(error))
        finally:
            call.gone()

    if method.kind == "unary":
        return grpc.unary_unary_rpc_method_handler(answer)
    if method.kind == "stream":
        return grpc.unary_stream_rpc_method_handler(stream)
    return grpc.stream_stream_rpc_method_handler(converse)


def _native_front() -> Any:
    try:
        from pygrpc_native._native import NativeGrpcFront
    except ImportError:
        return None
    return NativeGrpcFront
