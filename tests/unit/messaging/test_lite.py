"""Lite topics and priorities: who gets what, in which order, on a steered clock."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sampan.kernel.clock import Clock
from sampan.parts.messaging import record
from sampan.parts.messaging.errors import MessagingError, Reason
from sampan.parts.messaging.lite import EXPIRATION, MODEL, SUBSCRIPTION_QUOTA, lite_name
from sampan.parts.messaging.operations import Operations
from sampan.parts.messaging.record import Message
from sampan.parts.messaging.topology import GroupConfig, TopicConfig
from tests.unit.messaging.conftest import Bench, Outcome, started


async def send(bench: Bench, lite: str, body: bytes) -> Message:
    """Store a message in a lite topic of ``chat``."""
    parent = bench.core.broker.topic("chat")
    target = bench.core.lite.topic(parent, lite, create=True)
    message = Message(target.name, body, {"UNIQ_KEY": body.decode(), record.LITE_TOPIC: lite})
    done = Outcome()
    bench.core.broker.send(message, target, record.encode_properties(message.properties), done)
    await done
    return message


def subscribe(bench: Bench, client: str, *lites: str, group: str = "g", action: str = "add", version: int = 0) -> None:
    parent = bench.core.broker.topic("chat")
    bench.core.lite.subscribe(client, group, parent, action, lites, version)  # type: ignore[arg-type]
    bench.core.consumption.subscribed(group, "chat")


@pytest.fixture
async def chat(bench: Bench) -> Bench:
    bench.core.broker.create_topic(TopicConfig("chat", "LITE"))
    return bench


async def test_a_client_gets_what_it_subscribed_to_and_nothing_else(chat: Bench) -> None:
    for lite in ("a", "b", "c"):
        await send(chat, lite, lite.encode())
    subscribe(chat, "one", "a", "b")
    subscribe(chat, "two", "c", "nothing-yet")
    assert sorted(await chat.bodies("chat", client="one")) == [b"a", b"b"]
    assert await chat.bodies("chat", client="two") == [b"c"]
    assert await chat.bodies("chat", client="three") == []
    assert chat.core.lite.pending.get("g", {}).keys() == {lite_name("chat", lite) for lite in "abc"}


async def test_a_waiting_call_wakes_for_its_own_lite_topics_only(chat: Bench) -> None:
    subscribe(chat, "one", "a")
    subscribe(chat, "two", "b")
    one = asyncio.ensure_future(chat.bodies("chat", client="one", wait=20))
    two = asyncio.ensure_future(chat.bodies("chat", client="two", wait=20))
    await chat.settle(lambda: chat.core.consumption.parked == 2)
    await send(chat, "b", b"for two")
    assert await two == [b"for two"]
    assert not one.done()
    await chat.jump(20)
    assert await one == []


async def test_subscribing_serves_a_call_that_waits(chat: Bench) -> None:
    await send(chat, "a", b"early")
    waiting = asyncio.ensure_future(chat.bodies("chat", client="one", wait=20))
    await chat.settle(lambda: chat.core.consumption.parked == 1)
    subscribe(chat, "one", "a")
    assert await waiting == [b"early"]


async def test_a_lite_topic_is_consumed_in_order_whoever_asks(chat: Bench) -> None:
    for number in range(4):
        await send(chat, "a", b"%d" % number)
    subscribe(chat, "one", "a")
    subscribe(chat, "two", "a")
    first = await chat.receive("chat", client="one", batch=2)
    assert await chat.bodies("chat", client="two") == []
    waiting = asyncio.ensure_future(chat.bodies("chat", client="two", wait=20))
    await chat.settle(lambda: chat.core.consumption.parked == 1)
    await chat.acknowledge(lite_name("chat", "a"), first)
    assert await waiting == [b"2", b"3"]


async def test_what_is_not_acknowledged_comes_again_and_ends_with_the_dead_letters(chat: Bench) -> None:
    chat.core.broker.create_group(GroupConfig("g", max_retries=1))
    await send(chat, "a", b"poison")
    await send(chat, "a", b"next")
    subscribe(chat, "one", "a")
    assert [d.attempt for d in await chat.receive("chat", client="one", batch=1)] == [1]
    await chat.jump(30)
    assert [d.attempt for d in await chat.receive("chat", client="one", batch=1)] == [2]
    await chat.jump(30)
    await chat.settle(lambda: "%DLQ%g" in chat.core.store.topics)
    letters = await Operations(chat.core).dead_letters("g")
    assert [(letter["body"], letter["origin_topic"]) for letter in letters] == [("poison", "chat")]
    await chat.settle(lambda: not any(chat.core.consumption.of("g", lite_name("chat", "a")).held()))  # type: ignore[union-attr]
    assert await chat.bodies("chat", client="one") == [b"next"]
    replayed = await Operations(chat.core).replay("g")
    assert replayed["replayed"] == ["poison"]
    assert chat.core.store.topics[lite_name("chat", "a")].queues[0].maximum == 3


async def test_the_whole_set_replaces_what_was_and_older_ones_are_ignored(chat: Bench) -> None:
    for lite in ("a", "b"):
        await send(chat, lite, lite.encode())
    subscribe(chat, "one", "a", version=5)
    subscribe(chat, "one", "b", action="set", version=7)
    subscribe(chat, "one", "a", action="set", version=6)
    assert await chat.bodies("chat", client="one") == [b"b"]
    subscribe(chat, "one", "b", action="remove", version=8)
    await send(chat, "b", b"later")
    await chat.jump(60)
    assert await chat.bodies("chat", client="one") == []
    subscribe(chat, "one", action="clear")
    assert chat.core.lite.candidates("one", "g", "chat") == []


async def test_in_an_exclusive_group_the_last_to_subscribe_has_the_lite_topic(chat: Bench) -> None:
    revoked: list[tuple[str, str]] = []
    chat.core.lite.on_revoked = lambda client, lite: revoked.append((client, lite))
    chat.core.broker.create_group(GroupConfig("g", attributes={MODEL: "Exclusive"}))
    await send(chat, "a", b"mine")
    subscribe(chat, "one", "a")
    subscribe(chat, "two", "a")
    assert revoked == [("one", "a")]
    assert await chat.bodies("chat", client="one") == []
    assert await chat.bodies("chat", client="two") == [b"mine"]


async def test_lite_topics_nobody_writes_to_expire(chat: Bench) -> None:
    revoked: list[tuple[str, str]] = []
    chat.core.lite.on_revoked = lambda client, lite: revoked.append((client, lite))
    chat.core.broker.create_topic(TopicConfig("chat", "LITE", attributes={EXPIRATION: "30"}))
    chat.core.lite.alive = lambda client: client == "one"
    await send(chat, "old", b"x")
    subscribe(chat, "one", "old", "young")
    await chat.jump(20 * 60)
    await send(chat, "young", b"y")
    await chat.jump(11 * 60)
    assert lite_name("chat", "old") not in chat.core.store.topics
    assert lite_name("chat", "young") in chat.core.store.topics
    assert revoked == [("one", "old")]


async def test_names_and_numbers_have_limits(chat: Bench) -> None:
    for wrong in ("", "x" * 65, "a b", "a$b"):
        with pytest.raises(MessagingError) as caught:
            subscribe(chat, "one", wrong)
        assert caught.value.reason is Reason.ILLEGAL_LITE_TOPIC
    subscribe(chat, "one", *(f"l{number}" for number in range(SUBSCRIPTION_QUOTA)))
    with pytest.raises(MessagingError) as caught:
        subscribe(chat, "one", "one-more")
    assert caught.value.reason is Reason.LITE_SUBSCRIPTION_QUOTA
    with pytest.raises(MessagingError) as caught:
        chat.core.lite.topic(chat.core.broker.create_topic(TopicConfig("plain")), "a", create=True)
    assert caught.value.reason is Reason.ILLEGAL_LITE_TOPIC


async def test_lite_topics_survive_a_restart_and_go_with_their_parent(tmp_path: Path) -> None:
    clock = Clock()
    clock.freeze()
    async with started(tmp_path, clock) as bench:
        bench.core.broker.create_topic(TopicConfig("chat", "LITE"))
        await send(bench, "a", b"1")
        await send(bench, "a", b"2")
        subscribe(bench, "one", "a")
        first = await bench.receive("chat", client="one", batch=1)
        await bench.acknowledge(lite_name("chat", "a"), first)
    async with started(tmp_path, clock) as bench:
        assert [row["topic"] for row in await Operations(bench.core).topics()] == ["chat"]
        assert await bench.bodies("chat", client="one") == []
        subscribe(bench, "one", "a")
        assert await bench.bodies("chat", client="one") == [b"2"]
        bench.core.broker.delete_topic("chat")
        assert lite_name("chat", "a") not in bench.core.store.topics


async def test_higher_priorities_overtake_lower_ones_also_when_they_come_again(bench: Bench) -> None:
    bench.core.broker.create_topic(TopicConfig("jobs", "PRIORITY", 4))
    for priority in (0, 1, 3, 1, 99):
        await bench.send("jobs", b"%d" % priority, **{record.PRIORITY: str(priority)})
    assert await bench.bodies("jobs", batch=3) == [b"3", b"99", b"1"]
    await bench.jump(30)
    again = [record.decode(d.data or b"").body for d in await bench.receive("jobs")]
    assert again == [b"3", b"99", b"1", b"1", b"0"]


async def test_subscriptions_of_a_client_nobody_knows_end_when_it_does_not_send_them_again(chat: Bench) -> None:
    lite = chat.core.lite
    subscribe(chat, "steady", "a")
    subscribe(chat, "stranger", "a", "b")
    for _ in range(4):
        await chat.jump(60.0)
        subscribe(chat, "steady", "a", action="set")
    await chat.jump(60.0)
    assert set(lite._subscriptions) == {"steady"}
    assert lite.pending == {"g": {lite_name("chat", "a"): None}}
