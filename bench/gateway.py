"""The gateway: how soon a changed route is served, and what a request costs beside nginx.

Run ``python bench/gateway.py``. The first table is the time from sending a change of one HTTPRoute to the API until it is stored,
and until the first request is sent that the new backend answers, with few and with many routes. Who sends, who watches and who
answers are processes of their own that do little else. Below it stand what the machine allows at best: a synced append, and a
change that an Envoy with as many routes is told straight away, without an API.

The second needs ``nginx`` and ``wrk``: both proxies, two workers each, in turns in front of one nginx that serves a page of 100
bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import multiprocessing
import os
import selectors
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import psutil

from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.kube.client import resources as core
from sampan.kube.client.config import from_kubeconfig
from sampan.kube.client.http import HttpClient
from sampan.kube.objects import Object
from sampan.parts.traffic import resources
from sampan.parts.traffic.envoy.build import Builder
from sampan.parts.traffic.envoy.process import Envoy
from sampan.parts.traffic.model import (
    Backend,
    Endpoint,
    Forward,
    Listener,
    Match,
    Model,
    PathMatch,
    Rule,
    Target,
)
from sampan.parts.traffic.xds.server import ControlPlane

SOURCE = Path(__file__).resolve().parents[1] / "src"
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
NAMESPACE = "default"
SPAWN = multiprocessing.get_context("spawn")
PAGE = b"x" * 100
PAUSE = 0.0005
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


class Page:
    """Backends that answer with their names, in a process of their own."""

    def __init__(self, *names: str) -> None:
        ours, theirs = multiprocessing.Pipe()
        self._process = SPAWN.Process(target=_serve_pages, args=(theirs, names), daemon=True)
        self._process.start()
        self.ports: dict[str, int] = ours.recv()

    def close(self) -> None:
        self._process.kill()
        self._process.join()


def _serve_pages(pipe: Connection, names: Sequence[str]) -> None:
    gc.disable()
    chosen = selectors.DefaultSelector()
    ports = {}
    for name in names:
        listener = socket.create_server(("127.0.0.1", 0))
        ports[name] = listener.getsockname()[1]
        body = name.encode()
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        chosen.register(listener, selectors.EVENT_READ, (True, answer))
    pipe.send(ports)
    while True:
        for key, _ in chosen.select():
            listens, answer = key.data
            ready = key.fileobj
            assert isinstance(ready, socket.socket)
            if listens:
                connection, _ = ready.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                chosen.register(connection, selectors.EVENT_READ, (False, answer))
                continue
            try:
                asked = ready.recv(65536)
            except ConnectionError:
                asked = b""
            if asked:
                ready.sendall(answer)
            else:
                chosen.unregister(ready)
                ready.close()


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


class Watcher:
    """Asks again and again, in a process of its own, until the answer is the one waited for."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = SPAWN.Process(target=_watch, args=(theirs, address), daemon=True)
        self._process.start()
        self._pipe.recv()

    def begin(self, host: str, path: str, body: str) -> None:
        self._pipe.send((host, path, body.encode()))

    def seen(self) -> float:
        """When (``time.perf_counter``) the first request was sent that was answered so."""
        if not self._pipe.poll(20):
            raise TimeoutError("the change was not served in 20 s")
        when: float = self._pipe.recv()
        return when

    def close(self) -> None:
        self._process.kill()
        self._process.join()


def _watch(pipe: Connection, address: tuple[str, int]) -> None:
    gc.disable()
    with Browser(address) as browser:
        pipe.send("ready")
        while True:
            host, path, body = pipe.recv()
            sent = time.perf_counter()
            while browser.ask(host, path) != body:
                time.sleep(PAUSE)
                sent = time.perf_counter()
            pipe.send(sent)


class Editor:
    """Patches objects over one connection of its own, with nothing of a client around it."""

    def __init__(self, kubeconfig: Path) -> None:
        config = from_kubeconfig(kubeconfig)
        where = urlsplit(config.server)
        assert where.hostname is not None
        plain = socket.create_connection((where.hostname, where.port or 443))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket: socket.socket = plain
        if config.tls is not None:
            self._socket = config.tls.wrap_socket(plain, server_hostname=where.hostname)
        token = f"Authorization: Bearer {config.token}\r\n" if config.token else ""
        self._head = f"Host: {where.netloc}\r\n{token}Content-Type: application/merge-patch+json\r\n"

    def request(self, path: str, change: Object) -> bytes:
        body = json.dumps(change)
        return f"PATCH {path} HTTP/1.1\r\n{self._head}Content-Length: {len(body)}\r\n\r\n{body}".encode()

    def send(self, request: bytes) -> None:
        """Returns when the API has answered."""
        self._socket.sendall(request)
        head, _, body = self._socket.recv(65536).partition(b"\r\n\r\n")
        if b" 200 " not in head.partition(b"\r\n")[0]:
            raise RuntimeError(head.decode())
        size = next(
            int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
        )
        while len(body) < size:
            body += self._socket.recv(65536)

    def close(self) -> None:
        self._socket.close()


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


def changes(editor: Editor, watcher: Watcher, routes: int, count: int) -> list[Change]:
    """Changes of single routes, all over them, one every 50 ms."""
    taken = []
    for turn in range(count):
        number = turn * 37 % routes
        for backend in ("b", "a"):
            path = f"/apis/gateway.networking.k8s.io/v1/namespaces/{NAMESPACE}/httproutes/r{number}"
            request = editor.request(path, {"spec": route(number, backend)["spec"]})
            watcher.begin(f"h{number % 50}.example.com", f"/p{number}", backend)
            time.sleep(0.05)
            began = time.perf_counter()
            editor.send(request)
            answered = time.perf_counter() - began
            taken.append(Change(answered, watcher.seen() - began))
    return taken


def percentile(values: list[float], part: float) -> str:
    """In milliseconds; the 100th is the worst."""
    return f"{sorted(values)[min(len(values) - 1, int(len(values) * part / 100))] * 1000:.1f}"


async def make_routes(running: Running, there: int, size: int, ports: Mapping[str, int]) -> None:
    """``size`` routes, of which some are there already."""
    async with running.client() as client:
        if not there:
            for name, port in ports.items():
                for resource, obj in service(name, port):
                    await client.create(resource, obj, NAMESPACE)
            await client.create(resources.GATEWAYS, gateway(), NAMESPACE)
        for first in range(there, size, 20):
            batch = range(first, min(first + 20, size))
            await asyncio.gather(*(client.create(resources.HTTP_ROUTES, route(n, "a"), NAMESPACE) for n in batch))
    await served(running.address("gateway"), f"h{(size - 1) % 50}.example.com", f"/p{size - 1}", b"a")


def measure_changes(sizes: list[int], count: int) -> None:
    with ExitStack() as stack:
        running = stack.enter_context(Running())
        page = stack.enter_context(contextlib.closing(Page("a", "b")))
        print(
            "| ms: median / p99 (worst) | stored (the API answered) | served | served after stored |\n| --- | ---: | ---: | ---: |"
        )
        there, watcher, editor = 0, None, None
        for size in sizes:
            asyncio.run(make_routes(running, there, size, page.ports))
            there = size
            if watcher is None or editor is None:
                watcher = stack.enter_context(contextlib.closing(Watcher(running.address("gateway"))))
                editor = stack.enter_context(contextlib.closing(Editor(running.data / "kubeconfig")))
            time.sleep(3)
            gc.disable()
            taken = changes(editor, watcher, size, count)
            gc.enable()
            stored, shown = [one.answered for one in taken], [one.served for one in taken]
            after = [max(0.0, one.served - one.answered) for one in taken]
            print(f"| {size} routes | {' | '.join(figures(one) for one in (stored, shown, after))} |", flush=True)
            told = asyncio.run(told_straight(size, count, page.ports))
            print(f"| floor: Envoy told of {size} routes straight away | | {figures(told)} | |", flush=True)
        appended = appends(running.data / "bench", count)
        print(f"| floor: 4 KiB appended and synced | {figures(appended)} | | |")


def figures(values: list[float]) -> str:
    return f"{percentile(values, 50)} / {percentile(values, 99)} ({percentile(values, 100)})"


async def told_straight(size: int, count: int, ports: Mapping[str, int]) -> list[float]:
    """Seconds from telling an Envoy of a changed route, ready to be sent, until the first request that is answered by it."""
    port = free_port()
    listener = Listener("bench", "http", "127.0.0.1", port, "HTTP")
    backends = {name: Backend(name, (Endpoint("127.0.0.1", number),)) for name, number in ports.items()}

    def rule(number: int, backend: str) -> Rule:
        return Rule(Match(PathMatch("Prefix", f"/p{number}")), Forward((Target(backend),)), name="bench")

    rules = [rule(number, "a") for number in range(size)]
    for number, one in enumerate(rules):
        listener.host(f"h{number % 50}.example.com").add([one])
    taken = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        builder, clock = Builder(folder / "gate.sock"), Clock()
        async with Tasks(clock) as tasks:
            envoy = Envoy(folder, clock, run=folder, node_id="bench", concurrency=2, outlive=False)
            envoy.metrics = ("127.0.0.1", free_port())
            await envoy.find()
            plane = ControlPlane(
                envoy.xds_socket,
                clock,
                tasks,
                on_load=lambda _: None,
                on_access=lambda *_: None,
                load_interval=0.5,
            )
            await plane.start()
            await envoy.start(tasks)
            await plane.wait_connected()
            await plane.publish(builder.build(Model([listener], backends)))
            await served(("127.0.0.1", port), "h0.example.com", "/p0", b"a")
            watcher = stack.enter_context(contextlib.closing(Watcher(("127.0.0.1", port))))
            gc.disable()
            for turn in range(count):
                number = turn * 37 % size
                for backend in ("b", "a"):
                    host = listener.host(f"h{number % 50}.example.com")
                    host.remove([rules[number]])
                    rules[number] = rule(number, backend)
                    host.add([rules[number]])
                    snapshot = builder.build(Model([listener], backends))
                    watcher.begin(host.domain, f"/p{number}", backend)
                    await asyncio.sleep(0.05)
                    began = time.perf_counter()
                    await plane.publish(snapshot)
                    taken.append(watcher.seen() - began)
            gc.enable()
            await envoy.stop()
            await plane.stop()
    return taken


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
        measure_changes(chosen.routes, chosen.changes)
    if chosen.turns:
        measure_throughput(chosen.seconds, chosen.turns)


if __name__ == "__main__":
    main()
