"""Watches: every change of the store, pushed to whoever watches its collection.

The hub subscribes to the store once. Changes that become visible in the same step of the loop are handed out together in the
next one: for each change the hub finds the watchers of its collection (all of it, one namespace, one name), decides what
each sees (an update may enter or leave a selection), and calls the watcher's sink. What is derived from a change (its
labels, its decoded object, its bytes in each representation) is computed once and shared by all watchers.

A watch opens in one step of the loop: its initial events (current objects, or history since a revision) are fixed and from
then on changes queue up for it until `Watch.start`, so nothing is lost or seen twice. A sink that cannot keep up ends its
watch; it never slows the others.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Protocol

from sampan.kernel.clock import Clock, Timer
from sampan.kube.objects import Object, decode, with_revision
from sampan.kube.server import representation
from sampan.kube.server.conversion import served
from sampan.kube.server.negotiation import Format
from sampan.kube.server.options import ListOptions
from sampan.kube.server.representation import IncludeObject
from sampan.kube.server.selection import Selection, labels_of
from sampan.kube.status import ApiError, expired, timeout
from sampan.kube.store.interface import Change, CompactedError, Store
from sampan.kube.types.resource import ResourceType, TypeRegistry

BOOKMARK_INTERVAL = 60.0
"""Seconds between bookmarks."""
PENDING_LIMIT = 20_000
"""Changes that may queue up for a watch whose initial events are still being sent."""
FUTURE_WAIT = 3.0
"""Seconds to wait for a revision that the store has not reached."""
SEEN = 500
"""Objects whose fields are remembered."""
INITIAL_EVENTS_END = "k8s.io/initial-events-end"

REGISTRY = "/registry/"


class SeenFields:
    """The selectable fields of objects that changed lately: what was new in one change is old in the next, and an object that
    is only asked for its fields need not be decoded for that."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[ResourceType, str], tuple[bytes, Mapping[str, str]]] = OrderedDict()

    def recall(self, type: ResourceType, key: str, stored: bytes) -> Mapping[str, str] | None:
        """The fields of what is stored under a key; None: not known."""
        known = self._known.get((type, key))
        return known[1] if known is not None and known[0] is stored else None

    def keep(self, type: ResourceType, key: str, stored: bytes, fields: Mapping[str, str]) -> None:
        """Remember the fields of what is stored under a key."""
        self._known[type, key] = stored, fields
        self._known.move_to_end((type, key))
        if len(self._known) > SEEN:
            self._known.popitem(last=False)

    def forget(self, type: ResourceType, key: str) -> None:
        """The object is gone."""
        self._known.pop((type, key), None)


class Event:
    """One change as all watchers of one served type see it; everything derived is computed at most once."""

    __slots__ = ("_chunks", "_fields", "_labels", "_new", "_objects", "_old", "_seen", "change", "type")

    def __init__(self, type: ResourceType, change: Change, seen: SeenFields | None = None) -> None:
        self.type = type
        self.change = change
        self._seen = seen
        self._new: bytes | None = None
        self._old: bytes | None = None
        self._labels: dict[bool, Mapping[str, str]] = {}
        self._fields: dict[bool, Mapping[str, str]] = {}
        self._objects: dict[bool, Object] = {}
        self._chunks: dict[tuple[str, Format, IncludeObject], bytes] = {}

    @property
    def revision(self) -> int:
        return self.change.revision

    def value(self, new: bool) -> bytes | None:
        """The served encoding after (or before, with the change's revision) the change; None: there was none."""
        if new:
            if self._new is None and self.change.value is not None:
                self._new = served(self.type, self.change.value)
            return self._new
        if self._old is None and self.change.previous is not None:
            self._old = with_revision(served(self.type, self.change.previous), self.change.revision)
        return self._old

    def matches(self, new: bool, selection: Selection) -> bool:
        """The selection holds the object as it is after (before) the change."""
        value = self.value(new)
        if value is None:
            return False
        if selection.labels is not None:
            labels = self._labels.get(new)
            if labels is None:
                labels = self._labels[new] = labels_of(value)
            if not selection.labels.matches(labels):
                return False
        if selection.fields is not None:
            fields = self._fields.get(new)
            if fields is None:
                fields = self._fields[new] = self._selectable(new, value)
            if not selection.fields.matches(fields):
                return False
        return True

    def _selectable(self, new: bool, value: bytes) -> Mapping[str, str]:
        stored = self.change.value if new else self.change.previous
        if self._seen is None or stored is None:
            return self.type.strategy.fields(self._decoded(new, value))
        fields = self._seen.recall(self.type, self.change.key, stored)
        if self.change.deleted:
            self._seen.forget(self.type, self.change.key)
        if fields is None:
            fields = self.type.strategy.fields(self._decoded(new, value))
            if new:
                self._seen.keep(self.type, self.change.key, stored, fields)
        return fields

    def _decoded(self, new: bool, value: bytes) -> Object:
        obj = self._objects.get(new)
        if obj is None:
            obj = self._objects[new] = decode(value)
        return obj

    def kind_for(self, selection: Selection) -> str | None:
        """ADDED, MODIFIED or DELETED as this selection sees the change; None: not at all."""
        change = self.change
        if not selection.everything:
            before, after = self.matches(False, selection), self.matches(True, selection)
        else:
            before, after = change.previous is not None, change.value is not None
        if after:
            return "MODIFIED" if before else "ADDED"
        return "DELETED" if before else None

    def object(self, kind: str) -> Object:
        """The object that an event of this kind carries; shared."""
        new = kind != "DELETED"
        value = self.value(new)
        assert value is not None
        return self._decoded(new, value)

    def chunk(self, kind: str, format: Format, include: IncludeObject, now: datetime) -> bytes:
        """The event as one HTTP chunk holding one line."""
        key = (kind, format, include)
        chunk = self._chunks.get(key)
        if chunk is None:
            value = self.value(kind != "DELETED")
            assert value is not None
            chunk = self._chunks[key] = as_chunk(line(kind, self.type, value, format, include, now))
        return chunk


def line(kind: str, type: ResourceType, value: bytes, format: Format, include: IncludeObject, now: datetime) -> bytes:
    """One watch event line of an encoded object."""
    if format.shape:
        value = representation.present(type, value, format._replace(yaml=False), include, now)
    return b'{"type":"%s","object":%s}\n' % (kind.encode(), value)


def as_chunk(data: bytes) -> bytes:
    """Bytes framed as one chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def bookmark_object(type: ResourceType, revision: int, *, initial_end: bool = False) -> Object:
    """What a BOOKMARK event carries."""
    metadata: Object = {"resourceVersion": str(revision), "creationTimestamp": None}
    if initial_end:
        metadata["annotations"] = {INITIAL_EVENTS_END: "true"}
    return {"kind": type.kind, "apiVersion": type.resource.api_version, "metadata": metadata}


def bookmark_line(type: ResourceType, revision: int, format: Format, *, initial_end: bool = False) -> bytes:
    """A BOOKMARK event line in the watch's representation."""
    obj = bookmark_object(type, revision, initial_end=initial_end)
    if format.shape == "Table":
        carried = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj["metadata"]}
        rows = [{"cells": [""] * len(type.strategy.columns), "object": carried}]
        metadata = {"resourceVersion": str(revision)}
        api_version = f"meta.k8s.io/{format.version}"
        obj = {"kind": "Table", "apiVersion": api_version, "metadata": metadata, "columnDefinitions": [], "rows": rows}
    elif format.shape:
        obj["kind"], obj["apiVersion"] = "PartialObjectMetadata", f"meta.k8s.io/{format.version}"
    return representation.json({"type": "BOOKMARK", "object": obj}) + b"\n"


class Sink(Protocol):
    """Where a watch's events go. All methods return at once."""

    def events(self, events: list[tuple[str, Event]]) -> None:
        """Deliver events in order."""
        ...

    def bookmark(self, revision: int) -> None:
        """Everything up to ``revision`` has been delivered."""
        ...

    def end(self) -> None:
        """The hub has closed the watch (it fell behind, or its type is no longer served)."""
        ...


class Watch:
    """One open watch. Read `initial`, then call `start` with the sink; call `close` when done."""

    __slots__ = (
        "_hub",
        "_pending",
        "bookmarks",
        "closed",
        "initial",
        "initial_end",
        "namespace",
        "revision",
        "selection",
        "sink",
        "type",
    )

    def __init__(
        self, hub: WatchHub, type: ResourceType, namespace: str, selection: Selection, bookmarks: bool
    ) -> None:
        self._hub = hub
        self.type = type
        self.namespace = namespace
        self.selection = selection
        self.bookmarks = bookmarks
        self.initial: Iterable[tuple[str, Event]] = ()
        """What the watch begins with; read it once."""
        self.initial_end: int | None = None
        """Revision of the bookmark that ends the initial events, when the client asked for one."""
        self.revision = 0
        """The revision up to which the watch has been told everything."""
        self.closed = False
        self.sink: Sink | None = None
        self._pending: list[tuple[str, Event]] = []

    def start(self, sink: Sink) -> None:
        """Hand what has queued up, and everything from now on, to ``sink``."""
        self.sink = sink
        if self.closed:
            sink.end()
            return
        pending, self._pending = self._pending, []
        if pending:
            sink.events(pending)

    def latest(self) -> int:
        """The revision up to which everything has been delivered, for a last bookmark."""
        return self._hub.settled()

    def offer(self, events: list[tuple[str, Event]]) -> None:
        """Deliver, or queue until `start`."""
        if self.sink is not None:
            self.sink.events(events)
        elif len(self._pending) + len(events) > PENDING_LIMIT:
            self.end()
        else:
            self._pending.extend(events)

    def end(self) -> None:
        """Close from the server's side; the sink is told."""
        self.close()
        if self.sink is not None:
            self.sink.end()

    def close(self) -> None:
        """No more events; idempotent."""
        if not self.closed:
            self.closed = True
            self._hub.leave(self)


class _Collection:
    """The watches of one stored collection, by what they can see."""

    __slots__ = ("everything", "names", "namespaces")

    def __init__(self) -> None:
        self.everything: set[Watch] = set()
        self.namespaces: dict[str, set[Watch]] = {}
        self.names: dict[str, set[Watch]] = {}

    def _place(self, watch: Watch) -> tuple[dict[str, set[Watch]], str] | None:
        if watch.selection.name:
            return self.names, watch.selection.name
        if watch.namespace:
            return self.namespaces, watch.namespace
        return None

    def add(self, watch: Watch) -> None:
        place = self._place(watch)
        (self.everything if place is None else place[0].setdefault(place[1], set())).add(watch)

    def discard(self, watch: Watch) -> None:
        place = self._place(watch)
        if place is None:
            self.everything.discard(watch)
            return
        index, key = place
        watches = index.get(key)
        if watches is not None:
            watches.discard(watch)
            if not watches:
                del index[key]

    def of(self, namespace: str, name: str) -> Iterator[Watch]:
        yield from self.everything
        if namespace:
            yield from self.namespaces.get(namespace, ())
        for watch in self.names.get(name, ()):
            if not watch.namespace or watch.namespace == namespace:
                yield watch

    def all(self) -> list[Watch]:
        found = list(self.everything)
        for index in (self.namespaces, self.names):
            for watches in index.values():
                found.extend(watches)
        return found


def _named(key: str, selection: Selection) -> bool:
    return not selection.name or key.rpartition("/")[2] == selection.name


class WatchHub:
    """All watches of one API server."""

    def __init__(self, store: Store, types: TypeRegistry, clock: Clock) -> None:
        self._store = store
        self._types = types
        self._clock = clock
        self._collections: dict[str, _Collection] = {}
        self._changes: list[Change] = []
        self._seen = SeenFields()
        self._bookmarks: Timer | None = None
        self._waiting: set[asyncio.Event] = set()
        self.count = 0
        """Open watches."""
        self._unsubscribe = store.subscribe(REGISTRY, self._changed)
        types.on_change(self._types_changed)

    def close(self) -> None:
        """End every watch and stop listening to the store."""
        self._unsubscribe()
        if self._bookmarks is not None:
            self._bookmarks.cancel()
            self._bookmarks = None
        self.end_all()

    def end_all(self) -> None:
        """End every watch; clients open theirs again."""
        for collection in list(self._collections.values()):
            for watch in collection.all():
                watch.end()

    async def reached(self, revision: int) -> None:
        """Return once the store is at ``revision``.

        Raises:
            ApiError: 504, it did not get there in time.
        """
        if self._store.revision >= revision:
            return
        arrived = asyncio.Event()
        self._waiting.add(arrived)
        try:
            async with self._clock.timeout(FUTURE_WAIT):
                while self._store.revision < revision:
                    arrived.clear()
                    await arrived.wait()
        except TimeoutError:
            message = f"Timeout: Too large resource version: {revision}, current: {self._store.revision}"
            raise timeout(message, too_large_revision=True) from None
        finally:
            self._waiting.discard(arrived)

    async def open(self, type: ResourceType, namespace: str, selection: Selection, options: ListOptions) -> Watch:
        """Open a watch.

        Raises:
            ApiError: 410, the revision is older than the retained history; 504, it is in the future.
        """
        since = int(options.revision or "0")
        if since:
            await self.reached(since)
        watch = Watch(self, type, namespace, selection, options.bookmarks)
        watch.revision = self._store.revision
        prefix = type.prefix(namespace if type.namespaced else None)
        fresh = options.send_initial_events if options.send_initial_events is not None else not since
        if fresh:
            watch.initial = list(self._current(type, prefix, selection))
            if options.send_initial_events:
                watch.initial_end = watch.revision
        elif since:
            try:
                watch.initial = list(self._past(type, prefix, selection, namespace, since))
            except CompactedError as error:
                raise expired(f"too old resource version: {since} ({error.compacted})") from None
        # Changes already visible but not handed out yet are in the initial events: keep them from coming twice.
        self._flush()
        self._collections.setdefault(type.prefix(), _Collection()).add(watch)
        self.count += 1
        if watch.bookmarks and self._bookmarks is None:
            self._bookmarks = self._clock.call_later(BOOKMARK_INTERVAL, self._send_bookmarks)
        return watch

    def settled(self) -> int:
        """The store's revision, with every change up to it handed out."""
        self._flush()
        return self._store.revision

    def leave(self, watch: Watch) -> None:
        """Forget a watch (`Watch.close` calls this)."""
        prefix = watch.type.prefix()
        collection = self._collections.get(prefix)
        if collection is not None:
            collection.discard(watch)
            if not (collection.everything or collection.namespaces or collection.names):
                del self._collections[prefix]
        self.count -= 1

    def _current(self, type: ResourceType, prefix: str, selection: Selection) -> Iterator[tuple[str, Event]]:
        entries = self._store.range(prefix)
        if selection.name and (not type.namespaced or prefix != type.prefix()):
            entry = self._store.get(prefix + selection.name)
            entries = [entry] if entry is not None else []
        for entry in entries:
            if not _named(entry.key, selection):
                continue
            event = Event(type, Change(entry.revision, entry.key, entry.value, None))
            if selection.everything or event.matches(True, selection):
                yield "ADDED", event

    def _past(
        self, type: ResourceType, prefix: str, selection: Selection, namespace: str, since: int
    ) -> Iterator[tuple[str, Event]]:
        for change in self._store.history(prefix, since):
            if not _named(change.key, selection):
                continue
            event = Event(type, change)
            kind = event.kind_for(selection)
            if kind is not None:
                yield kind, event

    # -- the path of a change

    def _changed(self, change: Change) -> None:
        if not self._changes:
            asyncio.get_running_loop().call_soon(self._flush)
        self._changes.append(change)

    def _flush(self) -> None:
        changes, self._changes = self._changes, []
        if not changes:
            return
        for arrived in self._waiting:
            arrived.set()
        due: dict[Watch, list[tuple[str, Event]]] = {}
        for change in changes:
            # /registry/<group>/<plural>/[<namespace>/]<name>
            pieces = change.key.split("/", 5)
            if len(pieces) < 5:
                continue
            collection = self._collections.get(f"/registry/{pieces[2]}/{pieces[3]}/")
            if collection is None:
                continue
            namespace, name = (pieces[4], pieces[5]) if len(pieces) == 6 else ("", pieces[4])
            events: dict[int, Event] = {}
            for watch in collection.of(namespace, name):
                event = events.get(id(watch.type))
                if event is None:
                    event = events[id(watch.type)] = Event(watch.type, change, self._seen)
                kind = event.kind_for(watch.selection)
                if kind is not None:
                    due.setdefault(watch, []).append((kind, event))
        for watch, found in due.items():
            watch.revision = found[-1][1].revision
            if not watch.closed:
                watch.offer(found)

    def _send_bookmarks(self) -> None:
        self._flush()
        self._bookmarks = None
        revision = self._store.revision
        more = False
        for collection in list(self._collections.values()):
            for watch in collection.all():
                if not watch.bookmarks:
                    continue
                more = True
                if watch.sink is not None and watch.revision < revision:
                    watch.revision = revision
                    watch.sink.bookmark(revision)
        if more:
            self._bookmarks = self._clock.call_later(BOOKMARK_INTERVAL, self._send_bookmarks)

    def _types_changed(self) -> None:
        # The stored collection may now look different (or be gone): clients list again, as they do upstream.
        for collection in list(self._collections.values()):
            for watch in collection.all():
                if watch.type.custom and self._types.find(watch.type.resource) is not watch.type:
                    watch.end()


def error_line(error: ApiError) -> bytes:
    """An ERROR event line."""
    return representation.json({"type": "ERROR", "object": error.status()}) + b"\n"
