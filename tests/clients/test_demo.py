"""``sampan demo`` as people run it: without rights, several at once, and ended in the middle."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sampan.cli.demo import EXAMPLE

pytestmark = pytest.mark.skipif(not EXAMPLE.is_dir(), reason="the demo's application is in the source tree")


async def demo(*arguments: str, temporary: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sampan", "demo", *arguments),
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a short name: sockets have no long ones."""
    with tempfile.TemporaryDirectory(prefix="demo-") as name:
        yield Path(name)


def left(folder: Path) -> list[str]:
    """The data directories of demos in a folder."""
    return [path.name for path in folder.glob("sampan-demo-*")]


async def test_demos_of_every_tier_run_beside_each_other(place: Path) -> None:
    tiers = ("auto", "T2", "T3")
    running = [await demo("--check", "--set", f"node.tier={tier}", temporary=place) for tier in tiers]
    for tier, one in zip(tiers, running, strict=True):
        output = (await asyncio.wait_for(one.communicate(), 150))[0].decode()
        assert one.returncode == 0, f"{tier}: {output}"
        assert "the application answers" in output or "pods share the machine's ports" in output, f"{tier}: {output}"
    assert left(place) == [], "nothing is left of them"


@pytest.mark.parametrize(
    ("when", "how"),
    [
        ("before it is ready", signal.SIGINT),
        ("before it is ready", signal.SIGTERM),
        ("while it waits", signal.SIGINT),
    ],
)
async def test_a_demo_that_is_interrupted_leaves_nothing(place: Path, when: str, how: signal.Signals) -> None:
    running = await demo(temporary=place)
    assert running.stdout is not None
    if when == "while it waits":
        async with asyncio.timeout(150):
            while b"press Ctrl-C" not in await running.stdout.readline():
                assert running.returncode is None
    else:
        while not left(place):
            assert running.returncode is None
            await asyncio.sleep(0.01)
    running.send_signal(how)
    rest = (await asyncio.wait_for(running.communicate(), 60))[0].decode()
    assert "Traceback" not in rest, rest
    assert left(place) == [], "nothing is left of it"
