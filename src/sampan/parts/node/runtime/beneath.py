"""Places in a volume that containers write in: whatever links they put there, and when, none leads out of it.

A path that is looked at first and used later can be another one by then. So each step is taken from the open directory before
it, and what comes out is a descriptor, not a path.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from sampan.parts.node.runtime import syscalls


def make(base: str, sub: str) -> int:
    """A descriptor (O_PATH) of what ``sub`` names below ``base``; directories are made where nothing is.

    Raises:
        OSError: EXDEV where it would lie outside.
    """
    parts = Path(sub).parts
    if sub.startswith("/") or ".." in parts:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), sub)
    opened = [os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)]
    try:
        for index, part in enumerate(parts):
            try:
                opened.append(syscalls.open_beneath(opened[0], str(Path(*parts[: index + 1]))))
            except FileNotFoundError:
                opened.append(_make_one(part, opened[-1]))
        return opened.pop()
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _make_one(name: str, parent: int) -> int:
    try:
        os.mkdir(name, 0o777, dir_fd=parent)
    except FileExistsError:
        # a link to nothing, or one that somebody else has made meanwhile
        return syscalls.open_beneath(parent, name)
    made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    os.fchmod(made, 0o777)
    return made
