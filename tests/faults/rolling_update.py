"""Rolling updates under load: ``python -m tests.faults.rolling_update [replicas] [rollouts]``.

A Deployment behind a Service is rolled while clients ask it without a pause: from inside a pod through the Service's address,
and from outside through the gateway, each with a connection a request and with connections that are kept. Not one request may
be lost; one that fails is told with its reason.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from sampan.kube.client import Client
from sampan.kube.resources import DEPLOYMENTS, INGRESSES, PODS, SERVICES
from sampan.testing.platform import Platform
from tests.faults.soak import numbers

PARTS = ["kubernetes", "workloads", "node", "network", "traffic"]

INSIDE = """
import collections, http.client, json, os, socket, threading, time
address = socket.gethostbyname("web")
answers = {"new": collections.Counter(), "kept": collections.Counter()}

def once(connection):
    connection.request("GET", "/")
    answer = connection.getresponse()
    answer.read()
    return str(answer.status), answer.will_close

def new():
    while not os.path.exists("/report/stop"):
        connection = http.client.HTTPConnection(address, 80, timeout=10)
        try:
            word, _ = once(connection)
        except Exception as error:
            word = repr(error)
        connection.close()
        answers["new"][word] += 1
        time.sleep(0.002)

def kept():
    connection = None
    while not os.path.exists("/report/stop"):
        fresh = connection is None
        connection = connection or http.client.HTTPConnection(address, 80, timeout=10)
        try:
            word, closes = once(connection)
        except Exception as error:
            connection.close()
            connection = None
            # a kept connection may be closed by its server at any time: every client asks again on a new one
            if not fresh:
                continue
            word = repr(error)
        else:
            if closes:
                connection.close()
                connection = None
        answers["kept"][word] += 1
        time.sleep(0.002)

threads = [threading.Thread(target=work) for work in (new, new, kept)]
for thread in threads: thread.start()
open("/report/asking", "w").close()
for thread in threads: thread.join()
json.dump(answers, open("/report/answers.new", "w"))
os.rename("/report/answers.new", "/report/answers")
"""


@dataclass
class Report:
    """What the clients met."""

    inside: dict[str, Counter[str]] = field(default_factory=dict)
    gateway: dict[str, Counter[str]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    """Of each rollout."""

    def lost(self) -> dict[str, int]:
        """Answers that were none, by how they were asked for."""
        return {
            f"{place} {kind} {word}": count
            for place, kinds in (("inside", self.inside), ("gateway", self.gateway))
            for kind, answers in kinds.items()
            for word, count in answers.items()
            if word != "200"
        }

    def requests(self) -> int:
        return sum(sum(answers.values()) for kinds in (self.inside, self.gateway) for answers in kinds.values())


async def _ask(url: str, host: str, kept: bool, answers: Counter[str], stop: asyncio.Event) -> None:
    connector = aiohttp.TCPConnector(force_close=not kept)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=10)) as session:
        while not stop.is_set():
            try:
                async with session.get(url, headers={"Host": host}) as response:
                    await response.read()
                    word = str(response.status)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                word = repr(error)
            answers[word] += 1
            await asyncio.sleep(0.002)


class Rolling:
    """The Deployment under load."""

    def __init__(self, platform: Platform, report: Path, replicas: int) -> None:
        self.platform, self.directory, self.replicas = platform, report, replicas
        self.client = platform.get(Client)

    def container(self) -> dict[str, Any]:
        return {"name": "c", "image": "nginx", "ports": [{"containerPort": 80}]}

    async def create(self) -> None:
        labels = {"app": "web"}
        deployment = {
            "metadata": {"name": "web"},
            "spec": {
                "replicas": self.replicas,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"containers": [self.container()], "terminationGracePeriodSeconds": 5},
                },
            },
        }
        await self.client.create(DEPLOYMENTS, deployment, "default")
        service = {"metadata": {"name": "web"}, "spec": {"selector": labels, "ports": [{"port": 80}]}}
        await self.client.create(SERVICES, service, "default")
        backend = {"service": {"name": "web", "port": {"number": 80}}}
        rule = {"host": "web.test", "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}
        await self.client.create(INGRESSES, {"metadata": {"name": "web"}, "spec": {"rules": [rule]}}, "default")
        await self.settled()
        volume = {"name": "report", "hostPath": {"path": str(self.directory)}}
        asker = {
            "name": "c",
            "image": "python",
            "command": ["python", "-c", INSIDE],
            "volumeMounts": [{"name": "report", "mountPath": "/report"}],
        }
        pod = {
            "metadata": {"name": "asker"},
            "spec": {"containers": [asker], "volumes": [volume], "restartPolicy": "Never"},
        }
        await self.client.create(PODS, pod, "default")
        await self.until(lambda: (self.directory / "asking").exists())

    async def until(self, reached: Any, seconds: float = 120.0) -> None:
        ends = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < ends, "not in time"
            await asyncio.sleep(0.02)

    async def settled(self) -> None:
        """The Deployment is as wanted, all of it of the newest template."""
        ends = time.monotonic() + 120
        while True:
            found = await self.client.get(DEPLOYMENTS, "web", "default")
            status, wanted = found.get("status") or {}, found["spec"]["replicas"]
            counts = [status.get(name, 0) for name in ("replicas", "updatedReplicas", "availableReplicas")]
            if status.get("observedGeneration") == found["metadata"]["generation"] and counts == [wanted] * 3:
                return
            assert time.monotonic() < ends, status
            await asyncio.sleep(0.05)

    async def roll(self, number: int) -> float:
        began = time.monotonic()
        patch = {"spec": {"template": {"metadata": {"annotations": {"rolled": str(number)}}}}}
        await self.client.patch(DEPLOYMENTS, "web", patch, "default")
        await asyncio.sleep(0.1)
        await self.settled()
        return time.monotonic() - began

    async def scale(self, replicas: int) -> None:
        await self.client.patch(DEPLOYMENTS, "web", {"spec": {"replicas": replicas}}, "default")
        await asyncio.sleep(0.1)
        await self.settled()


async def rolled(directory: Path, replicas: int, rollouts: int) -> Report:
    """Roll (and scale down and up) under load."""
    report = Report()
    async with Platform(only=PARTS) as platform:
        rolling = Rolling(platform, directory, replicas)
        await rolling.create()
        url, stop = f"http://{platform.address('gateway')}/", asyncio.Event()
        async with aiohttp.ClientSession() as session, asyncio.timeout(20):
            while True:
                async with session.get(url, headers={"Host": "web.test"}) as response:
                    if response.status == 200:
                        break
                await asyncio.sleep(0.05)
        async with asyncio.TaskGroup() as tasks:
            for kind in ("new", "kept"):
                report.gateway[kind] = Counter()
                tasks.create_task(_ask(url, "web.test", kind == "kept", report.gateway[kind], stop))
            for number in range(rollouts):
                report.seconds.append(round(await rolling.roll(number), 1))
            await rolling.scale(max(1, replicas // 4))
            await rolling.scale(replicas)
            stop.set()
        (directory / "stop").touch()
        await rolling.until((directory / "answers").exists)
        report.inside = {
            kind: Counter(found) for kind, found in json.loads((directory / "answers").read_text()).items()
        }
    return report


def main() -> None:
    """Roll and say what was lost."""
    replicas, rollouts = numbers(20, 3)
    with tempfile.TemporaryDirectory() as folder:
        report = asyncio.run(rolled(Path(folder), replicas, rollouts))
    print(f"{replicas} replicas, rollouts of {report.seconds} s, {report.requests()} requests")
    print("lost:", report.lost() or "none")
    for place, kinds in (("inside", report.inside), ("gateway", report.gateway)):
        print(place, {kind: sum(answers.values()) for kind, answers in kinds.items()})
    if report.lost():
        raise SystemExit(1)


if __name__ == "__main__":
    main()
