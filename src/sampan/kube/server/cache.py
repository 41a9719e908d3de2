"""Decoded objects of the API server's own process, for those who ask often: authorization, admission, allocation.

Objects are decoded when somebody asks and kept until the store changes them, so the cache is never behind a write and costs
nothing for what nobody asks about.
"""

from __future__ import annotations

from sampan.kube.objects import Object, Resource
from sampan.kube.server.conversion import served_object
from sampan.kube.store.interface import Change, Store
from sampan.kube.types.resource import ResourceType, TypeRegistry


class StoreCache:
    """Implements ``access.interface.ObjectCache`` over the store."""

    def __init__(self, store: Store, types: TypeRegistry) -> None:
        self._store = store
        self._types = types
        self._objects: dict[str, tuple[ResourceType, Object]] = {}
        self._generations: dict[str, int] = {}
        self._lists: dict[str, dict[tuple[str, ResourceType], list[Object]]] = {}
        """By collection, then by what was asked for; a change of the collection drops all of its lists."""
        self._unsubscribe = store.subscribe("/registry/", self._changed)
        types.on_change(self._lists.clear)

    def close(self) -> None:
        """Stop following the store."""
        self._unsubscribe()

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """One object, shared; None when it does not exist or its kind is not served."""
        type = self._types.find(resource)
        if type is None:
            return None
        key = type.key(namespace, name)
        entry = self._store.get(key)
        return None if entry is None else self._decoded(type, key, entry.value)

    def objects(self, resource: Resource, namespace: str | None = None) -> list[Object]:
        """All objects of a resource, shared, in key order."""
        type = self._types.find(resource)
        if type is None:
            return []
        prefix = type.prefix(namespace if type.namespaced else None)
        lists = self._lists.setdefault(type.prefix(), {})
        found = lists.get((prefix, type))
        if found is None:
            found = [self._decoded(type, entry.key, entry.value) for entry in self._store.range(prefix)]
            lists[prefix, type] = found
        return found

    def generation(self, resource: Resource) -> int:
        """Grows with each change of the resource."""
        type = self._types.find(resource)
        return 0 if type is None else self._generations.get(type.prefix(), 0)

    def _decoded(self, type: ResourceType, key: str, value: bytes) -> Object:
        kept = self._objects.get(key)
        if kept is not None and kept[0] is type:
            return kept[1]
        obj = served_object(type, value)
        self._objects[key] = (type, obj)
        return obj

    def _changed(self, change: Change) -> None:
        self._objects.pop(change.key, None)
        # /registry/<group>/<plural>/...
        end = change.key.index("/", change.key.index("/", len("/registry/")) + 1) + 1
        prefix = change.key[:end]
        self._generations[prefix] = self._generations.get(prefix, 0) + 1
        self._lists.pop(prefix, None)
