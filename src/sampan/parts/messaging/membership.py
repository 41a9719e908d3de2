"""A consumer's place in its group, as a RocketMQ 5 proxy wants it of every client that receives.

The proxy keeps settings for each client id and answers a receive of a client it knows nothing of with an internal error. So a
member opens the ``Telemetry`` conversation, says its group and what it subscribes to, and waits until the proxy has answered
with the settings of its own; it says so again from time to time, beats its heart, opens the conversation anew when it
breaks, and says good-bye. The same goes for Sampan's broker, which then knows its consumers.

    member = Membership(client, "billing", {"orders": "*"}, clock)
    tasks.keep("member", member.run)
    while not member.joined:
        await member.change()
"""

from __future__ import annotations

import asyncio
import logging
import math
import platform
import socket
from collections.abc import Mapping
from typing import Any

from sampan.kernel.clock import Clock
from sampan.kernel.errors import SampanError
from sampan.kernel.tasks import Tasks
from sampan.parts.messaging.client import MessagingClient, MessagingClientError, check
from sampan.proto import messaging_pb2 as pb

log = logging.getLogger(__name__)

HEARTBEAT = 10.0
"""Seconds between heartbeats."""
RESYNC = 300.0
"""Seconds between two sayings of the same settings."""
REOPEN = 1.0
"""Seconds before a broken conversation is opened again."""
LAST_WORD = 3.0
"""Seconds that a good-bye may take."""
UNKNOWN_CLIENT = 40015
NOT_SUPPORTED = 50500


class Membership:
    """One client's membership of one group. A client has one at most: a proxy keeps settings by client id."""

    def __init__(self, client: MessagingClient, group: str, subscriptions: Mapping[str, str], clock: Clock) -> None:
        """``subscriptions``: tag expressions by topic; ``clock``: the machine's, for the broker may be anywhere."""
        self.fifo = False
        """Whether the group is delivered in order, as the broker's last settings say."""
        self._client = client
        self._group = group
        self._clock = clock
        self._settings = self._made(subscriptions)
        self.joined = False
        """Whether the broker has taken the settings."""
        self.problem = ""
        """Why it has not."""
        self._change = asyncio.Event()
        self._say: asyncio.Queue[pb.TelemetryCommand] = asyncio.Queue()

    async def change(self) -> None:
        """Wait until `joined` or `problem` change."""
        self._change.clear()
        await self._change.wait()

    def _tell(self, joined: bool, problem: str = "") -> None:
        if (joined, problem) != (self.joined, self.problem):
            self.joined, self.problem = joined, problem
            self._change.set()

    async def run(self) -> None:
        """Be a member until cancelled; says good-bye then."""
        try:
            async with Tasks(self._clock, f"member/{self._group}") as tasks:
                tasks.keep("heartbeat", self._beat)
                while True:
                    await self._converse()
                    await self._clock.sleep(REOPEN)
        finally:
            self._tell(False)
            await self._leave()

    async def _converse(self) -> None:
        from grpc import RpcError

        say: asyncio.Queue[pb.TelemetryCommand] = asyncio.Queue()
        self._say = say
        say.put_nowait(pb.TelemetryCommand(settings=self._settings))
        call = self._client.converse("Telemetry")
        try:
            async with Tasks(self._clock, f"settings/{self._group}") as tasks:
                tasks.start("say", self._speak(call, say))
                async for payload in call:
                    self._heard(pb.TelemetryCommand.FromString(payload))
                self._tell(False, "the broker ended the conversation")
        except (RpcError, SampanError) as error:
            log.info("%s cannot tell the broker its settings: %s", self._group, _said(error))
            self._tell(False, _said(error))
        finally:
            call.cancel()

    async def _speak(self, call: Any, say: asyncio.Queue[pb.TelemetryCommand]) -> None:
        from grpc import RpcError

        while True:
            command = await say.get()
            try:
                await call.write(command.SerializeToString())
            except (asyncio.InvalidStateError, RpcError):
                return  # the conversation is over: whoever reads hears why

    def _heard(self, command: pb.TelemetryCommand) -> None:
        kind = command.WhichOneof("command")
        if command.HasField("status") and command.status.code:
            check(command.status)
        if kind == "settings":
            self.fifo = command.settings.subscription.fifo
            self._tell(True)
            return
        answer = pb.TelemetryCommand()
        if kind == "print_thread_stack_trace_command":
            answer.thread_stack_trace.nonce = command.print_thread_stack_trace_command.nonce
        elif kind == "verify_message_command":
            answer.verify_message_result.nonce = command.verify_message_command.nonce
        elif kind == "reconnect_endpoints_command":
            raise MessagingClientError(0, "the broker asks to be connected anew")
        else:
            return
        answer.status.code = NOT_SUPPORTED
        answer.status.message = f"{kind} is not supported"
        self._say.put_nowait(answer)

    # -- the heart

    async def _beat(self) -> None:
        from grpc import RpcError

        told = self._clock.monotonic()
        while True:
            await self._clock.sleep(HEARTBEAT)
            if not self.joined:
                continue
            request = pb.HeartbeatRequest(client_type=pb.SIMPLE_CONSUMER)
            self._client.resource(request.group, self._group)
            try:
                check(pb.HeartbeatResponse.FromString(await self._client.call("Heartbeat", request)).status)
            except MessagingClientError as error:
                log.info("%s: %s", self._group, error)
                if error.code == UNKNOWN_CLIENT:
                    told = -math.inf
            except RpcError as error:
                log.info("%s: the heartbeat was not heard: %s", self._group, _said(error))
            if self._clock.monotonic() - told >= RESYNC:
                told = self._clock.monotonic()
                self._say.put_nowait(pb.TelemetryCommand(settings=self._settings))

    async def _leave(self) -> None:
        from grpc import RpcError

        request = pb.NotifyClientTerminationRequest()
        self._client.resource(request.group, self._group)
        try:
            async with self._clock.patience(LAST_WORD):
                await self._client.call("NotifyClientTermination", request)
        except (RpcError, TimeoutError) as error:  # it finds out by itself, by the heart that beats no more
            log.debug("%s could not say good-bye: %s", self._group, _said(error))

    def _made(self, subscriptions: Mapping[str, str]) -> pb.Settings:
        settings = pb.Settings(client_type=pb.SIMPLE_CONSUMER)
        self._client.access_point(settings.access_point)
        settings.request_timeout.seconds = 10
        settings.user_agent.language = 6
        settings.user_agent.version = "5.1.2"
        settings.user_agent.platform = platform.system()
        settings.user_agent.hostname = socket.gethostname()
        self._client.resource(settings.subscription.group, self._group)
        settings.subscription.long_polling_timeout.seconds = 20
        for topic, expression in subscriptions.items():
            entry = settings.subscription.subscriptions.add()
            self._client.resource(entry.topic, topic)
            entry.expression.type = pb.TAG
            entry.expression.expression = expression
        return settings


def _said(error: BaseException) -> str:
    """What a broken call has to say."""
    details = getattr(error, "details", None)
    return str(details() if callable(details) else error)
