"""kill -9 of everything around a container: nothing is lost, nothing is left over."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.parts.node.runtime.process import ProcessRuntime
from tests.clients.node_runtime import bench


async def test_containers_outlive_the_agent_and_their_ends_are_remembered(tmp_path: Path) -> None:
    async with bench(tmp_path / "node", end=False) as first:
        await first.pod()
        await first.run("stays", "sleep", "1000")
        await first.run("ends", "sh", "-c", "echo before; sleep 0.3; echo after; exit 9")
        keeper = first.runtime.keeper_pid
    await asyncio.sleep(0.6)  # mostly it ends while no agent is there
    async with bench(tmp_path / "node") as second:
        assert second.runtime.keeper_pid == keeper
        async with asyncio.timeout(20):
            while True:
                sandboxes, containers = await second.runtime.list()
                if any(container.exit for container in containers):
                    break
                await asyncio.sleep(0.05)
        assert [sandbox.id for sandbox in sandboxes] == ["pod-1"]
        ends = {container.id: container.exit for container in containers}
        assert ends["stays"] is None
        record = ends["ends"]
        assert record is not None
        assert record.code == 9
        assert second.log("ends") == "before\nafter"


def line(process: psutil.Process) -> str:
    """Its command line; empty when it has just gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


async def test_a_killed_zygote_takes_no_container_with_it(tmp_path: Path) -> None:
    async with bench(tmp_path / "node") as node:
        await node.pod()
        await node.runtime.warm(sys.executable)
        zygote = None
        for _ in range(200):
            zygote = next(
                (p for p in psutil.Process(node.runtime.keeper_pid).children() if "zygote.py" in line(p)),
                None,
            )
            if zygote is not None:
                break
            await asyncio.sleep(0.05)
        assert zygote is not None
        await asyncio.sleep(1.5)
        program = "import time, sys; print('up', flush=True); time.sleep(1); sys.exit(4)"
        await node.run("before", sys.executable, "-c", program, python=sys.executable)
        os.kill(zygote.pid, signal.SIGKILL)
        await node.run("after", sys.executable, "-c", program, python=sys.executable)
        assert (await node.exit("before")).code == 4
        assert (await node.exit("after")).code == 4


async def test_a_killed_keeper_leaves_no_process_and_its_containers_are_lost(tmp_path: Path) -> None:
    async with bench(tmp_path / "node", end=False) as first:
        await first.pod()
        container = await first.run("c", "sh", "-c", "setsid sleep 1000 & sleep 1000")
        os.kill(first.runtime.keeper_pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            await first.lost.wait()
    async with bench(tmp_path / "node") as second:
        sandboxes, containers = await second.runtime.list()
        assert sandboxes == []
        assert [(c.id, c.exit.code, c.exit.error) for c in containers if c.exit] == [("c", 137, "lost")]
        assert await dead(container.pid)


async def dead(pid: int) -> bool:
    """The process is gone, or soon will be: only its entry waits to be reaped."""
    for _ in range(1000):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        await asyncio.sleep(0.02)
    return False


AGENT = """
import asyncio, sys
from pathlib import Path
from tests.clients.node_runtime import bench

async def main():
    async with bench(Path(sys.argv[1]), end=False) as node:
        number = 0
        await node.pod()
        while True:
            await node.run(f"{sys.argv[2]}-{number}", "sh", "-c", "exit 6")
            print("started", flush=True)
            number += 1

asyncio.run(main())
"""


async def test_an_agent_killed_in_mid_flight_many_times_loses_no_exit_status(tmp_path: Path) -> None:
    async with bench(tmp_path / "node") as watcher:
        for turn in range(6):
            agent = await asyncio.to_thread(
                subprocess.Popen,
                [sys.executable, "-c", AGENT, str(tmp_path / "node"), f"t{turn}"],
                stdout=subprocess.PIPE,
            )
            assert agent.stdout is not None
            for _ in range(2 + turn):
                await asyncio.to_thread(agent.stdout.readline)
            await asyncio.sleep(turn * 0.003)
            agent.kill()
            agent.wait()
            agent.stdout.close()
        began = time.monotonic()
        while time.monotonic() - began < 30:
            _, containers = await watcher.runtime.list()
            if all(container.exit for container in containers):
                break
            await asyncio.sleep(0.05)
        assert len(containers) > 6
        assert {container.exit.code for container in containers if container.exit} == {6}
        assert all(container.exit for container in containers)
        assert len({container.id for container in containers}) == len(containers)
    assert await dead(watcher.runtime.keeper_pid)


@pytest.mark.parametrize("moment", [0.0, 0.02, 0.06, 0.12])
async def test_a_start_that_was_broken_off_leaves_no_second_keeper(tmp_path: Path, moment: float) -> None:
    def keepers() -> list[psutil.Process]:
        lines = ((each, each.info["cmdline"] or []) for each in psutil.process_iter(["cmdline"]))
        return [each for each, line in lines if any(str(tmp_path) in word for word in line)]

    clock = Clock()
    async with Tasks(clock) as tasks:
        runtime = ProcessRuntime(tmp_path / "node", clock, tasks, abandon=20)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(moment):
                await runtime.start(lambda _: None, lambda: None)
        await runtime.close()
        await runtime.start(lambda _: None, lambda: None)
        await runtime.end()
    assert await dead(runtime.keeper_pid)
    for _ in range(100):
        left = await asyncio.to_thread(keepers)
        if not left:
            return
        await asyncio.sleep(0.05)
    pytest.fail(f"keepers are left: {left}")
