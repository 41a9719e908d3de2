"""kill -9 of the whole platform process under churn: no orphan process, no lost or doubled pod."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import psutil
import pytest

KUBECTL = shutil.which("kubectl", path=sysconfig.get_path("scripts"))
TURNS = 5

pytestmark = [pytest.mark.skipif(KUBECTL is None, reason="needs kubectl"), pytest.mark.slow]


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

    def processes(self) -> dict[str, list[int]]:
        """Pod name → pids of its sleeping program, for the pods of this platform's keeper."""
        found: dict[str, list[int]] = {}
        keeper = psutil.Process(int((self.data / "parts/node/run/keeper.pid").read_text()))
        for child in keeper.children(recursive=True):
            try:
                if child.cmdline() == ["sleep", "1000"] and child.status() != psutil.STATUS_ZOMBIE:
                    found.setdefault(child.environ().get("HOSTNAME", "?"), []).append(child.pid)
            except psutil.Error:
                continue
        return found


MANIFEST = {
    "apiVersion": "apps/v1",
    "kind": "StatefulSet",
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {
        "serviceName": "web",
        "podManagementPolicy": "Parallel",
        "replicas": 4,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "c", "image": "busybox", "command": ["sleep", "1000"]}],
            },
        },
    },
}


async def until(check: Any, seconds: float = 40) -> Any:
    async with asyncio.timeout(seconds):
        while not (found := await asyncio.to_thread(check)):
            await asyncio.sleep(0.1)
        return found


async def test_the_core_killed_under_churn_neither_loses_nor_doubles_a_pod(tmp_path: Path) -> None:
    core = Core(tmp_path / "data")
    await asyncio.to_thread(core.start)
    try:
        await until(lambda: core.kubectl("apply", "-f", "-", stdin=json.dumps(MANIFEST).encode()))
        for turn in range(TURNS):
            await asyncio.sleep(0.3 + 0.13 * turn)
            await asyncio.to_thread(core.kubectl, "delete", "pod", f"web-{turn % 4}", "--wait=false")
            await asyncio.to_thread(core.kubectl, "scale", "statefulset/web", f"--replicas={4 + turn % 2}")
            await asyncio.to_thread(core.kill)
            for pids in core.processes().values():
                assert len(pids) == 1
            await asyncio.to_thread(core.start)
            await until(lambda: core.kubectl("get", "--raw", "/readyz"))
        await until(lambda: core.kubectl("scale", "statefulset/web", "--replicas=4"))

        def settled() -> bool:
            pods = core.pods()
            ready = [
                pod["metadata"]["name"]
                for pod in pods
                if any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ()))
            ]
            names = {f"web-{number}" for number in range(4)}
            running = core.processes()
            return (
                set(ready) == names
                and len(pods) == 4
                and {n: len(p) for n, p in running.items()} == dict.fromkeys(names, 1)
            )

        await until(settled)
        keeper = int((core.data / "parts/node/run/keeper.pid").read_text())
        everything = [child.pid for child in psutil.Process(keeper).children(recursive=True)]
    finally:
        await asyncio.to_thread(core.stop)
    left = [
        pid
        for pid in [keeper, *everything]
        if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    ]
    assert left == []
