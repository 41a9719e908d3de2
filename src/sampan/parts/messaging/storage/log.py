"""The commit log: one append-only sequence of checksummed frames in segment files, made durable by group commit.

On disk, under ``log/``: one file a segment, named by the position of its first byte in 20 digits.

=========  ======  =====================================================================
bytes      type    segment header (32 bytes)
=========  ======  =====================================================================
0..7       bytes   magic ``SMPNLOG`` and the format version, 2 (1 is read too: it knows no flags; 3: has ``GAP`` frames)
8..15      u64     the segment's base position (equals the file name)
16..31             zero
=========  ======  =====================================================================

Frames follow back to back, little-endian:

=========  ======  =====================================================================
0..3       u32     length of the payload
4..7       u32     CRC-32 of bytes 8..11, for flagged frames the position (u64), and the payload
8          u8      kind (`Kind`)
9          u8      flags; 1: the first of a batch, everything before it was on disk when it was written
10..11             zero
12..               payload
=========  ======  =====================================================================

A position is ``base + offset in the file``; a frame is addressed by the position of its payload, which for messages is
the "physical offset" clients see. Frames never span segments, and a segment ends where the next begins. Behind the last
frame of the newest segment there may be zeros: space prepared in advance, because overwriting what is allocated needs no
journal of the file system and is durable in half the time.

Writing. `CommitLog.append` only buffers. At the end of the loop iteration everything buffered goes to one thread that
writes and fsyncs it; what is appended meanwhile becomes the next batch. So one fsync acknowledges as many producers as
came during the last one. A failed write (a full disk) truncates the file back to what was durable and fails the batch and
everything behind it; the next append starts over.

Recovery. `CommitLog.replay` reads frames from a position on; the first incomplete or damaged frame of the last segment is
the torn tail of an interrupted write, which nobody was told about, and is cut off. Damage anywhere else is an error, and so is
damage before a flagged frame: what comes before that was once whole, so cutting it off would lose acknowledged messages.
`salvage` puts ``GAP`` frames in the place of what cannot be read.
"""

from __future__ import annotations

import asyncio
import bisect
import errno
import fcntl
import itertools
import logging
import mmap
import os
import queue
import re
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from enum import IntEnum
from functools import partial
from pathlib import Path

from sampan.parts.messaging.errors import StorageError

log = logging.getLogger(__name__)

MAGIC = b"SMPNLOG\x02"
MAGIC_UNFLAGGED = b"SMPNLOG\x01"
MAGIC_GAPS = b"SMPNLOG\x03"
READABLE = (MAGIC, MAGIC_UNFLAGGED, MAGIC_GAPS)
SEGMENT_HEADER = struct.Struct("<8sQ16x")
FRAME = struct.Struct("<IIBBxx")
FRAME_BYTES = FRAME.size
MAX_PAYLOAD = 64 << 20
"""A longer frame is damage: the largest message is far below."""
OPEN_SEGMENTS = 64
"""Segment files kept open for reading."""
READ_CHUNK = 1 << 20
REPAIR = "restore a snapshot, or keep what is readable with `sampan mq repair`"
"""What an operator can do about damage."""
PREPARE = 256 << 10
"""Bytes of zeros written ahead at a time at most, in pauses."""
PREPARE_LEAST = 64 << 10
"""As many behind small batches: the next batch waits while they are written, and then many small waits are better than a long one."""
PREPARE_BATCHES = 8
"""Prepare for at least so many batches like the last."""
PREPARE_BATCH = 64 << 10
"""No preparing behind larger batches: their fsync is shared by many, and zeros would halve what the disk can take."""


class Kind(IntEnum):
    """What a frame holds."""

    MESSAGE = 1
    """A visible message in the record layout of `record`; closes the held message it came from, if any."""
    TIMER = 2
    """A message held until its delivery time."""
    HALF = 3
    """A transactional message held until its transaction ends."""
    CLOSE = 4
    """Held messages that will never be delivered (recalled, rolled back)."""
    LEASE = 5
    """Messages handed to a consumer, and how far the group has read."""
    ACK = 6
    """Messages a group is done with."""
    CHANGE = 7
    """New visibility of a leased message."""
    OFFSET = 8
    """A group's position set by hand or by an old-style client."""
    DEFINE = 9
    """A topic, group or access rule was created, changed or deleted (JSON)."""
    CHECKED = 10
    """A half message was asked about once more."""
    GAP = 11
    """Nothing: a repair put it where the log was damaged."""


FIRST = 1
"""Flag of a batch's first frame."""

_SEEDS = {int(kind): zlib.crc32(bytes([kind, 0, 0, 0])) for kind in Kind}
_FIRST_SEEDS = {int(kind): zlib.crc32(bytes([kind, FIRST, 0, 0])) for kind in Kind}
_FIRST_FRAME = re.compile(rb"[%c-%c]\x01\x00\x00" % (min(Kind), max(Kind)))
_ZEROS = bytes(PREPARE)

_NOWHERE = (1, 0, -1)

Committed = Callable[[int, OSError | None], None]
"""``(position, error)``: everything below the position is durable; with an error, everything from it on is lost."""


class CommitLog:
    """Append, group-commit and read frames. All methods belong to the event loop's thread unless they say otherwise."""

    def __init__(
        self, directory: Path, *, segment_bytes: int, on_commit: Committed, sync: bool = True, reserve_bytes: int = 0
    ) -> None:
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._on_commit = on_commit
        self._sync = sync
        self._reserve = reserve_bytes
        self.bases: list[int] = []
        self._sizes: dict[int, int] = {}
        self.end = 0
        """Where the next frame will begin."""
        self.durable = 0
        """Everything below is on disk."""
        self._durable_bases = 0
        self._current = 0
        self._pending: list[tuple[int, bytes]] = []
        self._pending_base = 0
        self._kicked = False
        self._busy = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle: asyncio.Future[None] | None = None
        self._syncing: asyncio.Future[None] | None = None
        self._jobs: queue.SimpleQueue[tuple[list[tuple[int, bytes]], int, int, bool] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._readers: OrderedDict[int, int] = OrderedDict()
        self._last_read = _NOWHERE
        """``(base, end, descriptor)`` of the segment read last: the next read is most likely there again."""
        self._writer: tuple[int, int] | None = None
        """``(base, descriptor)`` of the segment written last; the writing thread's."""
        self._prepared = 0
        """Where the zeros behind the newest segment's frames end, in the file; the writing thread's."""
        self._first = True
        """Whether the next frame will be the first of its batch."""
        self._lock: int | None = None
        self._nowait = getattr(os, "RWF_NOWAIT", 0)
        self.commits = 0
        self.dirty = False
        """Written but not yet fsynced (asynchronous flush only)."""

    # -- life

    def open(self) -> None:
        """Find the segments; creates the first one in an empty directory.

        Raises:
            StorageError: a file is not a segment of this format version, or another process has the log open.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        self.lock()
        try:
            self._find_segments()
        except BaseException:
            self.close()
            raise

    def lock(self) -> None:
        """Keep every other broker from this folder until `close`.

        Raises:
            StorageError: one has it.
        """
        self._lock = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._lock = None
            raise StorageError(f"another broker has {self._directory} open; stop it or use another folder") from None

    def _find_segments(self) -> None:
        self.bases = sorted(
            int(path.name) for path in self._directory.iterdir() if re.fullmatch(r"[0-9]{20}", path.name)
        )
        if not self.bases:
            self.bases = [0]
            self._create(0)
        for base in list(self.bases):
            self._sizes[base] = self._path(base).stat().st_size
            if base == self.bases[-1] and self._unwritten(base):
                self._create(base)
            with self._path(base).open("rb") as file:
                header = file.read(SEGMENT_HEADER.size)
            if (
                len(header) < SEGMENT_HEADER.size
                or header[:8] not in READABLE
                or header[8:16] != base.to_bytes(8, "little")
            ):
                raise StorageError(f"{self._path(base)} is not a commit log segment of format 1 to 3; {REPAIR}")
            if base == self.bases[-1] and header[:8] == MAGIC_UNFLAGGED:
                self._upgrade(base)
        for base, following in itertools.pairwise(self.bases):
            if self._sizes[base] < following - base:
                raise StorageError(f"{self._path(base)} is cut short; {REPAIR}")
            self._sizes[base] = following - base
        self._current = self.bases[-1]
        self.end = self.durable = self._current + self._sizes[self._current]
        self._durable_bases = len(self.bases)

    def replay(self, start: int) -> Iterator[tuple[int, int, bytes]]:
        """``(position, kind, payload)`` of every frame from ``start`` on; cuts off a torn tail. Before `start` only.

        Raises:
            StorageError: a frame is damaged where no crash can have torn it.
        """
        for base in self.bases[max(0, bisect.bisect_right(self.bases, start) - 1) :]:
            size = self._sizes[base]
            offset = yield from _walk(self._path(base), base, max(SEGMENT_HEADER.size, start - base), size, verify=True)
            if offset < size:
                if base != self.bases[-1]:
                    raise StorageError(f"{self._path(base)} is damaged at byte {offset}; {REPAIR}")
                torn = self._torn(base, offset, size)
                if torn:
                    log.warning("cut %d bytes of an interrupted write off %s", torn, self._path(base).name)
                os.truncate(self._path(base), offset)
                self._sizes[base] = offset
                self.end = self.durable = base + offset
        self.sync_segments()  # a killed process may have written what it did not flush; frames to come say it is on disk

    def _torn(self, base: int, offset: int, size: int) -> int:
        """How many bytes from ``offset`` on are an interrupted write; zeros at the end are not.

        Raises:
            StorageError: it was whole once, since a later batch follows.
        """
        with self._path(base).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for found in _FIRST_FRAME.finditer(data, offset + 8, size):
                begin = found.start() - 8
                length, crc, kind, _ = FRAME.unpack_from(data, begin)
                stop = begin + FRAME_BYTES + length
                if length <= MAX_PAYLOAD and stop <= size and begin > offset:
                    position = base + begin + FRAME_BYTES
                    if zlib.crc32(data[begin + FRAME_BYTES : stop], _seed(kind, FIRST, position)) == crc:
                        raise StorageError(
                            f"{self._path(base)} is damaged at byte {offset}, and what was stored later follows at byte "
                            f"{begin}; {REPAIR}"
                        )
            end = size
            while end > offset:
                begin = max(offset, end - PREPARE)
                rest = data[begin:end].rstrip(b"\0")
                if rest:
                    return begin + len(rest) - offset
                end = begin
        return 0

    def _unwritten(self, base: int) -> bool:
        """Whether a crash came between making a segment's file and writing its header."""
        if self._sizes[base] < SEGMENT_HEADER.size:
            return True
        with self._path(base).open("rb") as file:
            if any(file.read(SEGMENT_HEADER.size)):
                return False
            return not any(chunk.strip(b"\0") for chunk in iter(lambda: file.read(READ_CHUNK), b""))

    def scan(self, start: int, stop: int, *, verify: bool = False) -> Iterator[tuple[int, int, bytes]]:
        """``(position, kind, payload)`` of the durable frames between two positions, with ``verify`` up to the first that is
        damaged in a segment. For threads: reads the disk."""
        sizes = dict(self._sizes)
        for base in list(self.bases)[max(0, bisect.bisect_right(self.bases, start) - 1) :]:
            if base >= stop or base not in sizes:
                return
            size = min(sizes[base], stop - base)
            yield from _walk(self._path(base), base, max(SEGMENT_HEADER.size, start - base), size, verify=verify)

    def start(self) -> None:
        """Begin to accept appends."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._write_loop, name="commit-log", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Write what is pending, then close everything."""
        while self._thread is not None and (self._pending or self._busy):
            assert self._loop is not None
            self._idle = self._loop.create_future()
            self._kick()
            await self._idle
        if self._thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None
        if self._syncing is not None:
            await asyncio.wait([self._syncing])
        if self.dirty:
            await asyncio.to_thread(self.sync_segments)
        self.close()

    def close(self) -> None:
        """Close the files."""
        self._last_read = _NOWHERE
        for fd in self._readers.values():
            os.close(fd)
        self._readers.clear()
        if self._writer is not None:
            self._finish(*self._writer, self.durable)
            self._writer = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # -- writing

    def append(self, kind: int, payload: bytes, *, urgent: bool = True) -> int:
        """Buffer one frame and return the position of its payload; `Committed` says when it is durable.

        A frame that is not urgent waits for the next urgent one (or `flush`).
        """
        size = FRAME_BYTES + len(payload)
        if self.end - self._current + size > self._segment_bytes and self.end - self._current > SEGMENT_HEADER.size:
            self._roll()
        position = self.end + FRAME_BYTES
        flags, seed = 0, _SEEDS[kind]
        if self._first and (self._sync or (self.durable == self.end and not self.dirty and not self._busy)):
            self._first = False
            flags, seed = FIRST, _seed(kind, FIRST, position)
        self._pending.append((self._current, FRAME.pack(len(payload), zlib.crc32(payload, seed), kind, flags)))
        self._pending.append((self._current, payload))
        self.end += size
        if urgent and not self._kicked and not self._busy:
            self._kicked = True
            assert self._loop is not None
            self._loop.call_soon(self._kick)
        return position

    def next_position(self, size: int) -> int:
        """The position the payload of a frame of ``size`` bytes would get if appended now."""
        if (
            self.end - self._current + FRAME_BYTES + size > self._segment_bytes
            and self.end - self._current > SEGMENT_HEADER.size
        ):
            self._roll()
        return self.end + FRAME_BYTES

    def flush(self) -> None:
        """Write what is buffered, urgent or not."""
        if self._pending and not self._kicked and not self._busy:
            self._kick()

    def sync(self) -> None:
        """fsync what was written without (asynchronous flush). Appends go on meanwhile."""
        if self.dirty and self._syncing is None:
            assert self._loop is not None
            self._syncing = self._loop.run_in_executor(None, self.sync_segments)
            self._syncing.add_done_callback(partial(self._synced, self.durable))

    def _synced(self, upto: int, syncing: asyncio.Future[None]) -> None:
        self._syncing = None
        error = syncing.exception()
        if error is not None:
            log.error("the commit log could not be flushed, and is flushed again: %s", error)
        elif self.durable == upto and not self._busy:
            self.dirty = False

    def sync_segments(self) -> None:
        """fsync the newest segments, for a checkpoint under asynchronous flush: it must not be ahead of the log. For threads."""
        for base in list(self.bases)[-2:]:
            try:
                fd = os.open(self._path(base), os.O_RDONLY)
            except FileNotFoundError:
                continue  # it was deleted meanwhile, or is not written yet
            try:
                os.fdatasync(fd)
            finally:
                os.close(fd)

    def _roll(self) -> None:
        self._current = self.end
        self.bases.append(self.end)
        header = SEGMENT_HEADER.pack(MAGIC, self.end)
        self._pending.append((self.end, header))
        self.end += len(header)

    def _kick(self) -> None:
        self._kicked = False
        if self._busy or not self._pending:
            return
        batch, self._pending = self._pending, []
        self._busy = self._first = True
        self._jobs.put((batch, self.durable, self.end, self._sync))

    def _done(self, end: int, error: OSError | None) -> None:
        self._busy = False
        self.commits += 1
        if error is None:
            self.durable = end
            first, self._durable_bases = self._durable_bases - 1, bisect.bisect_left(self.bases, end)
            for index in range(first, self._durable_bases):
                stop = self.bases[index + 1] if index + 1 < self._durable_bases else end
                self._sizes[self.bases[index]] = stop - self.bases[index]
        else:
            self._last_read = _NOWHERE
            for base in self.bases[self._durable_bases :]:
                reader = self._readers.pop(base, None)
                if reader is not None:
                    os.close(reader)
            del self.bases[self._durable_bases :]
            self._current = self.bases[-1]
            self.end = self.durable
            self._pending.clear()
            self._first = True
        self._on_commit(self.durable, error)
        if self._pending and not self._kicked:
            self._kick()
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    # -- the writing thread

    def _write_loop(self) -> None:
        loop = self._loop
        assert loop is not None
        while (job := self._jobs.get()) is not None:
            batch, begin, end, sync = job
            error: OSError | None = None
            try:
                self._write(batch, begin, sync)
            except OSError as failure:
                error = failure
                self._undo(batch)
            except Exception as failure:  # whatever it is, those who wait must be told
                log.exception("the commit log's writer failed")
                error = OSError(errno.EIO, str(failure))
                self._undo(batch)
            loop.call_soon_threadsafe(self._done, end, error)
            if error is None and self._sync and not self._pending and end - begin <= PREPARE_BATCH:
                self._prepare(end, end - begin)

    def _write(self, batch: list[tuple[int, bytes]], begin: int, sync: bool) -> None:
        """Write a batch whose first byte has the position ``begin``."""
        at = 0
        # from here on: a segment that this batch ends is to be on disk before there is a next one
        self.dirty = self.dirty or not sync
        while at < len(batch):
            base = batch[at][0]
            stop = at
            while stop < len(batch) and batch[stop][0] == base:
                stop += 1
            fd = self._writer_for(base, begin, sync)
            data = b"".join([piece for _, piece in batch[at:stop]])
            if self._reserve:
                room = os.fstatvfs(fd)
                if room.f_bavail * room.f_frsize - len(data) < self._reserve:
                    raise OSError(errno.ENOSPC, "the disk is kept from filling up entirely")
            view = memoryview(data)
            while view:
                count = os.pwrite(fd, view, begin - base)
                view, begin = view[count:], begin + count
            self._prepared = max(self._prepared, begin - base)
            at = stop
        self.dirty = not sync
        if sync and self._writer is not None:
            os.fdatasync(self._writer[1])

    def _writer_for(self, base: int, end: int, sync: bool) -> int:
        """The descriptor of a segment; the one before ends at the position ``end``."""
        if self._writer is not None and self._writer[0] == base:
            return self._writer[1]
        if self._writer is not None:
            if sync or self.dirty:
                os.fdatasync(self._writer[1])
            self._finish(*self._writer, end)
            self._writer = None
        fd = os.open(self._path(base), os.O_WRONLY | os.O_CREAT, 0o600)
        self._writer = (base, fd)
        self._prepared = os.fstat(fd).st_size
        self._sync_directory()
        return fd

    def _finish(self, base: int, fd: int, end: int) -> None:
        """Give back what was prepared behind a segment's end, and close it."""
        try:
            if self._prepared > end - base:
                os.ftruncate(fd, end - base)
        finally:
            os.close(fd)

    def _prepare(self, end: int, batch: int) -> None:
        """Have zeros on disk behind the position ``end``, where a batch of so many bytes ends, unless something is to be
        written: behind a slow write there is, and what waited for that is not to wait for this too."""
        if self._writer is None or not self._jobs.empty():
            return
        base, fd = self._writer
        wanted = min(PREPARE, max(PREPARE_LEAST, PREPARE_BATCHES * batch))
        room = self._segment_bytes - self._prepared
        if self._prepared - (end - base) >= wanted // 2 or room <= 0:
            return
        try:
            os.pwrite(fd, memoryview(_ZEROS)[: min(room, wanted)], self._prepared)
            self._prepared = os.fstat(fd).st_size
            os.fdatasync(fd)
        except OSError as error:  # without, the next batch is appended, and tells its senders if it cannot be
            log.debug("no space could be prepared in segment %d: %s", base, error)

    def _undo(self, batch: list[tuple[int, bytes]]) -> None:
        """Take a failed batch off the disk again, so that the next one continues where the durable part ends."""
        durable = self.durable
        for base in sorted({base for base, _ in batch}, reverse=True):
            try:
                if self._writer is not None and self._writer[0] == base:
                    os.close(self._writer[1])
                    self._writer = None
                if base >= durable:
                    self._path(base).unlink(missing_ok=True)
                else:
                    os.truncate(self._path(base), durable - base)
            except OSError:
                log.exception("could not take a failed write back from segment %d", base)

    # -- reading

    def read(self, position: int, size: int) -> bytes | None:
        """The payload of ``size`` bytes at a position, or None when it is not in the page cache (see `read_cold`).

        Raises:
            StorageError: the frame is damaged.
            LookupError: the position was deleted.
        """
        base, stop, fd = self._last_read
        if not base <= position < stop:
            base = self._base(position)
            fd = self._reader(base)
            self._last_read = base, base + self._sizes[base], fd
        buffer = bytearray(size + FRAME_BYTES)
        try:
            count = os.preadv(fd, [buffer], position - FRAME_BYTES - base, self._nowait)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            self._nowait = 0  # this file system cannot say what is cached
            count = os.preadv(fd, [buffer], position - FRAME_BYTES - base)
        if count != len(buffer):
            if self._nowait:
                return None
            raise StorageError(f"the commit log ends inside the message at {position}")
        return _checked(buffer, position)

    def read_cold(self, position: int, size: int) -> bytes:
        """Like `read`, waiting for the disk and reading ahead. For threads.

        Raises:
            StorageError: the frame is damaged or cut short.
            LookupError: the position was deleted.
        """
        base = self._base(position)
        with self._path(base).open("rb") as file:
            file.seek(position - FRAME_BYTES - base)
            data = file.read(max(size + FRAME_BYTES, READ_CHUNK))
        if len(data) < size + FRAME_BYTES:
            raise StorageError(f"the commit log ends inside the message at {position}")
        return _checked(data[: size + FRAME_BYTES], position)

    def size_at(self, position: int) -> int:
        """The payload size of the frame at a position, from its header. May wait for the disk.

        Raises:
            LookupError: no frame begins there.
        """
        base = self._base(position)
        if position - FRAME_BYTES < base + SEGMENT_HEADER.size or position >= self.durable:
            raise LookupError(f"no message at {position}")
        header = os.pread(self._reader(base), FRAME_BYTES, position - FRAME_BYTES - base)
        length, _, kind, _ = FRAME.unpack(header)
        if kind not in _SEEDS or length > MAX_PAYLOAD or position + length > self.durable:
            raise LookupError(f"no message at {position}")
        return int(length)

    @property
    def begin(self) -> int:
        """The first position that still exists."""
        return self.bases[0]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(self._sizes.values())

    def segment_end(self, base: int) -> int:
        """The position behind a segment's last frame."""
        return base + self._sizes[base]

    def modified(self, base: int) -> float:
        """When a segment was last written, in seconds since the epoch by the machine's clock."""
        return self._path(base).stat().st_mtime

    def drop(self, base: int) -> None:
        """Delete a segment other than the current one."""
        if base == self._current:
            raise ValueError("the current segment is in use")
        self._last_read = _NOWHERE
        self.bases.remove(base)
        self._sizes.pop(base, None)
        self._durable_bases -= 1
        reader = self._readers.pop(base, None)
        if reader is not None:
            os.close(reader)
        self._path(base).unlink(missing_ok=True)

    # -- files

    def _path(self, base: int) -> Path:
        return self._directory / f"{base:020d}"

    def _create(self, base: int) -> None:
        with self._path(base).open("wb") as file:
            file.write(SEGMENT_HEADER.pack(MAGIC, base))
            file.flush()
            os.fsync(file.fileno())
        self._sizes[base] = SEGMENT_HEADER.size
        self._sync_directory()

    def _upgrade(self, base: int) -> None:
        """Say that a segment of the first format may go on with flagged frames: its readers would take them for a torn tail."""
        fd = os.open(self._path(base), os.O_WRONLY)
        try:
            os.pwrite(fd, MAGIC, 0)
            os.fdatasync(fd)
        finally:
            os.close(fd)

    def _sync_directory(self) -> None:
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _base(self, position: int) -> int:
        index = bisect.bisect_right(self.bases, position) - 1
        if index < 0 or position >= self.bases[index] + self._sizes.get(self.bases[index], 0):
            raise LookupError(f"the message at {position} is no longer stored")
        return self.bases[index]

    def _reader(self, base: int) -> int:
        fd = self._readers.get(base)
        if fd is None:
            fd = self._readers[base] = os.open(self._path(base), os.O_RDONLY)
            if len(self._readers) > OPEN_SEGMENTS:
                self._last_read = _NOWHERE
                os.close(self._readers.popitem(last=False)[1])
        else:
            self._readers.move_to_end(base)
        return fd


def _walk(
    path: Path, base: int, offset: int, size: int, *, verify: bool
) -> Generator[tuple[int, int, bytes], None, int]:
    """The whole frames of a segment from an offset on; returns where they end."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        while size - offset >= FRAME_BYTES:
            length, crc, kind, flags = FRAME.unpack_from(data, offset)
            begin, stop = offset + FRAME_BYTES, offset + FRAME_BYTES + length
            if length > MAX_PAYLOAD or kind not in _SEEDS or flags > FIRST or stop > size:
                break
            payload = data[begin:stop]
            if verify and zlib.crc32(payload, _seed(kind, flags, base + begin)) != crc:
                break
            yield base + begin, kind, payload
            offset = stop
    return offset


def _checked(frame: bytes | bytearray, position: int) -> bytes:
    _, crc, kind, flags = FRAME.unpack_from(frame)
    payload = bytes(memoryview(frame)[FRAME_BYTES:])
    if kind not in _SEEDS or flags > FIRST or zlib.crc32(payload, _seed(kind, flags, position)) != crc:
        raise StorageError(f"the message at {position} is damaged on disk")
    return payload


def frame_checksum(kind: int, flags: int, position: int, payload: bytes | memoryview) -> int:
    """The checksum of the frame whose payload begins at a position."""
    return zlib.crc32(payload, _seed(kind, flags, position))


def _seed(kind: int, flags: int, position: int) -> int:
    """The checksum of what a frame's payload is checked together with."""
    return zlib.crc32(position.to_bytes(8, "little"), _FIRST_SEEDS[kind]) if flags else _SEEDS[kind]
