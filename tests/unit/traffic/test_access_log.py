"""The access log's file: set aside when it is full, and Envoy is told until it listens."""

from __future__ import annotations

from pathlib import Path

from sampan.kernel.clock import Clock
from sampan.parts.traffic.access import AccessLog
from sampan.parts.traffic.envoy.process import EnvoyError


async def test_a_full_file_is_set_aside_and_envoy_is_told_until_it_hears(tmp_path: Path) -> None:
    path, calls = tmp_path / "gateway.jsonl", 0

    async def reopen() -> None:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise EnvoyError("does not answer")

    log = AccessLog(path, Clock(), reopen, limit=10)
    await log.look()
    path.write_text("0123456789")
    await log.look()
    assert (calls, path.exists()) == (0, True)
    path.write_text("0123456789a")
    for _ in range(4):
        await log.look()
    aside = tmp_path / "gateway.1.jsonl"
    assert (calls, path.exists(), aside.read_text()) == (3, False, "0123456789a")
    path.write_text("b" * 11)
    await log.look()
    assert (calls, aside.read_text()) == (4, "b" * 11), "one older file is kept"
