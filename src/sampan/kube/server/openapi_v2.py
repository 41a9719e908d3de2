"""The OpenAPI v2 document in protobuf: what kubectl up to 1.28 needs for every apply, and every kubectl for a kind it does not
find in v3.

The message is gnostic's ``openapi.v2.Document``. Only what clients read is written: the definitions, and of the paths the
PATCH operations with their query parameters (kubectl looks there for ``dryRun`` and ``fieldValidation``). The wire is written
by hand: it is little more than length-prefixed nesting.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

MEDIA_TYPE = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
"""As it is answered; clients ask with an ``@`` before the version, which Go no longer reads as a media type."""

_encode = msgspec.json.Encoder().encode


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _text(number: int, value: str) -> bytes:
    return _bytes(number, value.encode()) if value else b""


def _flag(number: int, value: bool) -> bytes:
    return _varint(number << 3) + b"\x01" if value else b""


def _any(value: Any) -> bytes:
    """``Any``: the value as YAML, of which JSON is a part."""
    return _bytes(2, _encode(value) + b"\n")


def _named(number: int, name: str, value: bytes) -> bytes:
    return _bytes(number, _text(1, name) + _bytes(2, value))


def _extensions(number: int, schema: Mapping[str, Any]) -> bytes:
    return b"".join(_named(number, key, _any(value)) for key, value in schema.items() if key.startswith("x-"))


def _properties(schemas: Mapping[str, Any]) -> bytes:
    return b"".join(_named(1, name, _schema(schema)) for name, schema in schemas.items())


def _schema(schema: Mapping[str, Any]) -> bytes:
    out = [
        _text(1, schema.get("$ref", "")),
        _text(2, schema.get("format", "")),
        _text(4, schema.get("description", "")),
    ]
    if "default" in schema:
        out.append(_bytes(5, _any(schema["default"])))
    out += [_text(19, name) for name in schema.get("required", ())]
    out += [_bytes(20, _any(value)) for value in schema.get("enum", ())]
    additional = schema.get("additionalProperties")
    if isinstance(additional, Mapping):
        out.append(_bytes(21, _bytes(1, _schema(additional))))
    elif additional is not None:
        out.append(_bytes(21, _varint(2 << 3) + (b"\x01" if additional else b"\x00")))
    if "type" in schema:
        out.append(_bytes(22, _text(1, schema["type"])))
    if "items" in schema:
        out.append(_bytes(23, _bytes(1, _schema(schema["items"]))))
    out += [_bytes(24, _schema(part)) for part in schema.get("allOf", ())]
    if "properties" in schema:
        out.append(_bytes(25, _properties(schema["properties"])))
    out.append(_extensions(31, schema))
    return b"".join(out)


def _parameter(parameter: Mapping[str, Any]) -> bytes:
    place, kind = parameter["in"], parameter["type"]
    shared = _flag(1, bool(parameter.get("required"))) + _text(2, place) + _text(4, parameter["name"])
    inner = _bytes(3, shared + _text(6, kind)) if place == "query" else _bytes(4, shared + _text(5, kind))
    return _bytes(1, _bytes(2, inner))


def _operation(operation: Mapping[str, Any]) -> bytes:
    response = _bytes(1, _bytes(1, _text(1, "OK")))
    parameters = (parameter for parameter in operation["parameters"] if parameter["in"] != "body")
    return b"".join(
        [
            _text(5, operation["operationId"]),
            *(_text(7, media) for media in operation["consumes"]),
            *(_bytes(8, _parameter(parameter)) for parameter in parameters),
            _bytes(9, _bytes(1, _text(1, "200") + _bytes(2, response))),
            _extensions(13, operation),
        ]
    )


def _paths(paths: Mapping[str, Any]) -> Iterable[bytes]:
    for path, item in paths.items():
        if "patch" in item:
            yield _named(2, path, _bytes(8, _operation(item["patch"])))


def encode(document: Mapping[str, Any]) -> bytes:
    """The protobuf form of a Swagger 2.0 document."""
    info = document["info"]
    return b"".join(
        [
            _text(1, "2.0"),
            _bytes(2, _text(1, info["title"]) + _text(2, info["version"])),
            _bytes(8, b"".join(_paths(document["paths"]))),
            _bytes(9, _properties(document["definitions"])),
        ]
    )
