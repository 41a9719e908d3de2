"""What a store knows at one position of its log, packed for the checkpoint in slices while the store goes on.

Everything is replayed that the log has after that position, over what the checkpoint says. So most of it may be looked at a little
later: topics and groups that came or went since, leases, acknowledgements, half messages and definitions end up the same once
their frames are applied again. Two things are exact:

* how far each queue was: a replayed message is taken for one of an earlier topic when its offset is not the next. The store
  notes in `Snapshot.maxima` where a queue was before it goes on (`Snapshot.before`).
* timers: one set twice would come twice. The lists of them are taken at the position; a list only ever grows at its end while it
  is looked at, or loses what was cancelled, which is cancelled again; what is younger than the position is left out.

The result is the MessagePack array that `checkpoint.State` describes, put together from its pieces.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, TypeVar

import msgspec

from sampan.parts.messaging.delivery import Held, Progress
from sampan.parts.messaging.storage import checkpoint
from sampan.parts.messaging.topology import Queue, Topic

if TYPE_CHECKING:
    from sampan.parts.messaging.store import Half, Store

T = TypeVar("T")

SLICE = 100
"""Topics, groups or held messages packed at a time: well under a millisecond."""
TIMERS_SLICE = 4_096
"""Timers copied at a time."""
_STATE, _PROGRESS, _QUEUE, _BYTES = b"\x98", b"\x94", b"\x93", b"\xc6"
"""MessagePack's heads of arrays of eight, four and three, and of bytes."""

Packing = Generator[None, None, T]


class Snapshot:
    """A store at one position. What has to be exact is noted as it is made; `pack` does the rest."""

    def __init__(self, store: Store, position: int) -> None:
        self.position = position
        self.maxima: dict[int, int] = {}
        """By number, where the queues were at the position that have gone on since."""
        self._next_number = store._next_number
        self._topics = list(store.topics.values())
        self._groups = list(store.groups.values())
        self._progress = list(store.progress), list(store.progress.values())
        self._halves = list(store.halves.values())
        self._definitions = [(kind, name, data) for (kind, name), data in store.definitions.items()]
        self._timers = store.timers.lists()
        self._timers[0].extend(value for at, due_ms in store.releasing.items() for value in (due_ms, at))
        self._since_yield = 0
        self._encode = msgspec.msgpack.Encoder().encode

    def before(self, queue: Queue) -> None:
        """A queue is about to go on."""
        self.maxima.setdefault(queue.number, queue.maximum)

    def pack(self) -> Packing[bytearray]:
        """Encode it, yielding between slices."""
        encode = self._encode
        # grown in place: to join many small pieces at the end would be one long slice
        made = bytearray(_STATE + encode(self.position) + encode(self._next_number))
        yield from self._list(made, self._topics, self._topic)
        yield from self._list(made, self._groups, encode)
        names, progresses = self._progress
        made += _head(len(names))
        for (group, topic), progress in zip(names, progresses, strict=True):
            yield from self._pack_progress(made, group, topic, progress)
        yield from self._pack_timers(made)
        yield from self._list(made, self._halves, lambda half: encode(_half_state(half)))
        yield from self._list(made, self._definitions, encode)
        return made

    def _list(self, made: bytearray, items: Sequence[T], encode: Callable[[T], bytes]) -> Packing[None]:
        made += _head(len(items))
        for start in range(0, len(items), SLICE):
            made += b"".join(map(encode, items[start : start + SLICE]))
            yield

    def _topic(self, topic: Topic) -> bytes:
        maxima = self.maxima
        used = []
        for queue in topic.queues:
            maximum = maxima.get(queue.number, queue.maximum)
            if maximum:
                used.append((queue.id, maximum, queue.minimum))
        return self._encode(checkpoint.TopicState(topic.config, [queue.number for queue in topic.queues], used))

    def _pack_progress(self, made: bytearray, group: str, topic: str, progress: Progress) -> Packing[None]:
        encode = self._encode
        queues = list(progress.queues.items())
        made += _PROGRESS + encode(group) + encode(topic) + encode(progress.serial) + _head(len(queues))
        for number, queue in queues:
            held = list(queue.held.values())
            made += _QUEUE + encode(number) + encode(queue.next)
            if len(held) < SLICE:
                made += encode([_held_state(one) for one in held])
            else:
                yield from self._list(made, held, lambda one: encode(_held_state(one)))
        self._since_yield += 1
        if self._since_yield >= SLICE // 2:
            self._since_yield = 0
            yield

    def _pack_timers(self, made: bytearray) -> Packing[None]:
        timers: array[int] = array("q")
        looked = 0
        for one in self._timers:
            whole = one[:]  # cancelling moves the last one into the gap
            for start in range(0, len(whole), 2 * TIMERS_SLICE):
                timers.extend(_older(whole[start : start + 2 * TIMERS_SLICE], self.position))
                looked += min(TIMERS_SLICE, len(whole) // 2)
                if looked >= TIMERS_SLICE:
                    looked = 0
                    yield
        made += _BYTES + (len(timers) * timers.itemsize).to_bytes(4, "big")
        made += memoryview(timers).cast("B")


def _older(timers: array[int], position: int) -> array[int]:
    """Those of positions before this one."""
    if max(timers[1::2], default=-1) < position:
        return timers
    return array(
        "q", [value for at in range(0, len(timers), 2) if timers[at + 1] < position for value in timers[at : at + 2]]
    )


def _head(count: int) -> bytes:
    """MessagePack's head of an array."""
    return b"\xdd" + count.to_bytes(4, "big")


def _held_state(held: Held) -> checkpoint.HeldState:
    return checkpoint.HeldState(
        held.offset,
        held.position,
        held.size,
        held.key,
        held.attempt,
        held.serial,
        held.visible_ms,
        held.client,
        held.renew_until_ms,
        held.attempt_id,
    )


def _half_state(half: Half) -> checkpoint.HalfState:
    return checkpoint.HalfState(half.id, half.position, half.size, half.topic, half.due_ms, half.checks)


def packed_at_once(snapshot: Snapshot) -> bytearray:
    """The whole of it, for who has nothing else to do meanwhile."""
    packing = snapshot.pack()
    while True:
        try:
            next(packing)
        except StopIteration as packed:
            whole: bytearray = packed.value
            return whole
