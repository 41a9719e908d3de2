"""kill -9 of one process after the other while comments flow through the danmaku application, and the account afterwards.

Comments go gateway → web pod → topic → source → broker → function → broker → a collector of ours. Whoever is answered 202 was
promised delivery. Meanwhile the processes die in turn: the core (brought up again at once), messaging, Envoy, the web pod, a
function pod, the process that keeps the pods. In the end everything accepted must have come to the collector, or, where somebody
was away for longer than all the retries, to the dead-letter sink.

``python -m tests.faults.eventing_kill EVENTS KILLS`` runs it as a soak; the suite has a short one.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from aiohttp import web

from sampan.cli.demo import SHARED_PORTS
from tests.faults.soak import numbers

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "danmaku"
VICTIMS = ("messaging", "envoy", "function", "core", "web", "keeper")
SPEAKERS = 16
PATIENCE = 120.0
"""Seconds the last events get to arrive, platform time being helped along."""


@dataclass
class Account:
    """What was promised and what was kept."""

    said: int = 0
    accepted: set[str] = field(default_factory=set)
    arrived: dict[str, int] = field(default_factory=dict)
    letters: set[str] = field(default_factory=set)
    """What came to the dead-letter sink."""
    kills: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def lost(self) -> set[str]:
        return self.accepted - self.arrived.keys() - self.letters

    @property
    def twice(self) -> int:
        return sum(1 for count in self.arrived.values() if count > 1)

    def __str__(self) -> str:
        return (
            f"{self.said} said, {len(self.accepted)} accepted, {len(self.lost)} lost, {self.twice} more than once, "
            f"{len(self.letters - self.arrived.keys())} to the dead-letter sink, "
            f"{len(self.kills)} kills ({', '.join(self.kills)}), {self.seconds:.0f} s"
        )


class World:
    """A platform of its own with the application on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SAMPAN_DATA_DIR": str(folder), "KUBECONFIG": str(folder / "kubeconfig")}

    def sampan(self, *arguments: str) -> str:
        return self._run(sys.executable, "-m", "sampan", *arguments)

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        return self._run("kubectl", *arguments, given=given)

    def _run(self, *command: str, given: str | None = None, codes: tuple[int, ...] = (0,)) -> str:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, env=self.environment, input=given, check=False
        )
        if done.returncode not in codes:
            raise RuntimeError(f"{' '.join(command[-6:])}: {done.stderr.strip()}")
        return done.stdout

    def up(self) -> None:
        self.sampan("up", "-d", "--ports", "auto")

    def build(self) -> None:
        for image in ("web", "moderate"):
            self.sampan("image", "build", str(EXAMPLE / image), "-t", f"danmaku-{image}")

    def named(self) -> bool:
        """Pods find the cluster's names."""
        found = self.kubectl("get", "nodes", "-o", "jsonpath={..conditions[?(@.type=='PodIsolation')].message}")
        return SHARED_PORTS not in found

    def deploy(self, collector: str) -> None:
        self.kubectl("apply", "-f", str(EXAMPLE / "danmaku.yaml"))
        collect = {
            "apiVersion": "eventing.knative.dev/v1",
            "kind": "Trigger",
            "metadata": {"name": "collect"},
            "spec": {
                "broker": "danmaku",
                "filters": [{"exact": {"type": "danmaku.comment.approved"}}],
                "subscriber": {"uri": collector},
            },
        }
        self.kubectl("apply", "-f", "-", given=json.dumps(collect))
        delivery = {"spec": {"delivery": {"deadLetterSink": {"ref": None, "uri": f"{collector}letters"}}}}
        self.kubectl("patch", "broker", "danmaku", "--type", "merge", "-p", json.dumps(delivery))
        for what in ("ksvc/moderate", "broker/danmaku", "rocketmqsource/danmaku", "sinkbinding/danmaku-web"):
            self.kubectl("wait", "--for=condition=Ready", "--timeout=50s", what)
        for name in ("moderate", "show", "collect"):
            self.kubectl("wait", "--for=condition=Ready", "--timeout=50s", f"trigger/{name}")
        self.kubectl("rollout", "status", "deployment/danmaku-web", "--timeout=50s")

    def status(self) -> dict[str, Any]:
        # 1: a part is coming back from the kill before
        found: dict[str, Any] = json.loads(self._run(sys.executable, "-m", "sampan", "status", "--json", codes=(0, 1)))
        return found

    def victim(self, kind: str) -> int:
        """The process to kill; 0: there is none now."""
        if kind in ("core", "messaging", "envoy"):
            status = self.status()
            parts = {part["name"]: part for part in status["parts"]}
            pid = {
                "core": status["pid"],
                "messaging": parts["messaging"]["process"],
                "envoy": parts["traffic"]["facts"].get("envoy"),
            }[kind]
            return int(pid or 0)
        keeper = int((self.folder / "parts/node/run/keeper.pid").read_text())
        if kind == "keeper":
            return keeper
        variable = "K_SINK" if kind == "web" else "K_SERVICE"
        for process in psutil.Process(keeper).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "app.py" in " ".join(process.cmdline()) and variable in process.environ():
                    return process.pid
        return 0


async def settled(condition: Callable[[], Awaitable[bool]], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if await condition():
            return True
        await asyncio.sleep(0.25)
    return False


async def soak(folder: Path, events: int, kills: int, say: Callable[[str], None] = print) -> Account:
    """Play ``events`` comments while ``kills`` processes die.

    Raises:
        RuntimeError: the application never worked.
        NotImplementedError: pods do not find the cluster's names here.
    """
    world, account, began = World(folder), Account(), time.monotonic()
    await asyncio.to_thread(world.build)
    await asyncio.to_thread(world.up)
    try:
        if not await asyncio.to_thread(world.named):
            raise NotImplementedError("pods do not find the cluster's names here")
        async with collector(account) as url, aiohttp.ClientSession() as session:
            await asyncio.to_thread(world.deploy, url)
            await _play(world, account, session, events, kills, say)

            async def complete() -> bool:
                if account.lost:
                    # what was in somebody's hands at a kill comes again when its lease has ended
                    await asyncio.to_thread(world.sampan, "clock", "jump", "31s")
                    await asyncio.sleep(1)
                return not account.lost

            if not await settled(complete, PATIENCE):
                say(f"lost: {sorted(account.lost)[:20]}")
                logged = [line for line in world.sampan("logs", "-n", "100000").splitlines() if "eventing" in line]
                say("\n".join(line for line in logged if "dropped" in line or "fail" in line)[-4000:])
    finally:
        await asyncio.to_thread(world.sampan, "down")
    account.seconds = time.monotonic() - began
    return account


@contextlib.asynccontextmanager
async def collector(account: Account):  # type: ignore[no-untyped-def]
    """A subscriber outside of the platform that counts what comes."""

    async def take(request: web.BaseRequest) -> web.Response:
        said = json.loads(await request.read())
        if request.path == "/letters":
            account.letters.add((json.loads(base64.b64decode(said["Body"])) if "Body" in said else said)["text"])
        else:
            account.arrived[said["text"]] = account.arrived.get(said["text"], 0) + 1
        return web.Response(status=202)

    runner = web.ServerRunner(web.Server(take))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    try:
        yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/"  # type: ignore[attr-defined]
    finally:
        await runner.cleanup()


async def _play(
    world: World, account: Account, session: aiohttp.ClientSession, events: int, kills: int, say: Callable[[str], None]
) -> None:
    address = (await asyncio.to_thread(world.status))["addresses"]["gateway"]
    numbers = itertools.count()

    async def speak() -> None:
        """One visitor: says a comment until it is accepted, then the next one."""
        while len(account.accepted) < events:
            number = f"n{next(numbers)}"
            account.said += 1
            body = json.dumps({"user": "soak", "text": number, "colour": "#fff"})
            try:
                async with asyncio.timeout(20), session.post(f"http://{address}/comments", data=body) as answer:
                    if answer.status == 202:
                        account.accepted.add(number)
            except (aiohttp.ClientError, TimeoutError):
                pass  # not accepted: nothing was promised
            if number not in account.accepted:
                await asyncio.sleep(0.1)

    speakers = [asyncio.create_task(speak()) for _ in range(SPEAKERS)]
    for number in range(kills):
        due = events * (number + 1) // (kills + 1)
        while len(account.accepted) < due and not all(one.done() for one in speakers):
            await asyncio.sleep(0.02)
        kind = VICTIMS[number % len(VICTIMS)]
        pid = await asyncio.to_thread(world.victim, kind)
        if pid:
            os.kill(pid, signal.SIGKILL)
            account.kills.append(kind)
        if kind == "core":
            await asyncio.to_thread(world.up)
        say(f"{len(account.accepted)} accepted, {len(account.arrived)} arrived, killed {kind} {pid}")
    await asyncio.gather(*speakers)


def main(events: int, kills: int) -> int:
    with tempfile.TemporaryDirectory(prefix="sampan-soak-") as name:
        account = asyncio.run(soak(Path(name), events, kills))
    print(account)
    return 1 if account.lost else 0


if __name__ == "__main__":
    sys.exit(main(*numbers(10_000, 12)))
