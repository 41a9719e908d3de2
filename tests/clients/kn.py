"""Knative's own command line, ``kn``, built from its Go module.

``python -m tests.clients.kn`` builds it once (two minutes, with a Go toolchain and a module proxy) and keeps it beside other caches.
Its own ``go.sum`` vouches for everything that goes into it. Later versions are two modules, of which the proxy has one: they are
built from a checkout of knative/client, ``python -m tests.clients.kn CHECKOUT``, which then is what the tests use.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

VERSION = "0.40.0"
CACHE = Path.home() / ".cache" / "sampan-tests"
PLACE = CACHE / f"kn-{VERSION}" / "kn"
NEWER = CACHE / "kn-checkout" / "kn"
LONGEST = 900
"""Seconds a build may take."""


@cache
def kn() -> Path | None:
    """The binary, where there is one."""
    found = shutil.which("kn")
    return Path(found) if found else next((one for one in (NEWER, PLACE) if one.exists()), None)


def build_checkout(checkout: Path) -> Path:
    """Build what is checked out. Raises CalledProcessError."""
    environment = {**os.environ, "GOFLAGS": "-mod=mod", "GOWORK": "off"}
    NEWER.parent.mkdir(parents=True, exist_ok=True)
    line = ["go", "build", "-o", str(NEWER), "./cmd/kn"]
    subprocess.run(line, cwd=checkout, check=True, timeout=LONGEST, env=environment)
    return NEWER


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
    print(build_checkout(Path(sys.argv[1])) if len(sys.argv) > 1 else build())
