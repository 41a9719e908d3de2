"""Logs, metrics and spans."""

from __future__ import annotations

import errno
import io
import json
import logging
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from sampan.kernel import telemetry
from sampan.kernel.clock import Clock, Timeline
from sampan.kernel.telemetry import Span, SpanContext, Tracer

FROZEN = Timeline(origin=0.0, base=0.0, wall_offset=1_700_000_000.0, rate=0.0)


def test_log_lines_carry_fields_trace_and_exception(tmp_path: Path) -> None:
    clock = Clock(FROZEN)
    log = logging.getLogger("sampan.test")
    with telemetry.logs(tmp_path, "core", clock, terminal=False):
        with Tracer(clock).span("work") as span:
            log.info("stored %d", 3, extra={"object": "default/web"})
        try:
            raise ValueError("bad")
        except ValueError:
            log.exception("failed")
    first, second = [json.loads(line) for line in (tmp_path / "core.jsonl").read_text().splitlines()]
    assert first == {
        "time": "2023-11-14T22:13:20.000+00:00",
        "level": "info",
        "logger": "sampan.test",
        "message": "stored 3",
        "object": "default/web",
        "trace": span.context.trace_id,
        "span": span.context.span_id,
    }
    assert "ValueError: bad" in second["exception"]


def test_log_files_rotate_by_size_and_old_ones_go(tmp_path: Path) -> None:
    handler = telemetry.JsonLines(tmp_path / "core.jsonl", Clock(FROZEN), limit=1, kept=2)
    for number in range(6):
        handler.emit(logging.makeLogRecord({"msg": f"line {number}", "name": "x", "levelname": "INFO"}))
        while not handler._queue.empty():
            pass
    handler.close()
    names = {path.name for path in tmp_path.iterdir()}
    assert names <= {"core.jsonl", "core.jsonl.1", "core.jsonl.2"}
    assert "core.jsonl.1" in names


def test_a_person_reads_one_short_line() -> None:
    line = telemetry.human_line(
        {
            "time": "2023-11-14T22:13:20.000+00:00",
            "level": "warning",
            "logger": "sampan.messaging",
            "message": "slow",
            "topic": "a",
        }
    )
    assert line == "22:13:20.000 WARN messaging: slow (topic=a)"


def test_a_metric_declared_twice_is_the_same_metric() -> None:
    registry = CollectorRegistry()
    telemetry.counter(registry, "requests_total", "Requests.", ["code"]).labels("200").inc()
    telemetry.counter(registry, "requests_total", "Requests.", ["code"]).labels("200").inc()
    assert registry.get_sample_value("requests_total", {"code": "200"}) == 2
    with pytest.raises(ValueError, match="already declared as a Counter"):
        telemetry.gauge(registry, "requests_total", "Requests.")


def test_spans_nest_and_follow_the_traceparent() -> None:
    tracer, taken = Tracer(Clock(FROZEN)), list[Span]()
    tracer.add_exporter(taken.extend)
    remote = SpanContext.parse("00-" + "a" * 32 + "-" + "b" * 16 + "-01")
    with tracer.span("outer", parent=remote), tracer.span("inner"):
        pass
    inner, outer = taken
    assert outer.parent_id == "b" * 16
    assert inner.parent_id == outer.context.span_id
    assert {inner.context.trace_id, outer.context.trace_id} == {"a" * 32}
    assert telemetry.current_span() is None


def test_spans_wait_for_an_exporter_and_the_oldest_are_dropped() -> None:
    tracer, taken = Tracer(Clock(FROZEN), buffer=2), list[Span]()
    for name in "abc":
        with tracer.span(name):
            pass
    tracer.add_exporter(taken.extend)
    assert [span.name for span in taken] == ["b", "c"]
    assert tracer.dropped == 1


def test_a_failing_body_marks_its_span() -> None:
    tracer, taken = Tracer(Clock(FROZEN)), list[Span]()
    tracer.add_exporter(taken.extend)
    with pytest.raises(KeyError), tracer.span("work"):
        raise KeyError("gone")
    assert taken[0].error == "KeyError: 'gone'"


def test_an_unsampled_trace_is_carried_but_not_kept() -> None:
    tracer, taken = Tracer(Clock(FROZEN)), list[Span]()
    tracer.add_exporter(taken.extend)
    with tracer.span("quiet", parent=SpanContext("a" * 32, "b" * 16, sampled=False)) as span:
        assert span.context.traceparent().endswith("-00")
    assert taken == []


hexadecimal = st.text("0123456789abcdef", min_size=1)


@given(st.text(max_size=60) | st.builds("{}-{}-{}-{}".format, hexadecimal, hexadecimal, hexadecimal, hexadecimal))
def test_any_traceparent_is_parsed_or_refused_without_an_error(text: str) -> None:
    context = SpanContext.parse(text)
    assert context is None or SpanContext.parse(context.traceparent()) == context


class SmallDisk(io.FileIO):
    """A file with room for so many bytes."""

    room = 0

    def write(self, data: object) -> int:
        block = bytes(data)[: self.room]  # type: ignore[call-overload]
        if not block:
            raise OSError(errno.ENOSPC, "full")
        self.room -= len(block)
        return super().write(block)


def test_a_line_for_which_there_is_no_room_leaves_no_half_behind(tmp_path: Path) -> None:
    with SmallDisk(tmp_path / "log", "ab") as file:
        file.room = 12
        telemetry.append_whole(file, b"first\n")
        with pytest.raises(OSError, match="full"):
            telemetry.append_whole(file, b"the second\n")
        file.room = 100
        telemetry.append_whole(file, b"third\n")
    assert (tmp_path / "log").read_bytes() == b"first\nthird\n"


def test_logging_survives_a_full_disk_that_also_holds_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("sys.stderr", Full())
    path = tmp_path / "core.jsonl"
    path.symlink_to("/dev/full")
    handler = telemetry.JsonLines(path, Clock(FROZEN))
    for number in range(3):
        handler.emit(logging.makeLogRecord({"msg": "lost"}))
        while handler.dropped <= number:
            assert handler._thread.is_alive()
            time.sleep(0.001)
    handler.close()
    assert handler.dropped == 3
