"""A Kafka record as an event. No I/O.

A record that is a CloudEvent already (CloudEvents' Kafka binding: ``ce_`` headers, or a JSON event as its value) stays what it
is. Any other becomes a ``dev.knative.kafka.event`` whose data is the record's value; key and headers become extensions.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from sampan.parts.eventing import cloudevents
from sampan.parts.eventing.cloudevents import INT32, Event, Value
from sampan.parts.eventing.errors import MalformedEventError, NotAnEventError

EVENT_TYPE = "dev.knative.kafka.event"
KEY_TYPES = ("string", "int", "float", "byte-array")
PREFIX = "ce_"
_UNFIT = re.compile(r"[^a-z0-9]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Record(Protocol):
    """What is read of a record; a client library's own fits."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    """Milliseconds since the epoch; below 0 where the broker has none."""
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


def source_of(namespace: str, name: str, topic: str) -> str:
    """The events' ``source``."""
    return f"/apis/v1/namespaces/{namespace}/kafkasources/{name}#{topic}"


def event_of(record: Record, namespace: str, name: str, key_type: str = "string") -> Event:
    """The event of a record that the KafkaSource ``namespace/name`` has read."""
    headers = {key: _text(value) for key, value in record.headers}
    try:
        if (given := _given(record, headers)) is not None:
            return given
    except (MalformedEventError, NotAnEventError):
        pass  # it says that it is an event and is none: it goes on as any record does
    attributes: dict[str, Value] = {
        "specversion": "1.0",
        "id": f"partition:{record.partition}/offset:{record.offset}",
        "source": source_of(namespace, name, record.topic),
        "type": EVENT_TYPE,
        "subject": f"partition:{record.partition}#{record.offset}",
    }
    if record.timestamp >= 0:
        moment = datetime.fromtimestamp(record.timestamp / 1000, UTC)
        attributes["time"] = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    for header, value in headers.items():
        extension = "kafkaheader" + _UNFIT.sub("", header.lower())
        attributes[extension] = value
    if record.key is not None:
        attributes["key"] = key = key_of(record.key, key_type)
        attributes["partitionkey"] = cloudevents.text(key)
    if record.value is not None:
        attributes["datacontenttype"] = _content_type(headers, record.value)
    return Event(attributes, record.value)


def key_of(key: bytes, key_type: str) -> Value:
    """A record's key as an attribute: what the source's label says it is, its text where it does not fit that."""
    match key_type, len(key):
        case "int", 1 | 2 | 4 | 8:
            number = int.from_bytes(key, "big", signed=True)
            return number if -INT32 <= number < INT32 else str(number)
        case "float", 4:
            return repr(struct.unpack(">f", key)[0])
        case "float", 8:
            return repr(struct.unpack(">d", key)[0])
        case "byte-array", _:
            return base64.b64encode(key).decode()
    return _text(key)


def _given(record: Record, headers: dict[str, str]) -> Event | None:
    content_type = next((value for name, value in headers.items() if name.lower() == "content-type"), "")
    if content_type.lower().startswith("application/cloudevents"):
        return cloudevents.decode({"content-type": content_type}, record.value or b"")
    if "ce_specversion" not in headers:
        return None
    attributes: dict[str, Value] = {
        name[len(PREFIX) :]: value for name, value in headers.items() if name.startswith(PREFIX)
    }
    if content_type:
        attributes["datacontenttype"] = content_type
    cloudevents.check(attributes)
    return Event(attributes, record.value)


def _content_type(headers: dict[str, str], value: bytes) -> str:
    said = next((found for name, found in headers.items() if name.lower() == "content-type"), "")
    if said and cloudevents.is_media_type(said):
        return said
    try:
        msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "application/octet-stream"
    return "application/json"


def _text(value: bytes | None) -> str:
    """Bytes as an attribute may hold them: control characters, which it may not, are left out."""
    return _CONTROL.sub("", (value or b"").decode(errors="replace"))
