"""Processes that outlive the core on purpose, and the book about them.

A data plane goes on when the core dies; the next core adopts it. So that nothing is forgotten when no core comes back, each
such process is noted as ``run/detached/<name>.json``: its pid, with the start time that tells it from a later process of the
same pid. ``sampan down`` ends whatever is still noted.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec
import psutil

from sampan.kernel.files import write_atomic

FOLDER = "detached"
SAME_START = 2.0
"""Seconds within which two start times are the same: they are counted from a boot time that is itself rounded."""
END_SECONDS = 5.0
"""Seconds a process has to end before it is killed."""


class _Note(msgspec.Struct, frozen=True):
    pid: int
    started: float


def note(run: Path, name: str, pid: int) -> None:
    """Write down that ``pid`` outlives the core. Blocks for a small file.

    Raises:
        psutil.NoSuchProcess: it has ended already.
    """
    folder = run / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    content = msgspec.json.encode(_Note(pid, psutil.Process(pid).create_time()))
    write_atomic(folder / f"{name}.json", content, durable=False)


def forget(run: Path, name: str) -> None:
    """The process has ended."""
    (run / FOLDER / f"{name}.json").unlink(missing_ok=True)


def living(run: Path, name: str) -> psutil.Process | None:
    """The noted process, if it still runs."""
    try:
        noted = msgspec.json.decode((run / FOLDER / f"{name}.json").read_bytes(), type=_Note)
        process = psutil.Process(noted.pid)
        same = abs(process.create_time() - noted.started) < SAME_START
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (OSError, msgspec.MsgspecError, psutil.NoSuchProcess):
        return None


def end_all(run: Path) -> list[str]:
    """End every process still noted, for when no core does; gives their names."""
    ended = []
    for path in sorted((run / FOLDER).glob("*.json")):
        process = living(run, path.stem)
        if process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
                try:
                    process.wait(END_SECONDS)
                except psutil.TimeoutExpired:
                    process.kill()
            ended.append(path.stem)
        path.unlink(missing_ok=True)
    return ended
