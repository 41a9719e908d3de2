"""The warm interpreters: one zygote each for the few Pythons used last.

The first container of an interpreter is exec'ed while its zygote warms up; the next ones are forked. One that cannot serve its
environment (something it imports starts threads) is remembered as failed and not tried again.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

LIMIT = 4
"""Warm interpreters at most; the least recently used one goes."""


@dataclass
class Zygote:
    """A warm interpreter."""

    process: subprocess.Popen[bytes]
    connection: socket.socket
    ready: bool = False
    failed: bool = False


class Zygotes:
    """The warm interpreters, by path."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._held: dict[str, Zygote] = {}

    def take(self, python: str) -> Zygote | None:
        """The warm zygote of an interpreter, or None; then one is on its way for the next time."""
        zygote = self._held.pop(python, None)
        if zygote is not None:
            self._held[python] = zygote  # most recently used last
            return zygote if zygote.ready else None
        while len(self._held) >= LIMIT:
            oldest = next(iter(self._held))
            gone = self._held.pop(oldest)
            gone.connection.close()
            if gone.process.poll() is None:
                gone.process.kill()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        script = Path(__file__).parents[1] / "zygote.py"
        try:
            process = subprocess.Popen(
                [python, str(script), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8"},
                cwd="/",
            )
        except OSError:
            ours.close()
            return None
        finally:
            theirs.close()
        started = Zygote(process, ours)
        self._held[python] = started
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._hear(python, started))
        return None

    def _hear(self, python: str, zygote: Zygote) -> None:
        try:
            message = zygote.connection.recv(4096)
        except OSError:
            message = b""
        if message:
            zygote.ready = True
            return
        self._selector.unregister(zygote.connection)
        zygote.connection.close()
        if self._held.get(python) is zygote and not zygote.ready:
            # it refused to serve this environment: do not try again while it is remembered here
            zygote.failed = True
        elif self._held.get(python) is zygote:
            del self._held[python]

    def _bury(self, python: str, zygote: Zygote) -> None:
        if zygote.ready and self._held.get(python) is zygote:
            del self._held[python]
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(zygote.connection)
            zygote.connection.close()
            self.take(python)

    def reap(self) -> None:
        """Replace those that have ended."""
        for python, zygote in list(self._held.items()):
            if zygote.process.poll() is not None and not zygote.failed:
                self._bury(python, zygote)

    def end(self) -> None:
        """End them all."""
        for zygote in self._held.values():
            zygote.connection.close()
            zygote.process.kill()
