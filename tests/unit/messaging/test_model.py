"""The whole broker against a simple specification: what a group may be given, what it must be given, and that restarts change
nothing.

The specification knows of each message whether it is visible, and of each group and message whether it is new, leased (until
when, by which call), ready again, done or dead, and how often it was handed out. Everything else is computed from that.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from sampan.kernel.clock import Clock
from sampan.parts.messaging import record
from sampan.parts.messaging.consumption import Delivery
from sampan.parts.messaging.errors import MessagingError
from sampan.parts.messaging.record import Message
from sampan.parts.messaging.topology import GroupConfig, TopicConfig
from tests.unit.messaging.conftest import Bench, Outcome, started

ATTEMPTS = 3
LEASE = 30_000
GROUPS = ("g", "h")
ORDERED = ("fifo", "lite")


@dataclass
class Spec:
    """One message."""

    body: bytes
    topic: str
    key: str = ""
    """What it must stay in order with: its message group, or its lite topic."""
    priority: int = 0
    visible: bool = True
    over: bool = False
    """Recalled or rolled back: nobody may ever see it."""
    due_ms: int = 0
    handle: str = ""
    transaction: str = ""
    turn: int = 0
    """When it became visible, relative to others."""


@dataclass
class Share:
    """What a group has done with a message."""

    attempts: int = 0
    until_ms: int = 0
    """Leased until then; 0: not leased."""
    delivery: Delivery | None = None
    """The lease in force."""
    call: str = ""
    done: bool = False
    dead: bool = False


@dataclass
class Running:
    """A broker in a task of its own, so that it can be stopped from another."""

    bench: Bench
    stop: asyncio.Event
    task: asyncio.Task[None] = field(repr=False)


class Model(RuleBasedStateMachine):
    """Steps against a broker and against the specification."""

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp(prefix="sampan-model-"))
        self.lives = 0
        self.clock = Clock()
        self.clock.freeze()
        self.messages: list[Spec] = []
        self.shares: dict[tuple[str, bytes], Share] = {}
        self.stale: list[tuple[str, Delivery]] = []
        self.turns = 0
        self.calls = 0
        self.buried: dict[str, list[bytes]] = {group: [] for group in GROUPS}
        self.run(self._start(self.folder / "0"))

        async def define() -> None:
            broker = self.bench.core.broker
            broker.create_topic(TopicConfig("plain", queues=2))
            broker.create_topic(TopicConfig("fifo", "FIFO", queues=2))
            broker.create_topic(TopicConfig("jobs", "PRIORITY", queues=3))
            broker.create_topic(TopicConfig("lite", "LITE"))
            for group in GROUPS:
                broker.create_group(GroupConfig(group, max_retries=ATTEMPTS - 1))
            self._subscribe()

        self.run(define())

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            self._everything_is_accounted_for()
        finally:
            self.run(self._stop())
            self.loop.close()
            shutil.rmtree(self.folder)

    # -- the broker

    def run(self, step: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(step)

    async def _start(self, path: Path) -> None:
        ready: asyncio.Future[Bench] = self.loop.create_future()
        stop = asyncio.Event()

        async def live() -> None:
            async with started(path, self.clock, segment_bytes=8_000) as bench:
                ready.set_result(bench)
                await stop.wait()

        task = self.loop.create_task(live())
        either: list[asyncio.Future[Any]] = [task, ready]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        self.path, self.bench = path, await ready
        self.bench._count = self.lives * 10_000  # ids are not given twice
        self.running = Running(self.bench, stop, task)

    async def _stop(self) -> None:
        self.running.stop.set()
        await self.running.task

    def _subscribe(self) -> None:
        core = self.bench.core
        core.lite.alive = lambda client: True
        for group in GROUPS:
            core.lite.subscribe(f"client-{group}", group, core.broker.topic("lite"), "set", ["a", "b"])

    async def _settle(self) -> None:
        """Wait until the broker has done everything it does on its own at this moment."""
        store = self.bench.core.store
        for _ in range(20_000):
            await asyncio.sleep(0)
            now = self.clock.time_ms()
            held = [held for progress in store.progress.values() for held in progress.held()]
            if (
                not store.waiting
                and store.timers.next_due() > now
                and not store.releasing
                and not self.bench.core.held._releasing
                and not any(one.dead or 0 < one.visible_ms <= now for one in held)
            ):
                return
            await asyncio.sleep(0.001)
        raise AssertionError("the broker does not come to rest")

    def _share(self, group: str, message: Spec) -> Share:
        return self.shares.setdefault((group, message.body), Share())

    def _visible(self, message: Spec) -> None:
        self.turns += 1
        message.visible, message.turn = True, self.turns

    def _expire(self) -> None:
        """What the specification says happens as time passes."""
        now = self.clock.time_ms()
        for message in sorted(self.messages, key=lambda one: one.due_ms):
            if message.due_ms and message.due_ms <= now and not message.visible and not message.over:
                self._visible(message)
        for (group, body), share in self.shares.items():
            if 0 < share.until_ms <= now:
                share.until_ms = 0
                share.dead = share.attempts >= ATTEMPTS
                if share.dead:
                    self.buried[group].append(body)

    # -- producers

    @rule(
        topic=st.sampled_from(["plain", "fifo", "jobs", "lite"]),
        keys=st.lists(st.sampled_from("ab"), min_size=1, max_size=5),
        priority=st.integers(0, 2),
    )
    def send(self, topic: str, keys: list[str], priority: int) -> None:
        for key in keys:
            message = Spec(f"m{len(self.messages)}".encode(), topic, visible=False)
            properties = {}
            if topic == "fifo":
                properties[record.SHARDING_KEY] = message.key = key
            elif topic == "jobs":
                properties[record.PRIORITY], message.priority = str(priority), priority
            elif topic == "lite":
                properties[record.LITE_TOPIC] = message.key = key
            self.messages.append(message)
            self.run(self._send(message, properties))
            self._visible(message)

    async def _send(self, message: Spec, properties: dict[str, str]) -> None:
        core, done = self.bench.core, Outcome()
        target = core.broker.topic(message.topic)
        if message.topic == "lite":
            target = core.lite.topic(target, message.key, create=True)
        stored = Message(target.name, message.body, {"UNIQ_KEY": message.body.decode(), **properties})
        core.broker.send(stored, target, record.encode_properties(stored.properties), done)
        await done

    @rule(ahead=st.integers(1, 60_000))
    def send_later(self, ahead: int) -> None:
        due = self.clock.time_ms() + ahead
        message = Spec(f"m{len(self.messages)}".encode(), "plain", visible=False, due_ms=due)
        stored = self.run(self.bench.send("plain", message.body, deliver_at=str(due)))
        message.handle = self.bench.core.held.recall_handle(stored, due)
        self.messages.append(message)

    @precondition(lambda self: any(one.handle for one in self.messages))
    @rule(data=st.data())
    def recall(self, data: Any) -> None:
        message = data.draw(st.sampled_from([one for one in self.messages if one.handle]))

        async def recall() -> bool:
            try:
                _, due_ms, position = await self.bench.core.held.recall("plain", message.handle)
            except MessagingError:
                return False
            done = Outcome()
            self.bench.core.held.close(due_ms, position, done)
            await done
            return True

        assert self.run(recall()) == (not message.visible and not message.over)
        message.over = message.over or not message.visible

    @rule()
    def prepare(self) -> None:
        message = Spec(f"m{len(self.messages)}".encode(), "plain", visible=False)
        message.transaction = self.run(self.bench.send("plain", message.body, half="1")).id
        self.messages.append(message)

    @precondition(lambda self: any(one.transaction for one in self.messages))
    @rule(data=st.data(), commit=st.booleans())
    def end_transaction(self, data: Any, commit: bool) -> None:
        message = data.draw(st.sampled_from([one for one in self.messages if one.transaction]))

        async def end() -> bool:
            done = Outcome()
            try:
                await self.bench.core.held.end(message.transaction, commit=commit, done=done)
            except MessagingError:
                return False
            await done
            return True

        assert self.run(end()) == (not message.visible and not message.over)
        if not message.visible and not message.over:
            if commit:
                self._visible(message)
            else:
                message.over = True

    # -- consumers

    @rule(
        group=st.sampled_from(GROUPS),
        topic=st.sampled_from(["plain", "fifo", "jobs", "lite"]),
        batch=st.integers(1, 6),
        again=st.booleans(),
    )
    def receive(self, group: str, topic: str, batch: int, again: bool) -> None:
        """A call, or (``again``) the last call once more, as of a client that lost the answer."""
        self.calls += 0 if again and self.calls else 1
        self._receive(group, topic, batch, f"{group}-{self.calls}")

    def _receive(self, group: str, topic: str, batch: int, call: str) -> list[bytes]:
        taken = self.run(
            self.bench.receive(topic, group, batch=batch, invisible=LEASE / 1000, call=call, client=f"client-{group}")
        )
        assert len(taken) <= batch
        wanted = {message.body: message for message in self.messages if message.topic == topic}
        got: list[bytes] = []
        for delivery in taken:
            message = wanted[record.decode(delivery.data or b"").body]
            share = self._share(group, message)
            assert message.visible, "a held message was handed out"
            assert not message.over, "a recalled or rolled back message was handed out"
            assert not share.done, "handed out after it was acknowledged"
            assert not share.dead, "handed out after it was given up"
            if share.until_ms:
                assert topic in ORDERED, "handed out while leased"
                assert share.call == call, "handed out while another call has it"
                assert delivery.attempt == share.attempts
                assert share.delivery is not None
                self.stale.append((group, share.delivery))
            else:
                share.attempts += 1
                assert delivery.attempt == share.attempts
                assert share.attempts <= ATTEMPTS
            if topic in ORDERED:
                for earlier in wanted.values():
                    if earlier.key == message.key and earlier.visible and earlier.turn < message.turn:
                        before = self._share(group, earlier)
                        assert before.done or before.dead or earlier.body in got, "overtook its message group"
            share.until_ms, share.delivery, share.call = self.clock.time_ms() + LEASE, delivery, call
            got.append(message.body)
        assert len(set(got)) == len(got)
        if topic == "jobs":
            priorities = [wanted[body].priority for body in got]
            assert priorities == sorted(priorities, reverse=True)
        left = self._available(group, topic, call)
        if len(taken) < batch:
            assert not left, "something was there and not handed out"
        elif topic == "jobs" and left:
            assert max(wanted[body].priority for body in left) <= min(wanted[body].priority for body in got)
        return got

    def _available(self, group: str, topic: str, call: str) -> list[bytes]:
        """What a call would have to be given now; as in the reference, a batch under way blocks what must stay in order with it."""
        found = []
        seen = {
            message.key
            for message in self.messages
            if topic in ORDERED
            and message.topic == topic
            and (share := self._share(group, message)).until_ms
            and share.call != call
        }
        for message in sorted(self.messages, key=lambda one: one.turn):
            share = self._share(group, message)
            if message.topic != topic or not message.visible or share.done or share.dead:
                continue
            blocked = topic in ORDERED and message.key in seen
            seen.add(message.key)
            if not share.until_ms and not blocked:
                found.append(message.body)
        return found

    def _leased(self) -> list[tuple[str, bytes]]:
        return sorted(key for key, share in self.shares.items() if share.until_ms)

    @precondition(lambda self: self._leased())
    @rule(data=st.data())
    def acknowledge(self, data: Any) -> None:
        for key in data.draw(st.lists(st.sampled_from(self._leased()), min_size=1, max_size=4, unique=True)):
            share = self.shares[key]
            assert share.delivery is not None
            assert self.run(self.bench.acknowledge(share.delivery.topic, [share.delivery], key[0])) == [True]
            share.done, share.until_ms = True, 0
            self.stale.append((key[0], share.delivery))

    @precondition(lambda self: self._leased())
    @rule(data=st.data(), ahead=st.sampled_from([0, 1, 10_000, 100_000]))
    def change(self, data: Any, ahead: int) -> None:
        key = data.draw(st.sampled_from(self._leased()))
        share = self.shares[key]
        delivery = share.delivery
        assert delivery is not None

        async def change() -> Any:
            done = Outcome()
            found = self.bench.core.consumption.change(key[0], delivery.topic, delivery.receipt, ahead, done)
            await done
            await self._settle()
            return found

        self.stale.append((key[0], delivery))
        new = self.run(change())
        share.delivery = Delivery(
            new, delivery.attempt, delivery.position, delivery.size, delivery.data, delivery.topic
        )
        share.until_ms = self.clock.time_ms() + ahead
        self._expire()

    @precondition(lambda self: self._leased())
    @rule(data=st.data())
    def forward(self, data: Any) -> None:
        key = data.draw(st.sampled_from(self._leased()))
        share = self.shares[key]
        delivery = share.delivery
        assert delivery is not None

        async def forward() -> None:
            done = Outcome()
            self.bench.core.consumption.forward(key[0], delivery.topic, delivery.receipt, done)
            await done
            await self._settle()

        self.run(forward())
        share.dead, share.until_ms = True, 0
        self.buried[key[0]].append(key[1])
        self.stale.append((key[0], delivery))

    @precondition(lambda self: self.stale)
    @rule(data=st.data())
    def a_void_receipt_does_nothing(self, data: Any) -> None:
        group, delivery = self.stale[data.draw(st.integers(0, len(self.stale) - 1))]
        assert self.run(self.bench.acknowledge(delivery.topic, [delivery], group)) == [False]

    # -- time and restarts

    @rule(step=st.sampled_from([1, 9_999, 10_000, 30_000, 100_000]))
    def time_passes(self, step: int) -> None:
        void = [
            (key[0], share.delivery)
            for key, share in self.shares.items()
            if share.delivery is not None and 0 < share.until_ms <= self.clock.time_ms() + step
        ]
        self.clock.jump(step / 1000)
        self.run(self._settle())
        self._expire()
        self.stale += void

    @rule(crash=st.booleans())
    def restart(self, crash: bool) -> None:
        """Stop and start, or (``crash``) start on a copy of what was on disk while it ran."""

        async def restart() -> None:
            store = self.bench.core.store
            store.log.flush()
            while store.log.durable < store.log.end or store._checkpointing:
                await asyncio.sleep(0.001)
            self.lives += 1
            path = self.folder / str(self.lives)
            if crash:
                shutil.copytree(self.path, path)
            await self._stop()
            if not crash:
                self.path.rename(path)
            else:
                shutil.rmtree(self.path)
            await self._start(path)
            self._subscribe()
            await self._settle()

        self.run(restart())

    def _everything_is_accounted_for(self) -> None:
        """In the end each group got everything that became visible, and the rest lies with its dead letters."""
        self.restart(crash=bool(self.lives % 2))
        for group in GROUPS:
            for topic in ("plain", "fifo", "jobs", "lite"):
                self.receive(group, topic, 6, again=False)
        self.time_passes(200_000)
        for group in GROUPS:
            for topic in ("plain", "fifo", "jobs", "lite"):
                while True:
                    self.calls += 1
                    if not self._receive(group, topic, 32, f"{group}-{self.calls}"):
                        break
                    for key in [key for key in self._leased() if key[0] == group]:
                        share = self.shares[key]
                        assert share.delivery is not None
                        self.run(self.bench.acknowledge(share.delivery.topic, [share.delivery], group))
                        share.done, share.until_ms = True, 0
            for message in self.messages:
                share = self._share(group, message)
                assert (share.done or share.dead) == (message.visible and not message.over)
            dead: list[bytes] = []
            if f"%DLQ%{group}" in self.bench.core.store.topics:
                while found := self.run(self.bench.bodies(f"%DLQ%{group}", "undertaker")):
                    dead += found
            assert sorted(dead) == sorted(self.buried[group])


Model.TestCase.settings = settings(
    max_examples=25, stateful_step_count=40, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)
TestModel = Model.TestCase
