"""Envoy's message types, in a descriptor pool of their own.

The schema ships as one compressed FileDescriptorSet (``tools/build_xds_schema.py`` writes it) and is loaded into a private
pool, so that it can never clash with another protobuf user of the process. Configuration is written as plain dicts in
protobuf's JSON form; ``pack`` turns one into bytes and rejects what the schema does not know.
"""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import Message

TYPE_PREFIX = "type.googleapis.com/"

LISTENER = TYPE_PREFIX + "envoy.config.listener.v3.Listener"
ROUTES = TYPE_PREFIX + "envoy.config.route.v3.RouteConfiguration"
CLUSTER = TYPE_PREFIX + "envoy.config.cluster.v3.Cluster"
ENDPOINTS = TYPE_PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
SECRET = TYPE_PREFIX + "envoy.extensions.transport_sockets.tls.v3.Secret"


@cache
def pool() -> descriptor_pool.DescriptorPool:
    """The private pool with every shipped file."""
    data = Path(__file__).with_name("schema.binpb.gz").read_bytes()
    files = descriptor_pb2.FileDescriptorSet.FromString(gzip.decompress(data))
    private = descriptor_pool.DescriptorPool()
    for file in files.file:
        private.AddSerializedFile(file.SerializeToString())  # forty times as fast as `Add`, for a quarter of the memory
    return private


@cache
def message_type(name: str) -> type[Message]:
    """The class of a message by its full name."""
    found: type[Message] = message_factory.GetMessageClass(pool().FindMessageTypeByName(name))
    return found


def pack(name: str, value: dict[str, Any]) -> bytes:
    """The wire form of a message given in protobuf's JSON form (``@type`` fields name nested Any messages).

    Raises:
        google.protobuf.json_format.ParseError: the schema does not know a field, or a value has the wrong type.
    """
    message = message_type(name)()
    json_format.ParseDict(value, message, descriptor_pool=pool())
    return bytes(message.SerializeToString(deterministic=True))


def resource(type_url: str, value: dict[str, Any]) -> bytes:
    """`pack` for a resource given by its type URL."""
    return pack(type_url.removeprefix(TYPE_PREFIX), value)


def field(number: int, data: bytes) -> bytes:
    """One length-delimited field: serialized messages concatenate, so big ones are assembled from cached parts."""
    return b"".join((_varint(number << 3 | 2), _varint(len(data)), data))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def any_of(name: str, /, **value: Any) -> dict[str, Any]:
    """An Any in JSON form."""
    return {"@type": TYPE_PREFIX + name, **value}
