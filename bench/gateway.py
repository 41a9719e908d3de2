"""The gateway: how soon a changed route is served, and what a request costs beside nginx.

Run ``python bench/gateway.py``. The first table is the time from sending a change of one HTTPRoute to the API until a request
is answered by the new backend, with few and with many routes. The second needs ``nginx`` and ``wrk``: both proxies, two
workers each, in turns in front of one nginx that serves a page of 100 bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from sampan.kube.client import resources as core
from sampan.kube.client.http import HttpClient
from sampan.kube.objects import Object
from sampan.parts.traffic import resources
from sampan.testing import Platform

NAMESPACE = "default"
PAGE = b"x" * 100


def service(name: str, port: int) -> list[tuple[Any, Object]]:
    """A Service with one endpoint."""
    labels = {"kubernetes.io/service-name": name}
    return [
        (
            core.SERVICES,
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name},
                "spec": {"ports": [{"name": "main", "port": 80}]},
            },
        ),
        (
            core.ENDPOINT_SLICES,
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": name, "labels": labels},
                "addressType": "IPv4",
                "ports": [{"name": "main", "port": port}],
                "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": True}}],
            },
        ),
    ]


def gateway() -> Object:
    listener = {"name": "http", "port": 80, "protocol": "HTTP"}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "gw"},
        "spec": {"gatewayClassName": "sampan", "listeners": [listener]},
    }


def route(number: int, backend: str) -> Object:
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": f"r{number}"},
        "spec": {
            "parentRefs": [{"name": "gw"}],
            "hostnames": [f"h{number % 50}.example.com"],
            "rules": [
                {
                    "matches": [{"path": {"type": "PathPrefix", "value": f"/p{number}"}}],
                    "backendRefs": [{"name": backend, "port": 80}],
                }
            ],
        },
    }


class Page:
    """A backend that answers with its name."""

    def __init__(self, body: bytes) -> None:
        self._answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    async def serve(self) -> int:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._answer)

        self.server = await asyncio.start_server(answer, "127.0.0.1", 0)
        return int(self.server.sockets[0].getsockname()[1])


async def ask(address: tuple[str, int], host: str, path: str) -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    try:
        while True:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
            return await reader.readexactly(length)
    finally:
        writer.close()


async def served(address: tuple[str, int], host: str, path: str, body: bytes) -> None:
    """Return once the gateway answers so."""
    for _ in range(600):
        if await ask(address, host, path) == body:
            return
        await asyncio.sleep(0.05)
    raise TimeoutError(f"{host}{path} is not served")


async def changes(client: HttpClient, address: tuple[str, int], routes: int, count: int) -> list[float]:
    """Seconds from a change to its effect, for changes all over the routes."""
    taken = []
    for turn in range(count):
        number = turn * 37 % routes
        backend = "b" if turn % 2 == 0 else "a"
        spec = route(number, backend)["spec"]
        host, path = f"h{number % 50}.example.com", f"/p{number}"
        await asyncio.sleep(0.05)
        began = time.perf_counter()
        await client.patch(resources.HTTP_ROUTES, f"r{number}", {"spec": spec}, NAMESPACE)
        while await ask(address, host, path) != backend.encode():
            pass
        taken.append(time.perf_counter() - began)
        await client.patch(resources.HTTP_ROUTES, f"r{number}", {"spec": route(number, "a")["spec"]}, NAMESPACE)
    return taken


async def measure_changes(platform: Platform, sizes: list[int], count: int) -> None:
    client = platform.client()
    host, _, port = platform.address("gateway").partition(":")
    address = (host, int(port))
    pages = {name: Page(name.encode()) for name in ("a", "b")}
    async with client:
        for name, page in pages.items():
            for resource, obj in service(name, await page.serve()):
                await client.create(resource, obj, NAMESPACE)
        await client.create(resources.GATEWAYS, gateway(), NAMESPACE)
        print("| routes | change to effect: median | p99 | worst |\n| ---: | ---: | ---: | ---: |")
        there = 0
        for size in sizes:
            for first in range(there, size, 20):
                batch = range(first, min(first + 20, size))
                await asyncio.gather(*(client.create(resources.HTTP_ROUTES, route(n, "a"), NAMESPACE) for n in batch))
            there = size
            await served(address, f"h{(size - 1) % 50}.example.com", f"/p{size - 1}", b"a")
            await asyncio.sleep(2)
            taken = sorted(await changes(client, address, size, count))
            p99 = taken[min(len(taken) - 1, int(len(taken) * 0.99))]
            print(
                f"| {size} | {statistics.median(taken) * 1000:.1f} ms | {p99 * 1000:.1f} ms | {taken[-1] * 1000:.1f} ms |"
            )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def nginx(folder: Path, workers: int, location: str) -> Iterator[tuple[int, psutil.Process]]:
    """An nginx with one location on a free port."""
    port = free_port()
    folder.mkdir()
    (folder / "page").write_bytes(PAGE)
    config = folder / "nginx.conf"
    config.write_text(
        f"{'user root; ' if os.geteuid() == 0 else ''}daemon off; worker_processes {workers}; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; keepalive_requests 100000000; client_body_temp_path {folder}/body;\n"
        f"proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;\n"
        f"scgi_temp_path {folder}/s; {location.replace('PORT', str(port)).replace('FOLDER', str(folder))} }}\n"
    )
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    process = subprocess.Popen([program, "-c", str(config), "-p", str(folder)])
    try:
        time.sleep(0.3)
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def cpu(process: psutil.Process) -> float:
    """CPU seconds of a process and its children."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        times = one.cpu_times()
        total += times.user + times.system
    return total


def wrk(port: int, seconds: int, process: psutil.Process, host: str = "page.example.com") -> tuple[float, float]:
    """(requests a second, CPU microseconds of the proxy a request)."""
    before = cpu(process)
    command = ["wrk", "-t1", "-c32", f"-d{seconds}s", "-H", f"Host: {host}", f"http://127.0.0.1:{port}/page"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rate = next(float(line.split()[1]) for line in output.splitlines() if line.startswith("Requests/sec"))
    return rate, (cpu(process) - before) / (rate * seconds) * 1e6


async def serve_page(platform: Platform, port: int) -> None:
    async with platform.client() as client:
        for resource, obj in service("page", port):
            await client.create(resource, obj, NAMESPACE)
        made = route(0, "page")
        made["metadata"]["name"] = "page"
        made["spec"]["hostnames"] = ["page.example.com"]
        made["spec"]["rules"][0]["matches"] = [{"path": {"value": "/"}}]
        await client.create(resources.HTTP_ROUTES, made, NAMESPACE)
    host, _, gateway_port = platform.address("gateway").partition(":")
    await served((host, int(gateway_port)), "page.example.com", "/page", PAGE)


def measure_throughput(platform: Platform, seconds: int, turns: int) -> None:
    if not (shutil.which("wrk") and (shutil.which("nginx") or Path("/usr/sbin/nginx").exists())):
        print("no wrk or no nginx here: throughput is not measured")
        return
    envoy = psutil.Process(platform.run(facts(platform))["envoy"])
    with tempfile.TemporaryDirectory() as folder:
        page = "server { listen 127.0.0.1:PORT; location / { root FOLDER; } }"
        with nginx(Path(folder, "page"), 1, page) as (origin, _):
            forward = (
                f"upstream o {{ server 127.0.0.1:{origin}; keepalive 64; }} server {{ listen 127.0.0.1:PORT; "
                'location / { proxy_pass http://o; proxy_http_version 1.1; proxy_set_header Connection ""; } }'
            )
            with nginx(Path(folder, "proxy"), 2, forward) as (port, process):
                asyncio.run(serve_page(platform, origin))
                gateway_port = int(platform.address("gateway").partition(":")[2])
                results: dict[str, list[tuple[float, float]]] = {"nginx": [], "gateway": []}
                for _ in range(turns):
                    results["nginx"].append(wrk(port, seconds, process))
                    results["gateway"].append(wrk(gateway_port, seconds, envoy))
    best = {name: max(found) for name, found in results.items()}
    print("\n| proxy, 2 workers | requests/s | CPU us/request |\n| --- | ---: | ---: |")
    for name, (rate, cost) in best.items():
        print(f"| {name} | {rate:,.0f} | {cost:.1f} |")
    print(f"\ngateway / nginx: {best['gateway'][0] / best['nginx'][0]:.2f} of the throughput")


async def facts(platform: Platform) -> dict[str, Any]:
    status = await platform.kernel.status()
    return next(part.facts for part in status.parts if part.name == "traffic")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--routes", type=int, nargs="*", default=[100, 3000])
    arguments.add_argument("--changes", type=int, default=60)
    arguments.add_argument("--seconds", type=int, default=2)
    arguments.add_argument("--turns", type=int, default=2)
    chosen = arguments.parse_args()
    with Platform(only=["traffic"]) as platform:
        asyncio.run(measure_changes(platform, chosen.routes, chosen.changes))
    # without access logs, as the nginx beside it
    with Platform(only=["traffic"], settings={"traffic.access_log": False}) as platform:
        asyncio.run(make_gateway(platform))
        measure_throughput(platform, chosen.seconds, chosen.turns)


async def make_gateway(platform: Platform) -> None:
    async with platform.client() as client:
        await client.create(resources.GATEWAYS, gateway(), NAMESPACE)


if __name__ == "__main__":
    main()
