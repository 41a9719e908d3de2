"""The access log in Envoy: one JSON line a request, formatted and written by Envoy itself.

Sent over gRPC and written here, a line would cost the machine as much as the request; and it would be lost while the core is
down.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sampan.parts.traffic.xds import schema

LOGGER = "sampan.traffic.access"

FIELDS = {
    "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%6f+00:00)%",
    "level": "info",
    "logger": LOGGER,
    "message": "request",
    "method": "%REQ(:METHOD)%",
    "host": "%REQ(:AUTHORITY)%",
    "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
    "status": "%RESPONSE_CODE%",
    "flags": "%RESPONSE_FLAGS%",
    "route": "%ROUTE_NAME%",
    "cluster": "%UPSTREAM_CLUSTER%",
    "upstream": "%UPSTREAM_HOST%",
    "milliseconds": "%DURATION%",
    "received": "%BYTES_RECEIVED%",
    "sent": "%BYTES_SENT%",
    "user_agent": "%REQ(USER-AGENT)%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "traceparent": "%REQ(TRACEPARENT)%",
}
"""Fields of a line and Envoy's operators for them; numbers stay numbers, what is absent is null."""


def file_log(path: Path) -> dict[str, Any]:
    """The access log of a connection manager."""
    typed = schema.any_of(
        "envoy.extensions.access_loggers.file.v3.FileAccessLog", path=str(path), logFormat={"jsonFormat": FIELDS}
    )
    return {"name": "envoy.access_loggers.file", "typedConfig": typed}
