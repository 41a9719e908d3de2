"""From a Destination to a URL: by reference to anything addressable, by URI, or by both.

A reference may name a core Service or any kind with ``status.address`` (the Addressable duck type); kinds are found among the
CustomResourceDefinitions. Whoever asks is told again when the referenced object changes: `Addressing.resolve` takes the asking
controller's queue and key, and puts the key there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

from sampan.kube.client.resources import CUSTOM_RESOURCE_DEFINITIONS, SERVICES
from sampan.kube.control.interface import Informers, Queue
from sampan.kube.objects import Key, Kind, Object, Resource, dig
from sampan.parts.eventing.errors import UnresolvedError
from sampan.parts.eventing.resources import TOPIC_GROUP, TOPIC_HOST, host_of

BY_KIND = "eventing/kind"


def _kinds(definition: Object) -> list[str]:
    return [f"{definition['spec']['group']}/{definition['spec']['names']['kind']}"]


class Addressing:
    """Resolves destinations from the process's caches."""

    def __init__(self, informers: Informers) -> None:
        self._informers = informers
        self._definitions = informers.informer(CUSTOM_RESOURCE_DEFINITIONS)
        self._definitions.add_index(BY_KIND, _kinds)
        self._interested: dict[tuple[Resource, Key], dict[tuple[int, Key], tuple[Queue, Key]]] = {}
        self._watched: set[Resource] = set()

    async def wait_synced(self) -> None:
        """Return once kinds can be found."""
        await self._definitions.wait_synced()

    async def resolve(self, destination: Mapping[str, Any] | None, namespace: str, queue: Queue, asking: Key) -> str:
        """The URL of a Destination; ``namespace`` is where a reference without one points.

        Raises:
            UnresolvedError: there is no such object, it has no address yet, or the Destination is contradictory.
        """
        given = destination or {}
        reference, uri = given.get("ref"), given.get("uri")
        if not reference:
            if not uri:
                raise UnresolvedError("Unresolved", "destination missing Ref and URI, expected at least one")
            if not urlsplit(uri).netloc:
                raise UnresolvedError(
                    "Unresolved", f"URI is not absolute (both scheme and host should be non-empty): {uri}"
                )
            return str(uri)
        base: str = await self._reference(reference, namespace, queue, asking)
        if not uri:
            return base
        if urlsplit(uri).scheme:
            raise UnresolvedError(
                "Unresolved", "absolute URI is not allowed when Ref or [apiVersion, kind, name] exists"
            )
        return urljoin(base if urlsplit(base).path else f"{base}/", str(uri))

    async def get(self, reference: Mapping[str, Any], namespace: str, queue: Queue, asking: Key) -> Object | None:
        """The object of a reference, or None; changes of it ask again.

        Raises:
            UnresolvedError: the kind is unknown.
        """
        resource = self.resource_of(reference)
        scope = "" if self._cluster_scoped(resource) else reference.get("namespace") or namespace
        key = Key(scope, reference.get("name") or "")
        self._interested.setdefault((resource, key), {})[id(queue), asking] = (queue, asking)
        informer = self._informers.informer(resource)
        if resource not in self._watched:
            self._watched.add(resource)
            informer.on_change(lambda old, new: self._changed(resource, new or old))
        await informer.wait_synced()
        return informer.get(key)

    def resource_of(self, reference: Mapping[str, Any]) -> Resource:
        """The resource that a reference's apiVersion (or group) and kind name.

        Raises:
            UnresolvedError: nothing serves that kind.
        """
        kind = Kind.parse(reference.get("apiVersion") or "", reference.get("kind") or "")
        group = kind.group or reference.get("group") or ""
        if not group and kind.kind == "Service":
            return SERVICES
        for definition in self._definitions.indexed(BY_KIND, f"{group}/{kind.kind}"):
            versions = [one["name"] for one in definition["spec"]["versions"] if one.get("served")]
            version = kind.version if kind.version in versions else next(iter(versions), "")
            return Resource(group, version, definition["spec"]["names"]["plural"])
        raise UnresolvedError("NotFound", f"nothing serves kind {kind.kind} of {kind.api_version or group}")

    def _cluster_scoped(self, resource: Resource) -> bool:
        definition = self._definitions.get(Key("", resource.qualified))
        return definition is not None and definition["spec"]["scope"] == "Cluster"

    async def _reference(self, reference: Mapping[str, Any], namespace: str, queue: Queue, asking: Key) -> str:
        found = await self.get(reference, namespace, queue, asking)
        name = f"{reference.get('kind')} {reference.get('namespace') or namespace}/{reference.get('name')}"
        if found is None:
            resource = self.resource_of(reference)
            raise UnresolvedError("NotFound", f'{resource.qualified} "{reference.get("name")}" not found')
        if found["kind"] == "Topic" and found["apiVersion"].startswith(f"{TOPIC_GROUP}/"):
            return f"http://{TOPIC_HOST}/{found['metadata']['name']}"
        if found["apiVersion"] == "v1" and found["kind"] == "Service":
            return f"http://{host_of(found['metadata']['name'], found['metadata']['namespace'])}"
        status = found.get("status") or {}
        wanted = reference.get("address")
        addresses = status.get("addresses") or ()
        if wanted:
            url = next((one.get("url") for one in addresses if one.get("name") == wanted), None)
            if url is None:
                raise UnresolvedError("Unresolved", f"{name} has no address named {wanted}")
        else:
            url = (addresses[0].get("url") if addresses else None) or dig(status, "address", "url")
        if not url:
            raise UnresolvedError("Unresolved", f"URL missing in address of {name}")
        return str(url)

    def _changed(self, resource: Resource, obj: Object | None) -> None:
        if obj is not None:
            for queue, asking in self._interested.get((resource, Key.of(obj)), {}).values():
                queue.add(asking)
