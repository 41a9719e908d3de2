"""Does a body have the shape of its built-in kind? Unknown fields, wrong JSON types, and the canonical form of values.

What the real server does by decoding into Go structs happens here on plain data: a field the schema lacks is dropped and
reported, a value of the wrong type is refused in Go's words, null stands for absent (and so does a zero or empty value of a
field that is no pointer in Go, which the protobuf tables know), quantities are written canonically.

Nearly every body is fine, so there are two walks. The fast one is a closure a definition, compiled at first use; it knows no
paths and stops at the first thing out of the ordinary. Only then the slow one goes over the object with paths in hand, repairs
what it can and words what it cannot. CRDs have their own rules: see ``structural``.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Mapping
from typing import Any

from sampan.kube.objects import Kind, Object, alike
from sampan.kube.status import ApiError, bad_request
from sampan.kube.types import protobuf, quantity, schemas
from sampan.kube.types.resource import Schema

_Walk = Callable[[Any], Any]
"""Checks a value and gives its canonical form (usually the value itself); raises `_Anomaly`."""

_INT_32 = (-(2**31), 2**31 - 1)
_INT_64 = (-(2**63), 2**63 - 1)
_TIME = re.compile(
    r"\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])[Tt](?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d+)?(?:[Zz]|[+-]\d{2}:\d{2})"
)
_QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"
_RAW = frozenset({"io.k8s.apimachinery.pkg.runtime.RawExtension"})


class _Anomaly(Exception):
    """The slow walk must look at this object."""


class _Mismatch(Exception):
    """A value that cannot be decoded, in Go's words."""


def conform(obj: Object, definition: str, kind: Kind) -> list[str]:
    """Bring an object into the shape of a definition, in place; returns the paths of the unknown fields it dropped.

    Raises:
        ApiError: 400, a value has the wrong type.
    """
    try:
        _walk_of(definition)(obj)
    except _Anomaly:
        pass
    else:
        return []
    unknown: list[str] = []
    try:
        _conform(obj, schemas.definition(definition), definition, "", "", unknown)
    except _Mismatch as problem:
        raise _unreadable(kind, str(problem)) from None
    return unknown


def conform_change(obj: Object, old: Object, definition: str, kind: Kind) -> list[str]:
    """`conform` for an object that replaces another: top-level fields that did not change have been through it.

    Raises:
        ApiError: 400, a value has the wrong type.
    """
    changed = {key: value for key, value in obj.items() if key not in old or not alike(value, old[key])}
    names = list(changed)
    unknown = conform(changed, definition, kind)
    for name in names:
        if name in changed:
            obj[name] = changed[name]
        else:
            del obj[name]
    return unknown


def _unreadable(kind: Kind, why: str) -> ApiError:
    return bad_request(f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: {why}')


# --- the fast walk ---

_walks: dict[str, _Walk] = {}


def _walk_of(definition: str) -> _Walk:
    walk = _walks.get(definition)
    if walk is None:
        # A definition may reach itself: what compiles meanwhile goes through the table.
        _walks[definition] = lambda value: _walks[definition](value)
        walk = _walks[definition] = _compile_definition(definition)
    return walk


def _compile_definition(definition: str) -> _Walk:
    if definition == _QUANTITY:
        return _quantity
    if definition in _RAW:
        return _anything
    return _compile(schemas.definition(definition), _omitted(definition))


def _omitted(definition: str) -> frozenset[str]:
    """Fields of a definition that are absent when they are zero."""
    package, _, name = definition.rpartition(".")
    group, _, version = package.rpartition(".")
    return protobuf.zero_is_absent(f"{group.rpartition('.')[2]}.{version}.{name}")


def _compile(schema: Schema, omitted: frozenset[str] = frozenset()) -> _Walk:
    reference = _reference(schema)
    if reference is not None:
        return _walk_of(reference)
    kind = schema.get("type")
    if kind is None:
        return _anything
    if kind == "object":
        if "properties" in schema:
            return _compile_struct(schema["properties"], omitted)
        if "additionalProperties" in schema:
            return _compile_map(schema["additionalProperties"])
        return _object
    if kind == "array":
        return _compile_list(schema["items"])
    if kind == "integer":
        return _int_32 if schema.get("format") == "int32" else _int_64
    if kind == "string":
        form = schema.get("format")
        if form == "int-or-string":
            return _int_or_string
        if form == "date-time":
            return _time
        return _bytes if form == "byte" else _string
    return _boolean if kind == "boolean" else _number


def _reference(schema: Schema) -> str | None:
    """The definition a schema stands for."""
    reference = schema.get("$ref")
    if reference is None and "allOf" in schema:
        reference = schema["allOf"][0].get("$ref")
    return None if reference is None else str(reference).removeprefix(schemas.REFERENCE)


def _compile_struct(properties: Mapping[str, Schema], omitted: frozenset[str]) -> _Walk:
    nodes = {name: _compile(schema) for name, schema in properties.items()}
    leaves = {name: _EXACT[node] for name, node in nodes.items() if node in _EXACT}
    for name in leaves:
        del nodes[name]
    leaf_of, node_of = leaves.get, nodes.get

    def walk(value: Any) -> Any:
        if type(value) is not dict:
            raise _Anomaly
        changed = gone = None
        for key, item in value.items():
            leaf = leaf_of(key)
            if leaf is not None:
                if type(item) is not leaf:
                    if item is not None:
                        raise _Anomaly
                    gone = [key] if gone is None else [*gone, key]
                elif not item and key in omitted:
                    gone = [key] if gone is None else [*gone, key]
                continue
            node = node_of(key)
            if node is None:
                raise _Anomaly
            if item is None:
                gone = [key] if gone is None else [*gone, key]
                continue
            fresh = node(item)
            if not fresh and key in omitted:
                gone = [key] if gone is None else [*gone, key]
            elif fresh is not item:
                if changed is None:
                    changed = {}
                changed[key] = fresh
        if changed is not None:
            value.update(changed)
        if gone is not None:
            for key in gone:
                del value[key]
        return value

    return walk


def _compile_map(values: Schema) -> _Walk:
    node = _compile(values)
    leaf = _EXACT.get(node)

    def walk(value: Any) -> Any:
        if type(value) is not dict:
            raise _Anomaly
        if leaf is not None:
            for item in value.values():
                if type(item) is not leaf:
                    raise _Anomaly
            return value
        for key, item in value.items():
            fresh = node(item)
            if fresh is not item:
                value[key] = fresh
        return value

    return walk


def _compile_list(items: Schema) -> _Walk:
    node = _compile(items)

    def walk(value: Any) -> Any:
        if type(value) is not list:
            raise _Anomaly
        for index, item in enumerate(value):
            fresh = node(item)
            if fresh is not item:
                value[index] = fresh
        return value

    return walk


def _anything(value: Any) -> Any:
    return value


def _object(value: Any) -> Any:
    if type(value) is not dict:
        raise _Anomaly
    return value


def _string(value: Any) -> Any:
    if type(value) is not str:
        raise _Anomaly
    return value


def _boolean(value: Any) -> Any:
    if type(value) is not bool:
        raise _Anomaly
    return value


def _int_32(value: Any) -> Any:
    if type(value) is not int or not -2147483648 <= value <= 2147483647:
        raise _Anomaly
    return value


def _int_64(value: Any) -> Any:
    if type(value) is not int or not _INT_64[0] <= value <= _INT_64[1]:
        raise _Anomaly
    return value


def _number(value: Any) -> Any:
    if type(value) is not int and type(value) is not float:
        raise _Anomaly
    return value


def _int_or_string(value: Any) -> Any:
    if type(value) is str:
        return value
    return _int_32(value)


def _time(value: Any) -> Any:
    if type(value) is not str or not _TIME.fullmatch(value):
        raise _Anomaly
    return value


def _bytes(value: Any) -> Any:
    if type(value) is not str:
        raise _Anomaly
    try:
        binascii.a2b_base64(value.encode("ascii"), strict_mode=True)
    except (ValueError, UnicodeEncodeError):
        raise _Anomaly from None
    return value


def _quantity(value: Any) -> Any:
    if type(value) is bool or not isinstance(value, (str, int, float)):
        raise _Anomaly
    try:
        canonical = quantity.canonical(value)
    except ValueError:
        raise _Anomaly from None
    return value if canonical == value else canonical


_EXACT: Mapping[_Walk, type] = {_string: str, _boolean: bool}
"""Walks that only compare the type; structs and maps do that themselves."""


# --- the slow walk ---


def _conform(value: Any, schema: Schema, definition: str, path: str, go_path: str, unknown: list[str]) -> Any:
    """The canonical form of a value; ``go_path`` is the field as Go's errors name it (struct and path without indexes)."""
    reference = _reference(schema)
    if reference is not None:
        if reference == _QUANTITY:
            return _conform_quantity(value, go_path)
        if reference in _RAW:
            return value
        return _conform(value, schemas.definition(reference), reference, path, go_path, unknown)
    kind = schema.get("type")
    if kind is None:
        return value
    if kind == "object":
        return _conform_object(value, schema, definition, path, go_path, unknown)
    if kind == "array":
        if type(value) is not list:
            raise _wrong(value, go_path, _go_type(schema, definition))
        for index, item in enumerate(value):
            here = f"{path}[{index}]"
            value[index] = _conform(
                _zero(schema["items"]) if item is None else item, schema["items"], definition, here, go_path, unknown
            )
        return value
    return _conform_scalar(value, schema, definition, go_path)


def _conform_object(value: Any, schema: Schema, definition: str, path: str, go_path: str, unknown: list[str]) -> Any:
    if type(value) is not dict:
        raise _wrong(value, go_path, _go_type(schema, definition))
    properties: Mapping[str, Schema] | None = schema.get("properties")
    if properties is None:
        values: Schema | None = schema.get("additionalProperties")
        if values is not None:
            for key, item in value.items():
                value[key] = _conform(
                    _zero(values) if item is None else item, values, definition, f"{path}.{key}", go_path, unknown
                )
        return value
    struct, omitted = definition.rpartition(".")[2], _omitted(definition)
    fields = go_path.partition(".")[2]
    for key in list(value):
        item = value[key]
        here = f"{path}.{key}" if path else key
        field = properties.get(key)
        if field is None:
            unknown.append(here)
            del value[key]
        elif item is None:
            del value[key]
        else:
            go_field = f"{struct}.{fields}.{key}" if fields else f"{struct}.{key}"
            fresh = _conform(item, field, definition, here, go_field, unknown)
            if not fresh and key in omitted:
                del value[key]
            else:
                value[key] = fresh
    return value


def _conform_scalar(value: Any, schema: Schema, definition: str, go_path: str) -> Any:
    kind, form = schema["type"], schema.get("format")
    if form == "int-or-string":
        if type(value) is str or (type(value) is int and _INT_32[0] <= value <= _INT_32[1]):
            return value
        raise _wrong(value, go_path, "int32" if type(value) in (int, float) else "string")
    if kind == "string":
        if type(value) is not str:
            raise _wrong(value, go_path, "[]uint8" if form == "byte" else "string")
        if form == "date-time" and not _TIME.fullmatch(value):
            raise _Mismatch(f'parsing time "{value}" as "2006-01-02T15:04:05Z07:00": cannot parse "{value}" as "2006"')
        if form == "byte":
            return _conform_bytes(value)
        return value
    if kind == "integer":
        low, high = _INT_32 if form == "int32" else _INT_64
        if type(value) is int and low <= value <= high:
            return value
    elif kind == "boolean":
        if type(value) is bool:
            return value
    elif type(value) in (int, float):
        return value
    raise _wrong(value, go_path, _go_type(schema, definition))


def _conform_bytes(value: str) -> str:
    """Go's decoder takes line breaks inside base64; nothing else."""
    try:
        packed = value.replace("\n", "").replace("\r", "").encode("ascii")
        binascii.a2b_base64(packed, strict_mode=True)
    except (ValueError, UnicodeEncodeError):
        position = next(
            (index for index, character in enumerate(value) if not re.match("[A-Za-z0-9+/]", character)), len(value)
        )
        raise _Mismatch(f"illegal base64 data at input byte {position}") from None
    return packed.decode()


def _conform_quantity(value: Any, go_path: str) -> str:
    if type(value) is bool or not isinstance(value, (str, int, float)):
        raise _Mismatch(f"quantities must match the regular expression '{_QUANTITY_PATTERN}'")
    try:
        return quantity.canonical(value)
    except ValueError as problem:
        raise _Mismatch(str(problem)) from None


_QUANTITY_PATTERN = "^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$"


def _zero(schema: Schema) -> Any:
    """What null stands for inside a list or map: the Go zero value."""
    schema = schemas.resolve(schema)
    kind = schema.get("type")
    if kind == "string":
        return 0 if schema.get("format") == "int-or-string" else ""
    return {"object": {}, "array": [], "integer": 0, "number": 0, "boolean": False}.get(str(kind))


def _wrong(value: Any, go_path: str, wanted: str) -> _Mismatch:
    return _Mismatch(f"json: cannot unmarshal {_json_kind(value)} into Go struct field {go_path} of type {wanted}")


def _json_kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, float):
        return f"number {value}"
    if isinstance(value, int):
        return "number" if _INT_32[0] <= value <= _INT_32[1] else f"number {value}"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def _go_type(schema: Schema, definition: str) -> str:
    """The Go type of a schema, as far as error messages go."""
    reference = _reference(schema)
    if reference is not None:
        package, _, name = reference.rpartition(".")
        return f"{package.rpartition('.')[2]}.{name}"
    kind = schema.get("type")
    if kind == "array":
        return f"[]{_go_type(schema['items'], '')}"
    if kind == "object":
        if "additionalProperties" in schema:
            return f"map[string]{_go_type(schema['additionalProperties'], '')}"
        package, _, name = definition.rpartition(".")
        return f"{package.rpartition('.')[2]}.{name}" if definition else "map[string]interface {}"
    if kind == "integer":
        return str(schema.get("format") or "int64")
    if kind == "string" and schema.get("format") == "byte":
        return "[]uint8"
    return {"boolean": "bool", "number": "float64"}.get(str(kind), str(kind))
