"""Mend the segments of a damaged commit log, so that everything readable in them stays at its position.

The broker refuses a log that is damaged where no crash can have torn it. `find_damage` says which stretches of it are no
whole frames, and `mend` replaces each by frames of the kind ``GAP``, which hold nothing: every other frame keeps its place, and
with it the addresses that the index, leases and consumers have of it. Afterwards the log reads from end to end; what the lost
frames meant for topics and groups is for `repair` to judge.

Behind damage the next frame has to be found among arbitrary bytes. What is believed there: a frame whose checksum is right
*and* that names its position (the first of a batch does by its checksum, a message in its record), or that another whole
frame or the segment's end follows. So bytes that a client stored in a message's body do not pass for a frame of ours.

Nothing is changed in place. A mended segment is written beside the damaged one, the damaged one gets a second name under
``damaged/``, and then the new one takes its name. Killed at any moment, the log is as damaged as before or mended.
"""

from __future__ import annotations

import mmap
import os
import re
import shutil
import struct
import zlib
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO

import msgspec

from sampan.kernel.files import sync_folder, write_private
from sampan.parts.messaging import record
from sampan.parts.messaging.storage.log import (
    FIRST,
    FRAME,
    FRAME_BYTES,
    MAGIC_GAPS,
    MAX_PAYLOAD,
    READABLE,
    SEGMENT_HEADER,
    Kind,
    frame_checksum,
)

GAP_BYTES = 16 << 20
"""Longest payload of one ``GAP`` frame."""
_MESSAGES = (Kind.MESSAGE, Kind.TIMER, Kind.HALF)
_HEAD = re.compile(rb"(?=[%c-%c][\x00\x01]\x00\x00)" % (min(Kind), max(Kind)))
_RECORD_POSITION = struct.Struct(">q")
_RECORD_POSITION_AT = 28
"""Where a message's record says its position."""
_ZEROS = bytes(1 << 20)


class Damage(msgspec.Struct, frozen=True):
    """A stretch of the log that is no whole frames."""

    file: str
    begin: int
    """Its first position."""
    end: int
    """The position of the next whole frame."""
    missing: bool = False
    """The file ended before, or there was none: nothing to look at."""
    looks_like: str = ""
    """The message it seems to have been, as far as it can be read: not to be relied on."""


class Segment(msgspec.Struct, frozen=True):
    """One file of the log, as it was found."""

    base: int
    size: int
    """Bytes of the file, or up to the base of the next segment."""
    header: bool
    """Whether its header is whole."""
    damages: tuple[Damage, ...]
    tail: int
    """Bytes at the end of the newest segment that no whole frame follows: an interrupted write, or space prepared in advance."""


def survey(directory: Path, least_end: int = 0) -> list[Segment]:
    """Every segment of the log in a folder. The log is to reach the position ``least_end``, which a checkpoint names.

    Reads everything.

    Raises:
        OSError: a file cannot be read.
    """
    bases = sorted(int(path.name) for path in directory.iterdir() if re.fullmatch(r"[0-9]{20}", path.name))
    return [
        _look(directory, base, following, least_end)
        for base, following in zip_longest(bases, bases[1:], fillvalue=None)
        if base is not None
    ]


def _look(directory: Path, base: int, following: int | None, least_end: int) -> Segment:
    path = directory / f"{base:020d}"
    length = path.stat().st_size
    size = length if following is None else following - base
    have = min(size, length)
    with path.open("rb") as file:
        head = file.read(SEGMENT_HEADER.size)
    header = len(head) == SEGMENT_HEADER.size and head[:8] in READABLE and head[8:16] == base.to_bytes(8, "little")
    damages, end = find_damage(path, base, have) if have > SEGMENT_HEADER.size else ([], SEGMENT_HEADER.size)
    goal = base + size if following is not None else max(base + end, least_end)
    if base + end < goal:  # cut short, and the next segment (or the checkpoint) tells how long it was
        damages.append(Damage(path.name, base + end, goal, missing=have - end < goal - base - end))
    tail = max(0, length - end) if following is None and base + end >= goal else 0
    return Segment(base, size, header, tuple(damages), tail)


def find_damage(path: Path, base: int, size: int) -> tuple[list[Damage], int]:
    """What is damaged between whole frames in the first ``size`` bytes of a segment, and where its last whole frame ends."""
    damages: list[Damage] = []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        size = min(size, len(data))
        offset = SEGMENT_HEADER.size
        while True:
            while (stop := _frame(data, base, offset, size)) is not None:
                offset = stop
            found = _next(data, base, offset, size)
            if found is None:
                return damages, offset
            damages.append(Damage(path.name, base + offset, base + found, looks_like=_guess(data, offset, found)))
            offset = found


def _guess(data: mmap.mmap, offset: int, stop: int) -> str:
    """What the first damaged frame says about itself, if it says anything."""
    length, _, kind, _ = FRAME.unpack_from(data, offset)
    if kind not in _MESSAGES or length > min(MAX_PAYLOAD, stop - offset - FRAME_BYTES):
        return ""
    try:
        message = record.decode(data[offset + FRAME_BYTES : offset + FRAME_BYTES + length])
    except (ValueError, OverflowError, struct.error):
        return ""
    place = f"queue {message.queue_id}" + (f" offset {message.queue_offset}" if kind == Kind.MESSAGE else "")
    keys = f", keys {' '.join(message.keys)}" if message.keys else ""
    text = f"message {message.id} of {message.topic} {place}{keys}"
    return text if text.isprintable() else ""


def _frame(data: mmap.mmap, base: int, offset: int, size: int) -> int | None:
    """Where the whole frame at an offset ends."""
    if size - offset < FRAME_BYTES:
        return None
    length, crc, kind, flags = FRAME.unpack_from(data, offset)
    begin, stop = offset + FRAME_BYTES, offset + FRAME_BYTES + length
    if length > MAX_PAYLOAD or not min(Kind) <= kind <= max(Kind) or flags > FIRST or stop > size:
        return None
    return stop if frame_checksum(kind, flags, base + begin, memoryview(data)[begin:stop]) == crc else None


def _next(data: mmap.mmap, base: int, offset: int, size: int) -> int | None:
    """Where the first frame to be believed begins that is at least a frame's header behind an offset."""
    if (
        size - offset >= FRAME_BYTES
    ):  # most likely only the payload is damaged, and the header says where the next one is
        length = FRAME.unpack_from(data, offset)[0]
        guess = offset + FRAME_BYTES + length
        if length <= MAX_PAYLOAD and guess < size and _believed(data, base, guess, size):
            return int(guess)
    for match in _HEAD.finditer(data, offset + FRAME_BYTES + 8, size):
        begin = match.start() - 8
        if _believed(data, base, begin, size):
            return begin
    return None


def _believed(data: mmap.mmap, base: int, offset: int, size: int) -> bool:
    """Whether a whole frame begins here that is ours beyond doubt."""
    if size - offset < FRAME_BYTES:
        return False
    _, _, kind, flags = FRAME.unpack_from(data, offset)
    if kind in _MESSAGES:  # looked at before the checksum, which may be one of many megabytes
        at = offset + FRAME_BYTES + _RECORD_POSITION_AT
        if at + 8 > size or _RECORD_POSITION.unpack_from(data, at)[0] != base + offset + FRAME_BYTES:
            return False
    stop = _frame(data, base, offset, size)
    if stop is None:
        return False
    return kind in _MESSAGES or bool(flags & FIRST) or stop == size or _frame(data, base, stop, size) is not None


def mend(directory: Path, segment: Segment, aside: Path) -> None:
    """Replace a damaged segment by one that reads from end to end; the damaged one goes into the folder ``aside``.

    Raises:
        OSError: the disk is full or failed; the segment is as it was.
    """
    path = directory / f"{segment.base:020d}"
    temporary = path.with_suffix(".mended")
    temporary.unlink(missing_ok=True)
    shutil.copyfile(path, temporary)
    temporary.chmod(0o600)
    with temporary.open("r+b") as file:
        whole = max(segment.size - segment.tail, SEGMENT_HEADER.size)
        file.write(SEGMENT_HEADER.pack(MAGIC_GAPS, segment.base))
        for damage in segment.damages:
            begin, end = damage.begin - segment.base, damage.end - segment.base
            if damage.missing:
                file.truncate(begin)  # what is not there need not be written either
                file.truncate(end)
            whole = max(whole, end)
            _write_gaps(file, begin, end, holes=damage.missing)
        file.truncate(whole)
        file.flush()
        os.fsync(file.fileno())
    aside.mkdir(parents=True, exist_ok=True)
    _keep(path, aside)
    temporary.replace(path)
    sync_folder(directory)


def begin(directory: Path, position: int) -> None:
    """Begin a log of which nothing is left at the position up to which its checkpoint knows it.

    Raises:
        OSError: the disk is full or failed.
    """
    write_private(directory / f"{position:020d}", SEGMENT_HEADER.pack(MAGIC_GAPS, position))


def _keep(path: Path, aside: Path) -> None:
    """A second name for a damaged file, unless it has one from a repair that was interrupted."""
    taken = sorted(aside.glob(f"{path.name}*"))
    if any(other.samefile(path) for other in taken):
        return
    name = path.name if not taken else f"{path.name}.{len(taken)}"
    os.link(path, aside / name)
    sync_folder(aside)
    sync_folder(aside.parent)


def _write_gaps(file: BinaryIO, begin: int, end: int, *, holes: bool) -> None:
    """``GAP`` frames from one offset to another; with ``holes`` there are zeros already."""
    for size in _split(end - begin):
        pieces = [memoryview(_ZEROS)[: min(len(_ZEROS), size - at)] for at in range(0, size, len(_ZEROS))]
        checksum = frame_checksum(Kind.GAP, 0, 0, b"")
        for piece in pieces:
            checksum = zlib.crc32(piece, checksum)
        file.seek(begin)
        file.write(FRAME.pack(size, checksum, Kind.GAP, 0))
        if not holes:
            for piece in pieces:
                file.write(piece)
        begin += FRAME_BYTES + size


def _split(length: int) -> Sequence[int]:
    """Payload sizes of frames that together with their headers take ``length`` bytes, of which there are enough for one header."""
    sizes = []
    while length - FRAME_BYTES > GAP_BYTES + FRAME_BYTES:
        sizes.append(GAP_BYTES)
        length -= GAP_BYTES + FRAME_BYTES
    return [*sizes, length - FRAME_BYTES]
