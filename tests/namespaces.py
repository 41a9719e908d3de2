"""Processes that stand for pods with network namespaces, for tests and benchmarks that need root."""

from __future__ import annotations

import os
import signal

from sampan.parts.node.runtime import syscalls


def process_apart() -> int:
    """A process with a network namespace of its own, which does nothing and ends with this one; kill and wait for it."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        syscalls.unshare(syscalls.CLONE_NEWNET)
        os.write(writer, b".")
        while True:
            signal.pause()
    os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    return pid


def end_process(pid: int) -> None:
    """End such a process, and its namespace with it."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
