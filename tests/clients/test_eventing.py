"""Brokers and Triggers as their clients see them: the CloudEvents SDK produces and receives, kubectl's API declares."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from sampan.cli.trace import walk
from sampan.parts.eventing.resources import BROKERS, TRIGGERS
from sampan.parts.messaging import MessagingClient
from sampan.testing import Platform
from tests.clients.eventing_harness import broker, event, ready, receiver, send, trigger


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with Platform(only=["eventing"]) as running:
        yield running


async def test_an_event_reaches_the_subscribers_whose_filters_match(platform: Platform) -> None:
    async with platform.client() as client, receiver() as all_, receiver() as big:
        made = await broker(client, "shop")
        assert made["status"]["address"]["url"].endswith("knative-eventing.svc.cluster.local/default/shop")
        assert made["metadata"]["annotations"]["eventing.knative.dev/broker.class"] == "MTChannelBasedBroker"
        assert made["spec"]["delivery"] == {"retry": 10, "backoffPolicy": "exponential", "backoffDelay": "PT0.2S"}
        await trigger(client, "shop-all", "shop", all_.url)
        await trigger(client, "shop-big", "shop", big.url, filters=[{"cesql": "INT(amount) > 100"}])
        assert await send(platform, "/default/shop", event(data={"n": 1}, amount="50")) == 202
        assert await send(platform, "/default/shop", event(data={"n": 2}, amount="500"), structured=True) == 202
        assert sorted(one.data["n"] for one in await all_.wait(2)) == [1, 2]
        (only,) = await big.wait(1)
        assert only.data == {"n": 2}
        assert only["amount"] == "500"
        assert "knativearrivaltime" in only
        assert "knativebrokerttl" not in only
        assert big.headers[0]["content-type"].startswith("application/cloudevents+json")
        assert big.headers[0]["prefer"] == "reply"


async def test_a_reply_enters_the_broker_again_and_circles_end(platform: Platform) -> None:
    async with platform.client() as client, receiver() as first, receiver() as second:
        await broker(client, "talk")
        first.reply = event("pong", {"said": "pong"})
        await trigger(client, "talk-ping", "talk", first.url, filter={"attributes": {"type": "ping"}})
        await trigger(client, "talk-pong", "talk", second.url, filter={"attributes": {"type": "pong"}})
        assert await send(platform, "/default/talk", event("ping"), traceparent=f"00-{'a' * 32}-{'b' * 16}-01") == 202
        (pong,) = await second.wait(1)
        assert pong.data == {"said": "pong"}
        assert second.headers[0]["traceparent"].startswith(f"00-{'a' * 32}-")  # the same trace, another hop
        (trace,) = platform.call(lambda: platform.kernel.traces.find("a" * 32))
        steps = [(depth, span.service) for depth, span in walk(trace)]
        assert steps[:5] == [
            (0, "broker default/talk"),
            (1, "trigger default/talk-ping"),
            (2, URL(first.url).authority),
            (3, "broker default/talk"),
            (4, "trigger default/talk-pong"),
        ]
        assert trace.root.parent_id == "b" * 16
        assert await send(platform, "/default/talk", event("pong"), traceparent=f"00-{'c' * 32}-{'d' * 16}-00") == 202
        await second.wait(2)
        assert second.headers[1]["traceparent"] == f"00-{'c' * 32}-{'d' * 16}-00"  # nobody wants this one traced
        assert await send(platform, "/default/talk", event("ping", knativebrokerttl="1")) == 400


async def test_a_dead_subscriber_is_tried_exactly_its_retries_then_the_dead_letter_sink_gets_the_event(
    platform: Platform,
) -> None:
    async with platform.client() as client, receiver() as broken, receiver() as letters:
        await broker(client, "post")
        broken.answers = [web.Response(status=503, text="no room") for _ in range(3)]
        delivery = {
            "retry": 2,
            "backoffPolicy": "linear",
            "backoffDelay": "PT0.05S",
            "deadLetterSink": {"uri": letters.url},
        }
        await trigger(client, "post-broken", "post", broken.url, delivery=delivery)
        assert await send(platform, "/default/post", event()) == 202
        (letter,) = await letters.wait(1)
        assert len(broken.events) == 3
        assert letter["knativeerrordest"] == broken.url
        assert letter["knativeerrorcode"] == "503"
        assert letter["knativeerrordata"] == "bm8gcm9vbQ=="


async def test_the_attempts_made_before_a_restart_count(tmp_path: Path) -> None:
    async with receiver() as broken, receiver() as letters:
        broken.answers = [web.Response(status=503, text=f"no {number}") for number in range(9)]
        chosen = ["node", "network", "traffic", "serving", "workloads"]
        with Platform(only=["eventing"], without=chosen, data_dir=tmp_path) as platform:
            async with platform.client() as client:
                await broker(client, "post")
                delivery = {
                    "retry": 2,
                    "backoffPolicy": "linear",
                    "backoffDelay": "PT1H",
                    "deadLetterSink": {"uri": letters.url},
                }
                await trigger(client, "post-broken", "post", broken.url, delivery=delivery)
                assert await send(platform, "/default/post", event()) == 202
                await broken.wait(2)  # the first retry is due at once, the second in an hour
        with Platform(only=["eventing"], without=chosen, data_dir=tmp_path) as platform:
            await asyncio.sleep(0.2)
            assert len(broken.events) == 2
            platform.clock.jump(3600)
            (letter,) = await letters.wait(1)
        assert len(broken.events) == 3
        assert letter["knativeerrordata"] == base64.b64encode(b"no 2").decode()


async def test_what_is_deleted_while_eventing_is_away_leaves_nothing_in_messaging(tmp_path: Path) -> None:
    chosen = ["node", "network", "traffic", "serving", "workloads"]

    async def kept(platform: Platform) -> list[str]:
        async with MessagingClient(platform.address("messaging.grpc")) as messaging:
            topics = [row["topic"] for row in await messaging.operate("topics")]
            groups = [row["group"] for row in await messaging.operate("groups")]
        return sorted(name for name in (*topics, *groups) if name.startswith("knative-"))

    async with receiver() as sink:
        with Platform(only=["eventing"], without=chosen, data_dir=tmp_path) as platform:
            async with platform.client() as client:
                for name in ("stays", "goes"):
                    await broker(client, name)
                    await trigger(client, f"{name}-all", name, sink.url)
            before = await kept(platform)
            assert len(before) == 4
    with Platform(only=["kubernetes"], data_dir=tmp_path) as platform:
        async with platform.client() as client:
            await client.delete(TRIGGERS, "goes-all", "default")
            await client.delete(BROKERS, "goes", "default")
    with Platform(only=["eventing"], without=chosen, data_dir=tmp_path) as platform:
        async with asyncio.timeout(30):
            while len(await kept(platform)) > 2:
                await asyncio.sleep(0.05)
        assert await kept(platform) == [name for name in before if "_default_stays" in name]


async def test_a_batch_enters_as_a_whole_or_not_at_all(platform: Platform) -> None:
    async with platform.client() as client, receiver() as sink, aiohttp.ClientSession() as session:
        await broker(client, "many")
        await trigger(client, "many-all", "many", sink.url)
        url = f"http://{platform.address('eventing.ingress')}/default/many"
        kind = {"Content-Type": "application/cloudevents-batch+json; charset=utf-8"}
        events = [
            {"specversion": "1.0", "id": f"b{number}", "type": "t", "source": "/s", "data": {"n": number}}
            for number in range(3)
        ]
        for spoilt in ([], [*events, {"id": "no event"}], [*events, {**events[0], "knativebrokerttl": "1"}]):
            async with session.post(url, json=spoilt, headers=kind) as response:
                assert response.status == 400, await response.text()
        async with session.post(url, json=events, headers=kind) as response:
            assert response.status == 202
        await sink.wait(3)
        await asyncio.sleep(0.2)
        assert sorted(one["id"] for one in sink.events) == ["b0", "b1", "b2"]
        assert sorted(one.data["n"] for one in sink.events) == [0, 1, 2]


async def test_a_poison_event_does_not_hold_up_the_others(platform: Platform) -> None:
    async with platform.client() as client, receiver() as sink:
        await broker(client, "busy")
        sink.answers = [web.Response(status=500)]
        delivery = {"retry": 1, "backoffPolicy": "linear", "backoffDelay": "PT1H"}
        await trigger(client, "busy-all", "busy", sink.url, delivery={**delivery, "backoffPolicy": "exponential"})
        assert await send(platform, "/default/busy", event("poison")) == 202
        await sink.wait(1)
        for number in range(20):
            assert await send(platform, "/default/busy", event("fine", {"n": number})) == 202
        await sink.wait(21)
        assert sorted(one.data["n"] for one in sink.events[1:]) == list(range(20))


async def test_an_ordered_trigger_keeps_the_order_of_each_key_also_when_attempts_fail(platform: Platform) -> None:
    async with platform.client() as client, receiver() as sink:
        await broker(client, "lined")
        sink.answers = [web.Response(status=503) for _ in range(5)]
        body = {
            "apiVersion": "eventing.knative.dev/v1",
            "kind": "Trigger",
            "metadata": {"name": "lined", "annotations": {"kafka.eventing.knative.dev/delivery.order": "ordered"}},
            "spec": {
                "broker": "lined",
                "subscriber": {"uri": sink.url},
                "delivery": {"retry": 5, "backoffPolicy": "linear", "backoffDelay": "PT0.01S"},
            },
        }
        await client.create(TRIGGERS, body, "default")
        await ready(client, TRIGGERS, "lined")
        for number in range(40):
            made = event("entry", {"n": number}, partitionkey=f"account-{number % 3}")
            assert await send(platform, "/default/lined", made) == 202
        await sink.wait(45)
        seen = [one.data["n"] for one in sink.events]
        for account in range(3):
            latest = list(dict.fromkeys(n for n in seen if n % 3 == account))
            assert latest == sorted(latest)
        assert set(seen) == set(range(40))


@pytest.mark.parametrize(
    ("path", "headers", "body", "status"),
    [
        ("/default/door", {}, b"{}", 400),
        ("/default/door", {"ce-specversion": "1.0", "ce-id": "1", "ce-type": "t"}, b"", 400),
        ("/default/door", {"ce-specversion": "2.0", "ce-id": "1", "ce-type": "t", "ce-source": "/"}, b"", 400),
        ("/default/door", {"content-type": "application/cloudevents+json"}, b"{", 400),
        ("/default/door", {"content-type": "application/cloudevents-batch+json"}, b"[]", 400),
        ("/default/nobody", {"ce-specversion": "1.0", "ce-id": "1", "ce-type": "t", "ce-source": "/"}, b"", 404),
        ("/door", {"ce-specversion": "1.0", "ce-id": "1", "ce-type": "t", "ce-source": "/"}, b"", 400),
        ("/", {"ce-specversion": "1.0", "ce-id": "1", "ce-type": "t", "ce-source": "/"}, b"", 404),
        (
            "/default/door",
            {"ce-specversion": "1.0", "ce-id": "1", "ce-type": "t", "ce-source": "/"},
            b"x" * 2_000_000,
            413,
        ),
        ("/default/door/", {"ce-specversion": "1.0", "ce-id": "1", "ce-type": "t", "ce-source": "/"}, b"", 202),
    ],
)
async def test_the_ingress_says_what_is_wrong(
    platform: Platform, path: str, headers: dict[str, str], body: bytes, status: int
) -> None:
    async with platform.client() as client, aiohttp.ClientSession() as session:
        if not [one for one in (await client.list(BROKERS, "default")).items if one["metadata"]["name"] == "door"]:
            await broker(client, "door")
        url = f"http://{platform.address('eventing.ingress')}{path}"
        async with session.post(url, data=body, headers=headers) as response:
            assert response.status == status, await response.text()
            assert response.headers["Allow"] == "POST, OPTIONS"
        async with session.options(url) as response:
            assert (response.status, response.headers["WebHook-Allowed-Origin"]) == (200, "*")
        async with session.get(url) as response:
            assert response.status == 405
