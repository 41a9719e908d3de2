"""What a controller has just written and its informer has not shown yet.

An informer's cache trails the writes of the controller that reads it. Acting on the cache alone would create a pod twice or
count a deleted one. An `Overlay` remembers each create and delete until the informer reports that object (or, should the
report be lost to a relist, until `FORGET_AFTER`), and corrects what the cache says.
"""

from __future__ import annotations

from collections.abc import Iterable

from sampan.kernel.clock import Clock
from sampan.kube.control.interface import Informer
from sampan.kube.objects import Key, Object, controller_of

FORGET_AFTER = 60.0
"""Seconds after which an unreported write is forgotten."""


class Overlay:
    """Corrections to one informer's cache, by controller owner."""

    def __init__(self, informer: Informer, clock: Clock) -> None:
        self._informer = informer
        self._clock = clock
        self._created: dict[str, dict[str, tuple[float, Object]]] = {}
        self._deleted: dict[str, float] = {}
        informer.on_change(self._seen)

    def created(self, owner_uid: str, obj: Object) -> None:
        """This object was just created for an owner."""
        if self._cached(obj) is not None:
            return  # beside the store the informer is told before the writer is
        self._created.setdefault(owner_uid, {})[obj["metadata"]["uid"]] = (self._clock.monotonic(), obj)

    def deleted(self, obj: Object) -> None:
        """This object was just deleted."""
        cached = self._cached(obj)
        if cached is not None and not cached["metadata"].get("deletionTimestamp"):
            self._deleted[obj["metadata"]["uid"]] = self._clock.monotonic()

    def _cached(self, obj: Object) -> Object | None:
        cached = self._informer.get(Key.of(obj))
        return cached if cached is not None and cached["metadata"]["uid"] == obj["metadata"]["uid"] else None

    def correct(self, owner_uid: str, cached: Iterable[Object]) -> list[Object]:
        """The cached objects of an owner, without what was just deleted, with what was just created."""
        horizon = self._clock.monotonic() - FORGET_AFTER
        objects = [obj for obj in cached if self._deleted.get(obj["metadata"]["uid"], 0.0) <= horizon]
        present = {obj["metadata"]["uid"] for obj in objects}
        for uid, (since, obj) in list(self._created.get(owner_uid, {}).items()):
            if since <= horizon:
                self._forget(owner_uid, uid)
            elif uid not in present and uid not in self._deleted:
                objects.append(obj)
        return objects

    def _seen(self, old: Object | None, new: Object | None) -> None:
        obj = new or old
        if obj is None:
            return
        uid = obj["metadata"]["uid"]
        if new is None or new["metadata"].get("deletionTimestamp"):
            self._deleted.pop(uid, None)
        owner = controller_of(obj)
        if owner is not None:
            self._forget(owner["uid"], uid)

    def _forget(self, owner_uid: str, uid: str) -> None:
        created = self._created.get(owner_uid)
        if created is not None:
            created.pop(uid, None)
            if not created:
                del self._created[owner_uid]
