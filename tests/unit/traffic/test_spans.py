"""The gateway's spans are lines of its access log."""

from __future__ import annotations

from pathlib import Path

import msgspec

from sampan.kernel.clock import Clock
from sampan.kernel.telemetry import Span, SpanContext
from sampan.kernel.traces import Traces
from sampan.parts.traffic.spans import GatewaySpans

REQUEST = "0f8fad5b-d9cb-469f-a165-70867728950e"
ID = REQUEST.replace("-", "")
TRACE = "a" * 32


def line(**fields: object) -> bytes:
    filled = {"time": "2026-01-02T03:04:05.250000+00:00", "level": "info", "method": "GET", "host": "shop.example:8080",
              "path": "/cart?user=1", "status": 200, "milliseconds": 12, "cluster": "c", "upstream": "10.0.0.1:80",
              "request_id": REQUEST, "traceparent": None}  # fmt: skip
    return msgspec.json.encode(filled | fields) + b"\n"


async def test_a_request_is_found_by_its_own_id_or_under_the_clients_span(tmp_path: Path) -> None:
    log = tmp_path / "gateway.jsonl"
    clock = Clock()
    spans = GatewaySpans(log, clock)
    assert await spans.find([ID]) == []  # nothing was ever served
    log.write_bytes(
        line() + line(status=503, traceparent=f"00-{TRACE}-{'b' * 16}-01") + line(request_id=None) + line()[:90]
    )
    (own,) = await spans.find([ID])
    assert (own.context, own.parent_id) == (SpanContext(ID, ID[16:]), "")
    assert (own.name, own.service, own.error) == ("GET /cart", "gateway shop.example", "")
    assert own.end - own.start == 12_000_000
    (under,) = await spans.find([TRACE])
    assert (under.context.trace_id, under.parent_id, under.error) == (TRACE, "b" * 16, "503")
    assert await spans.find([TRACE]) == [under]
    assert {span.context.trace_id for span in await spans.find([ID, TRACE])} == {ID, TRACE}
    assert await spans.find([]) == await spans.find(["c" * 32]) == []


async def test_a_trace_is_completed_when_somebody_looks_and_not_kept_so(tmp_path: Path) -> None:
    log = tmp_path / "gateway.jsonl"
    log.write_bytes(line())
    clock = Clock()
    traces = Traces(clock)
    traces.take([Span("topic", SpanContext(ID, "1" * 16), parent_id=ID[16:], start=1, end=2)])
    for _ in range(2):
        traces.ask("traffic", GatewaySpans(log, clock).find)
    for _ in range(2):
        (found,) = await traces.whole(traces.find(ID))
        assert [span.name for span in found.spans] == ["topic", "GET /cart"]
        assert found.root.name == "GET /cart"
