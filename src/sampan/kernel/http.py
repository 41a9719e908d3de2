"""The one way to serve HTTP: aiohttp on a given socket, with deadlines for slow clients and a graceful end.

A front gives a handler (``async def handle(request) -> response``; routing is its own business) and a listening socket from
the platform's book. `HttpServer` adds what every front needs and none should write again: a client that does not finish its
request head within `HEAD_DEADLINE` is cut off, bodies are read up to a limit and a deadline (`read_body`), and `drain`
stops accepting, lets the requests under way finish, and only then closes.

The deadlines are about clients, who live on the machine's time: fronts give a `Clock` of their own for them, so that neither a
frozen platform waits for a slow client for ever nor a fast one cuts off everybody.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from io import BytesIO
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.http_writer import StreamWriter
from aiohttp.payload import BytesIOPayload

from sampan.kernel.clock import Clock, Timer
from sampan.kernel.errors import SampanError

log = logging.getLogger(__name__)

HEAD_DEADLINE = 15.0
"""Seconds a client has from its first byte (or from connecting) to the end of a request's head, and for a TLS handshake."""
BODY_DEADLINE = 60.0
"""Seconds a client has to send a request's body."""
KEEPALIVE = 90.0
"""Seconds an idle connection is kept open."""
LINGERING = 1.0
"""Seconds to go on reading a refused body, so that the client sees the answer and not a reset."""
LINE_LIMIT = 1024 * 1024
"""Bytes in a request line: a command of ``kubectl exec``, a long selector are in it (upstream's bound of a whole head)."""
FIELD_LIMIT = 64 * 1024
"""Bytes in a header field."""
TAKE_DEADLINE = 60.0
"""Seconds a client has to take a piece of a long answer."""
PIECE = 64 * 1024
"""Bytes of an answer that go to the connection at once. TLS has buffers as large as the largest, and keeps them while it lasts."""
BODY_LIMIT = 3 * 1024 * 1024
"""Bytes in a request body unless a front says otherwise."""

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class BodyTooLargeError(SampanError):
    """A request body is larger than its limit."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the request body is larger than {limit} bytes")
        self.limit = limit


class SlowClientError(SampanError):
    """A client did not send its request body in time."""


class Pieces(BytesIOPayload):
    """A long body that is written, once, as fast as its client takes it; one that stops taking is cut off."""

    def __init__(self, body: bytes, clock: Clock) -> None:
        super().__init__(BytesIO(body))
        self._clock = clock

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """Write the body, or the first ``content_length`` bytes of it.

        Raises:
            ConnectionResetError: the client is gone, or took nothing for `TAKE_DEADLINE`.
        """
        left = self._size if content_length is None else min(content_length, self._size)
        # an answer is kept until the connection's next request, which may never come
        body, self._value = self._value, BytesIO()
        while piece := body.read(min(PIECE, left)):
            left -= len(piece)
            try:
                async with self._clock.timeout(TAKE_DEADLINE):
                    await writer.write(piece)
            except TimeoutError:
                if isinstance(writer, StreamWriter) and writer.transport is not None:
                    writer.transport.abort()  # closing it would wait until what is written is taken
                raise ConnectionResetError("the client takes nothing of the answer") from None


class HttpServer:
    """Serves one handler on one listening socket until `stop`."""

    def __init__(
        self,
        handler: Handler,
        listener: socket.socket,
        clock: Clock,
        *,
        ssl_context: ssl.SSLContext | None = None,
        head_deadline: float = HEAD_DEADLINE,
        cancel_on_disconnect: bool = False,
        backlog: int = 1024,
    ) -> None:
        """``cancel_on_disconnect``: cancel a handler whose client is gone (right for streams that may stay silent)."""
        self._clock = clock
        self._listener = listener
        self._ssl_context = ssl_context
        self._backlog = backlog
        self._server = _Server(handler, clock, head_deadline, cancel_on_disconnect)
        self._accepting: asyncio.Server | None = None

    @property
    def connections(self) -> int:
        """Connections open now."""
        return len(self._server.connections)

    async def start(self) -> None:
        """Begin to accept."""
        loop = asyncio.get_running_loop()
        listener, backlog = self._listener, self._backlog
        tls: dict[str, Any] = {}
        if self._ssl_context is not None:
            tls = {"ssl": self._ssl_context, "ssl_handshake_timeout": HEAD_DEADLINE}
        if listener.family == socket.AF_UNIX:
            self._accepting = await loop.create_unix_server(self._server, sock=listener, backlog=backlog, **tls)
        else:
            self._accepting = await loop.create_server(self._server, sock=listener, backlog=backlog, **tls)

    async def drain(self, seconds: float = 5.0) -> None:
        """Accept no more and close idle connections, then wait up to ``seconds`` for the requests under way."""
        if self._accepting is None:
            return
        self._accepting.close()
        self._server.pre_shutdown()
        await self._server.shutdown(seconds)

    async def stop(self) -> None:
        """Close everything at once; after `drain` nothing is cut off."""
        await self.drain(0.0)
        self._accepting = None
        self._listener.close()


async def read_body(
    request: web.BaseRequest, clock: Clock, *, limit: int = BODY_LIMIT, deadline: float = BODY_DEADLINE
) -> bytes:
    """The whole request body.

    Raises:
        BodyTooLargeError: more than ``limit`` bytes were announced or sent.
        SlowClientError: the body did not arrive within ``deadline`` seconds.
    """
    if (request.content_length or 0) > limit:
        raise BodyTooLargeError(limit)
    if not request.can_read_body:
        return b""
    blocks: list[bytes] = []
    size = 0
    try:
        async with clock.timeout(deadline):
            while block := await request.content.readany():
                size += len(block)
                if size > limit:
                    raise BodyTooLargeError(limit)
                blocks.append(block)
    except TimeoutError:
        raise SlowClientError(f"the request body did not arrive within {deadline:g} s") from None
    return b"".join(blocks)


class _Connection(web.RequestHandler):
    """aiohttp's connection with a deadline on each request's head."""

    def __init__(self, server: _Server, clock: Clock, head_deadline: float, **options: Any) -> None:
        super().__init__(server, **options)
        self._platform_clock = clock
        self._head_deadline = head_deadline
        self._deadline: Timer | None = None
        self._serving = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._arm()

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and not self._serving:
            self._arm()
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP as Go's servers do; it is the client's fault, and nothing for the log of errors."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        log.debug("%s sent what is no HTTP request: %s", request.remote, exc)
        text = "431 Request Header Fields Too Large" if isinstance(exc, LineTooLong) else "400 Bad Request"
        answer = web.Response(status=int(text[:3]), text=text)
        answer.force_close()
        return answer

    def begin_request(self) -> None:
        """The head is complete."""
        self._serving += 1
        self._disarm()

    def end_request(self) -> None:
        """The response is complete; the next request's deadline starts with its first byte."""
        self._serving -= 1

    def _arm(self) -> None:
        self._deadline = self._platform_clock.call_later(self._head_deadline, self._cut_off)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _cut_off(self) -> None:
        self._deadline = None
        self.force_close()


class _Server(web.Server):
    """aiohttp's connection factory, giving `_Connection`."""

    def __init__(self, handler: Handler, clock: Clock, head_deadline: float, cancel_on_disconnect: bool) -> None:
        async def bracketed(request: web.BaseRequest) -> web.StreamResponse:
            connection = request.protocol
            assert isinstance(connection, _Connection)
            connection.begin_request()
            try:
                return await handler(request)
            finally:
                connection.end_request()

        super().__init__(bracketed, handler_cancellation=cancel_on_disconnect)
        self._clock = clock
        self._head_deadline = head_deadline

    def __call__(self) -> web.RequestHandler:
        return _Connection(
            self,
            self._clock,
            self._head_deadline,
            loop=asyncio.get_running_loop(),
            access_log=None,
            keepalive_timeout=KEEPALIVE,
            lingering_time=LINGERING,
            max_line_size=LINE_LIMIT,
            max_field_size=FIELD_LIMIT,
        )
