"""Platforms whose Services are on the loopback network take ranges from each other's way, root's in a container included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sampan.kernel import claims

RIGHTS = (12, 21)
"""CAP_NET_ADMIN and CAP_SYS_ADMIN."""

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="is about root in a container: needs root to give rights up"),
]

_WITHOUT = f"""
import ctypes, os, sys
for right in {RIGHTS}:
    assert ctypes.CDLL(None).prctl(24, right, 0, 0, 0) == 0
os.execv(sys.executable, [sys.executable, "-c", "from sampan.cli import main; main()", *sys.argv[1:]])
"""


def sampan(data: Path, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT, *arguments],
        env={**os.environ, "SAMPAN_DATA_DIR": str(data)},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def up(data: Path, code: int = 0) -> str:
    return sampan(data, "up", "--detach", "--ports", "auto", "--only", "kubernetes", code=code)


def service_range(data: Path) -> str:
    return (data / "parts" / "kubernetes" / "service-range").read_text().strip()


def test_roots_platforms_without_rights_keep_apart_and_say_who_has_their_range(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    started = []
    try:
        up(first)
        started.append(first)
        up(second)
        started.append(second)
        one, two = service_range(first), service_range(second)
        assert one != two
        sampan(first, "down")
        started.remove(first)
        (third / "parts" / "kubernetes").mkdir(parents=True)
        (third / "parts" / "kubernetes" / "service-range").write_text(one)
        up(third)
        started.append(third)
        holder = claims.holder(one)
        assert holder is not None
        assert holder.owner == str(third)
        refused = up(first, code=1)
        assert one in refused
        assert str(third) in refused
        assert str(holder.pid) in refused
        assert "kubernetes.service_range" in refused
        status = json.loads(sampan(second, "status", "--json"))
        assert status
    finally:
        for data in started:
            sampan(data, "down")
