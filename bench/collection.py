"""How long the garbage collector keeps the core process standing, among thousands of pods and under load.

    python bench/collection.py [--pods 5000] [--seconds 25]

A platform (API and workload controllers) makes pods and then takes 200 patches and 30 creates a second; it counts its own
collections. The last row is the full collection that comes once it is left alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import kube
import uvloop

COUNTING = """
import gc, json, os, threading, time
rows, began = [], [0.0]
def note(phase, about):
    if phase == "start":
        began[0] = time.perf_counter()
    else:
        rows.append((time.time(), about["generation"], (time.perf_counter() - began[0]) * 1000, about["collected"]))
gc.callbacks.append(note)
def tell():
    while True:
        time.sleep(0.5)
        some, rows[:] = rows[:], []
        with open(os.environ["COLLECTIONS"], "a") as file:
            file.writelines(json.dumps(row) + chr(10) for row in some)
threading.Thread(target=tell, daemon=True).start()
from sampan.cli import main
main()
"""
Row = tuple[float, int, float, int]
"""When a collection ended, of which generation, its milliseconds, what it found."""


class Platform(kube.Platform):
    """A platform that writes down its collections."""

    def __init__(self, folder: Path, rows: Path) -> None:
        arguments = ["up", "--data-dir", str(folder), "--ports", "auto", "--only", "kubernetes,workloads"]
        environment = {**os.environ, "COLLECTIONS": str(rows)}
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", COUNTING, *arguments], stdout=subprocess.DEVNULL, env=environment
        )


async def load(session: aiohttp.ClientSession, url: str, pods: int, seconds: float) -> list[float]:
    """Milliseconds of patches, 200 a second, beside 30 creates a second."""
    taken: list[float] = []
    begin = time.perf_counter()
    merge = {"Content-Type": "application/merge-patch+json"}

    async def patch(number: int) -> None:
        body = json.dumps({"metadata": {"labels": {"number": str(number)}}})
        began = time.perf_counter()
        async with session.patch(f"{url}/pods/p-{number * 37 % pods}", data=body, headers=merge) as answer:
            await answer.read()
        taken.append((time.perf_counter() - began) * 1000)

    async def create(number: int) -> None:
        async with session.post(f"{url}/configmaps", data=kube.config_map(number)) as answer:
            await answer.read()

    async def paced(work: object, rate: int) -> None:
        under_way: set[asyncio.Task[None]] = set()
        for number in range(int(seconds * rate)):
            await asyncio.sleep(max(0.0, begin + number / rate - time.perf_counter()))
            task = asyncio.get_running_loop().create_task(work(number))  # type: ignore[operator]
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)

    await asyncio.gather(paced(patch, 200), paced(create, 30))
    return sorted(taken)


def told(label: str, rows: list[Row]) -> None:
    """One line a generation."""
    for generation in (0, 1, 2):
        pauses = sorted(row[2] for row in rows if row[1] == generation)
        if pauses:
            found = sum(row[3] for row in rows if row[1] == generation)
            print(
                f"{label:<28} generation {generation}: {len(pauses):4} collections, median {pauses[len(pauses) // 2]:6.2f} ms, "
                f"longest {pauses[-1]:6.2f} ms, {found} objects found"
            )


async def measure(pods: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        record = Path(name) / "collections"
        platform = Platform(Path(name) / "data", record)
        try:
            url, context = platform.connect()
            collection = f"{url}/api/v1/namespaces/default"
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=16, ssl=context)) as session:
                await asyncio.sleep(1.5)
                numbers = iter(range(pods))

                async def make() -> None:
                    for number in numbers:
                        async with session.post(f"{collection}/pods", data=kube.pod(number)) as answer:
                            if answer.status != 201:
                                raise SystemExit(await answer.text())

                marks = [time.time()]
                await asyncio.gather(*(make() for _ in range(8)))
                marks.append(time.time())
                taken = await load(session, collection, pods, seconds)
                marks.append(time.time())
                await asyncio.sleep(12)
                marks.append(time.time())
        finally:
            platform.stop()
        rows = [tuple(json.loads(line)) for line in record.read_text().splitlines()]
    labels = (f"while {pods:,} pods are made", "under load", "left alone")
    for label, since, until in zip(labels, marks, marks[1:], strict=False):
        told(label, [row for row in rows if since <= row[0] < until])
    print(
        f"{len(taken):,} patches: median {taken[len(taken) // 2]:.1f} ms, p99 {taken[int(len(taken) * 0.99)]:.1f} ms, "
        f"p99.9 {taken[int(len(taken) * 0.999)]:.1f} ms, longest {taken[-1]:.1f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=25.0)
    arguments = parser.parse_args()
    uvloop.run(measure(arguments.pods, arguments.seconds))


if __name__ == "__main__":
    main()
