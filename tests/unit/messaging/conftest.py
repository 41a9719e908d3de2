"""A broker's core on a frozen clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.parts.messaging import record
from sampan.parts.messaging.consumption import Delivery, Poll
from sampan.parts.messaging.core import Core
from sampan.parts.messaging.delivery import Held
from sampan.parts.messaging.errors import MessagingError
from sampan.parts.messaging.filters import EVERYTHING, Filter
from sampan.parts.messaging.record import Message


class Bench:
    """A core, and short ways to use it."""

    def __init__(self, core: Core, clock: Clock) -> None:
        self.core = core
        self.clock = clock
        self._count = 0

    async def send(self, topic: str, body: bytes = b"x", **properties: str) -> Message:
        """Store a message; a ``deliver_at`` (ms) holds it, ``half`` makes it transactional."""
        self._count += 1
        deliver_at, half = properties.pop("deliver_at", None), properties.pop("half", None)
        message = Message(topic, body, {"UNIQ_KEY": f"id-{self._count}", **properties}, born_ms=self.clock.time_ms())
        target = self.core.broker.topic(topic, create=True)
        done = Outcome()
        if deliver_at is not None:
            message.properties[record.DELIVER_MS] = str(deliver_at)
            self.core.broker.hold(message, target, int(deliver_at), done)
        elif half is not None:
            message.properties[record.TRANSACTION] = "true"
            self.core.broker.prepare(message, target, done)
        else:
            self.core.broker.send(message, target, record.encode_properties(message.properties), done)
        await done
        return message

    async def receive(
        self,
        topic: str,
        group: str = "g",
        *,
        batch: int = 32,
        invisible: float = 30,
        wait: float = 0,
        filter: Filter = EVERYTHING,
        call: str = "",
        client: str = "c",
        renew: bool = False,
    ) -> list[Delivery]:
        """One receive call."""
        future: asyncio.Future[list[Delivery]] = asyncio.get_running_loop().create_future()

        def deliver(taken: list[Delivery]) -> bool:
            future.set_result(taken)
            return True

        target = self.core.broker.topic(topic)
        self.core.consumption.receive(
            Poll(
                group, target, -1, filter, batch, int(invisible * 1000), int(wait * 1000), client, renew, call, deliver
            )
        )
        return await future

    async def bodies(self, topic: str, group: str = "g", **terms: Any) -> list[bytes]:
        """What one receive call gets."""
        return [record.decode(d.data or b"").body for d in await self.receive(topic, group, **terms)]

    async def acknowledge(self, topic: str, deliveries: list[Delivery], group: str = "g") -> list[bool]:
        """Acknowledge, and wait until it is on disk."""
        done = Outcome()
        valid = self.core.consumption.acknowledge(group, topic, [d.receipt for d in deliveries], done)
        if any(valid):
            await done
        return valid

    async def settle(self, condition: Callable[[], bool] = lambda: False, turns: int = 200) -> None:
        """Let the broker's own work go on until a condition holds (or for a moment)."""
        for _ in range(turns):
            if condition():
                return
            await asyncio.sleep(0.002)

    async def jump(self, seconds: float) -> None:
        """Move the clock and let everything that is due happen."""
        self.clock.jump(seconds)
        await self.settle(turns=15)


class Outcome:
    """A ``done`` one can await."""

    def __init__(self) -> None:
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __call__(self, error: MessagingError | None) -> None:
        if error is not None:
            self._future.set_exception(error)
        else:
            self._future.set_result(None)

    def __await__(self) -> Any:
        return self._future.__await__()


@asynccontextmanager
async def started(path: Path, clock: Clock, **settings: Any) -> AsyncIterator[Bench]:
    """A running core on a directory."""
    async with Tasks(clock) as tasks:
        core = Core(path, clock, tasks, **settings)
        await core.start()
        try:
            yield Bench(core, clock)
        finally:
            await core.stop()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    clock = Clock()
    clock.freeze()
    async with started(tmp_path, clock) as running:
        yield running


def state_of(bench: Bench) -> object:
    """What the store knows, for comparing."""
    store, now_ms = bench.core.store, bench.clock.time_ms()

    def ends(held: Held) -> int:
        return held.visible_ms if held.visible_ms > now_ms else 0  # that a lease has ended is noticed, not written

    return (
        {
            name: [(q.number, q.minimum, q.maximum, q.next) for q in topic.queues]
            for name, topic in store.topics.items()
        },
        {
            key: {
                number: (q.next, {o: (h.attempt, h.serial, ends(h), h.key) for o, h in q.held.items()})
                for number, q in progress.queues.items()
                if q.next or q.held
            }
            for key, progress in store.progress.items()
        },
        sorted(store.timers),
        sorted(store.halves),
        store.groups,
    )
