"""The index over the commit log: for each queue, where its messages are; for each key and id, which messages carry it.

The newest stretch of the log is indexed in memory, in compact arrays a queue (`Live`). At every checkpoint that stretch is
frozen and written as one immutable file for *all* queues (`Part`), which is then read through a memory map. So 10,000
topics cost a directory entry each in a few files, not files; and memory holds only the newest stretch, whatever the backlog.
A part normally ends where a log segment ends, so that deleting segments deletes whole parts.

A part file, ``index/<from>-<to>.idx`` (positions in 20 digits), little-endian, each array padded to 8 bytes:

==========  =======================================================================
header      magic ``SMPNIDX`` and version 1; u64 from, to; u32 queues, entries, keys,
            CRC-32 of the rest; u64 newest store time (ms); 16 zero bytes
queues      u32 queue number[queues], ascending; u64 first offset[queues];
            u32 first entry[queues + 1]
entries     u64 position[entries]; u32 size[entries]; i32 tag code[entries]
keys        u32 CRC-32 of the key[keys], ascending; u64 position[keys]; u32 size[keys]
==========  =======================================================================

Costs: appending is three array appends; looking up an offset is one bisection a part, remembered for the next look-up of
the same queue; looking up a key is one bisection a part. Positions of different keys with the same CRC are filtered by
whoever reads the messages.
"""

from __future__ import annotations

import bisect
import contextlib
import mmap
import os
import struct
import zlib
from array import array
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from sampan.kernel.files import sync_folder
from sampan.parts.messaging.errors import StorageError

MAGIC = b"SMPNIDX\x01"
SLICE = 256
"""Queues or keys that are packed at a time while the broker serves."""
_HEADER = struct.Struct("<8sQQIIIIQ16x")


class Entry(NamedTuple):
    """One message of a queue."""

    offset: int
    position: int
    size: int
    tag_code: int


class Packed(NamedTuple):
    """What a part file holds, and how many of what."""

    queues: int
    entries: int
    keys: int
    content: bytearray


def key_hash(key: str) -> int:
    """The hash a key or id is indexed under."""
    return zlib.crc32(key.encode())


class _Run:
    """The consecutive entries of one queue in the live stretch."""

    __slots__ = ("first", "positions", "sizes", "tags")

    def __init__(self, first: int) -> None:
        self.first = first
        self.positions = array("Q")
        self.sizes = array("I")
        self.tags = array("i")


class Live:
    """The index of the newest stretch of the log, in memory."""

    def __init__(self, start: int) -> None:
        self.start = start
        """The log position this stretch begins at."""
        self.runs: dict[int, _Run] = {}
        self.count = 0
        self.last = start
        """The newest indexed position."""
        self.newest_ms = 0
        self._key_hashes = array("I")
        self._key_positions = array("Q")
        self._key_sizes = array("I")
        self._by_hash: dict[int, list[int]] = {}
        self._hashed = 0

    def add(self, queue: int, offset: int, position: int, size: int, tag_code: int) -> None:
        """Index the next message of a queue; offsets of a queue are consecutive."""
        run = self.runs.get(queue)
        if run is None:
            run = self.runs[queue] = _Run(offset)
        run.positions.append(position)
        run.sizes.append(size)
        run.tags.append(tag_code)
        self.count += 1
        self.last = position

    def add_key(self, hashed: int, position: int, size: int) -> None:
        """Index a key or id of the message at a position."""
        self.last = position
        self._key_hashes.append(hashed)
        self._key_positions.append(position)
        self._key_sizes.append(size)

    def entries(self, queue: int, offset: int, limit: int) -> Iterator[Entry]:
        """Up to ``limit`` entries from ``offset`` on."""
        run = self.runs.get(queue)
        if run is None or offset < run.first:
            return
        at = offset - run.first
        for index in range(at, min(at + limit, len(run.positions))):
            yield Entry(run.first + index, run.positions[index], run.sizes[index], run.tags[index])

    def first(self, queue: int) -> int | None:
        """The oldest offset of a queue in this stretch."""
        run = self.runs.get(queue)
        return None if run is None else run.first

    def find_key(self, hashed: int) -> Iterator[tuple[int, int]]:
        """``(position, size)`` of messages with this hash, newest first."""
        for index in range(self._hashed, len(self._key_hashes)):
            self._by_hash.setdefault(self._key_hashes[index], []).append(index)
        self._hashed = len(self._key_hashes)
        for index in reversed(self._by_hash.get(hashed, ())):
            yield self._key_positions[index], self._key_sizes[index]

    def pack(self, end: int) -> Generator[None, None, Packed]:
        """The part file of this stretch, which ends at log position ``end``; nothing may be added any more.

        Yields between slices of a fraction of a millisecond, so that the loop's thread can make it between its calls: beside it,
        in a thread, it would hold the interpreter whenever a call wants it, and every call ten times.
        """
        numbers = sorted(self.runs)
        firsts, starts = array("Q"), array("I", [0])
        positions, sizes, tags = array("Q"), array("I"), array("i")
        for at, number in enumerate(numbers):
            run = self.runs[number]
            firsts.append(run.first)
            positions.extend(run.positions)
            sizes.extend(run.sizes)
            tags.extend(run.tags)
            starts.append(len(positions))
            if at % SLICE == SLICE - 1:
                yield
        buckets: list[list[tuple[int, int, int]]] = [[] for _ in range(1024)]
        for at in range(0, len(self._key_hashes), SLICE):
            yield
            part = slice(at, at + SLICE)
            keys = zip(self._key_hashes[part], self._key_positions[part], self._key_sizes[part], strict=True)
            for key in keys:
                buckets[key[0] >> 22].append(key)
        key_hashes, key_positions, key_sizes = array("I"), array("Q"), array("I")
        done = 0
        for bucket in buckets:
            bucket.sort()
            for hashed, position, size in bucket:
                key_hashes.append(hashed)
                key_positions.append(position)
                key_sizes.append(size)
            done += len(bucket)
            bucket.clear()  # freeing all of them at the end would be a long slice
            if done >= SLICE:
                done = 0
                yield
        content = bytearray()
        for column in (
            array("I", numbers),
            firsts,
            starts,
            positions,
            sizes,
            tags,
            key_hashes,
            key_positions,
            key_sizes,
        ):
            yield
            content += _padded(column.tobytes())
        return Packed(len(numbers), len(positions), len(key_hashes), content)

    def write(self, directory: Path, end: int) -> Path:
        """Write this stretch at once. For threads."""
        packing = self.pack(end)
        while True:
            try:
                next(packing)
            except StopIteration as packed:
                return self.write_packed(directory, end, packed.value)

    def write_packed(self, directory: Path, end: int, packed: Packed) -> Path:
        """Write what `pack` made. For threads: what takes long here leaves the interpreter to others."""
        header = _HEADER.pack(MAGIC, self.start, end, *packed[:3], zlib.crc32(packed.content), self.newest_ms)
        path = directory / f"{self.start:020d}-{end:020d}.idx"
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            file.write(header)
            file.write(packed.content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(directory)
        return path


class Part:
    """One index file, read through a memory map."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.stat().st_size:
            raise StorageError(f"{path} is empty")
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(self._map) < _HEADER.size:
            raise StorageError(f"{path} is cut short")
        magic, self.start, self.end, queues, entries, keys, crc, self.newest_ms = _HEADER.unpack_from(self._map)
        if magic != MAGIC:
            raise StorageError(f"{path} is not an index of format 1")
        view = memoryview(self._map)
        self._crc = crc
        self._views = [view]
        at = _HEADER.size
        columns: list[memoryview] = []
        layout = ("I", queues), ("Q", queues), ("I", queues + 1), ("Q", entries), ("I", entries), ("i", entries)
        for code, count in (*layout, ("I", keys), ("Q", keys), ("I", keys)):
            size = count * (8 if code == "Q" else 4)
            if at + size > len(self._map):
                view.release()
                raise StorageError(f"{path} is cut short")
            columns.append(view[at : at + size].cast(code))  # type: ignore[call-overload]
            at += size + (-size % 8)
        self._views += columns
        if at != len(self._map):
            self.close()
            raise StorageError(f"{path} is cut short")
        self._numbers, self._firsts, self._starts, self._positions, self._sizes, self._tags = columns[:6]
        self._key_hashes, self._key_positions, self._key_sizes = columns[6:]
        self.count = entries

    def close(self) -> None:
        """Unmap the file."""
        for view in reversed(self._views):
            view.release()
        self._map.close()

    def verify(self) -> None:
        """Check the checksum; reads the whole file.

        Raises:
            StorageError: the file is damaged.
        """
        if zlib.crc32(self._views[0][_HEADER.size :]) != self._crc:
            raise StorageError(f"{self.path} is damaged")

    def span(self, queue: int) -> tuple[int, int, int] | None:
        """``(first offset, count, first entry)`` of a queue in this part."""
        at = bisect.bisect_left(self._numbers, queue)
        if at == len(self._numbers) or self._numbers[at] != queue:
            return None
        return self._firsts[at], self._starts[at + 1] - self._starts[at], self._starts[at]

    def queues(self) -> Iterator[tuple[int, int, int]]:
        """``(queue number, first offset, count)`` of every queue in this part."""
        for at, number in enumerate(self._numbers):
            yield number, self._firsts[at], self._starts[at + 1] - self._starts[at]

    def slice(self, at: int, first: int, count: int) -> Iterator[Entry]:
        for index in range(at, at + count):
            yield Entry(first + index - at, self._positions[index], self._sizes[index], self._tags[index])

    def find_key(self, hashed: int) -> Iterator[tuple[int, int]]:
        """``(position, size)`` of messages with this hash, newest first."""
        at = bisect.bisect_right(self._key_hashes, hashed) - 1
        while at >= 0 and self._key_hashes[at] == hashed:
            yield self._key_positions[at], self._key_sizes[at]
            at -= 1


class Index:
    """The whole index: parts, a frozen stretch being written, and the live stretch."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.parts: list[Part] = []
        self._frozen: Live | None = None
        self.live = Live(0)
        self._hints: dict[int, int] = {}

    def open(self, upto: int, begin: int = 0) -> None:
        """Map the parts up to log position ``upto`` and begin the live stretch there; delete those beyond it.

        Raises:
            StorageError: a part is damaged, or the parts do not cover the log from ``begin`` (its first position) to ``upto``.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        for path in sorted(self._directory.iterdir()):
            start, _, end = path.stem.partition("-")
            if path.suffix != ".idx" or int(end) > upto:
                path.unlink()
                continue
            part = Part(path)
            part.verify()
            if self.parts and self.parts[-1].end != int(start):
                raise StorageError(f"the index lacks the part before {path}")
            self.parts.append(part)
        covered = bool(self.parts) and self.parts[0].start <= begin and self.parts[-1].end == upto
        if upto > begin and not covered:
            raise StorageError(f"{self._directory} does not cover the log up to {upto}")
        self.live = Live(upto)

    def wipe(self) -> None:
        """Delete every part, to make them anew from the log."""
        for part in self.parts:
            part.close()
        self.parts.clear()
        for path in self._directory.iterdir():
            path.unlink()

    def entries(self, queue: int, offset: int, limit: int) -> list[Entry]:
        """Up to ``limit`` consecutive entries of a queue from ``offset`` on (fewer at a part's end)."""
        found = list(self.live.entries(queue, offset, limit))
        if found:
            return found
        if self._frozen is not None:
            found = list(self._frozen.entries(queue, offset, limit))
            if found:
                return found
        parts = self.parts
        hint = self._hints.get(queue, 0)
        for index in (*range(min(hint, len(parts)), len(parts)), *range(min(hint, len(parts)))):
            span = parts[index].span(queue)
            if span is not None and span[0] <= offset < span[0] + span[1]:
                self._hints[queue] = index
                skip = offset - span[0]
                return list(parts[index].slice(span[2] + skip, offset, min(limit, span[1] - skip)))
        return []

    def find_key(self, key: str) -> Iterator[tuple[int, int]]:
        """``(position, size)`` of messages that may carry this key or id, newest first."""
        hashed = key_hash(key)
        yield from self.live.find_key(hashed)
        if self._frozen is not None:
            yield from self._frozen.find_key(hashed)
        for part in reversed(self.parts):
            yield from part.find_key(hashed)

    def freeze(self, end: int) -> Live | None:
        """Begin a new live stretch at ``end`` and hand out the old one to be written; None when one is being written."""
        if self._frozen is not None:
            return None
        self._frozen, self.live = self.live, Live(end)
        return self._frozen

    def adopt(self, part: Part) -> None:
        """The frozen stretch stands in a file now."""
        self.parts.append(part)
        self._frozen = None

    def thaw(self) -> None:
        """Writing the frozen stretch failed: take it back in front of the live one."""
        frozen, newer = self._frozen, self.live
        if frozen is None:
            return
        for number, run in newer.runs.items():
            for entry in newer.entries(number, run.first, len(run.positions)):
                frozen.add(number, entry.offset, entry.position, entry.size, entry.tag_code)
        for hashed, position, size in zip(newer._key_hashes, newer._key_positions, newer._key_sizes, strict=True):
            frozen.add_key(hashed, position, size)
        frozen.last = max(frozen.last, newer.last)
        frozen.newest_ms = max(frozen.newest_ms, newer.newest_ms)
        self._frozen, self.live = None, frozen

    def drop_before(self, position: int) -> dict[int, int]:
        """Delete the parts that end at or before a position; returns the new first offset of each queue they held."""
        firsts: dict[int, int] = {}
        dropped = 0
        while self.parts and self.parts[0].end <= position:
            part = self.parts.pop(0)
            for number, first, count in part.queues():
                firsts[number] = first + count
            part.close()
            with contextlib.suppress(FileNotFoundError):
                part.path.unlink()
            dropped += 1
        if dropped:
            self._hints.clear()
        return firsts

    def close(self) -> None:
        """Unmap everything."""
        for part in self.parts:
            part.close()
        self.parts.clear()


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def keys_of(identifier: str | None, keys: Iterable[str]) -> list[int]:
    """The hashes a message with this id and these keys is indexed under."""
    hashes = [key_hash(key) for key in keys]
    if identifier:
        hashes.append(key_hash(identifier))
    return hashes
