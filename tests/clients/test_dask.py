"""Dask on Kubernetes as a black box: its operator, its scheduler and its workers as pods, and work that they do.

The operator and the client run from an environment of their own that this test makes; what runs in the pods is an image built
with the platform's own builder. Nothing in any of it knows of Sampan.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from sampan.parts.node.images.build import build
from sampan.parts.node.images.store import ImageStore
from sampan.testing import Platform

KUBECTL = shutil.which("kubectl", path=sysconfig.get_path("scripts"))
UV = shutil.which("uv", path=sysconfig.get_path("scripts")) or shutil.which("uv")
OPERATOR = "dask-kubernetes==2026.3.0"
DASK = ["dask==2026.8.0", "distributed==2026.8.0"]

pytestmark = [
    pytest.mark.skipif(KUBECTL is None or UV is None, reason="needs kubectl and uv"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: pods with addresses of their own"),
    pytest.mark.slow,
]

WORK = """
import sys
from dask_kubernetes.operator import KubeCluster
from distributed import Client

if __name__ == "__main__":
    cluster = KubeCluster(name="demo", n_workers=2, image=sys.argv[1], resource_timeout=60)
    client = Client(cluster)
    client.wait_for_workers(2, timeout=60)
    hosts = client.run(lambda: __import__("socket").gethostname())
    print("hosts", *sorted(hosts.values()))
    print("sum", sum(client.gather(client.map(lambda x: x * x, range(100)))))
    cluster.scale(3)
    client.wait_for_workers(3, timeout=60)
    print("workers", len(client.scheduler_info()["workers"]))
    client.close()
    cluster.close()
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the operator and the client."""
    assert UV is not None
    place = tmp_path_factory.mktemp("dask") / "environment"
    for command in (
        [UV, "venv", "-q", "--python", sys.executable, str(place)],
        [UV, "pip", "install", "-q", "-p", str(place / "bin/python"), OPERATOR, *DASK],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        if done.returncode:
            pytest.skip(f"dask-kubernetes cannot be installed here: {done.stderr.strip()[-200:]}")
    return place


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with Platform(
        only=["kubernetes", "node", "workloads", "network"],
        data_dir=tmp_path / "data",
        settings={"network.upstream": ["127.0.0.1:1"]},
    ) as running:
        application = tmp_path / "dask"
        application.mkdir()
        (application / "requirements.txt").write_text("\n".join(DASK) + "\n")
        store = ImageStore(running.data_dir / "parts/node/images")
        build(store, application, "dask:test", command="dask-scheduler", created="2026-01-01T00:00:00Z")
        yield running


async def test_a_dask_cluster_does_its_work(platform: Platform, environment: Path, tmp_path: Path) -> None:
    assert KUBECTL is not None
    env = {**os.environ, "KUBECONFIG": str(platform.kubeconfig), "PATH": f"{environment / 'bin'}:{os.environ['PATH']}"}
    env.pop("PYTHONPATH", None)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    definitions = packages / "dask_kubernetes/operator/customresources"
    for name in ("daskcluster", "daskworkergroup", "daskjob", "daskautoscaler"):
        await run(env, KUBECTL, "apply", "--server-side", "-f", str(definitions / f"{name}.yaml"))
    script = tmp_path / "work.py"
    script.write_text(WORK)
    with (tmp_path / "operator.log").open("wb") as log:
        operator = await asyncio.create_subprocess_exec(
            str(environment / "bin/kopf"),
            "run",
            "-m",
            "dask_kubernetes.operator.controller",
            "--all-namespaces",
            stdout=log,
            stderr=log,
            env=env,
        )
        try:
            out = await run(env, str(environment / "bin/python"), str(script), "dask:test", seconds=150)
            left = await run(env, KUBECTL, "wait", "--for=delete", "pod", "--all", "--timeout=60s")
        except AssertionError as error:
            pods = await run(env, KUBECTL, "get", "pods,deployments,services,daskclusters", "-o", "wide")
            raise AssertionError(f"{error}\n{pods}\n{(tmp_path / 'operator.log').read_text()[-3000:]}") from None
        finally:
            operator.terminate()
            await operator.wait()
    lines = dict(line.split(" ", 1) for line in out.splitlines() if line.split(" ")[0] in ("hosts", "sum", "workers"))
    assert lines["sum"] == str(sum(x * x for x in range(100)))
    assert len(lines["hosts"].split()) == 2
    assert all(host.startswith("demo-default-worker-") for host in lines["hosts"].split())
    assert lines["workers"] == "3"
    assert "error" not in left


async def run(env: dict[str, str], *command: str, seconds: float = 60) -> str:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env=env)
    try:
        async with asyncio.timeout(seconds):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        out, err = await process.communicate()
        raise AssertionError(f"{command} took longer than {seconds} s: {out.decode()} {err.decode()[-3000:]}") from None
    assert process.returncode == 0, (command, out.decode(), err.decode()[-3000:])
    return out.decode()
