"""Pruning and defaulting of custom resources by their structural schema.

Unlike built-in kinds, custom resources keep whatever their schema lets through: ``x-kubernetes-preserve-unknown-fields``
keeps the unknown, ``x-kubernetes-embedded-resource`` has an object's own head, and values of a wrong type stay for validation
to refuse. Only ``metadata`` is decoded strictly, as ObjectMeta. The schemas are the CRD's own nodes (``openAPIV3Schema``).

Most writes change a leaf of a large object. Where the state before is given, which has been pruned and defaulted already,
both walks leave out what equals it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    """Fill the schema's defaults, in place; for repeated use keep the closure of `compile_defaults`."""
    compile_defaults(schema)(value, old)


Defaulter = Callable[[Any, Any], None]
"""Fills the defaults of a value, in place; the second argument is the state before, with its defaults, or None."""


def compile_defaults(schema: Schema) -> Defaulter:
    """One closure for a schema node and all below it.

    A key that is missing, or null where null is not allowed, takes the default; a null without a default is dropped. A
    default inside an absent object does not create the object.
    """
    properties: Mapping[str, Schema] = schema.get("properties") or {}
    fields = {name: _Field(field) for name, field in properties.items()}
    given = [(name, field["default"]) for name, field in properties.items() if "default" in field]
    extra = schema.get("additionalProperties")
    others = _Field(extra) if isinstance(extra, Mapping) else None
    items = schema.get("items")
    item = _Field(items) if isinstance(items, Mapping) else None

    def fill_object(value: dict[str, Any], old: Any) -> None:
        for name, default in given:
            if name not in value:
                value[name] = copy(default)
        known = old if isinstance(old, dict) else _NOTHING
        gone = None
        for key, entry in value.items():
            field = fields.get(key, others)
            if field is None:
                continue
            if entry is None and not field.nullable:
                if not field.has_default:
                    gone = [key] if gone is None else [*gone, key]
                    continue
                entry = value[key] = copy(field.default)
            if isinstance(entry, (dict, list)):
                before = known.get(key)
                if entry != before:
                    field.fill(entry, before)
        if gone is not None:
            for key in gone:
                del value[key]

    def fill(value: Any, old: Any) -> None:
        if isinstance(value, dict):
            fill_object(value, old)
        elif isinstance(value, list) and item is not None:
            before = beside(value, old)
            for index, entry in enumerate(value):
                if entry is None and not item.nullable and item.has_default:
                    entry = value[index] = copy(item.default)
                if isinstance(entry, (dict, list)) and entry != before[index]:
                    item.fill(entry, before[index])

    return fill


class _Field:
    """What defaulting needs to know of a property, of other keys, or of items; what is below is compiled at first use."""

    __slots__ = ("_fill", "_schema", "default", "has_default", "nullable")

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._fill: Defaulter | None = None
        self.nullable = bool(schema.get("nullable"))
        self.has_default = "default" in schema
        self.default = schema.get("default")

    def fill(self, value: Any, old: Any) -> None:
        """Fill the defaults below."""
        if self._fill is None:
            self._fill = compile_defaults(self._schema)
        self._fill(value, old)


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
