"""Ranges of addresses that platforms of one machine claim from each other: a locked file each.

A claim lasts as long as the process that made it (the kernel lets go of the lock with it), so nothing is left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from sampan.kernel.files import write_atomic

PAUSE = 0.05
"""Seconds between two attempts."""


def folder() -> Path:
    """Where this user's claims are."""
    return Path("/run/sampan") if os.geteuid() == 0 else Path(f"/tmp/sampan-{os.getuid()}")  # noqa: S108


class Holder(NamedTuple):
    """Who has a range."""

    pid: int
    owner: str
    """The data directory of its platform."""


def _file(network: str) -> Path:
    return folder() / f"pods-{network.replace('/', '_')}"


def claim(network: str, attempts: int = 1, owner: str = "") -> int | None:
    """Claim a range; the descriptor that holds it, or None: another has it. Blocks between several attempts.

    ``owner`` is told to whom the range is refused (`holder`).
    """
    folder().mkdir(mode=0o700, exist_ok=True)
    lock = os.open(_file(network), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for attempt in range(attempts):
        if attempt:
            threading.Event().wait(PAUSE)
        if _locked(lock):
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()} {owner}".encode(), 0)
            return lock
    os.close(lock)
    return None


def holder(network: str) -> Holder | None:
    """Who has claimed a range, as far as he told; None: nobody did."""
    with contextlib.suppress(OSError, ValueError):
        pid, _, owner = _file(network).read_text().partition(" ")
        return Holder(int(pid), owner)
    return None


def claim_one(candidates: Iterable[str], kept: Path, attempts: int = 1, owner: str = "") -> tuple[str, int | None]:
    """The range that ``kept`` names, or else the first of the candidates that can be claimed, which is then kept.

    With the descriptor that holds the claim; None: all are taken, or the kept one is, also after some ``attempts``.
    """
    if kept.exists():
        found = kept.read_text().strip()
        return found, claim(found, attempts, owner)
    first = ""
    for candidate in candidates:
        first = first or candidate
        lock = claim(candidate, owner=owner)
        if lock is not None:
            write_atomic(kept, f"{candidate}\n")
            return candidate, lock
    return first, None


def claimed() -> list[str]:
    """The ranges that are claimed now. Locks each other one for a moment."""
    found = []
    for file in sorted(folder().glob("pods-*")):
        try:
            lock = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        if not _locked(lock):
            found.append(file.name.removeprefix("pods-").replace("_", "/"))
        os.close(lock)
    return found


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
