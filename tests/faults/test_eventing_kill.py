"""kill -9 of messaging and of the core while events come in: every accepted event is delivered at least once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp

from sampan.parts.eventing.resources import BROKERS, TRIGGERS
from tests.clients.eventing_harness import receiver

EVENTS = 1200
"""Sent in three thirds; a process is killed in the middle of the first two."""


def sampan(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "SAMPAN_DATA_DIR": str(folder)}
    command = [sys.executable, "-m", "sampan", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=90, env=environment).stdout


def status_of(folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "sampan", "status", "--json"]
    environment = {**os.environ, "SAMPAN_DATA_DIR": str(folder)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=90, env=environment)
    # 1: a part is coming back from the kill before
    assert done.returncode in (0, 1), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def up(folder: Path) -> None:
    chosen = ("--only", "eventing", "--without", "node,network,traffic,serving,workloads")
    sampan(folder, "up", "-d", "--ports", "auto", *chosen)


def process_of(folder: Path, part: str) -> int:
    parts = status_of(folder)["parts"]
    found = parts[part] if isinstance(parts, dict) else next(one for one in parts if one["name"] == part)
    pid: int = found["process"]
    return pid


async def declare(folder: Path, sink: str) -> None:
    from sampan.kube.client.http import HttpClient
    from tests.clients.eventing_harness import ready

    async with HttpClient.from_kubeconfig(folder / "kubeconfig") as client:
        for resource, kind, spec in (
            (BROKERS, "Broker", {}),
            (TRIGGERS, "Trigger", {"broker": "sturdy", "subscriber": {"uri": sink}}),
        ):
            body: dict[str, Any] = {
                "apiVersion": "eventing.knative.dev/v1",
                "kind": kind,
                "metadata": {"name": "sturdy"},
                "spec": spec,
            }
            await client.create(resource, body, "default")
            await ready(client, resource, "sturdy")


async def test_what_was_accepted_is_delivered_whatever_process_dies(tmp_path: Path) -> None:
    accepted: set[str] = set()
    await asyncio.to_thread(up, tmp_path)
    try:
        async with receiver() as sink, aiohttp.ClientSession() as session:
            await declare(tmp_path, sink.url)
            pending = iter(range(EVENTS))

            async def produce(until: int) -> None:
                """One producer: sends until the count is reached; what fails was not accepted."""
                address = (await asyncio.to_thread(status_of, tmp_path))["addresses"]
                url = f"http://{address['eventing.ingress']}/default/sturdy"
                for number in pending:
                    headers = {"ce-specversion": "1.0", "ce-id": str(number), "ce-type": "t", "ce-source": "/s"}
                    try:
                        async with session.post(url, headers=headers) as response:
                            if response.status == 202:
                                accepted.add(str(number))
                    except aiohttp.ClientError:
                        await asyncio.sleep(0.01)
                    if number >= until:
                        return

            for part in ("messaging", "kubernetes"):
                third = EVENTS // 3 * (1 if part == "messaging" else 2)
                producers = [asyncio.create_task(produce(third)) for _ in range(8)]
                while len(accepted) < third - EVENTS // 6 and not all(one.done() for one in producers):
                    await asyncio.sleep(0.005)
                os.kill(await asyncio.to_thread(process_of, tmp_path, part), signal.SIGKILL)
                await asyncio.wait(producers)
                if part == "kubernetes":
                    await asyncio.to_thread(up, tmp_path)
            await asyncio.gather(*(produce(EVENTS) for _ in range(8)))
            assert len(accepted) > EVENTS // 3

            def missing() -> set[str]:
                return accepted - {str(one["id"]) for one in sink.events}

            async with asyncio.timeout(90):
                while missing():
                    await asyncio.sleep(1)
                    # what was in somebody's hands when the process died comes again when its lease has ended
                    await asyncio.to_thread(sampan, tmp_path, "clock", "jump", "31s")
    finally:
        await asyncio.to_thread(sampan, tmp_path, "down")
