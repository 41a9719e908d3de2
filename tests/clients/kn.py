"""Knative's own command line, ``kn``, built from its Go module.

``python -m tests.clients.kn`` builds it once (two minutes, with a Go toolchain and a module proxy) and keeps it beside other caches.
Its own ``go.sum`` vouches for everything that goes into it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

VERSION = "0.40.0"
PLACE = Path.home() / ".cache" / "sampan-tests" / f"kn-{VERSION}" / "kn"
LONGEST = 900
"""Seconds a build may take."""


@cache
def kn() -> Path | None:
    """The binary, where there is one."""
    found = shutil.which("kn")
    return Path(found) if found else PLACE if PLACE.exists() else None


def build() -> Path:
    """Build it. Raises CalledProcessError."""
    told = subprocess.run(
        ["go", "mod", "download", "-json", f"knative.dev/client@v{VERSION}"],
        check=True, capture_output=True, timeout=LONGEST,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "client"
        shutil.copytree(json.loads(told.stdout)["Dir"], source)
        for place in (source, *source.rglob("*")):
            place.chmod(place.stat().st_mode | 0o200)
        subprocess.run(
            ["go", "build", "-o", str(Path(folder) / "kn"), "./cmd/kn"],
            cwd=source, check=True, timeout=LONGEST, env={**os.environ, "GOFLAGS": "-mod=mod"},
        )  # fmt: skip
        PLACE.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(Path(folder) / "kn", PLACE)
    return PLACE


if __name__ == "__main__":
    print(build())
