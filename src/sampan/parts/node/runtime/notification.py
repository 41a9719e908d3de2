"""Asking before a socket is bound or connected: seccomp user notification.

A process installs a filter that lets every system call pass but ``bind`` and ``connect``; those stop until whoever holds the
filter's listener has answered: with a result of its own making, or "go on". It works for every program, however it was linked,
needs no rights (but the promise to gain none), and costs one round trip a call.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import select
import struct
from typing import NamedTuple

from sampan.parts.node.runtime import syscalls

_ARM = platform.machine() in ("aarch64", "arm64")
_SYS_SECCOMP, _ARCHITECTURE = (277, 0xC00000B7) if _ARM else (317, 0xC000003E)
BIND, CONNECT = (200, 203) if _ARM else (49, 42)
_SYS_PIDFD_GETFD = 438
_SET_MODE_FILTER, _NEW_LISTENER, _WAIT_KILLABLE = 1, 1 << 3, 1 << 5
_RECEIVE, _SEND, _VALID = 0xC0502100, 0xC0182101, 0x40082102
_CONTINUE = 1
_NOTICE = struct.Struct("=QIIiIQ6Q")
_ANSWER = struct.Struct("=QqiI")
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
ADDRESS_LIMIT = 128
"""Bytes of a socket address."""


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


class Notice(NamedTuple):
    """A call that waits for an answer."""

    id: int
    thread: int
    call: int
    descriptor: int
    pointer: int
    length: int


def listen() -> int:
    """Put this process and what it starts under the filter; the listener's descriptor. Raises OSError."""
    steps = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 0, 4, _ARCHITECTURE),
        (_LOAD, 0, 0, 0),
        (_EQUAL, 1, 0, BIND),
        (_EQUAL, 0, 1, CONNECT),
        (_RETURN, 0, 0, _NOTIFY),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    loaded = _Program(len(steps), code)
    # once an answer is under way, only a fatal signal takes the call back (Linux 5.19): others would have it done twice
    for flags in (_NEW_LISTENER | _WAIT_KILLABLE, _NEW_LISTENER):
        result: int = _libc.syscall(_SYS_SECCOMP, _SET_MODE_FILTER, flags, ctypes.byref(loaded))
        if result >= 0:
            return result
        if ctypes.get_errno() != errno.EINVAL:
            break
    raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")


def pending(listener: int) -> bool | None:
    """A call waits; None: and none ever will, for nobody is left under the filter."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    events = poll.poll(0)
    found = events[0][1] if events else 0
    return True if found & select.POLLIN else None if found else False


def receive(listener: int) -> Notice | None:
    """The next call that waits; None where it was taken back. Raises OSError (nobody is left under the filter)."""
    buffer = bytearray(_NOTICE.size)
    try:
        fcntl.ioctl(listener, _RECEIVE, buffer)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINTR):
            return None
        raise
    identity, thread, _flags, call, _architecture, _place, descriptor, pointer, length, *_ = _NOTICE.unpack(buffer)
    return Notice(identity, thread, call, descriptor & 0xFFFFFFFF, pointer, length & 0xFFFFFFFF)


def waits(listener: int, notice: Notice) -> bool:
    """The call still waits, so its process is the one that made it."""
    try:
        fcntl.ioctl(listener, _VALID, struct.pack("=Q", notice.id))
    except OSError:
        return False
    return True


def answer(listener: int, notice: Notice, error: int | None) -> None:
    """Let the call return 0 or fail with ``error``; None lets the kernel do it as asked. Who has gone needs no answer."""
    told = (0, 0, _CONTINUE) if error is None else (0, -error, 0)
    with contextlib.suppress(OSError):
        fcntl.ioctl(listener, _SEND, bytearray(_ANSWER.pack(notice.id, *told)))


def read_address(notice: Notice) -> bytes:
    """The socket address the call was given. Raises OSError."""
    memory = os.open(f"/proc/{notice.thread}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(memory, min(notice.length, ADDRESS_LIMIT), notice.pointer)
    finally:
        os.close(memory)


def take_socket(notice: Notice) -> int:
    """A descriptor of our own for the call's socket. Raises OSError."""
    process = _open_process(notice.thread)
    try:
        result: int = _libc.syscall(_SYS_PIDFD_GETFD, process, notice.descriptor, 0)
    finally:
        os.close(process)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"pidfd_getfd: {os.strerror(ctypes.get_errno())}")
    return result


def _open_process(thread: int) -> int:
    try:
        return os.pidfd_open(thread)
    except OSError:
        with open(f"/proc/{thread}/status") as file:
            leader = next(line.split()[1] for line in file if line.startswith("Tgid:"))
        return os.pidfd_open(int(leader))


def promise() -> None:
    """Give up gaining rights by an exec: who has none may be filtered only then. Raises OSError."""
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
