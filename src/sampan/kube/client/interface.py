"""The one way to reach the Kubernetes API from Python, whatever process one is in.

Two transports implement `Client` with the same behaviour: ``inprocess`` calls the server's verbs directly, ``http``
speaks to any Kubernetes API server (ours or a real one). Every failure is an ``ApiError``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, NamedTuple, Protocol

from sampan.kube.objects import Object, Resource

PatchType = Literal["json", "merge", "strategic"]
Propagation = Literal["Background", "Foreground", "Orphan"]
EventType = Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]


class WatchEvent(NamedTuple):
    """One change. The object may be shared with other watchers: copy before changing it."""

    type: EventType
    object: Object

    @property
    def revision(self) -> str:
        """The object's resourceVersion: where to resume."""
        revision: str = self.object["metadata"]["resourceVersion"]
        return revision


class ObjectList(NamedTuple):
    """One page of a list, consistent at ``revision``."""

    items: list[Object]
    revision: str
    continue_token: str = ""


class Client(Protocol):
    """Create, read, watch, patch, apply and delete objects as one identity.

    ``namespace`` is None for cluster-scoped resources; for `list` and `watch` of namespaced ones None means all namespaces.
    ``subresource`` is e.g. ``"status"``, ``"scale"``. All methods raise ``ApiError``.
    """

    async def get(
        self, resource: Resource, name: str, namespace: str | None = None, *, subresource: str | None = None
    ) -> Object:
        """Read one object."""
        ...

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
        ...

    def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        revision: str | None = None,
    ) -> AbstractAsyncContextManager[AsyncIterator[WatchEvent]]:
        """Changes after ``revision`` (None: first ADDED for all that exists). Entering the context means the watch stands.

        The iteration ends when the server closes the watch (resume from the last revision); a revision that is too old
        raises an ``ApiError`` with ``expired`` true: list again. Bookmarks are delivered.
        """
        ...

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
        """Create an object, or POST to a subresource of ``name`` (``eviction``, ``binding``, ``token``)."""
        ...

    async def update(
        self, resource: Resource, obj: Mapping[str, Any], *, subresource: str | None = None, dry_run: bool = False
    ) -> Object:
        """Replace the object at its own name and namespace; its ``resourceVersion``, if set, must be current."""
        ...

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
        ...

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
        ...

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
        """Delete an object (``uid`` and ``revision`` are preconditions); returns it, or a Status."""
        ...

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
        ...

    def impersonate(self, user: str, groups: Sequence[str] = ()) -> Client:
        """The same client acting as another user (needs the impersonate verb)."""
        ...
