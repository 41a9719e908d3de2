"""Events expire: an hour after they were last written they are deleted.

Only names and times are kept in memory, in a heap by expiry. Repeats of an event push its expiry out, as every write does
upstream.

What is due goes in rounds. The deletions of a round are under way together, so that the store makes them durable in one or two
batches; a round begins a slice at a time and is small enough that neither beginning nor publishing it holds the event loop up.
Watchers see one DELETED an Event, as upstream's do. A deletion that fails is due again a little later and holds up no other.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from contextlib import suppress
from typing import NamedTuple

from sampan.kernel.clock import EPSILON
from sampan.kube.client import WatchEvent
from sampan.kube.control.controller import ControlContext
from sampan.kube.control.reflector import Reflector
from sampan.kube.objects import Key, Object
from sampan.kube.resources import EVENTS
from sampan.kube.status import ApiError
from sampan.kube.types.duration import parse_time

log = logging.getLogger(__name__)

TTL = 3600.0
"""Seconds an event lives after its last write."""
RETRY = 10.0
"""Seconds until an event that could not be deleted is due again."""
ROUND = 48
"""Deletions under way together: what is published at once when their batch is durable."""
SLICE = 16
"""Deletions begun in one turn of the event loop."""


class _Expiry(NamedTuple):
    at: float
    key: Key
    revision: str


class EventExpiry:
    """Deletes old Events; also a reflector's sink."""

    name = "event-ttl"

    def __init__(self, context: ControlContext, ttl: float = TTL) -> None:
        self._client = context.client
        self._clock = context.clock
        self._tasks = context.tasks
        self._ttl = ttl
        self._revisions: dict[Key, str] = {}
        self._expiries: list[_Expiry] = []
        self._sooner = asyncio.Event()

    async def start(self) -> None:
        """Watch events and delete the old ones."""
        reflector = Reflector(self._client, self._clock, EVENTS, self)
        self._tasks.keep(f"{self.name}/watch", reflector.run)
        self._tasks.keep(f"{self.name}/delete", self._run)

    def replace(self, objects: list[Object]) -> None:
        """These are all events there are."""
        self._revisions.clear()
        self._expiries.clear()
        for obj in objects:
            self._put(obj, _last(obj, self._clock.time()))

    def change(self, event: WatchEvent) -> None:
        """Follow one event's write or end."""
        if event.type == "DELETED":
            self._revisions.pop(Key.of(event.object), None)
        else:
            self._put(event.object, self._clock.time())

    def _put(self, obj: Object, written: float) -> None:
        key, revision = Key.of(obj), obj["metadata"]["resourceVersion"]
        if self._revisions.get(key) == revision:
            return
        self._revisions[key] = revision
        self._push(_Expiry(written + self._ttl, key, revision))

    def _push(self, expiry: _Expiry) -> None:
        heapq.heappush(self._expiries, expiry)
        if self._expiries[0] is expiry:
            self._sooner.set()

    async def _run(self) -> None:
        while True:
            self._sooner.clear()
            due = self._due()
            if due:
                await self._delete_all(due)
            elif self._expiries:
                with suppress(TimeoutError):
                    async with self._clock.timeout(self._expiries[0].at - self._clock.time()):
                        await self._sooner.wait()
            else:
                await self._sooner.wait()

    def _due(self) -> list[_Expiry]:
        """Take the next round from the heap, and what was overtaken by a later write with it."""
        due: list[_Expiry] = []
        now = self._clock.time() + EPSILON
        while self._expiries and len(due) < ROUND:
            first = self._expiries[0]
            current = self._revisions.get(first.key) == first.revision
            if current and first.at > now:
                break
            heapq.heappop(self._expiries)
            if current:
                due.append(first)
        return due

    async def _delete_all(self, due: list[_Expiry]) -> None:
        async with asyncio.TaskGroup() as round:
            for number, expiry in enumerate(due):
                if number % SLICE == 0:
                    await self._clock.sleep(0)
                round.create_task(self._delete(expiry))

    async def _delete(self, expiry: _Expiry) -> None:
        key = expiry.key
        try:
            await self._client.delete(EVENTS, key.name, key.namespace, revision=expiry.revision)
        except Exception as error:
            # A conflict: it was written again, and its new expiry comes with the watch.
            if isinstance(error, ApiError) and (error.not_found or error.conflict):
                return
            # Whatever it is: else it would end the round, whose other events nobody would delete then.
            log.warning("cannot delete the expired event %s: %s", key, error)
            self._push(_Expiry(self._clock.time() + RETRY, key, expiry.revision))


def _last(event: Object, now: float) -> float:
    """When an event was last written, as far as it tells; never in the future."""
    series = event.get("series") or {}
    for stamp in (
        series.get("lastObservedTime"),
        event.get("lastTimestamp"),
        event.get("eventTime"),
        event["metadata"].get("creationTimestamp"),
    ):
        if stamp:
            return min(parse_time(stamp).timestamp(), now)
    return now
