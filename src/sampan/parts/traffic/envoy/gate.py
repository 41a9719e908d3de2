"""The gate in Envoy: a request whose target is cold or full asks a local service and waits for its answer.

A Lua filter, enabled on such targets alone, makes one call over a Unix socket and goes on when the answer is 200; everything
else (streams, upgrades, trailers) is Envoy's as always, so the gate is no proxy. The answer may name a pod: then the request
goes to that pod and no other, and its end is reported at once through an access log of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sampan.parts.traffic.envoy.bootstrap import XDS_CLUSTER
from sampan.parts.traffic.xds import schema

FILTER = "sampan.gate"
CLUSTER = "sampan-gate"
SLOT_LOG = "sampan-slots"
"""Log name of the access log that reports the end of requests holding a place."""
METADATA = "sampan.gate"
TIMEOUT_MS = 3_600_000
"""The gate has its own, shorter, deadlines; this only bounds a gate that hangs."""

_SCRIPT = f"""
function envoy_on_request(handle)
  local gate = handle:filterContext():get("gate")
  if gate == nil then return end
  local headers, body = handle:httpCall("{CLUSTER}",
    {{[":method"] = "GET", [":path"] = gate, [":authority"] = "gate"}}, "", {TIMEOUT_MS})
  if headers[":status"] ~= "200" then
    handle:respond({{[":status"] = headers[":status"]}}, body)
    return
  end
  if headers["x-slot"] ~= nil then
    handle:streamInfo():dynamicMetadata():set("{METADATA}", "slot", headers["x-slot"])
    handle:setUpstreamOverrideHost(headers["x-slot-pod"], true)
  end
end
"""


def http_filter() -> dict[str, Any]:
    """The filter, off except where a target turns it on."""
    typed = schema.any_of(
        "envoy.extensions.filters.http.lua.v3.Lua",
        defaultSourceCode={"inlineString": _SCRIPT},
        clearRouteCache=False,
    )
    return {"name": FILTER, "typedConfig": typed, "disabled": True}


def slot_log() -> dict[str, Any]:
    """The access log of requests that hold a place, sent entry by entry."""
    typed = schema.any_of(
        "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
        commonConfig={
            "logName": SLOT_LOG,
            "transportApiVersion": "V3",
            "bufferSizeBytes": 0,
            "grpcService": {"envoyGrpc": {"clusterName": XDS_CLUSTER}},
        },
    )
    matcher = {"filter": METADATA, "path": [{"key": "slot"}], "value": {"presentMatch": True}}
    return {
        "name": "envoy.access_loggers.http_grpc",
        "filter": {"metadataFilter": {"matcher": matcher, "matchIfKeyNotFound": False}},
        "typedConfig": typed,
    }


def cluster(socket: Path) -> dict[str, Any]:
    """The gate's own cluster."""
    endpoint = {"endpoint": {"address": {"pipe": {"path": str(socket)}}}}
    limits = {"maxConnections": 1_000_000, "maxPendingRequests": 1_000_000, "maxRequests": 1_000_000}
    return {
        "name": CLUSTER,
        "type": "STATIC",
        "connectTimeout": "1s",
        "circuitBreakers": {"thresholds": [limits]},
        "loadAssignment": {"clusterName": CLUSTER, "endpoints": [{"lbEndpoints": [endpoint]}]},
    }
