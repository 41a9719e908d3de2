"""How fast the broker takes events and brings them to a subscriber; run alone: ``python bench/eventing.py``.

The platform runs in processes of its own, as for a user. Its peer in the same run is the same HTTP server without storage: what
aiohttp answers to the same requests when it only reads them.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
from aiohttp import web

HEADERS = {
    "ce-specversion": "1.0",
    "ce-type": "bench",
    "ce-source": "/bench",
    "content-type": "application/json",
}
BODY = b'{"text": "' + b"x" * 200 + b'"}'


def sampan(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "SAMPAN_DATA_DIR": str(folder)}
    command = [sys.executable, "-m", "sampan", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


async def post(session: aiohttp.ClientSession, url: str, number: int) -> None:
    headers = {**HEADERS, "ce-id": str(number), "ce-sent": str(time.perf_counter_ns() // 1000)}
    async with session.post(url, data=BODY, headers=headers) as response:
        assert response.status == 202, await response.text()


async def throughput(url: str, seconds: float, clients: int = 64) -> float:
    """Events a second that are answered 202."""
    count, end = 0, time.perf_counter() + seconds

    async def one(session: aiohttp.ClientSession) -> None:
        nonlocal count
        while time.perf_counter() < end:
            await post(session, url, count)
            count += 1

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        began = time.perf_counter()
        await asyncio.gather(*(one(session) for _ in range(clients)))
        return count / (time.perf_counter() - began)


def load(url: str, seconds: float) -> float:
    return asyncio.run(throughput(url, seconds))


def parallel(url: str, seconds: float, processes: int = 2) -> float:
    """The rate of several client processes together: one Python client is no match for the server."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return sum(pool.starmap(load, [(url, seconds)] * processes))


async def latency(url: str, sink_port: list[int], make: object, rate: float, seconds: float) -> list[float]:
    """Milliseconds from the POST to the arrival at the subscriber, at a steady rate."""
    took: list[float] = []

    async def receive(request: web.BaseRequest) -> web.Response:
        await request.read()
        took.append(time.perf_counter_ns() / 1e6 - int(request.headers["ce-sent"]) / 1e3)
        return web.Response(status=202)

    runner = web.ServerRunner(web.Server(receive))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    sink_port.append(site._server.sockets[0].getsockname()[1])  # type: ignore[union-attr]
    await asyncio.to_thread(make, sink_port[0])  # type: ignore[arg-type]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        for number in range(50):
            await post(session, url, number)
        await asyncio.sleep(1)
        took.clear()
        began, tasks = time.perf_counter(), []
        for number in range(int(rate * seconds)):
            due = began + number / rate
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(post(session, url, number)))
        await asyncio.gather(*tasks)
        for _ in range(100):
            if len(took) >= len(tasks):
                break
            await asyncio.sleep(0.1)
    await runner.cleanup()
    return took


def peer(port: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    """The same server, without storage."""

    async def serve() -> None:
        async def answer(request: web.BaseRequest) -> web.Response:
            await request.read()
            return web.Response(status=202)

        runner = web.ServerRunner(web.Server(answer))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port.put(site._server.sockets[0].getsockname()[1])  # type: ignore[union-attr]
        await asyncio.sleep(3600)

    import uvloop

    uvloop.run(serve())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sampan(folder, "up", "-d", "--ports", "auto", "--only", "eventing", "--without", "node,network,traffic,serving")
        try:
            run(folder, given.seconds)
        finally:
            sampan(folder, "down")


def run(folder: Path, seconds: float) -> None:
    import json

    addresses = json.loads(sampan(folder, "status", "--json"))["addresses"]
    host, _, port = addresses["eventing.ingress"].partition(":")
    kubectl = ["kubectl", "--kubeconfig", str(folder / "kubeconfig")]

    def apply(kind: str, name: str, wait: str, **spec: object) -> None:
        obj = {"apiVersion": "eventing.knative.dev/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}
        given = json.dumps(obj)
        subprocess.run([*kubectl, "apply", "-f", "-"], input=given, text=True, check=True, stdout=subprocess.DEVNULL)
        command = [*kubectl, "wait", "--for=condition=Ready", "--timeout=20s", wait]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    for broker in ("take", "bring"):
        apply("Broker", broker, f"broker/{broker}")
    ports: multiprocessing.Queue[int] = multiprocessing.Queue()
    bare = multiprocessing.Process(target=peer, args=(ports,), daemon=True)
    bare.start()
    plain = parallel(f"http://127.0.0.1:{ports.get()}/", seconds)
    bare.terminate()
    durable = parallel(f"http://{host}:{port}/default/take", seconds)

    def trigger(sink: int) -> None:
        apply("Trigger", "bring", "trigger/bring", broker="bring", subscriber={"uri": f"http://127.0.0.1:{sink}/"})

    took = asyncio.run(latency(f"http://{host}:{port}/default/bring", [], trigger, 500, seconds))
    quantiles = statistics.quantiles(took, n=100)
    print(f"{'':34}{'events/s':>10}{'ratio':>8}")
    print(f"{'aiohttp that only reads':34}{plain:10.0f}{1:8.2f}")
    print(f"{'ingress, durable, 2x64 clients':34}{durable:10.0f}{durable / plain:8.2f}")
    print(f"end to end at 500 events/s, one trigger, {len(took)} events:")
    print(f"  p50 {quantiles[49]:.1f} ms   p90 {quantiles[89]:.1f} ms   p99 {quantiles[98]:.1f} ms")


if __name__ == "__main__":
    main()
