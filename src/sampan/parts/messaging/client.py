"""A small asyncio client of the 5.x gRPC API: produce, receive, acknowledge, change invisibility.

For other parts and for the CLI, which need no reconnecting caches or thread pools. It speaks the public protocol only, so it
works as well against a RocketMQ 5 cluster's proxy.

    async with MessagingClient("127.0.0.1:8081") as client:
        await client.send("orders", b"...", tag="new")
        for message in await client.receive("billing", "orders"):
            ...
            await client.acknowledge(message)
"""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Self

import msgspec

from sampan.kernel.clock import Clock
from sampan.kernel.errors import SampanError
from sampan.proto import messaging_pb2 as pb

SERVICE = "/apache.rocketmq.v2.MessagingService/"
EPOCH_2021 = 1_609_459_200
_counter = itertools.count()


class MessagingClientError(SampanError):
    """The broker refused: its code and message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"[{code}] {message}")
        self.code = code


class Received(msgspec.Struct, kw_only=True):
    """One received message. ``receipt`` changes with `MessagingClient.change_invisible`."""

    topic: str
    group: str
    id: str
    body: bytes
    tag: str = ""
    keys: list[str] = []
    properties: dict[str, str] = {}
    message_group: str = ""
    attempt: int = 1
    receipt: str
    queue: int = 0
    offset: int = 0
    born_ms: int = 0
    stored_ms: int = 0
    trace_context: str = ""


class Sent(msgspec.Struct):
    """What the broker says of a stored message."""

    id: str
    offset: int = 0
    transaction: str = ""
    recall_handle: str = ""


class MessagingClient:
    """A connection to a broker. Every method raises `MessagingClientError` on a refusal, grpc errors on a broken connection."""

    def __init__(
        self,
        address: str,
        *,
        clock: Clock | None = None,
        access_key: str = "",
        secret_key: str = "",
        namespace: str = "",
        tls: bytes | None = None,
        timeout: float = 10.0,
    ) -> None:
        """``tls``: PEM bytes of the authorities to trust; None: plaintext. ``timeout``: seconds a call may take."""
        self._address = address
        self._clock = clock or Clock()
        self._access_key, self._secret_key = access_key, secret_key
        self._namespace = namespace
        self._tls = tls
        self._timeout = timeout
        self._channel: Any = None
        self.client_id = f"sampan@{os.getpid()}@{uuid.uuid4().hex[:8]}"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def send(
        self,
        topic: str,
        body: bytes,
        *,
        tag: str = "",
        keys: Sequence[str] = (),
        properties: Mapping[str, str] | None = None,
        message_group: str = "",
        deliver_at: float | None = None,
        id: str = "",
        trace_context: str = "",
    ) -> Sent:
        """Store one message; ``deliver_at`` is seconds since the epoch."""
        request = pb.SendMessageRequest()
        message = request.messages.add(body=body)
        self.resource(message.topic, topic)
        message.user_properties.update(properties or {})
        system = message.system_properties
        system.message_id = id or message_id(self._clock)
        system.keys.extend(keys)
        system.body_encoding = pb.IDENTITY
        system.born_timestamp.FromMilliseconds(self._clock.time_ms())
        system.message_type = pb.NORMAL
        if tag:
            system.tag = tag
        if trace_context:
            system.trace_context = trace_context
        if message_group:
            system.message_group, system.message_type = message_group, pb.FIFO
        if deliver_at is not None:
            system.delivery_timestamp.FromMilliseconds(int(deliver_at * 1000))
            system.message_type = pb.DELAY
        reply = pb.SendMessageResponse.FromString(await self.call("SendMessage", request))
        check(reply.status)
        entry = reply.entries[0]
        return Sent(entry.message_id, entry.offset, entry.transaction_id, entry.recall_handle)

    async def send_many(self, topic: str, bodies: Sequence[bytes], *, groups: Sequence[str] = ()) -> list[Sent]:
        """Store several plain messages of one topic with one request; ``groups`` are their message groups ("": none)."""
        request = pb.SendMessageRequest()
        for number, body in enumerate(bodies):
            message = request.messages.add(body=body)
            self.resource(message.topic, topic)
            system = message.system_properties
            system.message_id = message_id(self._clock)
            system.body_encoding = pb.IDENTITY
            system.born_timestamp.FromMilliseconds(self._clock.time_ms())
            system.message_type = pb.NORMAL
            if groups and groups[number]:
                system.message_group, system.message_type = groups[number], pb.FIFO
        reply = pb.SendMessageResponse.FromString(await self.call("SendMessage", request))
        for entry in reply.entries:
            check(entry.status)
        check(reply.status)
        return [Sent(entry.message_id, entry.offset) for entry in reply.entries]

    async def receive(
        self,
        group: str,
        topic: str,
        *,
        batch: int = 32,
        invisible: float = 60.0,
        wait: float = 20.0,
        expression: str = "*",
        sql: bool = False,
        queue: pb.MessageQueue | None = None,
    ) -> list[Received]:
        """Up to ``batch`` messages, leased for ``invisible`` seconds; waits up to ``wait`` (5 to 20) for the first.

        ``queue`` is one that `assignments` named; without it the broker chooses.
        """
        request = pb.ReceiveMessageRequest(batch_size=batch)
        self.resource(request.group, group)
        if queue is not None:
            request.message_queue.CopyFrom(queue)
        else:
            request.message_queue.id = -1
        self.resource(request.message_queue.topic, topic)
        request.filter_expression.type = pb.SQL if sql else pb.TAG
        request.filter_expression.expression = expression
        request.invisible_duration.FromMilliseconds(int(invisible * 1000))
        request.long_polling_timeout.FromMilliseconds(int(wait * 1000))
        method = self._open().unary_stream(SERVICE + "ReceiveMessage")
        received: list[Received] = []
        call = method(request.SerializeToString(), metadata=self._metadata(), timeout=max(wait, 5.0) + self._timeout)
        async for payload in call:
            reply = pb.ReceiveMessageResponse.FromString(payload)
            kind = reply.WhichOneof("content")
            if kind == "status" and reply.status.code != 40401:
                check(reply.status)
            elif kind == "message":
                received.append(_received(reply.message, group, topic))
        return received

    async def route(self, topic: str) -> list[pb.MessageQueue]:
        """The queues of a topic: where they are and what messages they take."""
        request = pb.QueryRouteRequest()
        self.resource(request.topic, topic)
        self.access_point(request.endpoints)
        reply = pb.QueryRouteResponse.FromString(await self.call("QueryRoute", request))
        check(reply.status)
        return list(reply.message_queues)

    async def assignments(self, group: str, topic: str) -> list[pb.MessageQueue]:
        """Where a member of the group is to receive from: a queue of each broker, or every queue where order counts."""
        request = pb.QueryAssignmentRequest()
        self.resource(request.group, group)
        self.resource(request.topic, topic)
        self.access_point(request.endpoints)
        reply = pb.QueryAssignmentResponse.FromString(await self.call("QueryAssignment", request))
        check(reply.status)
        return [one.message_queue for one in reply.assignments]

    async def acknowledge(self, *messages: Received) -> None:
        """Be done with messages of one group and topic."""
        if not messages:
            return
        request = pb.AckMessageRequest()
        self.resource(request.group, messages[0].group)
        self.resource(request.topic, messages[0].topic)
        for message in messages:
            request.entries.add(message_id=message.id, receipt_handle=message.receipt)
        check(pb.AckMessageResponse.FromString(await self.call("AckMessage", request)).status)

    async def change_invisible(self, message: Received, seconds: float) -> None:
        """Let the lease end in ``seconds`` from now (0: deliver again at once); the message gets its new receipt."""
        request = pb.ChangeInvisibleDurationRequest(receipt_handle=message.receipt, message_id=message.id)
        self.resource(request.group, message.group)
        self.resource(request.topic, message.topic)
        request.invisible_duration.FromMilliseconds(int(seconds * 1000))
        reply = pb.ChangeInvisibleDurationResponse.FromString(await self.call("ChangeInvisibleDuration", request))
        check(reply.status)
        message.receipt = reply.receipt_handle

    async def dead_letter(self, message: Received, *, max_attempts: int = 0) -> None:
        """Put a leased message into the group's dead letter queue."""
        request = pb.ForwardMessageToDeadLetterQueueRequest(
            receipt_handle=message.receipt,
            message_id=message.id,
            delivery_attempt=message.attempt,
            max_delivery_attempts=max_attempts or message.attempt,
        )
        self.resource(request.group, message.group)
        self.resource(request.topic, message.topic)
        reply = await self.call("ForwardMessageToDeadLetterQueue", request)
        check(pb.ForwardMessageToDeadLetterQueueResponse.FromString(reply).status)

    async def recall(self, topic: str, handle: str) -> str:
        """Take a delayed message back; returns its id."""
        request = pb.RecallMessageRequest(recall_handle=handle)
        self.resource(request.topic, topic)
        reply = pb.RecallMessageResponse.FromString(await self.call("RecallMessage", request))
        check(reply.status)
        return reply.message_id

    async def operate(self, operation: str, **arguments: Any) -> Any:
        """Call one of the broker's operations (`Operations`); only Sampan's broker has them."""
        method = self._open().unary_unary("/sampan.messaging.v1.Operations/Call")
        payload = msgspec.json.encode({"operation": operation, "arguments": arguments})
        answer = msgspec.json.decode(await method(payload, metadata=self._metadata(), timeout=self._timeout * 6))
        if "error" in answer:
            raise MessagingClientError(answer["error"]["code"], answer["error"]["message"])
        return answer["result"]

    # -- the connection

    def resource(self, resource: pb.Resource, name: str) -> None:
        """Name a topic or group, in the client's namespace."""
        resource.name = name
        if self._namespace:
            resource.resource_namespace = self._namespace

    def access_point(self, endpoints: pb.Endpoints) -> None:
        """Say which address was dialled: brokers are told in terms of it."""
        host, _, port = self._address.rpartition(":")
        host = host.strip("[]")
        endpoints.scheme = pb.IPv6 if ":" in host else pb.IPv4 if host.replace(".", "").isdecimal() else pb.DOMAIN_NAME
        endpoints.addresses.add(host=host, port=int(port))

    async def call(self, name: str, request: Any) -> bytes:
        """The encoded answer of one of the service's unary methods."""
        method = self._open().unary_unary(SERVICE + name)
        answer: bytes = await method(request.SerializeToString(), metadata=self._metadata(), timeout=self._timeout)
        return answer

    def converse(self, name: str) -> Any:
        """One of the service's conversations: write encoded requests to it, read encoded answers from it."""
        return self._open().stream_stream(SERVICE + name)(metadata=self._metadata())

    def _metadata(self) -> list[tuple[str, str]]:
        date = self._clock.now().strftime("%Y%m%dT%H%M%SZ")
        metadata = [
            ("x-mq-client-id", self.client_id),
            ("x-mq-language", "PYTHON"),
            ("x-mq-protocol", "v2"),
            ("x-mq-client-version", "5.1.2"),
            ("x-mq-date-time", date),
            ("x-mq-request-id", uuid.uuid4().hex),
        ]
        if self._namespace:
            metadata.append(("x-mq-namespace", self._namespace))
        if self._access_key:
            from sampan.parts.messaging.access import sign

            metadata.append(
                (
                    "authorization",
                    f"MQv2-HMAC-SHA1 Credential={self._access_key}, SignedHeaders=x-mq-date-time, "
                    f"Signature={sign(self._secret_key, date)}",
                )
            )
        return metadata

    def _open(self) -> Any:
        if self._channel is None:
            import grpc
            from grpc import aio

            options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
            if self._tls is not None:
                credentials = grpc.ssl_channel_credentials(self._tls)
                self._channel = aio.secure_channel(self._address, credentials, options)
            else:
                self._channel = aio.insecure_channel(self._address, options)
        return self._channel


def message_id(clock: Clock) -> str:
    """A new message id in the clients' own form: version, MAC address, process, seconds since 2021, counter."""
    seconds = max(0, int(clock.time()) - EPOCH_2021) & 0xFFFFFFFF
    return f"01{uuid.getnode():012X}{os.getpid() & 0xFFFF:04X}{seconds:08X}{next(_counter) & 0xFFFFFFFF:08X}"


def _received(message: pb.Message, group: str, topic: str) -> Received:
    system = message.system_properties
    body = message.body
    if system.body_encoding == pb.GZIP:
        import gzip

        body = gzip.decompress(body)
    return Received(
        topic=topic,
        group=group,
        id=system.message_id,
        body=body,
        tag=system.tag,
        keys=list(system.keys),
        properties=dict(message.user_properties),
        message_group=system.message_group,
        attempt=system.delivery_attempt,
        receipt=system.receipt_handle,
        queue=system.queue_id,
        offset=system.queue_offset,
        born_ms=system.born_timestamp.ToMilliseconds(),
        stored_ms=system.store_timestamp.ToMilliseconds(),
        trace_context=system.trace_context,
    )


def check(status: pb.Status) -> None:
    """Raise what a status says, unless it says that all is well."""
    if status.code != 20000:
        raise MessagingClientError(status.code, status.message)
