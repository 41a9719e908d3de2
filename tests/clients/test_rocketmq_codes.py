"""Every method with every code it answers: the table in docs/messaging.md is what these cases show, and nothing else."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from sampan.parts.messaging.access import Entry, Policy, User, sign
from sampan.parts.messaging.fronts.grpc.service import SERVICE
from sampan.parts.messaging.topology import GroupConfig, TopicConfig
from sampan.proto import messaging_pb2 as pb
from tests.clients.messaging_harness import Running, broker

DOCS = Path(__file__).parents[2] / "docs" / "messaging.md"


class Wire:
    """A channel to a broker with a topic of every kind, as a client nobody knows yet."""

    def __init__(self, running: Running, channel: aio.Channel) -> None:
        self.running = running
        self.channel = channel
        self.metadata = [("x-mq-client-id", "codes")]

    async def ask(self, method: str, request: Any, metadata: list[tuple[str, str]] | None = None) -> list[Any]:
        """Every answer to one call."""
        kind = getattr(pb, f"{method}Response")
        call = self.channel.unary_stream(SERVICE + method, None, None)(
            request.SerializeToString(), metadata=self.metadata if metadata is None else metadata, timeout=30
        )
        return [kind.FromString(answer) async for answer in call]

    async def code(self, method: str, request: Any, metadata: list[tuple[str, str]] | None = None) -> int:
        """The status of the answer, which always says why where it is not OK."""
        statuses = [one.status for one in await self.ask(method, request, metadata) if one.HasField("status")]
        assert len(statuses) == 1
        assert statuses[0].message
        return int(statuses[0].code)

    async def settle(self) -> Any:
        """Say what the client is, on a telemetry stream that stays open."""
        stream = self.channel.stream_stream(SERVICE + "Telemetry", None, None)(None, metadata=self.metadata)
        command = pb.TelemetryCommand()
        command.settings.client_type = pb.PRODUCER
        command.settings.publishing.topics.add(name="t")
        await stream.write(command.SerializeToString())
        told = await stream.read()
        assert isinstance(told, bytes)
        answer = pb.TelemetryCommand.FromString(told)
        assert answer.status.code == 20000
        return stream

    async def leased(self) -> str:
        """The receipt of a message that is leased to group g."""
        assert await self.code("SendMessage", send()) == 20000
        request = receive()
        [receipt] = [
            one.message.system_properties.receipt_handle
            for one in await self.ask("ReceiveMessage", request)
            if one.HasField("message")
        ]
        return str(receipt)


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[Wire]:
    async with broker(tmp_path) as running:
        core = running.core.broker
        for name, kind in (("t", "MIXED"), ("plain", "NORMAL"), ("lite", "LITE"), ("untold", "UNSPECIFIED")):
            core.create_topic(TopicConfig(name, kind, 1))  # type: ignore[arg-type]
        core.create_topic(TopicConfig("unreadable", "NORMAL", 1, permission=2))
        core.create_topic(TopicConfig("unwritable", "NORMAL", 1, permission=4))
        core.create_group(GroupConfig("disabled", consume=False))
        async with aio.insecure_channel(running.address) as channel:
            yield Wire(running, channel)


def send(topic: str = "t", count: int = 1, **system: Any) -> pb.SendMessageRequest:
    request = pb.SendMessageRequest()
    for number in range(count):
        message = request.messages.add(body=system.get("body", b"x"))
        message.topic.name = topic
        message.user_properties.update(system.get("properties", {}))
        fields = {name: value for name, value in system.items() if name not in ("body", "properties")}
        message.system_properties.MergeFrom(
            pb.SystemProperties(**{"message_id": f"{number}", "message_type": pb.NORMAL, **fields})
        )
    return request


def mixed() -> pb.SendMessageRequest:
    request = send()
    request.messages.append(send("plain").messages[0])
    return request


def receive(topic: str = "t", group: str = "g", expression: str = "*", seconds: int = 30, **more: Any) -> Any:
    request = pb.ReceiveMessageRequest(batch_size=1, invisible_duration={"seconds": seconds}, **more)
    request.group.name, request.message_queue.topic.name = group, topic
    request.filter_expression.type = pb.SQL if expression.startswith("sql ") else pb.TAG
    request.filter_expression.expression = expression.removeprefix("sql ")
    return request


def ack(*receipts: str, topic: str = "t", group: str = "g") -> pb.AckMessageRequest:
    request = pb.AckMessageRequest(topic={"name": topic}, group={"name": group})
    for receipt in receipts:
        request.entries.add(message_id="0", receipt_handle=receipt)
    return request


def change(receipt: str, seconds: int = 30, topic: str = "t", group: str = "g") -> Any:
    return pb.ChangeInvisibleDurationRequest(
        topic={"name": topic}, group={"name": group}, receipt_handle=receipt, invisible_duration={"seconds": seconds}
    )


def forward(receipt: str, topic: str = "t") -> Any:
    return pb.ForwardMessageToDeadLetterQueueRequest(
        topic={"name": topic}, group={"name": "g"}, receipt_handle=receipt, message_id="0"
    )


def route(topic: str = "t", host: str = "mq", port: int = 1) -> pb.QueryRouteRequest:
    endpoints = {"scheme": pb.DOMAIN_NAME, "addresses": [{"host": host, "port": port}]}
    return pb.QueryRouteRequest(topic={"name": topic}, endpoints=endpoints)


def assignment(topic: str = "t", group: str = "g", host: str = "mq") -> pb.QueryAssignmentRequest:
    endpoints = {"scheme": pb.DOMAIN_NAME, "addresses": [{"host": host, "port": 1}]}
    return pb.QueryAssignmentRequest(topic={"name": topic}, group={"name": group}, endpoints=endpoints)


def place(kind: Any, topic: str = "t", group: str = "g", queue: int = 0, **more: Any) -> Any:
    where = {"message_queue": {"topic": {"name": topic}, "id": queue}}
    if kind is not pb.QueryOffsetRequest:
        more["group"] = {"name": group}
    return kind(**where, **more)


def lite(*names: str, topic: str = "lite", group: str = "g", action: pb.LiteSubscriptionAction = pb.PARTIAL_ADD) -> Any:
    return pb.SyncLiteSubscriptionRequest(
        action=action, topic={"name": topic}, group={"name": group}, lite_topic_set=names
    )


def end(transaction: str, topic: str = "t") -> pb.EndTransactionRequest:
    return pb.EndTransactionRequest(
        topic={"name": topic}, message_id="0", transaction_id=transaction, resolution=pb.COMMIT
    )


def recall(handle: str, topic: str = "t") -> pb.RecallMessageRequest:
    return pb.RecallMessageRequest(topic={"name": topic}, recall_handle=handle)


def later(seconds: int) -> dict[str, int]:
    import time

    return {"seconds": int(time.time()) + seconds}


LEASED = "<leased>"
"""Stands for the receipt of a leased message."""

Case = tuple[int, str, Callable[[], Any]]
CASES: dict[str, list[Case]] = {
    "QueryRoute": [
        (20000, "a topic", route),
        (20000, "a topic that does not exist is made", lambda: route("new")),
        (40001, "no host", lambda: route(host="")),
        (40001, "no port", lambda: route(port=0)),
        (40002, "a topic with a space", lambda: route("a b")),
        (40002, "a system topic", lambda: route("SCHEDULE_TOPIC_XXXX")),
        (40402, "a dead letter topic that does not exist", lambda: route("%DLQ%nobody")),
    ],
    "QueryAssignment": [
        (20000, "a topic and a group", assignment),
        (40001, "no host", lambda: assignment(host="")),
        (40002, "a topic with a space", lambda: assignment("a b")),
        (40003, "a group with a space", lambda: assignment(group="a b")),
        (40300, "a topic nobody may read", lambda: assignment("unreadable")),
        (40402, "a dead letter topic that does not exist", lambda: assignment("%DLQ%nobody")),
    ],
    "SendMessage": [
        (20000, "a message", send),
        (30000, "one message of two too late", lambda: two(later(10), later(10**9))),
        (40000, "a recovery duration over an hour", lambda: send(message_type=pb.TRANSACTION, **orphan(3601))),
        (40000, "a negative priority", lambda: send(priority=-1)),
        (40000, "a control character in the trace context", lambda: send(trace_context="a\x01b")),
        (40002, "a blank topic", lambda: send(" ")),
        (40002, "a system topic", lambda: send("RMQ_SYS_TRANS_HALF_TOPIC")),
        (40002, "the inner name of a lite topic", lambda: send("%LMQ%$lite$a")),
        (40004, "a tag with a bar", lambda: send(tag="a|b")),
        (40005, "a blank key", lambda: send(keys=[" "])),
        (40006, "a message group of 65 bytes", lambda: send(message_group="g" * 65)),
        (40007, "a reserved property", lambda: send(properties={"TAGS": "x"})),
        (40009, "a blank id", lambda: send(message_id=" ")),
        (40009, "a control character in the id", lambda: send(message_id="a\x01b\x02")),
        (40009, "an id of 256 characters", lambda: send(message_id="x" * 256)),
        (40012, "a delivery time beyond the limit", lambda: send(delivery_timestamp=later(4 * 86_400))),
        (40014, "a type the topic does not take", lambda: send("plain", message_type=pb.FIFO, message_group="g")),
        (40016, "no message", pb.SendMessageRequest),
        (40016, "messages of two topics", mixed),
        (40020, "a lite topic with a space", lambda: send("lite", message_type=pb.LITE, lite_topic="a b")),
        (40300, "a topic nobody may write", lambda: send("unwritable")),
        (40402, "a dead letter topic that does not exist", lambda: send("%DLQ%nobody")),
        (41301, "a body of 4 MiB and a byte", lambda: send(body=bytes((4 << 20) + 1))),
        (41302, "an empty body", lambda: send(body=b"")),
        (43101, "properties of 17 KiB", lambda: send(properties={"p": "x" * (17 << 10)})),
        (43101, "a trace context of 17 KiB", lambda: send(trace_context="x" * (17 << 10))),
        (43101, "a tag of 9 Ki characters of two bytes", lambda: send(tag="ü" * (9 << 10))),
    ],
    "ReceiveMessage": [
        (40002, "a topic with a space", lambda: receive("a b")),
        (40003, "a group with a space", lambda: receive(group="a b")),
        (40010, "SQL that does not parse", lambda: receive(expression="sql a >")),
        (40010, "a tag expression of nothing", lambda: receive(expression="||")),
        (40011, "a lease of 9 seconds", lambda: receive(seconds=9)),
        (40011, "a lease of over 12 hours", lambda: receive(seconds=43_201)),
        (40011, "an absurd lease", lambda: receive(seconds=1 << 60)),
        (40011, "a negative lease", lambda: receive(seconds=-1)),
        (40300, "a group that may not consume", lambda: receive(group="disabled")),
        (40300, "a topic nobody may read", lambda: receive("unreadable")),
        (40402, "a topic that does not exist", lambda: receive("missing")),
    ],
    "AckMessage": [
        (20000, "a leased message", lambda: ack(LEASED)),
        (30000, "a leased message and rubbish", lambda: ack(LEASED, "rubbish")),
        (40000, "no entry", ack),
        (40003, "a group with a space", lambda: ack("x", group="a b")),
        (40013, "rubbish", lambda: ack("rubbish")),
        (40013, "a receipt of nothing", lambda: ack("0 1 1 1 0 sampan 0 0 0")),
        (40402, "a topic that does not exist", lambda: ack("x", topic="missing")),
    ],
    "ChangeInvisibleDuration": [
        (20000, "a leased message", lambda: change(LEASED)),
        (20000, "a leased message, now", lambda: change(LEASED, 0)),
        (40011, "over 12 hours", lambda: change(LEASED, 43_201)),
        (40011, "less than nothing", lambda: change(LEASED, -1)),
        (40013, "rubbish", lambda: change("rubbish")),
        (40402, "a topic that does not exist", lambda: change("x", topic="missing")),
    ],
    "ForwardMessageToDeadLetterQueue": [
        (20000, "a leased message", lambda: forward(LEASED)),
        (40013, "rubbish", lambda: forward("rubbish")),
        (40402, "a topic that does not exist", lambda: forward("x", "missing")),
    ],
    "EndTransaction": [
        (40008, "a blank id", lambda: end(" ")),
        (40008, "an unknown id", lambda: end("nothing")),
    ],
    "RecallMessage": [
        (40000, "rubbish", lambda: recall("rubbish")),
        (40000, "a message that is not there", lambda: recall("djEgdCBzYW1wYW4gMSB4")),
        (40002, "a handle of another topic", lambda: recall("djEgdCBzYW1wYW4gMSB4", "plain")),
    ],
    "Heartbeat": [
        (40015, "a client nobody knows", lambda: pb.HeartbeatRequest(client_type=pb.PRODUCER)),
    ],
    "NotifyClientTermination": [
        (20000, "a client nobody knows", pb.NotifyClientTerminationRequest),
    ],
    "PullMessage": [
        (20000, "what is there", lambda: place(pb.PullMessageRequest, "plain", batch_size=1)),
        (40000, "a queue that does not exist", lambda: place(pb.PullMessageRequest, queue=7)),
        (40003, "a group with a space", lambda: place(pb.PullMessageRequest, group="a b")),
        (
            40010,
            "a tag expression of nothing",
            lambda: place(pb.PullMessageRequest, filter_expression={"expression": "||"}),
        ),
        (40019, "an offset behind the end", lambda: place(pb.PullMessageRequest, offset=9)),
        (40401, "nothing there", lambda: place(pb.PullMessageRequest)),
        (40402, "a topic that does not exist", lambda: place(pb.PullMessageRequest, "missing")),
    ],
    "UpdateOffset": [
        (20000, "the beginning", lambda: place(pb.UpdateOffsetRequest)),
        (40000, "a queue that does not exist", lambda: place(pb.UpdateOffsetRequest, queue=-1)),
        (40003, "a group with a space", lambda: place(pb.UpdateOffsetRequest, group="a b")),
        (40019, "an offset behind the end", lambda: place(pb.UpdateOffsetRequest, offset=9)),
        (40402, "a topic that does not exist", lambda: place(pb.UpdateOffsetRequest, "missing")),
    ],
    "GetOffset": [
        (40000, "a queue that does not exist", lambda: place(pb.GetOffsetRequest, queue=7)),
        (40402, "a topic that does not exist", lambda: place(pb.GetOffsetRequest, "missing")),
        (40404, "a group that was never here", lambda: place(pb.GetOffsetRequest)),
    ],
    "QueryOffset": [
        (20000, "the beginning", lambda: place(pb.QueryOffsetRequest)),
        (40000, "a queue that does not exist", lambda: place(pb.QueryOffsetRequest, queue=7)),
        (40402, "a topic that does not exist", lambda: place(pb.QueryOffsetRequest, "missing")),
    ],
    "SyncLiteSubscription": [
        (20000, "two lite topics", lambda: lite("a", "b")),
        (40000, "an action that does not exist", lambda: lite("a", action=9)),  # type: ignore[arg-type]
        (40003, "a group with a space", lambda: lite("a", group="a b")),
        (40020, "a name with a space", lambda: lite("a b")),
        (40020, "a topic that is not of type LITE", lambda: lite("a", topic="t")),
        (40402, "a topic that does not exist", lambda: lite("a", topic="missing")),
        (42902, "2,001 lite topics", lambda: lite(*map(str, range(2001)))),
    ],
}
ELSEWHERE = {
    "SendMessage": {42900, 42901, 50001},
    "ReceiveMessage": {20000, 40018, 40401, 42900},
    "EndTransaction": {20000},
    "RecallMessage": {20000},
    "Heartbeat": {20000},
    "GetOffset": {20000},
}
"""Codes that need more than one request: other tests show them."""


def orphan(seconds: int) -> dict[str, Any]:
    return {"orphaned_transaction_recovery_duration": {"seconds": seconds}}


def two(*times: dict[str, int]) -> pb.SendMessageRequest:
    request = pb.SendMessageRequest()
    for time in times:
        request.messages.append(send(delivery_timestamp=time).messages[0])
    return request


def with_receipt(request: Any, receipt: str) -> Any:
    for holder in (request, *getattr(request, "entries", ())):
        if getattr(holder, "receipt_handle", "") == LEASED:
            holder.receipt_handle = receipt
    return request


@pytest.mark.parametrize("method", CASES)
async def test_a_method_answers_with_the_codes_of_the_reference(wire: Wire, method: str) -> None:
    assert await wire.code("SendMessage", send("plain")) == 20000
    found, wanted = {}, {}
    for code, what, make in CASES[method]:
        request = make()
        if LEASED in str(request):
            with_receipt(request, await wire.leased())
        wanted[what] = code
        found[what] = await wire.code(method, request)
    assert found == wanted
    assert await wire.code(method, CASES[method][0][2](), metadata=[]) == 40017


async def test_a_method_refuses_who_is_not_allowed(wire: Wire) -> None:
    """Whatever is asked: without a signature 40100, with one but no policy 40300 (where a topic or group is named)."""
    access = wire.running.core.access
    access.enabled = True
    wire.running.core.set_user(User("ann", "secret"))
    wire.running.core.set_policy(Policy("ann", (Entry("Topic:other", ("All",)),)))
    signature = f"MQv2-HMAC-SHA1 Credential=ann, SignedHeaders=x-mq-date-time, Signature={sign('secret', 'now')}"
    signed = [*wire.metadata, ("x-mq-date-time", "now"), ("authorization", signature)]
    requests = {method: cases[0][2]() for method, cases in CASES.items()}
    requests |= {"EndTransaction": end("x"), "Heartbeat": pb.HeartbeatRequest(client_type=pb.PUSH_CONSUMER)}
    requests["Heartbeat"].group.name = "g"
    nameless = {"Heartbeat", "NotifyClientTermination"}
    unsigned = {method: await wire.code(method, request) for method, request in requests.items()}
    refused = {method: await wire.code(method, request, signed) for method, request in requests.items()}
    assert unsigned == dict.fromkeys(requests, 40100)
    assert {refused[method] for method in requests.keys() - nameless} == {40300}
    stream = wire.channel.stream_stream(SERVICE + "Telemetry", None, None)(None, metadata=signed)
    command = pb.TelemetryCommand()
    command.settings.client_type = pb.PUSH_CONSUMER
    command.settings.subscription.group.name = "uninvited"
    await stream.write(command.SerializeToString())
    told = await stream.read()
    assert isinstance(told, bytes)
    assert pb.TelemetryCommand.FromString(told).status.code == 40300
    assert "uninvited" not in wire.running.core.store.groups


async def test_a_client_that_said_what_it_is_may_beat(wire: Wire) -> None:
    stream = await wire.settle()
    assert await wire.code("Heartbeat", pb.HeartbeatRequest(client_type=pb.PRODUCER)) == 20000
    stream.cancel()
    assert await wire.code("NotifyClientTermination", pb.NotifyClientTerminationRequest()) == 20000
    assert await wire.code("Heartbeat", pb.HeartbeatRequest(client_type=pb.PRODUCER)) == 40015


async def test_what_is_not_served_is_unimplemented(wire: Wire) -> None:
    for path in ("/apache.rocketmq.v2.Admin/ChangeLogLevel", SERVICE + "Nothing"):
        with pytest.raises(aio.AioRpcError) as caught:
            await wire.channel.unary_unary(path, None, None)(b"", metadata=wire.metadata)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_the_table_in_the_documentation_is_what_these_tests_show() -> None:
    section = DOCS.read_text().partition("### Methods")[2].partition("\n## ")[0]
    told = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0] in CASES:
            told[cells[0]] = {int(code) for code in re.findall(r"\b[1-9]\d{4}\b", cells[1])}
    shown = {method: {code for code, _, _ in cases} | ELSEWHERE.get(method, set()) for method, cases in CASES.items()}
    assert told == shown
