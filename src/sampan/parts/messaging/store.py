"""The broker's state and its durability: what is in memory, how it changes, and how it comes back.

Every change is a frame in the commit log. What concerns messages (queues grow, timers and half messages open and close) takes
effect when its frame is durable, in log order, so no consumer ever sees what a crash could take back. What concerns consumers
(leases, acknowledgements) takes effect at once and is journaled; whoever must be sure waits for the frame.

At a start the checkpoint is loaded and the frames behind it are replayed through the same functions; replaying a frame whose
effect the checkpoint already has changes nothing.
"""

from __future__ import annotations

import asyncio
import bisect
import heapq
import logging
from array import array
from collections import deque
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from sampan.kernel.clock import Clock, Timer
from sampan.kernel.tasks import Tasks
from sampan.parts.messaging import record
from sampan.parts.messaging.delivery import Held, Progress, QueueProgress
from sampan.parts.messaging.errors import MessagingError, Reason, StorageError
from sampan.parts.messaging.record import Message
from sampan.parts.messaging.snapshot import Snapshot
from sampan.parts.messaging.storage import checkpoint, frames
from sampan.parts.messaging.storage.index import Entry, Index, Live, Packed, Part, key_hash
from sampan.parts.messaging.storage.log import FRAME_BYTES, REPAIR, SEGMENT_HEADER, CommitLog, Kind
from sampan.parts.messaging.timers import Timers
from sampan.parts.messaging.topology import GroupConfig, Queue, Topic, TopicConfig

log = logging.getLogger(__name__)

T = TypeVar("T")
Done = Callable[[MessagingError | None], object]
"""Called once the frame is durable (None) or lost."""

CHECKPOINT_MESSAGES = 1 << 16
CHECKPOINT_FRAMES = 1 << 18
CHECKPOINT_BYTES = 256 << 20
CHECKPOINT_RETRY = 10.0
"""Seconds until a checkpoint that could not be written is tried again."""
STOP_REPLAY_FRAMES = 8192
"""A clean stop writes no checkpoint when fewer frames would have to be replayed."""
FLUSH_INTERVAL = 0.05
"""Seconds a frame nobody waits for may stay in memory."""
SYNC_INTERVAL = 0.5
"""Seconds between fsyncs under asynchronous flush."""


class Half(msgspec.Struct):
    """An open transaction's message."""

    id: str
    position: int
    size: int
    topic: str
    due_ms: int
    """When to ask its producer next."""
    checks: int = 0
    ending: bool = False
    """Its end is being written."""


class _Stored(NamedTuple):
    kind: int
    topic: Topic
    queue: Queue
    offset: int
    size: int
    tag_code: int
    hashes: tuple[int, ...]
    store_ms: int
    prepared: int
    due_ms: int
    id: str


class Store:
    """Topics, groups, progress and held messages over one commit log and its index."""

    def __init__(
        self,
        directory: Path,
        clock: Clock,
        tasks: Tasks,
        *,
        segment_bytes: int = 256 << 20,
        sync: bool = True,
        reserve_bytes: int = 0,
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._tasks = tasks
        self._sync = sync
        self.log = CommitLog(
            directory / "log",
            segment_bytes=segment_bytes,
            on_commit=self._committed,
            sync=sync,
            reserve_bytes=reserve_bytes,
        )
        self.index = Index(directory / "index")
        self.topics: dict[str, Topic] = {}
        self.groups: dict[str, GroupConfig] = {}
        self.progress: dict[tuple[str, str], Progress] = {}
        self.topics_of: dict[str, dict[str, Progress]] = {}
        """The same progress by group, then topic."""
        self.timers = Timers()
        self.halves: dict[str, Half] = {}
        self.definitions: dict[tuple[str, str], Any] = {}
        self._queues: dict[int, tuple[Topic, Queue]] = {}
        self.releasing: dict[int, int] = {}
        """Timers taken from the wheel whose message is not durable yet: position to due time."""
        self._half_positions: dict[int, str] = {}
        self._half_due: list[tuple[int, str]] = []
        self._next_number = 0
        self._pending: deque[tuple[int, _Stored | None, Done | None]] = deque()
        self._frames = 0
        self._checkpointing = False
        self._snapshot: Snapshot | None = None
        """Being packed: hears of queues that go on."""
        self._writing: asyncio.Task[None] | None = None
        self._flush_armed = False
        self._flushing: Timer | None = None
        self._syncing: Timer | None = None
        self._stopped = False
        self._checkpoint_not_before = 0.0
        self.disk_full = False
        self.on_messages: Callable[[set[str]], object] = lambda topics: None
        """Called with the names of topics that have new messages."""
        self.on_timers: Callable[[], object] = lambda: None
        """Called when a timer or half message was added."""

    @property
    def waiting(self) -> int:
        """Frames somebody waits for that are not durable yet."""
        return len(self._pending)

    # -- life

    def open(self) -> int:
        """Load the checkpoint and replay the log; returns how many frames were replayed. Blocks: for threads.

        Raises:
            StorageError: files are damaged or of another version.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        self.log.open()
        try:
            return self._recover()
        except BaseException:
            self.log.close()
            raise

    def _recover(self) -> int:
        state = None
        try:
            state = checkpoint.read(self._directory)
            if state is None and self.log.begin:  # the topics were defined in what was deleted
                raise StorageError(f"{self._directory / 'checkpoint'} is missing")
        except StorageError as error:
            if self.log.begin:
                raise StorageError(f"{error}, and the log no longer goes back to its beginning; {REPAIR}") from error
            log.warning("%s; it is made anew from the log", error)
        start = self.log.begin
        if state is not None:
            start = state.position
            self._restore(state)
        if start > self.log.durable:
            raise StorageError(f"the log in {self._directory} ends before its checkpoint; {REPAIR}")
        try:
            self.index.open(start, self.log.begin)
        except (StorageError, ValueError) as error:
            log.warning("%s; the index is made anew from the log", error)
            self._index_again(start)
        count = 0
        for position, kind, payload in self.log.replay(start):
            self._replay(position, kind, payload)
            count += 1
        self._frames = count
        if self.log.begin:
            self._find_minimums()
        return count

    def _find_minimums(self) -> None:
        """Have queues begin where the log does: more may have been deleted since the checkpoint."""
        open_ = {number: queue for number, (_, queue) in self._queues.items() if queue.minimum < queue.maximum}
        for part in self.index.parts:
            if not open_:
                return
            for number, first, _ in part.queues():
                queue = open_.pop(number, None)
                if queue is not None:
                    queue.minimum = max(queue.minimum, first)
        for number, queue in open_.items():
            first_live = self.index.live.first(number)
            queue.minimum = max(queue.minimum, queue.maximum if first_live is None else first_live)

    def _index_again(self, stop: int) -> None:
        """Make the index of the log up to a position anew, a part for each segment."""
        self.index.wipe()
        gone = self._deletions(stop)
        bases = [base for base in self.log.bases if base < stop]
        due = {number: queue.minimum for number, (_, queue) in self._queues.items()}
        for base, end in zip(bases, [*bases[1:], stop], strict=True):
            live = Live(base)
            for position, kind, payload in self.log.scan(base, end):
                if kind not in (Kind.MESSAGE, Kind.TIMER, Kind.HALF):
                    continue
                try:
                    message = record.decode(payload)
                except ValueError as error:
                    log.error("the message at %d is damaged and cannot be indexed: %s", position, error)
                    continue
                topic = self.topics.get(message.topic)
                if topic is None or message.queue_id >= len(topic.queues) or position < gone.get(message.topic, 0):
                    continue
                live.newest_ms = max(live.newest_ms, message.store_ms)
                for hashed in _hashes(message):
                    live.add_key(hashed, position, len(payload))
                if kind == Kind.MESSAGE:
                    tag_code = record.java_hash(message.tag) if message.tag else 0
                    number = topic.queues[message.queue_id].number
                    self._fill(live, number, due.get(number, message.queue_offset), message.queue_offset, position)
                    live.add(number, message.queue_offset, position, len(payload), tag_code)
                    due[number] = message.queue_offset + 1
            if end == stop:
                for number, (_, queue) in self._queues.items():
                    self._fill(live, number, due[number], queue.next, base + SEGMENT_HEADER.size + FRAME_BYTES)
            self.index.parts.append(Part(live.write(self._directory / "index", end)))
        self.index.live = Live(stop)

    def _deletions(self, stop: int) -> dict[str, int]:
        """Where topics were deleted last before a position: what came before was in queues of an earlier topic of the name."""
        gone: dict[str, int] = {}
        for position, kind, payload in self.log.scan(self.log.begin, stop):
            if kind == Kind.DEFINE:
                frame = frames.decode(frames.Define, payload)
                if frame.kind == "topic" and frame.data is None:
                    gone[frame.name] = position
        return gone

    def _fill(self, live: Live, queue: int, first: int, stop: int, position: int) -> None:
        """Have entries for messages that are damaged, since offsets are consecutive: a frame of no bytes, which nobody can read
        either, so that consumers are told and go on behind it."""
        for offset in range(first, stop):
            live.add(queue, offset, position, 0, 0)

    def start(self) -> None:
        """Begin to accept changes."""
        self.log.start()
        if not self._sync:
            self._syncing = self._clock.call_later(SYNC_INTERVAL, self._sync_later)

    async def stop(self) -> None:
        """Write everything out and close."""
        self._stopped = True
        for timer in (self._flushing, self._syncing):
            if timer is not None:
                timer.cancel()
        await self.log.stop()
        if self._writing is not None and not self._writing.done():
            await asyncio.wait([self._writing])
        if self._frames > STOP_REPLAY_FRAMES and not self._checkpointing:
            await self._checkpoint(self.log.durable)
        self.index.close()

    # -- messages

    def put(
        self,
        message: Message,
        topic: Topic,
        queue: Queue,
        properties: bytes,
        done: Done | None,
        *,
        kind: int = Kind.MESSAGE,
        due_ms: int = 0,
    ) -> None:
        """Append a message; it is visible (or held until ``due_ms``) once ``done`` is called without an error.

        Fills in its queue offset, position and store time.
        """
        now_ms = self._clock.time_ms()
        message.store_ms = now_ms
        message.queue_id = queue.id
        if kind == Kind.MESSAGE:
            message.queue_offset = queue.next
            queue.next += 1
        size = record.record_size(len(topic.encoded), len(message.body), len(properties))
        message.position = self.log.next_position(size)
        self.log.append(kind, record.encode(message, properties))
        values = message.properties
        tag, identifier, keys = values.get("TAGS"), values.get("UNIQ_KEY"), values.get("KEYS")
        hashes: tuple[int, ...] = (key_hash(identifier),) if identifier else ()
        if keys:
            hashes += tuple(map(key_hash, keys.split()))
        self._pending.append(
            (
                message.position,
                _Stored(
                    kind,
                    topic,
                    queue,
                    message.queue_offset,
                    size,
                    record.java_hash(tag) if tag else 0,
                    hashes,
                    now_ms,
                    message.prepared,
                    due_ms,
                    identifier or "",
                ),
                done,
            )
        )

    def journal(self, kind: int, frame: msgspec.Struct, done: Done | None = None) -> None:
        """Append a frame that is no message; without ``done`` it may stay in memory for `FLUSH_INTERVAL`."""
        position = self.log.append(kind, frames.encode(frame), urgent=done is not None)
        self._frames += 1
        if done is not None:
            self._pending.append((position, None, done))
        elif not self._flush_armed:
            self._flush_armed = True
            self._flushing = self._clock.call_later(FLUSH_INTERVAL, self._flush_later)

    def entries(self, queue: Queue, offset: int, limit: int) -> list[Entry]:
        """Up to ``limit`` entries of a queue from ``offset`` on."""
        return self.index.entries(queue.number, offset, limit)

    async def read(self, position: int, size: int) -> bytes:
        """The record at a position, from disk if need be.

        Raises:
            StorageError: it is damaged.
            LookupError: it was deleted.
        """
        data = self.log.read(position, size)
        return data if data is not None else await asyncio.to_thread(self.log.read_cold, position, size)

    async def find(self, key: str, limit: int = 32, topic: str | None = None) -> list[Message]:
        """Messages with this key or unique id, newest first; held ones included."""
        found: list[Message] = []
        seen: set[int] = set()
        for position, size in self.index.find_key(key):
            if position in seen:
                continue
            seen.add(position)
            try:
                message = record.decode(await self.read(position, size))
            except LookupError:
                continue
            if (topic is None or message.topic == topic) and (message.id == key or key in message.keys):
                found.append(message)
                if len(found) >= limit:
                    break
        return found

    # -- definitions

    def define_topic(self, config: TopicConfig, done: Done | None = None) -> Topic:
        """Create or change a topic. Queues are added as needed and never removed."""
        topic = self._define_topic(config, [])
        numbers = [queue.number for queue in topic.queues]
        self.journal(Kind.DEFINE, frames.Define("topic", config.name, msgspec.to_builtins(config), numbers), done)
        return topic

    def define_group(self, config: GroupConfig, done: Done | None = None) -> None:
        """Create or change a group."""
        self._define_group(config)
        self.journal(Kind.DEFINE, frames.Define("group", config.name, msgspec.to_builtins(config)), done)

    def define(self, kind: str, name: str, data: Any, done: Done | None = None) -> None:
        """Declare or (None) delete something else that has a name (``user``, ``policy``)."""
        self._define(frames.Define(kind, name, data))
        self.journal(Kind.DEFINE, frames.Define(kind, name, data), done)

    def delete_topic(self, name: str, done: Done | None = None) -> None:
        """Delete a topic, its queues and every group's progress in it; its messages go with their segments."""
        self._delete_topic(name)
        self.journal(Kind.DEFINE, frames.Define("topic", name), done)

    def delete_group(self, name: str, done: Done | None = None) -> None:
        """Delete a group and its progress."""
        self._delete_group(name)
        self.journal(Kind.DEFINE, frames.Define("group", name), done)

    def _define_topic(self, config: TopicConfig, numbers: list[int]) -> Topic:
        topic = self.topics.get(config.name)
        if topic is None:
            topic = self.topics[config.name] = Topic(config)
        topic.config = config
        wanted = max(config.queues, config.read_queues or 0)
        while len(topic.queues) < max(wanted, len(numbers)):
            index = len(topic.queues)
            number = numbers[index] if index < len(numbers) else self._next_number
            self._next_number = max(self._next_number, number + 1)
            queue = Queue(index, number)
            topic.queues.append(queue)
            self._queues[number] = (topic, queue)
        return topic

    def _define_group(self, config: GroupConfig) -> None:
        self.groups[config.name] = config
        for progress in self.topics_of.get(config.name, {}).values():
            progress.max_attempts = config.max_attempts

    def _delete_topic(self, name: str) -> None:
        topic = self.topics.pop(name, None)
        if topic is not None:
            for queue in topic.queues:
                self._queues.pop(queue.number, None)
        for group, topics in self.topics_of.items():
            if topics.pop(name, None) is not None:
                del self.progress[group, name]
        for half in [half for half in self.halves.values() if half.topic == name]:
            self.close_held(half.position)

    def _delete_group(self, name: str) -> None:
        self.groups.pop(name, None)
        for topic in self.topics_of.pop(name, {}):
            del self.progress[name, topic]

    def _define(self, frame: frames.Define) -> None:
        if frame.kind == "topic":
            if frame.data is None:
                self._delete_topic(frame.name)
            else:
                self._define_topic(msgspec.convert(frame.data, TopicConfig), frame.numbers)
        elif frame.kind == "group":
            if frame.data is None:
                self._delete_group(frame.name)
            else:
                self._define_group(msgspec.convert(frame.data, GroupConfig))
        elif frame.data is None:
            self.definitions.pop((frame.kind, frame.name), None)
        else:
            self.definitions[frame.kind, frame.name] = frame.data

    # -- progress

    def progress_of(self, group: str, topic: str) -> Progress:
        """A group's progress in a topic, begun where it does not exist."""
        progress = self.progress.get((group, topic))
        if progress is None:
            config = self.groups.get(group) or GroupConfig(group)
            progress = Progress(ordered=False, max_attempts=config.max_attempts)
            self.progress[group, topic] = progress
            self.topics_of.setdefault(group, {})[topic] = progress
        return progress

    # -- effects of durable frames

    def _committed(self, durable: int, error: OSError | None) -> None:
        if error is not None:
            self._lost(error)
            return
        if self.disk_full:
            log.warning("the commit log can be written again")
            self.disk_full = False
        pending = self._pending
        changed: set[str] = set()
        timed = False
        while pending and pending[0][0] < durable:
            position, stored, done = pending.popleft()
            if stored is not None:
                if not self._same_segment(position):
                    self._begin_checkpoint(self._boundary(position))
                self._frames += 1
                if self._take_effect(position, stored):
                    changed.add(stored.topic.name)
                else:
                    timed = True
            if done is not None:
                _tell(done, None)
        if changed:
            _tell(self.on_messages, changed)
        if timed:
            self.on_timers()
        live = self.index.live
        if (
            live.count >= CHECKPOINT_MESSAGES
            or self._frames >= CHECKPOINT_FRAMES
            or durable - live.start >= CHECKPOINT_BYTES
        ):
            self._begin_checkpoint(durable)

    def _take_effect(self, position: int, stored: _Stored) -> bool:
        """Index a durable message; True when it is visible now."""
        live = self.index.live
        live.newest_ms = stored.store_ms
        for hashed in stored.hashes:
            live.add_key(hashed, position, stored.size)
        if stored.kind == Kind.TIMER:
            self.timers.set(stored.due_ms, position)
            return False
        if stored.kind == Kind.HALF:
            self._open_half(Half(stored.id, position, stored.size, stored.topic.name, stored.due_ms))
            return False
        queue = stored.queue
        live.add(queue.number, stored.offset, position, stored.size, stored.tag_code)
        if self._snapshot is not None:
            self._snapshot.before(queue)
        queue.maximum = stored.offset + 1
        if stored.prepared:
            self.releasing.pop(stored.prepared, None)
            self.close_held(stored.prepared)
        return True

    def _open_half(self, half: Half) -> None:
        previous = self.halves.get(half.id)
        if previous is not None:
            self._half_positions.pop(previous.position, None)
        self.halves[half.id] = half
        self._half_positions[half.position] = half.id
        heapq.heappush(self._half_due, (half.due_ms, half.id))

    def postpone(self, half: Half, due_ms: int) -> None:
        """Ask about an open half message at another time."""
        half.due_ms = due_ms
        heapq.heappush(self._half_due, (due_ms, half.id))

    def next_half(self) -> Half | None:
        """The open half message to ask about first."""
        while self._half_due:
            due_ms, identifier = self._half_due[0]
            half = self.halves.get(identifier)
            if half is not None and half.due_ms == due_ms:
                return half
            heapq.heappop(self._half_due)
        return None

    def close_held(self, position: int) -> None:
        """Forget the open half message at a position, if there is one."""
        identifier = self._half_positions.pop(position, None)
        if identifier is not None:
            del self.halves[identifier]

    def _lost(self, error: OSError) -> None:
        if not self.disk_full:
            log.error("the commit log cannot be written, messages are refused: %s", error)
        self.disk_full = True
        failure = MessagingError(Reason.DISK_FULL, f"the broker cannot store messages: {error.strerror or error}")
        lost, self._pending = self._pending, deque()
        for _, stored, _ in lost:
            if stored is not None:
                stored.queue.next = stored.queue.maximum
        for _, _, done in lost:
            if done is not None:
                _tell(done, failure)

    # -- replay

    def _replay(self, position: int, kind: int, payload: bytes) -> None:
        if kind in (Kind.MESSAGE, Kind.TIMER, Kind.HALF):
            self._replay_message(position, kind, payload)
        elif kind == Kind.LEASE:
            lease = frames.decode(frames.Lease, payload)
            self._replay_lease(lease)
        elif kind == Kind.ACK:
            ack = frames.decode(frames.Ack, payload)
            progress = self.progress.get((ack.group, ack.topic))
            for queue_id, offset in ack.messages if progress is not None else ():
                assert progress is not None
                progress.restore_ack(queue_id, offset)
        elif kind == Kind.CHANGE:
            change = frames.decode(frames.Change, payload)
            progress = self.progress.get((change.group, change.topic))
            queue = progress.queues.get(change.queue) if progress is not None else None
            held = queue.held.get(change.offset) if queue is not None else None
            if progress is not None and held is not None:
                held.visible_ms, held.serial, held.renew_until_ms = change.visible_ms, change.serial, 0
                progress.restore_lease(held, 0)
        elif kind == Kind.OFFSET:
            moved = frames.decode(frames.Offset, payload)
            if moved.topic in self.topics:
                self.progress_of(moved.group, moved.topic).reset(moved.queue, moved.next)
        elif kind == Kind.CLOSE:
            for closed, due_ms in frames.decode(frames.Close, payload).messages:
                self._replay_close(closed, due_ms)
        elif kind == Kind.DEFINE:
            self._define(frames.decode(frames.Define, payload))
        elif kind == Kind.CHECKED:
            checked = frames.decode(frames.Checked, payload)
            half = self.halves.get(self._half_positions.get(checked.position, ""))
            if half is not None:
                half.checks = checked.checks
                self.postpone(half, checked.due_ms)
        elif kind == Kind.GAP:
            raise StorageError(f"a repair gave up what the log had at {position}, and was not finished; {REPAIR}")

    def _replay_message(self, position: int, kind: int, payload: bytes) -> None:
        message = record.decode(payload)
        topic = self.topics.get(message.topic)
        if topic is None or message.queue_id >= len(topic.queues):
            return  # the topic was deleted later on
        hashes = _hashes(message)
        queue = topic.queues[message.queue_id]
        if kind == Kind.MESSAGE:
            if message.queue_offset != queue.next:
                return  # of an earlier topic of this name, deleted while it was being written
            queue.next = message.queue_offset + 1
        self._enter(position)
        tag = message.tag
        due_ms = int(message.properties.get(record.OUT_MS, 0))
        self._take_effect(
            position,
            _Stored(
                kind,
                topic,
                queue,
                message.queue_offset,
                len(payload),
                record.java_hash(tag) if tag else 0,
                hashes,
                message.store_ms,
                message.prepared,
                due_ms,
                message.properties.get(record.UNIQUE_KEY, ""),
            ),
        )
        if message.prepared:
            self._replay_close(message.prepared, due_ms)

    def _enter(self, position: int) -> None:
        """While replaying, write the index part of a segment once a message of the next one comes: a crash came before the
        checkpoint at that segment's end was finished."""
        if not self._same_segment(position):
            live, self.index.live = self.index.live, Live(self._boundary(position))
            self.index.parts.append(Part(live.write(self._directory / "index", self.index.live.start)))

    def _replay_lease(self, lease: frames.Lease) -> None:
        if lease.topic not in self.topics:
            return
        progress = self.progress_of(lease.group, lease.topic)
        queue = progress.queues.setdefault(lease.queue, QueueProgress(0))
        queue.next = max(queue.next, lease.next)
        for item in lease.messages:
            visible_ms = lease.visible_ms if item.attempt else 0
            held = Held(
                lease.queue, item.offset, item.position, item.size, item.key, item.attempt, item.serial, visible_ms
            )
            held.client, held.renew_until_ms, held.attempt_id = lease.client, lease.renew_until_ms, lease.attempt_id
            progress.restore_lease(held, lease.next)

    def _replay_close(self, position: int, due_ms: int) -> None:
        self.close_held(position)
        if due_ms:
            self.timers.cancel(due_ms, position)

    # -- checkpoints

    def _segment_of(self, position: int) -> int:
        return self.log.bases[bisect.bisect_right(self.log.bases, position) - 1]

    def _boundary(self, position: int) -> int:
        """Where the live stretch can end before the message at a position: at its segment's base, or right before it."""
        base = self._segment_of(position)
        return base if self.index.live.last < base else position - FRAME_BYTES

    def _same_segment(self, position: int) -> bool:
        return self._segment_of(position) == self._segment_of(self.index.live.start)

    def _begin_checkpoint(self, position: int) -> None:
        if not self._checkpointing and self._clock.monotonic() >= self._checkpoint_not_before:
            self._checkpointing = True
            live, snapshot = self._freeze(position)
            self._snapshot = snapshot
            self._writing = self._tasks.start("checkpoint", self._write_checkpoint(live, snapshot))

    async def _checkpoint(self, position: int) -> None:
        self._checkpointing = True
        live, snapshot = self._freeze(position)
        await self._write_checkpoint(live, snapshot)

    def _freeze(self, position: int) -> tuple[Live, Snapshot]:
        live = self.index.freeze(position)
        assert live is not None
        live.newest_ms = max(live.newest_ms, self._clock.time_ms())
        self._frames = 0
        return live, Snapshot(self, position)

    async def _write_checkpoint(self, live: Live, snapshot: Snapshot) -> None:
        position = snapshot.position

        def write(packed: Packed, encoded: bytearray) -> Part:
            if not self._sync:
                self.log.sync_segments()
            part = Part(live.write_packed(self._directory / "index", position, packed))
            checkpoint.write(self._directory, encoded)
            return part

        try:
            encoded = await _in_slices(snapshot.pack())
            self._snapshot = None
            packed = await _in_slices(live.pack(position))
            self.index.adopt(await asyncio.to_thread(write, packed, encoded))
        except OSError as error:
            log.error("the checkpoint at %d could not be written: %s", position, error)
            self.index.thaw()
            self._checkpoint_not_before = self._clock.monotonic() + CHECKPOINT_RETRY
        finally:
            self._snapshot = None
            self._checkpointing = False

    def _restore(self, state: checkpoint.State) -> None:
        self._next_number = state.next_number
        for saved in state.topics:
            topic = self._define_topic(saved.config, saved.numbers)
            for queue_id, maximum, minimum in saved.used:
                queue = topic.queues[queue_id]
                queue.next = queue.maximum = maximum
                queue.minimum = minimum
        for group in state.groups:
            self._define_group(group)
        for item in state.progress:
            progress = self.progress_of(item.group, item.topic)
            progress.serial = item.serial
            for queue_id, following, held in item.queues:
                progress.queues[queue_id] = QueueProgress(following)
                for one in held:
                    progress.restore_lease(_held(queue_id, one), following)
        timers = array("q")
        timers.frombytes(state.timers)
        for at in range(0, len(timers), 2):
            self.timers.set(timers[at], timers[at + 1])
        for half in state.halves:
            self._open_half(Half(half.id, half.position, half.size, half.topic, half.due_ms, half.checks))
        for kind, name, data in state.definitions:
            self.definitions[kind, name] = data

    # -- retention

    def retain(self, *, older_than_ms: int, max_bytes: int) -> int:
        """Delete the oldest segments: those written before a time, and those beyond a total size. Returns how many.

        Segments with open timers or half messages, and the current one, stay.
        """
        dropped = 0
        pinned: int | None = None
        while (count := self._droppable(older_than_ms, max_bytes)) > 0:
            if pinned is None:
                pinned = self._pinned()
            if self.log.segment_end(self.log.bases[count - 1]) > pinned:
                break
            end = self.log.segment_end(self.log.bases[count - 1])
            for number, first in self.index.drop_before(end).items():
                owner = self._queues.get(number)
                if owner is not None:
                    owner[1].minimum = max(owner[1].minimum, first)
            for base in self.log.bases[:count]:
                self.log.drop(base)
            dropped += count
        if dropped:
            for (_, name), progress in self.progress.items():
                for queue in self.topics[name].queues if name in self.topics else ():
                    progress.trim(queue.id, queue.minimum)
        return dropped

    def _pinned(self) -> int:
        """The oldest position something held still needs."""
        pinned = min((position for _, position in self.timers), default=self.log.durable)
        pinned = min(pinned, min(self.releasing, default=pinned))
        return min(pinned, min((half.position for half in self.halves.values()), default=pinned))

    def _droppable(self, older_than_ms: int, max_bytes: int) -> int:
        """How many of the oldest segments may go together: up to the first end of one that is also the end of a part."""
        ends = {part.end for part in self.index.parts}
        for count in range(1, len(self.log.bases)):
            end = self.log.segment_end(self.log.bases[count - 1])
            if end in ends:
                newest_ms = max(part.newest_ms for part in self.index.parts if part.end <= end)
                return count if newest_ms < older_than_ms or self.log.size > max_bytes else 0
        return 0

    def queues(self) -> Iterator[tuple[Topic, Queue]]:
        """Every queue with its topic."""
        return iter(self._queues.values())

    # -- timers of our own

    def _flush_later(self) -> None:
        self._flush_armed = False
        if not self._stopped:
            self.log.flush()

    def _sync_later(self) -> None:
        if not self._stopped:
            self.log.sync()
            self._syncing = self._clock.call_later(SYNC_INTERVAL, self._sync_later)


async def _in_slices(work: Generator[None, None, T]) -> T:
    """What a generator returns; whatever else the loop has to do goes on where it yields."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            next(work)
        except StopIteration as finished:
            result: T = finished.value
            return result
        turn = loop.create_future()
        loop.call_soon(turn.set_result, None)
        await turn


def _hashes(message: Message) -> tuple[int, ...]:
    """What a message is found by: its keys and its id."""
    hashes = tuple(map(key_hash, message.keys))
    identifier = message.properties.get(record.UNIQUE_KEY)
    return (*hashes, key_hash(identifier)) if identifier else hashes


def _tell(listener: Callable[[Any], object], what: Any) -> None:
    """Call a listener; its failure must not keep the others from being told."""
    try:
        listener(what)
    except Exception:
        log.exception("a listener of the store failed")


def _held(queue: int, state: checkpoint.HeldState) -> Held:
    return Held(
        queue,
        state.offset,
        state.position,
        state.size,
        state.key,
        state.attempt,
        state.serial,
        state.visible_ms,
        state.client,
        state.renew_until_ms,
        state.attempt_id,
    )
