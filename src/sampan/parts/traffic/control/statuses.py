"""Writes the statuses that the sources want, behind the publications: traffic never waits for them.

An entry is looked at when what is wanted of it changes, and when its object does (somebody else may have written over it).
Conditions keep their transition times, and entries of other controllers in the lists of parents and ancestors stay.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from sampan.kube.control.controller import ControlContext
from sampan.kube.objects import Key, Object, Resource, copy
from sampan.kube.status import ApiError
from sampan.parts.traffic.sources.gateway_api import CONTROLLER, Statuses

log = logging.getLogger(__name__)

AGAIN = 2.0
"""Seconds until a status is written again that the API could not take."""
SHARED_LISTS = {"parents": "parentRef", "ancestors": "ancestorRef"}
"""Lists in which every controller has entries, and what an entry is about."""


class StatusWriter:
    """Brings the objects' statuses in step with what is wanted."""

    def __init__(self, context: ControlContext, current: Callable[[Resource, Key], Object | None]) -> None:
        """``current``: an object as it is known now."""
        self._context = context
        self._current = current
        self._wanted: Statuses = {}
        self._open: dict[tuple[Resource, Key], None] = {}
        """Entries to look at, the longest waiting first."""
        self._some = asyncio.Event()

    def want(self, resource: Resource, key: Key, status: Object | None) -> None:
        """An object shall have this status; None: nobody cares any more."""
        if status is None:
            self._wanted.pop((resource, key), None)
            return
        self._wanted[resource, key] = status
        self.look(resource, key)

    def look(self, resource: Resource, key: Key) -> None:
        """An object changed."""
        if (resource, key) in self._wanted:
            self._open[resource, key] = None
            self._some.set()

    async def run(self) -> None:
        """Write, one after the other."""
        while True:
            await self._some.wait()
            self._some.clear()
            while self._open:
                entry = next(iter(self._open))
                del self._open[entry]
                await self._settle(*entry)

    async def _settle(self, resource: Resource, key: Key) -> None:
        status, current = self._wanted.get((resource, key)), self._current(resource, key)
        if status is None or current is None:
            return
        before = current.get("status") or {}
        stamp = self._context.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        wanted = dated(status, before, stamp)
        if all(wanted[name] == (before.get(name) or ([] if name in SHARED_LISTS else None)) for name in wanted):
            return
        try:
            await self._context.client.patch(
                resource, key.name, {"status": wanted}, key.namespace or None, subresource="status"
            )
        except ApiError as error:
            if error.code == 429 or error.code >= 500:
                log.warning("status of %s %s is written again in %.0f s: %s", resource, key, AGAIN, error.message)
                self._context.clock.call_later(AGAIN, self.look, resource, key)
            elif not (error.not_found or error.conflict):
                log.warning("status of %s %s: %s", resource, key, error.message)


def dated(wanted: Object, current: Object, stamp: str) -> Object:
    """The wanted status as it is written: others' entries kept, ``lastTransitionTime`` where a condition stays as it was."""
    made: Object = copy(wanted)
    _date(made.get("conditions"), current.get("conditions"), stamp)
    for listener in made.get("listeners") or ():
        known = (one for one in current.get("listeners") or () if one["name"] == listener["name"])
        before: Object = next(known, {})
        _date(listener["conditions"], before.get("conditions"), stamp)
    for name, reference in SHARED_LISTS.items():
        if name not in made:
            continue
        there = current.get(name) or []
        for entry in made[name]:
            same = (
                one
                for one in there
                if (one[reference], one["controllerName"]) == (entry[reference], entry["controllerName"])
            )
            earlier: Object = next(same, {})
            _date(entry["conditions"], earlier.get("conditions"), stamp)
        made[name] = [one for one in there if one.get("controllerName") != CONTROLLER] + made[name]
    return made


def _date(conditions: list[Object] | None, before: list[Object] | None, stamp: str) -> None:
    known = {one["type"]: one for one in before or ()}
    for condition in conditions or ():
        old = known.get(condition["type"])
        unchanged = old is not None and old["status"] == condition["status"]
        condition.setdefault(
            "lastTransitionTime", old["lastTransitionTime"] if old is not None and unchanged else stamp
        )
