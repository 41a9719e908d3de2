"""The OpenAPI definitions of the built-in kinds, read from the shipped ``schemas.bin``.

The file (made by ``tools/build_schemas.py``) is the zlib of one JSON object from definition name to definition. It is opened
at first use, split into still encoded definitions, and each of those is decoded when somebody asks for it: what a platform
never touches costs it nothing but its bytes. All schemas are shared: do not change them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from sampan.kube.types.resource import Schema

REFERENCE = "#/components/schemas/"
"""What a ``$ref`` begins with; the definition's name follows."""
OBJECT_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
LIST_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta"

_OWN_PACKAGE = {
    "apiextensions.k8s.io": "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions",
    "apiregistration.k8s.io": "io.k8s.kube-aggregator.pkg.apis.apiregistration",
    "meta.k8s.io": "io.k8s.apimachinery.pkg.apis.meta",
}


class _Definitions(Mapping[str, Schema]):
    """Definition name to schema, decoded one by one on first access."""

    def __init__(self, encoded: Mapping[str, msgspec.Raw]) -> None:
        self._encoded = encoded
        self._decoded: dict[str, Schema] = {}

    def __getitem__(self, name: str) -> Schema:
        schema = self._decoded.get(name)
        if schema is None:
            schema = self._decoded[name] = msgspec.json.decode(self._encoded[name], type=dict[str, Any])
        return schema

    def __iter__(self) -> Iterator[str]:
        return iter(self._encoded)

    def __len__(self) -> int:
        return len(self._encoded)


@cache
def definitions() -> Mapping[str, Schema]:
    """Every built-in definition by name (``io.k8s.api.apps.v1.Deployment``); decoded lazily, shared."""
    packed = Path(__file__).with_name("schemas.bin").read_bytes()
    return _Definitions(msgspec.json.decode(zlib.decompress(packed), type=dict[str, msgspec.Raw]))


def definition(name: str) -> Schema:
    """One definition.

    Raises:
        KeyError: no such definition.
    """
    return definitions()[name]


def definition_name(group: str, version: str, kind: str) -> str:
    """The definition name of a built-in kind."""
    package = _OWN_PACKAGE.get(group) or f"io.k8s.api.{group.partition('.')[0] or 'core'}"
    return f"{package}.{version}.{kind}"


def resolve(schema: Schema) -> Schema:
    """The schema behind a ``$ref`` or an ``allOf`` of one reference, with the siblings of the reference laid over it.

    A schema that is no reference is returned as it is. References that are not to a built-in definition stay unresolved.
    """
    while True:
        reference = schema.get("$ref")
        if reference is None:
            parts = schema.get("allOf")
            if not parts or len(parts) != 1 or "$ref" not in parts[0]:
                return schema
            reference = parts[0]["$ref"]
            siblings = {key: value for key, value in schema.items() if key != "allOf"}
        else:
            siblings = {}
        target = definitions().get(reference.removeprefix(REFERENCE))
        if target is None:
            return schema
        schema = {**target, **siblings} if siblings else target
