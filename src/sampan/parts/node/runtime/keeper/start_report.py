"""What a fork says while it becomes a container's process or an execution's: its pid, an error, or nothing any more.

The end of the report, when the last descriptor of it is closed by an exec (or by an end), is the start's end: then the program
runs, or never will.
"""

from __future__ import annotations

import json
import selectors
import socket
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Told:
    """What to do with what a start says."""

    pid: Callable[[int], None]
    listener: Callable[[int], None]
    """The listener of its sockets' filter; to keep."""
    end: Callable[[], None]


class StartReport:
    """The keeper's end of one report."""

    def __init__(self, selector: selectors.BaseSelector, told: Told) -> None:
        self.error = ""
        self.code = 0
        self.open = True
        self._selector = selector
        self._told = told
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)
        selector.register(self._ours, selectors.EVENT_READ, self._read)

    @property
    def descriptor(self) -> int:
        """The fork's end."""
        return self._theirs.fileno()

    def forked(self) -> None:
        """The fork has its end: the keeper's copy would keep the report open."""
        self._theirs.close()

    def _read(self) -> None:
        while True:
            try:
                message, descriptors, _flags, _address = socket.recv_fds(self._ours, 1 << 16, 1)
            except BlockingIOError:
                return
            except OSError:
                message, descriptors = b"", []
            for descriptor in descriptors:
                self._told.listener(descriptor)
            if not message:
                break
            fields = json.loads(message)
            if "pid" in fields:
                self._told.pid(fields["pid"])
            if "error" in fields:
                self.error, self.code = fields["error"], fields["code"]
        self._selector.unregister(self._ours)
        self._ours.close()
        self.open = False
        self._told.end()
