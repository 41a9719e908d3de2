"""The gateway's share of a trace: an access-log entry whose trace the platform keeps, as a span.

Envoy makes no spans of its own here. An entry carries the request's ``traceparent`` where the client sent one, and always its
``x-request-id``; what stands behind the gateway follows either (the application has to pass one of them on), so the trace is known
by the time the entry comes. Entries of other requests cost a look-up.
"""

from __future__ import annotations

import os
from typing import Any

from sampan.kernel.clock import Clock, machine_time
from sampan.kernel.telemetry import Span, SpanContext, Tracer, of_request_id
from sampan.kernel.traces import Traces
from sampan.parts.traffic.access import METHODS


def take(batch: Any, tracer: Tracer, traces: Traces, clock: Clock) -> None:
    """Make the spans of a decoded StreamAccessLogsMessage."""
    for entry in batch.http_logs.log_entry:
        request = entry.request
        parent = SpanContext.parse(request.request_headers.get("traceparent"))
        context = parent or of_request_id(request.request_id)
        if context is not None and traces.known(context.trace_id):
            tracer.finish(span_of(entry, context, parent, clock))


def span_of(entry: Any, context: SpanContext, parent: SpanContext | None, clock: Clock) -> Span:
    """The span of one HTTPAccessLogEntry: a child of ``parent``, or what ``context`` names itself."""
    common, request, status = entry.common_properties, entry.request, entry.response.response_code.value
    ahead = clock.time() - machine_time()  # Envoy's times are the machine's
    start = common.start_time.seconds * 10**9 + common.start_time.nanos + int(ahead * 1e9)
    last = common.time_to_last_downstream_tx_byte
    method = METHODS[request.request_method] if request.request_method < len(METHODS) else ""
    upstream = common.upstream_remote_address.socket_address
    return Span(
        name=f"{method} {request.path.partition('?')[0]}",
        context=SpanContext(context.trace_id, os.urandom(8).hex()) if parent else context,
        parent_id=parent.span_id if parent else "",
        kind="server",
        service=f"gateway {request.authority.partition(':')[0]}",
        start=start,
        end=start + last.seconds * 10**9 + last.nanos,
        attributes={
            "status": status,
            "cluster": common.upstream_cluster,
            "upstream": f"{upstream.address}:{upstream.port_value}" if upstream.address else "",
        },
        error=str(status) if status >= 500 else "",
    )
