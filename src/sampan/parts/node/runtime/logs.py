"""Container logs in the CRI format, rotated and bounded.

A line is ``<RFC 3339 time> <stdout|stderr> <F|P> <text>``; P marks a piece of a line longer than 16 KiB. All whole lines of
one read share a time stamp, so a flood costs one bytes.replace a read, not work a line. A log is at most ``files`` files of
``size`` bytes: the current one and ``.1`` (newest) to ``.<files-1>``; older ones are dropped.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime

LONGEST_PIECE = 16 * 1024


def stamp(nanoseconds: int) -> bytes:
    """RFC 3339 with nanoseconds, UTC."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z".encode()


class LineFormatter:
    """One stream's bytes as CRI log lines; holds back an unfinished line."""

    def __init__(self, stream: str) -> None:
        self._stream = stream.encode()
        self._rest = b""

    def feed(self, data: bytes, nanoseconds: int) -> bytes:
        """Log text for the lines that ``data`` completes."""
        if self._rest:
            data = self._rest + data
        end = data.rfind(b"\n")
        whole, self._rest = data[: end + 1], data[end + 1 :]
        out = b""
        if whole:
            prefix = b"%s %s F " % (stamp(nanoseconds), self._stream)
            out = prefix + whole[:-1].replace(b"\n", b"\n" + prefix) + b"\n"
        if len(self._rest) >= LONGEST_PIECE:
            prefix = b"%s %s P " % (stamp(nanoseconds), self._stream)
            pieces = []
            while len(self._rest) >= LONGEST_PIECE:
                pieces.append(prefix + self._rest[:LONGEST_PIECE] + b"\n")
                self._rest = self._rest[LONGEST_PIECE:]
            out += b"".join(pieces)
        return out

    def finish(self, nanoseconds: int) -> bytes:
        """Log text for what is held back, at the stream's end."""
        rest, self._rest = self._rest, b""
        return b"%s %s F %s\n" % (stamp(nanoseconds), self._stream, rest) if rest else b""


class LogFile:
    """The files behind one container's log. A full disk loses lines, never the container."""

    def __init__(self, path: str, size: int, files: int) -> None:
        self._path, self._size, self._files = path, size, max(2, files)
        self._descriptor = -1
        self._written = 0
        self.lost = 0
        """Bytes that could not be written."""
        self._open()

    def _open(self) -> None:
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self._written = os.fstat(self._descriptor).st_size

    def write(self, text: bytes) -> None:
        """Append log text."""
        if not text:
            return
        try:
            if self._written and self._written + len(text) > self._size:
                self.rotate()
            self._written += os.write(self._descriptor, text)
        except OSError:
            self.lost += len(text)

    def rotate(self) -> None:
        """Start a new file; the oldest one goes. Raises OSError."""
        for number in range(self._files - 1, 0, -1):
            source = f"{self._path}.{number - 1}" if number > 1 else self._path
            if os.path.exists(source):
                os.replace(source, f"{self._path}.{number}")
        os.close(self._descriptor)
        self._open()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
