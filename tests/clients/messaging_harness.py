"""A broker with its gRPC front, without a platform: what the client and fault tests of messaging run against."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sampan.kernel.clock import Clock
from sampan.kernel.grpc import GrpcServer
from sampan.kernel.tasks import Tasks
from sampan.parts.messaging.core import Core
from sampan.parts.messaging.fronts.grpc.service import MessagingService


@dataclass
class Running:
    """A running broker."""

    core: Core
    clock: Clock
    port: int
    server: GrpcServer

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@asynccontextmanager
async def broker(
    directory: Path, *, clock: Clock | None = None, port: int = 0, **settings: Any
) -> AsyncIterator[Running]:
    """Run a broker in this loop."""
    clock = clock or Clock()
    tls = settings.pop("tls", None)
    async with Tasks(clock, "messaging") as tasks:
        core = Core(directory, clock, tasks, **settings)
        await core.start()
        listener = socket.create_server(("127.0.0.1", port), backlog=512)
        address = ("127.0.0.1", listener.getsockname()[1])
        core.broker.store_host = address
        service = MessagingService(core, tasks, lambda: address)
        server = GrpcServer(service.methods(), clock=clock, tasks=tasks, tls=tls, answered=service.answered)
        await server.start(listener)
        try:
            yield Running(core, clock, address[1], server)
        finally:
            await server.stop()
            await core.stop()
