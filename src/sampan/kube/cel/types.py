"""Static types, and the type a structural OpenAPI schema gives its values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Type:
    """A CEL type as the compiler sees it; ``params`` are element, or key and value."""

    name: str
    params: tuple[Type, ...] = ()
    list_type: str = field(default="atomic", compare=False)
    """``set`` and ``map`` lists compare without order and ``+`` merges them, as upstream has it."""
    map_keys: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.params))})" if self.params else self.name

    @property
    def element(self) -> Type:
        """What indexing or iterating (a map: the value) gives."""
        return self.params[-1] if self.params else DYN

    @property
    def key(self) -> Type:
        return self.params[0] if len(self.params) > 1 else DYN


class ObjectType(Type):
    """An object with known properties; their types are made when first asked for."""

    def __init__(self, schema: Mapping[str, Any], embedded: bool) -> None:
        super().__init__("object")
        properties = dict(schema.get("properties") or {})
        if embedded:
            metadata = properties.get("metadata") or {}
            known = dict(metadata.get("properties") or {})
            known.setdefault("name", {"type": "string"})
            known.setdefault("generateName", {"type": "string"})
            properties["metadata"] = {"type": "object", **metadata, "properties": known}
            properties["apiVersion"] = {"type": "string"}
            properties["kind"] = {"type": "string"}
        object.__setattr__(self, "_names", {})
        for name in properties:
            self._names[name] = name
            self._names[escape(name)] = name
        object.__setattr__(self, "_properties", properties)
        object.__setattr__(self, "_types", {})

    _names: dict[str, str]
    _properties: dict[str, Any]
    _types: dict[str, Type]

    def field(self, name: str) -> tuple[str, Type] | None:
        """The property an identifier stands for, and its type."""
        real = self._names.get(name)
        if real is None:
            return None
        found = self._types.get(real)
        if found is None:
            found = self._types[real] = of_schema(self._properties[real])
        return real, found

    __hash__ = Type.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


DYN = Type("dyn")
BOOL = Type("bool")
INT = Type("int")
UINT = Type("uint")
DOUBLE = Type("double")
STRING = Type("string")
BYTES = Type("bytes")
NULL = Type("null_type")
DURATION = Type("duration")
TIMESTAMP = Type("timestamp")
TYPE = Type("type")
LIST = Type("list", (DYN,))
MAP = Type("map", (DYN, DYN))


def list_of(element: Type) -> Type:
    return Type("list", (element,))


def map_of(key: Type, value: Type) -> Type:
    return Type("map", (key, value))


def optional_of(value: Type) -> Type:
    return Type("optional_type", (value,))


_RESERVED = frozenset(
    [
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
    ]
)


def escape(name: str) -> str:
    """How a property name is written in an expression (``a-b`` as ``a__dash__b``, ``namespace`` as ``__namespace__``)."""
    if name in _RESERVED:
        return f"__{name}__"
    name = name.replace("__", "__underscores__")
    return name.replace(".", "__dot__").replace("-", "__dash__").replace("/", "__slash__")


def unescape(name: str) -> str:
    """The property an escaped identifier stands for."""
    if name[:2] == "__" and name[-2:] == "__" and name[2:-2] in _RESERVED:
        return name[2:-2]
    name = name.replace("__dot__", ".").replace("__dash__", "-").replace("__slash__", "/")
    return name.replace("__underscores__", "__")


_FORMATS = {"date-time": TIMESTAMP, "date": TIMESTAMP, "duration": DURATION, "byte": BYTES}


def of_schema(schema: Mapping[str, Any], root: bool = False) -> Type:
    """The type of values of a structural schema; ``root``: the object itself, whose identity is always there."""
    if schema.get("x-kubernetes-int-or-string"):
        return DYN
    kind = schema.get("type")
    if kind == "object":
        embedded = root or bool(schema.get("x-kubernetes-embedded-resource"))
        extra = schema.get("additionalProperties")
        if isinstance(extra, dict) and not schema.get("properties"):
            return map_of(STRING, of_schema(extra))
        if extra is True or (not schema.get("properties") and not embedded):
            return (
                MAP
                if extra is True or schema.get("x-kubernetes-preserve-unknown-fields")
                else ObjectType(schema, False)
            )
        return ObjectType(schema, embedded)
    if kind == "array":
        items = schema.get("items")
        return Type(
            "list",
            (of_schema(items) if isinstance(items, dict) else DYN,),
            schema.get("x-kubernetes-list-type") or "atomic",
            tuple(schema.get("x-kubernetes-list-map-keys") or ()),
        )
    if kind == "string":
        return _FORMATS.get(schema.get("format") or "", STRING)
    return {"boolean": BOOL, "integer": INT, "number": DOUBLE}.get(kind or "", DYN)


def assignable(actual: Type, wanted: Type) -> bool:
    """Whether a value of one type may stand where another is wanted, as far as is known before evaluation."""
    if actual.name == "dyn" or wanted.name in ("dyn", "A"):
        return True
    if actual.name != wanted.name:
        return (actual.name == "object" and wanted.name == "map") or (actual.name == "map" and wanted.name == "object")
    return all(assignable(a, b) for a, b in zip(actual.params, wanted.params, strict=False))
