"""The gateway's access log: what Envoy reports of each request, as one JSON line in ``logs/gateway.jsonl``.

Envoy sends entries in batches of up to a second. They are written by a thread of their own, past the logging machinery, whose
cost per record would be most of what a request costs. The file is kept to a bounded size: a full one is set aside once.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from sampan.kernel.clock import Clock

FLUSH_SECONDS = 0.5
LIMIT = 64 << 20
"""Bytes of one file; one older file is kept beside it."""
BACKLOG = 200_000
"""Entries that may wait to be written; more are dropped and counted."""
LOGGER = "sampan.traffic.access"

METHODS = ("", "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
"""By Envoy's number."""


class AccessLog:
    """Collects entries and writes them."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._encoder = msgspec.json.Encoder()
        self._waiting: list[dict[str, Any]] = []
        self.dropped = 0

    def take(self, batch: Any) -> None:
        """Entries of a decoded StreamAccessLogsMessage."""
        entries = batch.http_logs.log_entry
        if len(self._waiting) + len(entries) > BACKLOG:
            self.dropped += len(entries)
            return
        self._waiting += [record(entry) for entry in entries]

    async def run(self) -> None:
        """Write what was taken, again and again."""
        while True:
            await self._clock.sleep(FLUSH_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Write what was taken so far."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            await asyncio.to_thread(self._write, waiting)

    def _write(self, records: list[dict[str, Any]]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.write(self._encoder.encode_lines(records))
            size = file.tell()
        if size > LIMIT:
            self._path.replace(self._path.with_suffix(".1.jsonl"))


def record(entry: Any) -> dict[str, Any]:
    """One HTTPAccessLogEntry as the fields of a log line."""
    common, request, response = entry.common_properties, entry.request, entry.response
    status = response.response_code.value
    started = common.start_time
    method = METHODS[request.request_method] if request.request_method < len(METHODS) else ""
    upstream = common.upstream_remote_address.socket_address
    last = common.time_to_last_downstream_tx_byte
    return {
        "time": datetime.fromtimestamp(started.seconds + started.nanos / 1e9, UTC).isoformat(timespec="milliseconds"),
        "level": "info",
        "logger": LOGGER,
        "message": f"{method} {request.authority}{request.path} {status}",
        "method": method,
        "host": request.authority,
        "path": request.path,
        "status": status,
        "route": common.route_name,
        "cluster": common.upstream_cluster,
        "upstream": f"{upstream.address}:{upstream.port_value}" if upstream.address else "",
        "milliseconds": round(last.seconds * 1e3 + last.nanos / 1e6, 3),
        "received": request.request_body_bytes,
        "sent": response.response_body_bytes,
        "user_agent": request.user_agent,
        "request_id": request.request_id,
    }
