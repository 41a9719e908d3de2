"""Serving: cold starts, the price of Serving over a plain Deployment, and what sleeping Services cost.

    python bench/serving.py [--wakes 20] [--sleeping 100] [--together 25] [--turns 8] [--split 20000]

Everything is real: platform, node, processes, Envoy. The peer of the steady state is a Deployment of the same image behind the same
gateway, measured in turns with the Service (by wrk where there is one). Cold starts are taken from the request's first byte out to the answer's last byte in.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from sampan.kernel.folder import DataDirectory
from sampan.kube.client.http import HttpClient
from sampan.kube.client.resources import DEPLOYMENTS, NODES, PODS, SERVICES
from sampan.kube.control.informer import SWEEP
from sampan.kube.objects import Object, Resource, dig
from sampan.parts.node.images.build import build
from sampan.parts.node.images.store import ImageStore
from sampan.testing import Platform

AT_ONCE = 10
"""Services made at a time."""
TURN = 1.0
"""Seconds of load on one target before it is the next one's turn: what disturbs the machine meets all alike."""
KSVC = Resource("serving.knative.dev", "v1", "services")
EVENTS = Resource("", "v1", "events")
INGRESSES = Resource("networking.k8s.io", "v1", "ingresses")
IMAGE = "ghcr.io/knative/helloworld-go:latest"


PROGRAM = """
package main

import (
	"fmt"
	"net/http"
	"os"
)

func main() {
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "Hello") })
	http.ListenAndServe(":"+os.Getenv("PORT"), nil)
}
"""
LOAD = """
import asyncio, sys, time
host, port, name, seconds = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
async def client(end):
    reader, writer = await asyncio.open_connection(host, port)
    done, request = 0, f"GET / HTTP/1.1\\r\\nHost: {name}\\r\\n\\r\\n".encode()
    while time.perf_counter() < end:
        writer.write(request)
        head = (await reader.readuntil(b"\\r\\n\\r\\n")).lower()
        assert head.startswith(b"http/1.1 200"), head
        await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\\r")[0]))
        done += 1
    writer.close()
    return done
async def main():
    began = time.perf_counter()
    done = await asyncio.gather(*(client(began + seconds) for _ in range(8)))
    print(sum(done) / (time.perf_counter() - began))
asyncio.run(main())
"""
"""A load of eight connections, as a program; prints requests a second."""


def ksvc(name: str, image: str = IMAGE, **annotations: str) -> Object:
    template = {
        "metadata": {"annotations": annotations},
        "spec": {"containers": [{"image": image, "env": [{"name": "TARGET", "value": name}]}]},
    }
    return {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"template": template},
    }


class Bench:
    """One platform and the ways to look at it."""

    def __init__(self, platform: Platform, client: HttpClient, session: aiohttp.ClientSession) -> None:
        self.platform, self.client, self.session = platform, client, session
        self.url = f"http://{platform.address('gateway')}/"

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Over connections of its own: this program's ends of them are memory of the same process, and gone afterwards."""
        kept = self.client, self.session
        try:
            async with self.platform.client() as self.client, aiohttp.ClientSession() as self.session:
                yield
        finally:
            self.client, self.session = kept

    async def get(self, name: str) -> float:
        """Seconds of one request; it must succeed."""
        began = time.perf_counter()
        async with self.session.get(self.url, headers={"Host": f"{name}.default.localhost"}) as answer:
            body = await answer.read()
            assert answer.status == 200, (name, answer.status, body)
        return time.perf_counter() - began

    async def until(self, truth: Any, seconds: float = 60) -> None:
        deadline = time.perf_counter() + seconds
        while not await truth():
            assert time.perf_counter() < deadline, "waited too long"
            await asyncio.sleep(0.05)

    async def ready(self, *names: str) -> None:
        async def all_ready() -> bool:
            listed = (await self.client.list(KSVC, "default")).items
            ready = {
                one["metadata"]["name"]
                for one in listed
                for condition in dig(one, "status", "conditions", default=[])
                if condition["type"] == "Ready" and condition["status"] == "True"
            }
            return set(names) <= ready

        await self.until(all_ready, 120)

    async def asleep(self) -> None:
        """Let the clock run until no pod of a Service is left."""

        async def none() -> bool:
            for _ in range(2):
                await asyncio.to_thread(self.platform.clock.jump, 4)
                await asyncio.sleep(0.05)
            pods = (await self.client.list(PODS, "default")).items
            return not [one for one in pods if "serving.knative.dev/service" in one["metadata"].get("labels", {})]

        await self.until(none, 120)
        await asyncio.sleep(0.2)


def table(title: str, rows: list[tuple[str, str]]) -> None:
    print(f"\n{title}")
    for name, value in rows:
        print(f"  {name:<52}{value}")


async def cold_starts(bench: Bench, wakes: int, name: str, image: str, what: str) -> None:
    await bench.client.create(KSVC, ksvc(name, image), "default")
    await bench.ready(name)
    times = []
    for _ in range(wakes):
        await bench.asleep()
        times.append(1000 * await bench.get(name))
    await bench.client.delete(KSVC, name, "default")
    times.sort()
    table(
        f"cold start of {what}, {wakes} wakes",
        [
            ("p50", f"{statistics.median(times):.0f} ms"),
            ("p99 (nearest rank)", f"{times[-1]:.0f} ms"),
            ("best", f"{times[0]:.0f} ms"),
        ],
    )


def static_binary(platform: Platform) -> str:
    """An image of a program without libraries, in the platform's store; "" without a Go toolchain."""
    if shutil.which("go") is None:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        source, app = Path(folder) / "source", Path(folder) / "app"
        source.mkdir()
        app.mkdir()
        (source / "main.go").write_text(PROGRAM)
        (source / "go.mod").write_text("module hello\n")
        environment = {**os.environ, "CGO_ENABLED": "0"}
        subprocess.run(["go", "build", "-o", str(app / "hello"), "."], cwd=source, env=environment, check=True)
        store = ImageStore(DataDirectory(platform.data_dir).part("node") / "images")
        store.open()
        build(store, app, "bench.example/hello:1", command="/app/hello", created="2026-01-01T00:00:00Z")
    return "bench.example/hello:1"


async def steady(bench: Bench, turns: int) -> None:
    pod = {
        "containers": [
            {
                "name": "app",
                "image": IMAGE,
                "ports": [{"containerPort": 8080}],
                "env": [{"name": "PORT", "value": "8080"}],
            }
        ]
    }
    for name in ("plain", "twin"):
        await _deployment(bench.client, name, pod)
    await bench.client.create(
        KSVC,
        ksvc("steady", **{"autoscaling.knative.dev/min-scale": "1", "autoscaling.knative.dev/max-scale": "1"}),
        "default",
    )
    limited = ksvc("limited", **{"autoscaling.knative.dev/min-scale": "1", "autoscaling.knative.dev/max-scale": "1"})
    limited["spec"]["template"]["spec"]["containerConcurrency"] = 100
    await bench.client.create(KSVC, limited, "default")
    await bench.ready("steady", "limited")

    async def answers() -> bool:
        try:
            await bench.get("plain")
            await bench.get("twin")
        except AssertionError:
            return False
        return True

    await bench.until(answers)

    names = ("plain", "twin", "steady", "limited")
    rates: dict[str, list[float]] = {name: [] for name in names}
    spent: dict[str, list[float]] = {name: [] for name in names}
    platform, envoy = psutil.Process(), _envoy()
    for _ in range(turns):
        for name in names:
            before = [_cpu(one) for one in (platform, envoy)]
            rate = await _rate(bench.platform.address("gateway"), f"{name}.default.localhost")
            after = [_cpu(one) for one in (platform, envoy)]
            rates[name].append(rate)
            spent[name].append(sum(after) - sum(before))

    def ratio(name: str) -> str:
        """The median over turns of what it did against the Deployment in the same turn, and the middle half of them."""
        found = sorted(one / plain for one, plain in zip(rates[name], rates["plain"], strict=True))
        low, high = found[len(found) // 4], found[-1 - len(found) // 4]
        return f"{statistics.median(found):.3f} of it ({low:.3f} to {high:.3f})"

    def row(name: str) -> str:
        cost = statistics.median(1e6 * cpu / (rate * TURN) for cpu, rate in zip(spent[name], rates[name], strict=True))
        told = "" if name == "plain" else ratio(name) + ", "
        return f"{statistics.median(rates[name]):.0f} requests/s, {told}{cost:.0f} µs of Envoy and platform each"

    table(
        f"steady state, 8 connections, turns of {TURN:.0f} s, medians of {len(rates['plain'])} turns",
        [
            ("Deployment behind an Ingress", row("plain")),
            ("another such Deployment (the measurement's own error)", row("twin")),
            ("Service without a limit", row("steady")),
            ("Service with containerConcurrency 100", row("limited")),
        ],
    )
    for name in ("steady", "limited"):
        await bench.client.delete(KSVC, name, "default")
    for name in ("plain", "twin"):
        await bench.client.delete(DEPLOYMENTS, name, "default")


async def _deployment(client: HttpClient, name: str, pod: Object) -> None:
    """A Deployment behind a Service behind an Ingress."""
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": pod}
    metadata = {"name": name, "namespace": "default"}
    made = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata}
    await client.create(
        DEPLOYMENTS, {**made, "spec": {"selector": {"matchLabels": labels}, "template": template}}, "default"
    )
    ports = [{"port": 80, "targetPort": 8080}]
    made = {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"selector": labels, "ports": ports}}
    await client.create(SERVICES, made, "default")
    backend = {"service": {"name": name, "port": {"number": 80}}}
    paths = [{"path": "/", "pathType": "Prefix", "backend": backend}]
    rule = {"host": f"{name}.default.localhost", "http": {"paths": paths}}
    made = {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": metadata, "spec": {"rules": [rule]}}
    await client.create(INGRESSES, made, "default")


def _envoy() -> psutil.Process:
    """The platform's Envoy, the newest of this machine that this process is an ancestor of or not."""
    found = [one for one in psutil.process_iter(["name", "create_time"]) if "envoy" in (one.info["name"] or "")]
    return max(found, key=lambda one: one.info["create_time"])


def _cpu(process: psutil.Process) -> float:
    used = process.cpu_times()
    return float(used.user + used.system)


async def _rate(gateway: str, name: str) -> float:
    """Requests a second of one turn, asked by a process of its own: the client must not share an interpreter with the gate."""
    wrk = shutil.which("wrk")
    host, _, port = gateway.rpartition(":")
    if wrk is not None:
        line = [wrk, "-t1", "-c8", f"-d{TURN:.0f}s", "-H", f"Host: {name}", f"http://{gateway}/"]
    else:
        line = [sys.executable, "-c", LOAD, host, port, name, str(TURN)]
    process = await asyncio.create_subprocess_exec(*line, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    text = out.decode()
    if wrk is None:
        return float(text)
    assert "Non-2xx" not in text, text
    return float(text.partition("Requests/sec:")[2].split()[0])


async def resident(process: psutil.Process) -> int:
    """Bytes of memory in use once nobody has asked for anything for a while, without what the allocator merely keeps."""
    await asyncio.sleep(3 * SWEEP)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(process.memory_info().rss)


async def split(bench: Bench, count: int) -> None:
    """Three revisions, 70, 20 and 10 percent."""
    shares = {"one": 70, "two": 20, "three": 10}
    for made, name in enumerate(shares, 1):
        manifest = ksvc("split")
        template = manifest["spec"]["template"]
        template["metadata"]["name"] = f"split-{name}"
        template["spec"]["containers"][0]["env"][0]["value"] = name
        if made == 1:
            manifest["spec"]["traffic"] = [{"latestRevision": True, "percent": 100}]
            await bench.client.create(KSVC, manifest, "default")
        else:
            if made == len(shares):
                targets = [{"revisionName": f"split-{one}", "percent": share} for one, share in shares.items()]
                manifest["spec"]["traffic"] = targets
            current = await bench.client.get(KSVC, "split", "default")
            await bench.client.update(KSVC, {**current, "spec": {**current["spec"], **manifest["spec"]}})

        async def current_is_ready() -> bool:
            found = await bench.client.get(KSVC, "split", "default")
            ready = any(
                one["type"] == "Ready" and one["status"] == "True"
                for one in dig(found, "status", "conditions", default=[])
            )
            return ready and found["status"].get("observedGeneration") == found["metadata"]["generation"]

        await bench.until(current_is_ready)
    told: Counter[str] = Counter()

    async def client() -> None:
        while told.total() < count:
            async with bench.session.get(bench.url, headers={"Host": "split.default.localhost"}) as answer:
                text = await answer.text()
                assert answer.status == 200, (answer.status, text)
                told[text.split()[1].rstrip("!")] += 1

    await asyncio.gather(*(client() for _ in range(16)))
    table(
        f"traffic split, {told.total()} requests",
        [
            (f"{share} %", f"{100 * told[name] / told.total():.2f} % ({100 * told[name] / told.total() - share:+.2f})")
            for name, share in shares.items()
        ],
    )


async def crowd(bench: Bench, sleeping: int, together: int) -> None:
    """What sleeping Services cost. What making them at all costs (code, pools of memory) is paid before, by some that go again."""
    process = psutil.Process()
    async with bench.connected():
        warm = [f"warm-{number}" for number in range(AT_ONCE)]
        await make(bench, warm)
        await asyncio.gather(*(bench.client.delete(KSVC, name, "default") for name in warm))
        await bench.until(partial(gone, bench))
        await forgotten(bench)
    before = await resident(process)
    names = [f"crowd-{number:03}" for number in range(sleeping)]
    async with bench.connected():
        for start in range(0, sleeping, AT_ONCE):
            await make(bench, names[start : start + AT_ONCE])
    fresh = await resident(process) - before
    async with bench.connected():
        await forgotten(bench)
    grown = await resident(process) - before
    used = process.cpu_times()
    await asyncio.sleep(5)
    after = process.cpu_times()
    busy = (after.user + after.system - used.user - used.system) / 5
    began = time.perf_counter()
    times = await asyncio.gather(*(bench.get(name) for name in names[:together]))
    table(
        f"{sleeping} Services at zero",
        [
            ("memory of the platform's process, grown by", f"{grown / 2**20:.0f} MiB"),
            ("the same with the history of the minutes they were made in", f"{fresh / 2**20:.0f} MiB"),
            ("CPU of the platform's process (this client included)", f"{100 * busy:.1f} % of a core"),
            (f"{together} woken at once: all answered after", f"{time.perf_counter() - began:.2f} s"),
            ("the first of them after", f"{min(times):.2f} s"),
        ],
    )


async def make(bench: Bench, names: list[str]) -> None:
    """Services that have answered their probes and gone to sleep."""
    await asyncio.gather(*(bench.client.create(KSVC, ksvc(name), "default") for name in names))
    await bench.ready(*names)
    await bench.asleep()


async def gone(bench: Bench) -> bool:
    """Whether nothing is left of the Services that were deleted."""
    left = await asyncio.gather(*(bench.client.list(kind) for kind in (KSVC, DEPLOYMENTS, PODS)))
    return not any("warm-" in one["metadata"]["name"] for found in left for one in found.items)


async def forgotten(bench: Bench) -> None:
    """Let the platform forget what it keeps for a while only: changes for watchers that come back, Events, recent use."""
    for _ in range(40):
        await asyncio.to_thread(bench.platform.clock.jump, 120)
        await asyncio.sleep(0.05)

    async def few_events() -> bool:
        return len((await bench.client.list(EVENTS, limit=101)).items) <= 100

    await bench.until(few_events)
    for _ in range(3):  # the store lets go of what was superseded before the last time it looked
        await asyncio.to_thread(bench.platform.clock.jump, 310)
        await asyncio.sleep(0.5)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wakes", type=int, default=20)
    parser.add_argument("--split", type=int, default=20_000)
    parser.add_argument("--sleeping", type=int, default=100)
    parser.add_argument("--together", type=int, default=25)
    parser.add_argument("--turns", type=int, default=8)
    options = parser.parse_args()
    with Platform(without=["messaging", "eventing"]) as platform:
        async with platform.client() as client, aiohttp.ClientSession() as session:
            bench = Bench(platform, client, session)

            async def node() -> bool:
                return bool((await client.list(NODES)).items)

            await bench.until(node)
            if options.wakes:
                await cold_starts(bench, options.wakes, "cold", IMAGE, "a Python application")
                if binary := await asyncio.to_thread(static_binary, platform):
                    await cold_starts(bench, options.wakes, "static", binary, "a static binary")
            if options.turns:
                await steady(bench, options.turns)
            if options.split:
                await split(bench, options.split)
            if options.sleeping:
                await crowd(bench, options.sleeping, options.together)


if __name__ == "__main__":
    asyncio.run(main())
