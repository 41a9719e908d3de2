"""The client of code that lives in the API server's own process: the verbs called directly, as one identity.

It behaves as the HTTP client does, authorization, admission, validation and field ownership included; only the encoding to
the wire is left out. Objects it returns belong to the caller; objects in watch events are shared among watchers. What the
store says of a full disk is an `ApiError` here too, so that whoever writes knows it for what it is: the server's trouble, to be
tried again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, cast

from sampan.kube.access.interface import User
from sampan.kube.client.interface import EventType, ObjectList, PatchType, Propagation, WatchEvent
from sampan.kube.objects import Object, Resource, copy
from sampan.kube.server.answers import error_of
from sampan.kube.server.call import Call
from sampan.kube.server.conversion import served_object
from sampan.kube.server.options import DeleteOptions, ListOptions, WriteOptions, check_list_options
from sampan.kube.server.verbs import Api
from sampan.kube.server.watches import Event, Watch, bookmark_object
from sampan.kube.store.interface import StoreError

BACKLOG_LIMIT = 50_000
"""Events that may wait for a reader before its watch is ended."""
AUTHENTICATED = "system:authenticated"


@contextmanager
def _told_as_status() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise error_of(error) from error


class InProcessClient:
    """Implements ``client.interface.Client`` on an `Api` as ``user``."""

    def __init__(self, api: Api, user: User, *, field_manager: str = "sampan") -> None:
        self._api = api
        self._user = user
        self._manager = field_manager

    def _call(
        self,
        verb: str,
        resource: Resource,
        namespace: str | None,
        name: str = "",
        subresource: str | None = None,
        *,
        dry_run: bool = False,
        kind: str = "CreateOptions",
    ) -> Call:
        sub = subresource or ""
        type = self._api.type_of(resource, sub)
        place = (namespace or "") if type.namespaced else ""
        options = WriteOptions(dry_run=dry_run, manager=self._manager, field_validation="Warn", kind=kind)
        call = Call(self._user, type, place, name, sub, options)
        asked = name if resource.plural == "namespaces" and not resource.group else place
        self._api.authorize(self._user, verb, resource, asked, name, sub)
        return call

    async def get(
        self, resource: Resource, name: str, namespace: str | None = None, *, subresource: str | None = None
    ) -> Object:
        """Read one object."""
        return await self._api.get_object(self._call("get", resource, namespace, name, subresource))

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
        """List one page (everything when ``limit`` is None)."""
        call = self._call("list", resource, namespace)
        options = ListOptions(
            label_selector=label_selector or "",
            field_selector=field_selector or "",
            limit=limit or 0,
            continue_token=continue_token or "",
            revision=revision or "",
        )
        check_list_options(options, watch=False)
        page = await self._api.list(call, options)
        items = [served_object(call.type, value) for value in page.values]
        return ObjectList(items, str(page.revision), page.continue_token)

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
        """Changes after ``revision`` (None: first ADDED for all that exists)."""
        call = self._call("watch", resource, namespace)
        options = ListOptions(
            label_selector=label_selector or "",
            field_selector=field_selector or "",
            revision=revision or "",
            bookmarks=True,
        )
        check_list_options(options, watch=True)
        watch = await self._api.watch(call, options)
        try:
            yield _Events(watch)
        finally:
            watch.close()

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
        """Create an object, or POST to a subresource of ``name``."""
        if namespace is None:
            namespace = (obj.get("metadata") or {}).get("namespace")
        call = self._call("create", resource, namespace, name or "", subresource, dry_run=dry_run)
        with _told_as_status():
            return (await self._api.create(call, copy(dict(obj)))).object

    async def update(
        self, resource: Resource, obj: Mapping[str, Any], *, subresource: str | None = None, dry_run: bool = False
    ) -> Object:
        """Replace the object at its own name and namespace."""
        metadata = obj["metadata"]
        call = self._call(
            "update",
            resource,
            metadata.get("namespace"),
            metadata["name"],
            subresource,
            dry_run=dry_run,
            kind="UpdateOptions",
        )
        with _told_as_status():
            return (await self._api.update(call, copy(dict(obj)))).object

    async def patch(
        self,
        resource: Resource,
        name: str,
        patch: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        namespace: str | None = None,
        *,
        patch_type: PatchType = "merge",
        subresource: str | None = None,
        dry_run: bool = False,
    ) -> Object:
        """Patch an object."""
        call = self._call("patch", resource, namespace, name, subresource, dry_run=dry_run, kind="PatchOptions")
        given: Any = patch if isinstance(patch, Mapping) else list(patch)
        with _told_as_status():
            return (await self._api.patch(call, patch_type, copy(given))).object

    async def apply(
        self,
        resource: Resource,
        obj: Mapping[str, Any],
        *,
        field_manager: str,
        force: bool = False,
        subresource: str | None = None,
        dry_run: bool = False,
    ) -> Object:
        """Server-side apply."""
        metadata = obj["metadata"]
        call = self._call(
            "patch",
            resource,
            metadata.get("namespace"),
            metadata["name"],
            subresource,
            dry_run=dry_run,
            kind="PatchOptions",
        )
        call.options.manager, call.options.manager_given, call.options.force = field_manager, True, force
        with _told_as_status():
            return (await self._api.apply(call, copy(dict(obj)))).object

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        *,
        grace_period: int | None = None,
        propagation: Propagation | None = None,
        uid: str | None = None,
        revision: str | None = None,
    ) -> Object:
        """Delete an object; returns it, or a Status."""
        call = self._call("delete", resource, namespace, name)
        options = DeleteOptions(grace_period=grace_period, propagation=propagation, uid=uid, revision=revision)
        with _told_as_status():
            return (await self._api.delete(call, options)).object

    async def delete_collection(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        propagation: Propagation | None = None,
    ) -> None:
        """Delete everything that matches."""
        call = self._call("deletecollection", resource, namespace)
        selecting = ListOptions(label_selector=label_selector or "", field_selector=field_selector or "")
        with _told_as_status():
            await self._api.delete_collection(call, selecting, DeleteOptions(propagation=propagation))

    def impersonate(self, user: str, groups: Sequence[str] = ()) -> InProcessClient:
        """The same client acting as another user.

        Raises:
            ApiError: 403, this user may not impersonate them.
        """
        parts = user.split(":")
        if user.startswith("system:serviceaccount:") and len(parts) == 4:
            self._api.authorize(self._user, "impersonate", Resource("", "v1", "serviceaccounts"), parts[2], parts[3])
            given = groups or ("system:serviceaccounts", f"system:serviceaccounts:{parts[2]}")
        else:
            self._api.authorize(self._user, "impersonate", Resource("", "v1", "users"), "", user)
            given = tuple(groups)
        for group in groups:
            self._api.authorize(self._user, "impersonate", Resource("", "v1", "groups"), "", group)
        if user != "system:anonymous" and AUTHENTICATED not in given:
            given = (*given, AUTHENTICATED)
        return InProcessClient(self._api, User(user, tuple(given)), field_manager=self._manager)


class _Events:
    """The iteration of a watch: its initial events, then what the hub pushes."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._initial = iter(watch.initial)
        self._queue: deque[WatchEvent] = deque()
        self._arrived = asyncio.Event()
        self._ended = False
        self._started = False

    def __aiter__(self) -> AsyncIterator[WatchEvent]:
        return self

    async def __anext__(self) -> WatchEvent:
        if not self._started:
            for kind, event in self._initial:
                return WatchEvent(cast(EventType, kind), event.object(kind))
            self._started = True
            self._watch.initial = ()
            self._watch.start(self)
        while not self._queue:
            if self._ended or self._watch.closed:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        return self._queue.popleft()

    # -- the hub's side

    def events(self, events: list[tuple[str, Event]]) -> None:
        """Queue events for the reader."""
        self._queue.extend(WatchEvent(cast(EventType, kind), event.object(kind)) for kind, event in events)
        if len(self._queue) > BACKLOG_LIMIT:
            self._watch.close()
            self._ended = True
        self._arrived.set()

    def bookmark(self, revision: int) -> None:
        """Queue a bookmark."""
        self._queue.append(WatchEvent("BOOKMARK", bookmark_object(self._watch.type, revision)))
        self._arrived.set()

    def end(self) -> None:
        """Let the iteration end after what is queued."""
        self._ended = True
        self._arrived.set()
