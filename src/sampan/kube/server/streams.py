"""Watches over HTTP: a chunked response that events are pushed into.

Initial events are written with back-pressure; from then on the hub pushes each change straight into the connection, as bytes
that all watchers of the same representation share. A client that does not read fast enough for its buffer to stay below
`BUFFER_LIMIT` is cut off, as upstream does: it lists again when it is ready.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from typing import Any

from aiohttp import web

from sampan.kernel.clock import Clock
from sampan.kube.server import watches
from sampan.kube.server.answers import audit_id
from sampan.kube.server.negotiation import Format
from sampan.kube.server.representation import IncludeObject
from sampan.kube.server.watches import Event, Watch
from sampan.kube.status import ApiError

BUFFER_LIMIT = 8 * 1024 * 1024
"""Bytes that may wait in a connection before its client counts as too slow."""
BATCH = 256 * 1024
"""Bytes of initial events written between two looks at the connection's back-pressure."""
TIMEOUT = (1800.0, 3600.0)
"""Seconds a watch lasts when the client does not say: chosen at random between these."""


class HttpSink:
    """Pushes a watch's events into a connection."""

    def __init__(
        self, watch: Watch, transport: asyncio.Transport, format: Format, include: IncludeObject, clock: Clock
    ) -> None:
        self._watch = watch
        self._transport = transport
        self._format = format
        self._include: IncludeObject = include
        self._clock = clock
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def events(self, events: list[tuple[str, Event]]) -> None:
        """Write events."""
        now = self._clock.now()
        self._write([event.chunk(kind, self._format, self._include, now) for kind, event in events])

    def bookmark(self, revision: int) -> None:
        """Write a bookmark."""
        line = watches.bookmark_line(self._watch.type, revision, self._format)
        self._write([watches.as_chunk(line)])

    def end(self) -> None:
        """Let the response end."""
        if not self.ended.done():
            self.ended.set_result(None)

    def _write(self, chunks: list[bytes]) -> None:
        if self._transport.is_closing():
            self.end()
            return
        self._transport.write(chunks[0] if len(chunks) == 1 else b"".join(chunks))
        if self._transport.get_write_buffer_size() > BUFFER_LIMIT:
            self._watch.close()
            self._transport.abort()
            self.end()


async def serve_watch(
    request: web.BaseRequest,
    opened: Watch | ApiError,
    *,
    format: Format,
    include: IncludeObject,
    seconds: int | None,
    clock: Clock,
    headers: Iterable[tuple[str, str]] = (),
) -> web.StreamResponse:
    """Answer a watch request until its time is over, the hub ends it, or the client goes (the task is cancelled then).

    ``opened`` may be the error with which a watch could not be opened: it becomes the stream's only event.
    """
    response = web.StreamResponse(headers=list(headers))
    response.content_type = "application/json"
    response.headers["Cache-Control"] = "no-cache, private"
    response.headers["Audit-Id"] = audit_id()
    response.enable_chunked_encoding()
    try:
        await response.prepare(request)
        if isinstance(opened, ApiError):
            await response.write(watches.error_line(opened))
        else:
            await _stream(request, response, opened, format, include, seconds, clock)
        await response.write_eof()
    finally:
        if isinstance(opened, Watch):
            opened.close()
    return response


async def _stream(
    request: web.BaseRequest,
    response: web.StreamResponse,
    watch: Watch,
    format: Format,
    include: IncludeObject,
    seconds: int | None,
    clock: Clock,
) -> None:
    now = clock.now()
    size = 0
    lines: list[bytes] = []
    for kind, event in watch.initial:
        value = event.value(kind != "DELETED")
        assert value is not None
        line = watches.line(kind, watch.type, value, format, include, now)
        lines.append(line)
        size += len(line)
        if size >= BATCH:
            await response.write(b"".join(lines))
            lines, size = [], 0
    watch.initial = ()
    if watch.initial_end is not None:
        lines.append(watches.bookmark_line(watch.type, watch.initial_end, format, initial_end=True))
    if lines:
        await response.write(b"".join(lines))
    transport: Any = request.transport
    if transport is None or transport.is_closing():
        return
    sink = HttpSink(watch, transport, format, include, clock)
    watch.start(sink)
    lasts = float(seconds) if seconds else random.uniform(*TIMEOUT)  # noqa: S311 (spreads reconnects)
    timer = clock.call_later(lasts, sink.end)
    try:
        await sink.ended
    finally:
        timer.cancel()
    if watch.bookmarks and not watch.closed and not transport.is_closing():
        sink.bookmark(watch.latest())
