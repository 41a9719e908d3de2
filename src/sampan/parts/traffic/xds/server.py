"""The control plane's gRPC server: aggregated discovery, load reports and access logs over one Unix socket.

Publication is make-before-break. A new snapshot goes out in three steps, each acknowledged by every connected Envoy before
the next: what others refer to (clusters, endpoints, secrets), then what refers to it (listeners, routes), then the removals.
An Envoy that does not answer in time is not waited for; it has the newest snapshot on its stream either way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from sampan.kernel.clock import Clock
from sampan.parts.traffic.xds import schema
from sampan.parts.traffic.xds.delta import Request, Response, Stream
from sampan.parts.traffic.xds.snapshot import Snapshot

log = logging.getLogger(__name__)

ACK_TIMEOUT = 5.0
"""Seconds to wait for an Envoy's acknowledgement of one step."""
ACK_SLICES = 20
SETTLE = 1.0
"""Seconds after which a new stream has asked for everything it wants."""
REFERRED = (schema.CLUSTER, schema.ENDPOINTS, schema.SECRET)
REFERRING = (schema.LISTENER, schema.ROUTES)

LoadReport = Callable[[Any], None]
"""Called with each decoded LoadStatsRequest."""
AccessLog = Callable[[str, Any], None]
"""Called with the log's name and each decoded StreamAccessLogsMessage."""


class _Connection:
    """One connected Envoy: its stream state, what is to be sent, and who waits for acknowledgements."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.stream = Stream(snapshot)
        self.outgoing: asyncio.Queue[Response] = asyncio.Queue()
        self.settled = asyncio.Event()

    def send(self, responses: list[Response]) -> None:
        for response in responses:
            self.outgoing.put_nowait(response)
        self._note()

    def take(self, request: Request) -> None:
        self.send(self.stream.request(request))

    def _note(self) -> None:
        if self.stream.pending:
            self.settled.clear()
        else:
            self.settled.set()


class ControlPlane:
    """Serves snapshots to Envoys and tells what they accepted.

    ``on_load`` and ``on_access`` receive load reports and access log batches; they must not block.
    """

    def __init__(
        self, socket: Path, clock: Clock, *, on_load: LoadReport, on_access: AccessLog, load_interval: float
    ) -> None:
        self._socket = socket
        self._clock = clock
        self._on_load = on_load
        self._on_access = on_access
        self._load_interval = load_interval
        self._snapshot = Snapshot()
        self._connections: set[_Connection] = set()
        self._publishing = asyncio.Lock()
        self.on_disconnect: Callable[[], None] | None = None
        """Called when an Envoy's stream ends: what was under way there will not be reported."""
        self.on_rejected: Callable[[], None] | None = None
        """Called when an Envoy refuses something while nothing is being published."""
        self._server: grpc.aio.Server | None = None
        self._connected = asyncio.Event()

    async def start(self) -> None:
        """Listen on the Unix socket."""
        self._socket.unlink(missing_ok=True)
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", 64 << 20)])
        handlers = {
            "envoy.service.discovery.v3.AggregatedDiscoveryService": {
                "DeltaAggregatedResources": _bidi(self._deltas, "envoy.service.discovery.v3.DeltaDiscoveryRequest"),
            },
            "envoy.service.load_stats.v3.LoadReportingService": {
                "StreamLoadStats": _bidi(self._loads, "envoy.service.load_stats.v3.LoadStatsRequest"),
            },
            "envoy.service.accesslog.v3.AccessLogService": {
                "StreamAccessLogs": grpc.stream_unary_rpc_method_handler(
                    self._access_logs,
                    request_deserializer=schema.message_type(
                        "envoy.service.accesslog.v3.StreamAccessLogsMessage"
                    ).FromString,
                    response_serializer=_serialize,
                )
            },
        }
        for service, methods in handlers.items():
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
        server.add_insecure_port(f"unix:{self._socket}")
        await server.start()
        self._socket.chmod(0o600)
        self._server = server

    async def stop(self) -> None:
        """End the streams and close; Envoys keep their configuration."""
        if self._server is not None:
            await self._server.stop(0.2)
            self._server = None

    @property
    def connections(self) -> int:
        """Envoys connected now."""
        return len(self._connections)

    async def wait_connected(self) -> None:
        """Return once an Envoy is connected."""
        await self._connected.wait()

    def rejected(self) -> dict[tuple[str, str], tuple[str, str]]:
        """What Envoys refuse at present: (type, name) to (version, reason)."""
        return {key: value for connection in self._connections for key, value in connection.stream.rejected.items()}

    async def publish(self, snapshot: Snapshot) -> bool:
        """Bring every Envoy to a snapshot; returns when they have acknowledged it (or had their time).

        True when there is an Envoy, and all of them have taken it but for what is `rejected`.
        """
        async with self._publishing:
            before = self._snapshot
            during = before.merged(snapshot)
            # an Envoy that connects meanwhile gets everything at once
            self._snapshot = during
            await self._step(during, REFERRED, removals=False)
            await self._step(during, REFERRING, removals=False)
            self._snapshot = snapshot
            await self._step(snapshot, (*reversed(REFERRING), *REFERRED), removals=True)
            return bool(self._connections) and not any(one.stream.pending for one in self._connections)

    async def _step(self, snapshot: Snapshot, types: tuple[str, ...], *, removals: bool) -> None:
        waiting = []
        for connection in list(self._connections):
            responses = connection.stream.update(snapshot, types, removals=removals)
            if responses:
                connection.send(responses)
                waiting.append(connection)
        if not waiting:
            return
        # in slices: Envoy's time is the machine's, and a jump of our clock must cost it no more than one of them
        for _ in range(ACK_SLICES):
            try:
                async with self._clock.patience(ACK_TIMEOUT / ACK_SLICES):
                    for connection in waiting:
                        while connection in self._connections and connection.stream.pending:
                            connection.settled.clear()
                            await connection.settled.wait()
            except TimeoutError:
                continue
            return
        log.warning("an Envoy did not acknowledge its configuration within %.0f s", ACK_TIMEOUT)

    async def _deltas(
        self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        connection = _Connection(self._snapshot)
        self._connections.add(connection)
        self._connected.set()
        response_type = schema.message_type("envoy.service.discovery.v3.DeltaDiscoveryResponse")

        async def read() -> None:
            async for message in requests:
                request = _request(message)
                connection.take(request)
                if request.error is not None and self.on_rejected is not None and not self._publishing.locked():
                    self.on_rejected()

        async with asyncio.TaskGroup() as group:
            reader = group.create_task(read())
            cleaner = group.create_task(self._clean(connection))
            reader.add_done_callback(lambda _: connection.outgoing.put_nowait(_END))
            try:
                while (response := await connection.outgoing.get()) is not _END:
                    yield _response(response_type, response)
            finally:
                reader.cancel()
                cleaner.cancel()
                self._connections.discard(connection)
                connection.settled.set()
                if self.on_disconnect is not None:
                    self.on_disconnect()
                if not self._connections:
                    self._connected.clear()

    async def _clean(self, connection: _Connection) -> None:
        """Remove what a reconnected Envoy still holds of before, once it has all that replaces it."""
        await self._clock.sleep(SETTLE)
        async with self._publishing:
            types = (*reversed(REFERRING), *REFERRED)
            connection.send(connection.stream.update(self._snapshot, types, removals=True))

    async def _loads(
        self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        response = schema.message_type("envoy.service.load_stats.v3.LoadStatsResponse")()
        response.send_all_clusters = True  # type: ignore[attr-defined]
        response.report_endpoint_granularity = True  # type: ignore[attr-defined]
        interval = response.load_reporting_interval  # type: ignore[attr-defined]
        interval.seconds = int(self._load_interval)
        interval.nanos = int(self._load_interval % 1 * 1e9)
        first = True
        async for report in requests:
            if first:
                first = False
                yield response
            self._on_load(report)

    async def _access_logs(self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        name = ""
        async for batch in requests:
            name = batch.identifier.log_name or name
            self._on_access(name, batch)
        return schema.message_type("envoy.service.accesslog.v3.StreamAccessLogsResponse")()


_END = Response("", "", (), ())


def _bidi(handler: Any, request_type: str) -> Any:
    return grpc.stream_stream_rpc_method_handler(
        handler,
        request_deserializer=schema.message_type(request_type).FromString,
        response_serializer=_serialize,
    )


def _serialize(message: Any) -> bytes:
    data: bytes = message if isinstance(message, bytes) else message.SerializeToString()
    return data


def _request(message: Any) -> Request:
    failed = message.HasField("error_detail")
    return Request(
        message.type_url,
        tuple(message.resource_names_subscribe),
        tuple(message.resource_names_unsubscribe),
        dict(message.initial_resource_versions),
        message.response_nonce,
        message.error_detail.message if failed else None,
    )


def _response(response_type: Any, response: Response) -> bytes:
    message = response_type(type_url=response.type_url, nonce=response.nonce, removed_resources=list(response.removed))
    for one in response.resources:
        added = message.resources.add(name=one.name, version=one.version)
        added.resource.type_url = response.type_url
        added.resource.value = one.data
    data: bytes = message.SerializeToString()
    return data
