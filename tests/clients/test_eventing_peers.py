"""Sources and sinks against the real Apache RocketMQ and Apache Kafka, killed in the middle."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from sampan.kube.client.http import HttpClient
from sampan.kube.client.resources import SECRETS
from sampan.parts.eventing.resources import KAFKA_SOURCES, ROCKETMQ_SINKS, ROCKETMQ_SOURCES, TOPIC_HOST
from sampan.testing import Platform
from tests.clients.apache import WANTED, Kafka, RocketMQ
from tests.clients.eventing_harness import Receiver, event, ready, receiver, send

pytestmark = [WANTED, pytest.mark.toolchain("java"), pytest.mark.slow, pytest.mark.xdist_group("peers")]


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with Platform(only=["eventing"], without=["node", "network", "traffic", "serving"]) as running:
        yield running


@pytest.fixture(scope="module")
def rocketmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RocketMQ]:
    with RocketMQ(tmp_path_factory.mktemp("rocketmq")) as running:
        yield running


async def make(client: HttpClient, resource: Any, kind: str, name: str, **spec: Any) -> None:
    version = f"{resource.group}/{resource.version}"
    body = {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec}
    await client.create(resource, body, "default")


async def arrived(sink: Receiver, wanted: set[int], read: Any, seconds: float) -> list[int]:
    """What has arrived, in its order, once all that is wanted is among it."""
    until = time.monotonic() + seconds
    while wanted - set(seen := [read(one) for one in sink.events]) and time.monotonic() < until:
        await asyncio.sleep(0.1)
    return seen


def number(got: Any) -> int:
    return int(json.loads(base64.b64decode(got.data["Body"]))["n"])


async def test_a_real_proxy_takes_events_and_gives_them_back_also_after_it_was_killed(
    platform: Platform, rocketmq: RocketMQ
) -> None:
    rocketmq.admin("updateTopic", "-t", "orders", "-r", "4", "-w", "4")
    async with platform.client() as client, receiver() as sink:
        where = {"namesrvAddr": rocketmq.address, "topic": "orders"}
        await make(client, ROCKETMQ_SINKS, "RocketMQSink", "orders", tag="paid", **where)
        source = {**where, "tag": "paid || open", "groupName": "billing", "sink": {"uri": sink.url}}
        await make(client, ROCKETMQ_SOURCES, "RocketMQSource", "orders", **source)
        await ready(client, ROCKETMQ_SOURCES, "orders")
        sink.answers = [web.Response(status=503)]
        for n in range(20):
            # a topic of normal messages takes no order: the key is dropped, not the event
            made = event("order", {"n": n}, partitionkey=str(n % 2))
            assert await send(platform, "/default/orders", made, Host=TOPIC_HOST) == 202
        assert set(await arrived(sink, set(range(20)), number, 60)) == set(range(20))
        async with asyncio.timeout(60):  # what was answered 503 comes again, by the broker's doing
            while len(sink.events) < 21:
                await asyncio.sleep(0.1)
        assert sorted(one.data["ReconsumeTimes"] for one in sink.events)[-2:] == [0, 1]
        assert {one.data["Properties"]["CE_type"] for one in sink.events} == {"order"}
        assert {one.data["Properties"]["TAGS"] for one in sink.events} == {"paid"}

        rocketmq.kill(rocketmq.pid)
        broken = await ready(client, ROCKETMQ_SOURCES, "orders", "False")
        (why,) = [one for one in broken["status"]["conditions"] if one["type"] == "Deployed"]
        assert why["reason"] == "ConnectionFailed"
        assert await send(platform, "/default/orders", event("order", {"n": 99}), Host=TOPIC_HOST) == 503
        rocketmq.up()
        await ready(client, ROCKETMQ_SOURCES, "orders")
        async with asyncio.timeout(30):  # a broker that has just come up refuses for a moment
            while await send(platform, "/default/orders", event("order", {"n": 20}), Host=TOPIC_HOST) != 202:
                await asyncio.sleep(0.5)
        assert 20 in await arrived(sink, {20}, number, 60)


async def test_a_real_brokers_ordered_topic_keeps_the_order_of_each_key(platform: Platform, rocketmq: RocketMQ) -> None:
    rocketmq.admin("updateTopic", "-t", "ledger", "-r", "4", "-w", "4", "-a", "+message.type=FIFO")
    rocketmq.admin("updateSubGroup", "-g", "audit", "-o", "true")
    async with platform.client() as client, receiver() as sink:
        where = {"namesrvAddr": rocketmq.address, "topic": "ledger"}
        await make(client, ROCKETMQ_SINKS, "RocketMQSink", "ledger", contentMode="structured", **where)
        for n in range(30):
            made = event("entry", {"n": n}, partitionkey=f"account-{n % 3}")
            assert await send(platform, "/default/ledger", made, Host=TOPIC_HOST) == 202
        plain = event("entry", {"n": 30})  # nothing but its source says what it is in order with
        assert await send(platform, "/default/ledger", plain, Host=TOPIC_HOST) == 202
        sink.answers = [web.Response(status=503)]
        sources = {**where, "groupName": "audit", "sink": {"uri": sink.url}}
        await make(client, ROCKETMQ_SOURCES, "RocketMQSource", "ledger", **sources)

        def entry(got: Any) -> int:
            return int(json.loads(base64.b64decode(got.data["Body"]))["data"]["n"])

        seen = await arrived(sink, set(range(31)), entry, 60)
        for account in range(3):
            of_account = [n for n in seen if n % 3 == account and n < 30]
            latest = list(dict.fromkeys(of_account))
            assert latest == sorted(latest), seen


async def test_a_real_kafkas_records_become_events_also_after_it_was_killed(platform: Platform, tmp_path: Path) -> None:
    library = pytest.importorskip("confluent_kafka", reason="confluent-kafka writes the records")
    with Kafka(tmp_path) as kafka:
        login = {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": "app",
            "sasl.password": kafka.PASSWORD,
        }
        producer = library.Producer({"bootstrap.servers": kafka.address, "log_level": 0, **login})

        def write(numbers: range) -> None:
            for n in numbers:
                producer.produce("orders", json.dumps({"n": n}), key=str(n % 5))
            assert producer.flush(30) == 0

        write(range(10))
        async with platform.client() as client, receiver() as sink:
            secret = {"type": "PLAIN", "user": "app", "password": kafka.PASSWORD}
            body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "kafka"}, "stringData": secret}
            await client.create(SECRETS, body, "default")
            sasl = {name: {"secretKeyRef": {"name": "kafka", "key": name}} for name in secret}
            await make(
                client,
                KAFKA_SOURCES,
                "KafkaSource",
                "orders",
                bootstrapServers=[kafka.address],
                topics=["orders"],
                consumerGroup="billing",
                consumers=2,
                initialOffset="earliest",
                net={"sasl": {"enable": True, **sasl}},
                sink={"uri": sink.url},
            )
            await ready(client, KAFKA_SOURCES, "orders")
            assert set(await arrived(sink, set(range(10)), lambda got: got.data["n"], 60)) == set(range(10))

            kafka.kill(kafka.pid)
            kafka.up()
            write(range(10, 200))
            seen = await arrived(sink, set(range(200)), lambda got: got.data["n"], 60)
            assert set(seen) == set(range(200))
            for key in range(5):  # the records of a key share a partition, whose order is kept
                latest = list(dict.fromkeys(n for n in seen if n % 5 == key))
                assert latest == sorted(latest)
