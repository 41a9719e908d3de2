"""The official Python client, unchanged, against the broker."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from sampan.parts.messaging.topology import Backoff, GroupConfig, TopicConfig
from tests.clients.messaging_harness import Running, broker

rocketmq = pytest.importorskip("rocketmq")
from rocketmq.grpc_protocol import FilterType  # noqa: E402

Result = TypeVar("Result")


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with broker(tmp_path) as started:
        yield started


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for something the broker does on its own."""
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come about")


async def in_a_thread(use: Callable[[], Result]) -> Result:
    """Use the official client in a thread that has an event loop, as a program's main thread has.

    Where an answer comes before the client has attached what to do with it, it opens its telemetry stream in the caller's
    thread, which fails in a thread without a loop.
    """

    def run() -> Result:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            return use()
        finally:
            asyncio.set_event_loop(None)
            loop.close()

    return await asyncio.to_thread(run)


def configuration(running: Running) -> Any:
    return rocketmq.ClientConfiguration(running.address, rocketmq.Credentials())


def message(topic: str, body: bytes = b"hello", **fields: Any) -> Any:
    made = rocketmq.Message()
    made.topic, made.body = topic, body
    for name, value in fields.items():
        if name == "properties":
            for key, text in value.items():
                made.add_property(key, text)
        else:
            setattr(made, name, value)
    return made


def producer(running: Running, *topics: str, checker: Any = None) -> Any:
    made = (
        rocketmq.Producer(configuration(running), topics, checker)
        if checker
        else rocketmq.Producer(configuration(running), topics)
    )
    made.startup()
    return made


def simple_consumer(running: Running, group: str, subscriptions: dict[str, Any]) -> Any:
    made = rocketmq.SimpleConsumer(configuration(running), group, subscriptions)
    made.startup()
    return made


class Collector(rocketmq.MessageListener):  # type: ignore[misc, name-defined]
    """Counts what a push consumer gets; ``verdict`` decides each."""

    def __init__(self, wanted: int, verdict: Callable[[Any], bool] = lambda message: True) -> None:
        self.wanted = wanted
        self.verdict = verdict
        self.got: list[tuple[bytes, int]] = []
        self.enough = threading.Event()

    def consume(self, message: Any) -> Any:
        self.got.append((message.body, message.delivery_attempt))
        if len(self.got) >= self.wanted:
            self.enough.set()
        return rocketmq.ConsumeResult.SUCCESS if self.verdict(message) else rocketmq.ConsumeResult.FAILURE


def push_consumer(running: Running, group: str, topic: str, listener: Any) -> Any:
    made = rocketmq.PushConsumer(configuration(running), group, listener, {topic: rocketmq.FilterExpression()})
    made.startup()
    return made


async def test_a_message_arrives_with_everything_it_was_sent_with(running: Running) -> None:
    def client() -> None:
        sender = producer(running, "orders")
        receipt = sender.send(message("orders", b"\x00\xffbody", tag="new", keys="k1", properties={"a": "1", "b": "ü"}))
        consumer = simple_consumer(running, "G", {"orders": rocketmq.FilterExpression()})
        [got] = consumer.receive(10, 15)
        assert (got.body, got.tag, got.keys, got.properties) == (b"\x00\xffbody", "new", {"k1"}, {"a": "1", "b": "ü"})
        assert (got.message_id, got.delivery_attempt, got.topic) == (receipt.message_id, 1, "orders")
        assert not got.corrupted
        consumer.ack(got)
        with pytest.raises(Exception, match="40013"):
            consumer.ack(got)
        sender.shutdown()
        consumer.shutdown()

    await in_a_thread(client)
    progress = running.core.store.progress["G", "orders"]
    assert not list(progress.held())


async def test_tags_and_sql_select(running: Running) -> None:
    def client() -> None:
        sender = producer(running, "t")
        for tag, price in (("a", "5"), ("b", "50"), ("c", "500"), ("AaAa", "1"), ("BBBB", "2")):
            sender.send(message("t", tag.encode(), tag=tag, properties={"price": price}))
        by_tag = simple_consumer(running, "tags", {"t": rocketmq.FilterExpression("a || BBBB")})
        assert sorted(m.body for m in by_tag.receive(32, 15)) == [b"BBBB", b"a"]
        expression = rocketmq.FilterExpression("price > 10 AND TAGS <> 'c'", FilterType.SQL)
        by_sql = simple_consumer(running, "sql", {"t": expression})
        assert [m.body for m in by_sql.receive(32, 15)] == [b"b"]
        for each in (sender, by_tag, by_sql):
            each.shutdown()

    await in_a_thread(client)


async def test_a_push_consumer_gets_failures_again_and_at_last_they_are_dead_letters(running: Running) -> None:
    running.core.broker.create_group(GroupConfig("G", max_retries=2, backoff=Backoff(delays_ms=(1000,))))

    def client() -> None:
        sender = producer(running, "t")
        listener = Collector(4, lambda message: message.body == b"good")
        consumer = push_consumer(running, "G", "t", listener)
        sender.send(message("t", b"good"))
        sent = sender.send(message("t", b"bad", tag="x"))
        assert listener.enough.wait(20)
        assert sorted(listener.got) == [(b"bad", 1), (b"bad", 2), (b"bad", 3), (b"good", 1)]
        loop.call_soon_threadsafe(running.clock.jump, 2)  # the third refusal also waits before it counts
        eventually(lambda: "%DLQ%G" in running.core.store.topics)
        reader = simple_consumer(running, "dead", {"%DLQ%G": rocketmq.FilterExpression()})
        [dead] = reader.receive(10, 15)
        assert (dead.body, dead.tag) == (b"bad", "x")
        assert dead.message_id == sent.message_id
        for each in (sender, consumer, reader):
            each.shutdown()

    loop = asyncio.get_running_loop()
    await in_a_thread(client)


async def test_a_message_group_is_consumed_in_order(running: Running) -> None:
    running.core.broker.create_topic(TopicConfig("fifo", "FIFO", queues=2))

    def client() -> None:
        sender = producer(running, "fifo")
        for number in range(12):
            sender.send(message("fifo", b"%d" % number, message_group=f"group-{number % 3}"))
        listener = Collector(13, lambda message: not (message.body == b"4" and failures.pop("once", None)))
        failures = {"once": True}
        consumer = push_consumer(running, "G", "fifo", listener)
        assert listener.enough.wait(20)
        for group in range(3):
            order = [int(body) for body, _ in listener.got if int(body) % 3 == group]
            assert order == sorted(order)
        sender.shutdown()
        consumer.shutdown()

    await in_a_thread(client)


async def test_a_delayed_message_comes_when_the_clock_says_and_another_is_recalled(running: Running) -> None:
    def client() -> None:
        sender = producer(running, "delay")
        due = int(running.clock.time()) + 3600
        kept = sender.send(message("delay", b"kept", delivery_timestamp=due))
        back = sender.send(message("delay", b"back", delivery_timestamp=due))
        sender.recall_message("delay", back.recall_handle)
        with pytest.raises(Exception, match="40000"):
            sender.recall_message("delay", back.recall_handle)
        with pytest.raises(Exception, match="40012"):
            sender.send(message("delay", b"far", delivery_timestamp=due + 3 * 86400))
        consumer = simple_consumer(running, "G", {"delay": rocketmq.FilterExpression()})
        loop.call_soon_threadsafe(running.clock.jump, 3600)
        [got] = consumer.receive(10, 15)
        assert (got.body, got.message_id) == (b"kept", kept.message_id)
        sender.shutdown()
        consumer.shutdown()

    loop = asyncio.get_running_loop()
    await in_a_thread(client)
    assert not running.core.store.timers.count


async def test_transactions_commit_roll_back_and_are_asked_about(running: Running) -> None:
    class Checker(rocketmq.TransactionChecker):  # type: ignore[misc, name-defined]
        def check(self, message: Any) -> Any:
            return rocketmq.TransactionResolution.COMMIT

    def client() -> None:
        sender = producer(running, "tx", checker=Checker())
        consumer = simple_consumer(running, "G", {"tx": rocketmq.FilterExpression()})
        for body, end in ((b"committed", "commit"), (b"rolled back", "rollback"), (b"orphan", "")):
            transaction = sender.begin_transaction()
            sender.send(message("tx", body), transaction)
            if end:
                getattr(transaction, end)()
        [got] = consumer.receive(10, 15)
        assert got.body == b"committed"
        consumer.ack(got)
        loop.call_soon_threadsafe(running.clock.jump, 7)
        [got] = consumer.receive(10, 15)
        assert got.body == b"orphan"
        sender.shutdown()
        consumer.shutdown()

    loop = asyncio.get_running_loop()
    await in_a_thread(client)
    assert not running.core.store.halves


async def test_an_expired_lease_is_delivered_again_and_its_receipt_is_void(running: Running) -> None:
    def client() -> None:
        sender = producer(running, "t")
        sender.send(message("t"))
        consumer = simple_consumer(running, "G", {"t": rocketmq.FilterExpression()})
        [first] = consumer.receive(10, 15)
        loop.call_soon_threadsafe(running.clock.jump, 16)
        [again] = consumer.receive(10, 15)
        assert again.delivery_attempt == 2
        with pytest.raises(Exception, match="40013"):
            consumer.ack(first)
        consumer.change_invisible_duration(again, 60)
        consumer.ack(again)
        sender.shutdown()
        consumer.shutdown()

    loop = asyncio.get_running_loop()
    await in_a_thread(client)


async def test_priority_messages_come_by_priority(running: Running) -> None:
    running.core.broker.create_topic(TopicConfig("jobs", "PRIORITY", 4))

    def use() -> list[tuple[bytes, int]]:
        sender = producer(running, "jobs")
        for priority in (1, 0, 3, 2):
            sender.send(message("jobs", b"%d" % priority, priority=priority))
        consumer = simple_consumer(running, "g", {"jobs": rocketmq.FilterExpression()})
        received = consumer.receive(32, 15)
        sender.shutdown()
        consumer.shutdown()
        return [(one.body, one.priority) for one in received]

    assert await in_a_thread(use) == [(b"3", 3), (b"2", 2), (b"1", 1), (b"0", 0)]


def subscribed(consumer: Any, lite_topic: str) -> bool:
    """Subscribe; false while the client has not yet got its quota, which comes with the server's settings."""
    from rocketmq.v5.exception.client_exception import LiteSubscriptionQuotaExceededException

    try:
        consumer.subscribe_lite(lite_topic)
    except LiteSubscriptionQuotaExceededException:
        return False
    return True


async def test_a_lite_push_consumer_follows_its_lite_topics(running: Running) -> None:
    from rocketmq.v5.consumer import LitePushConsumer

    running.core.broker.create_topic(TopicConfig("chat", "LITE"))
    refused: list[bytes] = []

    def once(message: Any) -> bool:
        if message.body == b"again" and not refused:
            refused.append(message.body)
            return False
        return True

    collector = Collector(4, once)

    def use() -> None:
        consumer = LitePushConsumer(configuration(running), "g", "chat", collector)
        consumer.startup()
        eventually(lambda: subscribed(consumer, "room-1"))
        consumer.subscribe_lite("room-2")
        consumer.subscribe_lite_all()  # subscribe_lite of 5.1.2 sends a name letter by letter; the whole set is sent right
        sender = producer(running, "chat")
        for lite, body in (("room-1", b"again"), ("room-2", b"two"), ("room-3", b"not mine"), ("room-1", b"last")):
            sender.send(message("chat", body, lite_topic=lite))
        assert collector.enough.wait(20)
        consumer.unsubscribe_lite("room-2")
        consumer.shutdown()
        sender.shutdown()

    await in_a_thread(use)
    assert sorted({body for body, _ in collector.got}) == [b"again", b"last", b"two"]
    in_room = [body for body, _ in collector.got if body != b"two"]
    assert in_room == [b"again", b"again", b"last"]


async def test_a_lite_simple_consumer_receives_and_acknowledges(running: Running) -> None:
    from rocketmq.v5.consumer import LiteSimpleConsumer

    running.core.broker.create_topic(TopicConfig("chat", "LITE"))

    def use() -> tuple[list[tuple[bytes, str, str]], list[Any]]:
        consumer = LiteSimpleConsumer("chat", configuration(running), "g", await_duration=5)
        consumer.startup()
        eventually(lambda: subscribed(consumer, "room"))
        consumer.subscribe_lite_all()
        sender = producer(running, "chat")
        sender.send(message("chat", b"one", lite_topic="room"))
        received = consumer.receive(32, 15)
        for one in received:
            consumer.ack(one)
        rest = list(running.core.consumption.of("g", "%LMQ%$chat$room").held())  # type: ignore[union-attr]
        consumer.shutdown()
        sender.shutdown()
        return [(one.body, one.topic, one.lite_topic) for one in received], rest

    assert await in_a_thread(use) == ([(b"one", "chat", "room")], [])
