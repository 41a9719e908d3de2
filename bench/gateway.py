"""The gateway: how soon a changed route is served, and what a request costs beside nginx.

Run ``python bench/gateway.py``. The first table is the time from sending a change of one HTTPRoute to the API until it is stored,
and until the first request is sent that the new backend answers, with few and with many routes. The second needs ``nginx`` and ``wrk``: both proxies, two
workers each, in turns in front of one nginx that serves a page of 100 bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

import psutil

from sampan.kube.client import resources as core
from sampan.kube.client.http import HttpClient
from sampan.kube.objects import Object
from sampan.parts.traffic import resources

SOURCE = Path(__file__).resolve().parents[1] / "src"
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
NAMESPACE = "default"
PAGE = b"x" * 100
PAUSE = 0.001
"""Seconds between looks for a change: asking without a pause would take the processor from what is measured."""


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


def _yield_to_others() -> None:
    """Lower this thread's priority: who watches must not take the processor from what is watched."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


class Page:
    """A backend that answers with its name, on a thread."""

    def __init__(self, body: bytes) -> None:
        self._answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        _yield_to_others()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, contextlib.suppress(ConnectionError):
            while connection.recv(65536):
                connection.sendall(self._answer)


class Browser:
    """One connection that is kept: asking costs as little as it can, so the moment of the change is seen sharply."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.create_connection(address)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, host: str, path: str) -> bytes:
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        answer = self._socket.recv(65536)
        if not answer:
            raise ConnectionError("the gateway hung up")
        return answer.partition(b"\r\n\r\n")[2]

    def watch(self, host: str, path: str, body: bytes) -> float:
        """When (`time.perf_counter`) the first request was sent that was answered so."""
        _yield_to_others()
        while True:
            sent = time.perf_counter()
            if self.ask(host, path) == body:
                return sent
            time.sleep(PAUSE)


async def served(address: tuple[str, int], host: str, path: str, body: bytes) -> None:
    """Return once the gateway answers so."""
    for _ in range(1200):
        with contextlib.suppress(OSError), Browser(address) as browser:
            if browser.ask(host, path) == body:
                return
        await asyncio.sleep(0.05)
    raise TimeoutError(f"{host}{path} is not served")


class Change(NamedTuple):
    """Seconds after sending a change."""

    answered: float
    """The API said it is stored."""
    served: float
    """The first request was sent that was answered by it."""


async def changes(client: HttpClient, address: tuple[str, int], routes: int, count: int) -> list[Change]:
    """Changes of single routes, all over them, one every 50 ms."""
    taken = []
    with Browser(address) as browser:
        for turn in range(count):
            number = turn * 37 % routes
            host, path = f"h{number % 50}.example.com", f"/p{number}"
            for backend in ("b", "a"):
                await asyncio.sleep(0.05)
                began = time.perf_counter()
                seen = asyncio.create_task(asyncio.to_thread(browser.watch, host, path, backend.encode()))
                change = {"spec": route(number, backend)["spec"]}
                await client.patch(resources.HTTP_ROUTES, f"r{number}", change, NAMESPACE)
                answered = time.perf_counter() - began
                taken.append(Change(answered, await seen - began))
    return taken


def percentile(values: list[float], part: float) -> str:
    """In milliseconds; the 100th is the worst."""
    return f"{sorted(values)[min(len(values) - 1, int(len(values) * part / 100))] * 1000:.1f}"


async def measure_changes(running: Running, sizes: list[int], count: int) -> None:
    address = running.address("gateway")
    pages = {name: Page(name.encode()) for name in ("a", "b")}
    async with running.client() as client:
        for name, page in pages.items():
            for resource, obj in service(name, page.port):
                await client.create(resource, obj, NAMESPACE)
        await client.create(resources.GATEWAYS, gateway(), NAMESPACE)
        print(
            "| ms: median / p99 | stored (the API answered) | served | served after stored |\n| --- | ---: | ---: | ---: |"
        )
        there = 0
        for size in sizes:
            for first in range(there, size, 20):
                batch = range(first, min(first + 20, size))
                await asyncio.gather(*(client.create(resources.HTTP_ROUTES, route(n, "a"), NAMESPACE) for n in batch))
            there = size
            await served(address, f"h{(size - 1) % 50}.example.com", f"/p{size - 1}", b"a")
            await asyncio.sleep(3)
            taken = await changes(client, address, size, count)
            stored, shown = [one.answered for one in taken], [one.served for one in taken]
            after = [max(0.0, one.served - one.answered) for one in taken]
            figures = [f"{percentile(one, 50)} / {percentile(one, 99)}" for one in (stored, shown, after)]
            print(f"| {size} routes | {' | '.join(figures)} |", flush=True)
    appended = await asyncio.to_thread(appends, running.data / "bench", count)
    print(f"| floor: 4 KiB appended and synced | {percentile(appended, 50)} / {percentile(appended, 99)} | | |")


def appends(path: Path, count: int) -> list[float]:
    """Seconds that a durable append takes on the platform's disk: what any stored change costs at least."""
    taken = []
    with path.open("wb", buffering=0) as file:
        for _ in range(2 * count):
            time.sleep(0.02)
            file.write(bytes(4096))
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - began)
    return taken


class Running:
    """A platform as a user starts it: `sampan up`, in processes of its own."""

    def __init__(self, *settings: str) -> None:
        self._settings = settings

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory()
        self.data = Path(self._folder.name, "data")
        flags = [flag for setting in self._settings for flag in ("--set", setting)]
        self._sampan("up", "--detach", "--ports", "auto", "--only", "traffic", *flags)
        return self

    def __exit__(self, *_: object) -> None:
        self._sampan("down")
        self._folder.cleanup()

    def _sampan(self, command: str, *arguments: str) -> str:
        line = [sys.executable, "-m", "sampan", command, "--data-dir", str(self.data), *arguments]
        return subprocess.run(line, check=True, capture_output=True, text=True, env=ENVIRONMENT).stdout

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._sampan("status", "--json"))
        return found

    def address(self, name: str) -> tuple[str, int]:
        host, _, port = self.status()["addresses"][name].rpartition(":")
        return host, int(port)

    def envoy(self) -> psutil.Process:
        part = next(part for part in self.status()["parts"] if part["name"] == "traffic")
        return psutil.Process(part["facts"]["envoy"])

    def client(self) -> HttpClient:
        return HttpClient.from_kubeconfig(self.data / "kubeconfig")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def nginx(folder: Path, workers: int, location: str, log: str = "") -> Iterator[tuple[int, psutil.Process]]:
    """An nginx with one location on a free port; ``log``: options of its access log, which is off without."""
    port = free_port()
    folder.mkdir()
    (folder / "page").write_bytes(PAGE)
    config = folder / "nginx.conf"
    config.write_text(
        f"{'user root; ' if os.geteuid() == 0 else ''}daemon off; worker_processes {workers}; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log {f'{folder}/access.log combined {log}' if log else 'off'}; keepalive_requests 100000000; client_body_temp_path {folder}/body;\n"
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


async def serve_page(running: Running, port: int) -> None:
    async with running.client() as client:
        await client.create(resources.GATEWAYS, gateway(), NAMESPACE)
        for resource, obj in service("page", port):
            await client.create(resource, obj, NAMESPACE)
        made = route(0, "page")
        made["metadata"]["name"] = "page"
        made["spec"]["hostnames"] = ["page.example.com"]
        made["spec"]["rules"][0]["matches"] = [{"path": {"value": "/"}}]
        await client.create(resources.HTTP_ROUTES, made, NAMESPACE)
    await served(running.address("gateway"), "page.example.com", "/page", PAGE)


def measure_throughput(seconds: int, turns: int) -> None:
    if not (shutil.which("wrk") and (shutil.which("nginx") or Path("/usr/sbin/nginx").exists())):
        print("no wrk or no nginx here: throughput is not measured")
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        page = "server { listen 127.0.0.1:PORT; location / { root FOLDER; } }"
        origin, _ = stack.enter_context(nginx(folder / "page", 1, page))
        forward = (
            f"upstream o {{ server 127.0.0.1:{origin}; keepalive 64; }} server {{ listen 127.0.0.1:PORT; "
            'location / { proxy_pass http://o; proxy_http_version 1.1; proxy_set_header Connection ""; } }'
        )
        proxies = {"nginx, no log": stack.enter_context(nginx(folder / "proxy", 2, forward))}
        logged = "buffer=64k flush=1s"
        proxies["nginx, log"] = stack.enter_context(nginx(folder / "logging", 2, forward, log=logged))
        for name, setting in (("gateway", "true"), ("gateway, no log", "false")):
            running = stack.enter_context(Running(f"traffic.access_log={setting}"))
            asyncio.run(serve_page(running, origin))
            proxies[name] = running.address("gateway")[1], running.envoy()
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in proxies}
        for _ in range(turns):
            for name, (port, process) in proxies.items():
                results[name].append(wrk(port, seconds, process))
    # what a turn's neighbours slow down, they slow down for everybody in it: ratios are of one turn
    yardstick = [rate for rate, _ in results["nginx, no log"]]
    print(
        "\n| proxy, 2 workers | requests/s | of nginx: median (range) | CPU us/request |\n| --- | ---: | ---: | ---: |"
    )
    for name, found in results.items():
        shares = sorted(rate / best for (rate, _), best in zip(found, yardstick, strict=True))
        share = f"{statistics.median(shares):.2f} ({shares[0]:.2f} to {shares[-1]:.2f})"
        print(f"| {name} | {max(found)[0]:,.0f} | {share} | {min(cost for _, cost in found):.1f} |")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--routes", type=int, nargs="*", default=[100, 3000])
    arguments.add_argument("--changes", type=int, default=100)
    arguments.add_argument("--seconds", type=int, default=1)
    arguments.add_argument("--turns", type=int, default=9)
    chosen = arguments.parse_args()
    if chosen.changes:
        with Running() as running:
            asyncio.run(measure_changes(running, chosen.routes, chosen.changes))
    if chosen.turns:
        measure_throughput(chosen.seconds, chosen.turns)


if __name__ == "__main__":
    main()
