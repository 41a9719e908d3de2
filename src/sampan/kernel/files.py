"""The one way files reach the disk: whole or not at all.

A file is written beside its place, flushed to the disk, renamed over the old one, and the folder's entry is flushed too, so
that after a crash a reader finds the old content or the new, never a part of either. These functions block for as long as
the disk takes: on the event loop call them through ``asyncio.to_thread``.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_atomic(path: Path, data: bytes | str, *, mode: int = 0o644, durable: bool = True) -> None:
    """Replace ``path`` by ``data`` in one step.

    ``durable`` False skips the flush to the disk (for files whose loss in a power cut costs nothing); readers still see
    the old content or the new. The permissions are ``mode`` from the first byte on.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full; the old file is untouched.
    """
    content = data.encode() if isinstance(data, str) else data
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(content)
            if durable:
                file.flush()
                os.fsync(descriptor)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def write_private(path: Path, data: bytes | str, *, durable: bool = True) -> None:
    """Like `write_atomic`, readable by the owner only: for keys and tokens."""
    write_atomic(path, data, mode=0o600, durable=durable)


def private_folder(path: Path) -> Path:
    """Make ``path`` (with parents) a folder only its owner can enter; returns it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_mode & 0o077:
        path.chmod(0o700)
    return path


def flush(*paths: Path) -> None:
    """Flush files and then the folders that name them: for what was written with ``durable`` False, all at once.

    Raises:
        OSError: a file is missing, or the disk failed.
    """
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    for folder in dict.fromkeys(path.parent for path in paths):
        sync_folder(folder)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries (names created, renamed or removed in it) to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
