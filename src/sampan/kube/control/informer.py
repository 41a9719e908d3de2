"""Informers: decoded caches of collections, shared by all controllers of a process.

`SharedInformers` hands out one `SharedInformer` a resource (and selector), each fed by a `Reflector`. Listeners are called
synchronously as the cache changes, so a listener that looks at the cache sees the very state it is told about.

Cached objects lack ``metadata.managedFields``: no controller reads them, and they would be a quarter of the memory. The
server keeps an object's managed fields when an update comes without any, so writing such an object back is safe. Equal
parts of cached objects are kept once (`compact.Compactor`). Where a `Feed` of the same process fills the cache, what nobody
uses for a while is held only as the store's own encoding (`held.Held`), and decoded again for whoever asks.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.kube.client import Client, WatchEvent
from sampan.kube.control.compact import Compactor
from sampan.kube.control.held import Encoding, Held, KeysByValue
from sampan.kube.control.interface import Index
from sampan.kube.control.reflector import Feed, Reflector
from sampan.kube.objects import Key, Object, Resource, controller_of
from sampan.kube.types import selectors

log = logging.getLogger(__name__)

Listener = Callable[[Object | None, Object | None], None]

SWEEP = 5.0
"""Seconds of the machine between two looks at what nobody uses; what was not used in between is held encoded. Decoding it again
takes some 20 microseconds, so that being wrong once a sweep costs next to nothing."""
SLICE = 200
"""Objects frozen at a time: half a millisecond."""
COMPACT_SLICE = 10
"""Objects compacted at a time: a millisecond."""


def _owner(obj: Object) -> Iterable[str]:
    owner = controller_of(obj)
    return () if owner is None else (owner["uid"],)


class SharedInformer:
    """A cache of one collection; see ``control.interface.Informer``."""

    def __init__(self, resource: Resource, compactor: Compactor | None = None) -> None:
        self.resource = resource
        self._compactor = compactor or Compactor()
        self._held = Held()
        self._indexes: dict[str, Index] = {"owner": _owner}
        self._indexed: dict[str, KeysByValue] = {"owner": KeysByValue()}
        self._listeners: list[Listener] = []
        self._synced = asyncio.Event()

    # -- reading

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Key) -> Object | None:
        """The cached object."""
        return self._held.get(key)

    def objects(self, namespace: str | None = None, labels: Mapping[str, str] | None = None) -> list[Object]:
        """Cached objects of a namespace (None: all) that carry these labels."""
        if not labels:
            return self._held.within(namespace)
        wanted = labels.items()
        return self._held.labelled(namespace, lambda carried: wanted <= carried.items())

    def select(self, namespace: str | None, selector: Mapping[str, Any] | None) -> list[Object]:
        """Cached objects matching a LabelSelector; None matches nothing, an empty one everything."""
        parsed = selectors.of_object(selector)
        if parsed.nothing:
            return []
        if parsed.everything:
            return self._held.within(namespace)
        return self._held.labelled(namespace, parsed.matches)

    def indexed(self, index: str, value: str) -> list[Object]:
        """Cached objects with this value under a named index.

        Raises:
            KeyError: there is no such index.
        """
        return self._held.of(self._indexed[index].of(value))

    @property
    def synced(self) -> bool:
        """The first list has arrived."""
        return self._synced.is_set()

    async def wait_synced(self) -> None:
        """Wait for the first list."""
        await self._synced.wait()

    # -- arranging

    def add_index(self, name: str, index: Index) -> None:
        """Add an index over what is cached and what comes; a no-op when the name exists."""
        if name in self._indexes:
            return
        self._indexes[name] = index
        table = KeysByValue()
        for key in list(self._held):
            (obj,) = self._held.of((key,))
            for value in self._values(index, obj):
                table.add(value, key)
        self._indexed[name] = table

    def on_change(self, listener: Listener) -> None:
        """Call ``listener(old, new)`` for what is cached already and after each change; None stands for absent."""
        self._listeners.append(listener)
        for obj in self._held.of(list(self._held)):
            self._tell(listener, None, obj)

    def freezable(self, encoding: Encoding) -> None:
        """From now on, what nobody uses may be held encoded (`rest`); ``encoding`` gives what decodes to a cached object."""
        self._held.freezable(encoding)

    def rest(self) -> Iterator[int]:
        """Hold encoded what nobody used since this was last called, step by step; yields how many objects a step let go."""
        unused, lasting = self._held.unused()
        for at in range(0, len(unused), SLICE):
            yield sum(map(self._held.freeze, unused[at : at + SLICE]))
        for at in range(0, len(lasting), COMPACT_SLICE):
            for key in lasting[at : at + COMPACT_SLICE]:
                self._held.improve(key, self._compactor.compact)
            yield 0

    @property
    def thaws(self) -> int:
        """How many objects were decoded again for somebody who asked."""
        return self._held.thaws

    # -- the reflector's side

    def replace(self, objects: list[Object]) -> None:
        """Become equal to a fresh list, telling listeners only what differs."""
        listed = {Key.of(obj): obj for obj in objects}
        for key in [key for key in self._held if key not in listed]:
            self._set(key, None)
        for key, obj in listed.items():
            self._put(key, obj)
        self._synced.set()

    def change(self, event: WatchEvent) -> None:
        """Follow one change."""
        key = Key.of(event.object)
        if event.type == "DELETED":
            old = self._held.get(key)
            if old is not None:
                # The last state is what a listener wants to know of what is gone.
                self._store(key, self._compactor.compact(event.object, old))
                self._set(key, None)
        else:
            self._put(key, event.object)

    def _put(self, key: Key, obj: Object) -> None:
        old = self._held.get(key)
        if old is not None:
            was, now = old["metadata"], obj["metadata"]
            if was.get("resourceVersion") == now.get("resourceVersion"):
                return
            if was.get("uid") != now.get("uid"):
                # Deleted and created again while nobody watched: two changes, or dependents of the old one are missed.
                self._set(key, None)
                old = None
        self._set(key, self._compactor.compact(obj, old))

    def _set(self, key: Key, new: Object | None) -> None:
        old = self._store(key, new)
        for listener in self._listeners:
            self._tell(listener, old, new)

    def _store(self, key: Key, new: Object | None) -> Object | None:
        old = self._held.get(key)
        if new is None:
            self._held.drop(key)
        else:
            self._held.put(key, new)
        for name, index in self._indexes.items():
            table = self._indexed[name]
            before = () if old is None else self._values(index, old)
            after = () if new is None else self._values(index, new)
            if before != after:
                for value in before:
                    table.discard(value, key)
                for value in after:
                    table.add(value, key)
        return old

    def _values(self, index: Index, obj: Object) -> tuple[str, ...]:
        try:
            return tuple(index(obj))
        except Exception:
            # One odd object is found by no value; it must not keep the cache from following all others.
            log.exception("an index of the %s informer failed for %s", self.resource, Key.of(obj))
            return ()

    def _tell(self, listener: Listener, old: Object | None, new: Object | None) -> None:
        try:
            listener(old, new)
        except Exception:
            # One listener's fault must not keep the others, or the cache, from following.
            log.exception("a listener of the %s informer failed", self.resource)


class SharedInformers:
    """The process's informers; implements ``control.interface.Informers``."""

    def __init__(self, client: Client, clock: Clock, tasks: Tasks, feed: Feed | None = None) -> None:
        self._feed = feed
        self._client = client
        self._clock = clock
        self._tasks = tasks
        self._compactor = Compactor()
        self._informers: dict[tuple[Resource, str | None, str | None], SharedInformer] = {}
        self._fed: list[SharedInformer] = []
        self._machine = Clock()
        """How long a thing lies in memory is the machine's affair; the platform's clock may race or stand still."""

    def informer(
        self, resource: Resource, *, label_selector: str | None = None, field_selector: str | None = None
    ) -> SharedInformer:
        """The shared informer, started on first use."""
        wanted = (resource, label_selector, field_selector)
        informer = self._informers.get(wanted)
        if informer is None:
            informer = self._informers[wanted] = SharedInformer(resource, self._compactor)
            whole = label_selector is None and field_selector is None
            if self._feed is not None and whole and self._feed.follow(resource, informer):
                informer.freezable(functools.partial(self._feed.encoding, resource))
                if not self._fed:
                    self._tasks.keep("informers/rest", self._sweep)
                self._fed.append(informer)
                return informer
            reflector = Reflector(
                self._client,
                self._clock,
                resource,
                informer,
                label_selector=label_selector,
                field_selector=field_selector,
            )
            self._tasks.keep(f"informer/{resource}", reflector.run)
        return informer

    async def wait_synced(self) -> None:
        """Wait until every informer that was asked for has its first list."""
        for informer in list(self._informers.values()):
            await informer.wait_synced()

    async def rest(self) -> int:
        """Hold encoded what nobody used since this was last called; returns how many objects that were."""
        frozen = 0
        for informer in list(self._fed):
            for let_go in informer.rest():
                frozen += let_go
                await self._machine.sleep(0)
        if frozen:
            self._compactor.clear()  # it holds parts of what was just let go
        return frozen

    async def _sweep(self) -> None:
        while True:
            await self._machine.sleep(SWEEP)
            await self.rest()
