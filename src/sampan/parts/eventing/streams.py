"""Durable streams of events over the messaging part: one topic a broker or channel, one consumer group a subscriber.

`Streams.publish` returns once the event is on disk. Events that arrive together are stored with one request a topic, so that
the price of a request and of an fsync is shared. Reading is `consumer`'s. Only the public protocol is used, but for making
topics and groups known ahead of their first message.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sampan.kernel.clock import Clock
from sampan.kernel.errors import SampanError
from sampan.kernel.tasks import Tasks
from sampan.parts.eventing.errors import ConnectionSettingsError, EventingError

if TYPE_CHECKING:
    from sampan.parts.messaging import MessagingClient

log = logging.getLogger(__name__)

BATCH_EVENTS = 64
"""Events stored with one request at most."""
BATCH_BYTES = 2 * 1024 * 1024
"""Bytes after which a batch is closed."""
REQUESTS = 2
"""Requests of one topic under way at once: one is being written while the next is filled."""
PENDING_LIMIT = 4096
"""Events waiting to be stored in one topic; more are refused, so that a slow disk cannot fill the memory."""


class UnavailableError(EventingError):
    """Messaging cannot store the event now; nothing of it is kept."""


class _Topic:
    """What waits to be stored in one topic."""

    def __init__(self) -> None:
        self.pending: deque[tuple[bytes, str, asyncio.Future[None]]] = deque()
        self.requests = 0


class Streams:
    """The topics and groups of one process.

    ``address`` gives messaging's ``(host, port)`` or None while it is not up. The file ``note`` is there once messaging was
    ever spoken to, so that a start at which nothing can have been left there need not connect.
    """

    def __init__(
        self,
        address: Callable[[], tuple[str, int] | None],
        clock: Clock,
        tasks: Tasks,
        credentials: Path | None = None,
        note: Path | None = None,
    ) -> None:
        self._address = address
        self._clock = clock
        self._tasks = tasks
        self._credentials = credentials
        self._note = note
        self._topics: dict[str, _Topic] = {}
        self._client: MessagingClient | None = None

    def client(self) -> MessagingClient:
        """The connection to messaging.

        Raises:
            UnavailableError: messaging does not listen.
        """
        if self._client is None:
            if self._note is not None:
                self._note.touch()
            self._client, _ = self.connect()
        return self._client

    @property
    def used(self) -> bool:
        """Messaging was spoken to, at this start or before."""
        return self._note is None or self._note.exists()

    def connect(self, address: str = "", access_key: str = "", secret_key: str = "") -> tuple[MessagingClient, Clock]:
        """A connection of one's own to a RocketMQ 5 proxy (empty: to messaging), and the clock its leases go by.

        Raises:
            UnavailableError: messaging does not listen.
        """
        from sampan.parts.messaging import MessagingClient

        if address:  # a cluster elsewhere lives on the machine's time, wherever the platform's clock is steered to
            clock = Clock()
            return MessagingClient(address, clock=clock, access_key=access_key, secret_key=secret_key), clock
        found = self._address()
        if found is None:
            raise UnavailableError("messaging is not running")
        if not access_key and self._credentials is not None and self._credentials.exists():
            keys = json.loads(self._credentials.read_text())
            access_key, secret_key = keys.get("accessKey", ""), keys.get("secretKey", "")
        client = MessagingClient(
            f"{found[0]}:{found[1]}", clock=self._clock, access_key=access_key, secret_key=secret_key
        )
        return client, self._clock

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
            return UnavailableError(said(error))
        return None

    # -- topics and groups

    async def topics(self) -> list[str]:
        """The names of all topics.

        Raises:
            UnavailableError: messaging cannot be reached.
        """
        return [row["topic"] for row in await self._operate("topics")]  # type: ignore[attr-defined]

    async def groups(self) -> list[str]:
        """The names of all consumer groups.

        Raises:
            UnavailableError: messaging cannot be reached.
        """
        return [row["group"] for row in await self._operate("groups")]  # type: ignore[attr-defined]

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
        if group in await self.groups():
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
            raise UnavailableError(said(error)) from None
        return found


def proxy_address(text: str) -> str:
    """The ``host:port`` of a proxy as objects name it; of several the first, "" stays "".

    Raises:
        ConnectionSettingsError: it is no address.
    """
    first = text.replace(",", ";").split(";")[0].strip().removeprefix("http://")
    host, _, port = first.rpartition(":")
    if first and not (host and port.isdecimal() and 0 < int(port) < 65536):
        raise ConnectionSettingsError(f"namesrvAddr is {text!r}; it must be the host:port of a RocketMQ 5 proxy (gRPC)")
    return first


def said(error: BaseException) -> str:
    """What a call that was refused or broke has to say."""
    details = getattr(error, "details", None)
    return f"messaging cannot be reached: {details()}" if callable(details) else str(error)
