"""Telemetry streams, without a connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

from sampan.kernel.grpc import RESOURCE_EXHAUSTED
from sampan.kernel.tasks import Tasks
from sampan.parts.messaging.fronts.grpc.telemetry import OUTBOX_LIMIT, Telemetry
from sampan.proto import messaging_pb2 as pb
from tests.unit.messaging.conftest import Bench


class PlayedCall:
    """What a handler has of a call."""

    def __init__(self) -> None:
        self.metadata = {"x-mq-client-id": "c1"}
        self.failed: int | None = None

    def fail(self, code: int, message: str) -> None:
        self.failed = code


async def test_a_client_that_says_settings_and_reads_nothing_is_cut_off(bench: Bench) -> None:
    settings = pb.Settings()
    settings.publishing.topics.add(name="orders")
    call, more = PlayedCall(), asyncio.Event()

    async def commands() -> AsyncIterator[pb.TelemetryCommand]:
        yield pb.TelemetryCommand(settings=settings)
        await more.wait()
        for _ in range(OUTBOX_LIMIT + 10):
            yield pb.TelemetryCommand(settings=settings)

    async with Tasks(bench.clock) as tasks:
        telemetry = Telemetry(bench.core.broker, bench.core.clients, tasks, lambda call, client: None)
        replies = telemetry.converse(commands(), cast(Any, call))
        assert (await anext(replies)).HasField("settings")
        more.set()  # while nobody asks for another reply
        await bench.settle(lambda: call.failed is not None)
        assert call.failed == RESOURCE_EXHAUSTED
        assert [reply async for reply in replies] == []  # the stream is over
        client = bench.core.clients.get("c1")
        assert client is not None and not client.connected
