"""What the broker holds back: delayed messages until their time, transactional ones until their producer decides.

A held message becomes visible by storing it again as an ordinary message that names the position it was held at; that one
frame both delivers it and closes what was held, so a crash neither loses nor doubles it.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Callable

from sampan.kernel.clock import Clock, Timer
from sampan.kernel.tasks import Tasks
from sampan.parts.messaging import record
from sampan.parts.messaging.broker import Broker
from sampan.parts.messaging.errors import MessagingError, Reason, StorageError
from sampan.parts.messaging.record import Message
from sampan.parts.messaging.storage import frames
from sampan.parts.messaging.storage.log import Kind
from sampan.parts.messaging.store import Done, Half
from sampan.parts.messaging.timers import NEVER
from sampan.parts.messaging.topology import CHECK_LIMIT_TOPIC, Topic

log = logging.getLogger(__name__)

BATCH = 512
"""Timers released in one turn of the loop."""
RETRY = 1.0
"""Seconds until a release that could not be stored is tried again."""

Ask = Callable[[Half, Message], bool]
"""Asks a live producer of the topic what became of a transaction; False when there is none."""


class HeldMessages:
    """Timers and open transactions."""

    def __init__(self, broker: Broker, clock: Clock, tasks: Tasks) -> None:
        self._broker = broker
        self._store = broker.store
        self._clock = clock
        self._tasks = tasks
        self._timer: tuple[int, Timer] | None = None
        self._releasing = False
        self._stopped = False
        self.ask: Ask = lambda half, message: False

    def start(self) -> None:
        """Begin to watch the clock."""
        self.watch()

    def stop(self) -> None:
        """Stop watching the clock."""
        self._stopped = True
        if self._timer is not None:
            self._timer[1].cancel()

    def watch(self) -> None:
        """Be woken when the next timer or transaction check is due."""
        due = min(
            self._store.timers.next_due(), min((half.due_ms for half in self._store.halves.values()), default=NEVER)
        )
        if due == NEVER or self._releasing or self._stopped:
            return
        if self._timer is not None:
            if self._timer[0] <= due and not self._timer[1].cancelled:
                return
            self._timer[1].cancel()
        delay = max(0, due - self._clock.time_ms()) / 1000
        self._timer = due, self._clock.call_later(delay, self._due)

    def _due(self) -> None:
        self._timer = None
        if not self._releasing:
            self._releasing = True
            self._tasks.start("held messages", self._release())

    async def _release(self) -> None:
        try:
            while due := self._store.timers.due(self._clock.time_ms(), BATCH):
                for due_ms, position in due:
                    self._store.releasing[position] = due_ms
                for due_ms, position in due:
                    await self._deliver(due_ms, position)
            now_ms = self._clock.time_ms()
            while (half := self._store.next_half()) is not None and half.due_ms <= now_ms:
                if half.ending:
                    self._store.postpone(half, now_ms + int(RETRY * 1000))
                else:
                    await self._check(half, now_ms)
        finally:
            self._releasing = False
            # the wheel says at least when its next second begins; within that second, look again at the millisecond
            self.watch()

    # -- timers

    async def _deliver(self, due_ms: int, position: int) -> None:
        try:
            message = record.decode(await self._store.read(position, self._store.log.size_at(position)))
        except (LookupError, StorageError, ValueError, OSError) as error:
            log.error("a delayed message at %d cannot be read and is dropped: %s", position, error)
            self._store.releasing.pop(position, None)
            return
        topic = self._store.topics.get(message.topic)
        if topic is None:
            self._store.releasing.pop(position, None)
            self._store.journal(Kind.CLOSE, frames.Close([(position, due_ms)]))
            return

        def done(error: MessagingError | None) -> None:
            if error is None:
                self._broker.statistics.released(topic.label, self._clock.time_ms() - due_ms)
                return
            self._store.releasing.pop(position, None)
            self._store.timers.set(due_ms, position)
            self._clock.call_later(RETRY, self.watch)

        self._redeliver(message, topic, position, done)

    def _redeliver(self, message: Message, topic: Topic, position: int, done: Done) -> None:
        message.prepared = position
        message.topic = topic.name
        queue = topic.queues[message.queue_id] if message.queue_id < len(topic.queues) else topic.queues[0]
        self._store.put(message, topic, queue, record.encode_properties(message.properties), done)

    def recall_handle(self, message: Message, due_ms: int) -> str:
        """The text with which the producer may take a delayed message back."""
        text = f"v1 {message.topic} {self._broker.name} {due_ms} {message.id}"
        return base64.urlsafe_b64encode(text.encode()).decode()

    async def recall(self, topic: str, handle: str) -> tuple[str, int, int]:
        """Take a delayed message back: its id, and ``(due time, position)`` for `close`.

        Raises:
            MessagingError: BAD_REQUEST, the handle is malformed, of another topic, or the message was delivered.
        """
        try:
            version, name, _, due, identifier = base64.urlsafe_b64decode(handle.encode()).decode().split(" ")
            due_ms = int(due)
            if version != "v1":
                raise ValueError
        except (ValueError, binascii.Error, UnicodeDecodeError):
            raise MessagingError(Reason.BAD_REQUEST, "the recall handle is malformed") from None
        if not self._broker.limits.recall:
            raise MessagingError(Reason.FORBIDDEN, "recalling messages is turned off")
        if name != topic:
            raise MessagingError(Reason.ILLEGAL_TOPIC, f"the recall handle belongs to topic {name}, not {topic}")
        for message in await self._store.find(identifier, limit=8, topic=topic):
            if self._store.timers.cancel(due_ms, message.position):
                return identifier, due_ms, message.position
        raise MessagingError(Reason.BAD_REQUEST, f"message {identifier} was delivered or recalled already")

    def close(self, due_ms: int, position: int, done: Done) -> None:
        """Journal that a held message is not to be delivered."""
        self._store.journal(Kind.CLOSE, frames.Close([(position, due_ms)]), done)

    # -- transactions

    async def end(self, transaction: str, *, commit: bool, done: Done, topic: str = "") -> None:
        """Commit or roll back an open transaction; ``done`` when it is on disk.

        Raises:
            MessagingError: INVALID_TRANSACTION, there is no such open transaction.
        """
        half = self._store.halves.get(transaction)
        if half is None or half.ending or (topic and half.topic != topic):
            raise MessagingError(Reason.INVALID_TRANSACTION, f"transaction {transaction!r} is unknown or already ended")
        if not commit:
            self._store.close_held(half.position)
            self._broker.statistics.rolled_back[half.topic] += 1
            self._store.journal(Kind.CLOSE, frames.Close([(half.position, 0)]), done)
            return
        half.ending = True
        try:
            self._commit(half, record.decode(await self._store.read(half.position, half.size)), done)
        except BaseException:
            half.ending = False
            raise

    def _commit(self, half: Half, message: Message, done: Done) -> None:
        found = self._store.topics.get(half.topic)
        if found is None:
            raise MessagingError(Reason.TOPIC_NOT_FOUND, f"topic {half.topic} does not exist any more")
        message.sys_flag = (message.sys_flag & ~record.TRANSACTION_MASK) | record.COMMITTED
        message.properties.pop(record.OUT_MS, None)
        self._broker.statistics.finish(half.topic, self._clock.time_ms() - message.store_ms)

        def ended(error: MessagingError | None) -> None:
            half.ending = False
            done(error)

        self._redeliver(message, found, half.position, ended)

    async def _check(self, half: Half, now_ms: int) -> None:
        """Ask a producer about an open transaction, or give it up after too many questions."""
        try:
            message = record.decode(await self._store.read(half.position, half.size))
        except (LookupError, StorageError, ValueError, OSError) as error:
            log.error("half message %s cannot be read and is dropped: %s", half.id, error)
            self._store.close_held(half.position)
            return
        limits = self._broker.limits
        if half.checks >= limits.transaction_max_checks:
            log.warning("transaction %s was never resolved; it goes to %s", half.id, CHECK_LIMIT_TOPIC)
            message.properties[record.REAL_TOPIC] = message.topic
            message.properties.pop(record.OUT_MS, None)
            message.queue_id = 0
            parked = self._broker.system_topic(CHECK_LIMIT_TOPIC)
            self._store.postpone(half, now_ms + limits.transaction_check_interval_ms)
            self._redeliver(message, parked, half.position, lambda error: None)
            return
        self._store.postpone(half, now_ms + limits.transaction_check_interval_ms)
        message.properties.pop(record.OUT_MS, None)
        message.properties[record.CHECK_TIMES] = str(half.checks + 1)
        if self.ask(half, message):
            half.checks += 1
            self._store.journal(Kind.CHECKED, frames.Checked(half.position, half.checks, half.due_ms))
