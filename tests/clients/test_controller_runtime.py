"""An operator built with controller-runtime, as its users build theirs, against the platform."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sampan.kube.client.http import HttpClient
from sampan.kube.objects import Object, Resource
from sampan.kube.resources import CONFIG_MAPS, CUSTOM_RESOURCE_DEFINITIONS, DEPLOYMENTS, LEASES
from sampan.testing import Platform

HERE = Path(__file__).parent / "controller_runtime"
BOATS = Resource("judge.sampan.dev", "v1", "boats")
UNREACHABLE = ("no such host", "connection refused", "i/o timeout", "network is unreachable", "dial tcp")
DEFINITION: Object = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "boats.judge.sampan.dev"},
    "spec": {
        "group": BOATS.group,
        "names": {"kind": "Boat", "listKind": "BoatList", "plural": "boats", "singular": "boat"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "properties": {"rowers": {"type": "integer", "minimum": 0, "default": 1}},
                            },
                            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                        },
                    }
                },
            }
        ],
    },
}


class Operator:
    """The running program and what it has told so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.told: list[dict[str, Any]] = []

    async def until(self, truth: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first thing it tells that satisfies ``truth``, told already or not."""
        for fact in self.told:
            if truth(fact):
                return fact
        assert self.process.stdout is not None
        async with asyncio.timeout(30):
            while line := await self.process.stdout.readline():
                self.told.append(json.loads(line))
                if truth(self.told[-1]):
                    return self.told[-1]
        raise AssertionError(f"the operator ended; it told {self.told}")

    async def until_told(self, what: str, **facts: Any) -> dict[str, Any]:
        """Wait until it tells this."""
        return await self.until(lambda fact: fact["what"] == what and facts.items() <= fact.items())


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import subprocess

    if shutil.which("go") is None:
        pytest.skip("Go is not installed")
    binary = tmp_path_factory.mktemp("judge") / "judge"
    built = subprocess.run(
        ["go", "build", "-o", str(binary), "."],
        cwd=HERE,
        env={**os.environ, "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=400,
    )
    if built.returncode and any(sign in built.stdout for sign in UNREACHABLE):
        pytest.skip("go reaches no module proxy")
    assert built.returncode == 0, built.stdout
    return binary


@asynccontextmanager
async def operator(program: Path, platform: Platform, namespace: str, errors: Path) -> AsyncIterator[Operator]:
    with errors.open("ab") as stream:
        process = await asyncio.create_subprocess_exec(
            str(program),
            namespace,
            env={**os.environ, "KUBECONFIG": str(platform.kubeconfig)},
            stdout=asyncio.subprocess.PIPE,
            stderr=stream,
        )
    running = Operator(process)
    try:
        yield running
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.wait()
        if running.process.stdout is not None:
            await running.process.stdout.read()


async def boat(client: HttpClient, truth: Callable[[Object], bool]) -> Object:
    async with asyncio.timeout(30):
        while True:
            found = await client.get(BOATS, "argo", "default")
            if truth(found):
                return found
            await asyncio.sleep(0.05)


@pytest.mark.toolchain("go")
@pytest.mark.timeout(420)
async def test_a_manager_elects_itself_owns_objects_and_cleans_up(program: Path, tmp_path: Path) -> None:
    with Platform(only=["workloads"]) as platform:
        async with platform.client() as client:
            await client.create(CUSTOM_RESOURCE_DEFINITIONS, DEFINITION)
            errors = tmp_path / "stderr"
            async with operator(program, platform, "default", errors) as first:
                checks = await first.until_told("errors")
                assert {name: value for name, value in checks.items() if name != "what"} == {
                    "notFound": True,
                    "alreadyExists": True,
                    "conflict": True,
                    "invalid": True,
                }
                await first.until_told("synced", synced=True)
                await first.until_told("informer", event="add", name="kube-root-ca.crt")
                await first.until_told("elected")

                made = {"metadata": {"name": "argo", "namespace": "default"}, "spec": {"rowers": 3}}
                await client.create(BOATS, {"apiVersion": BOATS.api_version, "kind": "Boat", **made}, "default")
                await first.until_told("deployment", outcome="created", replicas=3)
                await first.until_told("informer", event="add", name="argo")
                manned = await boat(client, lambda one: bool((one.get("status") or {}).get("conditions")))
                assert manned["metadata"]["finalizers"] == ["judge.sampan.dev/finalizer"]
                assert manned["status"]["conditions"][0]["type"] == "Manned"
                assert manned["status"]["observedGeneration"] == manned["metadata"]["generation"] == 1
                deployment = await client.get(DEPLOYMENTS, "argo", "default")
                owner = deployment["metadata"]["ownerReferences"][0]
                assert (owner["kind"], owner["uid"], owner["controller"]) == ("Boat", manned["metadata"]["uid"], True)

                # what it owns is put right again
                await client.patch(DEPLOYMENTS, "argo", {"spec": {"replicas": 9}}, "default")
                await first.until_told("deployment", outcome="updated", replicas=3)
                await client.delete(CONFIG_MAPS, "argo", "default")
                await first.until_told("informer", event="delete", name="argo")
                await client.patch(BOATS, "argo", {"spec": {"rowers": 5}}, "default")
                await first.until_told("deployment", outcome="updated", replicas=5)
                await boat(client, lambda one: one["status"]["observedGeneration"] == 2)
                assert (await client.get(CONFIG_MAPS, "argo", "default"))["data"] == {"rowers": "5"}

                lease = await client.get(LEASES, "judge.sampan.dev", "default")
                first.process.send_signal(signal.SIGTERM)
                await first.until_told("stopped")
            released = await client.get(LEASES, "judge.sampan.dev", "default")
            assert lease["spec"]["holderIdentity"] and not released["spec"].get("holderIdentity")

            async with operator(program, platform, "default", errors) as second:
                await second.until_told("elected")
                await client.delete(BOATS, "argo", "default")
                await second.until_told("farewell", name="argo")
                await second.until_told("informer", event="delete", name="argo")  # the garbage collector's work
