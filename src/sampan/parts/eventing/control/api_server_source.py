"""ApiServerSource: changes of Kubernetes objects as events, seen with the rights of the source's ServiceAccount."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable
from typing import Any

import msgspec

from sampan.kernel.tasks import Tasks
from sampan.kube.client.interface import Client, WatchEvent
from sampan.kube.client.resources import NAMESPACES
from sampan.kube.control.conditions import ConditionSet
from sampan.kube.control.controller import Controller
from sampan.kube.control.interface import For, Source
from sampan.kube.objects import Key, Kind, Object, Resource
from sampan.kube.status import ApiError
from sampan.kube.types import selectors
from sampan.kube.types.resource import TypeRegistry
from sampan.parts.eventing import cloudevents, filters
from sampan.parts.eventing.cloudevents import Event
from sampan.parts.eventing.control.dataplane import Shared
from sampan.parts.eventing.control.sources import emit, overrides, resolve_sink, source_fields
from sampan.parts.eventing.control.status import write_status
from sampan.parts.eventing.delivery import Delivery
from sampan.parts.eventing.resources import API_SERVER_SOURCES

log = logging.getLogger(__name__)

CHANGES = {"ADDED": "add", "MODIFIED": "update", "DELETED": "delete"}
DELIVERY = Delivery(retry=5, delay=0.05)
SOURCE = "https://kubernetes.default.svc"
AGAIN = 5.0
"""Seconds until missing rights or kinds are looked for again."""


class ApiServerSourceController(Controller):
    """Runs a watch for each resource of a source."""

    name = "apiserversource-controller"

    def __init__(self, shared: Shared, types: TypeRegistry) -> None:
        super().__init__(shared.context)
        self._shared = shared
        self._types = types
        self._running: dict[Key, tuple[str, Tasks]] = {}

    def sources(self) -> list[Source]:
        return [For(API_SERVER_SOURCES)]

    async def reconcile(self, key: Key) -> float | None:
        source = self.informer(API_SERVER_SOURCES).get(key)
        if source is None or source["metadata"].get("deletionTimestamp"):
            await self._stop(key)
            return None
        conditions = ConditionSet(
            source, ("SinkProvided", "Deployed", "SufficientPermissions", "OIDCIdentityCreated"), self.clock.now()
        )
        conditions.true("OIDCIdentityCreated", "authentication-oidc feature disabled")
        url = await resolve_sink(self, self._shared, source, conditions)
        namespaces = await self._namespaces(source, key.namespace)
        again: float | None = None
        if url:
            try:
                watched = await self._watched(source, namespaces)
                conditions.true("SufficientPermissions")
                await self._run(key, source, url, watched)
                conditions.true("Deployed")
            except ApiError as error:
                await self._stop(key)
                conditions.false("SufficientPermissions", "InsufficientPermissions", str(error))
                conditions.unknown("Deployed", "NotDeployed")
                again = AGAIN
        else:
            await self._stop(key)
        mode = "resource" if source["spec"].get("mode") == "Resource" else "ref"
        types = [(f"dev.knative.apiserver.{mode}.{change}", SOURCE) for change in CHANGES.values()]
        fields = {**source_fields(url, types), "namespaces": namespaces}
        await write_status(self, API_SERVER_SOURCES, source, conditions, fields)
        return again

    async def close(self) -> None:
        """Stop every source."""
        for key in list(self._running):
            await self._stop(key)

    async def _namespaces(self, source: Object, own: str) -> list[str]:
        selector = source["spec"].get("namespaceSelector")
        if selector is None:
            return [own]
        listed = (await self.client.list(NAMESPACES)).items
        return sorted(
            one["metadata"]["name"] for one in listed if selectors.matches(selector, one["metadata"].get("labels"))
        )

    async def _watched(self, source: Object, namespaces: list[str]) -> list[tuple[Resource, str | None, Any, str]]:
        """(resource, namespace, selector, revision) of every watch, each listed once with the account's rights."""
        client, found = self._client(source), []
        for one in source["spec"]["resources"]:
            kind = self._types.find_kind(Kind.parse(one["apiVersion"], one["kind"]))
            if kind is None:
                raise ApiError(404, "NotFound", f"nothing serves kind {one['kind']} of {one['apiVersion']}")
            for namespace in namespaces if kind.namespaced else [None]:
                page = await client.list(kind.resource, namespace, limit=1)
                found.append((kind.resource, namespace, one.get("selector"), page.revision))
        return found

    def _client(self, source: Object) -> Client:
        namespace = source["metadata"]["namespace"]
        account = source["spec"].get("serviceAccountName") or "default"
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated")
        return self.client.impersonate(f"system:serviceaccount:{namespace}:{account}", groups)

    async def _run(
        self, key: Key, source: Object, url: str, watched: list[tuple[Resource, str | None, Any, str]]
    ) -> None:
        wanted = json.dumps([url, source["spec"], [str(one[:2]) for one in watched]], sort_keys=True)
        known = self._running.get(key)
        if known is not None:
            if known[0] == wanted:
                return
            await self._stop(key)
        tasks = Tasks(self.clock, f"apiserversource/{key}")
        self._running[key] = (wanted, tasks)
        for number, one in enumerate(watched):
            tasks.keep(f"watch/{number}", self._watcher(source, url, *one))

    def _watcher(
        self, source: Object, url: str, resource: Resource, namespace: str | None, selector: Any, revision: str
    ) -> Callable[[], Any]:
        """A watch that goes on where it stopped."""
        place: list[str | None] = [revision]
        predicate = filters.all_of([filters.compile_filter(one) for one in source["spec"].get("filters") or ()])

        async def watch() -> None:
            while True:
                try:
                    async with self._client(source).watch(resource, namespace, revision=place[0]) as events:
                        async for change in events:
                            if change.type in CHANGES and _wanted(change.object, selector, source["spec"].get("owner")):
                                await self._tell(source, url, resource, change, predicate)
                            place[0] = change.revision
                except ApiError as error:
                    if not error.expired:
                        raise
                    page = await self._client(source).list(resource, namespace, limit=1)
                    place[0] = page.revision

        return watch

    async def _tell(
        self, source: Object, url: str, resource: Resource, change: WatchEvent, predicate: filters.Predicate
    ) -> None:
        event = event_of(change, resource, whole=source["spec"].get("mode") == "Resource")
        if not predicate(event):
            return
        namespace = source["metadata"]["namespace"]
        outcome = await emit(
            self._shared,
            url,
            event,
            overrides(source),
            DELIVERY,
            namespace,
            origin=f"apiserversource {Key.of(source)}",
        )
        if not outcome.ok:
            log.warning(
                "ApiServerSource %s/%s: the sink did not take an event: %s",
                namespace,
                source["metadata"]["name"],
                outcome.status or outcome.reason,
            )

    async def _stop(self, key: Key) -> None:
        known = self._running.pop(key, None)
        if known is not None:
            await known[1].cancel()


def _wanted(obj: Object, selector: Any, owner: Any) -> bool:
    metadata = obj["metadata"]
    if selector is not None and not selectors.matches(selector, metadata.get("labels")):
        return False
    references = metadata.get("ownerReferences") or ()
    return not owner or any(
        one.get("controller") and (one["apiVersion"], one["kind"]) == (owner.get("apiVersion"), owner.get("kind"))
        for one in references
    )


def event_of(change: WatchEvent, resource: Resource, *, whole: bool) -> Event:
    """The event of a change: the whole object, or a reference to it."""
    obj, metadata = change.object, change.object["metadata"]
    name, namespace = metadata["name"], metadata.get("namespace") or ""
    reference = {"kind": obj["kind"], "namespace": namespace, "name": name, "apiVersion": obj["apiVersion"]}
    mode = "resource" if whole else "ref"
    event = cloudevents.make(
        f"dev.knative.apiserver.{mode}.{CHANGES[change.type]}",
        SOURCE,
        str(uuid.uuid4()),
        msgspec.json.encode(obj if whole else reference),
        datacontenttype="application/json",
        subject=resource.path(namespace or None, name),
        kind=obj["kind"],
        apiversion=obj["apiVersion"],
        name=name,
    )
    if namespace:
        event.attributes["namespace"] = namespace
    return event
