"""Bring a broker up again whose files are damaged, with everything in them that can still be read.

`salvage` makes the log readable from end to end; here its frames are replayed into a store that knows that some are missing,
and that store is written as a new index and checkpoint, from which the broker starts as ever. What missing frames mean:

- a **message**: its offset stays, as an entry that cannot be read, so that consumers are told and go on behind it;
- a **topic's definition**: messages of a topic nobody defined make one of type ``MIXED`` with the queues they name;
- a **lease**: what it handed out is not known, so the group reads the queue again from there (messages may come twice, as they
  may after any lost acknowledgement; none is passed over);
- the **end of a held message** (recalled, rolled back, delivered): it is held again;
- definitions of groups, users and rules: they are as they were before.

The broker must be down. A repair may be killed and begun again at any moment: until the new checkpoint is in its place, the log
refuses to open with the missing frames in it.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import msgspec

from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.parts.messaging import record
from sampan.parts.messaging.delivery import QueueProgress
from sampan.parts.messaging.errors import StorageError
from sampan.parts.messaging.snapshot import packed_at_once
from sampan.parts.messaging.storage import checkpoint, frames, salvage
from sampan.parts.messaging.storage.index import Live, Part
from sampan.parts.messaging.storage.log import CommitLog, Kind
from sampan.parts.messaging.storage.salvage import Damage, Segment
from sampan.parts.messaging.store import Store
from sampan.parts.messaging.topology import DLQ_PREFIX, LITE_PREFIX, RETRY_PREFIX, Topic, TopicConfig

MAX_QUEUES = 1024
DEFAULT_QUEUES = 8


class Lost(msgspec.Struct, frozen=True):
    """Messages of one queue that are gone: from one offset up to, not including, another."""

    topic: str
    queue: int
    begin: int
    end: int


class Rewound(msgspec.Struct, frozen=True):
    """A group reads a queue again from an offset on."""

    group: str
    topic: str
    queue: int
    offset: int


class Report(msgspec.Struct):
    """What a repair found and did."""

    damages: list[Damage] = []
    headers: list[str] = []
    """Files whose header was damaged."""
    aside: str = ""
    """The folder with the damaged files, when there are any."""
    derived: str = ""
    """Why the checkpoint could not be used."""
    repaired: bool = False
    """Whether anything was changed."""
    lost: list[Lost] = []
    topics: list[str] = []
    """Topics that were made anew from their messages."""
    rewound: list[Rewound] = []
    unplaced: int = 0
    """Whole messages that belong to no queue any more: their topic was deleted or made anew where the log is damaged."""
    unreadable: int = 0
    """Frames with the right checksum that make no sense."""
    definitions: bool = False
    """Whether definitions (topics, groups, users, rules) may be older than they were."""
    messages: int = 0
    """Messages in queues that can be read now."""

    @property
    def gone_bytes(self) -> int:
        """Bytes of the log that are given up."""
        return sum(damage.end - damage.begin for damage in self.damages)

    def lines(self) -> list[str]:
        """What an operator should read."""
        if not (self.damages or self.headers or self.repaired):
            return ["nothing is damaged"]
        lines = [f"{name}: its header is damaged" for name in self.headers]
        lines += [
            f"{one.file}: {one.end - one.begin:,} bytes are {'missing' if one.missing else 'damaged'}, "
            f"positions {one.begin} to {one.end}" + (f"; it looks like {one.looks_like}" if one.looks_like else "")
            for one in self.damages
        ]
        if not self.repaired:
            return lines
        if self.aside:
            lines.append(f"the damaged files are kept in {self.aside}")
        if self.derived:
            lines.append(f"{self.derived}; it is made anew from the log")
        lines += [
            f"gone: {one.topic} queue {one.queue} offset {one.begin}"
            + (f" to {one.end - 1}" if one.end > one.begin + 1 else "")
            for one in self.lost
        ]
        lines += [f"topic {name} is made anew from its messages; check its type" for name in self.topics]
        lines += [
            f"group {one.group} reads {one.topic} queue {one.queue} again from offset {one.offset}"
            for one in self.rewound
        ]
        if self.unplaced:
            lines.append(f"{self.unplaced} whole messages have no queue any more: their topic was deleted or made anew")
        if self.unreadable:
            lines.append(f"{self.unreadable} whole frames make no sense and were passed over")
        if self.definitions:
            lines.append("changes of topics, groups, users and rules may be among what is gone: look at them")
            lines.append("messages that were the last of their queue may be gone without being named above")
        lines.append(f"{self.messages:,} messages can be read")
        return lines


def inspect(directory: Path) -> Report:
    """What is damaged in the log of a broker's folder; changes nothing.

    Raises:
        StorageError: there is no log, or a broker has it open.
        OSError: a file cannot be read.
    """
    with _Locked(directory):
        return _report(_survey(directory))


def repair(directory: Path) -> Report:
    """Make the files of a broker's folder ones it starts from.

    Raises:
        StorageError: there is no log, or a broker has it open.
        OSError: a file cannot be read or written; call it again when it can.
    """
    with _Locked(directory):
        for left in (directory / "log").glob("*.mended"):
            left.unlink()
        segments = _survey(directory)
        report = _report(segments)
        if not segments and (position := _known_end(directory)):
            salvage.begin(directory / "log", position)
            report.definitions = True
        broken = [segment for segment in segments if segment.damages or not segment.header]
        for segment in broken:
            salvage.mend(directory / "log", segment, directory / "damaged")
            report.aside = str(directory / "damaged")
    if segments and not broken and _whole(directory):
        return report
    report.repaired = True
    store = _Salvaged(directory, report)
    store.open()
    store.log.close()
    store.index.close()
    return report


class _Locked:
    """The log's lock, so that no broker starts meanwhile."""

    def __init__(self, directory: Path) -> None:
        if not (directory / "log").is_dir():
            raise StorageError(f"{directory} has no commit log; is it the folder of a broker?")
        self._log = CommitLog(directory / "log", segment_bytes=1, on_commit=lambda durable, error: None)

    def __enter__(self) -> None:
        self._log.lock()

    def __exit__(self, *exception: object) -> None:
        self._log.close()


def _survey(directory: Path) -> list[Segment]:
    return salvage.survey(directory / "log", _known_end(directory))


def _known_end(directory: Path) -> int:
    """How far the log goes at least, as the checkpoint has it."""
    try:
        state = checkpoint.read(directory)
    except StorageError:
        return 0
    return 0 if state is None else state.position


def _report(segments: list[Segment]) -> Report:
    return Report(
        [damage for segment in segments for damage in segment.damages],
        [f"{segment.base:020d}" for segment in segments if not segment.header],
    )


def _whole(directory: Path) -> bool:
    """Whether a broker starts from a folder as it is."""
    store = _store(Store, directory)
    try:
        store.open()
    except StorageError:
        return False
    parts, begin = store.index.parts, store.log.begin
    begins_late = (
        bool(parts) and parts[0].start < begin
    )  # retention deletes whole parts; the log's first file is missing
    store.log.close()
    store.index.close()
    return not begins_late


def _store(kind: type[Store], directory: Path) -> Store:
    clock = Clock()
    return kind(directory, clock, Tasks(clock))


class _Facts:
    """What has to be known of the whole log before its frames can be replayed."""

    def __init__(self) -> None:
        self.gaps: list[int] = []
        """Positions of what is missing."""
        self.next_number = 0
        """Above every queue number a definition gave."""
        self.deleted: dict[str, int] = {}
        """Where each topic was deleted last."""
        self.remade: dict[str, int] = {}
        """Where topics must have been deleted and made anew, since their offsets begin again there."""
        self.firsts: defaultdict[str, dict[int, int]] = defaultdict(dict)
        """The oldest offset of each queue of each topic, since it was deleted last."""
        self._newest: defaultdict[str, dict[int, int]] = defaultdict(dict)

    def add_message(self, topic: str, queue: int, offset: int) -> None:
        if offset <= self._newest[topic].get(queue, -1):
            if not self.gaps:
                return  # a straggler of an earlier topic
            self.remade[topic] = self.gaps[-1]
            self.forget(topic)
        self.firsts[topic].setdefault(queue, offset)
        self._newest[topic][queue] = offset

    def forget(self, topic: str) -> None:
        self.firsts.pop(topic, None)
        self._newest.pop(topic, None)

    def missing_between(self, begin: int, end: int) -> bool:
        return any(begin < position < end for position in self.gaps)


class _Salvaged(Store):
    """A store that is made from a log with gaps."""

    def __init__(self, directory: Path, report: Report) -> None:
        clock = Clock()
        super().__init__(directory, clock, Tasks(clock))
        self._report = report
        self._facts = _Facts()
        self._missing = False
        """Whether something before the frame being replayed, and behind the checkpoint, is missing."""
        self._doubtful: dict[tuple[str, str, int], int] = {}
        """Where groups have to read again: the first offset of which it is not known whether it was handed out."""

    def _recover(self) -> int:
        state = None
        try:
            state = checkpoint.read(self._directory)
            if state is None and self.log.begin:
                self._report.derived = f"{self._directory / 'checkpoint'} is missing"
        except StorageError as error:
            self._report.derived = str(error)
        begin = self.log.begin
        start = begin if state is None else state.position
        facts = self._facts = self._gather()
        if state is not None:
            self._restore(state)
        self._next_number = max(self._next_number, facts.next_number)
        self._missing = start < begin or (state is None and begin > 0)
        self._report.definitions = self._missing or any(position >= start for position in facts.gaps)
        if begin:
            self._bound(front=start <= begin)
        (self._directory / "index").mkdir(parents=True, exist_ok=True)
        if start > begin:
            self._index_again(start)
        else:
            self.index.wipe()
            self.index.live = Live(begin)
        count = 0
        for position, kind, payload in self.log.replay(start):
            count += 1
            if kind == Kind.GAP:
                self._missing = True
                continue
            try:
                self._replay(position, kind, payload)
            except (ValueError, msgspec.MsgspecError):
                self._report.unreadable += 1
        self._rewind()
        self._write()
        self._tell()
        return count

    def _gather(self) -> _Facts:
        facts = _Facts()
        for position, kind, payload in self.log.scan(self.log.begin, self.log.durable, verify=True):
            if kind == Kind.GAP:
                facts.gaps.append(position)
            elif kind == Kind.DEFINE:
                try:
                    frame = frames.decode(frames.Define, payload)
                except msgspec.MsgspecError:
                    continue
                facts.next_number = max([facts.next_number, *(number + 1 for number in frame.numbers)])
                if frame.kind == "topic" and frame.data is None:
                    facts.deleted[frame.name] = position
                    facts.forget(frame.name)
            elif kind == Kind.MESSAGE:
                try:
                    message = record.decode(payload)
                except ValueError:
                    continue
                facts.add_message(message.topic, message.queue_id, message.queue_offset)
        return facts

    def _bound(self, *, front: bool) -> None:
        """The log does not go back to its beginning: begin each queue of the checkpoint at the oldest message that is there. With
        ``front``, nothing of what the checkpoint covers is."""
        for topic in self.topics.values():
            firsts = self._facts.firsts.get(topic.name, {})
            for queue in topic.queues:
                first = firsts.get(queue.id, queue.next)
                if first > queue.minimum and queue.maximum:
                    self._note(topic.name, queue.id, queue.minimum, first)
                    queue.minimum = first
                if front and queue.minimum > queue.next:
                    queue.next = queue.maximum = queue.minimum
                queue.minimum = min(queue.minimum, queue.next)

    # -- frames behind what is missing

    def _replay_message(self, position: int, kind: int, payload: bytes) -> None:
        message = record.decode(payload)
        if position < self._facts.remade.get(message.topic, 0):
            return
        topic = self.topics.get(message.topic)
        if self._missing and (topic is None or message.queue_id >= len(topic.queues)):
            topic = self._defined_by(message.topic, message.queue_id, position)
        if topic is not None and message.queue_id < len(topic.queues) and kind == Kind.MESSAGE:
            queue = topic.queues[message.queue_id]
            if self._missing and message.queue_offset > queue.next:
                if not queue.maximum and self.log.begin:  # the first message of this queue that is there
                    self._note(topic.name, queue.id, queue.next, message.queue_offset)
                    queue.minimum = message.queue_offset
                else:
                    self._enter(position)
                    self._fill(self.index.live, queue.number, queue.next, message.queue_offset, position)
                queue.next = queue.maximum = message.queue_offset
            elif message.queue_offset < queue.next:
                self._report.unplaced += self._missing
        super()._replay_message(position, kind, payload)

    def _defined_by(self, name: str, queue_id: int, position: int) -> Topic | None:
        """The topic that a message shows there was, unless it was deleted."""
        deleted = self._facts.deleted.get(name)
        gone = deleted is not None and not (deleted < position and self._facts.missing_between(deleted, position))
        if gone or queue_id >= MAX_QUEUES:
            self._report.unplaced += 1
            return None
        known = self.topics.get(name)
        if known is not None:
            config = msgspec.structs.replace(known.config, queues=max(known.config.queues, queue_id + 1))
        elif name.startswith(LITE_PREFIX):
            config = TopicConfig(name, "LITE", queue_id + 1)
        elif name.startswith((DLQ_PREFIX, RETRY_PREFIX)):
            config = TopicConfig(name, queues=queue_id + 1)
        else:
            config = TopicConfig(name, queues=max(DEFAULT_QUEUES, queue_id + 1))
        if name not in self._report.topics:
            self._report.topics.append(name)
        return self._define_topic(config, [])

    def _replay_lease(self, lease: frames.Lease) -> None:
        if self._missing and lease.topic in self.topics:
            queue = self.progress_of(lease.group, lease.topic).queues.get(lease.queue)
            known = queue.next if queue is not None else 0
            if min((item.offset for item in lease.messages if item.offset >= known), default=lease.next) > known:
                self._doubtful.setdefault((lease.group, lease.topic, lease.queue), known)
        super()._replay_lease(lease)

    def _replay(self, position: int, kind: int, payload: bytes) -> None:
        if kind == Kind.OFFSET:
            moved = frames.decode(frames.Offset, payload)
            self._doubtful.pop((moved.group, moved.topic, moved.queue), None)
        super()._replay(position, kind, payload)

    def _rewind(self) -> None:
        for (group, name, number), offset in sorted(self._doubtful.items()):
            topic = self.topics.get(name)
            if topic is not None and number < len(topic.queues) and (group, name) in self.progress:
                at = max(offset, topic.queues[number].minimum)
                progress = self.progress[group, name]
                before = [held for held in progress.queues[number].held.values() if held.offset < at]
                progress.reset(number, at)
                for held in before:
                    progress.restore_lease(held, at)
                self._report.rewound.append(Rewound(group, name, number, at))
        for (_, name), progress in self.progress.items():
            for queue in self.topics[name].queues if name in self.topics else ():
                if queue.minimum and queue.id not in progress.queues:  # a group new to a queue would begin at its end
                    progress.queues[queue.id] = QueueProgress(queue.minimum)

    # -- what comes of it

    def _deletions(self, stop: int) -> dict[str, int]:
        return {
            name: max(self._facts.deleted.get(name, 0), self._facts.remade.get(name, 0))
            for name in {*self._facts.deleted, *self._facts.remade}
        }

    def _fill(self, live: Live, queue: int, first: int, stop: int, position: int) -> None:
        if stop > first:
            topic, owner = self._queues[queue]
            self._note(topic.name, owner.id, first, stop)
        super()._fill(live, queue, first, stop, position)

    def _note(self, topic: str, queue: int, begin: int, end: int) -> None:
        self._report.lost.append(Lost(topic, queue, begin, end))

    def _write(self) -> None:
        """The new index and checkpoint, as of the log's end."""
        end = self.log.durable
        live, snapshot = self._freeze(end)
        if live.start < end:
            self.index.adopt(Part(live.write(self._directory / "index", end)))
        checkpoint.write(self._directory, packed_at_once(snapshot))

    def _tell(self) -> None:
        self._report.lost.sort(key=lambda lost: (lost.topic, lost.queue, lost.begin))
        lost = sum(one.end - one.begin for one in self._report.lost if self._visible(one))
        self._report.messages = sum(queue.maximum - queue.minimum for _, queue in self._queues.values()) - lost

    def _visible(self, lost: Lost) -> bool:
        topic = self.topics.get(lost.topic)
        return topic is not None and lost.queue < len(topic.queues) and lost.begin >= topic.queues[lost.queue].minimum
