"""Messaging: a RocketMQ-compatible broker. Read this first.

The part puts a `Core` (store, delivery, held messages, clients; no protocol) on its data directory and the gRPC front on a
port. Settings are grouped as users think of them: where it listens, how durable it is, what is created on demand, how long
messages live, and what clients may ask for. Listening anywhere but on loopback turns access control on; the first start then
makes a super user ``sampan`` whose secret stands in ``credentials.json`` in the part's folder.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import secrets
import socket
import sys
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from msgspec import Meta

from sampan.kernel.errors import SettingsError
from sampan.kernel.part import Part, PartContext, PartSettings

if TYPE_CHECKING:
    # the broker lives in a process of its own: the core process, which reads this module too, need not load it
    from sampan.kernel.grpc import GrpcServer
    from sampan.parts.messaging.broker import Limits
    from sampan.parts.messaging.core import Core

SWITCH_INTERVAL = 0.0001
"""Seconds the loop's thread may keep the interpreter while the log's thread waits for it to report a finished fsync."""
MIRROR_RETRY = 5.0
"""Seconds until the API server is asked again after it refused the part's kinds."""


class MessagingSettings(PartSettings):
    """Settings of the broker."""

    grpc_port: Annotated[int, Meta(description="port of the gRPC front (TLS and plaintext)")] = 8081
    host: Annotated[
        str, Meta(description="address the fronts listen on; anything but loopback demands access control")
    ] = "127.0.0.1"
    access_control: Annotated[
        bool | None, Meta(description="demand signed requests; unset: only when not listening on loopback")
    ] = None
    proxy_protocol: Annotated[
        bool, Meta(description="believe a connection's HAProxy PROXY header about where the client is")
    ] = False
    broker_name: Annotated[str, Meta(description="name of the broker in routes and receipts")] = "sampan"
    flush: Annotated[
        str,
        Meta(description="`sync`: acknowledge after fsync; `async`: fsync twice a second", pattern="^(sync|async)$"),
    ] = "sync"
    segment_mb: Annotated[int, Meta(description="size of a commit log file in MiB", ge=1, le=1024)] = 256
    reserve_mb: Annotated[int, Meta(description="refuse messages when less disk than this is free", ge=0)] = 256
    retention_hours: Annotated[float, Meta(description="how long messages are kept, consumed or not", gt=0)] = 72.0
    retention_mb: Annotated[int, Meta(description="how much commit log is kept at most, in MiB", ge=1)] = 65_536
    auto_create_topics: Annotated[bool, Meta(description="create a topic when a client first names it")] = True
    auto_create_groups: Annotated[bool, Meta(description="create a consumer group when a client first names it")] = True
    default_queues: Annotated[int, Meta(description="queues of a topic created on demand", ge=1, le=1024)] = 8
    max_body_bytes: Annotated[int, Meta(description="largest message body", ge=1, le=33_554_432)] = 4_194_304
    max_delay_seconds: Annotated[int, Meta(description="longest delay of a message", ge=1)] = 259_200
    max_properties_bytes: Annotated[int, Meta(description="largest sum of properties, tag and keys", le=32_000)] = (
        16_384
    )
    validate_message_type: Annotated[bool, Meta(description="refuse messages of a type their topic does not take")] = (
        True
    )
    recall: Annotated[bool, Meta(description="let producers take delayed messages back")] = True
    transaction_timeout_seconds: Annotated[
        float, Meta(description="time after which the producer of an open transaction is asked")
    ] = 6.0
    transaction_check_seconds: Annotated[float, Meta(description="time between two such questions", gt=0)] = 30.0
    transaction_max_checks: Annotated[int, Meta(description="questions after which a transaction is given up")] = 15


class MessagingPart(Part[MessagingSettings]):
    """The broker as a part."""

    name: ClassVar[str] = "messaging"
    settings_type = MessagingSettings
    wants: ClassVar[tuple[str, ...]] = ("kubernetes",)
    own_process: ClassVar[bool] = True

    _core: Core | None = None
    _server: GrpcServer | None = None
    _socket: socket.socket | None = None

    def __init__(self, context: PartContext[MessagingSettings]) -> None:
        super().__init__(context)
        self._kinds_tried = asyncio.Event()
        """The kinds are defined, or cannot be yet."""

    async def provision(self) -> None:
        """Bind the port and open the store."""
        from sampan.parts.messaging.core import Core, Retention

        settings = self.context.settings
        loopback = _is_loopback(settings.host)
        if not loopback and settings.access_control is False:
            raise SettingsError(
                f"messaging.host {settings.host} is not loopback, so messaging.access_control cannot be turned off"
            )
        self._socket = self.context.listeners.bind("messaging.grpc", settings.grpc_port, settings.host)
        self._core = Core(
            self.context.data_dir,
            self.context.clock,
            self.context.tasks,
            limits=_limits(settings),
            retention=Retention(settings.retention_hours, settings.retention_mb << 20),
            segment_bytes=settings.segment_mb << 20,
            sync=settings.flush == "sync",
            reserve_bytes=settings.reserve_mb << 20,
            name=settings.broker_name,
        )
        self._core.access.enabled = not loopback if settings.access_control is None else settings.access_control

    async def start(self) -> None:
        """Recover, then serve."""
        from sampan.kernel.grpc import GrpcServer
        from sampan.parts.messaging.fronts.grpc.operations import OperationsService
        from sampan.parts.messaging.fronts.grpc.service import MessagingService

        assert self._core is not None
        assert self._socket is not None
        sys.setswitchinterval(SWITCH_INTERVAL)
        core, context = self._core, self.context
        address = self._socket.getsockname()[:2]
        core.broker.store_host = address
        await core.start()
        if core.access.enabled:
            await self._make_credentials()
        service = MessagingService(core, context.tasks, lambda: address)
        operations = OperationsService(core, context.tasks)
        names = ["localhost", "127.0.0.1", "::1", context.settings.host]
        self._server = GrpcServer(
            [*service.methods(), *operations.methods()],
            clock=context.clock,
            tasks=context.tasks,
            tls=lambda: context.authority.server_context(sorted(set(names)), leaf="messaging"),
            proxy_protocol=context.settings.proxy_protocol,
            answered=service.answered,
        )
        await self._server.start(self._socket)
        from sampan.parts.messaging.metrics import BrokerMetrics

        context.metrics.register(BrokerMetrics(core, self._server))
        context.tasks.start("mirror", self._mirror(core))

    async def ready(self) -> None:
        """Topic is a kind that manifests may name as soon as the platform is ready."""
        await self._kinds_tried.wait()

    async def _mirror(self, core: Core) -> None:
        """Where Kubernetes is beside us, show topics and groups there and take what is declared there."""
        from sampan.kube.client import Client
        from sampan.kube.control.controller import ControlContext

        control = self.context.find(ControlContext)
        if control is None:
            self._kinds_tried.set()
            return
        from sampan.kube.control.definitions import install
        from sampan.kube.status import ApiError
        from sampan.parts.messaging.control.mirror import GroupMirror, TopicMirror
        from sampan.parts.messaging.resources import definitions

        while True:
            try:
                await install(self.context.get(Client), definitions())
                break
            except ApiError as error:  # the broker serves without its objects; nobody's messages wait for them
                self.context.log.warning("the kinds of messaging cannot be defined yet: %s", error)
                self._kinds_tried.set()
                await self.context.clock.sleep(MIRROR_RETRY)
        self._kinds_tried.set()
        for mirror in (TopicMirror(control, core), GroupMirror(control, core)):
            await mirror.start()

    async def drain(self) -> None:
        """Answer what is under way; parked receive calls end with the connections."""
        if self._server is not None:
            await self._server.stop()
            self._server = None

    async def stop(self) -> None:
        """Close the store."""
        if self._server is not None:
            await self._server.stop()
            self._server = None
        elif self._socket is not None:
            self._socket.close()
        if self._core is not None:
            await self._core.stop()
            self._core = None

    def status(self) -> dict[str, Any]:
        """Counts for ``sampan status``."""
        core = self._core
        if core is None:
            return {}
        return {
            "topics": len(core.store.topics),
            "groups": len(core.store.groups),
            "clients": sum(1 for _ in core.clients),
            "log_bytes": core.store.log.size,
            "delayed": core.store.timers.count,
            "open_transactions": len(core.store.halves),
            "access_control": core.access.enabled,
            "writable": not core.store.disk_full,
        }

    async def _make_credentials(self) -> None:
        """Make the first user; its secret is on disk before the user exists."""
        assert self._core is not None
        if self._core.access.users:
            return
        from sampan.kernel.files import write_private
        from sampan.parts.messaging.access import User

        user = User("sampan", secrets.token_urlsafe(32), super=True)
        credentials = json.dumps({"accessKey": user.name, "secretKey": user.secret})
        await asyncio.to_thread(write_private, self.context.data_dir / "credentials.json", credentials)
        self._core.set_user(user)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _limits(settings: MessagingSettings) -> Limits:
    from sampan.parts.messaging.broker import Limits

    return Limits(
        max_body_bytes=settings.max_body_bytes,
        max_properties_bytes=settings.max_properties_bytes,
        max_delay_ms=settings.max_delay_seconds * 1000,
        validate_type=settings.validate_message_type,
        auto_create_topics=settings.auto_create_topics,
        auto_create_groups=settings.auto_create_groups,
        default_queues=settings.default_queues,
        recall=settings.recall,
        transaction_timeout_ms=int(settings.transaction_timeout_seconds * 1000),
        transaction_check_interval_ms=int(settings.transaction_check_seconds * 1000),
        transaction_max_checks=settings.transaction_max_checks,
    )
