"""Reading a topic for one subscriber: lease, handle, acknowledge.

`Consumer` receives under a lease, hands each event to its handler and acknowledges it when the handler is done; what takes
long is leased further, and what was not acknowledged when the process died comes again. A consumer with a `Membership` is
one that any RocketMQ 5 proxy serves: it receives where its group's assignments say, a conversation a broker, and in order
where the group is delivered in order. Without one it reads the platform's own topics over the connection that all share.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from sampan.kernel.clock import Clock
from sampan.kernel.errors import SampanError
from sampan.kernel.tasks import Tasks
from sampan.parts.eventing.streams import said

if TYPE_CHECKING:
    from sampan.parts.messaging import Membership, MessagingClient, Received
    from sampan.proto.messaging_pb2 import MessageQueue

log = logging.getLogger(__name__)
T = TypeVar("T")

LEASE = 30.0
"""Seconds before an event that is neither acknowledged nor leased further comes again."""
RENEW = 10.0
"""Seconds between looks at the leases."""
ACTIVE = 64
"""Events of one subscriber being handled at once."""
WAITING = 2000
"""Events of one subscriber waiting for their next attempt; they do not keep others from being handled."""
POLL = 20.0
"""Seconds a request for events waits for the first."""
RETRY = (0.05, 2.0)
"""Seconds before the first and at most before further attempts to reach messaging."""
LATER = (1.0, 60.0)
"""Seconds until an event that was not handled comes again: at first, and at most."""
ASSIGN = 5.0
"""Seconds between questions where a member is to receive from."""


@dataclass(eq=False)
class Lease:
    """An event in somebody's hands."""

    message: Received
    until: float
    """Monotonic seconds at which the lease ends."""
    due: float = 0.0
    """Monotonic seconds of the next attempt, where one is waited for."""


Handler = Callable[["Received", "Slot"], Awaitable[bool]]
"""Handles one event; True: it is done with, False: let it come again."""


class Slot:
    """A handler's place among those being handled at once; given up while it waits for its next attempt."""

    def __init__(self, consumer: Consumer, lease: Lease) -> None:
        self._consumer = consumer
        self._lease = lease

    async def pause(self, seconds: float) -> None:
        """Wait ``seconds`` without holding the place."""
        consumer = self._consumer
        self._lease.due = consumer.clock.monotonic() + seconds
        if seconds > LEASE / 2:
            await consumer.extend(self._lease, seconds + LEASE)
        consumer.active -= 1
        consumer.waiting += 1
        consumer.room.set()
        try:
            await consumer.clock.sleep(seconds)
        finally:
            consumer.waiting -= 1
            consumer.active += 1
        self._lease.due = 0.0


class Consumer:
    """One subscriber's reading of one topic, until it is closed.

    ``ordered``: events of one queue one after the other (those of one group share a queue).
    """

    def __init__(
        self,
        client: Callable[[], MessagingClient],
        clock: Clock,
        tasks: Tasks,
        group: str,
        topic: str,
        handler: Handler,
        *,
        ordered: bool = False,
        expression: str = "*",
        member: Membership | None = None,
        changed: Callable[[], object] = bool,
        machine: Clock | None = None,
    ) -> None:
        """``member``: its place in the group, which it then keeps; ``changed`` hears when `ready` or `problem` change.

        ``machine``: what attempts to reach the broker go by. A process that comes back does so on the machine's time, also
        while the platform's clock is frozen.
        """
        self.clock = clock
        self.active = 0
        """Events being handled."""
        self.waiting = 0
        """Events between two attempts."""
        self.room = asyncio.Event()
        """Set when there may be room for more."""
        self.ready = member is None
        """It has its place in its group."""
        self._client = client
        self._owner = tasks
        self._group, self._topic = group, topic
        self._handler = handler
        self._ordered = ordered
        self._expression = expression
        self._member = member
        self._changed = changed
        self._machine = machine or Clock()
        self._problems: dict[str, str] = {}
        self._leases: dict[str, Lease] = {}
        self._lanes: dict[str, deque[Lease]] = {}
        self._extending: set[asyncio.Task[None]] = set()
        self._done: list[Received] = []
        self._acknowledging = False
        self._tasks = Tasks(clock, f"eventing/{group}")
        self._belonging = Tasks(clock, f"eventing/{group}/member")

    def start(self) -> None:
        """Begin to read."""
        if self._member is None:
            self._tasks.keep("receive", self._receive)
        else:
            self._belonging.keep("member", self._member.run)
            self._tasks.keep("assigned", self._receive_assigned)
        self._tasks.keep("renew", self._renew)

    async def close(self) -> None:
        """Stop; what is in hand is given back: at once, or for when its next attempt is due."""
        await self._tasks.cancel()
        if self._extending:
            await asyncio.wait(self._extending)  # their answers have the receipts that are valid now
        for lease in list(self._leases.values()):
            await self.extend(lease, max(0.0, lease.due - self.clock.monotonic()))
        self._leases.clear()
        await self._belonging.cancel()

    @property
    def problem(self) -> str:
        """Why it cannot read; empty while it can."""
        return next(iter(self._problems.values()), "")

    def _tell(self, about: str, problem: str = "") -> None:
        """Something works, or does not."""
        before = (self.ready, self.problem)
        if problem:
            if self._problems.get(about) != problem:
                log.warning("%s cannot read %s: %s", self._group, self._topic, problem)
            self._problems[about] = problem
        else:
            self._problems.pop(about, None)
            self.ready = True
        if (self.ready, self.problem) != before:
            self._changed()

    # -- receiving

    async def _receive_assigned(self) -> None:
        """Have a receiver for each queue that the group's assignments name."""
        member = self._member
        assert member is not None
        async with Tasks(self.clock, f"eventing/{self._group}/queues") as receivers:
            running: dict[tuple[str, int], asyncio.Task[None]] = {}
            while True:
                if not member.joined:
                    if member.problem:
                        self._tell("member", member.problem)
                    await member.change()
                    continue
                self._tell("member")
                queues = await self._trying("assignments", self._assignments)
                found = {(one.broker.name, one.id): one for one in queues}
                for place in running.keys() - found.keys():
                    running.pop(place).cancel()
                    self._problems.pop(f"{place[0]}/{place[1]}", None)
                for place in found.keys() - running.keys():
                    receive = partial(self._receive, found[place])
                    running[place] = receivers.keep(f"receive/{place[0]}/{place[1]}", receive)
                await self._machine.sleep(ASSIGN)

    async def _assignments(self) -> list[MessageQueue]:
        return await self._client().assignments(self._group, self._topic)

    async def _receive(self, queue: MessageQueue | None = None) -> None:
        place = "" if queue is None else f"{queue.broker.name}/{queue.id}"
        while True:
            while self.active >= ACTIVE or self.waiting >= WAITING:
                self.room.clear()
                await self.room.wait()
            found = await self._trying(place, partial(self._poll, queue))
            ordered = self._ordered or (self._member is not None and self._member.fifo)
            for message in sorted(found, key=lambda one: (one.queue, one.offset)) if ordered else found:
                self._take(message, queue, ordered)

    async def _poll(self, queue: MessageQueue | None) -> list[Received]:
        return await self._client().receive(
            self._group,
            self._topic,
            batch=max(1, min(32, ACTIVE - self.active)),
            invisible=LEASE,
            wait=POLL,
            expression=self._expression,
            queue=queue,
        )

    async def _trying(self, about: str, ask: Callable[[], Awaitable[list[T]]]) -> list[T]:
        """The broker's answer, asked for until there is one."""
        from grpc import RpcError

        delay = RETRY[0]
        while True:
            try:
                answer = await ask()
            except (SampanError, RpcError) as error:
                self._tell(about, said(error))
                await self._machine.sleep(delay)
                delay = min(delay * 2, RETRY[1])
            else:
                self._tell(about)
                return answer

    def _take(self, message: Received, queue: MessageQueue | None, ordered: bool) -> None:
        key = self._key(message)
        if key in self._leases:  # its lease ended while it was being handled: the newer receipt is the valid one
            self._leases[key].message = message
            return
        lease = self._leases[key] = Lease(message, self.clock.monotonic() + LEASE)
        self.active += 1
        if not ordered:
            self._tasks.start("handle", self._handle(lease))
            return
        name = f"{'' if queue is None else queue.broker.name}/{message.queue}"
        lane = self._lanes.setdefault(name, deque())
        lane.append(lease)
        if len(lane) == 1:
            self._tasks.start("handle", self._drain(name, lane))

    async def _drain(self, name: str, lane: deque[Lease]) -> None:
        while lane:
            lease = lane[0]
            again = await self._handle(lease)
            lane.popleft()
            if again is None or self._member is None:
                continue
            while lane:  # the group is delivered in order: what is behind it comes again behind it
                behind = lane.popleft()
                self.active -= 1
                self.room.set()
                if self._leases.pop(self._key(behind.message), None) is not None:
                    await self.extend(behind, again)
        self._lanes.pop(name, None)

    async def _handle(self, lease: Lease) -> float | None:
        """Handle an event; seconds until it comes again, None: it is done with."""
        done = False
        key = self._key(lease.message)
        try:
            done = await self._handler(lease.message, Slot(self, lease))
        except Exception:
            log.exception("%s: handling an event of %s failed; it comes again", self._group, self._topic)
        finally:
            self.active -= 1
            self.room.set()
            if done:
                self._leases.pop(key, None)
                self._acknowledge(lease.message)
        if done:
            return None
        again = min(LATER[0] * 2.0 ** min(lease.message.attempt - 1, 20), LATER[1])
        if self._leases.pop(key, None) is not None:
            await self.extend(lease, again)
        return again

    def _key(self, message: Received) -> str:
        # what comes again comes from elsewhere in a broker that has retry topics, but its id stays
        return message.id if self._member is not None else f"{message.queue}/{message.offset}"

    # -- acknowledging

    def _acknowledge(self, message: Received) -> None:
        self._done.append(message)
        if not self._acknowledging:
            self._acknowledging = True
            self._owner.start("acknowledge", self._flush())

    async def _flush(self) -> None:
        from grpc import RpcError

        try:
            while self._done:
                batch, self._done = self._done[:64], self._done[64:]
                try:
                    await self._client().acknowledge(*batch)
                except (SampanError, RpcError) as error:  # they come again: at least once
                    log.warning("%s could not acknowledge %d events: %s", self._group, len(batch), error)
        finally:
            self._acknowledging = False

    # -- leases

    async def extend(self, lease: Lease, seconds: float) -> None:
        """Let a lease end in ``seconds`` from now; one that cannot be is left to end by itself.

        It is seen through also where the caller is cancelled: the answer has the receipt that counts from then on.
        """
        task = self._owner.start("lease", self._extend(lease, seconds))
        self._extending.add(task)
        task.add_done_callback(self._extending.discard)
        await asyncio.shield(task)

    async def _extend(self, lease: Lease, seconds: float) -> None:
        from grpc import RpcError

        lease.until = self.clock.monotonic() + seconds
        try:
            await self._client().change_invisible(lease.message, seconds)
        except (SampanError, RpcError) as error:
            log.info("%s: the lease of an event could not be changed: %s", self._group, error)

    async def _renew(self) -> None:
        while True:
            await self.clock.sleep(RENEW)
            soon = self.clock.monotonic() + RENEW * 1.5
            for lease in [one for one in self._leases.values() if one.until < soon]:
                await self.extend(lease, LEASE)
