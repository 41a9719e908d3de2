"""Messages between the gRPC API and the core.

Incoming messages are read with the generated classes. Outgoing ones are written field by field into bytes, straight from the
stored record: building and serialising protobuf objects would cost several times as much on the busiest path of the broker.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache, partial

from sampan.parts.messaging import receipt, record, validation
from sampan.parts.messaging.broker import Limits
from sampan.parts.messaging.consumption import Delivery
from sampan.parts.messaging.errors import MessagingError, Reason
from sampan.parts.messaging.record import Message
from sampan.parts.messaging.topology import DLQ_PREFIX, MessageType, Topic
from sampan.proto import messaging_pb2 as pb

TYPES: dict[int, MessageType] = {
    pb.NORMAL: "NORMAL",
    pb.FIFO: "FIFO",
    pb.DELAY: "DELAY",
    pb.TRANSACTION: "TRANSACTION",
    pb.LITE: "LITE",
    pb.PRIORITY: "PRIORITY",
}
TYPE_NUMBERS: dict[MessageType, int] = {name: number for number, name in TYPES.items()}


_md5 = partial(hashlib.md5, usedforsecurity=False)
FAR_FUTURE_MS = 253_402_300_799_000
"""The last second of the year 9999: times a client makes up are cut off here."""


def full_name(resource: pb.Resource) -> str:
    """The name of a topic or group with its namespace."""
    return f"{resource.resource_namespace}%{resource.name}" if resource.resource_namespace else resource.name


def split_name(name: str) -> tuple[str, str]:
    """``(namespace, name)``, leaving the prefixes of retry and dead letter topics alone."""
    if "%" not in name or name.startswith("%"):
        return "", name
    namespace, _, rest = name.partition("%")
    return namespace, rest


def incoming(message: pb.Message, topic: Topic, limits: Limits, host: tuple[str, int]) -> tuple[Message, MessageType]:
    """A message to be stored, checked, and its type.

    Raises:
        MessagingError: what is wrong with it, with the reference's code.
    """
    system = message.system_properties
    body = message.body
    validation.check_body(body, limits)
    identifier = system.message_id
    validation.check_id(identifier)
    properties: dict[str, str] = {}
    extra = 0
    if system.HasField("tag"):
        tag = system.tag
        validation.check_tag(tag)
        properties["TAGS"] = tag
        extra += len(tag.encode())
    if system.keys:
        validation.check_keys(system.keys)
        keys = properties["KEYS"] = " ".join(system.keys)
        extra += len(keys.encode())
    if system.HasField("trace_context"):
        validation.check_trace(system.trace_context)
        extra += len(system.trace_context.encode())
    properties["UNIQ_KEY"] = identifier
    if message.user_properties:
        user = dict(message.user_properties)
        validation.check_properties(user, extra, limits)
        properties.update(user)
    elif extra > limits.max_properties_bytes:
        validation.check_properties({}, extra, limits)
    type = TYPES.get(system.message_type, "NORMAL")
    if system.HasField("message_group"):
        validation.check_group(system.message_group, limits)
        properties[record.SHARDING_KEY] = system.message_group
        if system.message_type in (0, pb.NORMAL):
            type = "FIFO"
    if system.HasField("delivery_timestamp"):
        due = system.delivery_timestamp
        properties[record.DELIVER_MS] = str(max(0, due.seconds * 1000 + due.nanos // 1_000_000))
        if system.message_type in (0, pb.NORMAL):
            type = "DELAY"
    if type == "TRANSACTION":
        properties[record.TRANSACTION] = "true"
        properties[record.PRODUCER_GROUP] = topic.name
        if system.HasField("orphaned_transaction_recovery_duration"):
            seconds = system.orphaned_transaction_recovery_duration.seconds
            if not 0 <= seconds * 1000 <= limits.max_recovery_ms:
                raise MessagingError(
                    Reason.BAD_REQUEST,
                    f"the orphaned transaction recovery duration exceeds {limits.max_recovery_ms // 1000} seconds",
                )
            properties[record.CHECK_IMMUNITY] = str(seconds)
    if system.HasField("trace_context"):
        properties[record.TRACE_CONTEXT] = system.trace_context
    if system.HasField("priority"):
        if system.priority < 0:
            raise MessagingError(Reason.BAD_REQUEST, "the priority is negative")
        properties[record.PRIORITY] = str(system.priority)
    if system.HasField("lite_topic"):
        properties[record.LITE_TOPIC] = system.lite_topic
    born = system.born_timestamp
    result = Message(topic.name, body, properties)
    result.born_ms = min(max(0, born.seconds * 1000 + born.nanos // 1_000_000), FAR_FUTURE_MS)
    result.born_host = host
    if system.body_encoding == pb.GZIP:
        result.sys_flag = record.COMPRESSED | record.GZIP
    return result, type


_SYSTEM = {
    *("TAGS", "KEYS", "UNIQ_KEY", record.SHARDING_KEY, record.DELIVER_MS, record.OUT_MS, record.TRANSACTION),
    *(record.PRODUCER_GROUP, record.CHECK_IMMUNITY, record.CHECK_TIMES, record.TRACE_CONTEXT, record.PRIORITY),
    *(record.LITE_TOPIC, record.DLQ_TOPIC, record.DLQ_ID),
}


def outgoing(data: bytes, topic: str, delivery: Delivery | None, broker: str, invisible_ms: int = 0) -> bytes:
    """The bytes of a `pb.Message` for a stored record; ``topic`` is the name the client subscribed to."""
    message = record.decode(data)
    properties = message.properties
    system: list[bytes] = []
    user: list[bytes] = []
    for name, value in properties.items():
        if name not in _SYSTEM:
            pair = _text(0x0A, name) + _text(0x12, value)
            user.append(b"\x12" + _varint(len(pair)) + pair)
    if (tag := properties.get("TAGS")) is not None:
        system.append(_text(0x0A, tag))
    if (keys := properties.get("KEYS")) is not None:
        system += [_text(0x12, key) for key in keys.split(" ")]
    system.append(_text(0x1A, message.id))
    # a digest of type MD5 (2) with 32 hex digits
    system.append(b"\x22\x24\x08\x02\x12\x20" + _md5(message.body).hexdigest().upper().encode())
    system.append(b"\x28\x02" if message.sys_flag & record.GZIP else b"\x28\x01")
    system.append(b"\x30" + _varint(_type(message)))
    system.append(_timestamp(0x3A, message.born_ms))
    system.append(_host(0x42, message.born_host[0]))
    system.append(_timestamp(0x4A, message.store_ms))
    system.append(_host(0x52, _address(message.store_host)))
    if (due := properties.get(record.DELIVER_MS)) is not None:
        system.append(_timestamp(0x5A, int(due)))
    if delivery is not None:
        system.append(_text(0x62, receipt.write(delivery.receipt, broker, delivery.position)))
    if message.queue_id:
        system.append(b"\x68" + _varint(message.queue_id))
    system.append(b"\x70" + _varint(message.queue_offset))
    if delivery is not None:
        system.append(_duration(0x7A, invisible_ms))
        system.append(b"\x80\x01" + _varint(delivery.attempt))
    if (group := properties.get(record.SHARDING_KEY)) is not None:
        system.append(b"\x8a\x01" + _text_body(group))
    if (trace := properties.get(record.TRACE_CONTEXT)) is not None:
        system.append(b"\x92\x01" + _text_body(trace))
    if message.topic.startswith(DLQ_PREFIX) and record.DLQ_TOPIC in properties:
        origin = _text(0x0A, properties[record.DLQ_TOPIC]) + _text(0x12, properties.get(record.DLQ_ID, ""))
        system.append(b"\xa2\x01" + _varint(len(origin)) + origin)
    if (lite := properties.get(record.LITE_TOPIC)) is not None:
        system.append(b"\xaa\x01" + _text_body(lite))
    if (priority := properties.get(record.PRIORITY)) is not None:
        system.append(b"\xb0\x01" + _varint(int(priority)))
    joined = b"".join(system)
    return b"".join(
        (
            _resource(topic),
            *user,
            b"\x1a",
            _varint(len(joined)),
            joined,
            b"\x22",
            _varint(len(message.body)),
            message.body,
        )
    )


def received(message: bytes) -> bytes:
    """The bytes of a receive response with one message."""
    return b"\x12" + _varint(len(message)) + message


def _type(message: Message) -> int:
    properties = message.properties
    if message.sys_flag & record.TRANSACTION_MASK or record.TRANSACTION in properties:
        return int(pb.TRANSACTION)
    if record.DELIVER_MS in properties:
        return int(pb.DELAY)
    if record.LITE_TOPIC in properties:
        return int(pb.LITE)
    if record.PRIORITY in properties:
        return int(pb.PRIORITY)
    return int(pb.FIFO if record.SHARDING_KEY in properties else pb.NORMAL)


@lru_cache(maxsize=4096)
def _resource(name: str) -> bytes:
    namespace, rest = split_name(name)
    resource = pb.Resource(resource_namespace=namespace, name=rest).SerializeToString()
    return b"\x0a" + _varint(len(resource)) + resource


@lru_cache(maxsize=64)
def _address(host: tuple[str, int]) -> str:
    return f"{host[0]}:{host[1]}"


@lru_cache(maxsize=1024)
def _host(tag: int, host: str) -> bytes:
    return _text(tag, host)


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _text(tag: int, text: str) -> bytes:
    data = text.encode()
    return bytes((tag,)) + _varint(len(data)) + data


def _text_body(text: str) -> bytes:
    data = text.encode()
    return _varint(len(data)) + data


@lru_cache(maxsize=1024)
def _timestamp(tag: int, ms: int) -> bytes:
    seconds, rest = divmod(ms, 1000)
    body = b"\x08" + _varint(seconds) + (b"\x10" + _varint(rest * 1_000_000) if rest else b"")
    return bytes((tag, len(body))) + body


@lru_cache(maxsize=256)
def _duration(tag: int, ms: int) -> bytes:
    return _timestamp(tag, ms)
