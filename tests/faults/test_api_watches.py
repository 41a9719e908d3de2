"""Many watches at once; SAMPAN_WATCHES sets how many (`python -m tests.faults.api_watches 10000` tells the figures)."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from tests.faults.api_watches import run

WATCHES = int(os.environ.get("SAMPAN_WATCHES", "200"))


async def test_every_watch_gets_every_write_and_none_outlives_its_client(tmp_path: Path) -> None:
    data = tmp_path / "data"
    command = [sys.executable, "-m", "sampan", "--data-dir", str(data)]
    up = [*command, "up", "--detach", "--only", "kubernetes", "--ports", "auto"]
    await asyncio.to_thread(subprocess.run, up, check=True, timeout=60)
    try:
        figures = await run(data, int((data / "lock").read_text()), WATCHES)
    finally:
        await asyncio.to_thread(subprocess.run, [*command, "down"], check=True, timeout=60)
    assert figures.forgotten
    assert figures.bytes_per_watch < 256 * 1024
