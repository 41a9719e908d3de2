"""``sampan trace``: the way of a request or an event through the platform, as a tree with its times.

The platform keeps the latest traces in memory (``kernel.traces``). A span is placed under the one that caused it; one whose cause
is not known here (an application that reports no spans of its own) is placed under the trace. Bars show when in the trace a span was
under way: what lies between two bars is time in a queue, on the way, or in an application.
"""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from sampan.cli import options
from sampan.kernel.admin import ask
from sampan.kernel.errors import SampanError
from sampan.kernel.folder import DataDirectory
from sampan.kernel.telemetry import Span
from sampan.kernel.traces import Trace

BAR = 24
"""Columns of the bars."""
LATE = 1.2
"""Seconds after its end until the last span of a trace is here."""
SHOWN = 8
"""Characters of a trace's id in the list; any unambiguous beginning is understood."""


@click.command("trace")
@click.argument("trace_id", metavar="[ID]", required=False)
@options.data_dir
@options.as_json
@click.option("--last", is_flag=True, help="Show the latest trace.")
@click.option("--limit", "-n", default=20, show_default=True, help="How many traces to list.")
def command(trace_id: str | None, data_dir: Path, as_json: bool, last: bool, limit: int) -> None:
    """List the latest traces, or show the one whose ID begins so: every step with its time.

    Traces begin at the gateway (an application passes `traceparent` or `x-request-id` on), at a topic, broker or channel, or at a
    source. All are kept while there are few; under load, some of them.
    """
    run = DataDirectory(data_dir).run
    if trace_id is None and not last:
        listed: list[dict[str, Any]] = ask(run, "GET", f"/traces?limit={limit}")
        if as_json:
            click.echo(msgspec.json.format(msgspec.json.encode(listed), indent=2).decode())
        else:
            for line in list_lines(listed):
                click.echo(line)
        return
    if trace_id is None:
        listed = ask(run, "GET", "/traces?limit=1")
        if not listed:
            raise SampanError("no trace is kept yet: nothing went through a topic, broker, channel or source")
        trace_id = str(listed[0]["id"])
        # the gateway tells of a request up to a second after it
        threading.Event().wait(max(0.0, _settled(listed[0]) - _now(run)))
    found = msgspec.convert(ask(run, "GET", f"/traces?id={trace_id}"), list[Trace])
    if len(found) != 1:
        several = ", ".join(one.id[:16] for one in found[:5])
        raise SampanError(
            f"{len(found)} traces begin with {trace_id}: {several}"
            if found
            else f"no trace begins with {trace_id}; `sampan trace` lists those that are kept"
        )
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found[0]), indent=2).decode())
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 120
    for line in tree_lines(found[0], width):
        click.echo(line)


def _settled(listed: dict[str, Any]) -> float:
    """When a trace is complete, in seconds since the epoch."""
    return float(listed["start"]) / 1e9 + float(listed["milliseconds"]) / 1e3 + LATE


def _now(run: Path) -> float:
    """The platform's time."""
    moment: str = ask(run, "GET", "/clock")["time"]
    return datetime.fromisoformat(moment).timestamp()


def list_lines(listed: list[dict[str, Any]]) -> list[str]:
    """The latest traces, one a line."""
    if not listed:
        return ["no trace is kept yet: nothing went through a topic, broker, channel or source"]
    lines = [f"{'ID':<{SHOWN}}  {'BEGAN (UTC)':<12}  {'TOOK':>10}  {'SPANS':>5}  FIRST STEP"]
    for one in listed:
        failed = click.style(f"  {one['errors']} failed", fg="red") if one["errors"] else ""
        lines.append(
            f"{one['id'][:SHOWN]}  {_moment(one['start']):<12}  {_took(one['milliseconds']):>10}  {one['spans']:>5}  "
            f"{one['service']}  {one['name']}{failed}"
        )
    return lines


def tree_lines(trace: Trace, width: int) -> list[str]:
    """A trace as a tree: when each step began, what it was, how long it took."""
    begin, end = trace.start, trace.end
    head = f"trace {trace.id}  {_moment(begin)} UTC  {_took((end - begin) / 1e6)}  {len(trace.spans)} spans"
    lines = [click.style(head, bold=True)]
    rows = [
        (depth, span, f"{'  ' * depth}{span.service}  {span.name}" if span.service else f"{'  ' * depth}{span.name}")
        for depth, span in walk(trace)
    ]
    room = max(30, width - BAR - 26)
    label = min(room, max(len(text) for _, _, text in rows))
    for _, span, text in rows:
        shown = text if len(text) <= label else text[: label - 1] + "…"
        bar = _bar(span, begin, max(end - begin, 1))
        facts = _facts(span)
        line = f"{(span.start - begin) / 1e6:8.1f}  {shown:<{label}}  {bar}  {_took((span.end - span.start) / 1e6):>9}"
        if facts:
            line += f"  {facts}"
        lines.append(click.style(line, fg="red") if span.error else line)
    if trace.dropped:
        lines.append(f"and {trace.dropped} further spans")
    return lines


def walk(trace: Trace) -> Iterator[tuple[int, Span]]:
    """Spans with their depth, each after the one that caused it."""
    known = {span.context.span_id for span in trace.spans}
    under: dict[str, list[Span]] = {}
    for span in sorted(trace.spans, key=lambda one: one.start):
        under.setdefault(span.parent_id if span.parent_id in known else "", []).append(span)
    waiting = [(0, span) for span in reversed(under.get("", []))]
    seen: set[str] = set()
    while waiting:
        depth, span = waiting.pop()
        if span.context.span_id in seen:  # whoever sends ids may send a circle
            continue
        seen.add(span.context.span_id)
        yield depth, span
        waiting += [(depth + 1, child) for child in reversed(under.get(span.context.span_id, []))]


def _facts(span: Span) -> str:
    """What is worth a word: how long it waited in a queue, an unexpected status, further attempts."""
    found = []
    if (waited := span.attributes.get("waited_ms")) is not None:
        found.append(f"waited {_took(float(waited))}")
    if span.attributes.get("attempt", span.attributes.get("attempts", 1)) != 1:
        found.append(f"attempt {span.attributes.get('attempt', span.attributes.get('attempts'))}")
    if span.error:
        found.append(span.error)
    elif (status := span.attributes.get("status")) is not None:
        found.append(str(status))
    return ", ".join(found)


def _bar(span: Span, begin: int, whole: int) -> str:
    first = min(BAR - 1, (span.start - begin) * BAR // whole)
    length = max(1, min(BAR - first, round((span.end - span.start) * BAR / whole)))
    return "·" * first + "█" * length + "·" * (BAR - first - length)


def _took(milliseconds: float) -> str:
    return f"{milliseconds:.1f} ms" if milliseconds < 10_000 else f"{milliseconds / 1000:.1f} s"


def _moment(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).strftime("%H:%M:%S.%f")[:12]
