"""The garbage collector: what nobody owns any more goes.

It watches the metadata of every served type that can be listed and deleted, custom resources included, keeps the
`OwnershipGraph` of them, and visits the objects the graph points at:

* *background*: an object all of whose owners are gone is deleted; where some remain, only the dangling references go;
* *foreground*: an owner with the ``foregroundDeletion`` finalizer keeps it until its blocking dependents are gone;
* *orphan*: an owner with the ``orphan`` finalizer keeps it until no dependent refers to it.

Nothing is deleted on the graph's word alone: an owner that the graph does not know is looked up at the server first, and
deletions carry the uid and revision that were judged.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any

from sampan.kube.client import WatchEvent
from sampan.kube.client.interface import Propagation
from sampan.kube.control.controller import ControlContext, start_workers
from sampan.kube.control.events import EventRecorder
from sampan.kube.control.measures import ControllerMetrics
from sampan.kube.control.ownership import FOREGROUND, ORPHAN, Node, OwnerReference, OwnershipGraph
from sampan.kube.control.queue import WorkQueue
from sampan.kube.control.reflector import Feed, Reflector
from sampan.kube.objects import Kind, Object, Resource
from sampan.kube.resources import EVENTS
from sampan.kube.status import ApiError
from sampan.kube.types.resource import ResourceType, TypeRegistry

log = logging.getLogger(__name__)

WORKERS = 8
"""Visits under way at once: each mostly waits for the store, and waiting together they share its commits."""
TOGETHER = 32
"""Dependents of an orphaning owner that are released together."""
ABSENT_CACHE = 5_000
"""Uids remembered as gone, so that an owner of many is looked up once."""
UNKNOWN_RETRY = 30.0
"""Seconds until an owner of a kind that is not served is looked for again."""
PAGE = 500


class _UnknownOwnerError(Exception):
    """The owner's kind is not served, so whether it exists cannot be told."""


class GarbageCollector:
    """Collects garbage among the types of a registry; `start` it once."""

    name = "garbage-collector"

    def __init__(self, context: ControlContext, types: TypeRegistry, feed: Feed | None = None) -> None:
        self._feed = feed
        self._client = context.client
        self._clock = context.clock
        self._tasks = context.tasks
        self._types = types
        self.graph = OwnershipGraph()
        self._metrics = None if context.metrics is None else ControllerMetrics(context.metrics, self.name)
        self._queue: WorkQueue[str] = WorkQueue(context.clock, metrics=self._metrics)
        self._recorder = EventRecorder(context.client, context.clock, context.tasks, self.name)
        self._monitors: dict[Resource, tuple[asyncio.Task[None] | None, _Monitor]] = {}
        self._absent: OrderedDict[str, None] = OrderedDict()

    async def start(self) -> None:
        """Watch every type, wait for the first lists, then collect."""
        self._follow_types()
        self._types.on_change(self._follow_types)
        for _, monitor in list(self._monitors.values()):
            await monitor.synced.wait()
        start_workers(self.name, WORKERS, self._queue, self._visit, self._tasks, self._metrics)

    def visit(self, uids: set[str]) -> None:
        """Have objects looked at."""
        for uid in uids:
            self._queue.add(uid)

    # -- what is watched

    def _follow_types(self) -> None:
        wanted = collectable(self._types)
        for resource in [resource for resource in self._monitors if resource not in wanted]:
            task, monitor = self._monitors.pop(resource)
            if task is not None:
                task.cancel()
            monitor.replace([])
        for resource in wanted:
            if resource not in self._monitors:
                monitor = _Monitor(self, resource)
                task = None
                if self._feed is None or not self._feed.follow(resource, monitor):
                    reflector = Reflector(self._client, self._clock, resource, monitor)
                    task = self._tasks.keep(f"{self.name}/{resource}", reflector.run)
                self._monitors[resource] = (task, monitor)

    # -- visits

    async def _visit(self, uid: str) -> float | None:
        node = self.graph.get(uid)
        if node is None:
            return None
        if node.deleting:
            if node.orphan:
                await self._orphan(node)
            elif node.foreground:
                await self._finish_foreground(node)
            return None
        if self.graph.settled(node):
            return None
        try:
            await self._collect(node)
        except _UnknownOwnerError as error:
            log.debug("%s %s stays: %s", node.resource, node.key, error)
            return UNKNOWN_RETRY
        return None

    async def _collect(self, node: Node) -> None:
        live = await self._live(node)
        if live is None:
            return
        node = Node.of(node.resource, live)
        if node.deleting:
            return
        solid, dangling, waiting = await self._classify(node)
        if not dangling and not waiting:
            return
        metadata = live["metadata"]
        if solid:
            gone = {reference.uid for reference in (*dangling, *waiting)}
            kept = [each for each in metadata["ownerReferences"] if each["uid"] not in gone]
            await self._patch(node.resource, live, {"ownerReferences": kept or None})
            return
        policy: Propagation = "Orphan" if node.orphan else "Foreground" if node.foreground else "Background"
        dependents = self.graph.dependents(node.uid)
        if waiting and dependents:
            if any(dependent.waits_for_dependents for dependent in dependents):
                # A circle of objects that each wait for the other: this one no longer holds up its owners.
                owners = [{**reference, "blockOwnerDeletion": False} for reference in metadata["ownerReferences"]]
                live = await self._patch(node.resource, live, {"ownerReferences": owners})
                metadata = live["metadata"]
            policy = "Foreground"
        await _unless_gone(
            self._client.delete(
                node.resource,
                node.key.name,
                node.key.namespace or None,
                propagation=policy,
                uid=node.uid,
                revision=metadata["resourceVersion"],
            )
        )

    async def _classify(self, node: Node) -> tuple[list[OwnerReference], list[OwnerReference], list[OwnerReference]]:
        """The owners that stay, that are gone, and that wait for this object to go."""
        solid: list[OwnerReference] = []
        dangling: list[OwnerReference] = []
        waiting: list[OwnerReference] = []
        for reference in node.owners:
            owner = self.graph.get(reference.uid)
            if owner is not None and node.misplaced_under(owner):
                self._misplaced(node, reference)
                owner = None
            if owner is not None and owner.is_named(reference):
                (waiting if owner.waits_for_dependents else solid).append(reference)
            elif await self._exists(node, reference):
                solid.append(reference)
            else:
                dangling.append(reference)
        return solid, dangling, waiting

    async def _exists(self, node: Node, reference: OwnerReference) -> bool:
        """Ask the server for an owner that the graph does not know.

        Raises:
            _UnknownOwnerError: its kind is not served, or a cluster-scoped object names a namespaced owner.
        """
        if reference.uid in self._absent:
            return False
        kind = Kind.parse(reference.api_version, reference.kind)
        type = self._types.find_kind(kind)
        if type is None:
            raise _UnknownOwnerError(f"its owner's kind {reference.kind} of {reference.api_version} is not served")
        if type.namespaced and not node.key.namespace:
            self._misplaced(node, reference)
            raise _UnknownOwnerError(f"it is cluster-scoped and its owner {reference.kind} is not")
        namespace = node.key.namespace if type.namespaced else None
        try:
            owner = await self._client.get(type.resource, reference.name, namespace)
        except ApiError as error:
            if not error.not_found:
                raise
            owner = None
        if owner is not None and owner["metadata"]["uid"] == reference.uid:
            return True
        if self.graph.get(reference.uid) is None:
            self._absent[reference.uid] = None
            if len(self._absent) > ABSENT_CACHE:
                self._absent.popitem(last=False)
        return False

    def _misplaced(self, node: Node, reference: OwnerReference) -> None:
        about: Object = {
            "apiVersion": node.api_version,
            "kind": node.kind,
            "metadata": {"name": node.key.name, "namespace": node.key.namespace, "uid": node.uid},
        }
        where = f"namespace: {node.key.namespace}, name: {reference.name}, uid: {reference.uid}"
        message = f"ownerRef [{reference.api_version}/{reference.kind}, {where}] does not exist in namespace"
        self._recorder.event(about, "Warning", "OwnerRefInvalidNamespace", f'{message} "{node.key.namespace}"')

    # -- owners that are being deleted

    async def _finish_foreground(self, node: Node) -> None:
        blocking = self.graph.blocking(node.uid)
        if blocking:
            self.visit({dependent.uid for dependent in blocking if not dependent.deleting})
        else:
            await self._drop_finalizer(node, FOREGROUND)

    async def _orphan(self, node: Node) -> None:
        # The watches may be a moment behind, and a dependent that was missed here would be deleted afterwards. So all that
        # could be one is read afresh.
        async for resource, page in self._pages(node.key.namespace):
            dependents = [obj for obj in page if any(each["uid"] == node.uid for each in _owners_of(obj))]
            for start in range(0, len(dependents), TOGETHER):
                await asyncio.gather(
                    *(self._release(resource, obj, node.uid) for obj in dependents[start : start + TOGETHER])
                )
        await self._drop_finalizer(node, ORPHAN)

    async def _release(self, resource: Resource, dependent: Object, owner: str) -> None:
        kept = [reference for reference in _owners_of(dependent) if reference["uid"] != owner]
        await _unless_gone(self._patch(resource, dependent, {"ownerReferences": kept or None}))

    async def _pages(self, namespace: str) -> AsyncIterator[tuple[Resource, list[Object]]]:
        """Everything that may depend on an object of a namespace ("": on a cluster-scoped one)."""
        for resource, type in collectable(self._types).items():
            if namespace and not type.namespaced:
                continue
            token: str | None = None
            while token != "":
                page = await self._client.list(resource, namespace or None, limit=PAGE, continue_token=token)
                yield resource, page.items
                token = page.continue_token

    # -- writing

    async def _live(self, node: Node) -> Object | None:
        try:
            live = await self._client.get(node.resource, node.key.name, node.key.namespace or None)
        except ApiError as error:
            if error.not_found:
                return None
            raise
        return live if live["metadata"]["uid"] == node.uid else None

    async def _drop_finalizer(self, node: Node, finalizer: str) -> None:
        live = await self._live(node)
        if live is None or finalizer not in (live["metadata"].get("finalizers") or ()):
            return
        kept = [each for each in live["metadata"]["finalizers"] if each != finalizer]
        await _unless_gone(self._patch(node.resource, live, {"finalizers": kept or None}))

    async def _patch(self, resource: Resource, obj: Object, changes: dict[str, Any]) -> Object:
        metadata = obj["metadata"]
        guard = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
        return await self._client.patch(
            resource, metadata["name"], {"metadata": changes | guard}, metadata.get("namespace")
        )


class _Monitor:
    """Feeds one type's objects into the graph; a reflector's sink."""

    def __init__(self, collector: GarbageCollector, resource: Resource) -> None:
        self._collector = collector
        self._resource = resource
        self._uids: dict[tuple[str, str], str] = {}
        self.synced = asyncio.Event()

    def replace(self, objects: list[Object]) -> None:
        """These are all objects there are."""
        uids = {obj["metadata"]["uid"] for obj in objects}
        for place, uid in list(self._uids.items()):
            if uid not in uids:
                del self._uids[place]
                self._collector.visit(self._collector.graph.remove(uid))
        for obj in objects:
            self._put(obj)
        self.synced.set()

    def change(self, event: WatchEvent) -> None:
        """Follow one change."""
        if event.type == "DELETED":
            metadata = event.object["metadata"]
            self._uids.pop((metadata.get("namespace") or "", metadata["name"]), None)
            self._collector.visit(self._collector.graph.remove(metadata["uid"]))
        else:
            self._put(event.object)

    def _put(self, obj: Object) -> None:
        node = Node.of(self._resource, obj)
        self._uids[node.key] = node.uid
        self._collector.visit(self._collector.graph.put(node))


def collectable(types: TypeRegistry) -> dict[Resource, ResourceType]:
    """One served version of every stored resource that can be listed, watched and deleted; Events are left out."""
    chosen: dict[tuple[str, str], ResourceType] = {}
    for type in types.all():
        stored = type.stored_as
        place = (stored.group, stored.plural)
        if not {"list", "watch", "delete"} <= set(type.verbs) or place == (EVENTS.group, EVENTS.plural):
            continue
        if place not in chosen or type.resource == stored:
            chosen[place] = type
    return {type.resource: type for type in chosen.values()}


def _owners_of(obj: Object) -> list[Object]:
    owners: list[Object] = obj["metadata"].get("ownerReferences") or []
    return owners


async def _unless_gone(request: Any) -> Any:
    """The request's answer; None where its object is gone, which is what the collector wanted."""
    try:
        return await request
    except ApiError as error:
        if error.not_found:
            return None
        raise
