"""Durable streams of events over the messaging part: one topic a broker or channel, one consumer group a subscriber.

`Streams.publish` returns once the event is on disk. Events that arrive together are stored with one request a topic, so that
the price of a request and of an fsync is shared. `Consumer` receives under a lease, hands each event to its handler and
acknowledges it when the handler is done; what takes long is leased further, and what was not acknowledged when the process
died comes again. Only the public protocol is used, but for making topics and groups known ahead of their first message.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sampan.kernel.clock import Clock
from sampan.kernel.errors import SampanError
from sampan.kernel.tasks import Tasks
from sampan.parts.eventing.errors import EventingError

if TYPE_CHECKING:
    from sampan.parts.messaging import MessagingClient, Received

log = logging.getLogger(__name__)

BATCH_EVENTS = 64
"""Events stored with one request at most."""
BATCH_BYTES = 2 * 1024 * 1024
"""Bytes after which a batch is closed."""
REQUESTS = 2
"""Requests of one topic under way at once: one is being written while the next is filled."""
PENDING_LIMIT = 4096
"""Events waiting to be stored in one topic; more are refused, so that a slow disk cannot fill the memory."""
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


class UnavailableError(EventingError):
    """Messaging cannot store the event now; nothing of it is kept."""


class _Topic:
    """What waits to be stored in one topic."""

    def __init__(self) -> None:
        self.pending: deque[tuple[bytes, str, asyncio.Future[None]]] = deque()
        self.requests = 0


class Streams:
    """The topics and groups of one process. ``address`` gives messaging's ``(host, port)`` or None while it is not up."""

    def __init__(
        self, address: Callable[[], tuple[str, int] | None], clock: Clock, tasks: Tasks, credentials: Path | None = None
    ) -> None:
        self._address = address
        self._clock = clock
        self._tasks = tasks
        self._credentials = credentials
        self._topics: dict[str, _Topic] = {}
        self._client: MessagingClient | None = None

    def client(self) -> MessagingClient:
        """The connection to messaging.

        Raises:
            UnavailableError: messaging does not listen.
        """
        if self._client is None:
            address = self._address()
            if address is None:
                raise UnavailableError("messaging is not running")
            self._client = connect(f"{address[0]}:{address[1]}", self._clock, self._credentials)
        return self._client

    async def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    # -- storing

    async def publish(self, topic: str, payload: bytes, group: str = "") -> None:
        """Store an event; returns once it is on disk. Events of one ``group`` keep their order.

        Raises:
            UnavailableError: it could not be stored, or too many are waiting.
        """
        found = self._topics.get(topic)
        if found is None:
            found = self._topics[topic] = _Topic()
        if len(found.pending) >= PENDING_LIMIT:
            raise UnavailableError(f"{PENDING_LIMIT} events are waiting to be stored")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        found.pending.append((payload, group, future))
        if found.requests < REQUESTS:
            found.requests += 1
            self._tasks.start(f"store/{topic}", self._store(topic, found))
        await future

    async def _store(self, topic: str, waiting: _Topic) -> None:
        try:
            while waiting.pending:
                batch = [waiting.pending.popleft()]
                size = len(batch[0][0])
                while waiting.pending and len(batch) < BATCH_EVENTS and size < BATCH_BYTES:
                    batch.append(waiting.pending.popleft())
                    size += len(batch[-1][0])
                error = await self._send(topic, batch)
                for _, _, future in batch:
                    if future.done():
                        continue  # whoever waited is gone
                    if error is None:
                        future.set_result(None)
                    else:
                        future.set_exception(UnavailableError(f"the event could not be stored: {error}"))
        finally:
            waiting.requests -= 1

    async def _send(
        self, topic: str, batch: list[tuple[bytes, str, asyncio.Future[None]]]
    ) -> SampanError | OSError | None:
        from grpc import RpcError

        try:
            await self.client().send_many(
                topic, [payload for payload, _, _ in batch], groups=[group for _, group, _ in batch]
            )
        except SampanError as error:
            return error
        except RpcError as error:
            return UnavailableError(_said(error))
        return None

    # -- topics and groups

    async def make_topic(self, topic: str) -> None:
        """Make a topic known.

        Raises:
            UnavailableError: messaging cannot be reached.
        """
        await self._operate("create_topic", name=topic, type="MIXED")

    async def make_group(self, group: str, topic: str) -> None:
        """Make a consumer group that begins with the next event, unless it is there already.

        Raises:
            UnavailableError: messaging cannot be reached.
        """
        if any(row["group"] == group for row in await self._operate("groups")):  # type: ignore[attr-defined]
            return
        # positions first: a group whose making was cut short is made again, and nobody reads it before it is whole
        await self._operate("create_group", name=group, max_retries=1000, orderly=False)
        await self._operate("reset", group=group, topic=topic, to="latest")

    async def delete_group(self, group: str) -> None:
        """Forget a consumer group and its progress; one that is not there is fine."""
        from sampan.parts.messaging import MessagingClientError

        try:
            await self._operate("delete_group", name=group)
        except MessagingClientError as error:
            log.info("consumer group %s: %s", group, error)

    async def delete_topic(self, topic: str) -> None:
        """Delete a topic with its events; one that is not there is fine."""
        from sampan.parts.messaging import MessagingClientError

        self._topics.pop(topic, None)
        try:
            await self._operate("delete_topic", name=topic)
        except MessagingClientError as error:
            log.info("topic %s: %s", topic, error)

    async def _operate(self, operation: str, **arguments: object) -> object:
        from grpc import RpcError

        try:
            found: object = await self.client().operate(operation, **arguments)
        except RpcError as error:
            raise UnavailableError(_said(error)) from None
        return found


def connect(address: str, clock: Clock, credentials: Path | None = None) -> MessagingClient:
    """A client of a broker or of a RocketMQ 5 proxy; ``credentials`` is a file with accessKey and secretKey, if it exists."""
    from sampan.parts.messaging import MessagingClient

    keys = json.loads(credentials.read_text()) if credentials is not None and credentials.exists() else {}
    return MessagingClient(
        address, clock=clock, access_key=keys.get("accessKey", ""), secret_key=keys.get("secretKey", "")
    )


def _said(error: BaseException) -> str:
    """What a broken call has to say."""
    details = getattr(error, "details", None)
    return f"messaging cannot be reached: {details() if callable(details) else error}"


class Lease(msgspec.Struct, eq=False):
    """An event in somebody's hands."""

    message: object
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
    ) -> None:
        self.clock = clock
        self.active = 0
        """Events being handled."""
        self.waiting = 0
        """Events between two attempts."""
        self.room = asyncio.Event()
        """Set when there may be room for more."""
        self._client = client
        self._owner = tasks
        self._group, self._topic = group, topic
        self._handler = handler
        self._ordered = ordered
        self._expression = expression
        self._leases: dict[str, Lease] = {}
        self._lanes: dict[int, deque[Lease]] = {}
        self._extending: set[asyncio.Task[None]] = set()
        self._done: list[Received] = []
        self._acknowledging = False
        self._closing = asyncio.Event()
        self._tasks = Tasks(clock, f"eventing/{group}")
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to read."""
        self._tasks.keep("receive", self._receive)
        self._tasks.keep("renew", self._renew)

    async def close(self) -> None:
        """Stop; what is in hand is given back: at once, or for when its next attempt is due."""
        await self._tasks.cancel()
        if self._extending:
            await asyncio.wait(self._extending)  # their answers have the receipts that are valid now
        for lease in list(self._leases.values()):
            await self.extend(lease, max(0.0, lease.due - self.clock.monotonic()))
        self._leases.clear()

    # -- receiving

    async def _receive(self) -> None:
        from grpc import RpcError

        delay = RETRY[0]
        while True:
            while self.active >= ACTIVE or self.waiting >= WAITING:
                self.room.clear()
                await self.room.wait()
            try:
                batch = min(32, ACTIVE - self.active)
                found = await self._client().receive(
                    self._group, self._topic, batch=batch, invisible=LEASE, wait=POLL, expression=self._expression
                )
            except (SampanError, RpcError) as error:
                log.warning("%s cannot read %s: %s", self._group, self._topic, error)
                await self.clock.sleep(delay)
                delay = min(delay * 2, RETRY[1])
                continue
            delay = RETRY[0]
            for message in sorted(found, key=lambda one: (one.queue, one.offset)) if self._ordered else found:
                self._take(message)

    def _take(self, message: Received) -> None:
        key = f"{message.queue}/{message.offset}"
        if key in self._leases:  # its lease ended while it was being handled: the newer receipt is the valid one
            self._leases[key].message = message
            return
        lease = self._leases[key] = Lease(message, self.clock.monotonic() + LEASE)
        self.active += 1
        if not self._ordered:
            self._tasks.start("handle", self._handle(key, lease))
            return
        lane = self._lanes.setdefault(message.queue, deque())
        lane.append(lease)
        if len(lane) == 1:
            self._tasks.start("handle", self._drain(message.queue, lane))

    async def _drain(self, queue: int, lane: deque[Lease]) -> None:
        while lane:
            message: Received = lane[0].message  # type: ignore[assignment]
            await self._handle(f"{message.queue}/{message.offset}", lane[0])
            lane.popleft()
        self._lanes.pop(queue, None)

    async def _handle(self, key: str, lease: Lease) -> None:
        done = False
        try:
            done = await self._handler(lease.message, Slot(self, lease))  # type: ignore[arg-type]
        except Exception:
            log.exception("%s: handling an event of %s failed; it comes again", self._group, self._topic)
        finally:
            self.active -= 1
            self.room.set()
            if done:
                self._leases.pop(key, None)
                self._acknowledge(lease.message)  # type: ignore[arg-type]
        if not done and self._leases.pop(key, None) is not None:
            message: Received = lease.message  # type: ignore[assignment]
            await self.extend(lease, min(LATER[0] * 2.0 ** min(message.attempt - 1, 20), LATER[1]))

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
            await self._client().change_invisible(lease.message, seconds)  # type: ignore[arg-type]
        except (SampanError, RpcError) as error:
            log.info("%s: the lease of an event could not be changed: %s", self._group, error)

    async def _renew(self) -> None:
        while True:
            await self.clock.sleep(RENEW)
            soon = self.clock.monotonic() + RENEW * 1.5
            for lease in [one for one in self._leases.values() if one.until < soon]:
                await self.extend(lease, LEASE)
