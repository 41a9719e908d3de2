"""OpenAPI documents: v3 a group-version (what kubectl apply, explain and validation read), v2 as one.

Documents are made when asked for and kept compressed under a hash that says what went into them; the index is cheap. Each
lists, for every resource, the operations that clients look for (kubectl picks a patch type and finds out about field
validation from the PATCH of an item path) and the schemas those kinds reach.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sampan import __version__
from sampan.kube.objects import Object, decode
from sampan.kube.server import openapi_v2
from sampan.kube.server.representation import json
from sampan.kube.server.version import KUBERNETES_VERSION
from sampan.kube.types import schemas
from sampan.kube.types.resource import ResourceType, TypeRegistry
from sampan.kube.types.schemas import REFERENCE

_PATCH_TYPES = ("application/json-patch+json", "application/merge-patch+json")
_STRATEGIC = "application/strategic-merge-patch+json"
_APPLY = "application/apply-patch+yaml"

_WRITE_PARAMETERS = ("dryRun", "fieldManager", "fieldValidation")
_LIST_PARAMETERS: Mapping[str, str] = {
    "allowWatchBookmarks": "boolean",
    "continue": "string",
    "fieldSelector": "string",
    "labelSelector": "string",
    "limit": "integer",
    "resourceVersion": "string",
    "resourceVersionMatch": "string",
    "sendInitialEvents": "boolean",
    "timeoutSeconds": "integer",
    "watch": "boolean",
}
_META = "io.k8s.apimachinery.pkg.apis.meta.v1"


def group_path(group: str, version: str) -> str:
    """``api/v1`` or ``apis/apps/v1``."""
    return f"apis/{group}/{version}" if group else f"api/{version}"


class OpenApi:
    """The OpenAPI documents of one table of types."""

    def __init__(self, types: TypeRegistry) -> None:
        self._types = types
        self._documents: dict[tuple[str, str], bytes] = {}
        self._hashes: dict[str, str] = {}
        types.on_change(self._hashes.clear)

    def index(self) -> Object:
        """The document of ``/openapi/v3``."""
        return {
            "paths": {
                path: {"serverRelativeURL": f"/openapi/v3/{path}?hash={self.hash(path)}"} for path in self._paths()
            }
        }

    def hash(self, path: str) -> str:
        """The hash of a group-version's document; empty: there is none."""
        if not self._hashes:
            for group, types in self._by_path().items():
                digest = hashlib.sha512(__version__.encode())
                for type in types:
                    digest.update(repr((type.resource, type.kind, type.verbs, sorted(type.subresources))).encode())
                    if type.custom:
                        digest.update(json(type.schema))
                self._hashes[group] = digest.hexdigest().upper()
        return self._hashes.get(path, "")

    def document(self, path: str) -> bytes | None:
        """The v3 document of ``apis/apps/v1``, gzip-compressed; None: not served."""
        hash = self.hash(path)
        if not hash:
            return None
        compressed = self._documents.get((path, hash))
        if compressed is None:
            types = self._by_path()[path]
            packer = zlib.compressobj(6, wbits=31)
            compressed = packer.compress(json(_document(types))) + packer.flush()
            for stale in [key for key in self._documents if key[0] == path]:
                del self._documents[stale]
            self._documents[path, hash] = compressed
        return compressed

    def v2(self, *, protobuf: bool) -> tuple[bytes, str]:
        """The Swagger 2.0 document of everything served, gzip-compressed, in JSON or in protobuf; and its hash."""
        self.hash("")
        hash = hashlib.sha512("".join(sorted(self._hashes.values())).encode()).hexdigest().upper()
        key = ("v2.pb" if protobuf else "v2.json", hash)
        compressed = self._documents.get(key)
        if compressed is None:
            encoded = openapi_v2.encode(self._v2()) if protobuf else json(self._v2())
            packer = zlib.compressobj(6, wbits=31)
            compressed = packer.compress(encoded) + packer.flush()
            for stale in [other for other in self._documents if other[0] == key[0]]:
                del self._documents[stale]
            self._documents[key] = compressed
        return compressed, hash

    def _v2(self) -> Object:
        paths: Object = {}
        found: Object = {}
        for types in self._by_path().values():
            for type in types:
                paths.update(_paths(type))
            found.update(_reachable(types))
        document = {
            "swagger": "2.0",
            "info": {"title": "Kubernetes", "version": KUBERNETES_VERSION},
            "paths": {path: _as_v2(item) for path, item in paths.items()},
            "definitions": found,
        }
        renamed: Object = decode(json(document).replace(REFERENCE.encode(), b"#/definitions/"))
        return renamed

    def _by_path(self) -> dict[str, list[ResourceType]]:
        found: dict[str, list[ResourceType]] = {}
        for type in self._types.all():
            found.setdefault(group_path(type.resource.group, type.resource.version), []).append(type)
        return found

    def _paths(self) -> Iterator[str]:
        yield from self._by_path()


def _document(types: list[ResourceType]) -> Object:
    paths: Object = {}
    for type in types:
        paths.update(_paths(type))
    return {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": KUBERNETES_VERSION},
        "paths": paths,
        "components": {"schemas": _reachable(types)},
    }


# -- schemas


def _reachable(types: Iterable[ResourceType]) -> Object:
    """Every schema that the kinds, their lists and their requests reach."""
    found: Object = {}
    wanted: list[str] = [f"{_META}.{name}" for name in ("DeleteOptions", "Status", "Patch", "ListMeta", "ObjectMeta")]
    for type in types:
        if type.schema is None:
            continue
        found[type.definition] = _with_kind(type)
        wanted.extend(_references(type.schema))
        if "list" in type.verbs:
            found[type.definition + "List"] = _list_schema(type)
        for sub in type.subresources.values():
            name = schemas.definition_name(sub.kind.group, sub.kind.version, sub.kind.kind)
            wanted.append(name)
    known = schemas.definitions()
    while wanted:
        name = wanted.pop()
        if name in found or name not in known:
            continue
        found[name] = known[name]
        wanted.extend(_references(known[name]))
    return dict(sorted(found.items()))


def _with_kind(type: ResourceType) -> Object:
    assert type.schema is not None
    kind = {"group": type.resource.group, "version": type.resource.version, "kind": type.kind}
    return {**type.schema, "x-kubernetes-group-version-kind": [kind]}


def _list_schema(type: ResourceType) -> Object:
    kind = {"group": type.resource.group, "version": type.resource.version, "kind": type.list_kind}
    return {
        "type": "object",
        "description": f"{type.list_kind} is a list of {type.kind}",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"$ref": f"{REFERENCE}{_META}.ListMeta"},
            "items": {"type": "array", "items": {"$ref": REFERENCE + type.definition}},
        },
        "x-kubernetes-group-version-kind": [kind],
    }


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, Mapping):
        reference = schema.get("$ref")
        if isinstance(reference, str):
            yield reference.removeprefix(REFERENCE)
        for value in schema.values():
            if isinstance(value, (Mapping, list)):
                yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


# -- paths


def _paths(type: ResourceType) -> Object:
    resource = type.resource
    base = f"/{group_path(resource.group, resource.version)}"
    inside = f"{base}/namespaces/{{namespace}}" if type.namespaced else base
    paths: Object = {}
    collection: Object = {}
    if "list" in type.verbs:
        collection["get"] = _operation(type, "list", _query(_LIST_PARAMETERS))
    if "create" in type.verbs:
        collection["post"] = _operation(type, "post", _write_query(), body=type.definition)
    if "deletecollection" in type.verbs:
        collection["delete"] = _operation(type, "deletecollection", _query(_LIST_PARAMETERS))
    if collection:
        paths[f"{inside}/{resource.plural}"] = {**collection, "parameters": _place(type, named=False)}
    if type.namespaced and "list" in type.verbs:
        paths[f"{base}/{resource.plural}"] = {"get": collection["get"]}
    item = _item(type, type.verbs, type.definition, "")
    if item:
        paths[f"{inside}/{resource.plural}/{{name}}"] = {**item, "parameters": _place(type, named=True)}
    for name, sub in sorted(type.subresources.items()):
        definition = schemas.definition_name(sub.kind.group, sub.kind.version, sub.kind.kind)
        if sub.kind == type.gvk:
            definition = type.definition
        elif definition not in schemas.definitions():
            definition = ""  # options of a connection: they travel in the query, and what answers is a stream
        below = _item(type, sub.verbs, definition, name)
        if below:
            paths[f"{inside}/{resource.plural}/{{name}}/{name}"] = {**below, "parameters": _place(type, named=True)}
    return paths


def _item(type: ResourceType, verbs: Iterable[str], definition: str, subresource: str) -> Object:
    item: Object = {}
    for verb in verbs:
        match verb:
            case "get":
                item["get"] = _operation(type, "get", [], definition=definition, subresource=subresource)
            case "update":
                item["put"] = _operation(type, "put", _write_query(), body=definition, subresource=subresource)
            case "patch":
                item["patch"] = _operation(
                    type, "patch", _write_query(force=True), body=f"{_META}.Patch", subresource=subresource
                )
            case "delete":
                parameters = _query(
                    {"dryRun": "string", "gracePeriodSeconds": "integer", "propagationPolicy": "string"}
                )
                item["delete"] = _operation(type, "delete", parameters, body=f"{_META}.DeleteOptions")
            case "create" if subresource:
                item["post"] = _operation(type, "post", _write_query(), body=definition, subresource=subresource)
    return item


def _operation(
    type: ResourceType,
    action: str,
    parameters: list[Object],
    *,
    body: str = "",
    definition: str = "",
    subresource: str = "",
) -> Object:
    shown = definition or ("" if subresource else type.definition + ("List" if action == "list" else ""))
    kind = {"group": type.resource.group, "version": type.resource.version, "kind": type.kind}
    if subresource:
        sub = type.subresources[subresource].kind
        kind = {"group": sub.group, "version": sub.version, "kind": sub.kind}
    operation: Object = {
        "operationId": "_".join(filter(None, (action, *type.resource, subresource))).replace(".", "_"),
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": kind,
        "parameters": parameters,
        "responses": {
            "200": {"description": "OK", "content": {"application/json": _schema(shown) if shown else _TEXT}}
        },
    }
    if body:
        media: Iterable[str] = ("application/json", "application/yaml")
        if action == "patch":
            media = [*_PATCH_TYPES, *(() if type.custom else (_STRATEGIC,)), _APPLY]
        operation["requestBody"] = {"required": True, "content": {name: _schema(body) for name in media}}
    return operation


_TEXT: Object = {"schema": {"type": "string"}}


def _schema(definition: str) -> Object:
    return {"schema": {"$ref": REFERENCE + definition}}


def _query(parameters: Mapping[str, str]) -> list[Object]:
    return [{"name": name, "in": "query", "schema": {"type": kind}} for name, kind in parameters.items()]


def _write_query(*, force: bool = False) -> list[Object]:
    parameters: dict[str, str] = dict.fromkeys(_WRITE_PARAMETERS, "string")
    if force:
        parameters["force"] = "boolean"
    return _query(parameters)


def _place(type: ResourceType, *, named: bool) -> list[Object]:
    names = (["name"] if named else []) + (["namespace"] if type.namespaced else [])
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


# -- version 2


def _as_v2(item: Object) -> Object:
    """A v3 path item in Swagger 2.0."""
    converted: Object = {}
    for method, operation in item.items():
        if method == "parameters":
            converted[method] = [_parameter_v2(parameter) for parameter in operation]
            continue
        body = operation.get("requestBody")
        parameters = [_parameter_v2(parameter) for parameter in operation["parameters"]]
        if body is not None:
            schema = next(iter(body["content"].values()))["schema"]
            parameters.append({"name": "body", "in": "body", "required": True, "schema": schema})
        response = operation["responses"]["200"]
        changed = {key: value for key, value in operation.items() if key != "requestBody"}
        changed |= {
            "consumes": list(body["content"]) if body is not None else ["*/*"],
            "produces": ["application/json", "application/yaml"],
            "parameters": parameters,
            "responses": {"200": {"description": "OK", "schema": response["content"]["application/json"]["schema"]}},
        }
        converted[method] = changed
    return converted


def _parameter_v2(parameter: Object) -> Object:
    changed = {key: value for key, value in parameter.items() if key != "schema"}
    return {**changed, "type": parameter["schema"]["type"]}
