"""The checkpoint: everything derived from the log up to one position, so that a start replays only what came after.

On disk, ``checkpoint``: magic ``SMPNCKP`` and version 1, u32 length, u32 CRC-32, then one MessagePack array (`State`). Written
to a temporary file, fsynced and renamed, so there is always one whole checkpoint.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import msgspec

from sampan.parts.messaging.errors import StorageError
from sampan.parts.messaging.topology import GroupConfig, TopicConfig

MAGIC = b"SMPNCKP\x01"
_HEADER = struct.Struct("<8sII")


class TopicState(msgspec.Struct, array_like=True):
    """A topic: its definition, queue numbers, and ``(queue, next offset, oldest offset)`` of queues that were used."""

    config: TopicConfig
    numbers: list[int]
    used: list[tuple[int, int, int]]


class HeldState(msgspec.Struct, array_like=True):
    """One held message of a group; the fields of ``delivery.Held``."""

    offset: int
    position: int
    size: int
    key: str
    attempt: int
    serial: int
    visible_ms: int
    client: str
    renew_until_ms: int
    attempt_id: str


class ProgressState(msgspec.Struct, array_like=True):
    """A group's progress in a topic: for each queue its next offset and what is held."""

    group: str
    topic: str
    serial: int
    queues: list[tuple[int, int, list[HeldState]]]


class HalfState(msgspec.Struct, array_like=True):
    """An open half message."""

    id: str
    position: int
    size: int
    topic: str
    due_ms: int
    checks: int


class State(msgspec.Struct, array_like=True):
    """Everything derived from the log below ``position``."""

    position: int
    next_number: int
    topics: list[TopicState]
    groups: list[GroupConfig]
    progress: list[ProgressState]
    timers: bytes
    """Pairs of i64 (due ms, position)."""
    halves: list[HalfState]
    definitions: list[tuple[str, str, Any]]


def write(directory: Path, encoded: bytes | bytearray) -> None:
    """Replace the checkpoint by an encoded `State`. For threads."""
    temporary = directory / "checkpoint.tmp"
    with temporary.open("wb") as file:
        file.write(_HEADER.pack(MAGIC, len(encoded), zlib.crc32(encoded)))
        file.write(encoded)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(directory / "checkpoint")
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read(directory: Path) -> State | None:
    """The checkpoint, or None when there is none yet.

    Raises:
        StorageError: it is damaged or of another version.
    """
    path = directory / "checkpoint"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(data) < _HEADER.size:
        raise StorageError(f"{path} is cut short")
    magic, length, crc = _HEADER.unpack_from(data)
    body = data[_HEADER.size :]
    if magic != MAGIC:
        raise StorageError(f"{path} is not a checkpoint of format 1")
    if len(body) != length or zlib.crc32(body) != crc:
        raise StorageError(f"{path} is damaged")
    try:
        return msgspec.msgpack.decode(body, type=State)
    except msgspec.DecodeError as error:
        raise StorageError(f"{path} cannot be read: {error}") from error
