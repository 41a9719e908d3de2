"""Pruning and defaulting of custom resources by their structural schema.

Unlike built-in kinds, custom resources keep whatever their schema lets through: ``x-kubernetes-preserve-unknown-fields``
keeps the unknown, ``x-kubernetes-embedded-resource`` has an object's own head, and values of a wrong type stay for validation
to refuse. Only ``metadata`` is decoded strictly, as ObjectMeta. The schemas are the CRD's own nodes (``openAPIV3Schema``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sampan.kube.objects import Kind, Object, copy
from sampan.kube.types.resource import Schema
from sampan.kube.types.schema_check import conform
from sampan.kube.types.schemas import OBJECT_META

PRESERVE = "x-kubernetes-preserve-unknown-fields"
EMBEDDED = "x-kubernetes-embedded-resource"
_HEAD = ("apiVersion", "kind", "metadata")


def prune(obj: Object, schema: Schema, kind: Kind) -> list[str]:
    """Drop what the schema of a custom resource does not know, in place; returns the dropped fields' paths.

    Raises:
        ApiError: 400, the metadata of the object or of one embedded in it has a wrong type.
    """
    dropped: list[str] = []
    _prune(obj, schema, "", kind, dropped, whole_object=True)
    return dropped


def _prune(value: Any, schema: Schema, path: str, kind: Kind, dropped: list[str], whole_object: bool = False) -> None:
    if isinstance(value, list):
        items = schema.get("items")
        if items is None:
            return
        for index, item in enumerate(value):
            if isinstance(item, (dict, list)):
                _prune(item, items, f"{path}[{index}]", kind, dropped)
        return
    if not isinstance(value, dict):
        return
    whole_object = whole_object or bool(schema.get(EMBEDDED))
    if whole_object and isinstance(value.get("metadata"), dict):
        inside = f"{path}.metadata" if path else "metadata"
        dropped += [f"{inside}.{field}" for field in conform(value["metadata"], OBJECT_META, kind)]
    properties: Mapping[str, Schema] = schema.get("properties") or {}
    others = schema.get("additionalProperties")
    keep = bool(schema.get(PRESERVE)) or (others is not None and others is not False)
    gone = []
    for key, item in value.items():
        if whole_object and key in _HEAD:
            continue
        here = f"{path}.{key}" if path else key
        field = properties.get(key)
        if field is None:
            if not keep:
                gone.append(key)
                dropped.append(here)
                continue
            if not isinstance(others, Mapping):
                continue
            field = others
        if isinstance(item, (dict, list)):
            _prune(item, field, here, kind, dropped)
    for key in gone:
        del value[key]


def apply_defaults(value: Any, schema: Schema) -> None:
    """Fill the schema's defaults, in place.

    A key that is missing, or null where null is not allowed, takes the default; a null without a default is dropped. A
    default inside an absent object does not create the object.
    """
    if isinstance(value, dict):
        properties: Mapping[str, Schema] = schema.get("properties") or {}
        for key, field in properties.items():
            if key not in value:
                if "default" in field:
                    value[key] = copy(field["default"])
            elif value[key] is None and not field.get("nullable"):
                if "default" in field:
                    value[key] = copy(field["default"])
                else:
                    del value[key]
                    continue
            item = value.get(key)
            if isinstance(item, (dict, list)):
                apply_defaults(item, field)
        others = schema.get("additionalProperties")
        if isinstance(others, Mapping):
            for key in [key for key in value if key not in properties]:
                if value[key] is None and not others.get("nullable"):
                    if "default" in others:
                        value[key] = copy(others["default"])
                    else:
                        del value[key]
                        continue
                if isinstance(value[key], (dict, list)):
                    apply_defaults(value[key], others)
    elif isinstance(value, list):
        items = schema.get("items")
        if isinstance(items, Mapping):
            for index, item in enumerate(value):
                if item is None and not items.get("nullable") and "default" in items:
                    value[index] = copy(items["default"])
                if isinstance(value[index], (dict, list)):
                    apply_defaults(value[index], items)
