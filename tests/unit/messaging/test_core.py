"""The broker's core, its clock steered: delivery, delays, transactions, dead letters, and all of it after a restart."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sampan.kernel.clock import Clock
from sampan.parts.messaging import record
from sampan.parts.messaging.broker import Limits
from sampan.parts.messaging.clients import Client
from sampan.parts.messaging.errors import MessagingError, Reason, StorageError
from sampan.parts.messaging.filters import sql_filter, tag_filter
from sampan.parts.messaging.operations import Operations
from sampan.parts.messaging.record import Message
from sampan.parts.messaging.store import Half
from sampan.parts.messaging.topology import CHECK_LIMIT_TOPIC, RETRY_DELAYS_MS, Backoff, GroupConfig, TopicConfig
from tests.unit.messaging.conftest import Bench, Outcome, started, state_of

DAY = 86_400


def frozen() -> Clock:
    clock = Clock()
    clock.freeze()
    return clock


async def test_a_new_group_gets_what_is_there_and_each_message_once(bench: Bench) -> None:
    for number in range(10):
        await bench.send("t", b"%d" % number)
    first = await bench.receive("t", batch=4)
    second = await bench.receive("t")
    assert len(first) == 4
    assert len(second) == 6
    assert await bench.receive("t") == []
    assert len(await bench.receive("t", "other")) == 10
    assert await bench.acknowledge("t", first + second) == [True] * 10
    assert await bench.acknowledge("t", first) == [False] * 4
    await bench.jump(3600)
    assert await bench.receive("t") == []


async def test_a_parked_receive_wakes_when_a_message_comes(bench: Bench) -> None:
    bench.core.broker.create_topic(TopicConfig("t"))
    waiting = asyncio.ensure_future(bench.bodies("t", wait=20))
    await bench.settle(lambda: bench.core.consumption.parked == 1)
    await bench.send("t", b"now")
    assert await waiting == [b"now"]
    assert bench.core.consumption.parked == 0


async def test_a_message_for_many_waiting_groups_lets_others_have_their_turn(bench: Bench) -> None:
    bench.core.broker.create_topic(TopicConfig("t"))
    groups = [f"g{number}" for number in range(300)]
    waiting = [asyncio.ensure_future(bench.bodies("t", group, wait=20)) for group in groups]
    await bench.settle(lambda: bench.core.consumption.parked == 300)
    parked: list[int] = []

    def look() -> None:
        parked.append(bench.core.consumption.parked)
        if parked[-1]:
            asyncio.get_running_loop().call_soon(look)

    look()
    await bench.send("t", b"for all")
    assert await asyncio.gather(*waiting) == [[b"for all"]] * 300
    assert len({count for count in parked if 0 < count < 300}) >= 3


async def test_a_parked_receive_ends_when_its_time_is_up(bench: Bench) -> None:
    bench.core.broker.create_topic(TopicConfig("t"))
    waiting = asyncio.ensure_future(bench.bodies("t", wait=20))
    await bench.settle(lambda: bench.core.consumption.parked == 1)
    await bench.jump(20)
    assert await waiting == []


async def test_filters_skip_for_their_group_only(bench: Bench) -> None:
    for number in range(600):
        await bench.send("t", b"%d" % number, TAGS="rare" if number == 590 else "common", n=str(number))
    assert await bench.bodies("t", "tags", filter=tag_filter("rare"), wait=5) == [b"590"]
    assert sorted(await bench.bodies("t", "sql", filter=sql_filter("n > 597"), wait=5)) == [b"598", b"599"]
    assert len(await bench.bodies("t", "all")) == 32
    assert bench.core.broker.lag("tags")[0]["lag"] == 0


async def test_the_ladder_of_attempts_ends_in_the_dead_letter_queue(bench: Bench) -> None:
    bench.core.broker.create_group(GroupConfig("g", max_retries=16))
    await bench.send("t", b"poison", TAGS="a")
    for attempt in range(1, 18):
        [delivery] = await bench.receive("t")
        assert delivery.attempt == attempt
        done = Outcome()
        delay = RETRY_DELAYS_MS[min(attempt, 18) - 1]
        bench.core.consumption.change("g", "t", delivery.receipt, delay, done)
        await done
        assert await bench.receive("t") == []
        await bench.jump(delay / 1000 - 0.001)
        assert await bench.receive("t") == []
        await bench.jump(0.001)
    await bench.settle(lambda: "%DLQ%g" in bench.core.store.topics and not bench.core.broker.lag("g")[0]["held"])
    assert await bench.receive("t") == []
    [dead] = await bench.receive("%DLQ%g", "reader")
    message = record.decode(dead.data or b"")
    assert (message.body, message.properties[record.DLQ_TOPIC], message.tag) == (b"poison", "t", "a")
    operations = Operations(bench.core)
    assert [row["body"] for row in await operations.dead_letters("g")] == ["poison"]
    assert (await operations.replay("g"))["replayed"] == [message.id]
    assert await bench.bodies("t") == [b"poison"]


async def test_a_delay_of_three_days_comes_to_the_millisecond(tmp_path: Path) -> None:
    clock = frozen()
    limits = Limits(max_delay_ms=3 * DAY * 1000)
    async with started(tmp_path, clock, limits=limits) as bench:
        due = clock.time_ms() + 3 * DAY * 1000
        await bench.send("t", b"later", deliver_at=str(due))
        with pytest.raises(MessagingError) as caught:
            await bench.send("t", b"too late", deliver_at=str(due + 60_000))
        assert caught.value.reason is Reason.ILLEGAL_DELIVERY_TIME
        await bench.jump(3 * DAY - 0.01)
        assert await bench.receive("t") == []
    async with started(tmp_path, clock, limits=limits) as bench:
        assert bench.core.store.timers.count == 1
        await bench.jump(0.02)
        assert await bench.bodies("t", wait=1) == [b"later"]
    async with started(tmp_path, clock, limits=limits) as bench:
        assert bench.core.store.timers.count == 0
        await bench.jump(DAY)
        [again] = await bench.receive("t")
        assert again.attempt == 2


async def test_delayed_messages_of_one_moment_keep_their_order_and_one_can_be_recalled(bench: Bench) -> None:
    bench.core.broker.create_topic(TopicConfig("t", queues=1))
    due = bench.clock.time_ms() + 5000
    sent = [await bench.send("t", b"%d" % n, deliver_at=str(due)) for n in range(5)]
    handle = bench.core.held.recall_handle(sent[2], due)
    identifier, due_ms, position = await bench.core.held.recall("t", handle)
    done = Outcome()
    bench.core.held.close(due_ms, position, done)
    await done
    assert identifier == sent[2].id
    for wrong in ("rubbish", handle):
        with pytest.raises(MessagingError):
            await bench.core.held.recall("t", wrong)
    await bench.jump(5)
    assert await bench.bodies("t", wait=1) == [b"0", b"1", b"3", b"4"]


async def test_a_transaction_is_visible_only_after_its_commit(bench: Bench) -> None:
    kept = await bench.send("t", b"kept", half="1")
    gone = await bench.send("t", b"gone", half="1")
    assert await bench.receive("t") == []
    for message, commit in ((kept, True), (gone, False)):
        done = Outcome()
        await bench.core.held.end(message.id, commit=commit, done=done)
        await done
    [delivery] = await bench.receive("t")
    message = record.decode(delivery.data or b"")
    assert (message.body, message.sys_flag & record.TRANSACTION_MASK) == (b"kept", record.COMMITTED)
    with pytest.raises(MessagingError, match="unknown or already ended"):
        await bench.core.held.end(kept.id, commit=True, done=Outcome())


async def test_an_open_transaction_is_asked_about_fifteen_times_and_then_given_up(bench: Bench) -> None:
    asked: list[tuple[str, float]] = []

    def ask(half: Half, message: Message) -> bool:
        asked.append((message.properties[record.CHECK_TIMES], round(bench.clock.time() - began)))
        return True

    bench.core.held.ask = ask
    began = bench.clock.time()
    await bench.send("t", b"orphan", half="1")
    await bench.jump(5)
    assert asked == []
    await bench.jump(1)
    await bench.settle(lambda: len(asked) == 1)
    for count in range(2, 17):
        await bench.jump(30)
        await bench.settle(lambda count=count: len(asked) == count or not bench.core.store.halves)  # type: ignore[misc]
    assert asked == [(str(n + 1), 6 + 30 * n) for n in range(15)]
    assert bench.core.store.halves == {}
    assert await bench.receive("t") == []
    assert await bench.bodies(CHECK_LIMIT_TOPIC, "operator") == [b"orphan"]


async def test_nobody_is_asked_while_no_producer_lives_and_immunity_is_respected(bench: Bench) -> None:
    asked: list[str] = []
    await bench.send("t", b"x", half="1", CHECK_IMMUNITY_TIME_IN_SECONDS="60")
    client = Client("p", "producer", "test", topics=frozenset({"t"}), connected=True)
    client.ask = lambda message, transaction: asked.append(transaction) or True  # type: ignore[func-returns-value]
    await bench.jump(59)
    assert bench.core.store.halves["id-1"].checks == 0
    await bench.jump(1)
    await bench.settle()
    assert (asked, bench.core.store.halves["id-1"].checks) == ([], 0)
    bench.core.clients.register(client)
    await bench.jump(30)
    await bench.settle(lambda: bool(asked))
    assert asked == ["id-1"]


async def test_an_ordered_group_never_overtakes(bench: Bench) -> None:
    bench.core.broker.create_topic(TopicConfig("f", "FIFO", queues=1))
    for number in range(6):
        await bench.send("f", b"%d" % number, **{record.SHARDING_KEY: "ab"[number % 2]})
    first = await bench.receive("f", batch=1)
    assert await bench.bodies("f", batch=1) == [b"1"]
    assert await bench.bodies("f") == []
    await bench.acknowledge("f", first)
    assert await bench.bodies("f", call="X") == [b"2", b"4"]
    assert await bench.bodies("f", call="X") == [b"2", b"4"]
    assert await bench.bodies("f", call="Y") == []
    await bench.jump(30)
    again = await bench.receive("f")
    assert [record.decode(d.data or b"").body for d in again] == [b"1", b"3", b"5", b"2", b"4"]


async def test_a_push_consumers_lease_is_renewed_until_it_vanishes(bench: Bench) -> None:
    await bench.send("t", b"slow")
    client = Client("c", "consumer", "test", group="g", subscriptions={"t": "*"}, connected=True)
    bench.core.clients.register(client)
    [delivery] = await bench.receive("t", invisible=60, renew=True)
    for _ in range(5):
        await bench.jump(59)
        assert await bench.receive("t") == []
    client.connected = False
    await bench.jump(130)
    await bench.jump(2)
    [again] = await bench.receive("t")
    assert (again.attempt, await bench.acknowledge("t", [delivery])) == (2, [False])


async def test_a_group_can_be_set_to_another_place(bench: Bench) -> None:
    bench.core.broker.create_topic(TopicConfig("t", queues=1))
    times = []
    for number in range(5):
        times.append(bench.clock.time_ms())
        await bench.send("t", b"%d" % number)
        bench.clock.jump(10)
    operations = Operations(bench.core)
    held = await bench.receive("t")
    await operations.reset("g", "t", "earliest")
    assert await bench.acknowledge("t", held) == [False] * 5
    assert len(await bench.bodies("t")) == 5
    await operations.reset("g", "t", times[3])
    assert await bench.bodies("t") == [b"3", b"4"]
    await operations.reset("g", "t", "@1", queue=0)
    assert await bench.bodies("t", batch=1) == [b"1"]
    await operations.reset("g", "t")
    assert await bench.bodies("t") == []


@pytest.mark.parametrize("clean", [True, False])
async def test_a_restart_changes_nothing(tmp_path: Path, clean: bool) -> None:
    clock = frozen()
    first, second = tmp_path / "a", tmp_path / "b"
    async with started(first, clock, segment_bytes=20_000) as bench:
        bench.core.broker.create_topic(TopicConfig("f", "FIFO", queues=2))
        bench.core.broker.create_group(GroupConfig("g", max_retries=3, backoff=Backoff(delays_ms=(1000,))))
        for number in range(100):
            await bench.send("t", b"%d" % number * 100, KEYS=f"key-{number}")
            await bench.send("f", b"%d" % number, **{record.SHARDING_KEY: str(number % 3)})
        half = await bench.send("t", b"half", half="1")
        await bench.send("t", b"delayed", deliver_at=str(clock.time_ms() + 50_000))
        taken = await bench.receive("t", batch=20)
        await bench.acknowledge("t", taken[:7])
        await bench.receive("f", batch=5)
        bench.core.store.log.flush()
        await bench.settle(lambda: bench.core.store.log.durable == bench.core.store.log.end)
        before = state_of(bench)
        if not clean:
            shutil.copytree(first, second)
    async with started(first if clean else second, clock, segment_bytes=20_000) as bench:
        assert state_of(bench) == before
        assert await bench.acknowledge("t", taken[7:12]) == [True] * 5
        [found] = [m async for m in _each(bench, "key-42")]
        assert found.body == b"42" * 100
        done = Outcome()
        await bench.core.held.end(half.id, commit=True, done=done)
        await done
        await bench.jump(60)
        bodies = {body async for body in _drain(bench, "t")}
        assert {b"half", b"delayed"} <= bodies
        assert len(bodies) == 102 - 12
        assert len({body async for body in _drain(bench, "f")}) == 100


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x5A
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped checkpoint": lambda path: _flip(path / "checkpoint", 60),
    "an empty checkpoint": lambda path: os.truncate(path / "checkpoint", 0),
    "no checkpoint": lambda path: (path / "checkpoint").unlink(),
    "no index": lambda path: shutil.rmtree(path / "index"),
    "a flipped index": lambda path: _flip(min((path / "index").iterdir()), 200),
    "a cut index": lambda path: os.truncate(min((path / "index").iterdir()), 100),
    "an empty index": lambda path: os.truncate(min((path / "index").iterdir()), 0),
    "a gap in the index": lambda path: sorted((path / "index").iterdir())[1].unlink(),
    "a file that is none of ours": lambda path: (path / "log" / "7").write_text("x"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
async def test_what_is_derived_from_the_log_is_made_anew_when_it_is_damaged(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    clock = frozen()
    async with started(tmp_path, clock, segment_bytes=10_000) as bench:
        store = bench.core.store
        await bench.send("again", b"of an earlier topic")
        bench.core.broker.delete_topic("again")
        for number in range(60):
            await bench.send("t", b"%d" % number * 100, KEYS=f"key-{number}", TAGS="ab"[number % 2])
            if number % 15 == 14:
                store._begin_checkpoint(store.log.durable)
                await bench.settle(lambda: not store._checkpointing)
        await bench.send("again", b"of a later one")
        store._begin_checkpoint(store.log.durable)
        await bench.settle(lambda: not store._checkpointing)
        await bench.acknowledge("t", await bench.receive("t", batch=20))
        before = state_of(bench)
    damage(tmp_path)
    async with started(tmp_path, clock, segment_bytes=10_000) as bench:
        assert state_of(bench) == before
        [found] = await bench.core.store.find("key-42")
        assert found.body == b"42" * 100
        rest = {body async for body in _drain(bench, "t")}
        assert len(rest) == 40
        assert await bench.bodies("again") == [b"of a later one"]
        assert {body[:2] for body in await bench.bodies("t", "tags", filter=tag_filter("b"))} <= {
            b"%d" % n + b"%d" % n if n < 10 else b"%d" % n for n in range(1, 60, 2)
        }
        await bench.send("t", b"on it goes")
        assert await bench.bodies("t") == [b"on it goes"]


async def _each(bench: Bench, key: str):  # type: ignore[no-untyped-def]
    for message in await bench.core.store.find(key):
        yield message


async def _drain(bench: Bench, topic: str):  # type: ignore[no-untyped-def]
    while taken := await bench.receive(topic, wait=0):
        for delivery in taken:
            yield record.decode(delivery.data or b"").body
        await bench.acknowledge(topic, taken)


async def test_old_segments_go_and_consumers_move_on(tmp_path: Path) -> None:
    clock = frozen()
    async with started(tmp_path, clock, segment_bytes=10_000) as bench:
        bench.core.broker.create_topic(TopicConfig("t", queues=1))
        for number in range(40):
            await bench.send("t", b"%02d" % number * 500)
            await bench.settle(lambda: not bench.core.store._checkpointing)
        held = await bench.receive("t", batch=2)
        await bench.jump(73 * 3600)
        for number in range(40, 60):
            await bench.send("t", b"%02d" % number * 500)
            await bench.settle(lambda: not bench.core.store._checkpointing)
        bench.core.store.retain(older_than_ms=clock.time_ms() - 72 * 3_600_000, max_bytes=1 << 40)
        assert bench.core.store.log.bases[0] > 0
        minimum = bench.core.store.topics["t"].queues[0].minimum
        assert 30 < minimum <= 40
        assert await bench.acknowledge("t", held) == [False, False]
        assert (await bench.bodies("t", batch=1))[0][:2] == b"%02d" % minimum
        assert (await bench.bodies("t", "newcomer")) == []
        await bench.send("t", b"fresh")
        assert await bench.bodies("t", "newcomer") == [b"fresh"]
    async with started(tmp_path, clock, segment_bytes=10_000) as bench:
        assert bench.core.store.topics["t"].queues[0].minimum == minimum


async def test_a_slow_disk_bounds_what_senders_may_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = threading.Event()
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        stuck.wait(20)
        real(fd)

    async with started(tmp_path, frozen(), limits=Limits(max_unwritten=100_000)) as bench:
        topic = bench.core.broker.topic("t", create=True)
        await bench.send("t", b"before")
        monkeypatch.setattr("sampan.parts.messaging.storage.log.os.fdatasync", fdatasync)
        outcomes: list[MessagingError | None] = []
        refused = 0
        for _ in range(50):
            try:
                bench.core.broker.send(Message("t", bytes(10_000), {}), topic, b"", outcomes.append)
            except MessagingError as error:
                assert error.reason is Reason.TOO_MANY_REQUESTS
                refused += 1
            await asyncio.sleep(0)
        assert outcomes == []
        assert 38 <= refused <= 40
        stuck.set()
        await bench.settle(lambda: len(outcomes) == 50 - refused)
        assert outcomes == [None] * (50 - refused)
        await bench.send("t", b"after")
        assert len(await bench.receive("t", batch=32)) == 52 - refused


async def test_a_full_disk_refuses_and_recovers(bench: Bench) -> None:
    await bench.send("t", b"before")
    bench.core.store.log._reserve = 1 << 62
    with pytest.raises(MessagingError) as caught:
        await bench.send("t", b"refused")
    assert caught.value.reason is Reason.DISK_FULL
    assert bench.core.store.disk_full
    bench.core.store.log._reserve = 0
    after = await bench.send("t", b"after")
    assert not bench.core.store.disk_full
    assert sorted(await bench.bodies("t")) == [b"after", b"before"]
    assert after.queue_offset in (0, 1)


async def test_the_path_of_a_message_is_told_by_id_and_key(bench: Bench) -> None:
    message = await bench.send("t", b"x", KEYS="order-7")
    [delivery] = await bench.receive("t", client="consumer-1")
    await bench.acknowledge("t", [delivery])
    operations = Operations(bench.core)
    for key in (message.id, "order-7"):
        [path] = await operations.trace(key)
        assert [event["event"] for event in path["events"]] == ["born", "stored", "delivered", "acknowledged"]
        assert path["events"][2]["client"] == "consumer-1"
    held = await bench.send("t", b"y", deliver_at=str(bench.clock.time_ms() + 9000))
    [path] = await operations.trace(held.id)
    assert (path["events"][1]["event"], path["events"][1]["state"]) == ("delayed", "waiting")
    await bench.jump(10)
    assert [path["events"][1]["event"] for path in await operations.trace(held.id)] == ["stored", "delayed"]


async def test_too_many_polls_and_too_much_in_flight_are_bounded(tmp_path: Path) -> None:
    async with started(tmp_path, frozen(), limits=Limits(max_polls=1, max_in_flight=3)) as bench:
        bench.core.broker.create_topic(TopicConfig("t", queues=1))
        for _ in range(5):
            await bench.send("t")
        assert len(await bench.receive("t")) == 3
        assert await bench.receive("t") == []
        waiting = asyncio.ensure_future(bench.receive("t", wait=5))
        await bench.settle(lambda: bench.core.consumption.parked == 1)
        with pytest.raises(MessagingError) as caught:
            await bench.receive("t", wait=5)
        assert caught.value.reason is Reason.TOO_MANY_REQUESTS
        await bench.jump(30)
        assert len(await waiting) <= 3


async def test_deleting_a_topic_forgets_its_messages_and_progress(tmp_path: Path) -> None:
    clock = frozen()
    async with started(tmp_path, clock) as bench:
        await bench.send("t", b"old")
        await bench.receive("t")
        bench.core.broker.delete_topic("t")
        with pytest.raises(MessagingError):
            bench.core.broker.topic("t")
        await bench.send("t", b"new")
        assert await bench.bodies("t") == [b"new"]
    async with started(tmp_path, clock) as bench:
        await bench.jump(31)
        assert await bench.bodies("t") == [b"new"]


async def test_a_response_is_bounded_in_bytes(bench: Bench) -> None:
    bench.core.broker.create_topic(TopicConfig("t", queues=1))
    for _ in range(4):
        await bench.send("t", bytes(3 << 20))
    assert [len(await bench.receive("t")) for _ in range(3)] == [2, 2, 0]


async def test_a_stopped_broker_leaves_no_timer_behind(tmp_path: Path) -> None:
    clock = frozen()
    async with started(tmp_path, clock) as bench:
        await bench.send("t", deliver_at=str(clock.time_ms() + 5000))
        await bench.send("t", half="1")
        await bench.send("t")
        await bench.receive("t")
        waiting = asyncio.ensure_future(bench.receive("t", wait=20))
        await bench.settle(lambda: bench.core.consumption.parked == 1)
        assert clock.next_timer() is not None
    assert clock.next_timer() is None
    assert await waiting == []


async def test_members_that_subscribe_differently_are_noticed(bench: Bench) -> None:
    clients = bench.core.clients
    clients.register(Client("a", "consumer", "test", group="g", subscriptions={"t": "*"}))
    clients.register(Client("b", "consumer", "test", group="g", subscriptions={"t": "x"}))
    assert "b subscribes to t (x)" in clients.inconsistent["g"]
    clients.remove("b")
    assert "g" not in clients.inconsistent


async def test_one_failing_listener_keeps_nobody_else_waiting(bench: Bench) -> None:
    topic = bench.core.broker.topic("t", create=True)

    def broken(error: MessagingError | None) -> None:
        raise RuntimeError("a bug of a front")

    bench.core.broker.send(Message("t", b"1", {}), topic, b"", broken)
    await bench.send("t", b"2")
    assert sorted(await bench.bodies("t")) == [b"1", b"2"]


async def test_what_was_deleted_since_the_checkpoint_keeps_nobody_from_reading_on(tmp_path: Path) -> None:
    clock = frozen()
    async with started(tmp_path, clock, segment_bytes=10_000) as bench:
        bench.core.broker.create_topic(TopicConfig("t", queues=1))
        bench.core.broker.create_topic(TopicConfig("old", queues=1))
        await bench.send("old", b"deleted with its segment")
        await bench.send("t", b"first")
        assert await bench.bodies("t", batch=1) == [b"first"]
        for number in range(60):
            await bench.send("t", b"%02d" % number * 500)
            await bench.settle(lambda: not bench.core.store._checkpointing)
        bench.core.store.retain(older_than_ms=0, max_bytes=20_000)
        [queue] = bench.core.store.topics["t"].queues
        minimum = queue.minimum
        assert minimum > 0
    clock.jump(60)
    async with started(tmp_path, clock, segment_bytes=10_000) as bench:
        assert bench.core.store.topics["t"].queues[0].minimum == minimum
        [old] = bench.core.store.topics["old"].queues
        assert old.minimum == old.maximum == 1
        assert [body[:2] for body in await bench.bodies("t", batch=5)] == [
            b"%02d" % (number - 1) for number in range(minimum, minimum + 5)
        ]
        await bench.send("old", b"new")
        assert await bench.bodies("old") == []  # a new group begins at the end, once old messages were deleted
        await bench.send("old", b"newer")
        assert await bench.bodies("old") == [b"newer"]


async def test_without_its_beginning_a_log_makes_an_index_anew_but_no_checkpoint(tmp_path: Path) -> None:
    clock = frozen()
    async with started(tmp_path, clock, segment_bytes=10_000) as bench:
        bench.core.broker.create_topic(TopicConfig("t", queues=1))
        for number in range(60):
            await bench.send("t", b"%02d" % number * 500)
            await bench.settle(lambda: not bench.core.store._checkpointing)
        bench.core.store.retain(older_than_ms=0, max_bytes=20_000)
        minimum = bench.core.store.topics["t"].queues[0].minimum
        assert bench.core.store.log.begin > 0
    min((tmp_path / "index").iterdir()).unlink()
    async with started(tmp_path, clock, segment_bytes=10_000) as bench:
        bench.core.consumption.reset("g", bench.core.broker.topic("t"), 0, minimum)
        assert [body[:2] for body in await bench.bodies("t")] == [b"%02d" % number for number in range(minimum, 60)][
            :32
        ]
    _flip(tmp_path / "checkpoint", 30)
    for _ in ("damaged", "missing"):
        with pytest.raises(StorageError, match="no longer goes back to its beginning"):
            async with started(tmp_path, clock, segment_bytes=10_000):
                pass
        (tmp_path / "checkpoint").unlink(missing_ok=True)


async def test_asynchronous_flush_keeps_everything_over_a_restart(tmp_path: Path) -> None:
    clock = frozen()
    async with started(tmp_path, clock, segment_bytes=10_000, sync=False) as bench:
        for number in range(30):
            await bench.send("t", b"%02d" % number * 500)
            await bench.settle(lambda: not bench.core.store._checkpointing)
        bench.clock.jump(1)
        await bench.settle(lambda: not bench.core.store.log.dirty)
        assert not bench.core.store.log.dirty
    async with started(tmp_path, clock, segment_bytes=10_000, sync=False) as bench:
        assert len(await bench.bodies("t")) == 30


@pytest.mark.parametrize("damaged", [[3], [0], [29], [7, 8], list(range(8, 16)), list(range(24, 30))])
async def test_an_index_that_is_made_anew_leaves_room_for_what_is_damaged(tmp_path: Path, damaged: list[int]) -> None:
    clock = frozen()
    async with started(tmp_path, clock, segment_bytes=10_000) as bench:
        store = bench.core.store
        bench.core.broker.create_topic(TopicConfig("t", queues=1))
        for number in range(30):
            await bench.send("t", b"%02d" % number * 500)
        queue = store.topics["t"].queues[0]
        found = [one for number in range(30) for one in store.entries(queue, number, 1)]
        places = [(store.log._base(one.position), one.position) for one in found]
        await bench.settle(lambda: not store._checkpointing)  # the last new segment began one
        store._begin_checkpoint(store.log.durable)
        await bench.settle(lambda: not store._checkpointing)
    for base, position in (places[number] for number in damaged):
        with (tmp_path / "log" / f"{base:020d}").open("r+b") as file:
            file.seek(position - base)
            file.write(b"\xff" * 8)
    for part in (tmp_path / "index").iterdir():
        part.unlink()
    async with started(tmp_path, clock, segment_bytes=10_000) as bench:
        queue = bench.core.store.topics["t"].queues[0]
        assert [one.offset for number in range(30) for one in bench.core.store.entries(queue, number, 1)] == [
            *range(30)
        ]
        bench.core.consumption.reset("g", bench.core.broker.topic("t"), 0, 0)
        got: list[bytes] = []
        for _ in range(10):
            got += [body[:2] for body in await bench.bodies("t")]
        assert got == [b"%02d" % number for number in range(30) if number not in damaged]
