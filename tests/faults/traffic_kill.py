"""The gateway under load while Envoy, the core or both are killed: what was lost, and for how long nothing was served.

``python -m tests.faults.traffic_kill ROUNDS`` measures rounds of each and prints a table. Clients ask without pause, two on kept
connections and one on a new one each time. A kill of Envoy cuts what was under way; the outage is the longest time without a
good answer. When the core died somebody has to start it again (``sampan up``): beside the whole outage stands what passed since
that command was given.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from sampan.kernel import detached
from sampan.kernel.folder import DataDirectory
from sampan.kube.client.http import HttpClient
from tests.clients.gateway_harness import Backends, Bench, eventually, route, to
from tests.faults.soak import numbers


class Load:
    """Clients that ask without pause, note when they were served, and what went wrong."""

    def __init__(self, address: str, port: int = 80, *, host: str = "load.com", tls: bool = False) -> None:
        self._target = (address, port)
        self._host = host
        self._tls = tls
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(keep,)) for keep in (True, True, False)]
        self.served: list[float] = []
        """When (``time.monotonic``) each good answer was there."""
        self.failures: list[str] = []

    @property
    def good(self) -> int:
        """Good answers so far."""
        return len(self.served)

    def outage(self, since: float) -> float:
        """The longest time without a good answer that ended after ``since``, in seconds."""
        times = sorted(self.served)
        return max((b - a for a, b in itertools.pairwise(times) if b > since), default=0.0)

    def _connection(self) -> http.client.HTTPConnection:
        if self._tls:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            return http.client.HTTPSConnection(*self._target, timeout=10, context=context)
        return http.client.HTTPConnection(*self._target, timeout=10)

    def _run(self, keep: bool) -> None:
        connection = self._connection()
        while not self._stop.is_set():
            try:
                connection.request("GET", "/", headers={"Host": self._host})
                response = connection.getresponse()
                response.read()
                if response.status == 200:
                    self.served.append(time.monotonic())
                else:
                    self.failures.append(f"status {response.status}")
                closes = response.will_close
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                closes = True
                self._stop.wait(0.002)  # whoever comes back needs the processor
            if closes or not keep:
                connection.close()
                connection = self._connection()
        connection.close()

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        eventually(lambda: self.good > 5)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


class Command:
    """The ``sampan`` command on one data directory."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.directory = DataDirectory(data)

    def __call__(self, *arguments: str) -> str:
        environment = {**os.environ, "SAMPAN_DATA_DIR": str(self.data), "SAMPAN_PLATFORM_PORTS": "auto"}
        command = [sys.executable, "-m", "sampan", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=90)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def up(self, *arguments: str) -> None:
        """Start it; returns once it is ready."""
        self("up", "--detach", "--only", "traffic", *arguments)

    def envoy(self) -> int:
        """Envoy's process id, 0 when there is none."""
        process = detached.living(self.directory.run, "traffic-envoy")
        return process.pid if process is not None else 0

    def kill_core(self) -> None:
        """kill -9, and wait until it is gone."""
        pid = self.directory.holder()
        assert pid
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: self.directory.holder() is None)

    def address(self, name: str) -> tuple[str, int]:
        """Where a listener is."""
        found: str = json.loads(self("status", "--json"))["addresses"][name]
        host, _, port = found.partition(":")
        return host, int(port)

    def clean(self) -> None:
        """Leave nothing running, whatever happened."""
        holder = self.directory.holder()
        if holder:
            psutil.Process(holder).kill()
        detached.end_all(self.directory.run)


@contextmanager
def api(command: Command) -> Iterator[Bench]:
    """A bench on the platform of a command."""

    class Running:
        @staticmethod
        def client() -> HttpClient:
            return HttpClient.from_kubeconfig(command.directory.kubeconfig)

    backends = Backends()
    made = Bench(Running(), backends)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        backends.close()


class Round(NamedTuple):
    """One kill."""

    asked: int
    failed: int
    outage: float
    """Seconds."""
    since_start: float
    """What of it passed since `sampan up`, where both were killed."""


def kill(what: str, command: Command, address: str) -> Round:
    """Kill ``envoy``, ``core`` or ``both`` under load, and bring the core back where it died."""
    with Load(address) as load:
        time.sleep(0.3)
        killed = started = time.monotonic()
        if what == "envoy":
            os.kill(command.envoy(), signal.SIGKILL)
        else:
            envoy = command.envoy()
            command.kill_core()
            if what == "both":
                os.kill(envoy, signal.SIGKILL)
            time.sleep(0.2)
            started = time.monotonic()
            command.up()
        before = load.good
        eventually(lambda: load.good > before + 20)
        time.sleep(0.3)
    outage = load.outage(killed)
    return Round(
        load.good, len(load.failures), outage, max(0.0, outage - (started - killed)) if what == "both" else 0.0
    )


def answering(gw: Bench, name: str) -> tuple[str, str]:
    """The namespace and the address of a Gateway that answers from a Service ``v1``."""
    ns = gw.namespace(name)
    gw.service(ns, "v1")
    address = gw.gateway(ns, "gw")
    gw.route(route(ns, "r", "gw", [{"backendRefs": to("v1")}]))
    gw.until(lambda: gw.ask(address).backend == "v1")
    return ns, address


def main(rounds: int) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        command = Command(Path(folder, "data"))
        try:
            command.up()
            with api(command) as gw:
                _, address = answering(gw, "kill")
                gw.close()
                print(
                    f"{'killed':8}{'rounds':>8}{'asked':>9}{'failed':>8}{'outage ms: median':>20}{'worst':>8}{'since up':>12}{'worst':>8}"
                )
                for what in ("envoy", "core", "both"):
                    done = [kill(what, command, address) for _ in range(rounds)]
                    figures: list[Any] = []
                    for values in ([one.outage for one in done], [one.since_start for one in done]):
                        figures += [statistics.median(values) * 1000, max(values) * 1000]
                    asked, failed = sum(one.asked for one in done), sum(one.failed for one in done)
                    print(
                        f"{what:8}{rounds:8}{asked:9}{failed:8}{figures[0]:20.0f}{figures[1]:8.0f}"
                        f"{figures[2]:12.0f}{figures[3]:8.0f}",
                        flush=True,
                    )
            command("down")
        finally:
            command.clean()


if __name__ == "__main__":
    main(*numbers(5))
