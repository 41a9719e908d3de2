"""The gateway's share of a trace: the lines of its access log that belong to it, as spans.

Envoy makes no spans of its own here. A line carries the request's ``traceparent`` where the client sent one, and always its
``x-request-id``; what stands behind the gateway follows either (the application has to pass one of them on). The log is read only
when somebody looks at a trace, so a request costs nothing more.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Collection
from datetime import datetime
from pathlib import Path

import msgspec

from sampan.kernel.clock import Clock, machine_time
from sampan.kernel.telemetry import Span, SpanContext, of_request_id

LOOKED_THROUGH = 16 << 20
"""Bytes at the log's end that are searched for a trace."""
IDENTITY = re.compile(rb'"(?:request_id":"([0-9A-Fa-f-]{36})"|traceparent":"[0-9a-f]{2}-([0-9a-f]{32})-)')


class Line(msgspec.Struct):
    """What of a line of the access log a span needs (`traffic.envoy.access.FIELDS`); what Envoy did not know is null."""

    time: str
    milliseconds: int | None = None
    method: str | None = None
    host: str | None = None
    path: str | None = None
    status: int | None = None
    cluster: str | None = None
    upstream: str | None = None
    request_id: str | None = None
    traceparent: str | None = None


class GatewaySpans:
    """Finds the gateway's spans of traces in its access log."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock

    async def find(self, trace_ids: Collection[str]) -> list[Span]:
        """The spans of these traces. Raises OSError where the log cannot be read."""
        return await asyncio.to_thread(self._find, frozenset(trace_ids)) if trace_ids else []

    def _find(self, trace_ids: frozenset[str]) -> list[Span]:
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - LOOKED_THROUGH))
                text = file.read(LOOKED_THROUGH)
        except FileNotFoundError:
            return []
        ahead = round(self._clock.time() - machine_time(), 3)  # Envoy's times are the machine's
        found: dict[int, Span] = {}
        for match in IDENTITY.finditer(text):
            trace_id = (match[1] or match[2]).replace(b"-", b"").decode().lower()
            begin = text.rfind(b"\n", 0, match.start()) + 1
            end = text.find(b"\n", match.end())
            # a half line at either end is one that was cut off or is being written
            if trace_id not in trace_ids or begin in found or end < 0 or text[begin : begin + 1] != b"{":
                continue
            if (span := span_of(msgspec.json.decode(text[begin:end], type=Line), ahead)) is not None:
                found[begin] = span
        return [span for span in found.values() if span.context.trace_id in trace_ids]


def span_of(line: Line, ahead: float = 0.0) -> Span | None:
    """The span of one request: a child of its ``traceparent``, or what its request id names itself.

    ``ahead``: seconds by which the platform's clock is ahead of the machine's. None: the line names no trace.
    """
    parent = SpanContext.parse(line.traceparent)
    context = parent or of_request_id(line.request_id)
    if context is None:
        return None
    if parent is not None:  # the same request is the same span however often it is looked at
        own = hashlib.sha256(f"{line.request_id}{line.time}".encode()).hexdigest()[:16]
        context = SpanContext(parent.trace_id, own)
    start = int((datetime.fromisoformat(line.time).timestamp() + ahead) * 1e9)
    status = line.status or 0
    return Span(
        name=f"{line.method or ''} {(line.path or '').partition('?')[0]}",
        context=context,
        parent_id=parent.span_id if parent else "",
        kind="server",
        service=f"gateway {(line.host or '').partition(':')[0]}",
        start=start,
        end=start + (line.milliseconds or 0) * 10**6,
        attributes={"status": status, "cluster": line.cluster or "", "upstream": line.upstream or ""},
        error=str(status) if status >= 500 else "",
    )
