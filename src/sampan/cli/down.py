"""``sampan down``: stop the platform and wait until it is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path

import click

from sampan.cli import options
from sampan.kernel import detached
from sampan.kernel.admin import NotRunningError, ask
from sampan.kernel.errors import SampanError
from sampan.kernel.folder import DataDirectory

LOOKS_A_SECOND = 20


@click.command("down")
@options.data_dir
@click.option("--wait", default=30.0, show_default=True, help="Seconds to wait for an orderly end before killing it.")
def command(data_dir: Path, wait: float) -> None:
    """Stop the platform: drain, stop every part, and wait until it is gone.

    Nothing that was stored is lost; the next `sampan up` has everything back. Stopping what does not run is no error.
    """
    directory = DataDirectory(data_dir)
    pid = directory.holder()
    if pid is None:
        ended = detached.end_all(directory.run)
        left = f", but {', '.join(ended)} was left behind by one that died; ended now" if ended else ""
        click.echo(f"no platform is running on {data_dir}{left}")
        return
    try:
        ask(directory.run, "POST", "/stop", wait=min(wait, 10.0))
    except NotRunningError:
        if not pid:
            raise
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)  # it holds the lock but does not answer: still starting, or stuck
    if _gone(directory, pid, wait):
        click.echo("stopped")
        return
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if not _gone(directory, pid, 5.0):
        raise SampanError(f"process {pid} does not end, not even when killed; it may hang in the kernel (disk?)")
    ended = detached.end_all(directory.run)
    others = f", and {', '.join(ended)} with it" if ended else ""
    click.echo(f"killed process {pid}, which did not stop within {wait:g} s{others}; acknowledged data is safe")


def _gone(directory: DataDirectory, pid: int, seconds: float) -> bool:
    """Whether the lock is free and its holder has ended within ``seconds``."""
    pause = threading.Event()
    for _ in range(max(1, int(seconds * LOOKS_A_SECOND))):
        if directory.holder() is None and not _alive(pid):
            return True
        pause.wait(1 / LOOKS_A_SECOND)
    return directory.holder() is None


def _alive(pid: int) -> bool:
    """Whether a process still runs; one that only waits to be reaped does not."""
    try:
        os.kill(pid, 0)
    except OSError:
        return False  # gone, or the number now belongs to somebody else's process
    state = Path(f"/proc/{pid}/stat")
    try:
        return not state.read_text().rpartition(")")[2].startswith(" Z")
    except OSError:
        return not Path("/proc/self").exists()  # gone meanwhile; without a /proc, the signal was the answer
