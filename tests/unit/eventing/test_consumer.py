"""Reading as a member of a group: where the assignments say, in order where the group is, and again after trouble."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.parts.eventing.consumer import LATER, Consumer, Slot
from sampan.parts.messaging import MessagingClientError, Received
from sampan.proto import messaging_pb2 as pb


class Member:
    """A place in a group that the test gives and takes."""

    def __init__(self, fifo: bool) -> None:
        self.fifo, self.joined, self.problem = fifo, False, ""
        self.ended = False
        self._change = asyncio.Event()

    async def run(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.ended = True

    async def change(self) -> None:
        self._change.clear()
        await self._change.wait()

    def tell(self, joined: bool, problem: str = "") -> None:
        self.joined, self.problem = joined, problem
        self._change.set()


class Cluster:
    """Brokers with queues; messages are handed out once, and again when they are given back."""

    def __init__(self, *places: tuple[str, int], fifo: bool = False) -> None:
        self.clock = Clock()
        self.clock.freeze()
        self.member = Member(fifo)
        self.places = list(places)
        self.refuse = ""
        self.waiting: dict[tuple[str, int], list[Received]] = defaultdict(list)
        self.done: list[str] = []
        self.back: list[tuple[str, float]] = []
        self.handled: list[str] = []
        self.failing: dict[str, int] = {}
        self.told: list[tuple[bool, str]] = []

    def put(self, place: tuple[str, int], *bodies: str) -> None:
        for body in bodies:
            number = len(self.waiting[place])
            self.waiting[place].append(
                Received(topic="t", group="g", id=body, body=body.encode(), receipt="r", queue=place[1], offset=number)
            )

    async def assignments(self, group: str, topic: str) -> list[pb.MessageQueue]:
        return [pb.MessageQueue(id=number, broker=pb.Broker(name=name)) for name, number in self.places]

    async def receive(self, group: str, topic: str, *, queue: pb.MessageQueue, batch: int, **_: Any) -> list[Received]:
        if self.refuse:
            raise MessagingClientError(50001, self.refuse)
        place = (queue.broker.name, queue.id)
        while not self.waiting[place]:
            await self.clock.sleep(0.1)
        found, self.waiting[place] = self.waiting[place][:batch], self.waiting[place][batch:]
        return found

    async def acknowledge(self, *messages: Received) -> None:
        self.done += [one.id for one in messages]

    async def change_invisible(self, message: Received, seconds: float) -> None:
        self.back.append((message.id, seconds))

    async def handle(self, message: Received, slot: Slot) -> bool:
        self.handled.append(message.id)
        await self.clock.sleep(0)
        self.failing[message.id] = self.failing.get(message.id, 0) - 1
        return self.failing[message.id] < 0

    @asynccontextmanager
    async def consumer(self) -> AsyncIterator[Consumer]:
        async with Tasks(self.clock) as tasks:
            made = Consumer(
                lambda: cast(Any, self),
                self.clock,
                tasks,
                "g",
                "t",
                self.handle,
                member=cast(Any, self.member),
                changed=lambda: self.told.append((made.ready, made.problem)),
                machine=self.clock,
            )
            made.start()
            yield made
            await made.close()

    async def pass_time(self, seconds: float) -> None:
        end = self.clock.monotonic() + seconds
        while True:
            for _ in range(30):
                await asyncio.sleep(0)
            due = self.clock.next_timer()
            if due is None or due > end:
                return
            self.clock.jump(max(0.0, due - self.clock.monotonic()))


async def test_nothing_is_read_before_the_member_has_its_place() -> None:
    cluster = Cluster(("a", -1))
    cluster.put(("a", -1), "one")
    async with cluster.consumer() as consumer:
        await cluster.pass_time(1)
        assert (cluster.handled, consumer.ready) == ([], False)
        cluster.member.tell(False, "connection refused")
        await cluster.pass_time(1)
        assert cluster.told == [(False, "connection refused")]
        cluster.member.tell(True)
        await cluster.pass_time(1)
        assert (cluster.handled, cluster.done) == (["one"], ["one"])
        assert cluster.told[-1] == (True, "")
    assert cluster.member.ended, "it says good-bye"


async def test_every_broker_is_read_and_one_that_joins_later_too() -> None:
    cluster = Cluster(("a", -1), ("b", -1))
    cluster.put(("a", -1), "a0")
    cluster.put(("b", -1), "b0")
    cluster.member.tell(True)
    async with cluster.consumer():
        await cluster.pass_time(1)
        assert sorted(cluster.done) == ["a0", "b0"]
        cluster.places = [("b", -1), ("c", -1)]
        cluster.put(("c", -1), "c0")
        await cluster.pass_time(10)
        assert sorted(cluster.done) == ["a0", "b0", "c0"]


async def test_a_refusal_is_told_and_reading_goes_on_when_it_ends() -> None:
    cluster = Cluster(("a", -1))
    cluster.refuse = "settings is null"
    cluster.member.tell(True)
    async with cluster.consumer() as consumer:
        await cluster.pass_time(3)
        assert consumer.problem == "[50001] settings is null"
        cluster.refuse = ""
        cluster.put(("a", -1), "one")
        await cluster.pass_time(3)
        assert (cluster.done, consumer.problem) == (["one"], "")


async def test_in_an_ordered_group_what_is_behind_a_failed_message_comes_again_behind_it() -> None:
    cluster = Cluster(("a", 0), ("a", 1), fifo=True)
    cluster.put(("a", 0), "x0", "x1", "x2")
    cluster.put(("a", 1), "y0")
    cluster.failing["x1"] = 1
    cluster.member.tell(True)
    async with cluster.consumer():
        await cluster.pass_time(1)
        assert [one for one in cluster.handled if one.startswith("x")] == ["x0", "x1"]
        assert cluster.back == [("x1", LATER[0]), ("x2", LATER[0])]
        assert sorted(cluster.done) == ["x0", "y0"], "other queues go on"


async def test_in_an_ordinary_group_only_what_failed_comes_again() -> None:
    cluster = Cluster(("a", -1))
    cluster.put(("a", -1), "x0", "x1", "x2")
    cluster.failing["x1"] = 1
    cluster.member.tell(True)
    async with cluster.consumer():
        await cluster.pass_time(1)
        assert sorted(cluster.done) == ["x0", "x2"]
        assert cluster.back == [("x1", LATER[0])]
