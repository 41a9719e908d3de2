"""Serving: cold starts, the price of Serving over a plain Deployment, and what sleeping Services cost.

    python bench/serving.py [--wakes 20] [--sleeping 100] [--together 25] [--seconds 4]

Everything is real: platform, node, processes, Envoy. The peer of the steady state is a Deployment of the same image behind the same
gateway, measured in turns with the Service. Cold starts are taken from the request's first byte out to the answer's last byte in.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from typing import Any

import aiohttp
import psutil

from sampan.kube.client.http import HttpClient
from sampan.kube.client.resources import DEPLOYMENTS, NODES, PODS, SERVICES
from sampan.kube.objects import Object, Resource, dig
from sampan.testing import Platform

KSVC = Resource("serving.knative.dev", "v1", "services")
INGRESSES = Resource("networking.k8s.io", "v1", "ingresses")
IMAGE = "ghcr.io/knative/helloworld-go:latest"


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


def ksvc(name: str, **annotations: str) -> Object:
    template = {
        "metadata": {"annotations": annotations},
        "spec": {"containers": [{"image": IMAGE, "env": [{"name": "TARGET", "value": name}]}]},
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


async def cold_starts(bench: Bench, wakes: int) -> None:
    await bench.client.create(KSVC, ksvc("cold"), "default")
    await bench.ready("cold")
    times = []
    for _ in range(wakes):
        await bench.asleep()
        times.append(1000 * await bench.get("cold"))
    times.sort()
    table(
        f"cold start, {wakes} wakes",
        [
            ("p50", f"{statistics.median(times):.0f} ms"),
            ("p99 (nearest rank)", f"{times[-1]:.0f} ms"),
            ("best", f"{times[0]:.0f} ms"),
        ],
    )


async def steady(bench: Bench, seconds: float) -> None:
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
    labels = {"app": "plain"}
    await bench.client.create(
        DEPLOYMENTS,
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "plain", "namespace": "default"},
         "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}}},
        "default",
    )  # fmt: skip
    await bench.client.create(
        SERVICES,
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "plain", "namespace": "default"},
         "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8080}]}},
        "default",
    )  # fmt: skip
    backend = {"service": {"name": "plain", "port": {"number": 80}}}
    rule = {
        "host": "plain.default.localhost",
        "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]},
    }
    await bench.client.create(
        INGRESSES,
        {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "plain", "namespace": "default"},
         "spec": {"rules": [rule]}},
        "default",
    )  # fmt: skip
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
        except AssertionError:
            return False
        return True

    await bench.until(answers)

    async def rate(name: str) -> float:
        # a process of its own: the client must not share an interpreter with the gate
        host, _, port = bench.platform.address("gateway").rpartition(":")
        line = [sys.executable, "-c", LOAD, host, port, f"{name}.default.localhost", str(seconds / 4)]
        process = await asyncio.create_subprocess_exec(*line, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
        return float(out)

    best: dict[str, float] = {}
    for _ in range(4):
        for name in ("plain", "steady", "limited"):
            best[name] = max(best.get(name, 0), await rate(name))
    table(
        "steady state, 8 connections, best of 4 turns each",
        [
            ("Deployment behind an Ingress", f"{best['plain']:.0f} requests/s"),
            (
                "Service without a limit",
                f"{best['steady']:.0f} requests/s ({best['steady'] / best['plain']:.2f} of it)",
            ),
            (
                "Service with containerConcurrency 100 (gate)",
                f"{best['limited']:.0f} requests/s ({best['limited'] / best['plain']:.2f} of it)",
            ),
        ],
    )
    for name in ("steady", "limited"):
        await bench.client.delete(KSVC, name, "default")
    await bench.client.delete(DEPLOYMENTS, "plain", "default")


async def crowd(bench: Bench, sleeping: int, together: int) -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    names = [f"crowd-{number:03}" for number in range(sleeping)]
    for start in range(0, sleeping, 10):
        await asyncio.gather(*(bench.client.create(KSVC, ksvc(name), "default") for name in names[start : start + 10]))
        await bench.ready(*names[: start + 10])
        await bench.asleep()
    await asyncio.sleep(1)
    grown = process.memory_info().rss - before
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
            ("CPU of the platform's process (this client included)", f"{100 * busy:.1f} % of a core"),
            (f"{together} woken at once: all answered after", f"{time.perf_counter() - began:.2f} s"),
            ("the first of them after", f"{min(times):.2f} s"),
        ],
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wakes", type=int, default=20)
    parser.add_argument("--sleeping", type=int, default=100)
    parser.add_argument("--together", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    with Platform(without=["messaging", "eventing"]) as platform:
        async with platform.client() as client, aiohttp.ClientSession() as session:
            bench = Bench(platform, client, session)

            async def node() -> bool:
                return bool((await client.list(NODES)).items)

            await bench.until(node)
            if options.wakes:
                await cold_starts(bench, options.wakes)
            if options.seconds:
                await steady(bench, options.seconds)
            if options.sleeping:
                await crowd(bench, options.sleeping, options.together)


if __name__ == "__main__":
    asyncio.run(main())
