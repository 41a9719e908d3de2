"""A part in a process of its own: it follows the clock, is restarted when killed, and dies with the core."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from sampan.kernel.platform import Platform
from sampan.kernel.runs import PartFailedError

SOURCE = """
import asyncio, os
from sampan.kernel.part import Part, PartSettings
from sampan.kernel.telemetry import counter


class Greeting:
    pass


async def greet(context):
    context.provide(Greeting, context.listeners.address("quay"))


class Quay(Part[PartSettings]):
    name = "quay"
    remote = "quay_parts:greet"

    async def start(self):
        self.listener = self.context.listeners.bind("quay", 0)

    async def stop(self):
        self.listener.close()


class Ship(Part[PartSettings]):
    name = "ship"
    needs = ("quay",)
    own_process = True
    woke = 0.0

    async def start(self):
        if os.environ.get("SHIP_SINKS"):
            raise RuntimeError("a hole below the waterline")
        self.greeting = self.context.get(Greeting)

        self.listener = self.context.listeners.bind("ship.deck", 0)
        self.context.tasks.start("sleep", self.sleep())
        counter(self.context.metrics, "ship_starts_total", "Starts.").inc()

    async def sleep(self):
        await self.context.clock.sleep(86400)
        self.woke = self.context.clock.time()
        self.context.log.info("woke up")

    async def drain(self):
        (self.context.data_dir / "drained").touch()

    async def stop(self):
        self.listener.close()

    def status(self):
        return {"pid": os.getpid(), "quay": list(self.greeting), "woke": self.woke}
"""

LOOKOUT = """
from sampan.kernel.part import Part, PartSettings
from sampan.kube.client import Client
from sampan.kube.resources import NAMESPACES


class Lookout(Part[PartSettings]):
    name = "lookout"
    needs = ("kubernetes",)
    own_process = True

    async def start(self):
        self.seen = (await self.context.get(Client).list(NAMESPACES)).items

    def status(self):
        return {"seen": sorted(item["metadata"]["name"] for item in self.seen)}
"""

PARTS = {"quay": "quay_parts:Quay", "ship": "quay_parts:Ship"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "quay_parts.py").write_text(SOURCE)
    (tmp_path / "lookout_part.py").write_text(LOOKOUT)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *(p for p in sys.path if p)]))
    return tmp_path


async def ship(platform: Platform) -> Any:
    return next(part for part in (await platform.status()).parts if part.name == "ship")


async def test_a_child_reaches_its_needs_and_is_reached_by_status_clock_and_metrics(folder: Path) -> None:
    platform = Platform(PARTS, folder / "data", logs="file")
    async with platform:
        status = await ship(platform)
        assert status.process == status.facts["pid"] != os.getpid()
        assert tuple(status.facts["quay"]) == platform.listeners.address("quay")
        assert platform.listeners.address("ship.deck") is not None
        assert "ship_starts_total 1.0" in await platform.metrics_text("ship")
        platform.clock.jump(86400)
        async with asyncio.timeout(40):
            while not (await ship(platform)).facts["woke"]:
                await asyncio.sleep(0.01)
        assert (await ship(platform)).facts["woke"] <= platform.clock.time()
    assert (folder / "data/parts/ship/drained").exists()
    assert "woke up" in (folder / "data/logs/ship.jsonl").read_text()
    assert not psutil.pid_exists(status.process)


async def test_a_killed_child_is_restarted_at_the_same_address(folder: Path) -> None:
    async with Platform(PARTS, folder / "data") as platform:
        before, address = await ship(platform), platform.listeners.address("ship.deck")
        os.kill(before.process, signal.SIGKILL)
        async with asyncio.timeout(20):
            while (after := await ship(platform)).state != "ready" or after.process == before.process:
                await asyncio.sleep(0.02)
        assert after.restarts == 1
        assert platform.listeners.address("ship.deck") == address


async def test_a_child_that_cannot_start_says_why(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHIP_SINKS", "1")
    with pytest.raises(PartFailedError, match="RuntimeError: a hole below the waterline"):
        await Platform(PARTS, folder / "data").start()


async def test_a_child_that_needs_kubernetes_gets_a_client_over_http(folder: Path) -> None:
    parts = {"kubernetes": "sampan.kube.part:KubePart", "lookout": "lookout_part:Lookout"}
    async with Platform(parts, folder / "data", flags=["platform.ports=auto"]) as platform:
        status = await platform.status()
        facts = {part.name: part.facts for part in status.parts}
    assert {"default", "kube-system"} <= set(facts["lookout"]["seen"])


def test_children_die_with_a_killed_core(folder: Path) -> None:
    program = f"""
import asyncio, sys
from pathlib import Path
from sampan.kernel.platform import Platform

async def body():
    async with Platform({PARTS!r}, Path({str(folder / "data")!r})) as platform:
        print((await platform.status()).parts[1].process, flush=True)
        await platform.wait()

asyncio.run(body())
"""
    core = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert core.stdout is not None
    child = psutil.Process(int(core.stdout.readline()))
    core.kill()
    core.wait()
    core.stdout.close()
    child.wait(10)
