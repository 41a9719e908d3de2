"""The methods of ``apache.rocketmq.v2.MessagingService``.

Errors of the domain are answers with gRPC status OK and a code in ``status``; clients take any other gRPC status for a
transport failure and try elsewhere. Sending, receiving, acknowledging and changing leases are plain callbacks (see
``kernel.grpc``); the rest are coroutines.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from sampan.kernel import grpc
from sampan.kernel.grpc import Call, Method
from sampan.kernel.tasks import Tasks
from sampan.parts.messaging import receipt as receipts
from sampan.parts.messaging import record
from sampan.parts.messaging.access import Action
from sampan.parts.messaging.clients import Client
from sampan.parts.messaging.consumption import RESPONSE_BYTES, SCAN_CHUNK, SCAN_LIMIT, Delivery, Poll
from sampan.parts.messaging.core import Core
from sampan.parts.messaging.delivery import RENEW_MS
from sampan.parts.messaging.errors import MessagingError, Reason
from sampan.parts.messaging.filters import Filter, sql_filter, tag_filter
from sampan.parts.messaging.fronts.grpc import codes, messages
from sampan.parts.messaging.fronts.grpc.telemetry import Telemetry
from sampan.parts.messaging.held import HeldMessages
from sampan.parts.messaging.lite import Action as LiteAction
from sampan.parts.messaging.lite import check_lite
from sampan.parts.messaging.record import Message
from sampan.parts.messaging.topology import MessageType, Queue, Topic, check_group, check_topic
from sampan.proto import messaging_pb2 as pb

log = logging.getLogger(__name__)

SERVICE = "/apache.rocketmq.v2.MessagingService/"
R = TypeVar("R")


class MessagingService:
    """The service over one broker's core."""

    def __init__(self, core: Core, tasks: Tasks, address: Callable[[], tuple[str, int]]) -> None:
        """``address`` is where the front listens, for clients that do not say what they dialled."""
        self._broker = core.broker
        self._consumption = core.consumption
        self._held = core.held
        self._clients = core.clients
        self._access = core.access
        self._lite = core.lite
        self._tasks = tasks
        self._address = address
        self.telemetry = Telemetry(core.broker, core.clients, tasks, self._admit)

    def methods(self) -> list[Method]:
        """Every method, to be served."""
        return [
            Method(SERVICE + "SendMessage", "unary", self._guarded(pb.SendMessageResponse, self._send)),
            Method(SERVICE + "ReceiveMessage", "stream", self._receive),
            Method(SERVICE + "AckMessage", "unary", self._guarded(pb.AckMessageResponse, self._acknowledge)),
            Method(
                SERVICE + "ChangeInvisibleDuration",
                "unary",
                self._guarded(pb.ChangeInvisibleDurationResponse, self._change),
            ),
            self._unary("QueryRoute", pb.QueryRouteRequest, pb.QueryRouteResponse, self._route),
            self._unary("Heartbeat", pb.HeartbeatRequest, pb.HeartbeatResponse, self._heartbeat),
            self._unary("QueryAssignment", pb.QueryAssignmentRequest, pb.QueryAssignmentResponse, self._assignment),
            self._unary(
                "ForwardMessageToDeadLetterQueue",
                pb.ForwardMessageToDeadLetterQueueRequest,
                pb.ForwardMessageToDeadLetterQueueResponse,
                self._forward,
            ),
            self._unary("EndTransaction", pb.EndTransactionRequest, pb.EndTransactionResponse, self._end_transaction),
            self._unary("RecallMessage", pb.RecallMessageRequest, pb.RecallMessageResponse, self._recall),
            self._unary(
                "NotifyClientTermination",
                pb.NotifyClientTerminationRequest,
                pb.NotifyClientTerminationResponse,
                self._terminated,
            ),
            self._unary("UpdateOffset", pb.UpdateOffsetRequest, pb.UpdateOffsetResponse, self._update_offset),
            self._unary("GetOffset", pb.GetOffsetRequest, pb.GetOffsetResponse, self._get_offset),
            self._unary("QueryOffset", pb.QueryOffsetRequest, pb.QueryOffsetResponse, self._query_offset),
            self._unary(
                "SyncLiteSubscription",
                pb.SyncLiteSubscriptionRequest,
                pb.SyncLiteSubscriptionResponse,
                self._sync_lite,
            ),
            grpc.server_stream(SERVICE + "PullMessage", pb.PullMessageRequest, self._pull, self._tasks),
            grpc.bidirectional(SERVICE + "Telemetry", pb.TelemetryCommand, self._telemetry),
        ]

    # -- the frame around every method

    def _unary(
        self, name: str, request: Any, response: Any, handler: Callable[[Any, Call, Any], Coroutine[Any, Any, None]]
    ) -> Method:
        async def answer(message: Any, call: Call) -> Any:
            reply = response()
            try:
                self._client(call)
                if self._access.enabled:
                    self._access.authenticate(call.metadata)
                reply.status.CopyFrom(codes.SUCCESS)
                await handler(message, call, reply)
            except MessagingError as error:
                self._refused(call, error)
                reply = response(status=codes.of(error))
            except Exception:
                log.exception("%s failed", name)
                reply = response(status=codes.status(codes.INTERNAL_ERROR, "internal error; see the broker's log"))
            return reply

        return grpc.unary(SERVICE + name, request, answer, self._tasks)

    def _guarded(self, response: Any, handler: Callable[[bytes, Call], None]) -> Callable[[bytes, Call], None]:
        def guarded(payload: bytes, call: Call) -> None:
            try:
                handler(payload, call)
            except MessagingError as error:
                self._refused(call, error)
                call.respond(response(status=codes.of(error)).SerializeToString())

        return guarded

    def _client(self, call: Call) -> str:
        client_id = call.metadata.get("x-mq-client-id", "")
        if not client_id:
            raise MessagingError(Reason.CLIENT_ID_REQUIRED, "the header x-mq-client-id is missing")
        self._clients.seen(client_id)
        return client_id

    def _allow(self, call: Call, action: Action, *, topic: str = "", group: str = "") -> None:
        if self._access.enabled:
            subject = self._access.authenticate(call.metadata)
            self._access.check(subject, action, topic=topic, group=group, source=call.peer.host)

    def _admit(self, call: Call, client: Client) -> None:
        """Refuse a client whose settings name what it may not use."""
        for topic in client.topics:
            self._allow(call, "Pub", topic=topic)
        if client.group:
            self._allow(call, "Sub", group=client.group)
        for topic in client.subscriptions:
            self._allow(call, "Sub", topic=topic)

    def _refused(self, call: Call, error: MessagingError) -> None:
        call.result = codes.CODES[error.reason]
        self._broker.statistics.refused[error.reason.name] += 1

    def answered(self, call: Call, seconds: float) -> None:
        """A call is over; for the server to tell."""
        method = call.method.path.rpartition("/")[2]
        self._broker.statistics.called(method, call.result or codes.OK, seconds * 1000)

    async def _telemetry(self, commands: Any, call: Call) -> Any:
        if self._access.enabled:
            try:
                self._access.authenticate(call.metadata)
            except MessagingError as error:
                yield pb.TelemetryCommand(status=codes.of(error))
                return
        async for command in self.telemetry.converse(commands, call):
            yield command

    # -- sending

    def _send(self, payload: bytes, call: Call) -> None:
        request = pb.SendMessageRequest.FromString(payload)
        self._client(call)
        if not request.messages:
            raise MessagingError(Reason.MESSAGE_CORRUPTED, "the request has no message")
        first = request.messages[0]
        name = messages.full_name(first.topic)
        for other in request.messages[1:]:
            if messages.full_name(other.topic) != name:
                raise MessagingError(Reason.MESSAGE_CORRUPTED, "the messages of one request must have one topic")
        if self._access.enabled:
            self._allow(call, "Pub", topic=name)
        broker = self._broker
        topic = broker.topic(name, create=True)
        host: tuple[str, int] = call.peer
        checked: list[tuple[Message, MessageType]] = []
        for message in request.messages:
            item = messages.incoming(message, topic, broker.limits, host)
            broker.check_type(topic, item[1])
            if item[1] == "LITE" or message.system_properties.HasField("lite_topic"):
                check_lite(message.system_properties.lite_topic)
            checked.append(item)
        reply = _SendReply(call, len(checked), self._held)
        for at, (stored, type) in enumerate(checked):
            target = topic
            if type == "LITE" and topic.config.type == "LITE":
                target = self._lite.topic(topic, stored.properties[record.LITE_TOPIC], create=True)
                stored.topic = target.name
            self._store(target, stored, type, reply, at)

    def _store(self, topic: Topic, message: Message, type: MessageType, reply: _SendReply, at: int) -> None:
        done = partial(reply.done, at, message, 0)
        try:
            due = message.properties.get(record.DELIVER_MS)
            if type == "TRANSACTION":
                self._broker.prepare(message, topic, partial(reply.done, at, message, -1))
            elif due is not None and (due_ms := int(due)) > self._broker.clock.time_ms():
                self._broker.hold(message, topic, due_ms, partial(reply.done, at, message, due_ms))
            else:
                self._broker.send(message, topic, record.encode_properties(message.properties), done)
        except MessagingError as error:
            self._refused(reply.call, error)
            reply.done(at, message, 0, error)

    # -- receiving

    def _receive(self, payload: bytes, call: Call) -> None:
        try:
            self._poll(pb.ReceiveMessageRequest.FromString(payload), call)
        except MessagingError as error:
            self._refused(call, error)
            call.send(pb.ReceiveMessageResponse(status=codes.of(error)).SerializeToString())
            call.end()

    def _poll(self, request: pb.ReceiveMessageRequest, call: Call) -> None:
        client_id = self._client(call)
        group, name = messages.full_name(request.group), messages.full_name(request.message_queue.topic)
        limits = self._broker.limits
        if group not in self._broker.store.groups:
            check_group(group)
        if self._access.enabled:
            self._allow(call, "Sub", topic=name, group=group)
        topic = self._broker.topic(name)
        if request.auto_renew:
            invisible_ms = RENEW_MS
        else:
            duration = request.invisible_duration
            invisible_ms = duration.seconds * 1000 + duration.nanos // 1_000_000
            if not limits.min_invisible_ms <= invisible_ms <= limits.max_invisible_ms:
                raise MessagingError(
                    Reason.ILLEGAL_INVISIBLE_TIME,
                    f"the invisible duration is not between {limits.min_invisible_ms // 1000} s and "
                    f"{limits.max_invisible_ms // 1000} s",
                )
        poll = Poll(
            group,
            topic,
            -1,  # as in the reference the queue only names a broker: simple consumers ask for their queues one by one
            _filter(request.filter_expression),
            max(1, min(request.batch_size, limits.max_batch)),
            invisible_ms,
            self._polling_ms(request, call),
            client_id,
            request.auto_renew,
            request.attempt_id,
            partial(self._deliver, call, topic.name, invisible_ms),
            lambda: call.congested,
        )
        call.on_cancel = partial(self._consumption.cancel, poll)
        self._consumption.receive(poll)

    def _polling_ms(self, request: pb.ReceiveMessageRequest, call: Call) -> int:
        limits = self._broker.limits
        remaining = int(call.deadline * 1000) if call.deadline is not None else limits.max_polling_ms
        if request.HasField("long_polling_timeout"):
            wanted = request.long_polling_timeout.seconds * 1000 + request.long_polling_timeout.nanos // 1_000_000
        else:
            wanted = remaining - 1500
        wanted = min(max(wanted, limits.min_polling_ms), limits.max_polling_ms)
        if wanted > remaining:
            if remaining < limits.min_polling_ms:
                raise MessagingError(
                    Reason.ILLEGAL_POLLING_TIME,
                    f"the call's deadline leaves less than {limits.min_polling_ms // 1000} seconds to wait for messages",
                )
            wanted = remaining
        return wanted

    def _deliver(self, call: Call, topic: str, invisible_ms: int, taken: list[Delivery]) -> bool:
        if not taken:
            call.send(_NOTHING)
            call.end()
            return True
        name = self._broker.name
        now = pb.ReceiveMessageResponse()
        now.delivery_timestamp.FromMilliseconds(self._broker.clock.time_ms())
        parts = [_RECEIVED]
        for delivery in taken:
            assert delivery.data is not None
            parts.append(messages.received(messages.outgoing(delivery.data, topic, delivery, name, invisible_ms)))
        if not call.send(*parts, now.SerializeToString()):
            return False
        call.end()
        return True

    def _acknowledge(self, payload: bytes, call: Call) -> None:
        request = pb.AckMessageRequest.FromString(payload)
        self._client(call)
        group, name = messages.full_name(request.group), messages.full_name(request.topic)
        if self._access.enabled:
            self._allow(call, "Sub", topic=name, group=group)
        if not request.entries:
            raise MessagingError(Reason.BAD_REQUEST, "the request has no entry")
        topic = self._broker.topic(name)
        self._broker.group(group)
        if topic.config.type == "LITE":
            self._acknowledge_lite(request, topic, group, call)
            return
        parsed: list[receipts.Receipt] = []
        malformed: dict[int, MessagingError] = {}
        for at, entry in enumerate(request.entries):
            try:
                parsed.append(receipts.read(entry.receipt_handle))
            except MessagingError as error:
                malformed[at] = error
        valid: list[bool] = []

        def done(error: MessagingError | None) -> None:
            call.respond(_ack_reply(request, valid, malformed, error).SerializeToString())

        valid += self._consumption.acknowledge(group, topic.name, parsed, done) if parsed else []
        if not any(valid):
            done(None)

    def _acknowledge_lite(self, request: pb.AckMessageRequest, parent: Topic, group: str, call: Call) -> None:
        """Entries of several lite topics, each by itself; the last to be on disk answers."""
        valid = [False] * len(request.entries)
        refused: dict[int, MessagingError] = {}
        open_entries = len(request.entries)

        def done(error: MessagingError | None) -> None:
            nonlocal open_entries
            open_entries -= 1
            if not open_entries:
                found = [valid[at] for at in range(len(valid)) if at not in refused]
                call.respond(_ack_reply(request, found, refused, error).SerializeToString())

        for at, entry in enumerate(request.entries):
            try:
                receipt = receipts.read(entry.receipt_handle)
                name = self._lite.topic(parent, entry.lite_topic).name
                valid[at] = self._consumption.acknowledge(group, name, [receipt], done)[0]
            except MessagingError as error:
                refused[at] = error
            if not valid[at]:
                done(None)

    def _change(self, payload: bytes, call: Call) -> None:
        request = pb.ChangeInvisibleDurationRequest.FromString(payload)
        self._client(call)
        group, name = messages.full_name(request.group), messages.full_name(request.topic)
        if self._access.enabled:
            self._allow(call, "Sub", topic=name, group=group)
        topic = self._addressed(name, request)
        duration = request.invisible_duration
        old = receipts.read(request.receipt_handle)
        position = request.receipt_handle.rpartition(" ")[2]
        reply = pb.ChangeInvisibleDurationResponse(status=codes.SUCCESS)

        def done(error: MessagingError | None) -> None:
            if error is not None:
                call.respond(pb.ChangeInvisibleDurationResponse(status=codes.of(error)).SerializeToString())
            else:
                call.respond(reply.SerializeToString())

        new = self._consumption.change(
            group, topic.name, old, duration.seconds * 1000 + duration.nanos // 1_000_000, done
        )
        reply.receipt_handle = receipts.write(new, self._broker.name, int(position) if position.isdecimal() else 0)

    async def _forward(self, request: Any, call: Call, reply: Any) -> None:
        group, name = messages.full_name(request.group), messages.full_name(request.topic)
        self._allow(call, "Sub", topic=name, group=group)
        topic = self._addressed(name, request)
        handle = receipts.read(request.receipt_handle)
        await durable(partial(self._consumption.forward, group, topic.name, handle))

    def _addressed(self, name: str, request: Any) -> Topic:
        """The topic a receipt is of: the one named, or its lite topic."""
        topic = self._broker.topic(name)
        return self._lite.topic(topic, request.lite_topic) if topic.config.type == "LITE" else topic

    # -- routes

    async def _route(self, request: Any, call: Call, reply: Any) -> None:
        name = messages.full_name(request.topic)
        check_topic(name)
        if self._access.enabled:
            self._access.check_any(
                self._access.authenticate(call.metadata), ("Pub", "Sub"), topic=name, source=call.peer.host
            )
        endpoints = self._endpoints(request.endpoints)
        topic = self._broker.topic(name, create=True)
        types = [messages.TYPE_NUMBERS[accepted] for accepted in topic.config.accepts] or [0]
        namespace, short = messages.split_name(name)
        readable, writable = topic.config.readable, topic.config.writable
        for queue in topic.queues:
            permission = (
                pb.READ_WRITE
                if queue.id < readable and queue.id < writable
                else pb.READ
                if queue.id < readable
                else pb.WRITE
                if queue.id < writable
                else pb.NONE
            )
            entry = reply.message_queues.add(id=queue.id, permission=permission, accept_message_types=types)
            entry.topic.resource_namespace, entry.topic.name = namespace, short
            entry.broker.name = self._broker.name
            entry.broker.endpoints.CopyFrom(endpoints)

    async def _assignment(self, request: Any, call: Call, reply: Any) -> None:
        name, group = messages.full_name(request.topic), messages.full_name(request.group)
        self._allow(call, "Sub", topic=name, group=group)
        topic = self._broker.topic(name, create=True)
        self._broker.group(group)
        queues = topic.readable()
        if not queues:
            raise MessagingError(Reason.FORBIDDEN, f"topic {name} has no readable queue")
        endpoints = self._endpoints(request.endpoints)
        by_queue = topic.config.type != "LITE" and self._broker.is_ordered(group, name)
        ids = [queue.id for queue in queues] if by_queue else [-1]
        types = [messages.TYPE_NUMBERS[accepted] for accepted in topic.config.accepts] or [0]
        for identifier in ids:
            queue = reply.assignments.add().message_queue
            queue.topic.CopyFrom(request.topic)
            queue.id = identifier
            queue.permission = pb.READ_WRITE
            queue.broker.name = self._broker.name
            queue.broker.endpoints.CopyFrom(endpoints)
            queue.accept_message_types.extend(types)

    def _endpoints(self, dialled: pb.Endpoints) -> pb.Endpoints:
        """What the client dialled, so that forwarded ports and proxies work; else where the front listens."""
        if dialled.addresses:
            for address in dialled.addresses:
                if not address.host or not 0 < address.port < 65536:
                    raise MessagingError(
                        Reason.ILLEGAL_ACCESS_POINT, "the endpoints of the request are not host and port"
                    )
            return dialled
        host, port = self._address()
        scheme = pb.IPv6 if ":" in host else pb.IPv4 if host.replace(".", "").isdecimal() else pb.DOMAIN_NAME
        return pb.Endpoints(scheme=scheme, addresses=[pb.Address(host=host, port=port)])

    # -- sessions

    async def _heartbeat(self, request: Any, call: Call, reply: Any) -> None:
        client = self._clients.get(call.metadata["x-mq-client-id"])
        if client is None or request.client_type == 0:
            raise MessagingError(
                Reason.UNKNOWN_CLIENT, "the client's settings are unknown; open a telemetry stream first"
            )
        if request.HasField("group") and client.role == "consumer":
            group = messages.full_name(request.group)
            self._allow(call, "Sub", group=group)
            self._broker.group(group)

    async def _terminated(self, request: Any, call: Call, reply: Any) -> None:
        self._clients.remove(call.metadata["x-mq-client-id"])

    # -- held messages

    async def _end_transaction(self, request: Any, call: Call, reply: Any) -> None:
        if not request.transaction_id.strip():
            raise MessagingError(Reason.INVALID_TRANSACTION, "the transaction id is blank")
        name = messages.full_name(request.topic)
        self._allow(call, "Pub", topic=name)
        if request.resolution not in (pb.COMMIT, pb.ROLLBACK):
            return  # undecided: the broker will ask again
        future = _Durable()
        await self._held.end(request.transaction_id, commit=request.resolution == pb.COMMIT, done=future, topic=name)
        await future.wait()

    async def _recall(self, request: Any, call: Call, reply: Any) -> None:
        name = messages.full_name(request.topic)
        self._allow(call, "Pub", topic=name)
        identifier, due_ms, position = await self._held.recall(name, request.recall_handle)
        await durable(partial(self._held.close, due_ms, position))
        reply.message_id = identifier

    # -- offsets

    async def _update_offset(self, request: Any, call: Call, reply: Any) -> None:
        group, topic = self._position(request, call)
        await durable(partial(self._consumption.reset, group, topic, request.message_queue.id, request.offset))

    async def _get_offset(self, request: Any, call: Call, reply: Any) -> None:
        group, topic = self._position(request, call)
        progress = self._consumption.of(group, topic.name)
        queue = progress.queues.get(request.message_queue.id) if progress is not None else None
        if queue is None:
            raise MessagingError(Reason.OFFSET_NOT_FOUND, f"group {group} has no offset in this queue")
        reply.offset = queue.committed

    async def _query_offset(self, request: Any, call: Call, reply: Any) -> None:
        name = messages.full_name(request.message_queue.topic)
        self._allow(call, "Sub", topic=name)
        topic = self._broker.topic(name)
        queue = self._queue(topic, request.message_queue.id)
        if request.query_offset_policy == pb.BEGINNING:
            reply.offset = topic.queues[queue].minimum
        elif request.query_offset_policy == pb.END:
            reply.offset = topic.queues[queue].maximum
        else:
            reply.offset = await self._broker.offset_at(topic, queue, request.timestamp.ToMilliseconds())

    # -- lite topics

    async def _sync_lite(self, request: Any, call: Call, reply: Any) -> None:
        name, group = messages.full_name(request.topic), messages.full_name(request.group)
        self._allow(call, "Sub", topic=name, group=group)
        parent = self._broker.topic(name)
        self._broker.group(group)
        client_id = call.metadata["x-mq-client-id"]
        lites = list(request.lite_topic_set)
        action = LITE_ACTIONS.get(request.action)
        if action is None:
            raise MessagingError(Reason.BAD_REQUEST, f"there is no lite subscription action {request.action}")
        self._lite.subscribe(client_id, group, parent, action, lites, request.version)
        if request.HasField("offset_option") and action in ("add", "set"):
            for lite in lites:
                await self._begin_lite(group, parent, lite, request.offset_option)
        self._consumption.subscribed(group, parent.name)

    async def _begin_lite(self, group: str, parent: Topic, lite: str, option: pb.OffsetOption) -> None:
        """Where a group begins to read a lite topic."""
        topic = self._lite.topic(parent, lite, create=True)
        queue = topic.queues[0]
        kind = option.WhichOneof("offset_type")
        if kind == "policy" and option.policy == pb.OffsetOption.LAST:
            return  # where the group was, which is what happens anyway
        if kind == "policy":
            offset = queue.minimum if option.policy == pb.OffsetOption.MIN else queue.maximum
        elif kind == "offset":
            offset = option.offset
        elif kind == "tail_n":
            offset = max(queue.minimum, queue.maximum - max(0, option.tail_n))
        elif kind == "timestamp":
            offset = await self._broker.offset_at(topic, 0, option.timestamp)
        else:
            return
        await durable(partial(self._consumption.reset, group, topic, 0, offset))

    async def _pull(self, request: Any, call: Call) -> Any:
        """Messages of one queue from an offset on, leased to nobody."""
        try:
            self._client(call)
            group, topic = self._position(request, call)
            self._broker.group(group)
            wanted = _filter(request.filter_expression)
            queue = topic.queues[request.message_queue.id]
            offset = request.offset
            if not queue.minimum <= offset <= queue.maximum:
                nearest = min(max(offset, queue.minimum), queue.maximum)
                text = f"offset {offset} is not between {queue.minimum} and {queue.maximum}"
                yield pb.PullMessageResponse(status=codes.of(MessagingError(Reason.ILLEGAL_OFFSET, text)))
                yield pb.PullMessageResponse(next_offset=nearest)
                return
            limit = max(1, min(request.batch_size, self._broker.limits.max_batch))
            timeout = request.long_polling_timeout.ToMilliseconds() / 1000
            found, offset = await self._read_on(queue, offset, limit, wanted)
            if not found and offset == queue.maximum and timeout > 0:
                wait = min(timeout, self._broker.limits.max_polling_ms / 1000, (call.deadline or timeout) * 0.9)
                with contextlib.suppress(TimeoutError):
                    async with self._broker.clock.timeout(wait):
                        while not found:
                            await self._consumption.arrival(topic.name)
                            found, offset = await self._read_on(queue, offset, limit, wanted)
            yield pb.PullMessageResponse(status=codes.SUCCESS if found else _NOT_FOUND)
            for data in found:
                message = pb.Message.FromString(messages.outgoing(data, topic.name, None, self._broker.name))
                yield pb.PullMessageResponse(message=message)
            yield pb.PullMessageResponse(next_offset=offset)
        except MessagingError as error:
            self._refused(call, error)
            yield pb.PullMessageResponse(status=codes.of(error))

    async def _read_on(self, queue: Queue, offset: int, limit: int, wanted: Filter) -> tuple[list[bytes], int]:
        """Up to ``limit`` records a filter wants, reading past as many as one step may; and where it ended."""
        found: list[bytes] = []
        size, stop = 0, min(queue.maximum, offset + SCAN_LIMIT)
        while offset < stop and len(found) < limit:
            for entry in self._broker.store.entries(queue, offset, min(SCAN_CHUNK, stop - offset)):
                if len(found) >= limit or (found and size + entry.size > RESPONSE_BYTES):
                    return found, offset
                offset = entry.offset + 1
                if wanted.maybe(entry.tag_code):
                    data = await self._broker.store.read(entry.position, entry.size)
                    if not wanted.needs_properties or wanted.matches(record.properties_of(data)):
                        found.append(data)
                        size += entry.size
        return found, offset

    def _position(self, request: Any, call: Call) -> tuple[str, Topic]:
        group, name = messages.full_name(request.group), messages.full_name(request.message_queue.topic)
        self._allow(call, "Sub", topic=name, group=group)
        topic = self._broker.topic(name)
        self._queue(topic, request.message_queue.id)
        return group, topic

    def _queue(self, topic: Topic, queue: int) -> int:
        if not 0 <= queue < len(topic.queues):
            raise MessagingError(Reason.BAD_REQUEST, f"topic {topic.name} has no queue {queue}")
        return queue


LITE_ACTIONS: dict[int, LiteAction] = {
    pb.PARTIAL_ADD: "add",
    pb.PARTIAL_REMOVE: "remove",
    pb.COMPLETE_ADD: "set",
    pb.COMPLETE_REMOVE: "clear",
}


class _SendReply:
    """Collects the results of one request's messages; answers with the last."""

    __slots__ = ("_entries", "_held", "_open", "call")

    def __init__(self, call: Call, count: int, held: HeldMessages) -> None:
        self.call = call
        self._entries: list[pb.SendResultEntry | None] = [None] * count
        self._open = count
        self._held = held

    def done(self, at: int, message: Message, due_ms: int, error: MessagingError | None) -> None:
        """One message is on disk, or refused. ``due_ms`` -1: it is transactional."""
        if error is not None:
            entry = pb.SendResultEntry(status=codes.of(error))
        else:
            identifier = message.properties["UNIQ_KEY"]
            entry = pb.SendResultEntry(status=codes.SUCCESS, message_id=identifier, offset=message.queue_offset)
            if due_ms < 0:
                entry.transaction_id = identifier
            elif due_ms:
                entry.recall_handle = self._held.recall_handle(message, due_ms)
        self._entries[at] = entry
        self._open -= 1
        if not self._open:
            entries = [entry for entry in self._entries if entry is not None]
            common = {entry.status.code for entry in entries}
            status = entries[0].status if len(common) == 1 else codes.status(codes.MULTIPLE_RESULTS, "results differ")
            self.call.respond(pb.SendMessageResponse(status=status, entries=entries).SerializeToString())


class _Durable:
    """A ``done`` one can await."""

    def __init__(self) -> None:
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __call__(self, error: MessagingError | None) -> None:
        if self._future.done():
            return
        if error is None:
            self._future.set_result(None)
        else:
            self._future.set_exception(error)

    async def wait(self) -> None:
        await self._future


async def durable(begin: Callable[..., Any]) -> None:
    """Call ``begin(done)`` and wait for ``done``.

    Raises:
        MessagingError: what ``begin`` or ``done`` refuses with.
    """
    future = _Durable()
    begin(future)
    await future.wait()


def _filter(expression: pb.FilterExpression) -> Filter:
    return sql_filter(expression.expression) if expression.type == pb.SQL else tag_filter(expression.expression)


def _ack_reply(
    request: pb.AckMessageRequest, valid: list[bool], malformed: dict[int, MessagingError], error: MessagingError | None
) -> pb.AckMessageResponse:
    reply = pb.AckMessageResponse()
    results = iter(valid)
    common: set[int] = set()
    for at, entry in enumerate(request.entries):
        if at in malformed:
            status = codes.of(malformed[at])
        elif not next(results):
            status = _EXPIRED
        else:
            status = codes.SUCCESS if error is None else codes.of(error)
        common.add(status.code)
        reply.entries.add(message_id=entry.message_id, receipt_handle=entry.receipt_handle, status=status)
    if len(common) == 1:
        reply.status.CopyFrom(reply.entries[0].status)
    else:
        reply.status.CopyFrom(codes.status(codes.MULTIPLE_RESULTS, "results differ"))
    return reply


_RECEIVED = pb.ReceiveMessageResponse(status=codes.SUCCESS).SerializeToString()
_NOT_FOUND = codes.status(codes.MESSAGE_NOT_FOUND, "no message within the polling time")
_NOTHING = pb.ReceiveMessageResponse(status=_NOT_FOUND).SerializeToString()
_EXPIRED = codes.status(
    codes.CODES[Reason.INVALID_RECEIPT_HANDLE],
    "the receipt handle has expired, was superseded or already acknowledged",
)
