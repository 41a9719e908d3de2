"""Receiving: polls, leases, acknowledgements, redelivery and dead letters, over the state machine in `delivery`.

A poll takes what it can at once; with nothing there it is parked, and served when messages become visible, a lease ends or an
ordered queue is unblocked. Reading past messages a filter rejects is done in bounded steps, so that a selective filter over a
long backlog does not hold up everybody else. Records that are not in memory are read in a thread.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from sampan.kernel.clock import Clock, Timer
from sampan.kernel.tasks import Tasks
from sampan.parts.messaging import record
from sampan.parts.messaging.broker import Broker
from sampan.parts.messaging.delivery import DEFERRED_LIMIT, NEVER, Held, Progress, QueueProgress, Terms
from sampan.parts.messaging.errors import MessagingError, Reason, StorageError
from sampan.parts.messaging.filters import Filter
from sampan.parts.messaging.lite import LiteTopics
from sampan.parts.messaging.receipt import Receipt
from sampan.parts.messaging.storage import frames
from sampan.parts.messaging.storage.log import Kind
from sampan.parts.messaging.store import Done
from sampan.parts.messaging.topology import DLQ_PREFIX, LITE_PREFIX, Queue, Topic, split_lite

log = logging.getLogger(__name__)

SCAN_LIMIT = 4096
"""Messages one step of a poll may read past."""
SCAN_CHUNK = 256
RESPONSE_BYTES = 8 << 20
"""New messages beyond the first are left for the next call once a response would exceed this."""
WAKE_SLICE = 64
"""Groups served in one turn of the loop when a message comes."""
RETRY_TURN = 5
"""One receive in so many looks at what is to be redelivered first."""
RELEASE_MS = 1_000
"""A vanished client's renewed leases end after this."""
BURY_RETRY = 1.0
"""Seconds until a dead letter that could not be stored is tried again."""


@dataclass(slots=True)
class Delivery:
    """A message handed to a consumer: its lease as it was, and its record."""

    receipt: Receipt
    attempt: int
    position: int
    size: int
    data: bytes | None
    topic: str


Delivered = Callable[[list[Delivery]], bool]
"""Takes the messages of a poll (none: time is up); False when the client is gone, so they go back at once."""


@dataclass(slots=True)
class Poll:
    """One receive call. ``queue`` -1 means every queue."""

    group: str
    topic: Topic
    queue: int
    filter: Filter
    batch: int
    invisible_ms: int
    wait_ms: int
    client: str
    renew: bool
    attempt_id: str
    deliver: Delivered
    congested: Callable[[], bool] = lambda: False
    """Whether the client does not take what it was sent before: it gets no more until it does."""
    timer: Timer | None = None
    done: bool = False
    cold: bool = field(default=False)


class Consumption:
    """Everything consumers do. All methods belong to the loop."""

    def __init__(self, broker: Broker, lite: LiteTopics, clock: Clock, tasks: Tasks) -> None:
        self._broker = broker
        self._lite = lite
        self._store = broker.store
        self._clock = clock
        self._tasks = tasks
        self._parked: dict[str, dict[str, deque[Poll]]] = {}
        self._alarms: dict[tuple[str, str], tuple[int, Timer]] = {}
        self._turns = itertools.count()
        self._starts: dict[tuple[str, str], int] = {}
        self._again: set[tuple[str, str]] = set()
        self._woken: dict[tuple[str, str], None] = {}
        """Groups and topics whose parked polls may be served now."""
        self._waking = False
        self.parked = 0
        self._stopped = False
        self._arrivals: dict[str, list[asyncio.Future[None]]] = {}
        self.alive: Callable[[str], bool] = lambda client: False
        """Whether a client is connected; its renewed leases go on then."""

    def start(self) -> None:
        """Take up the leases that were running when the broker stopped."""
        for group, topic in self._store.progress:
            self._watch(group, topic)

    def stop(self) -> None:
        """Stop watching the clock; parked polls get nothing."""
        self._stopped = True
        for _, timer in self._alarms.values():
            timer.cancel()
        for groups in list(self._parked.values()):
            for waiting in list(groups.values()):
                for poll in list(waiting):
                    self._time_up(poll)

    # -- receiving

    def receive(self, poll: Poll) -> None:
        """Serve a poll now, or park it until something is there or its time is up.

        Raises:
            MessagingError: TOO_MANY_REQUESTS, too many polls are parked; FORBIDDEN, the topic or group does not consume.
        """
        if not poll.topic.config.readable:
            raise MessagingError(Reason.FORBIDDEN, f"topic {poll.topic.name} has no readable queue")
        if poll.queue >= len(poll.topic.queues):
            raise MessagingError(Reason.BAD_REQUEST, f"topic {poll.topic.name} has no queue {poll.queue}")
        config = self._broker.group(poll.group)
        if not config.consume:
            raise MessagingError(Reason.FORBIDDEN, f"consumer group {poll.group} is disabled")
        poll.attempt_id = poll.attempt_id or f"#{next(self._turns)}"
        if poll.congested():
            raise MessagingError(Reason.TOO_MANY_REQUESTS, "read what earlier calls received before asking for more")
        if self._serve(poll):
            return
        if poll.wait_ms <= 0 and not poll.cold:
            poll.deliver([])
            return
        if self.parked >= self._broker.limits.max_polls:
            raise MessagingError(Reason.TOO_MANY_REQUESTS, "too many receive calls are waiting; try again later")
        self.parked += 1
        self._parked.setdefault(poll.topic.name, {}).setdefault(poll.group, deque()).append(poll)
        poll.timer = self._clock.call_later(poll.wait_ms / 1000, self._time_up, poll)

    async def arrival(self, topic: str) -> None:
        """Wait for the next message of a topic, whoever it is for."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._arrivals.setdefault(topic, [])
        waiting.append(future)
        try:
            await future
        finally:
            if future in waiting:
                waiting.remove(future)
            if not waiting and self._arrivals.get(topic) is waiting:
                del self._arrivals[topic]

    def cancel(self, poll: Poll) -> None:
        """The client of a poll is gone."""
        if not poll.done and poll.timer is not None:
            self._unpark(poll)

    def wake(self, topics: Iterable[str]) -> None:
        """Serve the polls parked on these topics."""
        for topic in topics:
            for arrival in self._arrivals.pop(topic, ()):
                if not arrival.done():
                    arrival.set_result(None)
            if topic.startswith(LITE_PREFIX):
                for group in self._lite.written(topic):
                    self._serve_parked(group, topic)
                continue
            for group in self._parked.get(topic, ()):
                self._woken[group, topic] = None
        if self._woken and not self._waking:
            self._serve_woken()

    def _serve_woken(self) -> None:
        """Serve some groups that wait for a new message; when there are thousands, others get their turn in between."""
        self._waking = False
        for group, topic in list(itertools.islice(self._woken, WAKE_SLICE)):
            del self._woken[group, topic]
            self._serve_parked(group, topic)
        if self._woken:
            self._waking = True
            asyncio.get_running_loop().call_soon(self._serve_woken)

    def _serve_parked(self, group: str, topic: str) -> None:
        if topic.startswith(LITE_PREFIX):
            self._lite.mark(group, topic)
            topic = split_lite(topic)[0]
        waiting = self._parked.get(topic, {}).get(group)
        if not waiting:
            return
        for poll in list(waiting):
            if poll.done or poll.congested():
                continue
            served = self._serve(poll, parked=True)
            if not served and not poll.cold and poll.queue < 0 and poll.topic.config.type != "LITE":
                break

    def _serve(self, poll: Poll, *, parked: bool = False) -> bool:
        if poll.topic.config.type == "LITE":
            taken = self._take_lite(poll)
        else:
            taken = self._take(poll, self._progress(poll.group, poll.topic.name))
        if not taken:
            return False
        if parked:
            self._unpark(poll)
        poll.done = True
        for topic in {delivery.topic for delivery in taken}:
            self._watch(poll.group, topic)
        if all(delivery.data is not None for delivery in taken):
            self._hand_over(poll, taken)
        else:
            self._tasks.start("cold read", self._read_and_hand_over(poll, taken))
        return True

    def _hand_over(self, poll: Poll, taken: list[Delivery]) -> None:
        if poll.deliver(taken):
            size = sum(delivery.size for delivery in taken)
            self._broker.statistics.delivered(poll.topic.name, poll.group, len(taken), size)
            self._broker.statistics.redelivered += sum(1 for delivery in taken if delivery.attempt > 1)
            return
        now_ms = self._clock.time_ms()
        for delivery in taken:
            receipt = delivery.receipt
            progress = self._progress(poll.group, delivery.topic)
            held = progress.find(receipt.queue, receipt.offset, receipt.serial, now_ms)
            if held is not None:
                progress.change(held, now_ms, now_ms)
                self._watch(poll.group, delivery.topic)

    async def _read_and_hand_over(self, poll: Poll, taken: list[Delivery]) -> None:
        lost: list[Delivery] = []
        for delivery in taken:
            if delivery.data is None:
                try:
                    delivery.data = await self._store.read(delivery.position, delivery.size)
                except (LookupError, StorageError, OSError) as error:
                    log.error("a message of %s cannot be read and is skipped: %s", poll.topic.name, error)
                    lost.append(delivery)
        if lost:
            for delivery in lost:
                queue, offset = delivery.receipt.queue, delivery.receipt.offset
                self._progress(poll.group, delivery.topic).restore_ack(queue, offset)
                ended = frames.Ack(poll.group, delivery.topic, [(queue, offset)], self._clock.time_ms(), "lost")
                self._store.journal(Kind.ACK, ended)
        self._hand_over(poll, [delivery for delivery in taken if delivery.data is not None])

    def _time_up(self, poll: Poll) -> None:
        if not poll.done:
            self._unpark(poll)
            poll.deliver([])

    def _unpark(self, poll: Poll) -> None:
        poll.done = True
        if poll.timer is not None:
            poll.timer.cancel()
        groups = self._parked[poll.topic.name]
        waiting = groups[poll.group]
        waiting.remove(poll)
        self.parked -= 1
        if not waiting:
            del groups[poll.group]
            if not groups:
                del self._parked[poll.topic.name]

    def subscribed(self, group: str, parent: str) -> None:
        """A client reads other lite topics than before: serve those that wait."""
        for poll in list(self._parked.get(parent, {}).get(group, ())):
            if not poll.done and not poll.congested():
                self._serve(poll, parked=True)

    # -- taking messages

    def _take_lite(self, poll: Poll) -> list[Delivery]:
        """What is there in the lite topics the poll's client subscribed to."""
        taken: list[Delivery] = []
        poll.cold = False
        for topic in self._lite.candidates(poll.client, poll.group, poll.topic.name):
            part = replace(poll, topic=topic, batch=poll.batch - len(taken))
            found = self._take(part, self._progress(poll.group, topic.name))
            taken += found
            # looked at next time after the others; with nothing to give not before something happens to it
            self._lite.unmark(poll.group, topic.name)
            if found or part.cold:
                self._lite.mark(poll.group, topic.name)
            poll.cold = poll.cold or part.cold
            if len(taken) >= poll.batch:
                break
        return taken

    def _take(self, poll: Poll, progress: Progress) -> list[Delivery]:
        poll.cold = False
        now_ms = self._clock.time_ms()
        renew_until = now_ms + self._broker.limits.max_renew_ms if poll.renew else 0
        terms = Terms(now_ms, poll.invisible_ms, poll.client, renew_until, poll.attempt_id)
        queues = [poll.topic.queues[poll.queue]] if poll.queue >= 0 else poll.topic.readable()
        key = (poll.group, poll.topic.name)
        first = self._starts.get(key, 0)
        self._starts[key] = first + 1
        urgent = poll.topic.config.type == "PRIORITY"
        if urgent:
            queues = queues[::-1]  # a queue holds one priority, the highest the last
        elif len(queues) > 1:
            turn = first % len(queues)
            queues = queues[turn:] + queues[:turn]
        taken: list[Delivery] = []
        retries_first = urgent or progress.ordered or first % RETRY_TURN == 0
        budget = [SCAN_LIMIT, RESPONSE_BYTES]
        for queue in queues:
            if len(taken) >= poll.batch or min(budget) <= 0 or poll.cold:
                break
            if retries_first:
                self._take_again(poll, progress, queue, terms, taken)
            self._take_new(poll, progress, queue, terms, taken, budget)
        if not retries_first:
            for queue in queues:
                if len(taken) >= poll.batch:
                    break
                self._take_again(poll, progress, queue, terms, taken)
        if budget[0] <= 0 and not taken:
            poll.cold = True
            self._come_back(poll.group, poll.topic.name)
        return taken

    def _take_again(self, poll: Poll, progress: Progress, queue: Queue, terms: Terms, taken: list[Delivery]) -> None:
        found = progress.queues.get(queue.id)
        if found is None or not found.held:
            return
        again = progress.redeliver(queue.id, poll.batch - len(taken), terms, lambda held: True)
        if again:
            self._journal_lease(poll, queue.id, found.next, terms, again)
            taken += [
                self._delivery(held, terms, self._peek(held.position, held.size), poll.topic.name) for held in again
            ]

    def _take_new(
        self, poll: Poll, progress: Progress, queue: Queue, terms: Terms, taken: list[Delivery], budget: list[int]
    ) -> None:
        found = progress.queues.get(queue.id) or self._begin(poll.group, poll.topic.name, progress, queue)
        if found.next >= queue.maximum:
            return
        if found.next < queue.minimum:
            progress.trim(queue.id, queue.minimum)
        limit = self._broker.limits.max_in_flight
        wanted, read_all = poll.filter, poll.filter.needs_properties or progress.ordered
        leased: list[Held] = []
        before = found.next
        while len(taken) < poll.batch and found.next < queue.maximum and min(budget) > 0:
            room = min(limit - len(found.held), DEFERRED_LIMIT - found.deferred)
            if room <= 0:
                break
            chunk = SCAN_CHUNK if wanted.needs_properties else poll.batch - len(taken)
            entries = self._store.entries(queue, found.next, min(chunk, queue.maximum - found.next))
            if not entries:
                log.error("the index of %s queue %d lacks offset %d", poll.topic.name, queue.id, found.next)
                break
            for offset, position, size, tag_code in entries:
                if len(taken) >= poll.batch or room <= 0 or (taken and budget[1] < size):
                    break
                budget[0] -= 1
                if not wanted.maybe(tag_code):
                    progress.skip(queue.id, offset)
                    continue
                data = self._peek(position, size)
                group = ""
                if read_all:
                    if data is None:
                        self._fetch(poll, position, size)
                        break
                    properties = record.properties_of(data)
                    if not wanted.matches(properties):
                        progress.skip(queue.id, offset)
                        continue
                    group = properties.get(record.SHARDING_KEY, "")
                room -= 1
                held = progress.hand_out(queue.id, offset, position, size, group, terms)
                if held is not None:
                    leased.append(held)
                    taken.append(self._delivery(held, terms, data, poll.topic.name))
                    budget[1] -= size
                else:
                    leased.append(found.held[offset])
            if poll.cold or (taken and found.next <= entries[-1].offset):
                break
        if found.next != before:
            self._journal_lease(poll, queue.id, found.next, terms, leased)

    def _peek(self, position: int, size: int) -> bytes | None:
        try:
            return self._store.log.read(position, size)
        except (LookupError, StorageError):
            return None  # reading it for the hand-over will say so

    def _fetch(self, poll: Poll, position: int, size: int) -> None:
        """Bring a record the filter must see into the page cache, then try the poll's group again."""
        poll.cold = True

        async def fetch() -> None:
            try:
                await self._store.read(position, size)
            except (LookupError, StorageError, OSError) as error:
                log.error("a message of %s cannot be read and is skipped: %s", poll.topic.name, error)
                progress = self._progress(poll.group, poll.topic.name)
                for queue in poll.topic.queues:
                    entry = (
                        self._store.entries(queue, progress.queues[queue.id].next, 1)
                        if queue.id in progress.queues
                        else []
                    )
                    if entry and entry[0].position == position:
                        progress.skip(queue.id, entry[0].offset)
            self._come_back(poll.group, poll.topic.name)

        self._tasks.start("fetch", fetch())

    def _come_back(self, group: str, topic: str) -> None:
        """Serve the parked polls again in a later turn of the loop."""
        if (group, topic) not in self._again:
            self._again.add((group, topic))
            asyncio.get_running_loop().call_soon(self._serve_again, group, topic)

    def _serve_again(self, group: str, topic: str) -> None:
        self._again.discard((group, topic))
        self._serve_parked(group, topic)

    def _begin(self, group: str, topic: str, progress: Progress, queue: Queue) -> QueueProgress:
        """Where a group that never read a queue begins: at its first message, or at its end once early ones were deleted."""
        found = progress.queues[queue.id] = QueueProgress(0 if queue.minimum == 0 else queue.maximum)
        if found.next:
            self._store.journal(Kind.OFFSET, frames.Offset(group, topic, queue.id, found.next, self._clock.time_ms()))
        return found

    def _delivery(self, held: Held, terms: Terms, data: bytes | None, topic: str) -> Delivery:
        receipt = Receipt(terms.now_ms, terms.invisible_ms, held.serial, held.queue, held.offset)
        return Delivery(receipt, held.attempt, held.position, held.size, data, topic)

    def _journal_lease(self, poll: Poll, queue: int, following: int, terms: Terms, leased: list[Held]) -> None:
        self._store.journal(
            Kind.LEASE,
            frames.Lease(
                poll.group,
                poll.topic.name,
                queue,
                following,
                terms.now_ms + terms.invisible_ms,
                poll.client,
                terms.renew_until_ms,
                poll.attempt_id,
                [
                    frames.LeasedMessage(h.offset, h.position, h.size, h.attempt, h.serial if h.attempt else 0, h.key)
                    for h in leased
                ],
                terms.now_ms,
            ),
        )

    # -- receipts

    def acknowledge(self, group: str, topic: str, receipts: list[Receipt], done: Done) -> list[bool]:
        """End leases for good; tells which receipts were valid. ``done`` when it is on disk; never if none was."""
        progress = self._progress(group, topic)
        now_ms = self._clock.time_ms()
        ended: list[tuple[int, int]] = []
        valid: list[bool] = []
        for receipt in receipts:
            held = progress.find(receipt.queue, receipt.offset, receipt.serial, now_ms)
            valid.append(held is not None)
            if held is not None:
                progress.acknowledge(held)
                ended.append((held.queue, held.offset))
        if not ended:
            return valid
        self._store.journal(Kind.ACK, frames.Ack(group, topic, ended, now_ms), done)
        if progress.ordered or topic in self._parked:  # lite topics are ordered
            self._serve_parked(group, topic)
        return valid

    def change(self, group: str, topic: str, receipt: Receipt, invisible_ms: int, done: Done) -> Receipt:
        """Let a lease end in ``invisible_ms`` from now; returns the new receipt.

        Raises:
            MessagingError: INVALID_RECEIPT_HANDLE, ILLEGAL_INVISIBLE_TIME.
        """
        if not 0 <= invisible_ms <= self._broker.limits.max_invisible_ms:
            raise MessagingError(
                Reason.ILLEGAL_INVISIBLE_TIME,
                f"the invisible duration is not between 0 and {self._broker.limits.max_invisible_ms // 1000} seconds",
            )
        progress = self._progress(group, topic)
        now_ms = self._clock.time_ms()
        held = self._leased(progress, receipt, now_ms)
        progress.change(held, now_ms + invisible_ms, now_ms)
        self._store.journal(
            Kind.CHANGE,
            frames.Change(group, topic, held.queue, held.offset, held.visible_ms, held.serial, now_ms),
            done,
        )
        self._watch(group, topic)
        return Receipt(now_ms, invisible_ms, held.serial, held.queue, held.offset)

    def forward(self, group: str, topic: str, receipt: Receipt, done: Done) -> None:
        """Put a leased message into the group's dead letter queue.

        Raises:
            MessagingError: INVALID_RECEIPT_HANDLE.
        """
        held = self._leased(self._progress(group, topic), receipt, self._clock.time_ms())
        held.dead = True
        self._tasks.start("dead letter", self._bury(group, topic, held, done))

    def _leased(self, progress: Progress, receipt: Receipt, now_ms: int) -> Held:
        held = progress.find(receipt.queue, receipt.offset, receipt.serial, now_ms)
        if held is None:
            raise MessagingError(
                Reason.INVALID_RECEIPT_HANDLE, "the receipt handle has expired, was superseded or already acknowledged"
            )
        return held

    # -- time

    def _watch(self, group: str, topic: str) -> None:
        """Be woken at the next end of a lease."""
        progress = self.of(group, topic)
        deadline = progress.next_deadline() if progress is not None else NEVER
        armed = self._alarms.get((group, topic))
        if (
            self._stopped
            or deadline == NEVER
            or (armed is not None and armed[0] <= deadline and not armed[1].cancelled)
        ):
            return
        if armed is not None:
            armed[1].cancel()
        delay = max(0, deadline - self._clock.time_ms()) / 1000
        self._alarms[group, topic] = deadline, self._clock.call_later(delay, self._alarm, group, topic)

    def _alarm(self, group: str, topic: str) -> None:
        self._alarms.pop((group, topic), None)
        progress = self.of(group, topic)
        if progress is None:
            return
        queues, dead = progress.expire(self._clock.time_ms(), self.alive)
        for held in dead:
            self._tasks.start("dead letter", self._bury(group, topic, held))
        self._watch(group, topic)
        if queues:
            self._serve_parked(group, topic)

    def release(self, client: str, group: str) -> None:
        """A client is gone: its renewed leases end soon."""
        visible_ms = self._clock.time_ms() + RELEASE_MS
        for topic, progress in self._store.topics_of.get(group, {}).items():
            progress.release(client, visible_ms)
            self._watch(group, topic)

    # -- dead letters

    async def _bury(self, group: str, topic: str, held: Held, done: Done | None = None) -> None:
        """Copy a message into the group's dead letter queue, then be done with it; on failure hold it back for a while."""
        try:
            original = record.decode(await self._store.read(held.position, held.size))
        except (LookupError, StorageError, ValueError, OSError) as error:
            log.error("a dead message of %s cannot be read and is dropped: %s", topic, error)
            self._buried(group, topic, held, None, done)
            return
        dlq = self._broker.system_topic(DLQ_PREFIX + group)
        properties = dict(original.properties)
        properties[record.DLQ_TOPIC] = split_lite(original.topic)[0]
        properties[record.DLQ_ID] = original.id
        copy = record.Message(
            dlq.name,
            original.body,
            properties,
            flag=original.flag,
            sys_flag=original.sys_flag & ~record.TRANSACTION_MASK,
            born_ms=original.born_ms,
            born_host=original.born_host,
            store_host=original.store_host,
            reconsume=held.attempt,
        )
        self._store.put(
            copy,
            dlq,
            dlq.place(),
            record.encode_properties(properties),
            lambda error: self._buried(group, topic, held, error, done),
        )

    def _buried(self, group: str, topic: str, held: Held, error: MessagingError | None, done: Done | None) -> None:
        progress = self.of(group, topic)
        if progress is None:
            if done is not None:
                done(error)
            return
        if error is None:
            self._broker.statistics.dead[split_lite(topic)[0], group] += 1
            progress.restore_ack(held.queue, held.offset)
            ended = frames.Ack(group, topic, [(held.queue, held.offset)], self._clock.time_ms(), "dead")
            self._store.journal(Kind.ACK, ended, done or _ignore)
            self._serve_parked(group, topic)
            return
        if done is not None:
            if held.visible_ms:
                held.dead = False
            else:
                progress.revive(held)
            done(error)
            return
        self._clock.call_later(BURY_RETRY, self._bury_again, group, topic, held)

    def _bury_again(self, group: str, topic: str, held: Held) -> None:
        if not self._stopped:
            self._tasks.start("dead letter", self._bury(group, topic, held))

    # -- positions

    def reset(self, group: str, topic: Topic, queue_id: int, offset: int, done: Done | None = None) -> None:
        """Let a group read a queue from ``offset`` on.

        Raises:
            MessagingError: ILLEGAL_OFFSET, it is outside what exists.
        """
        queue = topic.queues[queue_id]
        if not queue.minimum <= offset <= queue.maximum:
            raise MessagingError(
                Reason.ILLEGAL_OFFSET, f"offset {offset} is not between {queue.minimum} and {queue.maximum}"
            )
        self._broker.group(group)
        self._progress(group, topic.name).reset(queue_id, offset)
        self._store.journal(
            Kind.OFFSET, frames.Offset(group, topic.name, queue_id, offset, self._clock.time_ms()), done
        )
        self._serve_parked(group, topic.name)

    def of(self, group: str, topic: str) -> Progress | None:
        """A group's progress in a topic, if it has any."""
        return self._store.progress.get((group, topic))

    def _progress(self, group: str, topic: str) -> Progress:
        progress = self._store.progress_of(group, topic)
        ordered = self._broker.is_ordered(group, topic)
        if progress.ordered != ordered:
            progress.hold_as(ordered=ordered)
        return progress


def _ignore(error: MessagingError | None) -> None:
    """Nobody waits for this frame, but it is written at once."""
