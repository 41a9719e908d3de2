"""What the platform keeps of traces, and how the command shows them."""

from __future__ import annotations

from typing import Any

import click

from sampan.cli.trace import list_lines, tree_lines, walk
from sampan.kernel.clock import Clock, Timeline
from sampan.kernel.telemetry import Span, SpanContext, Tracer, of_request_id
from sampan.kernel.traces import SPANS_KEPT, Trace, Traces, summary

FROZEN = Timeline(origin=0.0, base=0.0, wall_offset=1_700_000_000.0, rate=0.0)


def span(trace: str, number: int, parent: int = 0, start: int = 0, end: int = 0, **more: Any) -> Span:
    context = SpanContext(trace, f"{number:016x}")
    return Span(
        name=f"step {number}",
        context=context,
        parent_id=f"{parent:016x}" if parent else "",
        start=start,
        end=end,
        **more,
    )


def test_a_trace_is_decided_once_and_followed_to_its_end() -> None:
    clock = Clock(FROZEN)
    traces = Traces(clock, new_a_second=2)
    contexts = [SpanContext(f"{number:032x}", "1" * 16) for number in range(1, 5)]
    assert [traces.follows(one) for one in contexts] == [True, True, False, False]
    clock.jump(10)
    assert [traces.follows(one) for one in contexts] == [True, True, False, False]
    assert traces.begin() is not None
    assert not traces.follows(SpanContext("f" * 32, "1" * 16, sampled=False))


def test_the_oldest_trace_goes_first_and_a_long_one_is_cut() -> None:
    traces = Traces(Clock(FROZEN), kept=2)
    for name in "abc":
        traces.take([span(name * 32, 1)])
    assert [one.id[0] for one in traces.recent()] == ["c", "b"]
    traces.take([span("c" * 32, number) for number in range(SPANS_KEPT + 3)])
    (found,) = traces.find("cc")
    assert (len(found.spans), found.dropped) == (SPANS_KEPT, 4)


def test_a_tracer_fills_the_store() -> None:
    clock = Clock(FROZEN)
    tracer, traces = Tracer(clock), Traces(clock)
    tracer.add_exporter(traces.take)
    begun = traces.begin()
    with tracer.span("first", context=begun), tracer.span("second"):
        pass
    (found,) = traces.recent()
    assert begun is not None
    assert found.id == begun.trace_id
    assert found.root.name == "first"
    assert [(depth, one.name) for depth, one in walk(found)] == [(0, "first"), (1, "second")]
    assert summary(found)["spans"] == 2


def test_a_request_id_that_is_a_uuid_names_a_trace() -> None:
    found = of_request_id("5C2D2E6A-8f13-4b0a-9c1d-00a1b2c3d4e5")
    assert found == SpanContext("5c2d2e6a8f134b0a9c1d00a1b2c3d4e5", "9c1d00a1b2c3d4e5")
    assert of_request_id("my request") is None
    assert of_request_id(None) is None


def test_the_tree_has_a_line_a_span_with_times_and_failures() -> None:
    spans = [
        span("a" * 32, 1, 0, 0, 60_000_000, service="gateway"),
        span("a" * 32, 2, 1, 10_000_000, 50_000_000, service="topic", attributes={"waited_ms": 3.0, "status": 202}),
        span("a" * 32, 3, 2, 20_000_000, 30_000_000, service="trigger", error="503", attributes={"attempt": 2}),
        span("a" * 32, 4, 77, 55_000_000, 60_000_000),  # its cause is not known here
    ]
    head, *lines = [click.unstyle(line) for line in tree_lines(Trace("a" * 32, spans), 120)]
    assert "60.0 ms" in head and "4 spans" in head
    assert [line.split()[0] for line in lines] == ["0.0", "10.0", "20.0", "55.0"]
    assert "waited 3.0 ms, 202" in lines[1]
    assert "attempt 2, 503" in lines[2]
    assert "      trigger" not in lines[0] and "    trigger  step 3" in lines[2]


def test_a_circle_of_spans_does_no_harm() -> None:
    circle = [span("a" * 32, 1, 2), span("a" * 32, 2, 1), span("a" * 32, 3)]
    assert [one.name for _, one in walk(Trace("a" * 32, circle))] == ["step 3"]
    assert len(tree_lines(Trace("a" * 32, circle), 80)) == 2


def test_an_empty_list_says_so() -> None:
    (line,) = list_lines([])
    assert "no trace" in line
