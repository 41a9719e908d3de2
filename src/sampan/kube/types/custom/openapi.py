"""What OpenAPI says of a version of a definition: the kind's schema as served, and its list kind's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sampan.kube.objects import Object
from sampan.kube.types.resource import Schema
from sampan.kube.types.schemas import LIST_META, OBJECT_META, REFERENCE

_API_VERSION = {
    "type": "string",
    "description": "The versioned schema of this representation of an object, as group and version.",
}
_KIND = {"type": "string", "description": "The REST resource this object represents, in CamelCase."}


def definition_name(group: str, version: str, kind: str) -> str:
    """``com.example.v1.Widget``."""
    return ".".join([*reversed(group.split(".")), version, kind])


def served_schema(definition: Object, version: Mapping[str, Any]) -> Schema:
    """The schema of one version with what every object has: apiVersion, kind and full metadata."""
    spec = definition["spec"]
    schema: Mapping[str, Any] = (version.get("schema") or {}).get("openAPIV3Schema") or {
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": True,
    }
    return {
        **schema,
        "properties": {
            **(schema.get("properties") or {}),
            "apiVersion": _API_VERSION,
            "kind": _KIND,
            "metadata": {
                "description": "Standard object's metadata.",
                "allOf": [{"$ref": REFERENCE + OBJECT_META}],
            },
        },
        "x-kubernetes-group-version-kind": [
            {"group": spec["group"], "version": version["name"], "kind": spec["names"]["kind"]}
        ],
    }


def openapi_definitions(definition: Object, version: str) -> dict[str, Schema]:
    """OpenAPI definitions of one version, by name: the kind and its list.

    Raises:
        KeyError: the definition has no such version.
    """
    spec = definition["spec"]
    found = next((one for one in spec["versions"] if one["name"] == version), None)
    if found is None:
        raise KeyError(version)
    kind = spec["names"]["kind"]
    list_kind = spec["names"].get("listKind") or f"{kind}List"
    name = definition_name(spec["group"], version, kind)
    return {
        name: served_schema(definition, found),
        definition_name(spec["group"], version, list_kind): {
            "type": "object",
            "description": f"{list_kind} is a list of {kind}",
            "required": ["items"],
            "properties": {
                "apiVersion": _API_VERSION,
                "kind": _KIND,
                "metadata": {"description": "Standard list metadata.", "allOf": [{"$ref": REFERENCE + LIST_META}]},
                "items": {
                    "type": "array",
                    "description": f"List of {spec['names']['plural']}.",
                    "items": {"allOf": [{"$ref": REFERENCE + name}]},
                },
            },
            "x-kubernetes-group-version-kind": [{"group": spec["group"], "version": version, "kind": list_kind}],
        },
    }
