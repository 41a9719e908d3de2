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
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop

from sampan.kube.client.config import from_kubeconfig
from sampan.kube.client.http import HttpClient
from sampan.kube.objects import Object
from sampan.kube.resources import CONFIG_MAPS, PODS

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


POD = {"containers": [{"name": "c", "image": "nginx:1.27", "ports": [{"containerPort": 80}], "env": [{"name": "A"}]}]}


async def started(data: Path, record: Path) -> tuple[asyncio.subprocess.Process, HttpClient]:
    """A platform that writes down its collections, and a client of it."""
    arguments = ["up", "--data-dir", str(data), "--ports", "auto", "--only", "kubernetes,workloads"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", COUNTING, *arguments, stdout=DEVNULL, env={**os.environ, "COLLECTIONS": str(record)}
    )
    for _ in range(200):
        await asyncio.sleep(0.1)
        if (data / "kubeconfig").exists():
            break
    await asyncio.sleep(1.0)
    return process, HttpClient.from_config(from_kubeconfig(data / "kubeconfig"))


def pod(number: int) -> Object:
    return {"metadata": {"name": f"p-{number}", "namespace": "default", "labels": {"app": "web"}}, "spec": POD}


async def load(client: HttpClient, pods: int, seconds: float) -> list[float]:
    """Milliseconds of patches, 200 a second, beside 30 creates a second."""
    taken: list[float] = []
    begin = time.perf_counter()

    async def patch(number: int) -> None:
        began = time.perf_counter()
        labels = {"number": str(number)}
        await client.patch(PODS, f"p-{number * 37 % pods}", {"metadata": {"labels": labels}}, "default")
        taken.append((time.perf_counter() - began) * 1000)

    async def create(number: int) -> None:
        await client.create(CONFIG_MAPS, {"metadata": {"name": f"c-{number}"}, "data": {"key": "v" * 200}}, "default")

    async def paced(work: Callable[[int], Coroutine[Any, Any, None]], rate: int) -> None:
        under_way: set[asyncio.Task[None]] = set()
        for number in range(int(seconds * rate)):
            await asyncio.sleep(max(0.0, begin + number / rate - time.perf_counter()))
            task = asyncio.get_running_loop().create_task(work(number))
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
        process, client = await started(Path(name) / "data", record)
        try:
            async with client:
                numbers = iter(range(pods))

                async def make() -> None:
                    for number in numbers:
                        await client.create(PODS, pod(number), "default")

                marks = [time.time()]
                await asyncio.gather(*(make() for _ in range(8)))
                marks.append(time.time())
                taken = await load(client, pods, seconds)
                marks.append(time.time())
                await asyncio.sleep(12)
                marks.append(time.time())
        finally:
            process.terminate()
            await process.wait()
        rows: list[Row] = [tuple(json.loads(line)) for line in record.read_text().splitlines()]
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
