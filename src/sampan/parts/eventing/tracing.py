"""The spans of an event's way: where it enters, is stored, is read, is delivered.

An event carries its trace in the HTTP header ``traceparent`` (W3C), from hop to hop and through storage; each hop is the child
of the one before. Where nobody sent one, the gateway's ``x-request-id`` names the trace (its span of the same request has the
same ids), and where there is neither, a trace begins. CloudEvents' own ``traceparent`` attribute says where the event began:
it is read where there is no header, and never changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sampan.kernel.telemetry import Span, SpanContext, SpanKind, Tracer, of_request_id
from sampan.kernel.traces import Traces
from sampan.parts.eventing.cloudevents import Event

HEADER = "traceparent"
_PASSED = ("x-request-id", HEADER, "tracestate", "b3")
_PASSED_PREFIXES = ("knative-", "x-b3-")


class Tracing:
    """Makes spans for the traces that are followed; for others it costs a look."""

    def __init__(self, tracer: Tracer, traces: Traces) -> None:
        self._tracer = tracer
        self._traces = traces

    def context_of(self, event: Event, headers: Mapping[str, str] | None = None) -> SpanContext | None:
        """The span that an event comes from, if its trace is followed."""
        found = SpanContext.parse(event.headers.get(HEADER) or event.text(HEADER))
        if found is None and headers is not None:
            found = of_request_id(headers.get("x-request-id"))
        return found if found is not None and self._traces.follows(found) else None

    @contextmanager
    def step(
        self,
        event: Event,
        name: str,
        service: str,
        kind: SpanKind,
        *,
        headers: Mapping[str, str] | None = None,
        begins: bool = False,
    ) -> Iterator[Span | None]:
        """Time a hop of an event; inside, the event's header names this hop. None: its trace is not followed.

        ``begins``: an event without a trace begins one here.
        """
        parent = self.context_of(event, headers)
        begun = None
        if parent is None:
            begun = self._traces.begin() if begins and HEADER not in event.headers else None
            if begun is None:
                yield None
                return
        before = event.headers
        with self._tracer.span(name, kind=kind, parent=parent, service=service, context=begun) as span:
            event.headers = {**before, HEADER: span.context.traceparent()}
            try:
                yield span
            finally:
                if HEADER in before:
                    event.headers = before


def passed_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that travel with an event."""
    found = {}
    for name, value in headers.items():
        lower = name.lower()
        if lower in _PASSED or lower.startswith(_PASSED_PREFIXES):
            found[lower] = value
    return found
