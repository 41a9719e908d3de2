"""The control plane's gRPC server: aggregated discovery, load reports and access logs over one Unix socket.

Publication is make-before-break. A new snapshot goes out in three steps, each acknowledged by every connected Envoy before
the next: what others refer to (clusters, endpoints, secrets), then what refers to it (listeners, routes), then the removals.
An Envoy that does not answer in time is not waited for until it has caught up; one that has owed an answer for long is hung
up on, and asks for what it lacks when it comes back.

Clusters that nothing refers to any more are kept a while before they are removed: who switches back and forth between backends
does not wait for them to be made again.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from sampan.kernel.clock import Clock
from sampan.kernel.grpc import UNAVAILABLE, Call, GrpcServer, Method
from sampan.kernel.tasks import Tasks
from sampan.parts.traffic.xds import schema
from sampan.parts.traffic.xds.delta import Request, Response, Stream
from sampan.parts.traffic.xds.snapshot import REFERRED, REFERRING, Resource, Snapshot

log = logging.getLogger(__name__)

MAX_MESSAGE = 64 << 20
"""Bytes of the largest request taken; a load report names every endpoint."""
ACK_TIMEOUT = 5.0
"""Seconds to wait for an Envoy's acknowledgement of one step."""
HANG_UP = 30.0
"""Seconds an Envoy may owe an acknowledgement before its stream is ended."""
SETTLE = 1.0
"""Seconds after which a new stream has asked for everything it wants."""
LINGER = 30.0
"""Seconds a cluster is kept that nothing refers to any more."""
KEPT = (schema.CLUSTER, schema.ENDPOINTS)

LoadReport = Callable[[Any], None]
"""Called with each decoded LoadStatsRequest."""
AccessLog = Callable[[str, Any], None]
"""Called with the log's name and each decoded StreamAccessLogsMessage."""


class _Connection:
    """One connected Envoy: its stream state, and who waits for acknowledgements."""

    def __init__(self, snapshot: Snapshot, call: Call, machine: Clock) -> None:
        self.stream = Stream(snapshot)
        self.settled = asyncio.Event()
        self.settled.set()
        self.slow = False
        """It did not answer in time, and still owes an answer."""
        self._owing: float | None = None
        self._call = call
        self._machine = machine

    @property
    def silence(self) -> float:
        """Seconds for which it has owed an answer and said nothing."""
        return 0.0 if self._owing is None else self._machine.monotonic() - self._owing

    def send(self, responses: list[Response]) -> None:
        """Send these at once."""
        if responses:
            self._call.send(*map(_response, responses))
            self._call.flush()
        if self.stream.settled:
            self.slow, self._owing = False, None
            self.settled.set()
        else:
            self._owing = self._owing or self._machine.monotonic()
            self.settled.clear()

    def take(self, request: Request) -> None:
        """A request of Envoy's."""
        self._owing = None
        self.send(self.stream.request(request))

    def hang_up(self) -> None:
        """End the stream."""
        self._call.abort(UNAVAILABLE, "the configuration was not acknowledged")
        self._call.flush()


class ControlPlane:
    """Serves snapshots to Envoys and tells what they accepted.

    ``on_load`` and ``on_access`` receive load reports and access log batches; they must not block.
    """

    def __init__(
        self,
        path: Path,
        clock: Clock,
        tasks: Tasks,
        *,
        on_load: LoadReport,
        on_access: AccessLog,
        load_interval: float,
    ) -> None:
        """``path``: of the Unix socket."""
        self._path = path
        self._clock = clock
        self._tasks = tasks
        self._on_load = on_load
        self._on_access = on_access
        self._load_interval = load_interval
        self._machine = Clock()
        """Envoy lives on the machine's time, whatever becomes of the platform's."""
        self._wanted = Snapshot()
        self._snapshot = Snapshot()
        """What Envoys shall hold now: what is wanted, and what lingers."""
        self._lingering: dict[str, float] = {}
        """Until when clusters are kept that are not wanted any more."""
        self._some_linger = asyncio.Event()
        self._connections: set[_Connection] = set()
        self._publishing = asyncio.Lock()
        self.on_disconnect: Callable[[], None] | None = None
        """Called when an Envoy's stream ends: what was under way there will not be reported."""
        self.on_rejected: Callable[[], None] | None = None
        """Called when an Envoy refuses something while nothing is being published."""
        self._server: GrpcServer | None = None
        self._connected = asyncio.Event()

    async def start(self) -> None:
        """Listen on the Unix socket."""
        self._path.unlink(missing_ok=True)
        methods = [
            Method(f"/envoy.service.{path}", "bidirectional", bidirectional=handler)
            for path, handler in (
                ("discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources", self._deltas),
                ("load_stats.v3.LoadReportingService/StreamLoadStats", self._loads),
                ("accesslog.v3.AccessLogService/StreamAccessLogs", self._access_logs),
            )
        ]
        server = GrpcServer(methods, clock=self._clock, tasks=self._tasks, max_message=MAX_MESSAGE)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self._path))
        self._path.chmod(0o600)  # before anybody can connect
        listener.listen()
        await server.start(listener)
        self._server = server
        self._tasks.keep("xds removals", self._retire)

    async def stop(self) -> None:
        """End the streams and close; Envoys keep their configuration."""
        if self._server is not None:
            await self._server.stop()
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
            self._wanted = snapshot
            return await self._bring(self._with_lingering(snapshot))

    async def _bring(self, snapshot: Snapshot) -> bool:
        before = self._snapshot
        during = before.merged(snapshot)
        # an Envoy that connects meanwhile gets everything at once
        self._snapshot = during
        await self._step(during, REFERRED, removals=False)
        await self._step(during, REFERRING, removals=False)
        self._snapshot = snapshot
        await self._step(snapshot, (*reversed(REFERRING), *REFERRED), removals=True)
        return bool(self._connections) and all(one.stream.settled for one in self._connections)

    def _with_lingering(self, snapshot: Snapshot) -> Snapshot:
        """A wanted snapshot and the clusters that linger."""
        now, before = self._machine.monotonic(), self._snapshot.of(schema.CLUSTER)
        gone = () if snapshot.of(schema.CLUSTER) is before else before.keys() - snapshot.of(schema.CLUSTER).keys()
        until = {name: self._lingering.get(name, now + LINGER) for name in gone}
        self._lingering = {name: when for name, when in until.items() if when > now}
        if not self._lingering:
            return snapshot
        self._some_linger.set()
        return Snapshot({**snapshot.resources, **{kind: self._lingering_of(kind, snapshot) for kind in KEPT}})

    def _lingering_of(self, kind: str, snapshot: Snapshot) -> dict[str, Resource]:
        held = self._snapshot.of(kind)
        return {**{name: held[name] for name in self._lingering if name in held}, **snapshot.of(kind)}

    async def _retire(self) -> None:
        """Remove clusters that have lingered."""
        while True:
            await self._some_linger.wait()
            await self._machine.sleep(LINGER)
            self._some_linger.clear()
            async with self._publishing:
                await self._bring(self._with_lingering(self._wanted))

    async def _step(self, snapshot: Snapshot, types: tuple[str, ...], *, removals: bool) -> None:
        waiting = []
        for connection in list(self._connections):
            connection.send(connection.stream.update(snapshot, types, removals=removals))
            if not (connection.slow or connection.stream.settled):
                waiting.append(connection)
        try:
            async with self._clock.patience(ACK_TIMEOUT):
                for connection in waiting:
                    await connection.settled.wait()
        except TimeoutError:
            log.warning("an Envoy did not acknowledge its configuration within %.0f s", ACK_TIMEOUT)
            for connection in waiting:
                connection.slow = not connection.settled.is_set()

    async def _deltas(self, requests: AsyncIterator[bytes], call: Call) -> AsyncIterator[bytes]:
        connection = _Connection(self._snapshot, call, self._machine)
        self._connections.add(connection)
        self._connected.set()
        minder = self._tasks.start("xds stream", self._mind(connection))
        parse = schema.message_type("envoy.service.discovery.v3.DeltaDiscoveryRequest").FromString
        try:
            async for payload in requests:
                request = _request(parse(payload))
                connection.take(request)
                if request.error is not None and self.on_rejected is not None and not self._publishing.locked():
                    self.on_rejected()
        finally:
            minder.cancel()
            self._connections.discard(connection)
            connection.settled.set()
            if self.on_disconnect is not None:
                self.on_disconnect()
            if not self._connections:
                self._connected.clear()
        return
        yield b""  # everything is sent as it comes about

    async def _mind(self, connection: _Connection) -> None:
        """Remove what a reconnected Envoy still holds of before, once it has all that replaces it; hang up on one that hangs."""
        await self._machine.sleep(SETTLE)
        async with self._publishing:
            types = (*reversed(REFERRING), *REFERRED)
            connection.send(connection.stream.update(self._snapshot, types, removals=True))
        while connection.silence < HANG_UP:
            await self._machine.sleep(HANG_UP / 10)
        log.warning("an Envoy has not answered for %.0f s: its stream is ended", HANG_UP)
        connection.hang_up()

    async def _loads(self, requests: AsyncIterator[bytes], call: Call) -> AsyncIterator[bytes]:
        response: Any = schema.message_type("envoy.service.load_stats.v3.LoadStatsResponse")()
        response.send_all_clusters = True
        response.report_endpoint_granularity = True
        interval = response.load_reporting_interval
        interval.seconds = int(self._load_interval)
        interval.nanos = int(self._load_interval % 1 * 1e9)
        parse = schema.message_type("envoy.service.load_stats.v3.LoadStatsRequest").FromString
        first = True
        async for payload in requests:
            if first:
                first = False
                yield response.SerializeToString()
            self._on_load(parse(payload))

    async def _access_logs(self, requests: AsyncIterator[bytes], call: Call) -> AsyncIterator[bytes]:
        parse = schema.message_type("envoy.service.accesslog.v3.StreamAccessLogsMessage").FromString
        name = ""
        async for payload in requests:
            batch: Any = parse(payload)
            name = batch.identifier.log_name or name
            self._on_access(name, batch)
        yield schema.message_type("envoy.service.accesslog.v3.StreamAccessLogsResponse")().SerializeToString()


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


def _response(response: Response) -> bytes:
    kind = schema.message_type("envoy.service.discovery.v3.DeltaDiscoveryResponse")
    message: Any = kind(type_url=response.type_url, nonce=response.nonce, removed_resources=list(response.removed))
    for one in response.resources:
        added = message.resources.add(name=one.name, version=one.version)
        added.resource.type_url = response.type_url
        added.resource.value = one.data
    data: bytes = message.SerializeToString()
    return data
