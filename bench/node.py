"""How fast pods become real, and what they cost while they do nothing.

    python bench/node.py [--pods 200] [--runs 50]

One platform with the Kubernetes API and the node in this process, real pods on this machine. The physical limit beside the
first two figures is the same program started directly by this machine (`posix_spawn`, or a fresh interpreter), measured in the
same run. Figures: pod created → phase Running (a static program), Python aiohttp application created → Ready with and without
the zygote, many pods created at once → all Ready, their steady cost in CPU and in this process's memory.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil

from sampan.kube.client import Client
from sampan.kube.control.controller import ControlContext
from sampan.kube.resources import NODES, PODS
from sampan.parts.node.images.image import HOST_BASE, ImageConfig
from sampan.parts.node.images.store import ImageStore
from sampan.testing.platform import Platform

APPLICATION = """
import os

from aiohttp import web

async def hello(request):
    return web.Response(text="hello")

app = web.Application()
app.router.add_get("/", hello)
web.run_app(app, port=int(os.environ.get("BENCH_PORT", "8080")), print=None)
"""


class Bench:
    """One platform and its node."""

    def __init__(self, platform: Platform, client: Client, node: str) -> None:
        self.client: Client = client
        self.node = node
        self.platform = platform
        self.events: dict[str, asyncio.Future[float]] = {}

    def watch(self) -> None:
        """Note when pods get where the caller waits for them."""
        informers = self.platform.get(ControlContext).informers

        def changed(_old: Any, new: Any) -> None:
            if new is None:
                return
            name, status = new["metadata"]["name"], new.get("status") or {}
            ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or ())
            for kind, reached in (("Running", status.get("phase") == "Running"), ("Ready", ready)):
                future = self.events.get(f"{name}/{kind}")
                if reached and future is not None and not future.done():
                    future.set_result(time.perf_counter())

        informers.informer(PODS).on_change(changed)

    async def create(self, name: str, container: dict[str, Any], until: str) -> float:
        """Seconds from the create call to the condition."""
        future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self.events[f"{name}/{until}"] = future
        spec = {
            "nodeName": self.node,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", **container}],
        }
        began = time.perf_counter()
        await self.client.create(
            PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}, "default"
        )
        async with asyncio.timeout(30):
            return await future - began

    async def clear(self) -> None:
        await self.client.delete_collection(PODS, "default")
        async with asyncio.timeout(60):
            while (await self.client.list(PODS, "default")).items:  # noqa: ASYNC110 - it is the server's to say
                await asyncio.sleep(0.05)


def spawn_static() -> float:
    """Milliseconds until a small program that this machine starts directly has run."""
    times = []
    for _ in range(30):
        began = time.perf_counter()
        subprocess.run(["/bin/true"], check=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def spawn_python(file: Path) -> float:
    """Milliseconds until a fresh interpreter with the application listens."""
    import socket

    times = []
    for _ in range(5):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, str(file)], env={**os.environ, "BENCH_PORT": str(port)})
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 0.1).close()
                break
            except OSError:
                time.sleep(0.002)
        times.append(time.perf_counter() - began)
        process.kill()
        process.wait()
    return statistics.median(times) * 1000


def row(name: str, value: str, limit: str = "", ratio: str = "") -> None:
    print(f"{name:<58}{value:>12}{limit:>16}{ratio:>8}")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pods", type=int, default=200)
    parser.add_argument("--runs", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        application = directory / "app.py"
        application.write_text(APPLICATION)
        direct, python = spawn_static(), spawn_python(application)
        settings = {"node.max_pods": options.pods + 10}
        async with (
            Platform(only=["kubernetes", "node"], settings=settings) as platform,
            AsyncExitStack() as connections,
        ):
            client = await connections.enter_async_context(platform.client())
            node = (await client.list(NODES)).items[0]
            isolation = next(c for c in node["status"]["conditions"] if c["type"] == "PodIsolation")["reason"]
            bench = Bench(platform, client, node["metadata"]["name"])
            bench.watch()
            store = ImageStore(platform.data_dir / "parts/node/images")
            build_image(store, directory)
            print(f"tier {isolation}, {os.cpu_count()} cores\n")
            row("", "median", "directly", "ratio")
            static = {"image": "registry.k8s.io/pause:3.10"}
            times = [await bench.create(f"static-{n}", static, "Running") * 1000 for n in range(options.runs)]
            value = statistics.median(times)
            row(
                "static program: pod created -> Running", f"{value:.0f} ms", f"{direct:.1f} ms", f"{value / direct:.0f}"
            )
            await bench.clear()
            probe = {"httpGet": {"path": "/", "port": 8080}}
            container = {"image": "bench-app", "imagePullPolicy": "IfNotPresent", "readinessProbe": probe}
            cold = await bench.create("cold", container, "Ready") * 1000
            await asyncio.sleep(2.0)
            times = [await bench.create(f"python-{n}", container, "Ready") * 1000 for n in range(options.runs)]
            value = statistics.median(times)
            row(
                "aiohttp application: pod created -> Ready, first (exec)",
                f"{cold:.0f} ms",
                f"{python:.0f} ms",
                f"{cold / python:.2f}",
            )
            row(
                "aiohttp application: pod created -> Ready, zygote",
                f"{value:.0f} ms",
                f"{python:.0f} ms",
                f"{value / python:.2f}",
            )
            await bench.clear()
            # whoever makes many pods at once is a controller, and those are in the process: 200 TLS connections of a client
            # would cost it half a megabyte each, and count as the pods' memory
            bench.client = platform.get(Client)
            gc.collect()
            process = psutil.Process()
            before = process.memory_info().rss
            began = time.perf_counter()
            await asyncio.gather(*(bench.create(f"many-{n}", static, "Ready") for n in range(options.pods)))
            took = time.perf_counter() - began
            row(f"{options.pods} pods created at once -> all Ready", f"{took:.1f} s")
            await asyncio.sleep(3.0)
            gc.collect()
            grown = (process.memory_info().rss - before) / options.pods / 2**20
            keeper = psutil.Process(int((platform.data_dir / "parts/node/run/keeper.pid").read_text()))
            row("memory of the platform's process a pod", f"{grown:.2f} MB")
            row("memory of the keeper, all pods", f"{keeper.memory_info().rss / 2**20:.0f} MB")
            spent = sum(sum(p.cpu_times()[:2]) for p in (process, keeper))
            began = time.perf_counter()
            # as long as it takes to sample every pod's use twice
            await asyncio.sleep(30.0)
            spent = sum(sum(p.cpu_times()[:2]) for p in (process, keeper)) - spent
            row(
                f"steady cost of {options.pods} idle pods",
                f"{spent / (time.perf_counter() - began) * 100:.1f} %",
                "of one core",
            )
            began = time.perf_counter()
            await bench.clear()
            row(f"{options.pods} pods deleted", f"{time.perf_counter() - began:.1f} s")


def build_image(store: ImageStore, directory: Path) -> None:
    """An image of the application that runs on this interpreter, which has aiohttp."""
    from sampan.parts.node.images.build import pack
    from sampan.parts.node.images.image import PYTHON

    layer, diff_id = pack(directory)
    env = [f"PATH={Path(sys.executable).parent}:/usr/bin:/bin"]
    labels = {HOST_BASE: "host", PYTHON: "own"}
    config = ImageConfig(cmd=["python", "app.py"], env=env, working_dir="/app", labels=labels)
    store.environments.directory.mkdir(parents=True, exist_ok=True)
    from sampan.parts.node.images import store as module

    # the benchmark's application uses this environment instead of one made for it, so that nothing is installed
    module.ImageStore.prepare = _prepared(module.ImageStore.prepare)  # type: ignore[method-assign]
    store.add("docker.io/library/bench-app:latest", config, [layer], [diff_id], "2026-01-01T00:00:00Z")


def _prepared(prepare: Any) -> Any:
    from dataclasses import replace

    from sampan.parts.node.images.store import python_directories

    def own(store: ImageStore, digest: str, name: str) -> Any:
        image = prepare(store, digest, name)
        return replace(image, python=sys.executable, extra=python_directories(sys.executable))

    return own


if __name__ == "__main__":
    asyncio.run(main())
