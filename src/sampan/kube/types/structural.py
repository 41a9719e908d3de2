"""Pruning and defaulting of custom resources by their structural schema.

Unlike built-in kinds, custom resources keep whatever their schema lets through: ``x-kubernetes-preserve-unknown-fields``
keeps the unknown, ``x-kubernetes-embedded-resource`` has an object's own head, and values of a wrong type stay for validation
to refuse. Only ``metadata`` is decoded strictly, as ObjectMeta. The schemas are the CRD's own nodes (``openAPIV3Schema``).

Most writes change a leaf of a large object. Where the state before is given, which has been pruned and defaulted already,
both walks leave out what equals it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sampan.kube.objects import Kind, Object, copy
from sampan.kube.types.resource import Schema
from sampan.kube.types.schema_check import conform
from sampan.kube.types.schemas import OBJECT_META

PRESERVE = "x-kubernetes-preserve-unknown-fields"
EMBEDDED = "x-kubernetes-embedded-resource"
_HEAD = ("apiVersion", "kind", "metadata")


def prune(obj: Object, schema: Schema, kind: Kind, old: Object | None = None) -> list[str]:
    """Drop what the schema of a custom resource does not know, in place; returns the dropped fields' paths.

    ``old``: the object's state before, pruned by the same schema.

    Raises:
        ApiError: 400, the metadata of the object or of one embedded in it has a wrong type.
    """
    dropped: list[str] = []
    _prune(obj, schema, "", kind, dropped, old, whole_object=True)
    return dropped


def _prune(
    value: Any, schema: Schema, path: str, kind: Kind, dropped: list[str], old: Any, whole_object: bool = False
) -> None:
    if isinstance(value, list):
        items = schema.get("items")
        if items is None:
            return
        before = beside(value, old)
        for index, item in enumerate(value):
            if isinstance(item, (dict, list)) and item != before[index]:
                _prune(item, items, f"{path}[{index}]", kind, dropped, before[index])
        return
    if not isinstance(value, dict):
        return
    whole_object = whole_object or bool(schema.get(EMBEDDED))
    if whole_object and isinstance(value.get("metadata"), dict):
        inside = f"{path}.metadata" if path else "metadata"
        dropped += [f"{inside}.{field}" for field in conform(value["metadata"], OBJECT_META, kind)]
    known = old if isinstance(old, dict) else _NOTHING
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
        if isinstance(item, (dict, list)) and item != known.get(key):
            _prune(item, field, here, kind, dropped, known.get(key))
    for key in gone:
        del value[key]


def apply_defaults(value: Any, schema: Schema, old: Any = None) -> None:
    """Fill the schema's defaults, in place.

    A key that is missing, or null where null is not allowed, takes the default; a null without a default is dropped. A
    default inside an absent object does not create the object. ``old``: the state before, with its defaults.
    """
    if isinstance(value, dict):
        known = old if isinstance(old, dict) else _NOTHING
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
            if isinstance(item, (dict, list)) and item != known.get(key):
                apply_defaults(item, field, known.get(key))
        others = schema.get("additionalProperties")
        if isinstance(others, Mapping):
            for key in [key for key in value if key not in properties]:
                if value[key] is None and not others.get("nullable"):
                    if "default" in others:
                        value[key] = copy(others["default"])
                    else:
                        del value[key]
                        continue
                if isinstance(value[key], (dict, list)) and value[key] != known.get(key):
                    apply_defaults(value[key], others, known.get(key))
    elif isinstance(value, list):
        items = schema.get("items")
        if isinstance(items, Mapping):
            before = beside(value, old)
            for index, item in enumerate(value):
                if item is None and not items.get("nullable") and "default" in items:
                    value[index] = copy(items["default"])
                if isinstance(value[index], (dict, list)) and value[index] != before[index]:
                    apply_defaults(value[index], items, before[index])


_NOTHING: Mapping[str, Any] = {}


def beside(items: Sequence[Any], old: Any, missing: Any = None) -> Sequence[Any]:
    """For each item of a list the one that stood in its place, as far as that can be told: counted from the front up to the first
    that differs, from the end after it."""
    if not isinstance(old, list):
        return [missing] * len(items)
    if len(old) == len(items):
        return old
    front = next((at for at, (one, other) in enumerate(zip(items, old, strict=False)) if one != other), len(old))
    shift = len(old) - len(items)
    return [old[at] if at < front else old[at + shift] if at + shift >= 0 else missing for at in range(len(items))]
