"""What the kernel says about processes: how one ended, when it started, what it uses."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from sampan.parts.node.runtime.interface import Usage


def exit_code(raw: int) -> tuple[int, int]:
    """Exit code and signal of a wait status, as container runtimes report them."""
    if os.WIFSIGNALED(raw):
        return 128 + os.WTERMSIG(raw), os.WTERMSIG(raw)
    return os.WEXITSTATUS(raw), 0


def process_start(pid: int) -> int:
    """A process's start time in clock ticks since boot: with the pid, it names a process for good. 0: no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[19])


def process_usage(pids: list[int]) -> Usage:
    """Usage from /proc, where no controller counts."""
    ticks = pages = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
            pages += int(fields[21])
    memory = pages * os.sysconf("SC_PAGE_SIZE")
    return Usage(ticks * (1_000_000_000 // os.sysconf("SC_CLK_TCK")), memory, memory, len(pids))
