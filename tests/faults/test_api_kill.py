"""kill -9 of the core while clients write through the HTTP API: what was acknowledged is there, watches resume.

A few rounds with every test run; SAMPAN_KILLS sets how many (50 make 10,000 acknowledged writes).
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from sampan.kernel.clock import Clock
from sampan.kube.client.http import HttpClient
from sampan.kube.resources import CONFIG_MAPS
from sampan.kube.status import ApiError

KILLS = int(os.environ.get("SAMPAN_KILLS", "4"))
WRITERS, KEYS = 8, 12
WRITES_A_KILL = 200
"""Acknowledged writes between two kills, on average."""

Known = dict[str, tuple[int, str]]
"""The last acknowledged revision and value (empty: deleted) of each object."""


def up(data: Path) -> int:
    """Start the platform and return its core's pid."""
    command = [sys.executable, "-m", "sampan", "up", "--detach", "--data-dir", str(data)]
    subprocess.run([*command, "--only", "kubernetes", "--ports", "auto"], check=True, stdout=subprocess.DEVNULL)
    return int((data / "lock").read_text())


def down(data: Path) -> None:
    """Stop what may still run."""
    subprocess.run(
        [sys.executable, "-m", "sampan", "down", "--data-dir", str(data)], check=True, stdout=subprocess.DEVNULL
    )


async def write(data: Path, run: int, known: Known, doubtful: dict[str, set[str]], pid: int, enough: int) -> int:
    """Write with several clients at once until enough is acknowledged, then kill; returns the acknowledgements."""
    acknowledged = 0
    done = False

    async def writer(number: int, client: HttpClient) -> None:
        nonlocal acknowledged, done
        turn = 0
        while not done:
            turn += 1
            name = f"c{number}-{turn % KEYS}"
            value = "" if turn % 9 == 0 and known.get(name, (0, ""))[1] else f"{run}/{turn}"
            doubtful[name] = {value}
            try:
                if not value:
                    await client.delete(CONFIG_MAPS, name, "default")
                    revision = known[name][0]
                elif known.get(name, (0, ""))[1]:
                    patched = await client.patch(CONFIG_MAPS, name, {"data": {"v": value}}, "default")
                    revision = int(patched["metadata"]["resourceVersion"])
                else:
                    made = {"metadata": {"name": name}, "data": {"v": value}}
                    created = await client.create(CONFIG_MAPS, made, "default")
                    revision = int(created["metadata"]["resourceVersion"])
            except ApiError:
                if done:
                    return  # cut off by the kill: it may have been stored or not
                raise
            assert revision >= known.get(name, (0, ""))[0]
            known[name] = (revision, value)
            doubtful.pop(name, None)
            acknowledged += 1
            if acknowledged >= enough and not done:
                done = True
                os.kill(pid, signal.SIGKILL)

    async with HttpClient.from_kubeconfig(data / "kubeconfig") as client, asyncio.TaskGroup() as group:
        for number in range(WRITERS):
            group.create_task(writer(number, client))
    return acknowledged


async def check(data: Path, known: Known, doubtful: dict[str, set[str]], since: int, before: Known) -> int:
    """Everything acknowledged is there, and a watch from ``since`` tells it; returns the revision now."""
    async with HttpClient.from_kubeconfig(data / "kubeconfig") as client:
        listed = await client.list(CONFIG_MAPS, "default")
        found = {one["metadata"]["name"]: one for one in listed.items if "v" in (one.get("data") or {})}
        revision = int(listed.revision)
        assert revision >= max([since, *(one for one, _ in known.values())])
        for name in known.keys() | doubtful.keys():
            value = found[name]["data"]["v"] if name in found else ""
            assert value == known.get(name, (0, ""))[1] or value in doubtful.get(name, ())
            stamp = int(found[name]["metadata"]["resourceVersion"]) if name in found else known.get(name, (0, ""))[0]
            assert stamp >= known.get(name, (0, ""))[0]
            known[name] = (stamp, value)
        doubtful.clear()
        replayed = {name: value for name, (_, value) in before.items() if value}
        try:
            async with client.watch(CONFIG_MAPS, "default", revision=str(since)) as events, Clock().timeout(20):
                while {name: value for name, (_, value) in known.items() if value} != replayed:
                    event = await anext(events)
                    name, text = event.object["metadata"]["name"], (event.object.get("data") or {}).get("v")
                    if text is not None and event.type in ("ADDED", "MODIFIED"):
                        replayed[name] = text
                    elif event.type == "DELETED":
                        replayed.pop(name, None)
        except ApiError as error:
            assert error.expired  # compacted meanwhile; the client lists again, as it just did
        return revision


async def test_kills_lose_nothing_that_was_acknowledged_over_http(tmp_path: Path) -> None:
    data, chance = tmp_path / "data", random.Random(11)
    known: Known = {}
    resumed: Known = {}
    doubtful: dict[str, set[str]] = {}
    since, total = 0, 0
    for run in range(KILLS + 1):
        pid = await asyncio.to_thread(up, data)
        try:
            if run:
                since = await check(data, known, doubtful, since, resumed)
            else:
                async with HttpClient.from_kubeconfig(data / "kubeconfig") as client:
                    since = int((await client.list(CONFIG_MAPS, "default")).revision)
            resumed = dict(known)
            if run < KILLS:
                enough = chance.choice([1, 40, 200, 560])
                if run == KILLS - 1:
                    enough = max(enough, KILLS * WRITES_A_KILL - total)
                total += await write(data, run, known, doubtful, pid, enough)
        finally:
            await asyncio.to_thread(down, data)
    assert total >= KILLS * WRITES_A_KILL
    print(f"{total} acknowledged writes, {KILLS} kills")
