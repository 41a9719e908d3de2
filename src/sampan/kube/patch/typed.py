"""What a schema says of a value's structure: which lists and maps merge item by item, and which are one piece.

A `Shape` is made once for each schema node (lazily: a kind's untouched corners cost nothing) and answers four questions about
values: which fields a value has (`Shape.owned`), which it would add to nothing (`Shape.added`), what differs between two
values (`Shape.compare`), and how a configuration merges over a live value (`Shape.merge`). Field sets are those of
``fieldset``.

Rules: ``x-kubernetes-list-type`` map and set merge by item, any other list is one piece; objects are granular unless
``x-kubernetes-map-type`` is atomic; what the schema does not describe is granular in its objects and atomic in its lists.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sampan.kube.objects import copy
from sampan.kube.patch.fieldset import FieldSet, step_text
from sampan.kube.status import ApiError, bad_request
from sampan.kube.types import schemas
from sampan.kube.types.resource import Schema

_PLAIN = frozenset({"metadata", "spec", "status", "template", "jobTemplate", "strategy", "updateStrategy"})
"""Properties that upstream's Go types hold by value: they exist even when empty, so creating an object does not add them."""
_KEY_DEFAULTS = {"protocol": "TCP"}
"""Defaults of list-map keys in built-in kinds (the shipped schemas carry no defaults)."""


class SchemaError(Exception):
    """A value does not have the structure its schema demands; the text begins with the path."""


class Shape:
    """One piece: a scalar, an atomic list or an atomic map."""

    leaf = True
    plain = False
    """Not counted as added itself."""
    lasting: frozenset[str] = frozenset()
    """Steps below it that are never removed as a whole."""

    def owned(self, value: Any, path: str) -> FieldSet:
        """The node of a value's fields; what is empty is owned as a whole.

        Raises:
            SchemaError: the value does not fit.
        """
        return {}

    def added(self, value: Any) -> FieldSet:
        """The node of fields a value adds where there was none."""
        return {}

    def compare(self, old: Any, new: Any) -> tuple[FieldSet | None, FieldSet | None]:
        """Nodes of what changed (added or modified) and of what was removed; None: nothing."""
        return (None, None) if old == new else ({}, None)

    def merge(self, live: Any, config: Any) -> Any:
        """``config`` over ``live``, sharing nothing with either."""
        return copy(config)

    def child(self, step: str) -> Shape:
        """The shape below a step."""
        return _LEAF


_LEAF = Shape()


class _Object(Shape):
    """A granular object: declared properties, and other keys of one shape (or none)."""

    leaf = False

    def __init__(self, schema: Schema, other: Shape | None, *, plain: bool = False, skip: Iterable[str] = ()) -> None:
        self._properties: Mapping[str, Any] = schema.get("properties") or {}
        self._required = frozenset(schema.get("required") or ())
        self._other = other
        self._fields: dict[str, tuple[str, Shape, bool]] = {}
        self._skip = frozenset(skip)
        self.plain = plain

    def _field(self, key: str) -> tuple[str, Shape, bool]:
        """Step, shape, and whether the property is declared."""
        found = self._fields.get(key)
        if found is None:
            schema = self._properties.get(key)
            if schema is None:
                return f"f:{key}", self._other or _UNTYPED, False
            shape = of_schema(schema, plain=key in _PLAIN or key in self._required)
            found = self._fields[key] = (f"f:{key}", shape, True)
        return found

    def child(self, step: str) -> Shape:
        return self._field(step[2:])[1]

    def owned(self, value: Any, path: str) -> FieldSet:
        if not isinstance(value, dict):
            return {}
        out: FieldSet = {}
        skip, fields = self._skip, self._fields
        for key, item in value.items():
            if key in skip:
                continue
            step, shape, declared = fields.get(key) or self._field(key)
            if not declared and self._other is None:
                raise SchemaError(f"{path}.{key}: field not declared in schema")
            if shape.leaf:
                out[step] = {}
                continue
            node = shape.owned(item, f"{path}.{key}")
            out[step] = {".": {}, **node} if node and not declared else node
        return out

    def added(self, value: Any) -> FieldSet:
        if not isinstance(value, dict):
            return {}
        out: FieldSet = {}
        skip, fields = self._skip, self._fields
        for key, item in value.items():
            if key in skip:
                continue
            step, shape, _ = fields.get(key) or self._field(key)
            if shape.leaf:
                out[step] = {}
                continue
            node = shape.added(item)
            if node and not shape.plain:
                node["."] = {}
            out[step] = node
        return out

    def compare(self, old: Any, new: Any) -> tuple[FieldSet | None, FieldSet | None]:
        if old == new:
            return None, None
        if not isinstance(old, dict) or not isinstance(new, dict):
            return _replaced(self, old, new)
        if not old and not new:
            return None, None
        changed: FieldSet = {}
        removed: FieldSet = {}
        skip = self._skip
        for key, item in new.items():
            if key in skip:
                continue
            step, shape, _ = self._fields.get(key) or self._field(key)
            if key not in old:
                changed[step] = _whole(shape, item)
                continue
            grown, gone = shape.compare(old[key], item)
            if grown is not None:
                changed[step] = grown
            if gone is not None:
                removed[step] = gone
        for key, item in old.items():
            if key not in new and key not in skip:
                step, shape, _ = self._field(key)
                removed[step] = _whole(shape, item)
        return changed or None, removed or None

    def merge(self, live: Any, config: Any) -> Any:
        if not isinstance(live, dict) or not isinstance(config, dict):
            return copy(config)
        out = {}
        skip = self._skip
        for key, item in live.items():
            theirs = key in config and key not in skip
            out[key] = self._field(key)[1].merge(item, config[key]) if theirs else copy(item)
        for key, item in config.items():
            if key not in out and key not in skip:
                out[key] = copy(item)
        return out


def _whole(shape: Shape, value: Any) -> FieldSet:
    """The node of a value that came or went as a whole."""
    node = shape.added(value)
    if node and not shape.plain:
        node["."] = {}
    return node


def _replaced(shape: Shape, old: Any, new: Any) -> tuple[FieldSet | None, FieldSet | None]:
    """A value of another JSON type (null, mostly) took the place of a granular one, or the reverse."""
    removed = None if old is None else shape.added(old) or None
    return shape.added(new), removed


class _Untyped(_Object):
    """What no schema describes: objects are granular, lists and scalars are leaves."""

    def __init__(self) -> None:
        super().__init__({}, self)

    def _field(self, key: str) -> tuple[str, Shape, bool]:
        return f"f:{key}", self, False

    def compare(self, old: Any, new: Any) -> tuple[FieldSet | None, FieldSet | None]:
        if isinstance(old, dict) or isinstance(new, dict):
            return super().compare(old, new)
        return (None, None) if old == new else ({}, None)


_UNTYPED = _Untyped()


class _List(Shape):
    """A list whose items are told apart: a set of scalars, or a map by key fields."""

    leaf = False

    def __init__(self, schema: Schema, keys: Sequence[str], *, plain: bool) -> None:
        self._keys = tuple(sorted(keys))
        items = schema.get("items") or {}
        self._item = of_schema(items) if keys else _LEAF
        self._defaults = _KEY_DEFAULTS
        self.plain = plain
        if keys:
            properties = schemas.resolve(items).get("properties") or {}
            own = {key: properties[key]["default"] for key in keys if "default" in (properties.get(key) or {})}
            if own:
                self._defaults = {**_KEY_DEFAULTS, **own}

    def child(self, step: str) -> Shape:
        return self._item

    def step(self, item: Any) -> str | None:
        """The step that names an item; None when it lacks a key."""
        keys = self._keys
        if not keys:
            return "v:" + _compact(item)
        if not isinstance(item, dict):
            return None
        if len(keys) == 1:
            value = item.get(keys[0])
            if (
                type(value) is str
                and value.isascii()
                and '"' not in value
                and "\\" not in value
                and value.isprintable()
            ):
                return f'k:{{"{keys[0]}":"{value}"}}'
        found = {}
        for key in keys:
            value = item.get(key)
            if value is None:
                value = self._defaults.get(key)
            if value is not None:
                found[key] = value
        return "k:" + _compact(found) if found else None

    def index(self, value: Any, path: str) -> dict[str, Any]:
        """Items by step.

        Raises:
            SchemaError: an item lacks its keys or comes twice.
        """
        out: dict[str, Any] = {}
        for place, item in enumerate(value):
            step = self.step(item)
            if step is None:
                raise SchemaError(
                    f"{path}: element {place}: associative list with keys has an element that omits key field "
                    f'"{self._keys[0] if self._keys else ""}" (and doesn\'t have default value)'
                )
            if step in out:
                what = step[2:] if step[0] == "v" else step_text(step)
                raise SchemaError(f"{path}: duplicate entries for key {what}")
            out[step] = item
        return out

    def _loose(self, value: Any) -> dict[str, Any]:
        """Items by step, as far as they have one; of equal ones the last."""
        return {step: item for item in value if (step := self.step(item)) is not None}

    def owned(self, value: Any, path: str) -> FieldSet:
        if not isinstance(value, list):
            return {}
        out: FieldSet = {}
        for step, item in self.index(value, path).items():
            node = self._item.owned(item, path + step_text(step))
            out[step] = {".": {}, **node} if node else {}
        return out

    def added(self, value: Any) -> FieldSet:
        if not isinstance(value, list):
            return {}
        out: FieldSet = {}
        item_shape = self._item
        for step, item in self._loose(value).items():
            node = item_shape.added(item)
            if node:
                node["."] = {}
            out[step] = node
        return out

    def compare(self, old: Any, new: Any) -> tuple[FieldSet | None, FieldSet | None]:
        if old == new:
            return None, None
        if not isinstance(old, list) or not isinstance(new, list):
            return _replaced(self, old, new)
        changed: FieldSet = {}
        removed: FieldSet = {}
        before, after = self._loose(old), self._loose(new)
        for step, item in after.items():
            if step not in before:
                node = self._item.added(item)
                changed[step] = {".": {}, **node} if node else {}
                continue
            grown, gone = self._item.compare(before[step], item)
            if grown is not None:
                changed[step] = grown
            if gone is not None:
                removed[step] = gone
        for step, item in before.items():
            if step not in after:
                node = self._item.added(item)
                removed[step] = {".": {}, **node} if node else {}
        return changed or None, removed or None

    def merge(self, live: Any, config: Any) -> Any:
        """Shared items take the configuration's order, live items keep their place before the shared item they precede."""
        if not isinstance(live, list) or not isinstance(config, list):
            return copy(config)
        before, wanted = self._loose(live), self._loose(config)
        order = list(before)
        out: list[Any] = []
        at = 0
        shared_left = sum(1 for step in wanted if step in before)
        for step, item in wanted.items():
            if shared_left == 0 or step in before:
                end = len(order) if shared_left == 0 else order.index(step)
                while at < end:
                    if order[at] not in wanted:
                        out.append(copy(before[order[at]]))
                    at += 1
            if step in before:
                shared_left -= 1
                out.append(self._item.merge(before[step], item))
            else:
                out.append(copy(item))
        out.extend(copy(before[step]) for step in order[at:] if step not in wanted)
        return out


_encode: Callable[[Any], str] = json.JSONEncoder(separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode


def _compact(value: Any) -> str:
    return _encode(value)


_known: dict[tuple[str, bool], Shape] = {}


def of_schema(schema: Schema, *, plain: bool = False) -> Shape:
    """The shape of a schema node; references to built-in definitions share theirs."""
    reference = schema.get("$ref")
    parts: Sequence[Schema] = schema.get("allOf") or ()
    if reference is None and len(parts) == 1 and not schema.get("properties"):
        reference = parts[0].get("$ref")
        if reference is not None and any(key.startswith("x-kubernetes-") for key in schema):
            reference = None
    if reference is None:
        return _made(schemas.resolve(schema), plain)
    key = (reference, plain)
    shape = _known.get(key)
    if shape is None:
        shape = _known[key] = _made(schemas.resolve(schema), plain)
    return shape


def _made(schema: Schema, plain: bool) -> Shape:
    kind = schema.get("type")
    if kind == "array":
        list_type = schema.get("x-kubernetes-list-type")
        if list_type == "map":
            return _List(schema, schema.get("x-kubernetes-list-map-keys") or (), plain=plain)
        return _List(schema, (), plain=plain) if list_type == "set" else _LEAF
    if schema.get("x-kubernetes-map-type") == "atomic":
        return _LEAF
    if schema.get("x-kubernetes-int-or-string"):
        return _LEAF
    unknown = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    if kind == "object" or schema.get("properties") or unknown:
        if schema.get("x-kubernetes-embedded-resource"):
            metadata = {"$ref": schemas.REFERENCE + schemas.OBJECT_META}
            identity = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": metadata}
            schema = {**schema, "properties": {**(schema.get("properties") or {}), **identity}}
        extra = schema.get("additionalProperties")
        if isinstance(extra, dict):
            return _Object(schema, of_schema(extra), plain=plain)
        if unknown or extra is True or not schema.get("properties"):
            return _Object(schema, _UNTYPED, plain=plain) if schema.get("properties") else _UNTYPED
        return _Object(schema, None, plain=plain)
    return _LEAF if kind else _UNTYPED


_STRIPPED = (
    "name", "namespace", "creationTimestamp", "selfLink", "uid", "clusterName", "generation", "managedFields",
    "resourceVersion",
)  # fmt: skip
"""Metadata nobody owns."""


class Root(_Object):
    """A whole object: its identity is nobody's, and a write path owns only its side of the status divide."""

    lasting = frozenset({"f:metadata"})

    def __init__(self, schema: Schema, custom: bool, skip: Iterable[str], only: str | None) -> None:
        other = (
            None if schema.get("properties") and not schema.get("x-kubernetes-preserve-unknown-fields") else _UNTYPED
        )
        super().__init__(schema, other, plain=True, skip=("apiVersion", "kind", *skip))
        self._only = only
        meta = schemas.definition(schemas.OBJECT_META)
        self._fields["metadata"] = ("f:metadata", _Object(meta, _UNTYPED, plain=True, skip=_STRIPPED), True)
        if custom:
            for key, part in self._properties.items():
                if key in _PLAIN and key != "metadata":
                    self._fields[key] = (f"f:{key}", of_schema(part), True)

    def _seen(self, value: Any) -> Any:
        return {key: item for key, item in value.items() if key == self._only} if self._only else value

    def merge(self, live: Any, config: Any) -> Any:
        return super().merge(live, self._seen(config))

    def owned(self, value: Any, path: str) -> FieldSet:
        return _without_empty_metadata(super().owned(self._seen(value), path))

    def added(self, value: Any) -> FieldSet:
        return _without_empty_metadata(super().added(self._seen(value)))

    def difference(self, old: Any, new: Any) -> tuple[FieldSet, FieldSet]:
        """What changed (added or modified) and what was removed; empty sets for nothing."""
        changed, removed = self.compare(self._seen(old), self._seen(new))
        return _without_empty_metadata(changed or {}), _without_empty_metadata(removed or {})


def _without_empty_metadata(fields: FieldSet) -> FieldSet:
    if fields.get("f:metadata") == {}:
        return {step: node for step, node in fields.items() if step != "f:metadata"}
    return fields


_roots: dict[tuple[int, str], tuple[Any, Root]] = {}
_ROOTS = 2_000
"""Roots remembered; beyond it (schemas come and go with CRDs) the memory starts afresh."""


def root(schema: Schema | None, *, custom: bool, subresource: str, has_status: bool) -> Root:
    """The shape of a kind's objects as one write path (``subresource``) owns them."""
    side = "" if not has_status else "status" if subresource == "status" else "main"
    key = (id(schema), side)
    found = _roots.get(key)
    if found is None or found[0] is not schema:
        if len(_roots) >= _ROOTS:
            _roots.clear()
        skip = ("status",) if side == "main" else ()
        resolved = schemas.resolve(schema) if schema else {}
        found = _roots[key] = (schema, Root(resolved, custom, skip, "status" if side == "status" else None))
    return found[1]


def typed_error(obj: Mapping[str, Any], what: str, error: SchemaError) -> ApiError:
    """The refusal of an object whose structure does not fit its schema."""
    metadata = obj.get("metadata") or {}
    place = f"{metadata.get('namespace') or ''}/{metadata.get('name') or ''}"
    group_version, kind = obj.get("apiVersion"), obj.get("kind")
    return bad_request(f"failed to create typed {what} object ({place}; {group_version}, Kind={kind}): {error}")
