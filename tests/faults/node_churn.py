"""kill -9 of the platform, the keeper and the zygote under churn: ``python -m tests.faults.node_churn [turns] [seed]``.

A StatefulSet whose programs hold a lock file of their identity for as long as they live (a second holder leaves a note), and a
Deployment, are deleted from, scaled and rolled while one process after another is killed. At the end every pod must be there
once and run once, nothing else may run, and nobody may have met a second holder of its identity.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.faults.soak import numbers

KUBECTL = shutil.which("kubectl", path=sysconfig.get_path("scripts"))
REPLICAS = 4
STATELESS = 3
VICTIMS = ("core", "keeper", "zygote")

HOLDER = """
import fcntl, os, time
name = os.environ["HOSTNAME"]
lock = open("/identities/" + name, "w")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    open("/identities/twice", "a").write(name + "\\n")
time.sleep(1000)
"""


@dataclass
class Report:
    """What happened."""

    turns: int = 0
    kills: dict[str, int] = field(default_factory=dict)
    starts: int = 0
    """Programs that held an identity in the end."""
    twice: list[str] = field(default_factory=list)
    """Identities that were held twice."""
    doubled: list[str] = field(default_factory=list)
    """Pods found with more than one program."""
    orphans: list[str] = field(default_factory=list)
    """Processes left at the end."""
    settled: float = 0.0
    """Seconds from the last kill until all was as asked."""


class Core:
    """One platform process, killed and started again on the same data."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "sampan", "up", "--ports", "auto", "--only", "kubernetes,node,workloads"]
        with (self.data.parent / "up.log").open("ab") as log:
            self.process = subprocess.Popen([*command, "--data-dir", str(self.data)], stdout=log, stderr=log)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)

    def kubectl(self, *args: str, stdin: bytes = b"") -> str:
        """What kubectl prints; "" where it fails."""
        assert KUBECTL is not None
        environment = {**os.environ, "KUBECONFIG": str(self.data / "kubeconfig")}
        done = subprocess.run(
            [KUBECTL, *args], input=stdin, env=environment, capture_output=True, check=False, timeout=30
        )
        return done.stdout.decode() if done.returncode == 0 else ""

    def pods(self) -> list[dict[str, Any]]:
        listed = self.kubectl("get", "pods", "-o", "json")
        items: list[dict[str, Any]] = json.loads(listed)["items"] if listed else []
        return items

    def keeper(self) -> psutil.Process | None:
        try:
            return psutil.Process(int((self.data / "parts/node/run/keeper.pid").read_text()))
        except (OSError, ValueError, psutil.Error):
            return None

    def programs(self) -> dict[str, list[str]]:
        """Pod name → its containers with living processes, wherever these hang, by this node's cgroups."""
        run = self.data / "parts/node/run"
        node = f"/sampan-{hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:10]}/"
        found: dict[str, set[str]] = {}
        for pid in psutil.pids():
            try:
                groups = Path(f"/proc/{pid}/cgroup").read_text()
                if node not in groups or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                    continue
                uid, _, container = groups.partition(node)[2].partition("\n")[0].partition("/")
                if container in ("", "pause"):
                    continue
                spec = json.loads((run / "pods" / uid / "containers" / container / "spec.json").read_bytes())
                found.setdefault(spec["env"]["HOSTNAME"], set()).add(container)
            except (OSError, psutil.Error):
                continue
        return {name: sorted(containers) for name, containers in found.items()}

    def zygotes(self) -> list[psutil.Process]:
        keeper = self.keeper()
        if keeper is None:
            return []
        try:
            return [child for child in keeper.children() if any("zygote.py" in word for word in child.cmdline())]
        except psutil.Error:
            return []


def manifests(identities: Path) -> bytes:
    def workload(kind: str, name: str, replicas: int, container: dict[str, Any], **spec: Any) -> dict[str, Any]:
        return {
            "apiVersion": "apps/v1",
            "kind": kind,
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name}},
                    "spec": {
                        "terminationGracePeriodSeconds": 1,
                        "containers": [{"name": "c", **container}],
                        "volumes": [{"name": "identities", "hostPath": {"path": str(identities)}}],
                    },
                },
                **spec,
            },
        }

    mounts = [{"name": "identities", "mountPath": "/identities"}]
    holder = {"image": "python:3.12", "command": ["python", "-c", HOLDER], "volumeMounts": mounts}
    sleeper = {"image": "busybox", "command": ["sleep", "1000"]}
    items = [
        workload("StatefulSet", "web", REPLICAS, holder, serviceName="web", podManagementPolicy="Parallel"),
        workload("Deployment", "api", STATELESS, sleeper),
    ]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items}).encode()


async def until(check: Any, what: str, seconds: float = 60) -> Any:
    try:
        async with asyncio.timeout(seconds):
            while not (found := await asyncio.to_thread(check)):
                await asyncio.sleep(0.1)
            return found
    except TimeoutError:
        raise AssertionError(f"not within {seconds} s: {what}") from None


def as_asked(core: Core) -> bool:
    """Every pod is there once, Ready, and runs once."""
    pods = core.pods()
    ready = [
        pod["metadata"]["name"]
        for pod in pods
        if not pod["metadata"].get("deletionTimestamp")
        and any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ()))
    ]
    names = {f"web-{number}" for number in range(REPLICAS)}
    return (
        len(ready) == len(pods) == REPLICAS + STATELESS
        and names <= set(ready)
        and {name: len(pids) for name, pids in core.programs().items()} == dict.fromkeys(ready, 1)
    )


async def churn(directory: Path, turns: int, seed: int = 0) -> Report:
    """Churn, kill, and look; raises AssertionError where the platform does not come back to what was asked."""
    chance, report = random.Random(seed), Report()
    core, identities = Core(directory / "data"), directory / "identities"
    identities.mkdir()
    await asyncio.to_thread(core.start)
    everything: list[psutil.Process] = []
    try:
        await until(lambda: core.kubectl("get", "--raw", "/readyz"), "the platform is up")
        await until(
            lambda: core.kubectl("apply", "-f", "-", stdin=manifests(identities)),
            "the manifests are applied",
        )
        for turn in range(turns):
            await asyncio.sleep(chance.uniform(0.1, 1.0))
            await asyncio.to_thread(core.kubectl, "delete", "pod", f"web-{chance.randrange(REPLICAS)}", "--wait=false")
            match turn % 3:
                case 0:
                    await asyncio.to_thread(core.kubectl, "scale", "statefulset/web", f"--replicas={REPLICAS + 1}")
                case 1:
                    await asyncio.to_thread(core.kubectl, "rollout", "restart", "deployment/api")
                case 2:
                    await asyncio.to_thread(core.kubectl, "scale", "statefulset/web", f"--replicas={REPLICAS}")
            await asyncio.sleep(chance.uniform(0.0, 0.6))
            victim = VICTIMS[turn % len(VICTIMS)] if turn else "core"
            report.kills[victim] = report.kills.get(victim, 0) + 1
            report.turns += 1
            if victim == "core":
                await asyncio.to_thread(core.kill)
                report.doubled += [name for name, pids in core.programs().items() if len(pids) > 1]
                await asyncio.to_thread(core.start)
                await until(lambda: core.kubectl("get", "--raw", "/readyz"), "the platform is up again")
            elif victim == "keeper":
                keeper = core.keeper()
                if keeper is not None:
                    keeper.kill()
            else:
                for zygote in core.zygotes():
                    zygote.kill()
            report.doubled += [name for name, pids in (await asyncio.to_thread(core.programs)).items() if len(pids) > 1]
        began = time.monotonic()
        await until(lambda: core.kubectl("scale", "statefulset/web", f"--replicas={REPLICAS}"), "scaled back")
        await until(lambda: as_asked(core), "everything is as asked")
        report.settled = time.monotonic() - began
        report.starts = sum(len(pids) for pids in core.programs().values())
        keeper = core.keeper()
        everything = [keeper, *keeper.children(recursive=True)] if keeper is not None else []
    finally:
        await asyncio.to_thread(core.stop)
    for process in everything:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                report.orphans.append(" ".join(process.cmdline()) or str(process.pid))
        except psutil.Error:
            continue
    report.orphans += [f"{name}: {pids}" for name, pids in core.programs().items()]
    notes = identities / "twice"
    report.twice = notes.read_text().split() if notes.exists() else []
    return report


def main() -> None:
    """Churn and say what happened."""
    turns, seed = numbers(20, 0)
    with tempfile.TemporaryDirectory() as folder:
        report = asyncio.run(churn(Path(folder), turns, seed))
    print(report)
    if report.twice or report.doubled or report.orphans:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
