"""Objects and lists on their way out: plain, as a Table, or as metadata only; each as JSON or YAML bytes.

Plain JSON is spliced together from stored encodings without decoding a single object.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec

from sampan.kube.objects import Object
from sampan.kube.server.conversion import served, served_object
from sampan.kube.server.negotiation import Format
from sampan.kube.types.resource import ResourceType

IncludeObject = Literal["None", "Metadata", "Object"]

_encode = msgspec.json.Encoder().encode


class _Parts(msgspec.Struct):
    metadata: msgspec.Raw
    kind: str = ""
    apiVersion: str = ""


_parts = msgspec.json.Decoder(_Parts)


def json(obj: Any) -> bytes:
    """The one JSON encoding of answers."""
    return _encode(obj)


def yaml(encoded: bytes) -> bytes:
    """A JSON document as YAML."""
    import yaml as library

    dumper = getattr(library, "CSafeDumper", library.SafeDumper)
    text: bytes = library.dump(
        msgspec.json.decode(encoded), Dumper=dumper, sort_keys=True, allow_unicode=True, encoding="utf-8"
    )
    return text


def pretty(encoded: bytes) -> bytes:
    """A JSON document, indented for people."""
    return msgspec.json.format(encoded, indent=2) + b"\n"


def partial(value: bytes, version: str = "v1", *, typed: bool = True) -> bytes:
    """The PartialObjectMetadata of an encoded object; ``typed`` False leaves kind and apiVersion out (list items)."""
    metadata = bytes(_parts.decode(value).metadata)
    if not typed:
        return b'{"metadata":' + metadata + b"}"
    return b'{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/%s","metadata":%s}' % (
        version.encode(),
        metadata,
    )


def columns(type: ResourceType) -> bytes:
    """The ``columnDefinitions`` of a kind's Table."""
    return json(
        [
            {
                "name": column.name,
                "type": column.type,
                "format": column.format,
                "description": column.description,
                "priority": column.priority,
            }
            for column in type.strategy.columns
        ]
    )


def row(type: ResourceType, value: bytes, obj: Object, include: IncludeObject, version: str, now: datetime) -> bytes:
    """One row of a Table; ``value`` and ``obj`` are the same object in its served version."""
    cells: dict[str, Any] = {"cells": type.strategy.row(obj, now)}
    conditions = type.strategy.row_conditions(obj)
    if conditions:
        cells["conditions"] = conditions
    if include == "Metadata":
        cells["object"] = msgspec.Raw(partial(value, version))
    elif include == "Object":
        cells["object"] = msgspec.Raw(value)
    return json(cells)


def table(columns: bytes, rows: Iterable[bytes], metadata: bytes, version: str) -> bytes:
    """A Table from its encoded pieces."""
    return b'{"kind":"Table","apiVersion":"meta.k8s.io/%s","metadata":%s,"columnDefinitions":%s,"rows":[%s]}' % (
        version.encode(),
        metadata,
        columns,
        b",".join(rows),
    )


def one(type: ResourceType, value: bytes, format: Format, include: IncludeObject, now: datetime) -> bytes:
    """One stored object in the asked representation."""
    value = served(type, value)
    return present(type, value, format, include, now)


def present(type: ResourceType, value: bytes, format: Format, include: IncludeObject, now: datetime) -> bytes:
    """One object that is already encoded in its served version, in the asked representation."""
    if format.shape == "Table":
        obj: Object = msgspec.json.decode(value)
        metadata = json({"resourceVersion": obj["metadata"].get("resourceVersion", "")})
        encoded = table(columns(type), [row(type, value, obj, include, format.version, now)], metadata, format.version)
    elif format.shape:
        encoded = partial(value, format.version)
    else:
        encoded = value
    return yaml(encoded) if format.yaml else encoded


def listing(
    type: ResourceType,
    values: Sequence[bytes],
    metadata: Object,
    format: Format,
    include: IncludeObject,
    now: datetime,
) -> bytes:
    """A list of stored objects in the asked representation."""
    head = json(metadata)
    if format.shape == "Table":
        rows = []
        for value in values:
            shown = served(type, value)
            rows.append(row(type, shown, served_object(type, value), include, format.version, now))
        encoded = table(columns(type), rows, head, format.version)
    elif format.shape:
        encoded = b'{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/%s","metadata":%s,"items":[%s]}' % (
            format.version.encode(),
            head,
            b",".join([partial(served(type, value), format.version) for value in values]),
        )
    else:
        encoded = b'{"kind":"%s","apiVersion":"%s","metadata":%s,"items":[%s]}' % (
            (type.list_kind or type.kind + "List").encode(),
            type.resource.api_version.encode(),
            head,
            b",".join([served(type, value) for value in values]),
        )
    return yaml(encoded) if format.yaml else encoded
