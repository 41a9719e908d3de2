"""Envoy's supervisor, with processes that end at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.parts.traffic.envoy import process
from sampan.parts.traffic.envoy.process import FIRST_TRIES, Envoy, EnvoyError


class Stumbling(Envoy):
    """Its first launches end at once, with a word in the log."""

    falls = 1
    falls_replacing = 0

    async def _launch(self, command: list[str]) -> psutil.Process:
        if "--restart-epoch" in command and self.falls_replacing:
            self.falls_replacing -= 1
        elif not self.falls:
            return await super()._launch(command)
        self.falls = max(0, self.falls - 1)
        with (self._directory / "envoy.log").open("a") as log:
            log.write("first line\nno room\n")
        child = await asyncio.create_subprocess_exec("sleep", "0.1")
        return psutil.Process(child.pid)


def stumbling(folder: Path, falls: int) -> Stumbling:
    (folder / "run").mkdir()
    made = Stumbling(folder / "envoy", Clock(), run=folder / "run", node_id="node", concurrency=1, outlive=False)
    made.falls = falls
    return made


async def test_one_process_that_ends_at_once_fails_no_platform(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    envoy = stumbling(tmp_path, FIRST_TRIES - 1)
    await envoy.find()
    async with Tasks(Clock(), "test") as tasks:
        await envoy.start(tasks)
        assert envoy.pid is not None
        assert psutil.pid_exists(envoy.pid)
        assert "Envoy exited at once: no room" in caplog.text
        await envoy.stop()


async def test_why_it_cannot_run_is_told(tmp_path: Path) -> None:
    envoy = stumbling(tmp_path, FIRST_TRIES)
    await envoy.find()
    try:
        async with Tasks(Clock(), "test") as tasks:
            with pytest.raises(EnvoyError, match=r"Envoy exited at once: no room; see .*envoy.log"):
                await envoy.start(tasks)
    finally:
        await envoy.stop()


async def test_one_that_keeps_falling_later_is_started_until_it_stays(tmp_path: Path) -> None:
    envoy = stumbling(tmp_path, 0)
    await envoy.find()
    async with Tasks(Clock(), "test") as tasks:
        await envoy.start(tasks)
        first = psutil.Process(envoy.pid)
        envoy.falls = FIRST_TRIES + 1
        first.kill()
        async with asyncio.timeout(20):
            while envoy.falls or envoy.pid in (None, first.pid) or not await envoy._serves():
                await asyncio.sleep(0.02)
        assert envoy.restarts == 1
        await envoy.stop()


async def test_an_envoy_that_cannot_be_replaced_under_way_is_started_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = stumbling(tmp_path, 0)
    await first.find()
    async with Tasks(Clock(), "test") as tasks:
        await first.start(tasks)
        old = first.pid
        await first.detach()
    second = Stumbling(tmp_path / "envoy", Clock(), run=tmp_path / "run", node_id="n", concurrency=2, outlive=False)
    second.falls, second.falls_replacing = 0, 1
    await second.find()
    assert second.adopted
    async with Tasks(Clock(), "test") as tasks:
        await second.start(tasks)
        assert second.pid not in (None, old)
        assert old is not None
        assert not psutil.pid_exists(old) or psutil.Process(old).status() == psutil.STATUS_ZOMBIE
        assert "cannot be replaced under way" in caplog.text
        await second.stop()


async def test_an_envoy_that_hangs_is_ended_and_not_adopted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "END_TIMEOUT", 0.3)
    first = stumbling(tmp_path, 0)
    await first.find()
    async with Tasks(Clock(), "test") as tasks:
        await first.start(tasks)
        monkeypatch.setattr(process, "ADMIN_TIMEOUT", 0.3)
        hung = psutil.Process(first.pid)
        hung.suspend()
        await first.drain(1)
        await first.detach()
    second = Envoy(tmp_path / "envoy", Clock(), run=tmp_path / "run", node_id="node", concurrency=1, outlive=False)
    await second.find()
    assert not second.adopted
    await asyncio.to_thread(hung.wait, 20)
    await second.detach()


async def test_an_envoy_that_was_killed_leaves_no_memory_behind(tmp_path: Path) -> None:
    first = stumbling(tmp_path, 0)
    await first.find()
    async with Tasks(Clock(), "test") as tasks:
        await first.start(tasks)
        left = Path(f"/dev/shm/envoy_shared_memory_{(tmp_path / 'envoy/base-id').read_text()}0")
        assert await asyncio.to_thread(left.exists)
        killed = psutil.Process(first.pid)
        await first.detach()
        killed.kill()
        await asyncio.to_thread(killed.wait, 20)
    (tmp_path / "envoy/envoy.json").unlink()  # killed before anything was written about it
    second = Envoy(tmp_path / "envoy", Clock(), run=tmp_path / "run", node_id="node", concurrency=1, outlive=False)
    await second.find()
    assert not second.adopted
    assert not await asyncio.to_thread(left.exists)
    await second.detach()
