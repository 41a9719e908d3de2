"""Backends as Envoy clusters and their endpoints."""

from __future__ import annotations

import base64
from typing import Any

from sampan.parts.traffic.model import Backend, UpstreamTls
from sampan.parts.traffic.xds import schema

CONNECT_TIMEOUT = "5s"
MAX_REQUESTS = 1_000_000
"""Circuit breaker bounds: the gateway's own queueing must never be what refuses a request."""

_FROM_CONTROL_PLANE = {"ads": {}, "resourceApiVersion": "V3"}


def cluster(backend: Backend) -> dict[str, Any]:
    """A backend as an Envoy Cluster in JSON form."""
    made: dict[str, Any] = {
        "name": backend.name,
        "type": "EDS",
        "edsClusterConfig": {"edsConfig": _FROM_CONTROL_PLANE},
        "connectTimeout": CONNECT_TIMEOUT,
        "lbPolicy": "RING_HASH" if backend.affinity else "ROUND_ROBIN",
        "circuitBreakers": {
            "thresholds": [
                {
                    "maxConnections": MAX_REQUESTS,
                    "maxPendingRequests": MAX_REQUESTS,
                    "maxRequests": MAX_REQUESTS,
                    "maxRetries": MAX_REQUESTS,
                }
            ]
        },
        # a service whose pods all fail must answer 503, not be sprayed with requests
        "commonLbConfig": {"healthyPanicThreshold": {"value": 0}},
        "ignoreHealthOnHostRemoval": True,
    }
    if backend.protocol != "tcp":
        made["typedExtensionProtocolOptions"] = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": _protocol_options(backend)
        }
    if backend.tls is not None:
        made["transportSocket"] = _upstream_tls(backend)
    return made


def _protocol_options(backend: Backend) -> dict[str, Any]:
    name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    idle = {"idleTimeout": "60s"}
    if backend.protocol == "h2c":
        return schema.any_of(name, explicitHttpConfig={"http2ProtocolOptions": {}}, commonHttpProtocolOptions=idle)
    if backend.protocol == "auto":
        return schema.any_of(
            name, useDownstreamProtocolConfig={"http2ProtocolOptions": {}}, commonHttpProtocolOptions=idle
        )
    return schema.any_of(name, explicitHttpConfig={"httpProtocolOptions": {}}, commonHttpProtocolOptions=idle)


def _upstream_tls(backend: Backend) -> dict[str, Any]:
    tls = backend.tls
    assert tls is not None
    context: dict[str, Any] = {"validationContext": _validation(tls)}
    if backend.protocol == "h2c":
        context["alpnProtocols"] = ["h2"]
    typed = schema.any_of(
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", sni=tls.server_name, commonTlsContext=context
    )
    return {"name": "envoy.transport_sockets.tls", "typedConfig": typed}


def _validation(tls: UpstreamTls) -> dict[str, Any]:
    names = tls.names or (("DNS", tls.server_name),)
    trusted = (
        {"inlineBytes": base64.b64encode(tls.authority).decode()}
        if tls.authority is not None
        else {"filename": "/etc/ssl/certs/ca-certificates.crt"}
    )
    return {
        "trustedCa": trusted,
        "matchTypedSubjectAltNames": [{"sanType": kind, "matcher": {"exact": value}} for kind, value in names],
    }


def load_assignment(backend: Backend) -> dict[str, Any]:
    """A backend's endpoints as an Envoy ClusterLoadAssignment in JSON form."""
    endpoints = [] if backend.broken else [one for one in backend.endpoints if one.healthy]
    if not endpoints and not backend.broken:
        endpoints = list(backend.endpoints)  # only terminating pods are left: they still serve
    made = [
        {
            "endpoint": {"address": {"socketAddress": {"address": one.address, "portValue": one.port}}},
            "loadBalancingWeight": max(1, one.weight),
            "healthStatus": "HEALTHY",
        }
        for one in endpoints
    ]
    locality = [{"lbEndpoints": made, "loadBalancingWeight": 1, "locality": {"zone": "local"}}] if made else []
    return {"clusterName": backend.name, "endpoints": locality}
