"""Informers of the API server's own process, fed by the store itself.

Beside the store there is no need to list and watch: `LocalFeed` fills an informer from the live entries and follows the store
synchronously, so the cache is never behind a write and a controller never acts on a state older than its own last write.
Elsewhere, and for kinds whose versions a webhook converts or whose definition is not there yet, a reflector does the work.
"""

from __future__ import annotations

from sampan.kube.client import WatchEvent
from sampan.kube.control.informer import SharedInformer
from sampan.kube.objects import Resource
from sampan.kube.server.conversion import served_object
from sampan.kube.store.interface import Change, Store
from sampan.kube.types.resource import TypeRegistry


class LocalFeed:
    """Feeds informers of built-in kinds from the store of the same process."""

    def __init__(self, store: Store, types: TypeRegistry) -> None:
        self._store = store
        self._types = types

    def follow(self, resource: Resource, informer: SharedInformer) -> bool:
        """Fill the informer and keep it current from now on; False where only a reflector can."""
        kind = self._types.find(resource)
        if kind is None or kind.custom:
            return False
        prefix = kind.prefix()

        def changed(change: Change) -> None:
            if change.value is not None:
                event = WatchEvent("ADDED" if change.created else "MODIFIED", served_object(kind, change.value))
                informer.change(event)
            elif change.previous is not None:
                informer.change(WatchEvent("DELETED", served_object(kind, change.previous)))

        self._store.subscribe(prefix, changed)
        informer.replace([served_object(kind, entry.value) for entry in self._store.range(prefix)])
        return True
