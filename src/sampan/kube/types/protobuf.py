"""Reading request bodies in Kubernetes' protobuf form into the JSON shape everything else works on.

kubectl, helm and controller-runtime send typed writes as ``application/vnd.kubernetes.protobuf``: four magic bytes, an
envelope that names apiVersion and kind, and inside it the message of that kind. The message tables stand in ``protobuf.bin``
(made by ``tools/build_protobuf.py``); each is unpacked when first met. Answers are JSON, so nothing is ever encoded.

Go writes every plain scalar, also zero, so a zero is dropped where its JSON form would be left out and kept where presence
means something. Unknown fields (of newer clients) are skipped. The wire is walked once, inside the given bytes: memory is
bounded by the body, depth by `DEPTH_LIMIT`.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from sampan.kube.objects import Kind, Object
from sampan.kube.status import bad_request

MAGIC = b"k8s\0"
MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
DEPTH_LIMIT = 100
"""How deep messages may nest."""

_META_KINDS = {"DeleteOptions", "CreateOptions", "UpdateOptions", "PatchOptions", "GetOptions", "ListOptions", "Status"}
_MASK_64 = (1 << 64) - 1
_YEAR_ONE = -62135596800
_LAST_SECOND = 253402300799
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Malformed(Exception):
    """The bytes are not what the table says; carries upstream's words."""


class _Field(NamedTuple):
    label: str
    """JSON name; empty: the message's own fields stand in the parent."""
    kind: str
    """Type code, or the full name of a message."""
    keep_zero: bool
    shape: str
    """``""`` single, ``[]`` repeated, ``M:`` map, ``W[]`` wrapped list, ``M:W[]`` map of wrapped lists."""
    message: str
    """The message's name where the type is one, else empty."""


_SCALARS = frozenset({"s", "b", "i", "d", "B", "Q", "IS", "T", "MT", "RX", "F1", "-"})
_WIRE_TYPE = {"b": 0, "i": 0, "d": 1}
_APIEXTENSIONS = "apiextensions.v1."


@cache
def _tables() -> Mapping[str, msgspec.Raw]:
    packed = Path(__file__).with_name("protobuf.bin").read_bytes()
    return msgspec.json.decode(zlib.decompress(packed), type=dict[str, msgspec.Raw])


@cache
def _fields(message: str) -> dict[int, _Field]:
    """The fields of a message by number."""
    rows = msgspec.json.decode(_tables()[message], type=list[tuple[int, str, str, str]])
    fields = {}
    for number, label, kind, flags in rows:
        shape = next((mark for mark in ("M:W[]", "W[]", "[]", "M:") if kind.startswith(mark)), "")
        kind = kind[len(shape) :]
        keep = "?" in flags or "!" in flags
        fields[number] = _Field(label, kind, keep, shape, "" if kind in _SCALARS else kind)
    return fields


@cache
def zero_is_absent(message: str) -> frozenset[str]:
    """JSON names of a message's fields that Go leaves out when they are zero or empty; none for a message without a table."""
    if message not in _tables():
        return frozenset()
    absent: set[str] = set()
    for field in _fields(message).values():
        if field.message and not field.label:
            absent |= zero_is_absent(field.message)
        elif (
            not field.keep_zero
            and (field.shape or not field.message)
            and field.kind not in ("RX", "F1", "T", "MT", "-")
        ):
            absent.add(field.label)
    return frozenset(absent)


def package_of(group: str, kind: str) -> str:
    """The protobuf package of a kind, without its version."""
    return "meta" if kind in _META_KINDS else group.partition(".")[0] or "core"


def decode(body: bytes) -> Object:
    """The object of a request body, with apiVersion and kind.

    Raises:
        ApiError: 400, malformed, or of a kind this server has no table for.
    """
    if body[:4] != MAGIC:
        raise bad_request("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")
    try:
        return _decode(body)
    except _Malformed as problem:
        raise bad_request(f"unable to decode the protobuf body: {problem}") from None


def _decode(body: bytes) -> Object:
    api_version = kind = content_type = ""
    raw_start = raw_end = 0
    position, end = 4, len(body)
    while position < end:
        number, wire, position = _tag(body, position, end)
        if wire != 2:
            position = _skip(body, position, end, wire)
            continue
        start, position = _span(body, position, end)
        if number == 1:
            inner = start
            while inner < position:
                sub, sub_wire, inner = _tag(body, inner, position)
                if sub_wire != 2:
                    inner = _skip(body, inner, position, sub_wire)
                    continue
                text_start, inner = _span(body, inner, position)
                text = _text(body[text_start:inner])
                if sub == 1:
                    api_version = text
                elif sub == 2:
                    kind = text
        elif number == 2:
            raw_start, raw_end = start, position
        elif number == 4:
            content_type = _text(body[start:position])
    if not kind:
        raise bad_request("Object 'Kind' is missing in protobuf body")
    if not api_version:
        raise bad_request("Object 'apiVersion' is missing in protobuf body")
    if content_type not in ("", MEDIA_TYPE):
        raise bad_request(f"unsupported content type in the protobuf envelope: {content_type!r}")
    of = Kind.parse(api_version, kind)
    package = package_of(of.group, kind)
    message = f"{package}.{'v1' if package == 'meta' else of.version}.{kind}"
    if message not in _tables():
        raise bad_request(f'no kind "{kind}" is registered for version "{api_version}" in scheme')
    obj: Object = {"apiVersion": api_version, "kind": kind}
    _message(body, raw_start, raw_end, message, obj, 0)
    return obj


def _tag(body: bytes, position: int, end: int) -> tuple[int, int, int]:
    tag, position = _varint(body, position, end)
    if not tag >> 3:
        raise _Malformed(f"illegal tag 0 (wire type {tag & 7})")
    return tag >> 3, tag & 7, position


def _varint(body: bytes, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end:
        byte = body[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK_64, position
        shift += 7
        if shift > 63:
            raise _Malformed("integer overflow")
    raise _Malformed("unexpected EOF")


def _span(body: bytes, position: int, end: int) -> tuple[int, int]:
    """Start and end of a length-delimited value."""
    length, position = _varint(body, position, end)
    if length > end - position:
        raise _Malformed("unexpected EOF")
    return position, position + length


def _skip(body: bytes, position: int, end: int, wire: int) -> int:
    """Past the value of a field nobody knows."""
    if wire == 0:
        return _varint(body, position, end)[1]
    if wire == 2:
        return _span(body, position, end)[1]
    if wire in (1, 5):
        position += 8 if wire == 1 else 4
        if position > end:
            raise _Malformed("unexpected EOF")
        return position
    raise _Malformed(f"illegal wireType {wire}")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _message(body: bytes, position: int, end: int, message: str, out: Object, depth: int) -> None:
    """Decode ``body[position:end]`` as a message into a dict."""
    if depth > DEPTH_LIMIT:
        raise _Malformed(f"nested deeper than {DEPTH_LIMIT} messages")
    fields = _fields(message)
    while position < end:
        # Inlined one-byte varints: nearly every tag and most lengths are below 128.
        tag = body[position]
        if tag < 0x80:
            position += 1
        else:
            tag, position = _varint(body, position, end)
        number, wire = tag >> 3, tag & 7
        if not number:
            raise _Malformed(f"{message}: illegal tag {tag}")
        field = fields.get(number)
        if field is None:
            position = _skip(body, position, end, wire)
            continue
        label, kind, keep_zero, shape, nested = field
        if wire == 2:
            length = body[position] if position < end else 0x80
            if length < 0x80:
                position += 1
            else:
                length, position = _varint(body, position, end)
            start, position = position, position + length
            if position > end:
                raise _Malformed("unexpected EOF")
            if not shape:
                if kind == "s":
                    if length or keep_zero:
                        out[label] = _text(body[start:position])
                    continue
                if nested:
                    if not label:
                        _message(body, start, position, nested, out, depth + 1)
                        continue
                    value = _nested(body, start, position, nested, depth)
                    if value or keep_zero:
                        out[label] = value
                    continue
                value = _special(body, start, position, kind, message, label)
                if value is not None and (keep_zero or value != ""):
                    out[label] = value
            elif shape == "[]":
                items = out.setdefault(label, [])
                if nested:
                    items.append(_nested(body, start, position, nested, depth))
                elif kind == "s":
                    items.append(_text(body[start:position]))
                elif kind in ("i", "b", "d"):
                    _packed(body, start, position, kind, items)
                else:
                    items.append(_special(body, start, position, kind, message, label))
            elif shape == "W[]":
                out[label] = _wrapped(body, start, position)
            else:
                _entry(body, start, position, field, out.setdefault(label, {}), depth)
            continue
        expected = _WIRE_TYPE.get(kind, 2)
        if wire != expected:
            raise _Malformed(f"wrong wireType = {wire} for field {label}")
        number_value, position = _scalar(body, position, end, kind)
        if shape == "[]":
            out.setdefault(label, []).append(number_value)
        elif number_value or keep_zero:
            out[label] = number_value


def _nested(body: bytes, start: int, end: int, message: str, depth: int) -> Any:
    """A message value; the union types of CRD schemas become what they stand for."""
    value: Object = {}
    _message(body, start, end, message, value, depth + 1)
    if message.startswith(_APIEXTENSIONS):
        name = message[len(_APIEXTENSIONS) :]
        if name == "JSON":
            return _json(value.get("", b""))
        if name == "JSONSchemaPropsOrBool":
            return value["Schema"] if "Schema" in value else value.get("Allows", False)
        if name == "JSONSchemaPropsOrArray":
            return value["Schema"] if "Schema" in value else value.get("JSONSchemas", [])
        if name == "JSONSchemaPropsOrStringArray":
            return value["Schema"] if "Schema" in value else value.get("Property", [])
    return value


def _scalar(body: bytes, position: int, end: int, kind: str) -> tuple[Any, int]:
    """A varint or fixed64 value."""
    if kind == "d":
        if position + 8 > end:
            raise _Malformed("unexpected EOF")
        number = struct.unpack_from("<d", body, position)[0]
        if not math.isfinite(number):
            raise _Malformed("a number is not finite")
        return int(number) if number.is_integer() else number, position + 8
    value, position = _varint(body, position, end)
    if kind == "b":
        return value != 0, position
    return value - (1 << 64) if value >> 63 else value, position


def _packed(body: bytes, position: int, end: int, kind: str, items: list[Any]) -> None:
    while position < end:
        value, position = _scalar(body, position, end, kind)
        items.append(value)


def _wrapped(body: bytes, position: int, end: int) -> list[str]:
    """A message of one repeated string."""
    items = []
    while position < end:
        number, wire, position = _tag(body, position, end)
        if number != 1 or wire != 2:
            position = _skip(body, position, end, wire)
            continue
        start, position = _span(body, position, end)
        items.append(_text(body[start:position]))
    return items


def _entry(body: bytes, position: int, end: int, field: _Field, out: Object, depth: int) -> None:
    """One entry of a map: {1 key, 2 value}."""
    key, start, stop, number_value = "", 0, 0, None
    while position < end:
        number, wire, position = _tag(body, position, end)
        if number == 2 and wire in (0, 1):
            number_value, position = _scalar(body, position, end, field.kind)
            continue
        if wire != 2:
            position = _skip(body, position, end, wire)
            continue
        first, position = _span(body, position, end)
        if number == 1:
            key = _text(body[first:position])
        elif number == 2:
            start, stop = first, position
    if field.shape == "M:W[]":
        out[key] = _wrapped(body, start, stop)
    elif field.message:
        out[key] = _nested(body, start, stop, field.message, depth)
    elif field.kind == "s":
        out[key] = _text(body[start:stop])
    elif field.kind in ("i", "b", "d"):
        out[key] = number_value or 0
    else:
        value = _special(body, start, stop, field.kind, "", key)
        out[key] = "" if value is None else value


def _special(body: bytes, start: int, end: int, kind: str, message: str, label: str) -> Any:
    """A value with a JSON form of its own; None: absent."""
    if kind == "B":
        return base64.b64encode(body[start:end]).decode("ascii")
    if kind == "-":
        return body[start:end]
    if kind in ("b", "i", "d"):
        raise _Malformed(f"wrong wireType = 2 for field {label}")
    numbers, texts = _small(body, start, end)
    if kind == "Q":
        return _text(texts.get(1, b"")) or "0"
    if kind == "IS":
        return _text(texts.get(3, b"")) if numbers.get(1) else _signed(numbers.get(2, 0))
    if kind in ("RX", "F1"):
        return _json(texts[1]) if texts.get(1) else None
    if kind in ("T", "MT"):
        return _time(_signed(numbers.get(1, 0)), numbers.get(2, 0), kind == "MT") if numbers else None
    raise _Malformed(f"{message}.{label}: no decoder for type {kind}")


def _small(body: bytes, position: int, end: int) -> tuple[dict[int, int], dict[int, bytes]]:
    """The integers and the byte strings of a message of a few scalars."""
    numbers: dict[int, int] = {}
    texts: dict[int, bytes] = {}
    while position < end:
        number, wire, position = _tag(body, position, end)
        if wire == 0:
            numbers[number], position = _varint(body, position, end)
        elif wire == 2:
            start, position = _span(body, position, end)
            texts[number] = body[start:position]
        else:
            position = _skip(body, position, end, wire)
    return numbers, texts


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _time(seconds: int, nanos: int, micro: bool) -> str | None:
    """RFC 3339 text; None for Go's zero time."""
    if seconds == _YEAR_ONE:
        return None
    if not _YEAR_ONE < seconds <= _LAST_SECOND or nanos >= 10**9:
        raise _Malformed("time out of range")
    moment = _EPOCH + timedelta(seconds=seconds, microseconds=nanos // 1000)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")


def _json(raw: bytes) -> Any:
    """A JSON value carried as bytes."""
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError as problem:
        raise _Malformed(f"embedded JSON: {problem}") from None
