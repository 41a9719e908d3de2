"""KafkaSource against a broker that speaks Kafka's protocol: the one that librdkafka brings for tests, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from aiohttp import web

from sampan.kube.client.http import HttpClient
from sampan.kube.objects import Object
from sampan.kube.status import ApiError
from sampan.parts.eventing.resources import KAFKA_SOURCES
from sampan.testing import Platform
from tests.clients.eventing_harness import ready, receiver

kafka = pytest.importorskip("confluent_kafka", reason="confluent-kafka brings the test broker")


class Broker:
    """A Kafka cluster of one, and its producer."""

    def __init__(self) -> None:
        self._producer = kafka.Producer({"test.mock.num.brokers": 1, "log_level": 0})
        (found,) = self._producer.list_topics(timeout=10).brokers.values()
        self.address = f"{found.host}:{found.port}"

    def write(self, topic: str, value: bytes, **more: object) -> None:
        self._producer.produce(topic, value, **more)
        assert self._producer.flush(10) == 0

    def committed(self, group: str, topic: str) -> int:
        """Records of the topic that the group has passed."""
        consumer = kafka.Consumer({"bootstrap.servers": self.address, "group.id": group})
        try:
            partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
            places = [kafka.TopicPartition(topic, number) for number in partitions]
            return sum(max(one.offset, 0) for one in consumer.committed(places, timeout=10))
        finally:
            consumer.close()


@pytest.fixture(scope="module")
def kafka_broker() -> Iterator[Broker]:
    yield Broker()


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with Platform(only=["eventing"], without=["node", "network", "traffic", "serving"]) as running:
        yield running


async def source(client: HttpClient, name: str, broker: str, version: str = "v1", **spec: object) -> None:
    body: Object = {
        "apiVersion": f"sources.knative.dev/{version}",
        "kind": "KafkaSource",
        "metadata": {"name": name, "labels": {"kafkasources.sources.knative.dev/key-type": "int"}},
        "spec": {"bootstrapServers": [broker], "topics": [name], "consumerGroup": f"g-{name}", **spec},
    }
    resource = KAFKA_SOURCES if version == "v1" else type(KAFKA_SOURCES)("sources.knative.dev", version, "kafkasources")
    await client.create(resource, body, "default")


async def test_records_become_events_and_their_offsets_are_committed(platform: Platform, kafka_broker: Broker) -> None:
    async with platform.client() as client, receiver() as sink:
        kafka_broker.write("orders", b'{"n": 0}', key=(5).to_bytes(4, "big"), headers={"region": b"eu"})
        overrides = {"extensions": {"tenant": "t1"}}
        sinks = {"sink": {"uri": sink.url}, "ceOverrides": overrides}
        await source(client, "orders", kafka_broker.address, "v1beta1", initialOffset="earliest", **sinks)
        found = await ready(client, KAFKA_SOURCES, "orders")
        assert found["spec"]["consumers"] == found["status"]["consumers"] == 1
        assert found["status"]["ceAttributes"] == [
            {"type": "dev.knative.kafka.event", "source": "/apis/v1/namespaces/default/kafkasources/orders#orders"}
        ]
        (got,) = await sink.wait(1)
        assert got["type"] == "dev.knative.kafka.event"
        assert (got["key"], got["kafkaheaderregion"], got["tenant"]) == ("5", "eu", "t1")
        assert got.data == {"n": 0}
        for number in range(1, 40):
            kafka_broker.write("orders", b'{"n": %d}' % number)
        await sink.wait(40)
        async with asyncio.timeout(20):
            while await asyncio.to_thread(kafka_broker.committed, "g-orders", "orders") < 40:
                await asyncio.sleep(0.05)
        assert len({one["id"] + one["source"] for one in sink.events}) == 40


async def test_what_the_sink_never_takes_goes_to_the_dead_letter_sink(platform: Platform, kafka_broker: Broker) -> None:
    async with platform.client() as client, receiver() as sink, receiver() as letters:
        kafka_broker.write("poison", b"warm up")  # makes the topic
        delivery = {"retry": 2, "backoffPolicy": "linear", "backoffDelay": "PT0.01S"}
        delivery["deadLetterSink"] = {"uri": letters.url}
        await source(client, "poison", kafka_broker.address, sink={"uri": sink.url}, delivery=delivery)
        await ready(client, KAFKA_SOURCES, "poison")
        sink.answers = [web.Response(status=503, text="never") for _ in range(3)]
        kafka_broker.write("poison", b"bad", partition=0)
        kafka_broker.write("poison", b"good", partition=0)
        (letter,) = await letters.wait(1)
        assert (letter["knativeerrorcode"], letter["knativeerrordest"]) == ("503", sink.url)
        assert letter.data == b"bad"
        # ordered: the next one of its partition only after the three attempts; and latest: not what was there before
        got = await sink.wait(4)
        assert [one.data for one in got] == [b"bad"] * 3 + [b"good"]


async def test_order_may_be_given_up_and_a_deleted_source_reads_no_more(
    platform: Platform, kafka_broker: Broker
) -> None:
    async with platform.client() as client, receiver() as sink:
        kafka_broker.write("shared", b"warm up")
        await source(client, "shared", kafka_broker.address, sink={"uri": sink.url}, ordering="unordered")
        await ready(client, KAFKA_SOURCES, "shared")
        for number in range(60):
            kafka_broker.write("shared", b"%d" % number, partition=number % 4)
        await sink.wait(60)
        await client.delete(KAFKA_SOURCES, "shared", "default")
        await asyncio.sleep(0.5)
        before = len(sink.events)
        kafka_broker.write("shared", b"too late")
        await asyncio.sleep(0.5)
        assert len(sink.events) == before


async def test_a_source_says_what_it_lacks(platform: Platform) -> None:
    async with platform.client() as client, receiver() as sink:
        await source(client, "nowhere", "127.0.0.1:1", sink={"uri": sink.url})
        lacking = await ready(client, KAFKA_SOURCES, "nowhere", "False")
        (condition,) = [one for one in lacking["status"]["conditions"] if one["type"] == "ConsumerGroup"]
        assert condition["reason"] == "ConnectionFailed"
        net = {"sasl": {"enable": True, "password": {"secretKeyRef": {"name": "absent", "key": "password"}}}}
        await source(client, "secretive", "127.0.0.1:1", sink={"uri": sink.url}, net=net)
        lacking = await ready(client, KAFKA_SOURCES, "secretive", "False")
        (condition,) = [one for one in lacking["status"]["conditions"] if one["type"] == "ConsumerGroup"]
        assert (condition["reason"], '"absent" not found' in condition["message"]) == ("SecretMissing", True)
        with pytest.raises(ApiError, match=r"missing field\(s\): spec\.topics"):
            await source(client, "empty", "127.0.0.1:1", topics=[], sink={"uri": sink.url})
        for name in ("nowhere", "secretive"):
            await client.delete(KAFKA_SOURCES, name, "default")
