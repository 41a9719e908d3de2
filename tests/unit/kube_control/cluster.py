"""A small API over a memory store, for controllers under test: metadata, conflicts, finalizers, selectors, watches.

It implements the client interface with just the rules a controller can notice; the real server has tests of its own.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sampan.kernel.clock import Clock
from sampan.kube.client import ObjectList, WatchEvent
from sampan.kube.objects import Object, Resource, copy, decode, encode
from sampan.kube.patch import merge_patch
from sampan.kube.status import ApiError, already_exists, conflict, expired, not_found
from sampan.kube.store import CompactedError, ConflictError, MemoryLog, SlowWatchError, Store
from sampan.kube.types.duration import format_time
from sampan.kube.types.selectors import parse_fields, parse_labels


class Cluster:
    """The client. ``fault`` is called before every request, ``refusal`` with what is created; both may raise."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.fault: Callable[[str, Resource], None] = lambda verb, resource: None
        self.refusal: Callable[[Mapping[str, Any]], None] = lambda obj: None
        self.requests: list[tuple[str, str]] = []
        self.served: set[Resource] | None = None
        self._watches: list[Any] = []
        self._uids = itertools.count(1)

    @classmethod
    async def started(cls, clock: Clock | None = None, **limits: Any) -> Cluster:
        clock = clock or Clock()
        store = Store(MemoryLog(), clock, **limits)
        await store.open()
        return cls(store, clock)

    def cut_watches(self) -> None:
        """End every watch, as a restarting server does."""
        for watch in list(self._watches):
            watch.close()

    def _begin(self, verb: str, resource: Resource) -> None:
        self.requests.append((verb, resource.plural))
        self.fault(verb, resource)
        if self.served is not None and resource not in self.served:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")

    def _prefix(self, resource: Resource, namespace: str | None) -> str:
        return f"/registry/{resource.group or 'core'}/{resource.plural}/" + (f"{namespace}/" if namespace else "")

    def _read(self, resource: Resource, name: str, namespace: str | None) -> Object:
        entry = self.store.get(self._prefix(resource, namespace) + name)
        if entry is None:
            raise not_found(resource, name)
        return decode(entry.value)

    async def get(
        self, resource: Resource, name: str, namespace: str | None = None, *, subresource: str | None = None
    ) -> Object:
        self._begin("get", resource)
        return self._read(resource, name, namespace)

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        limit: int | None = None,
        continue_token: str | None = None,
        revision: str | None = None,
    ) -> ObjectList:
        self._begin("list", resource)
        prefix = self._prefix(resource, namespace)
        at, _, after = (continue_token or f"{self.store.revision}|").partition("|")
        try:
            entries = self.store.range_at(prefix, int(at), after, (limit + 1) if limit else 0)
        except CompactedError as error:
            raise expired(str(error)) from error
        more = limit is not None and len(entries) > limit
        entries = entries[:limit] if more else entries
        objects = [decode(entry.value) for entry in entries]
        token = f"{at}|{entries[-1].key}" if more else ""
        return ObjectList([o for o in objects if _selects(o, label_selector, field_selector)], at, token)

    @asynccontextmanager
    async def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        revision: str | None = None,
    ) -> AsyncIterator[AsyncIterator[WatchEvent]]:
        self._begin("watch", resource)
        assert revision is not None
        try:
            watch = self.store.watch(self._prefix(resource, namespace), int(revision))
        except CompactedError as error:
            raise expired(str(error)) from error
        self._watches.append(watch)

        async def events() -> AsyncIterator[WatchEvent]:
            try:
                async for change in watch:
                    encoded = change.value if change.value is not None else change.previous
                    assert encoded is not None
                    obj = decode(encoded)
                    before = None if change.previous is None or change.deleted else decode(change.previous)
                    now = change.value is not None and _selects(obj, label_selector, field_selector)
                    then = _selects(before, label_selector, field_selector) if before else change.deleted
                    if now or then:
                        yield WatchEvent("DELETED" if not now else "MODIFIED" if then else "ADDED", obj)
            except SlowWatchError:
                return

        try:
            yield events()
        finally:
            watch.close()
            self._watches.remove(watch)

    async def create(
        self,
        resource: Resource,
        obj: Mapping[str, Any],
        namespace: str | None = None,
        *,
        name: str | None = None,
        subresource: str | None = None,
        dry_run: bool = False,
    ) -> Object:
        self._begin("create", resource)
        self.refusal(obj)
        new = copy(dict(obj))
        metadata = new.setdefault("metadata", {})
        namespace = namespace or metadata.get("namespace")
        if namespace:
            metadata["namespace"] = namespace
        metadata["uid"] = f"uid-{next(self._uids)}"
        metadata["creationTimestamp"] = format_time(self.clock.now())
        if resource.plural == "namespaces":
            new.setdefault("spec", {}).setdefault("finalizers", ["kubernetes"])
            new.setdefault("status", {"phase": "Active"})
        try:
            entry = await self.store.put(
                self._prefix(resource, namespace) + metadata["name"], lambda revision: encode(new, revision), 0
            )
        except ConflictError:
            raise already_exists(resource, metadata["name"]) from None
        return decode(entry.value)

    async def update(
        self, resource: Resource, obj: Mapping[str, Any], *, subresource: str | None = None, dry_run: bool = False
    ) -> Object:
        self._begin("update", resource)
        metadata = obj["metadata"]
        name, namespace = metadata["name"], metadata.get("namespace")
        old = self._read(resource, name, namespace)
        expected = int(metadata.get("resourceVersion") or old["metadata"]["resourceVersion"])
        new: Object = copy(dict(obj))
        for kept in ("uid", "creationTimestamp", "deletionTimestamp"):
            if kept in old["metadata"]:
                new["metadata"][kept] = old["metadata"][kept]
        key = self._prefix(resource, namespace) + name
        try:
            gone = "deletionTimestamp" in new["metadata"] and not new["metadata"].get("finalizers")
            if gone and not (new.get("spec") or {}).get("finalizers"):
                await self.store.delete(key, expected, lambda revision: encode(new, revision))
                return new
            if encode(new, 1) == encode(old, 1):
                return old
            return decode((await self.store.put(key, lambda revision: encode(new, revision), expected)).value)
        except ConflictError as error:
            raise conflict(resource, name) if error.current else not_found(resource, name) from None

    async def patch(
        self,
        resource: Resource,
        name: str,
        patch: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        namespace: str | None = None,
        *,
        patch_type: str = "merge",
        subresource: str | None = None,
        dry_run: bool = False,
    ) -> Object:
        self._begin("patch", resource)
        assert isinstance(patch, Mapping) and patch_type == "merge"
        old = self._read(resource, name, namespace)
        uid = (patch.get("metadata") or {}).get("uid")
        if uid and uid != old["metadata"]["uid"]:
            raise conflict(resource, name)
        return await self.update(resource, merge_patch.apply(old, dict(patch)), subresource=subresource)

    async def apply(self, resource: Resource, obj: Mapping[str, Any], **options: Any) -> Object:
        raise NotImplementedError("controllers under test do not apply")

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        *,
        grace_period: int | None = None,
        propagation: str | None = None,
        uid: str | None = None,
        revision: str | None = None,
    ) -> Object:
        self._begin("delete", resource)
        old = self._read(resource, name, namespace)
        metadata = old["metadata"]
        if (uid and uid != metadata["uid"]) or (revision and revision != metadata["resourceVersion"]):
            raise conflict(resource, name, "Precondition failed")
        finalizers = [f for f in metadata.get("finalizers") or () if f not in ("foregroundDeletion", "orphan")]
        finalizers += {"Foreground": ["foregroundDeletion"], "Orphan": ["orphan"]}.get(propagation or "", [])
        key = self._prefix(resource, namespace) + name
        if finalizers or (old.get("spec") or {}).get("finalizers"):
            metadata["finalizers"] = finalizers
            metadata.setdefault("deletionTimestamp", format_time(self.clock.now()))
            return decode((await self.store.put(key, lambda revision: encode(old, revision), None)).value)
        await self.store.delete(key, None)
        return old

    async def delete_collection(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        propagation: str | None = None,
    ) -> None:
        self._begin("deletecollection", resource)
        for entry in self.store.range(self._prefix(resource, namespace)):
            obj = decode(entry.value)
            if _selects(obj, label_selector, field_selector):
                metadata = obj["metadata"]
                await self.delete(resource, metadata["name"], metadata.get("namespace"), propagation=propagation)

    def impersonate(self, user: str, groups: Sequence[str] = ()) -> Cluster:
        return self


def _selects(obj: Object, labels: str | None, fields: str | None) -> bool:
    metadata = obj["metadata"]
    if labels and not parse_labels(labels).selects(obj):
        return False
    known = {"metadata.name": metadata["name"], "metadata.namespace": metadata.get("namespace", "")}
    return not fields or parse_fields(fields).matches(known)


async def settle(clock: Clock | None = None, turns: int = 60) -> None:
    """Let everything that can run without time passing run."""
    for _ in range(turns):
        await asyncio.sleep(0)
