"""Containers' standard streams: into the log, to attached clients, and from them.

A log never holds a container up: output is read as it comes, and a full disk loses lines. An attached client that reads too
slowly is cut off; one that writes faster than the container reads is not read meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import selectors
import struct
import termios
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sampan.kernel.clock import Clock
from sampan.parts.node.runtime.interface import Container, ContainerSpec
from sampan.parts.node.runtime.keeper.start_report import StartReport
from sampan.parts.node.runtime.logs import LineFormatter, LogFile

READ_SIZE = 64 * 1024
ATTACH_BACKLOG = 1 << 20
"""Bytes an attached client may lag behind before it is cut off."""


@dataclass
class Running:
    """A container of this keeper."""

    state: Container
    spec: ContainerSpec
    log: LogFile
    report: StartReport | None = None
    """What its fork says while it starts."""
    error: str = ""
    code: int = 0
    reply: Callable[[dict[str, Any]], None] | None = None
    streams: dict[int, LineFormatter] = field(default_factory=dict)
    stdin: int = -1
    terminal: int = -1
    attached: list[Attachment] = field(default_factory=list)
    raw: int | None = None
    """The wait status, once reaped."""
    oom_before: int = 0
    pending_stdin: bytes = b""
    forked: bool = False
    """A zygote was asked to start it."""

    @property
    def starting(self) -> bool:
        """It has not become its program yet."""
        return self.report is not None and self.report.open


@dataclass
class Attachment:
    """A client's descriptors on a container's streams."""

    stdin: int
    stdout: int
    stderr: int
    backlog: dict[int, bytes] = field(default_factory=dict)


class Streams:
    """What flows between containers, their logs and attached clients."""

    def __init__(self, selector: selectors.BaseSelector, clock: Clock) -> None:
        self._selector = selector
        self._clock = clock

    def make(self, running: Running) -> tuple[int, int, int]:
        """A container's standard streams; returns its ends of them."""
        spec = running.spec
        if spec.tty:
            master, slave = pty.openpty()
            os.set_blocking(master, False)
            running.terminal = master
            running.streams[master] = LineFormatter("stdout")
            self._selector.register(master, selectors.EVENT_READ, lambda: self._output(running, master))
            if spec.stdin:
                running.stdin = master
            return slave, slave, slave
        out_reader, out_writer = os.pipe2(os.O_CLOEXEC)
        err_reader, err_writer = os.pipe2(os.O_CLOEXEC)
        for descriptor, name in ((out_reader, "stdout"), (err_reader, "stderr")):
            os.set_blocking(descriptor, False)
            running.streams[descriptor] = LineFormatter(name)
            self._selector.register(
                descriptor, selectors.EVENT_READ, lambda descriptor=descriptor: self._output(running, descriptor)
            )
        if spec.stdin:
            stdin, running.stdin = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(running.stdin, False)
        else:
            stdin = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        return stdin, out_writer, err_writer

    def _output(self, running: Running, descriptor: int) -> None:
        try:
            data = os.read(descriptor, READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # a terminal whose last process is gone answers EIO
        formatter = running.streams[descriptor]
        now = self._clock.time_ns()
        if not data:
            running.log.write(formatter.finish(now))
            self.close_stream(running, descriptor)
            return
        running.log.write(formatter.feed(data, now))
        if running.attached:
            second = len(running.streams) == 2 and descriptor == list(running.streams)[1]
            for attachment in list(running.attached):
                self._copy(running, attachment, attachment.stderr if second else attachment.stdout, data)

    def close_stream(self, running: Running, descriptor: int) -> None:
        """An output stream is at its end, or nobody is interested any more."""
        del running.streams[descriptor]
        with contextlib.suppress(KeyError):
            self._selector.unregister(descriptor)
        os.close(descriptor)
        if descriptor == running.terminal:
            if running.stdin == running.terminal:
                running.stdin = -1
            running.terminal = -1
        if not running.streams:
            for attachment in list(running.attached):
                if not attachment.backlog:
                    self.detach(running, attachment)

    def _copy(self, running: Running, attachment: Attachment, descriptor: int, data: bytes) -> None:
        """Give an attached client output, holding back what it does not take yet."""
        if descriptor < 0:
            return
        backlog = attachment.backlog.get(descriptor, b"") + data
        try:
            backlog = backlog[os.write(descriptor, backlog) :]
        except BlockingIOError:
            pass
        except OSError:
            self.detach(running, attachment)
            return
        if len(backlog) > ATTACH_BACKLOG:
            self.detach(running, attachment)
            return
        watched = descriptor in attachment.backlog
        if backlog:
            attachment.backlog[descriptor] = backlog
            if not watched:
                self._selector.register(
                    descriptor, selectors.EVENT_WRITE, lambda: self._copy(running, attachment, descriptor, b"")
                )
        elif watched:
            del attachment.backlog[descriptor]
            self._selector.unregister(descriptor)
            if not running.streams and not attachment.backlog:
                self.detach(running, attachment)

    def attach(self, running: Running, wanted: list[bool], descriptors: list[int]) -> None:
        """Join a client's descriptors (stdin, stdout, stderr as wanted) to a container's streams. Raises OSError."""
        if not running.streams:
            raise OSError("the container is not running")
        given = iter(descriptors)
        stdin, stdout, stderr = (next(given) if one else -1 for one in wanted)
        attachment = Attachment(stdin, stdout, stderr)
        for descriptor in descriptors:
            os.set_blocking(descriptor, False)
        running.attached.append(attachment)
        if stdin >= 0:
            self._selector.register(stdin, selectors.EVENT_READ, lambda: self._input(running, attachment))

    def _input(self, running: Running, attachment: Attachment) -> None:
        """Pass an attached client's input on; while the container does not read, stop reading the client."""
        if running.pending_stdin:
            self._selector.unregister(attachment.stdin)
            return
        try:
            data = os.read(attachment.stdin, READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(attachment.stdin)
            close(attachment.stdin)
            attachment.stdin = -1
            if running.spec.stdin_once and running.stdin >= 0 and running.stdin != running.terminal:
                close(running.stdin)
                running.stdin = -1
            return
        if running.stdin < 0:
            return
        running.pending_stdin = data
        self._push_stdin(running)

    def _push_stdin(self, running: Running) -> None:
        watched = running.stdin in self._selector.get_map() and running.stdin != running.terminal
        try:
            written = os.write(running.stdin, running.pending_stdin)
            running.pending_stdin = running.pending_stdin[written:]
        except BlockingIOError:
            pass
        except OSError:
            running.pending_stdin = b""
        if running.stdin == running.terminal:
            running.pending_stdin = b""  # a terminal that takes no more drops input, as a real one does
            return
        if running.pending_stdin and not watched:
            self._selector.register(running.stdin, selectors.EVENT_WRITE, lambda: self._push_stdin(running))
        elif not running.pending_stdin:
            if watched:
                self._selector.unregister(running.stdin)
            for attachment in running.attached:
                if attachment.stdin >= 0 and attachment.stdin not in self._selector.get_map():
                    self._selector.register(
                        attachment.stdin,
                        selectors.EVENT_READ,
                        lambda attachment=attachment: self._input(running, attachment),
                    )

    def detach(self, running: Running, attachment: Attachment) -> None:
        """Let an attached client go; its descriptors are closed."""
        if attachment in running.attached:
            running.attached.remove(attachment)
        for descriptor in {attachment.stdin, attachment.stdout, attachment.stderr} - {-1}:
            with contextlib.suppress(KeyError):
                self._selector.unregister(descriptor)
            close(descriptor)

    def drain(self, running: Running, descriptor: int) -> None:
        """What the process wrote before it ended is in the log before anybody hears of the end."""
        for _ in range(64):
            if descriptor not in running.streams:
                return
            try:
                if not _readable(descriptor):
                    return
            except OSError:
                return
            self._output(running, descriptor)


def resize(terminal: int, rows: int, columns: int) -> None:
    """Set a terminal's size. Raises OSError."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def close(descriptor: int) -> None:
    """Close a descriptor that may be closed already."""
    with contextlib.suppress(OSError):
        os.close(descriptor)


def _readable(descriptor: int) -> bool:
    """There is something to read (or the end)."""
    return bool(select.select([descriptor], [], [], 0)[0])
