"""CloudEvents 1.0 and its HTTP binding: binary, structured and batched messages to `Event` and back. No I/O.

An `Event` keeps its attributes by name in the type they came with (text, integer, boolean) and its data as bytes. How it
came (binary or structured) is kept too, because a receiver gets it the way the sender sent it. Reading is strict: what the
specification calls invalid is a `MalformedEventError` that names the attribute. Events of version 0.3 are read as 1.0.

`pack` and `unpack` are the form in which events are stored: one line of JSON (mode and attributes), then the data.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal
from urllib.parse import quote, unquote_to_bytes

import msgspec

from sampan.parts.eventing.errors import MalformedEventError, NotAnEventError

Value = str | int | bool
Mode = Literal["binary", "structured"]

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
CHARSET = "; charset=utf-8"
REQUIRED = ("specversion", "id", "source", "type")
INT32 = 2**31
_NAME = re.compile(r"[a-z0-9]+")
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ]([01]\d|2[0-3]):([0-5]\d):([0-5]\d|60)(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)"
)
_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_BAD_URI = re.compile(r"[\x00-\x20\x7f<>\"{}|\\^`]|%(?![0-9A-Fa-f]{2})")
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:.")
_MEDIA_TYPE = re.compile(r"[\w!#$&^.+*%'`|~-]+/[\w!#$&^.+*%'`|~-]+\s*(;.*)?", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SAFE = "!#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
"""Printable ASCII that a header value carries as it is; the space, the quote and the percent sign are encoded."""


class Event(msgspec.Struct):
    """One event. ``attributes`` holds all context attributes, extensions too, ``specversion`` among them."""

    attributes: dict[str, Value]
    data: bytes | None = None
    mode: Mode = "binary"
    headers: dict[str, str] = {}
    """HTTP headers that travel with the event without being part of it (tracing, request id)."""

    def text(self, name: str) -> str | None:
        """An attribute in its canonical string form, or None."""
        value = self.attributes.get(name)
        return None if value is None else text(value)

    def with_attributes(self, **attributes: Value) -> Event:
        """The same event with further (or other) attributes."""
        return Event({**self.attributes, **attributes}, self.data, self.mode, self.headers)

    def without(self, *names: str) -> Event:
        """The same event without these attributes."""
        left = {name: value for name, value in self.attributes.items() if name not in names}
        return Event(left, self.data, self.mode, self.headers)


def text(value: Value) -> str:
    """The canonical string form of an attribute's value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def make(type: str, source: str, id: str, data: bytes | None = None, **attributes: Value) -> Event:
    """A new event of ours; the caller vouches for its attributes."""
    return Event({"specversion": "1.0", "id": id, "source": source, "type": type, **attributes}, data)


# -- reading


def decode(headers: Mapping[str, str], body: bytes) -> Event:
    """The event of an HTTP message. ``headers`` must look names up without regard to case.

    Raises:
        NotAnEventError: the message is no event at all, or a batch.
        MalformedEventError: it is an invalid one.
    """
    content_type = headers.get("content-type") or ""
    media = _media(content_type)
    if media == STRUCTURED:
        _check_charset(content_type)
        return _structured(_object(body))
    if media == BATCH:
        raise NotAnEventError("a batch of events is not accepted here; send the events one by one")
    if media.startswith("application/cloudevents"):
        raise NotAnEventError(f"the event format {media} is not supported; use {STRUCTURED}")
    if "ce-specversion" not in headers:
        raise NotAnEventError(
            f"this is not a CloudEvent: neither a ce-specversion header nor the content type {STRUCTURED} is there"
        )
    return _binary(headers.items(), content_type, body)


def decode_batch(headers: Mapping[str, str], body: bytes) -> list[Event]:
    """The events of a batched message.

    Raises:
        NotAnEventError: the message is no batch.
        MalformedEventError: an event in it is invalid.
    """
    content_type = headers.get("content-type") or ""
    if _media(content_type) != BATCH:
        raise NotAnEventError(f"this is not a batch of CloudEvents: the content type is not {BATCH}")
    _check_charset(content_type)
    try:
        entries = msgspec.json.decode(body, type=list[dict[str, msgspec.Raw]])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedEventError(f"the batch is not a JSON array of events: {error}") from None
    return [_structured(entry) for entry in entries]


def _media(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _check_charset(content_type: str) -> None:
    charset = re.search(r";\s*charset\s*=\s*\"?([^\s;\"]+)", content_type, re.IGNORECASE)
    if charset is not None and charset.group(1).lower() not in ("utf-8", "utf8", "us-ascii"):
        raise MalformedEventError(f"the event's charset is {charset.group(1)}; it must be utf-8")


def _object(body: bytes) -> dict[str, msgspec.Raw]:
    try:
        return msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedEventError(f"the event is not a JSON object: {error}") from None


def _binary(headers: Iterable[tuple[str, str]], content_type: str, body: bytes) -> Event:
    attributes: dict[str, Value] = {}
    for header, value in headers:
        header = header.lower()
        if not header.startswith("ce-"):
            continue
        name = header[3:]
        if name in attributes:
            raise MalformedEventError(f"the header {header} is there more than once")
        if name in ("data", "data_base64", "datacontenttype"):
            raise MalformedEventError(f"the header {header} is not allowed; the body and Content-Type carry this")
        attributes[name] = _unquoted(header, value)
    if content_type:
        attributes["datacontenttype"] = content_type
    data = body or None
    if attributes.get("specversion") == "0.3":
        data = _upgrade(attributes, data)
    check(attributes)
    return Event(attributes, data, "binary")


def _unquoted(header: str, value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    if "%" not in value:
        return value
    if re.search(r"%(?![0-9A-Fa-f]{2})", value):
        raise MalformedEventError(f"the header {header} has a broken percent encoding")
    try:
        return unquote_to_bytes(value).decode()
    except UnicodeDecodeError:
        raise MalformedEventError(f"the header {header} is not UTF-8") from None


def _structured(entry: Mapping[str, msgspec.Raw]) -> Event:
    attributes: dict[str, Value] = {}
    raw: msgspec.Raw | None = None
    encoded: str | None = None
    for name, found in entry.items():
        if name == "data":
            raw = found
            continue
        try:
            value = msgspec.json.decode(found)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MalformedEventError(f"attribute {name} is not JSON: {error}") from None
        if value is None:
            continue  # the JSON format: null is the same as not there
        if name == "data_base64":
            if not isinstance(value, str):
                raise MalformedEventError("data_base64 is not a string")
            encoded = value
        elif isinstance(value, (str, bool, int)):
            attributes[name] = value
        else:
            raise MalformedEventError(
                f"attribute {name} is {'a number that is not an integer' if isinstance(value, float) else 'not a simple value'}; "
                "attributes are strings, integers and booleans"
            )
    if raw is not None and encoded is not None:
        raise MalformedEventError("data and data_base64 exclude each other")
    data = _data(attributes, raw)
    if encoded is not None:
        data = _base64(encoded)
    if attributes.get("specversion") == "0.3":
        data = _upgrade(attributes, data)
    check(attributes)
    return Event(attributes, data, "structured")


def _data(attributes: Mapping[str, Value], raw: msgspec.Raw | None) -> bytes | None:
    if raw is None:
        return None
    payload = bytes(raw).strip()
    try:
        value = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedEventError(f"data is not JSON: {error}") from None
    if value is None:
        return None
    if isinstance(value, str) and not is_json(str(attributes.get("datacontenttype") or "")):
        return value.encode()
    return payload


def _base64(encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise MalformedEventError("data_base64 is not base64") from None


def _upgrade(attributes: dict[str, Value], data: bytes | None) -> bytes | None:
    """Version 0.3 to 1.0: the schema's name, and the encoding that was an attribute."""
    attributes["specversion"] = "1.0"
    if "schemaurl" in attributes:
        attributes["dataschema"] = attributes.pop("schemaurl")
    if attributes.pop("datacontentencoding", None) == "base64" and data is not None:
        return _base64(data.decode("ascii", "replace").strip('"'))
    return data


def is_json(content_type: str) -> bool:
    """Data of this type is JSON; so it is without a type."""
    media = _media(content_type)
    return not media or media.endswith(("/json", "+json"))


def check(attributes: Mapping[str, Value]) -> None:
    """Refuse attributes that the specification does not allow.

    Raises:
        MalformedEventError: naming the attribute.
    """
    for name in REQUIRED:
        if name not in attributes:
            raise MalformedEventError(f"attribute {name} is missing")
        if not isinstance(attributes[name], str) or not attributes[name]:
            raise MalformedEventError(f"attribute {name} is not a non-empty string")
    if attributes["specversion"] != "1.0":
        raise MalformedEventError(f"specversion {attributes['specversion']!r} is not supported; it must be 1.0")
    for name, value in attributes.items():
        if not _NAME.fullmatch(name):
            raise MalformedEventError(f"attribute name {name!r} has characters other than a-z and 0-9")
        if isinstance(value, str):
            if _CONTROL.search(value):
                raise MalformedEventError(f"attribute {name} has control characters")
        elif not isinstance(value, bool) and not -INT32 <= value < INT32:
            raise MalformedEventError(f"attribute {name} does not fit a 32-bit integer")
    if _BAD_URI.search(str(attributes["source"])):
        raise MalformedEventError("attribute source is not a URI reference")
    for name, valid, what in (
        ("subject", lambda value: bool(value), "a non-empty string"),
        ("time", is_time, "a time as of RFC 3339"),
        ("dataschema", is_absolute_uri, "an absolute URI"),
        ("datacontenttype", is_media_type, "a media type"),
    ):
        if name in attributes:
            value = attributes[name]
            if not isinstance(value, str) or not valid(value):
                raise MalformedEventError(f"attribute {name} is not {what}")


def is_time(value: str) -> bool:
    """A date and time as of RFC 3339."""
    found = _TIME.fullmatch(value)
    if found is None:
        return False
    year, month, day = (int(found.group(part)) for part in (1, 2, 3))
    if not 1 <= month <= 12 or not 1 <= day <= _DAYS[month - 1]:
        return False
    return not (month == 2 and day == 29) or (year % 4 == 0 and (year % 100 != 0 or year % 400 == 0))


def is_media_type(value: str) -> bool:
    """A media type, with or without parameters."""
    return _MEDIA_TYPE.fullmatch(value) is not None


def is_absolute_uri(value: str) -> bool:
    """A URI with a scheme, of characters that a URI may have."""
    return _ABSOLUTE.match(value) is not None and _BAD_URI.search(value) is None


# -- writing


def encode(event: Event, format: str = "") -> tuple[dict[str, str], bytes]:
    """Headers and body; ``format`` is ``json`` (structured), ``binary``, or empty: as the event came."""
    structured = event.mode == "structured" if not format else format == "json"
    return encode_structured(event) if structured else encode_binary(event)


def encode_binary(event: Event) -> tuple[dict[str, str], bytes]:
    """Headers and body of a binary message."""
    headers = {}
    for name, value in event.attributes.items():
        if name == "datacontenttype":
            headers["Content-Type"] = str(value)
        else:
            headers[f"ce-{name}"] = quote(text(value), safe=_SAFE)
    if event.data is not None and "Content-Type" not in headers:
        headers["Content-Type"] = "application/json"  # what the JSON format implies by leaving it out
    return headers, event.data or b""


def encode_structured(event: Event) -> tuple[dict[str, str], bytes]:
    """Headers and body of a structured message."""
    return {"Content-Type": STRUCTURED + CHARSET}, msgspec.json.encode(to_json(event))


def encode_batch(events: Iterable[Event]) -> tuple[dict[str, str], bytes]:
    """Headers and body of a batched message."""
    return {"Content-Type": BATCH + CHARSET}, msgspec.json.encode([to_json(event) for event in events])


def to_json(event: Event) -> dict[str, Any]:
    """The event in the JSON format."""
    entry: dict[str, Any] = dict(event.attributes)
    data = event.data
    if data is None:
        return entry
    if is_json(str(event.attributes.get("datacontenttype") or "")):
        try:
            msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            entry["data_base64"] = base64.b64encode(data).decode()
        else:
            entry["data"] = msgspec.Raw(data)
        return entry
    try:
        entry["data"] = data.decode()
    except UnicodeDecodeError:
        entry["data_base64"] = base64.b64encode(data).decode()
    return entry


# -- storing


class _Head(msgspec.Struct, omit_defaults=True):
    mode: Mode
    attributes: dict[str, Value]
    empty: bool = False
    """There is no data (as opposed to data of no bytes)."""
    headers: dict[str, str] = {}


_encoder, _decoder = msgspec.json.Encoder(), msgspec.json.Decoder(_Head)


def pack(event: Event) -> bytes:
    """The event as it is stored."""
    head = _encoder.encode(_Head(event.mode, event.attributes, event.data is None, event.headers))
    return head + b"\n" + (event.data or b"")


def unpack(payload: bytes) -> Event:
    """The event of `pack`.

    Raises:
        MalformedEventError: these bytes are something else.
    """
    head, _, data = payload.partition(b"\n")
    try:
        found = _decoder.decode(head)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedEventError(f"the stored message is no event: {error}") from None
    return Event(found.attributes, None if found.empty else data, found.mode, found.headers)
