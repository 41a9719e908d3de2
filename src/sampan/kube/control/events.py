"""Recording Events as upstream's recorder does: repeats are counted, floods combined, spam dropped.

An event passes three steps, all in memory:

1. *Aggregation*: more than ten events within ten minutes that differ only in their message become one,
   ``(combined from similar events): ...``.
2. *Counting*: an event equal to one of the last hour raises the earlier one's ``count`` by a patch.
3. *Spam filter*: each object has a bucket of 25 events that refills by one every five minutes.

What passes waits a moment (`STEP`), and then all that waits is written at once, by a background task: what an event tells of
is under way just then, and should not have to share the processor and the disk with it. All recorders of a process write at
the same moments, so that their events go into one batch of the store. An event that is counted up while it waits is
written once. The caller is never delayed and never fails. A component that ends first writes what waits.

An event that finds no server (or one that is overloaded or fails) steps aside, `TRIES` times `RETRY_AFTER` apart as upstream's,
the first time with jitter; later events pass it meanwhile. A newer count of the same event takes its place. Both queues
together are bounded, what does not fit is dropped and counted, and the log says so once until an event is written again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import secrets
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from sys import intern
from typing import Literal, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from sampan.kernel.clock import EPSILON, Clock, Timer
from sampan.kernel.tasks import Tasks
from sampan.kube.client import Client
from sampan.kube.objects import Object, dig
from sampan.kube.resources import EVENTS
from sampan.kube.status import ApiError
from sampan.kube.types.duration import format_time

log = logging.getLogger(__name__)

V = TypeVar("V")

SIMILAR_LIMIT = 10
"""Similar events with different messages before they are combined."""
SIMILAR_WINDOW = 600.0
"""Seconds without a similar event after which they are told apart again."""
COUNTED_FOR = 3600.0
"""Seconds without an equal event after which one begins anew: the earlier is gone from the API by then."""
BURST = 25
"""Events an object may cause at once."""
REFILL = 300.0
"""Seconds in which an object regains one event."""
CACHE = 4096
"""Objects and events remembered at most."""
WAITING = 1000
"""Events waiting to be written, for the first time or again, at most."""
STEP = 0.1
"""Seconds between the moments at which events are written; an event waits for one to two of them."""
AT_ONCE = 100
"""Events being written at a time."""
LAST = 2.0
"""Seconds that a component which ends may take to write what waits."""
_OFFSET = secrets.randbits(20)
"""Nanoseconds that set this process's events apart from those of others."""
_newest: WeakKeyDictionary[Clock, int] = WeakKeyDictionary()
"""The stamp in the newest event's name, of all recorders with the same clock."""
TRIES = 12
"""How often an event is sent to a server that is not there or fails."""
RETRY_AFTER = 10.0
"""Seconds between those tries; only a share of it, by chance, before the second."""


class _About(NamedTuple):
    kind: str
    namespace: str
    name: str
    uid: str
    api_version: str


@dataclass(slots=True)
class _Bucket:
    subject: _About
    tokens: float
    filled: float

    def fill(self, now: float) -> bool:
        """Whether it is full."""
        self.tokens = min(BURST, self.tokens + (now - self.filled) / REFILL)
        self.filled = now
        return self.tokens >= BURST

    def take(self, now: float) -> bool:
        """Take one out, if there is one."""
        self.fill(now)
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


@dataclass(slots=True)
class _Similar:
    last: float
    messages: frozenset[str] | str
    """A single one, as it is mostly, stands by itself."""

    def add(self, message: str) -> int:
        """How many different messages there are with this one, which is remembered while they are fewer than `SIMILAR_LIMIT`."""
        known = self.messages
        if isinstance(known, str):
            if message != known:
                self.messages = frozenset((known, message))
                return 2
            return 1
        if message in known:
            return len(known)
        if len(known) + 1 < SIMILAR_LIMIT:
            self.messages = known | {message}
        return len(known) + 1


@dataclass(slots=True)
class _Counted:
    name: str
    first: str
    count: int
    last: float
    written: bool = False


class _Due(NamedTuple):
    """A moment by the platform's clock and, should that stand still, by the machine's; whichever comes first."""

    platform: float
    machine: float


class _Waiting(NamedTuple):
    event: Object
    counted: _Counted
    tries: int = 0
    due: _Due | None = None
    """When it is tried again."""


class _Cache(dict[object, V]):
    """A mapping that forgets what was used least recently beyond `CACHE`."""

    def recall(self, key: object) -> V | None:
        value = self.pop(key, None)
        if value is not None:
            self[key] = value
        return value

    def keep(self, key: object, value: V) -> V:
        self[key] = value
        while len(self) > CACHE:
            del self[next(iter(self))]
        return value

    def drop(self, stale: Callable[[V], bool]) -> None:
        kept = {key: value for key, value in self.items() if not stale(value)}
        self.clear()  # gives its table back, too
        self.update(kept)


class EventRecorder:
    """Records events on behalf of one component; implements ``control.interface.Recorder``."""

    def __init__(self, client: Client, clock: Clock, tasks: Tasks, component: str, host: str = "") -> None:
        self._client = client
        self._clock = clock
        self._tasks = tasks
        self._source = {"component": component} | ({"host": host} if host else {})
        self._buckets: _Cache[_Bucket] = _Cache()
        self._similar: _Cache[_Similar] = _Cache()
        self._counted: _Cache[_Counted] = _Cache()
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()
        """By the event's name, oldest first."""
        self._aside: OrderedDict[str, _Waiting] = OrderedDict()
        """What is to be tried again, by the event's name, soonest first."""
        self._machine = Clock()
        self._forgetting: Timer | None = None
        self._sending = False
        self._arrived = asyncio.Event()
        self._told = False
        self.dropped = 0
        """Events not written: spam, or no server for too long."""

    def event(
        self, about: Object, type: Literal["Normal", "Warning"], reason: str, message: str, *, action: str = ""
    ) -> None:
        """Record that something happened to an object."""
        metadata = about["metadata"]
        subject = _About(
            intern(about.get("kind", "")),
            intern(metadata.get("namespace") or ""),
            metadata["name"],
            metadata.get("uid", ""),
            intern(about.get("apiVersion", "")),
        )
        now = self._clock.monotonic()
        bucket = self._buckets.recall(subject) or self._buckets.keep(subject, _Bucket(subject, BURST, now))
        subject = bucket.subject  # what is remembered of an object's events refers to it in one place
        if self._forgetting is None:
            self._forgetting = self._clock.call_later(SIMILAR_WINDOW, self._forget)
        kindred: object = (subject, type, reason)
        combined = self._combine(kindred, message, now)
        key: object = kindred if combined else (kindred, message)
        if combined:
            message = f"(combined from similar events): {message}"
        stamp = format_time(self._clock.now())
        counted = self._counted.recall(key)
        if counted is None:
            counted = self._counted.keep(key, _Counted(f"{subject.name}.{self._nanoseconds():x}", stamp, 0, now))
        counted.count += 1
        counted.last = now
        if not bucket.take(now):
            self.dropped += 1
            return
        involved = {
            "kind": subject.kind,
            "namespace": subject.namespace,
            "name": subject.name,
            "uid": subject.uid,
            "apiVersion": subject.api_version,
            "resourceVersion": metadata.get("resourceVersion", ""),
        }
        self._send(
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": counted.name, "namespace": subject.namespace or "default"},
                "involvedObject": {name: value for name, value in involved.items() if value},
                "reason": reason,
                "message": message,
                "source": self._source,
                "firstTimestamp": counted.first,
                "lastTimestamp": stamp,
                "count": counted.count,
                "type": type,
                "reportingComponent": self._source["component"],
                "reportingInstance": self._source.get("host", ""),
            }
            | ({"action": action} if action else {}),
            counted,
        )

    def _combine(self, kindred: object, message: str, now: float) -> bool:
        similar = self._similar.recall(kindred)
        if similar is None or now - similar.last > SIMILAR_WINDOW:
            similar = self._similar.keep(kindred, _Similar(now, message))
        similar.last = now
        return similar.add(message) >= SIMILAR_LIMIT

    def _forget(self) -> None:
        """Let go of what no longer makes a difference, now and every while until nothing is left."""
        now = self._clock.monotonic()
        self._buckets.drop(lambda bucket: bucket.fill(now))
        self._similar.drop(lambda similar: now - similar.last > SIMILAR_WINDOW)
        self._counted.drop(lambda counted: now - counted.last > COUNTED_FOR)
        left = self._buckets or self._similar or self._counted
        self._forgetting = self._clock.call_later(SIMILAR_WINDOW, self._forget) if left else None

    def _nanoseconds(self) -> int:
        # Two events in one reading of the clock (which may stand still) still need two names, whoever records them.
        stamp = max(self._clock.time_ns() + _OFFSET, _newest.get(self._clock, 0) + 1)
        _newest[self._clock] = stamp
        return stamp

    def _send(self, event: Object, counted: _Counted) -> None:
        before = self._waiting.pop(counted.name, None) or self._aside.pop(counted.name, None)
        if len(self._waiting) + len(self._aside) >= WAITING:
            (self._aside or self._waiting).popitem(last=False)
            self._drop("too many wait to be written")
        self._waiting[counted.name] = _Waiting(event, counted, before.tries if before else 0)
        self._arrived.set()
        if not self._sending:
            self._sending = True
            try:
                self._tasks.start(f"{self._source['component']}/events", self._write())
            except RuntimeError:
                # The component is ending, and its tasks are closed.
                self._sending = False
                self._waiting.clear()
                self._aside.clear()

    def _drop(self, why: str) -> None:
        self.dropped += 1
        if not self._told:
            self._told = True
            log.warning("events of %s are dropped: %s", self._source["component"], why)

    async def _write(self) -> None:
        try:
            while self._waiting or self._aside:
                if not self._waiting:
                    self._arrived.clear()
                    await self._reach(self._soonest(), self._arrived)
                # The next moment at which all recorders write.
                now = self._clock.monotonic()
                await self._reach(self._in((math.floor(now / STEP) + 2) * STEP - now), asyncio.Event())
                self._bring_back()
                while self._waiting:
                    batch = [self._waiting.popitem(last=False)[1] for _ in range(min(AT_ONCE, len(self._waiting)))]
                    await self._write_all(batch)
        except asyncio.CancelledError:
            await self._last()
            raise
        finally:
            self._sending = False

    async def _last(self) -> None:
        """Write what waits, once and quickly."""
        left = [*self._aside.values(), *self._waiting.values()]
        self._aside.clear()
        self._waiting.clear()
        with suppress(TimeoutError):
            async with self._clock.patience(LAST):
                outcomes = await asyncio.gather(*map(self._put, left), return_exceptions=True)
                self.dropped += sum(1 for outcome in outcomes if outcome is not None)

    async def _write_all(self, batch: list[_Waiting]) -> None:
        """Write a batch; what finds no server steps aside."""
        left = {each.counted.name: each for each in batch}

        async def write(each: _Waiting) -> None:
            if not await self._failed(each):
                del left[each.counted.name]

        try:
            await asyncio.gather(*map(write, batch))
        except asyncio.CancelledError:
            # What was under way may not have arrived; it is written once more with the rest.
            self._waiting = OrderedDict({**left, **self._waiting})
            raise
        # One chance for all, so that they share a batch of the store again.
        chance = random.random()  # noqa: S311
        for name, each in left.items():
            tries = each.tries + 1
            if tries >= TRIES:
                self._drop(f"the server did not take {name} in {TRIES} tries")
            elif name in self._waiting:
                self._waiting[name] = self._waiting[name]._replace(tries=tries)
            else:
                due = self._in(RETRY_AFTER * (chance if tries == 1 else 1))
                self._aside[name] = each._replace(tries=tries, due=due)

    async def _failed(self, waiting: _Waiting) -> bool:
        """Write one event; whether it is worth another try."""
        name = waiting.counted.name
        try:
            await self._put(waiting)
        except ApiError as error:
            if error.code >= 500 or error.code == 429:
                return True
            self.dropped += 1
            if dig(error.details, "causes", 0, "reason") != "NamespaceTerminating":
                log.warning("the server refuses event %s: %s", name, error)
        except Exception:
            self.dropped += 1
            log.exception("cannot write event %s", name)
        else:
            self._told = False
        return False

    # -- when

    def _in(self, seconds: float) -> _Due:
        return _Due(self._clock.monotonic() + seconds, self._machine.monotonic() + seconds)

    def _soonest(self) -> _Due:
        dues = [each.due for each in self._aside.values() if each.due is not None]
        return _Due(min(due.platform for due in dues), min(due.machine for due in dues))

    async def _reach(self, due: _Due, reached: asyncio.Event) -> None:
        """Wait for a moment, or until ``reached`` is set."""
        timers = self._clock.call_at(due.platform, reached.set), self._machine.call_at(due.machine, reached.set)
        try:
            await reached.wait()
        finally:
            for timer in timers:
                timer.cancel()

    def _bring_back(self) -> None:
        """Put what is due again before what waits; it is older."""
        platform, machine = self._clock.monotonic() + EPSILON, self._machine.monotonic() + EPSILON
        for name, each in reversed(list(self._aside.items())):
            if each.due is None or each.due.platform <= platform or each.due.machine <= machine:
                self._waiting[name] = self._aside.pop(name)
                self._waiting.move_to_end(name, last=False)

    async def _put(self, waiting: _Waiting) -> None:
        event, counted = waiting.event, waiting.counted
        metadata = event["metadata"]
        if counted.written:
            patch = {name: event[name] for name in ("count", "message", "lastTimestamp")}
            try:
                await self._client.patch(EVENTS, metadata["name"], patch, metadata["namespace"])
                return
            except ApiError as error:
                if not error.not_found:
                    raise
        try:
            await self._client.create(EVENTS, event, metadata["namespace"])
        except ApiError as error:
            # An earlier try did arrive.
            if not error.already_exists:
                raise
        counted.written = True
