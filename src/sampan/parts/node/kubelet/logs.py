"""Reading container logs: the CRI files back into what ``kubectl logs`` asked for, following them across rotations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sampan.kernel.clock import Clock
from sampan.kube.types.duration import parse_time

CHUNK = 64 * 1024
POLL = 0.1
"""Seconds between looks at a followed log's end."""


@dataclass(frozen=True)
class LogOptions:
    """What of a log is wanted."""

    follow: bool = False
    timestamps: bool = False
    tail: int | None = None
    limit: int | None = None
    since: datetime | None = None
    stream: str = "All"


def files(log: Path) -> list[Path]:
    """A log's files, oldest first."""
    numbered = sorted(
        (path for path in log.parent.glob(f"{log.name}.*") if path.suffix[1:].isdecimal()),
        key=lambda path: -int(path.suffix[1:]),
    )
    return [*numbered, *([log] if log.exists() else [])]


class _Filter:
    """Turns CRI lines into the wanted text."""

    def __init__(self, options: LogOptions) -> None:
        self._options = options
        self._left = options.limit
        self._continued = {b"stdout": False, b"stderr": False}

    @property
    def full(self) -> bool:
        return self._left is not None and self._left <= 0

    def text(self, lines: list[bytes]) -> bytes:
        out = []
        for line in lines:
            pieces = line.split(b" ", 3)
            if len(pieces) < 4:
                continue
            stamp, stream, tag, content = pieces
            if self._options.stream != "All" and stream.decode() != self._options.stream.lower():
                continue
            if self._options.since is not None and parse_time(stamp.decode()) < self._options.since:
                continue
            if self._options.timestamps and not self._continued.get(stream, False):
                content = stamp + b" " + content
            self._continued[stream] = tag == b"P"
            out.append(content if tag == b"P" else content + b"\n")
        text = b"".join(out)
        if self._left is not None:
            text = text[: max(0, self._left)]
            self._left -= len(text)
        return text


def tail_start(paths: list[Path], count: int) -> tuple[int, int]:
    """Index of the file and offset where the last ``count`` lines begin. Blocks."""
    wanted = count
    for index in range(len(paths) - 1, -1, -1):
        with paths[index].open("rb") as file:
            at = end = file.seek(0, 2)
            if wanted == 0:
                return index, end
            seen = 0
            while at > 0:
                size = min(CHUNK, at)
                at -= size
                file.seek(at)
                block = file.read(size)
                position = len(block)
                if at + size == end and block.endswith(b"\n"):
                    position -= 1
                while (found := block.rfind(b"\n", 0, position)) >= 0:
                    seen += 1
                    if seen == wanted:
                        return index, at + found + 1
                    position = found
            wanted -= seen + (1 if end else 0)
            if wanted <= 0:
                return index, 0
    return 0, 0


async def read(log: Path, options: LogOptions, clock: Clock, running: Callable[[], bool]) -> AsyncIterator[bytes]:
    """The log's text in chunks; with ``follow`` until the container has ended and everything was read."""
    screen = _Filter(options)
    paths = await asyncio.to_thread(files, log)
    index, offset = 0, 0
    if options.tail is not None and paths:
        index, offset = await asyncio.to_thread(tail_start, paths, options.tail)
    for path in paths[index:-1]:
        async for text in _file(path, offset, screen):
            yield text
        offset = 0
        if screen.full:
            return
    if not paths:
        return
    file = await asyncio.to_thread(log.open, "rb")
    try:
        file.seek(offset)
        rest = b""
        while not screen.full:
            alive = options.follow and running()
            data = await asyncio.to_thread(file.read, CHUNK)
            if data:
                *lines, rest = (rest + data).split(b"\n")
                if text := screen.text(lines):
                    yield text
                continue
            replaced = await asyncio.to_thread(_replaced, log, file.fileno())
            if replaced:
                file.close()
                file = await asyncio.to_thread(log.open, "rb")
                rest = b""
                continue
            if not alive:
                return
            await clock.sleep(POLL)
    finally:
        file.close()


async def _file(path: Path, offset: int, screen: _Filter) -> AsyncIterator[bytes]:
    file = await asyncio.to_thread(path.open, "rb")
    try:
        file.seek(offset)
        rest = b""
        while data := await asyncio.to_thread(file.read, CHUNK):
            *lines, rest = (rest + data).split(b"\n")
            if text := screen.text(lines):
                yield text
    finally:
        file.close()


def _replaced(log: Path, descriptor: int) -> bool:
    import os

    try:
        return log.stat().st_ino != os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False
