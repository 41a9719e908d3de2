"""A message and its bytes: the record layout shared by the commit log, the remoting protocol and everything in between.

Big-endian::

    totalSize 4 | magic 4 | bodyCRC 4 | queueId 4 | flag 4 | queueOffset 8 | physicalOffset 8 | sysFlag 4
    bornTimestamp 8 | bornHost 4+4 | storeTimestamp 8 | storeHost 4+4 | reconsumeTimes 4 | preparedTransactionOffset 8
    bodyLength 4, body | topicLength 1 (2 in version 2), topic | propertiesLength 2, properties

Properties are ``name \\x01 value \\x02`` pairs. The first version is written unless the topic is longer than 127 bytes.
What this broker holds back (timers, half messages) is stored under its real topic and queue; ``preparedTransactionOffset``
of a message that was held is the position it was held at, so that storing the message also closes the held one, in one
frame.
"""

from __future__ import annotations

import socket
import struct
import zlib
from functools import lru_cache

import msgspec

MAGIC_V1 = 0xDAA320A7
MAGIC_V2 = 0xDAA320AB
_HEAD = struct.Struct(">IIIiiqqIqIIqIIiqI")
HEAD_BYTES = _HEAD.size
_QUEUE_AND_OFFSETS = struct.Struct(">iiqq")

COMPRESSED = 1
PREPARED = 4
COMMITTED = 8
TRANSACTION_MASK = 12
GZIP = 0x400
"""The body is gzip as gRPC clients send it, not zlib as remoting clients do (set along with `COMPRESSED`). Ours, not upstream's."""

KEYS = "KEYS"
TAGS = "TAGS"
UNIQUE_KEY = "UNIQ_KEY"
SHARDING_KEY = "__SHARDINGKEY"
DELIVER_MS = "TIMER_DELIVER_MS"
OUT_MS = "TIMER_OUT_MS"
TRANSACTION = "TRAN_MSG"
PRODUCER_GROUP = "PGROUP"
CHECK_IMMUNITY = "CHECK_IMMUNITY_TIME_IN_SECONDS"
CHECK_TIMES = "TRANSACTION_CHECK_TIMES"
TRACE_CONTEXT = "TRACE_CONTEXT"
REAL_TOPIC = "REAL_TOPIC"
REAL_QUEUE = "REAL_QID"
RETRY_TOPIC = "RETRY_TOPIC"
ORIGIN_ID = "ORIGIN_MESSAGE_ID"
RECONSUME_TIME = "RECONSUME_TIME"
BORN_HOST = "__BORNHOST"
BORN_TIMESTAMP = "BORN_TIMESTAMP"
DLQ_TOPIC = "DLQ_ORIGIN_TOPIC"
DLQ_ID = "DLQ_ORIGIN_MESSAGE_ID"
PRIORITY = "_SYS_MSG_PRIORITY_"
LITE_TOPIC = "__LITE_TOPIC"

RESERVED = frozenset(
    [
        "KEYS",
        "TAGS",
        "WAIT",
        "DELAY",
        "RETRY_TOPIC",
        "REAL_TOPIC",
        "REAL_QID",
        "TRAN_MSG",
        "PGROUP",
        "MIN_OFFSET",
        "MAX_OFFSET",
        "BUYER_ID",
        "ORIGIN_MESSAGE_ID",
        "TRANSFER_FLAG",
        "CORRECTION_FLAG",
        "MQ2_FLAG",
        "RECONSUME_TIME",
        "MSG_REGION",
        "TRACE_ON",
        "UNIQ_KEY",
        "EXTEND_UNIQ_INFO",
        "MAX_RECONSUME_TIMES",
        "CONSUME_START_TIME",
        "INNER_NUM",
        "INNER_BASE",
        "DUP_INFO",
        "CHECK_IMMUNITY_TIME_IN_SECONDS",
        "TRAN_PREPARED_QUEUE_OFFSET",
        "__transactionId__",
        "TRANSACTION_CHECK_TIMES",
        "INSTANCE_ID",
        "CORRELATION_ID",
        "REPLY_TO_CLIENT",
        "TTL",
        "ARRIVE_TIME",
        "PUSH_REPLY_TIME",
        "CLUSTER",
        "MSG_TYPE",
        "POP_CK",
        "POP_CK_OFFSET",
        "1ST_POP_TIME",
        "__SHARDINGKEY",
        "PROPERTY_FORWARD_QUEUE_ID",
        "REDIRECT",
        "INNER_MULTI_DISPATCH",
        "INNER_MULTI_QUEUE_OFFSET",
        "TRACE_CONTEXT",
        "TIMER_DELAY_SEC",
        "TIMER_DELIVER_MS",
        "TIMER_DELAY_MS",
        "TIMER_ENQUEUE_MS",
        "TIMER_DEQUEUE_MS",
        "TIMER_ROLL_TIMES",
        "TIMER_OUT_MS",
        "TIMER_DEL_UNIQKEY",
        "TIMER_DELAY_LEVEL",
        "__BORNHOST",
        "BORN_TIMESTAMP",
        "__CRC32#",
        "DLQ_ORIGIN_TOPIC",
        "DLQ_ORIGIN_MESSAGE_ID",
        "_SYS_MSG_PRIORITY_",
        "__LITE_TOPIC",
    ]
)
"""Property names that users may not set."""


class Message(msgspec.Struct):
    """One message. Times are milliseconds since the epoch; hosts are ``(IPv4 address, port)``."""

    topic: str
    body: bytes
    properties: dict[str, str]
    queue_id: int = 0
    queue_offset: int = 0
    position: int = 0
    flag: int = 0
    sys_flag: int = 0
    born_ms: int = 0
    born_host: tuple[str, int] = ("127.0.0.1", 0)
    store_ms: int = 0
    store_host: tuple[str, int] = ("127.0.0.1", 0)
    reconsume: int = 0
    prepared: int = 0
    """The position this message was held at, or 0."""

    @property
    def id(self) -> str:
        """The unique id the client gave, or the broker's own offset id."""
        return self.properties.get(UNIQUE_KEY) or self.offset_id

    @property
    def offset_id(self) -> str:
        """The 32-digit id that names the broker's address and the position."""
        host, port = self.store_host
        return f"{_ipv4(host):08X}{port:08X}{self.position:016X}"

    @property
    def tag(self) -> str | None:
        return self.properties.get(TAGS)

    @property
    def keys(self) -> list[str]:
        return self.properties.get(KEYS, "").split()

    @property
    def group(self) -> str:
        """The message group whose order is kept, or the empty string."""
        return self.properties.get(SHARDING_KEY, "")


def encode(message: Message, properties: bytes | None = None) -> bytes:
    """The record. ``properties`` may carry the encoded properties when the caller has them."""
    topic = message.topic.encode()
    if properties is None:
        properties = encode_properties(message.properties)
    body = message.body
    short = len(topic) <= 127
    total = HEAD_BYTES + len(body) + (1 if short else 2) + len(topic) + 2 + len(properties)
    born, store = message.born_host, message.store_host
    head = _HEAD.pack(
        total,
        MAGIC_V1 if short else MAGIC_V2,
        zlib.crc32(body) & 0x7FFFFFFF,
        message.queue_id,
        message.flag,
        message.queue_offset,
        message.position,
        message.sys_flag,
        message.born_ms,
        _ipv4(born[0]),
        born[1],
        message.store_ms,
        _ipv4(store[0]),
        store[1],
        message.reconsume,
        message.prepared,
        len(body),
    )
    size = len(topic).to_bytes(1 if short else 2, "big")
    return b"".join((head, body, size, topic, len(properties).to_bytes(2, "big"), properties))


def record_size(topic_bytes: int, body_bytes: int, properties_bytes: int) -> int:
    """The size `encode` will produce."""
    return HEAD_BYTES + body_bytes + (1 if topic_bytes <= 127 else 2) + topic_bytes + 2 + properties_bytes


def decode(record: bytes) -> Message:
    """The message of a whole record.

    Raises:
        ValueError: the bytes are not one record.
    """
    if len(record) < HEAD_BYTES:
        raise ValueError("a message record is cut short")
    (
        total,
        magic,
        _crc,
        queue_id,
        flag,
        queue_offset,
        position,
        sys_flag,
        born_ms,
        born_ip,
        born_port,
        store_ms,
        store_ip,
        store_port,
        reconsume,
        prepared,
        body_size,
    ) = _HEAD.unpack_from(record)
    at = HEAD_BYTES + body_size
    wide = 1 if magic == MAGIC_V1 else 2
    if total != len(record) or magic not in (MAGIC_V1, MAGIC_V2) or at + wide + 2 > total:
        raise ValueError("not a message record")
    topic_end = at + wide + int.from_bytes(record[at : at + wide], "big")
    end = topic_end + 2 + int.from_bytes(record[topic_end : topic_end + 2], "big")
    if end != total:
        raise ValueError("the lengths inside a message record do not add up")
    return Message(
        str(record[at + wide : topic_end], "utf-8"),
        record[HEAD_BYTES:at],
        decode_properties(record[topic_end + 2 : end]),
        queue_id,
        queue_offset,
        position,
        flag,
        sys_flag,
        born_ms,
        (_dotted(born_ip), born_port),
        store_ms,
        (_dotted(store_ip), store_port),
        reconsume,
        prepared,
    )


def route_of(record: bytes) -> tuple[str, int, int, int, int]:
    """``(topic, queue id, queue offset, store time ms, prepared position)`` without decoding the rest."""
    queue_id: int = int.from_bytes(record[12:16], "big", signed=True)
    queue_offset = int.from_bytes(record[20:28], "big")
    store_ms = int.from_bytes(record[56:64], "big")
    prepared = int.from_bytes(record[76:84], "big", signed=True)
    at = HEAD_BYTES + int.from_bytes(record[84:88], "big")
    wide = 1 if record[7] == 0xA7 else 2
    size = int.from_bytes(record[at : at + wide], "big")
    return str(record[at + wide : at + wide + size], "utf-8"), queue_id, queue_offset, store_ms, prepared


def properties_of(record: bytes) -> dict[str, str]:
    """Only the properties of a record."""
    at = HEAD_BYTES + int.from_bytes(record[84:88], "big")
    wide = 1 if record[7] == 0xA7 else 2
    return decode_properties(record[at + wide + int.from_bytes(record[at : at + wide], "big") + 2 :])


def store_ms_of(record: bytes) -> int:
    """Only the store time of a record."""
    return int.from_bytes(record[56:64], "big")


def encode_properties(properties: dict[str, str]) -> bytes:
    """``name \\x01 value \\x02`` pairs."""
    return "".join([f"{name}\x01{value}\x02" for name, value in properties.items()]).encode()


def decode_properties(data: bytes) -> dict[str, str]:
    """The pairs; the last separator may be missing."""
    result = {}
    for pair in data.decode("utf-8", "replace").split("\x02"):
        name, separator, value = pair.partition("\x01")
        if separator:
            result[name] = value
    return result


@lru_cache(maxsize=4096)
def java_hash(text: str) -> int:
    """Java's ``String.hashCode``: the tag code of the queue index and the hash that places message groups."""
    value = 0
    for unit in text.encode() if text.isascii() else _units(text):
        value = (value * 31 + unit) & 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value


def jump_hash(key: int, buckets: int) -> int:
    """The jump consistent hash of a 64-bit key over ``buckets`` buckets."""
    bucket, jump = -1, 0
    key &= (1 << 64) - 1
    while jump < buckets:
        bucket = jump
        key = (key * 2862933555777941757 + 1) & ((1 << 64) - 1)
        jump = int((bucket + 1) * (float(1 << 31) / float((key >> 33) + 1)))
    return bucket


def _units(text: str) -> list[int]:
    data = text.encode("utf-16-be", "surrogatepass")
    return [data[i] << 8 | data[i + 1] for i in range(0, len(data), 2)]


@lru_cache(maxsize=1024)
def _ipv4(host: str) -> int:
    try:
        return int.from_bytes(socket.inet_aton(host), "big")
    except OSError:
        return 0x7F000001


@lru_cache(maxsize=1024)
def _dotted(address: int) -> str:
    return socket.inet_ntoa(address.to_bytes(4, "big"))
