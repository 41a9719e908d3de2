"""The telemetry stream: the handshake in which a client says what it is, and the channel on which the broker asks it things.

The client sends its settings; they are stored under its id, the fields the server owns are filled in, and the result goes
back. The same stream then carries the broker's questions about orphaned transactions, and settings again whenever the
client's group changes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

from sampan.kernel.grpc import INVALID_ARGUMENT, RESOURCE_EXHAUSTED, Call, GrpcError
from sampan.kernel.tasks import Tasks
from sampan.parts.messaging import record
from sampan.parts.messaging.broker import Broker
from sampan.parts.messaging.clients import Client, Clients
from sampan.parts.messaging.errors import MessagingError
from sampan.parts.messaging.fronts.grpc import codes, messages
from sampan.parts.messaging.lite import NAME_LIMIT, SUBSCRIPTION_QUOTA
from sampan.parts.messaging.record import Message
from sampan.parts.messaging.topology import Backoff
from sampan.proto import messaging_pb2 as pb

log = logging.getLogger(__name__)

RECEIVE_BATCH = 32
POLLING_SECONDS = 20
OUTBOX_LIMIT = 1024
"""Commands a client may be behind before it is cut off."""
MODES = {
    pb.PUSH_CONSUMER: "push",
    pb.SIMPLE_CONSUMER: "simple",
    pb.PULL_CONSUMER: "pull",
    pb.LITE_PUSH_CONSUMER: "lite_push",
    pb.LITE_SIMPLE_CONSUMER: "lite_simple",
}


class Telemetry:
    """All telemetry streams of one broker."""

    def __init__(self, broker: Broker, clients: Clients, tasks: Tasks, admit: Callable[[Call, Client], object]) -> None:
        """``admit`` raises FORBIDDEN for a client whose settings name what it may not use."""
        self._admit = admit
        self._broker = broker
        self._clients = clients
        self._tasks = tasks
        broker.on_definition.append(self._group_changed)

    async def converse(
        self, commands: AsyncIterator[pb.TelemetryCommand], call: Call
    ) -> AsyncIterator[pb.TelemetryCommand]:
        """One stream, until the client ends it."""
        client_id = call.metadata.get("x-mq-client-id", "")
        if not client_id:
            raise GrpcError(INVALID_ARGUMENT, "the header x-mq-client-id is missing")
        outbox: asyncio.Queue[pb.TelemetryCommand | Exception | None] = asyncio.Queue(OUTBOX_LIMIT)
        reader = self._tasks.start("telemetry", self._read(client_id, commands, call, outbox))
        try:
            while (item := await outbox.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            reader.cancel()
            client = self._clients.get(client_id)
            if client is not None and client.notify is not None and getattr(client.notify, "outbox", None) is outbox:
                client.connected = False
                client.ask = client.notify = client.revoke = None

    async def _read(
        self,
        client_id: str,
        commands: AsyncIterator[pb.TelemetryCommand],
        call: Call,
        outbox: asyncio.Queue[pb.TelemetryCommand | Exception | None],
    ) -> None:
        try:
            async for command in commands:
                kind = command.WhichOneof("command")
                if kind == "settings":
                    reply = self._settle(client_id, command.settings, call, outbox)
                    outbox.put_nowait(pb.TelemetryCommand(status=codes.SUCCESS, settings=reply))
                elif command.HasField("status") and command.status.code != codes.OK:
                    log.debug("client %s answered %s: %s", client_id, kind, command.status.message)
            outbox.put_nowait(None)
        except MessagingError as error:
            outbox.put_nowait(pb.TelemetryCommand(status=codes.of(error)))
            outbox.put_nowait(None)
        except asyncio.QueueFull:
            log.warning("client %s does not read its telemetry stream; it is cut off", client_id)
            call.fail(RESOURCE_EXHAUSTED, f"{OUTBOX_LIMIT} commands were not read")
            while not outbox.empty():
                outbox.get_nowait()
            outbox.put_nowait(None)
        except GrpcError as error:
            outbox.put_nowait(error)
        except Exception as error:
            if type(error).__name__ in ("DecodeError", "AioRpcError", "UsageError", "RpcError"):
                outbox.put_nowait(GrpcError(INVALID_ARGUMENT, "a telemetry command cannot be parsed"))
            else:
                outbox.put_nowait(error)

    # -- settings

    def _settle(
        self,
        client_id: str,
        settings: pb.Settings,
        call: Call,
        outbox: asyncio.Queue[pb.TelemetryCommand | Exception | None],
    ) -> pb.Settings:
        kind = settings.WhichOneof("pub_sub")
        client = Client(
            client_id,
            "producer",
            "grpc",
            language=call.metadata.get("x-mq-language", "").lower(),
            version=call.metadata.get("x-mq-client-version", ""),
        )
        if kind == "publishing":
            client.topics = frozenset(messages.full_name(topic) for topic in settings.publishing.topics)
        elif kind == "subscription":
            client.role = "consumer"
            client.mode = MODES.get(settings.client_type, "push")
            client.group = messages.full_name(settings.subscription.group)
            client.subscriptions = {
                messages.full_name(entry.topic): entry.expression.expression or "*"
                for entry in settings.subscription.subscriptions
            }
        else:
            raise GrpcError(INVALID_ARGUMENT, "settings say neither publishing nor subscription")
        self._admit(call, client)
        if client.role == "consumer":
            self._broker.group(client.group)
        client.connected = True
        sender = _Sender(outbox)

        def ask(message: Message, transaction: str) -> bool:
            body = messages.outgoing(record.encode(message), message.topic, None, self._broker.name)
            command = pb.TelemetryCommand(status=codes.SUCCESS)
            command.recover_orphaned_transaction_command.message.MergeFromString(body)
            command.recover_orphaned_transaction_command.transaction_id = transaction
            return sender.put(command)

        def notify() -> None:
            sender.put(pb.TelemetryCommand(status=codes.SUCCESS, settings=self.merged(settings)))

        def revoke(lite: str) -> None:
            command = pb.TelemetryCommand(status=codes.SUCCESS)
            command.notify_unsubscribe_lite_command.lite_topic = lite
            sender.put(command)

        sender.call = notify
        client.ask, client.notify, client.revoke = ask, sender, revoke
        self._clients.register(client)
        return self.merged(settings)

    def merged(self, settings: pb.Settings) -> pb.Settings:
        """A client's settings with the fields the server owns."""
        result = pb.Settings()
        result.CopyFrom(settings)
        result.metric.on = False
        if result.WhichOneof("pub_sub") == "publishing":
            result.publishing.max_body_size = self._broker.limits.max_body_bytes
            result.publishing.validate_message_type = self._broker.limits.validate_type
            policy = result.backoff_policy
            policy.Clear()
            policy.max_attempts = 3
            policy.exponential_backoff.initial.nanos = 10_000_000
            policy.exponential_backoff.max.seconds = 1
            policy.exponential_backoff.multiplier = 2
            return result
        subscription = result.subscription
        group = self._broker.group(messages.full_name(subscription.group))
        topics = [messages.full_name(entry.topic) for entry in subscription.subscriptions]
        subscription.fifo = group.orderly is True or (
            group.orderly is None
            and bool(topics)
            and all(self._broker.is_ordered(group.name, topic) for topic in topics)
        )
        subscription.receive_batch_size = RECEIVE_BATCH
        subscription.long_polling_timeout.seconds = POLLING_SECONDS
        if result.client_type in (pb.LITE_PUSH_CONSUMER, pb.LITE_SIMPLE_CONSUMER):
            subscription.lite_subscription_quota = SUBSCRIPTION_QUOTA
            subscription.max_lite_topic_size = NAME_LIMIT
        _backoff(result.backoff_policy, group.max_attempts, group.backoff)
        return result

    def _group_changed(self, kind: str, name: str) -> None:
        if kind == "group":
            for client in self._clients.consumers(name):
                if client.notify is not None:
                    client.notify()


class _Sender:
    """A client's outbox; calling it sends the settings again."""

    def __init__(self, outbox: asyncio.Queue[pb.TelemetryCommand | Exception | None]) -> None:
        self.outbox = outbox
        self.call: Callable[[], object] = _nothing

    def __call__(self) -> None:
        self.call()

    def put(self, command: pb.TelemetryCommand) -> bool:
        try:
            self.outbox.put_nowait(command)
        except asyncio.QueueFull:
            return False
        return True


def _nothing() -> None:
    """Until the client's settings are known there is nothing to send."""


def _backoff(policy: pb.RetryPolicy, attempts: int, backoff: Backoff) -> None:
    policy.Clear()
    policy.max_attempts = attempts
    if backoff.delays_ms:
        for delay in backoff.delays_ms:
            policy.customized_backoff.next.add(seconds=delay // 1000, nanos=delay % 1000 * 1_000_000)
        return
    exponential = policy.exponential_backoff
    exponential.initial.FromMilliseconds(backoff.initial_ms)
    exponential.max.FromMilliseconds(backoff.max_ms)
    exponential.multiplier = backoff.multiplier
