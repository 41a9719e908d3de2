"""The Kubernetes API measured from outside: durable creates, gets, lists, watch fan-out, and memory per pod.

    python bench/kube.py [--seconds 5] [--pods 5000] [--watchers 1000]

The platform runs in a process of its own (SQLite store, TLS on loopback); this process is the load. Each figure stands beside
a peer or a physical limit measured in the same run: a bare aiohttp server that answers constants, and fsync on the same disk.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import psutil

POD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        "labels": {"app": "web", "tier": "front", "pod-template-hash": "abcdef"},
        "annotations": {"note": "x" * 100},
    },
    "spec": {
        "containers": [
            {
                "name": "c",
                "image": "nginx:1.27",
                "ports": [{"containerPort": 80}],
                "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
                "readinessProbe": {"httpGet": {"port": 80}},
            }
        ]
    },
}


def config_map(index: int) -> bytes:
    return json.dumps({"metadata": {"name": f"c-{index}"}, "data": {"key": "v" * 200}}).encode()


def pod(index: int) -> bytes:
    return json.dumps({**POD, "metadata": {**POD["metadata"], "name": f"p-{index}"}}).encode()


class Platform:
    """A platform in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from sampan.cli import main; main()",
                "up",
                "--data-dir",
                str(folder),
                "--ports",
                "auto",
                "--only",
                "kubernetes",
            ],
            stdout=subprocess.DEVNULL,
        )
        self.folder = folder

    def connect(self) -> tuple[str, ssl.SSLContext]:
        import base64

        import yaml

        path = self.folder / "kubeconfig"
        for _ in range(200):
            if path.exists():
                break
            time.sleep(0.05)
        config = yaml.safe_load(path.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        pem = self.folder / "bench.pem"
        pem.write_bytes(base64.b64decode(user["client-certificate-data"]) + base64.b64decode(user["client-key-data"]))
        context.load_cert_chain(pem)
        return cluster["server"], context

    def memory(self) -> int:
        process = psutil.Process(self.process.pid)
        return int(process.memory_info().rss)

    def cpu(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


async def rate(
    session: aiohttp.ClientSession, url: str, bodies: Any, workers: int, seconds: float
) -> tuple[float, int]:
    """Requests a second over some connections."""
    done = 0
    stop = time.perf_counter() + seconds

    async def worker() -> None:
        nonlocal done
        while time.perf_counter() < stop:
            async with session.post(url, data=next(bodies), headers={"Content-Type": "application/json"}) as answer:
                if answer.status != 201:
                    raise SystemExit(await answer.text())
                await answer.read()
            done += 1

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(workers)))
    return done / (time.perf_counter() - began), done


async def bare_rate(seconds: float) -> float:
    """The same load on an aiohttp server that does nothing, in a process of its own: the transport's limit."""
    code = (
        "import asyncio,sys\nfrom aiohttp import web\n"
        "async def h(r):\n await r.read()\n return web.Response(body=b'{}'*300,status=201)\n"
        "async def m():\n s=web.Server(h)\n l=await asyncio.get_running_loop().create_server(s,'127.0.0.1',0)\n"
        " print(l.sockets[0].getsockname()[1],flush=True)\n await asyncio.Event().wait()\n"
        "import uvloop;uvloop.run(m())\n"
    )
    process = subprocess.Popen(  # noqa: ASYNC220 (before the load begins)
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    port = int(process.stdout.readline())
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=8)) as session:
            bodies = iter(lambda: config_map(1), None)
            return (await rate(session, f"http://127.0.0.1:{port}/", bodies, 8, seconds))[0]
    finally:
        process.kill()
        process.wait()


def fsync_rate(folder: Path) -> float:
    """Appends of 1 KB made durable one after the other."""
    with (folder / "probe").open("wb") as file:
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < 1:
            file.write(b"x" * 1024)
            file.flush()
            os.fdatasync(file.fileno())
            count += 1
        return count / (time.perf_counter() - began)


async def paced_gets(session: aiohttp.ClientSession, url: str, per_second: int, seconds: float) -> list[float]:
    """Latencies in ms of gets at a steady rate."""
    taken: list[float] = []

    async def one() -> None:
        began = time.perf_counter()
        async with session.get(url) as answer:
            await answer.read()
        taken.append((time.perf_counter() - began) * 1000)

    begin = time.perf_counter()
    tasks = set()
    count = int(per_second * seconds)
    for index in range(count):
        due = begin + index / per_second
        delay = due - time.perf_counter()
        if delay > 0:
            await asyncio.sleep(delay)
        task = asyncio.get_running_loop().create_task(one())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return sorted(taken)


async def fan_out(url: str, context: ssl.SSLContext, watchers: int) -> tuple[float, float]:
    """(Seconds until the median watcher, until the last watcher) has one write."""
    connector = aiohttp.TCPConnector(limit=0, ssl=context)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        answers = []
        for start in range(0, watchers, 50):
            opened = (
                session.get(f"{url}/api/v1/namespaces/default/secrets?watch=1&resourceVersion=0")
                for _ in range(start, min(start + 50, watchers))
            )
            answers += await asyncio.gather(*opened)

        async def first_line(answer: aiohttp.ClientResponse) -> float:
            await answer.content.readline()
            return time.perf_counter()

        best = (1e9, 1e9)
        for attempt in range(3):
            waiting = [asyncio.get_running_loop().create_task(first_line(answer)) for answer in answers]
            await asyncio.sleep(0.2)
            began = time.perf_counter()
            body = json.dumps({"metadata": {"name": f"s-{attempt}"}}).encode()
            async with session.post(f"{url}/api/v1/namespaces/default/secrets", data=body) as answer:
                await answer.read()
            seen = sorted(at - began for at in await asyncio.gather(*waiting))
            best = min(best, (seen[len(seen) // 2], seen[-1]), key=lambda pair: pair[1])
        for answer in answers:
            answer.close()
        return best


async def measure(arguments: argparse.Namespace) -> None:
    rows: list[tuple[str, str, str]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fsyncs = fsync_rate(folder)
        bare = await bare_rate(2.0)
        platform = Platform(folder / "data")
        try:
            url, context = platform.connect()
            connector = aiohttp.TCPConnector(limit=8, ssl=context)
            async with aiohttp.ClientSession(connector=connector) as session:
                await asyncio.sleep(1.0)
                account = json.dumps({"metadata": {"name": "default"}}).encode()
                async with session.post(f"{url}/api/v1/namespaces/default/serviceaccounts", data=account) as answer:
                    await answer.read()  # 409 where the controllers have made it
                collection = f"{url}/api/v1/namespaces/default/configmaps"
                indexes = iter(range(10**9))
                bodies = (config_map(index) for index in indexes)
                await rate(session, collection, bodies, 8, 0.5)
                before = platform.cpu()
                creates, count = await rate(session, collection, bodies, 8, arguments.seconds)
                cpu = (platform.cpu() - before) / count * 1e6
                rows.append(
                    (
                        "durable creates/s, 8 connections",
                        f"{creates:,.0f}",
                        f"{creates / bare:.2f} of a bare aiohttp server ({bare:,.0f}/s); {cpu:.0f} µs CPU each; {fsyncs:,.0f} fsync/s",
                    )
                )
                for _ in range(3):
                    await paced_gets(session, f"{collection}/c-1", 1000, 0.2)
                taken = await paced_gets(session, f"{collection}/c-1", 1000, arguments.seconds)
                rows.append(
                    (
                        "get at 1,000/s: median, p99 (ms)",
                        f"{statistics.median(taken):.2f}, {taken[int(len(taken) * 0.99)]:.2f}",
                        f"load generator included ({len(taken)} gets)",
                    )
                )
                pods = f"{url}/api/v1/namespaces/default/pods"
                memory = platform.memory()
                numbers = iter(range(arguments.pods))

                async def create_pods() -> None:
                    for index in numbers:
                        async with session.post(pods, data=pod(index)) as answer:
                            if answer.status != 201:
                                raise SystemExit(await answer.text())
                            await answer.read()

                began = time.perf_counter()
                await asyncio.gather(*(create_pods() for _ in range(8)))
                seconds = time.perf_counter() - began
                rows.append(("pod creates/s (admission included)", f"{arguments.pods / seconds:,.0f}", ""))
                await asyncio.sleep(0.5)
                each = (platform.memory() - memory) / arguments.pods / 1024
                rows.append(("memory per pod (KiB)", f"{each:.1f}", f"process {platform.memory() / 2**20:.0f} MiB"))
                best, size = 1e9, 0
                for _ in range(5):
                    began = time.perf_counter()
                    async with session.get(pods) as answer:
                        size = len(await answer.read())
                    best = min(best, time.perf_counter() - began)
                rows.append(
                    (
                        f"list of {arguments.pods:,} pods (ms)",
                        f"{best * 1000:.0f}",
                        f"{size / 2**20:.1f} MiB, {size / 2**20 / best:.0f} MiB/s",
                    )
                )
            median, last = await fan_out(url, context, arguments.watchers)
            rows.append(
                (
                    f"one write to {arguments.watchers:,} watchers: median, last (ms)",
                    f"{median * 1000:.0f}, {last * 1000:.0f}",
                    "load generator included",
                )
            )
            rows.append(("memory at the end (MiB)", f"{platform.memory() / 2**20:.0f}", ""))
        finally:
            platform.stop()
    width = max(len(row[0]) for row in rows)
    for label, value, note in rows:
        print(f"{label:<{width}}  {value:>14}  {note}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--pods", type=int, default=5000)
    parser.add_argument("--watchers", type=int, default=1000)
    import uvloop

    uvloop.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
