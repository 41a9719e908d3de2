"""Commands as a user without any rights: what most people are.

Where the tests run as root they go on as ``nobody``, in a mount namespace in which the interpreter can be reached: it often lies
in root's home, which nobody else may enter.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

_NOBODY = "65534"
_ENTERABLE = r"""
set -e
closed=$1; inside=$2; held=$3; shift 3
mount --make-rprivate /
mount --bind "$inside" "$held"
mount -t tmpfs -o mode=755 none "$closed"
mkdir -p "$inside"
mount --bind "$held" "$inside"
exec "$@"
"""


def ordinary(*command: str) -> list[str]:
    """The command line that runs this command without rights; skips the test where there is none."""
    if os.geteuid() != 0:
        return list(command)
    for tool in ("setpriv", "unshare"):
        if shutil.which(tool) is None:
            pytest.skip(f"run as root, and {tool} is not installed: nobody without rights can be had")
    dropped = ["setpriv", "--reuid", _NOBODY, "--regid", _NOBODY, "--clear-groups", "--inh-caps", "-all", *command]
    for needed in {Path(sys.base_prefix), Path(sys.prefix), Path(__file__).parents[2]}:
        closed = _closed(needed.resolve())
        if closed is None:
            continue
        if Path(__file__).is_relative_to(closed) or Path(sys.prefix).is_relative_to(closed):
            pytest.skip(f"run as root, and others may not enter {closed}, where Sampan is")
        top = closed / needed.resolve().relative_to(closed).parts[0]
        held = Path("/tmp/sampan-test-interpreter")
        held.mkdir(exist_ok=True)
        line = ["unshare", "--mount", "sh", "-c", _ENTERABLE, "sh", str(closed), str(top), str(held)]
        return [*line, *dropped]
    return dropped


def own(directory: Path) -> None:
    """Give a folder of the test to the user without rights."""
    if os.geteuid() == 0:
        os.chown(directory, int(_NOBODY), int(_NOBODY))


def may(*command: str) -> bool:
    """The command succeeds for the user without rights."""
    return subprocess.run(ordinary(*command), check=False, capture_output=True, timeout=20).returncode == 0


def _closed(path: Path) -> Path | None:
    """The first folder on the way that others may not enter."""
    for each in reversed([path, *path.parents]):
        if not each.stat().st_mode & stat.S_IXOTH:
            return each
    return None
