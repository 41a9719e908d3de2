"""The payloads of the log's frames other than messages: MessagePack arrays of these fields, in this order."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


class LeasedMessage(msgspec.Struct, array_like=True):
    """One message in a `Lease`; attempt 0: read past while its message group was blocked."""

    offset: int
    position: int
    size: int
    attempt: int
    serial: int
    key: str = ""


class Lease(msgspec.Struct, array_like=True):
    """LEASE: what one receive call got from one queue, and how far that queue is read."""

    group: str
    topic: str
    queue: int
    next: int
    visible_ms: int
    client: str
    renew_until_ms: int
    attempt_id: str
    messages: list[LeasedMessage]
    at_ms: int = 0
    """When."""


class Ack(msgspec.Struct, array_like=True):
    """ACK: ``(queue, offset)`` of messages a group is done with."""

    group: str
    topic: str
    messages: list[tuple[int, int]]
    at_ms: int = 0
    reason: str = ""
    """Why, when no consumer acknowledged: ``dead`` letters, ``lost`` records."""


class Change(msgspec.Struct, array_like=True):
    """CHANGE: the new end of one lease, and the serial of its new receipt."""

    group: str
    topic: str
    queue: int
    offset: int
    visible_ms: int
    serial: int
    at_ms: int = 0


class Offset(msgspec.Struct, array_like=True):
    """OFFSET: a queue is read from here on; what was held is dropped."""

    group: str
    topic: str
    queue: int
    next: int
    at_ms: int = 0


class Close(msgspec.Struct, array_like=True):
    """CLOSE: ``(position, due time ms)`` of held messages that are not to be delivered; the time is 0 for half messages."""

    messages: list[tuple[int, int]]


class Checked(msgspec.Struct, array_like=True):
    """CHECKED: a half message was asked about ``checks`` times so far, and is due again."""

    position: int
    checks: int
    due_ms: int


class Define(msgspec.Struct, array_like=True):
    """DEFINE: a named thing of a kind (``topic``, ``group``, ``user``, ``policy``) was declared, or (no data) deleted."""

    kind: str
    name: str
    data: Any = None
    numbers: list[int] = []
    """The queue numbers of a topic."""


_encoder = msgspec.msgpack.Encoder()
_decoders: dict[type[Any], msgspec.msgpack.Decoder[Any]] = {}


def encode(frame: msgspec.Struct) -> bytes:
    """The payload of a frame."""
    return _encoder.encode(frame)


def decode(kind: type[T], payload: bytes) -> T:
    """The frame of a payload.

    Raises:
        msgspec.DecodeError: it is not one.
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    result: T = decoder.decode(payload)
    return result
