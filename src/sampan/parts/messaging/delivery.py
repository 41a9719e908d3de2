"""What a consumer group has done with a topic: the state machine of leases, redelivery and order. No I/O, no clock.

For every queue a group keeps how far it has read (``next``) and what it still holds: messages handed out and not yet
acknowledged, or waiting to be handed out again. Everything below ``next`` that is not held is done.

A message handed out is *leased*: it is invisible to the group until ``visible_ms``, and its receipt (queue, offset, serial)
is good until then. Acknowledging removes it; changing its visibility moves ``visible_ms`` and gives a new receipt; letting the
lease pass makes it *ready* again, for one more attempt, until the group's attempts are used up and it is *dead*.

An ordered group additionally blocks a message group (``key``) within a queue from the first held message on: nothing of that
key is handed out while an earlier one is leased, unless it goes to the very receive call (``attempt_id``) that already has
it, which is a client asking again after a lost answer. What is read past while blocked is *deferred*: held with no attempt
yet. Messages without a message group share the empty key.

Whoever drives this (``broker``) journals each change; `restore_lease` and friends replay the journal.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

NEVER = 1 << 62
RENEW_MS = 60_000
"""How far an automatically renewed lease is extended at a time."""
DEFERRED_LIMIT = 2048
"""Messages of blocked message groups an ordered queue is read past before it waits."""


@dataclass(slots=True)
class Held:
    """One message that a group has read but is not done with."""

    queue: int
    offset: int
    position: int
    size: int
    key: str = ""
    attempt: int = 0
    """Times it was handed out."""
    serial: int = 0
    visible_ms: int = 0
    """Invisible until then; 0: ready."""
    client: str = ""
    renew_until_ms: int = 0
    """While its client lives, the lease renews itself until then; 0: it does not."""
    attempt_id: str = ""
    dead: bool = False
    """Attempts are used up; on its way to the dead letter queue."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of one receive call."""

    now_ms: int
    invisible_ms: int
    client: str = ""
    renew_until_ms: int = 0
    attempt_id: str = ""


@dataclass(slots=True)
class QueueProgress:
    """A group's progress in one queue."""

    next: int
    held: dict[int, Held] = field(default_factory=dict)
    ready: list[int] = field(default_factory=list)
    """Heap of offsets to hand out again (unordered groups)."""
    keys: dict[str, list[int]] = field(default_factory=dict)
    """Held offsets of each message group, ascending (ordered groups)."""
    free: dict[str, None] = field(default_factory=dict)
    """Message groups that may have something to hand out (ordered groups)."""
    deferred: int = 0

    @property
    def committed(self) -> int:
        """The first offset the group is not done with."""
        return min(self.held, default=self.next) if self.held else self.next


class Progress:
    """A consumer group's progress in one topic."""

    def __init__(self, *, ordered: bool, max_attempts: int, serial: int = 0) -> None:
        self.ordered = ordered
        self.max_attempts = max_attempts
        self.queues: dict[int, QueueProgress] = {}
        self.serial = serial
        self.leased = 0
        """Messages leased right now."""
        self._deadlines: list[tuple[int, int, int, int]] = []
        self._stale = 0

    # -- handing out

    def hand_out(self, queue: int, offset: int, position: int, size: int, key: str, terms: Terms) -> Held | None:
        """Read the next message of a queue: lease it, or (None) defer it because its message group is blocked.

        Raises:
            ValueError: ``offset`` is not the queue's next.
        """
        progress = self.queues[queue]
        if offset < progress.next:
            raise ValueError(f"offset {offset} was read already")
        progress.next = offset + 1
        held = Held(queue, offset, position, size, key if self.ordered else "")
        progress.held[offset] = held
        if self.ordered:
            offsets = progress.keys.get(held.key)
            if offsets is None:
                progress.keys[held.key] = [offset]
            else:
                blocked = any(not _same_call(progress.held[other], terms) for other in offsets)
                offsets.append(offset)
                if blocked:
                    progress.deferred += 1
                    return None
        self._lease(held, terms)
        return held

    def skip(self, queue: int, offset: int) -> None:
        """Read past a message the group's filter rejects: it is done."""
        self.queues[queue].next = offset + 1

    def redeliver(self, queue: int, limit: int, terms: Terms, matches: Callable[[Held], bool]) -> list[Held]:
        """Lease up to ``limit`` messages that are to be handed out again and that ``matches``."""
        progress = self.queues.get(queue)
        if progress is None or limit <= 0:
            return []
        return self._in_order(progress, limit, terms) if self.ordered else self._ready(progress, limit, terms, matches)

    def _ready(self, progress: QueueProgress, limit: int, terms: Terms, matches: Callable[[Held], bool]) -> list[Held]:
        taken: list[Held] = []
        passed: list[int] = []
        while progress.ready and len(taken) < limit:
            offset = heapq.heappop(progress.ready)
            held = progress.held.get(offset)
            if held is None or held.visible_ms or held.dead:
                continue
            if not matches(held):
                passed.append(offset)
                continue
            progress.deferred -= not held.attempt
            self._lease(held, terms)
            taken.append(held)
        for offset in passed:
            heapq.heappush(progress.ready, offset)
        return taken

    def _in_order(self, progress: QueueProgress, limit: int, terms: Terms) -> list[Held]:
        taken: list[Held] = []
        candidates = list(progress.free)
        if terms.attempt_id:
            own = {held.key for held in progress.held.values() if held.attempt_id == terms.attempt_id}
            candidates = sorted(own) + [key for key in candidates if key not in own]
        for key in candidates:
            if any(_elsewhere(progress.held[offset], terms) for offset in progress.keys.get(key, ())):
                continue
            for offset in progress.keys.get(key, ()):
                held = progress.held[offset]
                if len(taken) >= limit:
                    break
                progress.deferred -= not held.attempt
                self._lease(held, terms, again=bool(held.visible_ms))
                taken.append(held)
            progress.free.pop(key, None)
            if len(taken) >= limit:
                self._refree(progress, key)
                break
        return taken

    def _lease(self, held: Held, terms: Terms, *, again: bool = False) -> None:
        if again:
            self._stale += 1
        else:
            held.attempt += 1
            self.leased += 1
        self.serial += 1
        held.serial = self.serial
        held.visible_ms = terms.now_ms + terms.invisible_ms
        held.client = terms.client
        held.renew_until_ms = terms.renew_until_ms
        held.attempt_id = terms.attempt_id
        self._watch(held)

    # -- receipts

    def find(self, queue: int, offset: int, serial: int, now_ms: int) -> Held | None:
        """The leased message of a receipt, or None when the receipt is expired, superseded or unknown."""
        progress = self.queues.get(queue)
        held = progress.held.get(offset) if progress is not None else None
        if held is None or held.serial != serial or held.visible_ms <= now_ms or held.dead:
            return None
        return held

    def acknowledge(self, held: Held) -> None:
        """The group is done with this message."""
        progress = self.queues[held.queue]
        del progress.held[held.offset]
        if held.visible_ms:
            self.leased -= 1
            self._stale += 1
        if self.ordered:
            offsets = progress.keys[held.key]
            offsets.remove(held.offset)
            if offsets:
                self._refree(progress, held.key)
            else:
                del progress.keys[held.key]
                progress.free.pop(held.key, None)
        self._compact()

    def change(self, held: Held, visible_ms: int, now_ms: int) -> None:
        """Move the end of a lease; the receipt is superseded. Not in the future: the message is ready at once."""
        self.serial += 1
        held.serial = self.serial
        self._stale += 1
        held.visible_ms = max(visible_ms, now_ms)
        held.renew_until_ms = 0
        self._watch(held)
        self._compact()

    # -- time

    def next_deadline(self) -> int:
        """When `expire` has something to do; `NEVER` if nothing is leased."""
        while self._deadlines:
            visible_ms, queue, offset, serial = self._deadlines[0]
            progress = self.queues.get(queue)
            held = progress.held.get(offset) if progress is not None else None
            if held is not None and held.serial == serial and held.visible_ms == visible_ms:
                return visible_ms
            heapq.heappop(self._deadlines)
            self._stale -= 1
        return NEVER

    def expire(self, now_ms: int, alive: Callable[[str], bool]) -> tuple[set[int], list[Held]]:
        """End the leases that are over: the queues that have something ready again, and the messages that are dead.

        ``alive(client)`` says whether a client whose leases renew themselves is still there.
        """
        queues: set[int] = set()
        dead: list[Held] = []
        while self.next_deadline() <= now_ms:
            _, queue, offset, _ = heapq.heappop(self._deadlines)
            progress = self.queues[queue]
            held = progress.held[offset]
            if held.renew_until_ms > now_ms and alive(held.client):
                held.visible_ms = min(now_ms + RENEW_MS, held.renew_until_ms)
                self._watch(held)
                continue
            held.visible_ms = 0
            self.leased -= 1
            if held.dead:
                continue  # its client has sent it to the dead letters; that is under way
            if held.attempt >= self.max_attempts:
                held.dead = True
                dead.append(held)
                continue
            queues.add(queue)
            self._make_ready(progress, held)
        return queues, dead

    def release(self, client: str, visible_ms: int) -> None:
        """A client is gone: let the leases it would have renewed end at ``visible_ms``."""
        for progress in self.queues.values():
            for held in progress.held.values():
                if held.client == client and held.renew_until_ms and held.visible_ms > visible_ms:
                    held.renew_until_ms = 0
                    held.visible_ms = visible_ms
                    self._stale += 1
                    self._watch(held)
        self._compact()

    def revive(self, held: Held) -> None:
        """A dead message could not be put aside: hold it back until it can."""
        held.dead = False
        self._make_ready(self.queues[held.queue], held)

    # -- positions

    def reset(self, queue: int, offset: int) -> None:
        """Read a queue from ``offset`` on; everything held is dropped, its receipts are void."""
        self.queues[queue] = QueueProgress(offset)
        self.leased = sum(1 for progress in self.queues.values() for held in progress.held.values() if held.visible_ms)
        self._deadlines = [entry for entry in self._deadlines if entry[1] != queue]
        heapq.heapify(self._deadlines)

    def trim(self, queue: int, minimum: int) -> None:
        """Messages below ``minimum`` were deleted: forget them."""
        progress = self.queues.get(queue)
        if progress is None:
            return
        for held in [held for offset, held in progress.held.items() if offset < minimum]:
            progress.deferred -= not held.attempt
            self.acknowledge(held)
        progress.next = max(progress.next, minimum)

    # -- replaying the journal

    def restore_lease(self, held: Held, following: int) -> None:
        """A LEASE (or, with no attempt, a deferral) as journaled; ``following`` is the queue's next offset then."""
        progress = self.queues.setdefault(held.queue, QueueProgress(0))
        progress.next = max(progress.next, following)
        known = progress.held.pop(held.offset, None)
        if known is not None:
            self.leased -= bool(known.visible_ms)
            progress.deferred -= not known.attempt
        progress.held[held.offset] = held
        self.serial = max(self.serial, held.serial)
        if self.ordered:
            offsets = progress.keys.setdefault(held.key, [])
            if held.offset not in offsets:
                insort(offsets, held.offset)
            progress.free[held.key] = None
        if held.attempt and held.visible_ms:
            self.leased += 1
            self._watch(held)
        elif held.attempt:
            self._make_ready(progress, held)
        else:
            progress.deferred += 1
            if not self.ordered:
                heapq.heappush(progress.ready, held.offset)

    def restore_ack(self, queue: int, offset: int) -> None:
        """An ACK as journaled; acknowledging what is not held has no effect."""
        progress = self.queues.get(queue)
        held = progress.held.get(offset) if progress is not None else None
        if progress is not None and held is not None:
            progress.deferred -= not held.attempt
            self.acknowledge(held)

    def held(self) -> Iterator[Held]:
        """Everything held, in no particular order."""
        for progress in self.queues.values():
            yield from progress.held.values()

    def hold_as(self, *, ordered: bool) -> None:
        """The group became (un)ordered: rebuild what depends on it."""
        if ordered == self.ordered:
            return
        self.ordered = ordered
        for progress in self.queues.values():
            progress.keys, progress.free, progress.ready = {}, {}, []
            for held in sorted(progress.held.values(), key=lambda held: held.offset):
                if ordered:
                    progress.keys.setdefault(held.key, []).append(held.offset)
                    progress.free[held.key] = None
                elif not held.visible_ms and not held.dead:
                    heapq.heappush(progress.ready, held.offset)

    # -- bookkeeping

    def _make_ready(self, progress: QueueProgress, held: Held) -> None:
        held.attempt_id = ""
        if self.ordered:
            self._refree(progress, held.key)
        else:
            heapq.heappush(progress.ready, held.offset)

    def _refree(self, progress: QueueProgress, key: str) -> None:
        """Note whether a message group has something to hand out: nothing leased or dead among what was handed out."""
        for offset in progress.keys[key]:
            held = progress.held[offset]
            if held.visible_ms or held.dead:
                progress.free.pop(key, None)
                return
            if not held.attempt:
                break
        progress.free[key] = None

    def _watch(self, held: Held) -> None:
        heapq.heappush(self._deadlines, (held.visible_ms, held.queue, held.offset, held.serial))

    def _compact(self) -> None:
        """Drop deadlines of leases that have ended once they outnumber the live ones, so memory follows what is held."""
        if self._stale > 64 and self._stale * 2 > len(self._deadlines):
            self._deadlines = [
                (held.visible_ms, held.queue, held.offset, held.serial) for held in self.held() if held.visible_ms
            ]
            heapq.heapify(self._deadlines)
            self._stale = 0


def _elsewhere(held: Held, terms: Terms) -> bool:
    return held.dead or (held.visible_ms > 0 and not _same_call(held, terms))


def _same_call(held: Held, terms: Terms) -> bool:
    return bool(terms.attempt_id) and held.attempt_id == terms.attempt_id and held.visible_ms > 0
