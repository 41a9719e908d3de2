"""What the platform says of itself: structured logs, metrics, and spans.

**Logs.** Code logs with the standard library (``context.log``, ``logging.getLogger(__name__)``); ``extra={...}`` adds fields
(``object="default/web"``, ...), and the current span's trace and span ids are added by themselves. `logs` sends every
record to two places: JSON lines in ``<data-dir>/logs/<process>.jsonl``, written by a thread of its own and rotated by size,
and, where a person is watching, short coloured lines on the terminal.

**Metrics.** `counter`, `gauge` and `histogram` declare a metric in the process's registry (``context.metrics``), or return
the one that is already declared, so that a part restarted in the same process goes on counting where it was.

**Spans.** A `Tracer` makes W3C-compatible spans. The current span travels with the task (a context variable) and between
processes as a ``traceparent`` header. Finished spans go to exporters; until observability takes them they wait in a bounded
buffer, the oldest dropped and counted.
"""

from __future__ import annotations

import io
import logging
import os
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from sampan.kernel.clock import Clock

LOG_FILE_LIMIT = 16 * 1024 * 1024
"""Bytes in one log file before it is rotated."""
LOG_FILES_KEPT = 3
"""Rotated files kept beside the current one."""
LOG_QUEUE_LIMIT = 20_000
"""Records waiting for the disk at most; more are dropped and counted rather than held in memory."""
SPAN_BUFFER = 4096
"""Finished spans kept while nothing exports them."""


# -- spans

SpanKind = Literal["internal", "server", "client", "producer", "consumer"]


class SpanContext(msgspec.Struct, frozen=True):
    """What identifies a span across processes."""

    trace_id: str
    """32 hex digits."""
    span_id: str
    """16 hex digits."""
    sampled: bool = True

    def traceparent(self) -> str:
        """The W3C ``traceparent`` header value."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"

    @staticmethod
    def parse(traceparent: str | None) -> SpanContext | None:
        """The context of a ``traceparent`` value; None where it is absent or malformed (the trace then starts anew)."""
        fields = (traceparent or "").strip().split("-")
        if len(fields) < 4 or len(fields[0]) != 2 or fields[0] == "ff" or (fields[0] == "00" and len(fields) != 4):
            return None
        _, trace_id, span_id, flags = fields[:4]
        if not (_hex(trace_id, 32) and _hex(span_id, 16) and _hex(flags, 2)):
            return None
        if not trace_id.strip("0") or not span_id.strip("0"):
            return None
        return SpanContext(trace_id, span_id, bool(int(flags, 16) & 1))


def of_request_id(request_id: str | None) -> SpanContext | None:
    """The context that a gateway's ``x-request-id`` (a UUID) stands for where nobody sent a ``traceparent``; None: it is no UUID."""
    digits = (request_id or "").replace("-", "").lower()
    return SpanContext(digits, digits[16:]) if _hex(digits, 32) and digits[16:].strip("0") else None


class Span(msgspec.Struct):
    """One timed operation. Times are nanoseconds since the epoch on the platform's clock; ``end`` 0 means running."""

    name: str
    context: SpanContext
    parent_id: str = ""
    kind: SpanKind = "internal"
    service: str = ""
    start: int = 0
    end: int = 0
    attributes: dict[str, Any] = msgspec.field(default_factory=dict)
    events: list[tuple[int, str, dict[str, Any]]] = msgspec.field(default_factory=list)
    error: str = ""
    """What went wrong; "" is success."""

    def set(self, **attributes: Any) -> None:
        """Add attributes."""
        self.attributes.update(attributes)


Exporter = Callable[[Sequence[Span]], None]
"""Takes finished spans; must not block."""

_current: ContextVar[SpanContext | None] = ContextVar("sampan_span", default=None)


def current_span() -> SpanContext | None:
    """The context of the span that encloses the running code, or None."""
    return _current.get()


class Tracer:
    """Makes spans of one process and hands the finished ones to its exporters."""

    def __init__(self, clock: Clock, service: str = "sampan", *, buffer: int = SPAN_BUFFER) -> None:
        self._clock = clock
        self._service = service
        self._waiting: deque[Span] = deque(maxlen=buffer)
        self._exporters: list[Exporter] = []
        self.dropped = 0
        """Finished spans that nobody took before the buffer was full."""

    @contextmanager
    def span(
        self,
        name: str,
        *,
        kind: SpanKind = "internal",
        parent: SpanContext | None = None,
        service: str = "",
        context: SpanContext | None = None,
        **attributes: Any,
    ) -> Iterator[Span]:
        """Time the body as a span under ``parent`` (default: the current span); an exception marks it as failed.

        ``context``: the span's own ids, given by whoever knows them already; its parent is then ``parent`` or nobody.
        """
        enclosing = parent or (None if context else _current.get())
        context = context or SpanContext(
            enclosing.trace_id if enclosing else os.urandom(16).hex(),
            os.urandom(8).hex(),
            enclosing.sampled if enclosing else True,
        )
        span = Span(
            name=name,
            context=context,
            parent_id=enclosing.span_id if enclosing else "",
            kind=kind,
            service=service or self._service,
            start=self._clock.time_ns(),
            attributes=attributes,
        )
        token = _current.set(context)
        try:
            yield span
        except BaseException as error:
            span.error = span.error or f"{type(error).__name__}: {error}"
            raise
        finally:
            _current.reset(token)
            span.end = self._clock.time_ns()
            if context.sampled:
                self.finish(span)

    def finish(self, span: Span) -> None:
        """Hand on a span that was made elsewhere (reported by a client, read from an access log)."""
        if not self._exporters:
            if len(self._waiting) == self._waiting.maxlen:
                self.dropped += 1
            self._waiting.append(span)
        for export in self._exporters:
            export((span,))

    def add_exporter(self, export: Exporter) -> None:
        """Send finished spans to ``export`` from now on; those that waited in the buffer first."""
        self._exporters.append(export)
        if self._waiting:
            waiting, self._waiting = list(self._waiting), deque(maxlen=self._waiting.maxlen)
            export(waiting)


def _hex(text: str, length: int) -> bool:
    return len(text) == length and all(digit in "0123456789abcdef" for digit in text)


# -- metrics

M = TypeVar("M", bound=MetricWrapperBase)


def counter(registry: CollectorRegistry, name: str, documentation: str, labels: Sequence[str] = ()) -> Counter:
    """The counter ``name`` of ``registry``, declared on first use; ``name`` is as scraped, with ``_total``."""
    return _declared(registry, name, lambda: Counter(name, documentation, labels, registry=registry), Counter)


def gauge(registry: CollectorRegistry, name: str, documentation: str, labels: Sequence[str] = ()) -> Gauge:
    """The gauge ``name`` of ``registry``, declared on first use."""
    return _declared(registry, name, lambda: Gauge(name, documentation, labels, registry=registry), Gauge)


def histogram(
    registry: CollectorRegistry,
    name: str,
    documentation: str,
    labels: Sequence[str] = (),
    buckets: Sequence[float] = Histogram.DEFAULT_BUCKETS,
) -> Histogram:
    """The histogram ``name`` of ``registry``, declared on first use."""
    return _declared(
        registry, name, lambda: Histogram(name, documentation, labels, registry=registry, buckets=buckets), Histogram
    )


def _declared(registry: CollectorRegistry, name: str, declare: Callable[[], M], kind: type[M]) -> M:
    known = registry._names_to_collectors.get(name)
    if known is None:
        return declare()
    if not isinstance(known, kind):
        raise ValueError(f"metric {name} is already declared as a {type(known).__name__}")
    return known


# -- logs

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_COLOURS = {"WARNING": "33", "ERROR": "31", "CRITICAL": "31;1", "DEBUG": "2"}


def record_fields(record: logging.LogRecord, clock: Clock) -> dict[str, Any]:
    """A log record as the fields of its JSON line."""
    fields: dict[str, Any] = {
        "time": clock.now().isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
    }
    if (span := _current.get()) is not None:
        fields["trace"], fields["span"] = span.trace_id, span.span_id
    for key, value in vars(record).items():
        if key not in _STANDARD:
            fields[key] = value
    if record.exc_info and record.exc_info[0] is not None:
        fields["exception"] = logging.Formatter().formatException(record.exc_info)
    return fields


def append_whole(file: io.FileIO, block: bytes) -> None:
    """Append all of ``block`` or, where there is no room for it, nothing: half a line would spoil the next one.

    Raises:
        OSError: it could not be written.
    """
    before = os.fstat(file.fileno()).st_size
    try:
        left = memoryview(block)
        while left:
            left = left[file.write(left) or 0 :]
    except OSError:
        with suppress(OSError):
            file.truncate(before)
        raise


class JsonLines(logging.Handler):
    """Writes records as JSON lines to a size-rotated file, on a thread of its own."""

    def __init__(self, path: Path, clock: Clock, *, limit: int = LOG_FILE_LIMIT, kept: int = LOG_FILES_KEPT) -> None:
        super().__init__()
        self._path = path
        self._clock = clock
        self._limit = limit
        self._kept = kept
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.dropped = 0
        """Records lost because the disk did not keep up."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._thread = threading.Thread(target=self._write, name="sampan-logs", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        if self._queue.qsize() >= LOG_QUEUE_LIMIT:
            self.dropped += 1
            return
        try:
            self._queue.put(msgspec.json.encode(record_fields(record, self._clock), enc_hook=str) + b"\n")
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Write what is queued and stop the thread."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(5)
        super().close()

    def _write(self) -> None:
        file: io.FileIO | None = None
        ended = False
        while not ended:
            lines = [self._queue.get()]
            while not self._queue.empty():
                lines.append(self._queue.get())
            ended = None in lines
            block = b"".join(line for line in lines if line is not None)
            try:
                file = file or io.FileIO(self._path, "ab")
                append_whole(file, block)
                if file.tell() >= self._limit:
                    file.close()
                    file = None
                    self._rotate()
            except OSError as error:
                # a full disk must not stop the platform; the loss is counted and said where a person may see it
                self.dropped += len(lines)
                with suppress(OSError):  # it may lead to the same disk
                    sys.stderr.write(f"cannot write {self._path}: {error}\n")
                    sys.stderr.flush()
        if file is not None:
            file.close()

    def _rotate(self) -> None:
        for number in range(self._kept - 1, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            if older.exists():
                older.replace(self._path.with_name(f"{self._path.name}.{number + 1}"))
        self._path.replace(self._path.with_name(f"{self._path.name}.1"))


class TerminalLines(logging.Handler):
    """Short lines for a person: time, part, message; coloured where the stream is a terminal."""

    def __init__(self, clock: Clock, stream: IO[str] | None = None) -> None:
        super().__init__()
        self._clock = clock
        self._stream = stream or sys.stderr
        self._coloured = self._stream.isatty() and "NO_COLOR" not in os.environ

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._stream.write(human_line(record_fields(record, self._clock), coloured=self._coloured) + "\n")
            self._stream.flush()
        except Exception:
            self.handleError(record)


def human_line(fields: Mapping[str, Any], *, coloured: bool = False) -> str:
    """A JSON line's fields as one short line (an exception follows on lines of its own)."""
    level = str(fields.get("level", "info")).upper()
    moment = str(fields.get("time", ""))[11:23]
    part = str(fields.get("logger", "")).removeprefix("sampan.").removeprefix("parts.")
    text = f"{moment} {level[:4]} {part}: {fields.get('message', '')}"
    known = ("time", "level", "logger", "message", "exception", "span")
    extras = " ".join(f"{key}={value}" for key, value in fields.items() if key not in known)
    if extras:
        text += f" ({extras})"
    if coloured and (colour := _COLOURS.get(level)):
        text = f"\x1b[{colour}m{text}\x1b[0m"
    return text + (f"\n{fields['exception']}" if "exception" in fields else "")


@contextmanager
def logs(folder: Path, process: str, clock: Clock, *, terminal: bool, level: str = "info") -> Iterator[None]:
    """Send this process's log records to ``<folder>/<process>.jsonl`` (and the terminal) for the body's duration."""
    root = logging.getLogger()
    handlers: list[logging.Handler] = [JsonLines(folder / f"{process}.jsonl", clock)]
    if terminal:
        handlers.append(TerminalLines(clock))
    previous = root.level
    root.setLevel(level.upper())
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield
    finally:
        root.setLevel(previous)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
