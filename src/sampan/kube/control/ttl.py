"""Events expire: an hour after they were last written they are deleted.

Only names and times are kept in memory, in a heap by expiry. Repeats of an event push its expiry out, as every write does
upstream.
"""

from __future__ import annotations

import asyncio
import heapq
import logging

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


class EventExpiry:
    """Deletes old Events; also a reflector's sink."""

    name = "event-ttl"

    def __init__(self, context: ControlContext, ttl: float = TTL) -> None:
        self._client = context.client
        self._clock = context.clock
        self._tasks = context.tasks
        self._ttl = ttl
        self._revisions: dict[Key, str] = {}
        self._expiries: list[tuple[float, Key, str]] = []
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
        heapq.heappush(self._expiries, (written + self._ttl, key, revision))
        if self._expiries[0][1] == key:
            self._sooner.set()

    async def _run(self) -> None:
        while True:
            while not self._expiries:
                self._sooner.clear()
                await self._sooner.wait()
            expiry, key, revision = self._expiries[0]
            if self._revisions.get(key) != revision:
                heapq.heappop(self._expiries)
                continue
            wait = expiry - self._clock.time()
            if wait > 0:
                await self._clock.sleep(wait)
                continue
            try:
                await self._client.delete(EVENTS, key.name, key.namespace, revision=revision)
            except ApiError as error:
                if not error.not_found and not error.conflict:
                    log.warning("cannot delete the expired event %s: %s", key, error)
                    await self._clock.sleep(RETRY)
                    continue
            if self._expiries and self._expiries[0][2] == revision:
                heapq.heappop(self._expiries)


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
