"""How often an event was tried and failed, kept across a restart: a subscriber is tried exactly its retries.

Only failures are written, before the wait for the next attempt, so what is delivered at once costs nothing here. The file is a
log of JSON lines, the last one of a key counts, and one with ``made`` 0 takes it back::

    {"key": "<group> <message id> <url>", "made": 3, "status": 503, "reason": "", "body": "<base64, its beginning>"}

Lines are not flushed to the disk: they survive the death of the process, which is what happens; after a power cut an event may be
tried more often. The attempt that was under way when the process died was not answered, and is made again.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec

from sampan.kernel.files import write_atomic
from sampan.parts.eventing.delivery import Outcome

log = logging.getLogger(__name__)

BODY_KEPT = 1024
"""Bytes of an error response that are kept: as many as go along to the dead-letter sink."""
SLACK = 10_000
"""Lines beyond the live ones before the file is written anew."""


class _Line(msgspec.Struct, omit_defaults=True):
    key: str
    made: int
    status: int = 0
    reason: str = ""
    body: bytes = b""


class Attempts:
    """The failed attempts of the events that are between two attempts, or whose burial is under way."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._live: dict[str, _Line] = {}
        self._lines = 0
        self._file = -1
        self._broken = False

    def open(self) -> None:
        """Read what a former process wrote. A line that was cut short by its death is left out."""
        decoder = msgspec.json.Decoder(_Line)
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            content = b""
        for text in content.splitlines():
            try:
                line = decoder.decode(text)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
            self._keep(line)
        self._rewrite()

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __len__(self) -> int:
        return len(self._live)

    def of(self, key: str) -> tuple[int, Outcome]:
        """How many attempts failed, and how the last one went."""
        line = self._live.get(key)
        return (0, Outcome(0)) if line is None else (line.made, Outcome(line.status, line.reason, line.body))

    def failed(self, key: str, made: int, outcome: Outcome) -> None:
        """Remember that ``made`` attempts failed, the last one so."""
        self._append(_Line(key, made, outcome.status, outcome.reason, outcome.body[:BODY_KEPT]))

    def forget(self, *keys: str) -> None:
        """These events are done with."""
        for key in keys:
            if key in self._live:
                self._append(_Line(key, 0))

    def forget_group(self, group: str) -> None:
        """A subscriber is gone."""
        self.forget(*[key for key in self._live if key.startswith(f"{group} ")])

    def _keep(self, line: _Line) -> None:
        if line.made:
            self._live[line.key] = line
        else:
            self._live.pop(line.key, None)

    def _append(self, line: _Line) -> None:
        self._keep(line)
        if self._file < 0:
            return
        self._write(msgspec.json.encode(line) + b"\n")
        self._lines += 1
        if self._lines > len(self._live) + SLACK:
            self._rewrite()

    def _write(self, text: bytes) -> None:
        try:
            os.write(self._file, text)
        except OSError as error:
            # delivering goes on; only a restart would not know how often it was tried
            if not self._broken:
                log.error("failed attempts cannot be kept in %s: %s", self._path, error)
            self._broken = True
        else:
            self._broken = False

    def _rewrite(self) -> None:
        """The live lines only."""
        self.close()
        text = b"".join(msgspec.json.encode(line) + b"\n" for line in self._live.values())
        try:
            write_atomic(self._path, text, mode=0o600, durable=False)
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            log.error("failed attempts cannot be kept in %s: %s", self._path, error)
        self._lines = len(self._live)
