"""Discovery: which groups, versions and resources are served, in the legacy and the aggregated form.

Documents are made when first asked for and kept until the table of types (or the set of aggregated APIs) changes; each has
an ETag, so clients that cache them pay one 304.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sampan.kube.objects import Object
from sampan.kube.server.negotiation import clauses
from sampan.kube.server.representation import json
from sampan.kube.types.resource import ResourceType, TypeRegistry

_VERSION = re.compile(r"v(\d+)(?:(alpha|beta)(\d+))?")
_STAGES = {None: 3, "beta": 2, "alpha": 1}
AGGREGATED = "apidiscovery.k8s.io"


class Document(NamedTuple):
    """An encoded document with its tag and media type."""

    body: bytes
    etag: str
    content_type: str = "application/json"


class Remote(NamedTuple):
    """A group-version that another server answers for."""

    group: str
    version: str
    resources: Sequence[Object]
    """Its aggregated discovery resources."""
    available: bool
    group_priority: int = 0
    version_priority: int = 0


def version_order(version: str) -> tuple[int, int, int, str]:
    """A sort key that puts v2 before v1, GA before beta before alpha, and everything else last."""
    match = _VERSION.fullmatch(version)
    if match is None:
        return (0, 0, 0, version)
    major, stage, minor = match.groups()
    return (-_STAGES[stage], -int(major), -int(minor or 0), version)


def _document(obj: Any, content_type: str = "application/json") -> Document:
    body = json(obj) + b"\n"
    return Document(body, hashlib.sha512(body).hexdigest().upper(), content_type)


class Discovery:
    """The discovery documents of one table of types."""

    def __init__(
        self, types: TypeRegistry, address: Callable[[], str], remotes: Callable[[], Sequence[Remote]] = lambda: ()
    ) -> None:
        self._types = types
        self._address = address
        self._remotes = remotes
        self._documents: dict[tuple[str, ...], Document] = {}
        types.on_change(self.forget)

    def forget(self) -> None:
        """Make the documents again when next asked for."""
        self._documents.clear()

    def find(self, path: str, accept: str) -> Document | None:
        """The document of ``/api``, ``/apis``, ``/api/v1``, ``/apis/<group>`` or ``/apis/<group>/<version>``."""
        parts = path.strip("/").split("/")
        form = _wanted(accept) if len(parts) == 1 else ""
        key = (*parts, form)
        document = self._documents.get(key)
        if document is None:
            document = self._make(parts, form)
            if document is not None:
                self._documents[key] = document
        return document

    def _make(self, parts: list[str], form: str) -> Document | None:
        match parts:
            case ["api"] | ["apis"] if form:
                return self._aggregated(core=parts[0] == "api", version=form)
            case ["api"]:
                return _document(
                    {
                        "kind": "APIVersions",
                        "versions": ["v1"],
                        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": self._address()}],
                    }
                )
            case ["apis"]:
                groups = [self._group(group, versions) for group, versions in self._groups().items() if group]
                return _document({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
            case ["api", version]:
                return self._resources("", version)
            case ["apis", group]:
                versions = self._groups().get(group)
                if versions is None or not group:
                    return None
                return _document({"kind": "APIGroup", "apiVersion": "v1", **self._group(group, versions)})
            case ["apis", group, version]:
                return self._resources(group, version)
        return None

    def _groups(self) -> dict[str, list[str]]:
        """Versions of each group in preference order, groups in the order they were first served."""
        groups: dict[str, list[str]] = {}
        for type in self._types.all():
            versions = groups.setdefault(type.resource.group, [])
            if type.resource.version not in versions:
                versions.append(type.resource.version)
        for remote in self._remotes():
            versions = groups.setdefault(remote.group, [])
            if remote.version not in versions:
                versions.append(remote.version)
        for versions in groups.values():
            versions.sort(key=version_order)
        return groups

    @staticmethod
    def _group(group: str, versions: Sequence[str]) -> Object:
        listed = [{"groupVersion": f"{group}/{version}", "version": version} for version in versions]
        return {"name": group, "versions": listed, "preferredVersion": listed[0]}

    def _served(self, group: str, version: str) -> list[ResourceType]:
        found = [t for t in self._types.all() if t.resource.group == group and t.resource.version == version]
        return sorted(found, key=lambda type: type.resource.plural)

    def _resources(self, group: str, version: str) -> Document | None:
        types = self._served(group, version)
        if not types:
            return None
        resources: list[Object] = []
        for type in types:
            entry: Object = {
                "name": type.resource.plural,
                "singularName": type.singular,
                "namespaced": type.namespaced,
                "kind": type.kind,
                "verbs": sorted(type.verbs),
            }
            if type.short_names:
                entry["shortNames"] = list(type.short_names)
            if type.categories:
                entry["categories"] = list(type.categories)
            if "watch" in type.verbs:
                entry["storageVersionHash"] = _storage_hash(type)
            resources.append(entry)
            for name, sub in sorted(type.subresources.items()):
                below: Object = {
                    "name": f"{type.resource.plural}/{name}",
                    "singularName": "",
                    "namespaced": type.namespaced,
                    "kind": sub.kind.kind,
                    "verbs": sorted(sub.verbs),
                }
                if (sub.kind.group, sub.kind.version) != (group, version):
                    below["group"], below["version"] = sub.kind.group, sub.kind.version
                resources.append(below)
        return _document(
            {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": f"{group}/{version}" if group else version,
                "resources": resources,
            }
        )

    def _aggregated(self, *, core: bool, version: str) -> Document:
        items = []
        remotes = {(remote.group, remote.version): remote for remote in self._remotes()}
        for group, versions in self._groups().items():
            if (group == "") is not core:
                continue
            listed = []
            for served in versions:
                remote = remotes.get((group, served))
                types = self._served(group, served)
                resources = (
                    list(map(_aggregated_resource, types)) if types else list(remote.resources if remote else ())
                )
                fresh = bool(types) or (remote is not None and remote.available)
                listed.append({"version": served, "resources": resources, "freshness": "Current" if fresh else "Stale"})
            items.append({"metadata": {"name": group, "creationTimestamp": None}, "versions": listed})
        document = {
            "kind": "APIGroupDiscoveryList",
            "apiVersion": f"{AGGREGATED}/{version}",
            "metadata": {},
            "items": items,
        }
        return _document(document, f"application/json;g={AGGREGATED};v={version};as=APIGroupDiscoveryList")


def _aggregated_resource(type: ResourceType) -> Object:
    group, version = type.resource.group, type.resource.version
    entry: Object = {
        "resource": type.resource.plural,
        "responseKind": {"group": group, "version": version, "kind": type.kind},
        "scope": "Namespaced" if type.namespaced else "Cluster",
        "singularResource": type.singular,
        "verbs": sorted(type.verbs),
    }
    if type.short_names:
        entry["shortNames"] = list(type.short_names)
    if type.categories:
        entry["categories"] = list(type.categories)
    if type.subresources:
        entry["subresources"] = [
            {
                "subresource": name,
                "responseKind": {"group": sub.kind.group, "version": sub.kind.version, "kind": sub.kind.kind},
                "verbs": sorted(sub.verbs),
            }
            for name, sub in sorted(type.subresources.items())
        ]
    return entry


def _storage_hash(type: ResourceType) -> str:
    import base64

    stored = type.stored_as
    digest = hashlib.sha256(f"{stored.group}/{stored.version}/{type.kind}".encode()).digest()
    return base64.b64encode(digest[:8]).decode()


def _wanted(accept: str) -> str:
    """The version of the aggregated form that an Accept header prefers; empty: the legacy form."""
    for media, parameters in clauses(accept):
        if media not in ("application/json", "application/*", "*/*"):
            continue
        if not parameters.get("as"):
            return ""
        if parameters.get("as") == "APIGroupDiscoveryList" and parameters.get("g") == AGGREGATED:
            version = parameters.get("v", "")
            if version in ("v2", "v2beta1"):
                return version
    return ""
