"""Informers (and other sinks) of the API server's own process, fed by the store itself.

Beside the store there is no need to list and watch: `LocalFeed` fills an informer from the live entries and follows the store
synchronously, so the cache is never behind a write and a controller never acts on a state older than its own last write.
Elsewhere, and for kinds whose versions a webhook converts or whose definition is not there yet, a reflector does the work.
"""

from __future__ import annotations

from sampan.kube.client import WatchEvent
from sampan.kube.client.interface import EventType
from sampan.kube.control.held import thawed
from sampan.kube.control.reflector import Sink
from sampan.kube.objects import Key, Object, Resource, alike, encode
from sampan.kube.server.conversion import as_stored, served_object
from sampan.kube.store.interface import Change, Store
from sampan.kube.types.resource import ResourceType, TypeRegistry


class LocalFeed:
    """Feeds informers from the store of the same process."""

    def __init__(self, store: Store, types: TypeRegistry, *, custom: bool = False) -> None:
        """``custom``: also feed custom kinds that need no webhook to convert; for sinks that stay as long as the process."""
        self._store = store
        self._types = types
        self._custom = custom
        self._newest = _Newest()

    def with_custom(self) -> LocalFeed:
        """A feed of the same store that also feeds custom kinds, and decodes each change together with this one."""
        feed = LocalFeed(self._store, self._types, custom=True)
        feed._newest = self._newest
        return feed

    def follow(self, resource: Resource, sink: Sink) -> bool:
        """Fill the sink and keep it current from now on; False where only a reflector can."""
        kind = self._types.find(resource)
        if kind is None or (kind.custom and not (self._custom and kind.conversion is None)):
            return False
        prefix, following = kind.prefix(), [kind]

        def changed(change: Change) -> None:
            event: EventType = "DELETED" if change.deleted else "ADDED" if change.created else "MODIFIED"
            sink.change(WatchEvent(event, self._newest.decoded(following[0], change)))

        def redefined() -> None:
            """What is stored from now on is read by the changed definition."""
            now = self._types.find(resource)
            if now is not None and now.conversion is None:
                following[0] = now

        self._store.subscribe(prefix, changed)
        if kind.custom:
            self._types.on_change(redefined)
        sink.replace([served_object(kind, entry.value) for entry in self._store.range(prefix)])
        return True

    def encoding(self, resource: Resource, key: Key, obj: Object) -> bytes:
        """What decodes to an object that this feed gave, but for its managed fields: the store's own bytes where they do."""
        kind = self._types.find(resource)
        entry = None if kind is None else self._store.get(kind.key(key.namespace, key.name))
        # A definition may have changed since the object was read, but what it leaves as stored was as stored before.
        if (
            kind is not None
            and entry is not None
            and str(entry.revision) == obj["metadata"].get("resourceVersion")
            and (as_stored(kind, entry.value) or alike(thawed(entry.value), obj))
        ):
            return entry.value
        return encode(obj, int(obj["metadata"].get("resourceVersion") or 0))


class _Newest:
    """The newest change decoded: its followers are told one after the other, so all but the first find it here."""

    def __init__(self) -> None:
        self._last: tuple[Change, Resource, Object] | None = None

    def decoded(self, kind: ResourceType, change: Change) -> Object:
        """The object after a change, or the last before it went; shared."""
        if self._last is None or self._last[0] is not change or self._last[1] != kind.resource:
            encoded = change.previous if change.value is None else change.value
            assert encoded is not None
            self._last = change, kind.resource, served_object(kind, encoded)
        return self._last[2]
