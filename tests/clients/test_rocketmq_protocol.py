"""The gRPC API on the wire: codes, limits, TLS and signatures, asked with raw requests."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from sampan.kernel.certificates import Authority
from sampan.parts.messaging import MessagingClient, MessagingClientError
from sampan.parts.messaging.access import Entry, Policy, User
from sampan.parts.messaging.fronts.grpc.service import SERVICE
from sampan.parts.messaging.metrics import BrokerMetrics
from sampan.parts.messaging.topology import GroupConfig, TopicConfig
from sampan.proto import messaging_pb2 as pb
from tests.clients.messaging_harness import Running, broker


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with broker(tmp_path) as started:
        yield started


class Raw:
    """One channel that sends whatever it is given."""

    def __init__(self, channel: aio.Channel, client_id: str = "raw") -> None:
        self.channel = channel
        self.metadata = [("x-mq-client-id", client_id)] if client_id else []

    async def unary(self, name: str, request: Any) -> Any:
        answer = await self.channel.unary_unary(SERVICE + name, None, None)(
            request.SerializeToString(), metadata=self.metadata
        )
        return getattr(pb, name + "Response").FromString(answer)

    async def receive(self, request: pb.ReceiveMessageRequest, timeout: float | None = None) -> list[Any]:
        method = self.channel.unary_stream(SERVICE + "ReceiveMessage", None, None)
        call = method(request.SerializeToString(), metadata=self.metadata, timeout=timeout)
        return [pb.ReceiveMessageResponse.FromString(item) async for item in call]


@pytest.fixture
async def raw(running: Running) -> AsyncIterator[Raw]:
    async with aio.insecure_channel(running.address) as channel:
        yield Raw(channel)


def send_request(**changes: Any) -> pb.SendMessageRequest:
    request = pb.SendMessageRequest()
    message = request.messages.add(body=changes.pop("body", b"x"))
    message.topic.name = changes.pop("topic", "t")
    message.user_properties.update(changes.pop("properties", {}))
    message.system_properties.message_id = changes.pop("id", "0" * 34)
    message.system_properties.message_type = changes.pop("type", pb.NORMAL)
    for name, value in changes.items():
        if name in ("keys",):
            message.system_properties.keys.extend(value)
        elif isinstance(value, (int, str)):
            setattr(message.system_properties, name, value)
        else:
            getattr(message.system_properties, name).CopyFrom(value)
    return request


def seconds(value: int) -> Any:
    return pb.ReceiveMessageRequest(invisible_duration={"seconds": value}).invisible_duration


REFUSED: list[tuple[str, dict[str, Any], int]] = [
    ("a blank topic", {"topic": " "}, 40002),
    ("a topic with a space", {"topic": "a b"}, 40002),
    ("a topic of 128 characters", {"topic": "t" * 128}, 40002),
    ("a system topic", {"topic": "RMQ_SYS_TRANS_HALF_TOPIC"}, 40002),
    ("a blank id", {"id": " "}, 40009),
    ("an empty body", {"body": b""}, 41302),
    ("a body of 4 MiB and a byte", {"body": bytes((4 << 20) + 1)}, 41301),
    ("a blank tag", {"tag": " "}, 40004),
    ("a tag with a bar", {"tag": "a|b"}, 40004),
    ("a blank key", {"keys": [""]}, 40005),
    ("a control character in a key", {"keys": ["a\x01"]}, 40005),
    ("a blank message group", {"message_group": ""}, 40006),
    ("a message group of 65 bytes", {"message_group": "g" * 65}, 40006),
    ("a reserved property", {"properties": {"UNIQ_KEY": "1"}}, 40007),
    ("a control character in a property", {"properties": {"a": "\x02"}}, 40007),
    ("129 properties", {"properties": {f"p{n}": "" for n in range(129)}}, 43101),
    ("properties of 16 KiB and a byte", {"properties": {"p": "x" * (16 << 10)}}, 43101),
    (
        "a recovery duration over an hour",
        {"type": pb.TRANSACTION, "orphaned_transaction_recovery_duration": seconds(3601)},
        40000,
    ),
    ("a priority message in a MIXED topic", {"type": pb.PRIORITY, "priority": 1}, 40014),
    ("a negative priority", {"type": pb.PRIORITY, "priority": -1}, 40000),
]


@pytest.mark.parametrize(("changes", "code"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
async def test_a_message_is_refused_with_the_reference_code(raw: Raw, changes: dict[str, Any], code: int) -> None:
    reply = await raw.unary("SendMessage", send_request(**changes))
    assert reply.status.code == code, reply.status
    assert reply.status.message


async def test_limits_are_inclusive(raw: Raw) -> None:
    request = send_request(body=bytes(4 << 20), message_group="g" * 64, type=pb.FIFO, properties={"p": "x" * 16383})
    assert (await raw.unary("SendMessage", request)).status.code == 20000


async def test_requests_as_a_whole_are_checked(raw: Raw, running: Running) -> None:
    assert (await raw.unary("SendMessage", pb.SendMessageRequest())).status.code == 40016
    mixed = send_request()
    mixed.messages.append(send_request(topic="u").messages[0])
    assert (await raw.unary("SendMessage", mixed)).status.code == 40016
    assert (await Raw(raw.channel, "").unary("SendMessage", send_request())).status.code == 40017
    assert (await raw.unary("Heartbeat", pb.HeartbeatRequest(client_type=pb.PRODUCER))).status.code == 40015
    route = pb.QueryRouteRequest(topic={"name": "t"}, endpoints={"scheme": 1, "addresses": [{"host": "", "port": 1}]})
    assert (await raw.unary("QueryRoute", route)).status.code == 40001
    assert (
        await raw.unary("AckMessage", pb.AckMessageRequest(topic={"name": "t"}, group={"name": "g"}))
    ).status.code == 40000
    end = pb.EndTransactionRequest(topic={"name": "t"}, transaction_id=" ", resolution=pb.COMMIT)
    assert (await raw.unary("EndTransaction", end)).status.code == 40008
    end.transaction_id = "unknown"
    assert (await raw.unary("EndTransaction", end)).status.code == 40008
    with pytest.raises(aio.AioRpcError) as caught:
        await raw.channel.unary_unary(SERVICE + "SendMessage", None, None)(b"\xff\xff", metadata=raw.metadata)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(aio.AioRpcError) as caught:
        await raw.channel.unary_unary(SERVICE + "Nothing", None, None)(b"", metadata=raw.metadata)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_a_batch_has_one_entry_a_message_in_order(raw: Raw) -> None:
    request = send_request(id="A")
    request.messages.append(send_request(id="B").messages[0])
    reply = await raw.unary("SendMessage", request)
    assert [entry.message_id for entry in reply.entries] == ["A", "B"]


def receive_request(**changes: Any) -> pb.ReceiveMessageRequest:
    request = pb.ReceiveMessageRequest(batch_size=32, invisible_duration={"seconds": 30})
    request.group.name, request.message_queue.topic.name = changes.pop("group", "g"), changes.pop("topic", "t")
    for name, value in changes.items():
        setattr(request, name, value) if isinstance(value, (int, str)) else getattr(request, name).CopyFrom(value)
    return request


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"topic": "missing"}, 40402),
        ({"group": "a b"}, 40003),
        ({"invisible_duration": seconds(9)}, 40011),
        ({"invisible_duration": seconds(43201)}, 40011),
        ({"filter_expression": pb.FilterExpression(type=pb.SQL, expression="a >")}, 40010),
        ({"filter_expression": pb.FilterExpression(type=pb.TAG, expression="||")}, 40010),
        ({"group": "disabled"}, 40300),
    ],
)
async def test_a_receive_is_refused_with_the_reference_code(
    raw: Raw, running: Running, changes: dict[str, Any], code: int
) -> None:
    running.core.broker.create_topic(TopicConfig("t"))
    running.core.broker.create_group(GroupConfig("disabled", consume=False))
    [reply] = await raw.receive(receive_request(**changes))
    assert reply.status.code == code, reply.status


async def test_polling_ends_with_message_not_found_and_a_short_deadline_is_refused(raw: Raw, running: Running) -> None:
    running.core.broker.create_topic(TopicConfig("t"))
    [reply] = await raw.receive(receive_request(), timeout=3)
    assert reply.status.code == 40018
    waiting = asyncio.ensure_future(raw.receive(receive_request(long_polling_timeout=seconds(20))))
    while not running.core.consumption.parked:
        await asyncio.sleep(0.01)
    running.clock.jump(20)
    [reply] = await waiting
    assert reply.status.code == 40401


async def test_a_parked_receive_is_forgotten_when_its_client_goes(raw: Raw, running: Running) -> None:
    running.core.broker.create_topic(TopicConfig("t"))
    waiting = asyncio.ensure_future(raw.receive(receive_request()))
    while not running.core.consumption.parked:
        await asyncio.sleep(0.01)
    waiting.cancel()
    await eventually(lambda: not running.core.consumption.parked)
    await raw.unary("SendMessage", send_request())
    replies = await raw.receive(receive_request())
    assert [reply.WhichOneof("content") for reply in replies] == ["status", "message", "delivery_timestamp"]


async def test_ack_reports_each_entry(raw: Raw, running: Running) -> None:
    await raw.unary("SendMessage", send_request())
    replies = await raw.receive(receive_request())
    system = replies[1].message.system_properties
    request = pb.AckMessageRequest(group={"name": "g"}, topic={"name": "t"})
    request.entries.add(message_id=system.message_id, receipt_handle=system.receipt_handle)
    request.entries.add(message_id="x", receipt_handle="rubbish")
    reply = await raw.unary("AckMessage", request)
    assert reply.status.code == 30000
    assert [entry.status.code for entry in reply.entries] == [20000, 40013]
    reply = await raw.unary("AckMessage", request)
    assert reply.status.code == 40013


async def test_change_supersedes_the_receipt(raw: Raw, running: Running) -> None:
    await raw.unary("SendMessage", send_request())
    system = (await raw.receive(receive_request()))[1].message.system_properties
    change = pb.ChangeInvisibleDurationRequest(
        group={"name": "g"},
        topic={"name": "t"},
        receipt_handle=system.receipt_handle,
        invisible_duration={"seconds": 60},
    )
    reply = await raw.unary("ChangeInvisibleDuration", change)
    assert reply.status.code == 20000
    assert (await raw.unary("ChangeInvisibleDuration", change)).status.code == 40013
    ack = pb.AckMessageRequest(
        group={"name": "g"}, topic={"name": "t"}, entries=[{"receipt_handle": reply.receipt_handle}]
    )
    assert (await raw.unary("AckMessage", ack)).status.code == 20000
    change.receipt_handle = reply.receipt_handle
    assert (await raw.unary("ChangeInvisibleDuration", change)).status.code == 40013


async def test_a_route_echoes_what_was_dialled(raw: Raw, running: Running) -> None:
    request = pb.QueryRouteRequest(
        topic={"name": "t"}, endpoints={"scheme": 3, "addresses": [{"host": "mq.local", "port": 18081}]}
    )
    reply = await raw.unary("QueryRoute", request)
    assert len(reply.message_queues) == 8
    queue = reply.message_queues[0]
    assert (queue.broker.endpoints.addresses[0].host, queue.broker.endpoints.addresses[0].port) == ("mq.local", 18081)
    assert queue.permission == pb.READ_WRITE
    assert list(queue.accept_message_types) == [pb.NORMAL, pb.FIFO, pb.DELAY, pb.TRANSACTION]
    request.endpoints.Clear()
    reply = await raw.unary("QueryRoute", request)
    assert reply.message_queues[0].broker.endpoints.addresses[0].port == running.port


async def test_offsets_can_be_read_and_set(raw: Raw, running: Running) -> None:
    running.core.broker.create_topic(TopicConfig("t", queues=1))
    for number in range(3):
        await raw.unary("SendMessage", send_request(id=str(number)))
    where: dict[str, Any] = {"group": {"name": "g"}, "message_queue": {"topic": {"name": "t"}, "id": 0}}
    assert (await raw.unary("GetOffset", pb.GetOffsetRequest(**where))).status.code == 40404
    assert (await raw.unary("UpdateOffset", pb.UpdateOffsetRequest(offset=2, **where))).status.code == 20000
    assert (await raw.unary("UpdateOffset", pb.UpdateOffsetRequest(offset=4, **where))).status.code == 40019
    assert (await raw.unary("GetOffset", pb.GetOffsetRequest(**where))).offset == 2
    end = pb.QueryOffsetRequest(message_queue=where["message_queue"], query_offset_policy=pb.END)
    assert (await raw.unary("QueryOffset", end)).offset == 3
    replies = await raw.receive(receive_request())
    assert [r.message.system_properties.message_id for r in replies if r.HasField("message")] == ["2"]


async def test_access_is_by_signature_and_policy(running: Running) -> None:
    running.core.access.enabled = True
    running.core.set_user(User("alice", "secret-of-alice"))
    running.core.set_policy(Policy("alice", (Entry("Topic:orders*", ("Pub",)),)))

    async def send(topic: str, key: str, secret: str) -> int:
        async with MessagingClient(running.address, access_key=key, secret_key=secret) as client:
            try:
                await client.send(topic, b"x")
            except MessagingClientError as error:
                return error.code
        return 20000

    assert await send("orders-new", "alice", "secret-of-alice") == 20000
    assert await send("bills", "alice", "secret-of-alice") == 40300
    assert await send("orders", "alice", "guessed") == 40100
    assert await send("orders", "", "") == 40100
    assert await send("orders", "mallory", "x") == 40100


async def test_one_port_takes_plaintext_and_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")

    def context() -> ssl.SSLContext:
        return authority.server_context(["localhost", "127.0.0.1"], leaf="messaging")

    async with broker(tmp_path / "mq", tls=context) as running:
        async with MessagingClient(running.address) as plain:
            await plain.send("t", b"plain")
        async with MessagingClient(f"localhost:{running.port}", tls=authority.certificate_pem) as secure:
            await secure.send("t", b"secure")
            got = await secure.receive("g", "t")
        assert {message.body for message in got} == {b"plain", b"secure"}


async def test_our_client_does_what_eventing_needs(running: Running) -> None:
    async with MessagingClient(running.address, clock=running.clock) as client:
        sent = await client.send("t", b"body", tag="a", keys=["k"], properties={"p": "v"}, trace_context="00-x")
        [message] = await client.receive("g", "t", batch=1, expression="a || b")
        assert (message.id, message.body, message.properties, message.trace_context) == (
            sent.id,
            b"body",
            {"p": "v"},
            "00-x",
        )
        await client.change_invisible(message, 0)
        [again] = await client.receive("g", "t")
        assert again.attempt == 2
        await client.acknowledge(again)
        delayed = await client.send("t", b"later", deliver_at=running.clock.time() + 60)
        assert await client.recall("t", delayed.recall_handle) == delayed.id
        await client.send("t", b"bad")
        [bad] = await client.receive("g", "t")
        await client.dead_letter(bad)
        [dead] = await client.receive("reader", "%DLQ%g")
        assert dead.body == b"bad"


async def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come about")


async def test_a_queue_is_pulled_by_offset(raw: Raw, running: Running) -> None:
    running.core.broker.create_topic(TopicConfig("t", queues=1))
    for number in range(5):
        assert (
            await raw.unary("SendMessage", send_request(id=f"{number:034d}", tag="ab"[number % 2]))
        ).status.code == 20000

    async def pull(offset: int, expression: str = "*", wait: int = 0, queue: int = 0) -> tuple[int, list[int], int]:
        request = pb.PullMessageRequest(offset=offset, batch_size=2)
        request.group.name, request.message_queue.topic.name, request.message_queue.id = "g", "t", queue
        request.filter_expression.expression = expression
        request.long_polling_timeout.seconds = wait
        call = raw.channel.unary_stream(SERVICE + "PullMessage", None, None)(
            request.SerializeToString(), metadata=raw.metadata, timeout=10
        )
        answers = [pb.PullMessageResponse.FromString(item) async for item in call]
        code = next(answer.status.code for answer in answers if answer.HasField("status"))
        offsets = [a.message.system_properties.queue_offset for a in answers if a.HasField("message")]
        following = next((answer.next_offset for answer in answers if answer.HasField("next_offset")), -1)
        return code, offsets, following

    assert await pull(0) == (20000, [0, 1], 2)
    assert await pull(1, "a") == (20000, [2, 4], 5)
    assert await pull(5) == (40401, [], 5)
    assert await pull(9) == (40019, [], 5)
    assert await pull(0, queue=3) == (40000, [], -1)
    waiting = asyncio.ensure_future(pull(5, wait=5))
    await asyncio.sleep(0.1)
    await raw.unary("SendMessage", send_request(id="f" * 34, tag="a"))
    assert await waiting == (20000, [5], 6)


async def test_lite_topics_are_refused_with_the_reference_codes(raw: Raw, running: Running) -> None:
    running.core.broker.create_topic(TopicConfig("chat", "LITE"))
    running.core.broker.create_topic(TopicConfig("plain"))

    async def sync(topic: str, *lites: str, action: pb.LiteSubscriptionAction = pb.PARTIAL_ADD) -> int:
        request = pb.SyncLiteSubscriptionRequest(action=action, lite_topic_set=lites)
        request.topic.name, request.group.name = topic, "g"
        return int((await raw.unary("SyncLiteSubscription", request)).status.code)

    assert await sync("chat", "a", "b") == 20000
    assert await sync("chat", "no spaces") == 40020
    assert await sync("chat", *(f"l{number}" for number in range(2001))) == 42902
    assert await sync("plain", "a") == 40020
    assert await sync("nothing", "a") == 40402
    assert (await raw.unary("SendMessage", send_request(topic="chat", type=pb.LITE))).status.code == 40020
    wrong = send_request(topic="plain", type=pb.LITE, lite_topic="a")
    assert (await raw.unary("SendMessage", wrong)).status.code == 40014
    assert (await raw.unary("SendMessage", send_request(topic="chat"))).status.code == 40014


async def test_a_policy_sees_where_the_client_is(tmp_path: Path) -> None:
    async with broker(tmp_path) as running:
        running.core.access.enabled = True
        running.core.set_user(User("ann", "very-secret"))

        async def send() -> int:
            client = MessagingClient(running.address, access_key="ann", secret_key="very-secret")
            async with client:
                try:
                    await client.send("t", b"x")
                except MessagingClientError as error:
                    return error.code
            return 20000

        for source, code in (("127.0.0.0/8", 20000), ("192.0.2.0/24", 40300)):
            running.core.set_policy(Policy("ann", (Entry("Topic:*", ("Pub",), sources=(source,)),)))
            assert await send() == code


async def test_every_metric_of_the_reference_that_means_something_here_is_there(raw: Raw, running: Running) -> None:
    await raw.unary("SendMessage", send_request(body=b"x" * 2000))
    request = pb.ReceiveMessageRequest(batch_size=1, auto_renew=True)
    request.group.name, request.message_queue.topic.name = "g", "t"
    await raw.receive(request, timeout=10)
    families = {family.name: family for family in BrokerMetrics(running.core, running.server).collect()}
    wanted = """
        processor_watermark broker_permission topic_number consumer_group_number messages_in messages_out throughput_in
        throughput_out message_size topic_create_execution_time consumer_group_create_execution_time producer_connections
        consumer_connections consumer_lag_messages consumer_lag_latency consumer_inflight_messages consumer_queueing_latency
        consumer_ready_messages send_to_dlq_messages commit_messages rollback_messages finish_message_latency half_messages
        rpc_latency proxy_up storage_size storage_flush_behind_bytes storage_dispatch_behind_bytes
        storage_message_reserve_time timer_enqueue timer_enqueue_lag timer_enqueue_latency timer_dequeue timer_dequeue_lag
        timer_dequeue_latency timer_message_snapshot timing_messages delay_message_latency pop_revive_retry_messages
    """
    assert {f"rocketmq_{name}" for name in wanted.split()} <= families.keys()
    sizes = {s.labels["le"]: s.value for s in families["rocketmq_message_size"].samples if "le" in s.labels}
    assert (sizes["1024"], sizes["4096"], sizes["+Inf"]) == (0, 1, 1)
    calls = [s for s in families["rocketmq_rpc_latency"].samples if s.name.endswith("_count")]
    assert {(s.labels["request_code"], s.labels["response_code"]) for s in calls} >= {("SendMessage", "20000")}
    (flying,) = families["rocketmq_consumer_inflight_messages"].samples
    assert flying.value == 1
