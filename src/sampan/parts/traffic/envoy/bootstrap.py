"""The bootstrap Envoy starts from: where its control plane is, and nothing else; all the rest comes over xDS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

NODE_CLUSTER = "sampan"
XDS_CLUSTER = "sampan-xds"
ADMIN_CLUSTER = "sampan-admin"
STATISTICS = "/stats/prometheus"


def bootstrap(node_id: str, xds_socket: Path, admin_socket: Path, metrics: tuple[str, int]) -> dict[str, Any]:
    """An Envoy bootstrap in JSON form: delta ADS, load reports, a locked-down admin socket whose statistics alone are open."""
    http2 = {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {
            "http2_protocol_options": {"connection_keepalive": {"interval": "30s", "timeout": "5s"}}
        },
    }
    # a control plane that comes back is found at once, not after half a minute
    again = {"retry_back_off": {"base_interval": "0.1s", "max_interval": "0.5s"}}
    service = {"envoy_grpc": {"cluster_name": XDS_CLUSTER, "retry_policy": again}}
    return {
        "node": {"id": node_id, "cluster": NODE_CLUSTER},
        "admin": {"address": {"pipe": {"path": str(admin_socket), "mode": 0o600}}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [service],
            },
            "cds_config": {"ads": {}, "resource_api_version": "V3"},
            "lds_config": {"ads": {}, "resource_api_version": "V3"},
        },
        "cluster_manager": {
            "load_stats_config": {"api_type": "GRPC", "transport_api_version": "V3", "grpc_services": [service]}
        },
        "static_resources": {
            "listeners": [_metrics_listener(*metrics)],
            "clusters": [
                {
                    "name": ADMIN_CLUSTER,
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "load_assignment": {
                        "cluster_name": ADMIN_CLUSTER,
                        "endpoints": [
                            {"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": str(admin_socket)}}}}]}
                        ],
                    },
                },
                {
                    "name": XDS_CLUSTER,
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2
                    },
                    "load_assignment": {
                        "cluster_name": XDS_CLUSTER,
                        "endpoints": [
                            {"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": str(xds_socket)}}}}]}
                        ],
                    },
                },
            ],
        },
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3"
                        ".DownstreamConnectionsConfig",
                        "max_active_downstream_connections": 50_000,
                    },
                }
            ]
        },
    }


def _metrics_listener(host: str, port: int) -> dict[str, Any]:
    """Prometheus statistics, and nothing else of the admin interface."""
    action = {"cluster": ADMIN_CLUSTER, "prefix_rewrite": STATISTICS}
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "metrics",
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "metrics",
                    "domains": ["*"],
                    "routes": [{"match": {"path": path}, "route": action} for path in (STATISTICS, "/metrics")],
                }
            ]
        },
    }
    return {
        "name": "metrics",
        "address": {"socket_address": {"address": host, "port_value": port}},
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }
