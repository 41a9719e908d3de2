"""The official Python client, unchanged, against the broker."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clients.messaging_harness import Running, broker

rocketmq = pytest.importorskip("rocketmq")


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with broker(tmp_path) as started:
        yield started


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

    await asyncio.to_thread(client)
    progress = running.core.store.progress["G", "orders"]
    assert not list(progress.held())
