"""Thousands of real watches on one API server, each a TLS connection of its own: what they cost, and how fast a write reaches all.

    python -m tests.faults.api_watches 10000

The platform runs in a process of its own. The watches are opened (a tenth of them begins with a list and a bookmark, as
informers of newer client-go do); writes go to what all of them watch, and each must reach every one, once and in order; other
requests are served meanwhile. Then they are cut off, without a word, and the server must have forgotten them all.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import aiohttp
import psutil
import uvloop
import yaml

from tests.faults.soak import numbers

MAPS = "/api/v1/namespaces/default/configmaps"
WRITES = 5
OPENING = 64
"""Watches that are opened at a time."""
_NAME = re.compile(rb'"name":"w-(\d+)"')


class Figures(NamedTuple):
    """What a run measured."""

    watches: int
    opened_per_second: float
    bytes_per_watch: float
    to_last_ms: float
    """Median over the writes, from sending one to the last watch having it."""
    get_ms: float
    """Median of gets while all watches stood."""
    forgotten: bool


class Watcher(asyncio.Protocol):
    """A client that notes which writes it was told of."""

    def __init__(self, request: bytes, loop: asyncio.AbstractEventLoop) -> None:
        self._request = request
        self._tail = b""
        self.begun: asyncio.Future[None] = loop.create_future()
        self.seen: list[int] = []
        self.reached: dict[int, float] = {}
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        if not self.begun.done():
            if not data.startswith(b"HTTP/1.1 200"):
                self.begun.set_exception(RuntimeError(data[:200].decode(errors="replace")))
            else:
                self.begun.set_result(None)
        text = self._tail + data
        for found in _NAME.finditer(text):
            self.seen.append(int(found[1]))
            self.reached[int(found[1])] = time.perf_counter()
        self._tail = text[-11:]  # one byte less than the shortest name

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        if not self.begun.done():
            self.begun.set_exception(error or ConnectionError("closed before it began"))


def context_of(kubeconfig: Path, folder: Path) -> tuple[str, ssl.SSLContext]:
    """The server's URL and a TLS context with the administrator's certificate."""
    config = yaml.safe_load(kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    pem = folder / "client.pem"
    pem.write_bytes(base64.b64decode(user["client-certificate-data"]) + base64.b64decode(user["client-key-data"]))
    context.load_cert_chain(pem)
    return str(cluster["server"]), context


async def opened(url: str, context: ssl.SSLContext, count: int) -> list[Watcher]:
    """That many watches, all begun."""
    loop = asyncio.get_running_loop()
    host, port = url.removeprefix("https://").split(":")
    watchers: list[Watcher] = []
    numbers = iter(range(count))

    async def open_some() -> None:
        for number in numbers:
            how = "resourceVersion=0"
            if number % 10 == 0:
                how = "resourceVersionMatch=NotOlderThan&sendInitialEvents=true&allowWatchBookmarks=true"
            request = f"GET {MAPS}?watch=1&{how} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
            watcher = Watcher(request, loop)
            await loop.create_connection(lambda made=watcher: made, host, int(port), ssl=context)  # type: ignore[misc]
            await watcher.begun
            watchers.append(watcher)

    async with asyncio.TaskGroup() as group:
        for _ in range(OPENING):
            group.create_task(open_some())
    return watchers


async def standing(http: aiohttp.ClientSession) -> float:
    """Watches that the server counts."""
    async with http.get("/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("apiserver_longrunning_requests{"))


async def run(data: Path, pid: int, count: int) -> Figures:
    """Open, write, cut off; raises AssertionError where something was lost, doubled or not forgotten."""
    url, context = context_of(data / "kubeconfig", data)
    core = psutil.Process(pid)
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(ssl=context)) as http:
        before = await standing(http)
        memory, began = core.memory_info().rss, time.perf_counter()
        watchers = await opened(url, context, count)
        rate = count / (time.perf_counter() - began)
        each = (core.memory_info().rss - memory) / count
        assert await standing(http) == before + count
        last: list[float] = []
        gets: list[float] = []
        for number in range(WRITES):
            began = time.perf_counter()
            async with http.post(MAPS, data=json.dumps({"metadata": {"name": f"w-{number}"}})) as answer:
                assert answer.status == 201, await answer.text()
            everywhere = False
            while not everywhere:
                assert not any(watcher.lost for watcher in watchers)
                at = time.perf_counter()
                async with http.get(f"{MAPS}/w-{number}") as answer:
                    assert answer.status == 200
                gets.append(time.perf_counter() - at)
                await asyncio.sleep(0.01)
                everywhere = all(number in watcher.reached for watcher in watchers)
            last.append(max(watcher.reached[number] for watcher in watchers) - began)
        assert all(watcher.seen == list(range(WRITES)) for watcher in watchers)
        for watcher in watchers:
            watcher.transport.abort()  # type: ignore[attr-defined]
        forgotten = False
        for _ in range(600):
            if forgotten := await standing(http) == before:
                break
            await asyncio.sleep(0.1)
        async with http.get("/readyz") as answer:
            assert await answer.text() == "ok"
        return Figures(count, rate, each, statistics.median(last) * 1e3, statistics.median(gets) * 1e3, forgotten)


def main() -> None:
    (count,) = numbers(1_000)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        command = [sys.executable, "-m", "sampan", "--data-dir", str(data)]
        subprocess.run([*command, "up", "--detach", "--only", "kubernetes", "--ports", "auto"], check=True)
        try:
            figures = uvloop.run(run(data, int((data / "lock").read_text()), count))
        finally:
            subprocess.run([*command, "down"], check=True)
    print(
        f"{figures.watches:,} watches, opened at {figures.opened_per_second:,.0f}/s, "
        f"{figures.bytes_per_watch / 1024:.0f} KiB each; a write reaches the last after {figures.to_last_ms:.0f} ms; "
        f"gets meanwhile {figures.get_ms:.1f} ms; {'all' if figures.forgotten else 'NOT all'} forgotten after the cut"
    )


if __name__ == "__main__":
    main()
