"""Writes the xDS schema the traffic part ships: one compressed FileDescriptorSet with every message it builds or reads.

Run it in a throw-away environment that holds ``xds-protos`` (which must never be installed beside Sampan: it overwrites
files of other packages)::

    python -m venv /tmp/xds && /tmp/xds/bin/pip install xds-protos && /tmp/xds/bin/python tools/build_xds_schema.py

The schema is Envoy's, under the Apache License 2.0.
"""

import gzip
import importlib
from pathlib import Path

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor

MODULES = [
    "envoy.config.cluster.v3.cluster",
    "envoy.config.endpoint.v3.endpoint",
    "envoy.config.listener.v3.listener",
    "envoy.config.route.v3.route",
    "envoy.extensions.access_loggers.file.v3.file",
    "envoy.extensions.access_loggers.grpc.v3.als",
    "envoy.extensions.common.matching.v3.extension_matcher",
    "envoy.extensions.filters.common.matcher.action.v3.skip_action",
    "envoy.extensions.filters.http.cors.v3.cors",
    "envoy.extensions.filters.http.lua.v3.lua",
    "envoy.extensions.filters.http.router.v3.router",
    "envoy.extensions.filters.http.stateful_session.v3.stateful_session",
    "envoy.extensions.filters.listener.tls_inspector.v3.tls_inspector",
    "envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager",
    "envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy",
    "envoy.extensions.filters.udp.udp_proxy.v3.route",
    "envoy.extensions.filters.udp.udp_proxy.v3.udp_proxy",
    "envoy.extensions.http.stateful_session.cookie.v3.cookie",
    "envoy.extensions.http.stateful_session.header.v3.header",
    "envoy.extensions.retry.host.previous_hosts.v3.previous_hosts",
    "envoy.extensions.transport_sockets.tls.v3.tls",
    "envoy.extensions.upstreams.http.v3.http_protocol_options",
    "envoy.service.accesslog.v3.als",
    "envoy.service.discovery.v3.ads",
    "envoy.service.discovery.v3.discovery",
    "envoy.service.load_stats.v3.lrs",
    "envoy.type.matcher.v3.http_inputs",
    "xds.type.matcher.v3.matcher",
]

TARGET = Path(__file__).parent.parent / "src/sampan/parts/traffic/xds/schema.binpb.gz"


def main() -> None:
    """Collect the files in dependency order and write them."""
    files = descriptor_pb2.FileDescriptorSet()
    seen: set[str] = set()

    def add(file: FileDescriptor) -> None:
        if file.name in seen:
            return
        seen.add(file.name)
        for dependency in file.dependencies:
            add(dependency)
        proto = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(proto)
        proto.ClearField("source_code_info")
        files.file.append(proto)

    for module in MODULES:
        add(importlib.import_module(f"{module}_pb2").DESCRIPTOR)
    data = gzip.compress(files.SerializeToString(deterministic=True), 9, mtime=0)
    TARGET.write_bytes(data)
    print(f"{len(files.file)} files, {len(data)} bytes -> {TARGET}")


if __name__ == "__main__":
    main()
