"""The traces that a platform keeps: the latest ways of requests and events through it, bounded in number and size.

A trace is every span with the same trace id. `Traces` is an exporter of the core's `Tracer` and remembers the last `KEPT` traces
in memory, for ``sampan trace``. Which ones it follows is decided where a trace enters (`Traces.follows`): every one while there
are few, a bounded number a second when there are many, so that a load test costs next to nothing; a trace that was let pass
once is let pass to its end, so that what is kept is whole. Spans that are cheaper found later than kept come from those who were
named to `Traces.ask`, when somebody looks.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

import msgspec

from sampan.kernel.clock import Clock
from sampan.kernel.telemetry import Span, SpanContext

KEPT = 500
"""Traces kept at most; the oldest go first."""
SPANS_KEPT = 256
"""Spans of one trace at most; further ones are counted."""
NEW_A_SECOND = 25
"""New traces followed a second at most."""
PASSED = 20_000
"""Traces not followed that are remembered, so that their later spans are not either."""


class Trace(msgspec.Struct):
    """One trace as it is kept."""

    id: str
    spans: list[Span] = msgspec.field(default_factory=list)
    dropped: int = 0
    """Spans beyond `SPANS_KEPT`."""

    @property
    def start(self) -> int:
        """Nanoseconds since the epoch."""
        return min(span.start for span in self.spans)

    @property
    def end(self) -> int:
        """Nanoseconds since the epoch at which its last span ended."""
        return max(span.end for span in self.spans)

    @property
    def root(self) -> Span:
        """The span it began with: the first one whose parent is not known here."""
        known = {span.context.span_id for span in self.spans}
        return min(self.spans, key=lambda span: (span.parent_id in known, span.start))


Finder = Callable[[Collection[str]], Awaitable[list[Span]]]
"""Finds the spans it knows of the traces with these ids."""


class Traces:
    """The latest traces of one process."""

    def __init__(self, clock: Clock, *, kept: int = KEPT, new_a_second: float = NEW_A_SECOND) -> None:
        self._clock = clock
        self._kept = kept
        self._rate = new_a_second
        self._tokens, self._filled = new_a_second, clock.monotonic()
        self._traces: OrderedDict[str, Trace] = OrderedDict()
        self._passed: OrderedDict[str, None] = OrderedDict()
        self._finders: dict[str, Finder] = {}

    def ask(self, name: str, finder: Finder) -> None:
        """Have ``finder`` add its spans to traces that are looked at, in the place of an earlier one of that name."""
        self._finders[name] = finder

    async def whole(self, traces: Sequence[Trace]) -> list[Trace]:
        """These traces with the spans of all that were named to `ask`."""
        found = {one.id: Trace(one.id, list(one.spans), one.dropped) for one in traces}
        for finder in self._finders.values():
            for span in await finder(found.keys()):
                found[span.context.trace_id].spans.append(span)
        return list(found.values())

    def follows(self, context: SpanContext) -> bool:
        """Whether the spans of this trace are kept; asked for the first time, it is decided."""
        trace_id = context.trace_id
        if trace_id in self._traces:
            return True
        if not context.sampled or trace_id in self._passed:
            return False
        if not self._admitted():
            self._passed[trace_id] = None
            if len(self._passed) > PASSED:
                self._passed.popitem(last=False)
            return False
        self._begin(trace_id)
        return True

    def begin(self) -> SpanContext | None:
        """The context of a new trace's first span, or None where there are too many already."""
        if not self._admitted():
            return None
        context = SpanContext(os.urandom(16).hex(), os.urandom(8).hex())
        self._begin(context.trace_id)
        return context

    def take(self, spans: Sequence[Span]) -> None:
        """Keep finished spans: an exporter."""
        for span in spans:
            trace = self._traces.get(span.context.trace_id) or self._begin(span.context.trace_id)
            if len(trace.spans) < SPANS_KEPT:
                trace.spans.append(span)
            else:
                trace.dropped += 1

    def recent(self, limit: int = 20) -> list[Trace]:
        """The latest traces with at least one finished span, the last one first."""
        found = [trace for trace in reversed(self._traces.values()) if trace.spans]
        return found[:limit]

    def find(self, prefix: str) -> list[Trace]:
        """The traces whose id begins so, the latest first."""
        return [one for one in reversed(self._traces.values()) if one.spans and one.id.startswith(prefix.lower())]

    def _admitted(self) -> bool:
        now = self._clock.monotonic()
        self._tokens = min(self._rate, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _begin(self, trace_id: str) -> Trace:
        trace = self._traces[trace_id] = Trace(trace_id)
        if len(self._traces) > self._kept:
            self._traces.popitem(last=False)
        return trace


def summary(trace: Trace) -> dict[str, Any]:
    """A trace as a line of a list; times in nanoseconds since the epoch and milliseconds."""
    root = trace.root
    return {
        "id": trace.id,
        "start": trace.start,
        "milliseconds": round((trace.end - trace.start) / 1e6, 3),
        "spans": len(trace.spans),
        "errors": sum(1 for span in trace.spans if span.error),
        "name": root.name,
        "service": root.service,
    }
