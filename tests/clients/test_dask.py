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
]

CLUSTER = """
apiVersion: kubernetes.dask.org/v1
kind: DaskCluster
metadata: {name: demo}
spec:
  worker:
    replicas: 1
    spec:
      containers:
      - name: worker
        image: dask:test
        args: [dask, worker, --name, $(DASK_WORKER_NAME), --no-dashboard]
  scheduler:
    spec:
      containers:
      - name: scheduler
        image: dask:test
        args: [dask, scheduler]
        ports:
        - {name: tcp-comm, containerPort: 8786}
        - {name: http-dashboard, containerPort: 8787}
        readinessProbe: {httpGet: {port: http-dashboard, path: /health}, periodSeconds: 1}
    service:
      type: ClusterIP
      selector: {dask.org/cluster-name: demo, dask.org/component: scheduler}
      ports:
      - {name: tcp-comm, port: 8786, targetPort: tcp-comm}
      - {name: http-dashboard, port: 8787, targetPort: http-dashboard}
"""
"""As in the operator's documentation. `KubeCluster` would wait for the cluster's phase, which two handlers of the operator write
in whatever order a quick API server answers them."""

WORK = """
import sys
from distributed import Client

client = Client(sys.argv[1], timeout=60)
client.wait_for_workers(int(sys.argv[2]), timeout=60)
hosts = client.run(lambda: __import__("socket").gethostname())
print("hosts", *sorted(hosts.values()))
print("sum", sum(client.gather(client.map(lambda x: x * x, range(100)))))
client.close()
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the operator and the client."""
    assert UV is not None
    place = tmp_path_factory.mktemp("dask") / "environment"
    # where nobody answers, this is to be known soon
    patience = {**os.environ, "UV_HTTP_TIMEOUT": "15", "UV_HTTP_RETRIES": "1"}
    for command in (
        [UV, "venv", "-q", "--python", sys.executable, str(place)],
        [UV, "pip", "install", "-q", "-p", str(place / "bin/python"), OPERATOR, *DASK],
    ):
        try:
            subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=patience)
        except subprocess.TimeoutExpired:
            pytest.skip("dask-kubernetes is not installed within two minutes")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"dask-kubernetes cannot be installed here: {error.stderr.strip()[-200:]}")
    return place


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with Platform(
        only=["kubernetes", "node", "workloads", "network"],
        data_dir=tmp_path / "data",
    ) as running:
        application = tmp_path / "dask"
        application.mkdir()
        (application / "requirements.txt").write_text("\n".join(DASK) + "\n")
        store = ImageStore(running.data_dir / "parts/node/images")
        build(store, application, "dask:test", command="dask scheduler", created="2026-01-01T00:00:00Z")
        yield running


async def test_a_dask_cluster_does_its_work(platform: Platform, environment: Path, tmp_path: Path) -> None:
    assert KUBECTL is not None
    env = {**os.environ, "KUBECONFIG": str(platform.kubeconfig), "PATH": f"{environment / 'bin'}:{os.environ['PATH']}"}
    env.pop("PYTHONPATH", None)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    definitions = packages / "dask_kubernetes/operator/deployment/helm/dask-kubernetes-operator/crds"
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
            await run(env, KUBECTL, "apply", "-f", "-", stdin=CLUSTER)
            await run(env, KUBECTL, "wait", "--for=create", "deployment/demo-scheduler", "--timeout=30s")
            await run(env, KUBECTL, "rollout", "status", "deployment/demo-scheduler", "--timeout=60s")
            pods = ["get", "pods", "-l", "dask.org/component=scheduler", "-o", "jsonpath={.items[0].status.podIP}"]
            python, place = str(environment / "bin/python"), f"tcp://{await run(env, KUBECTL, *pods)}:8786"
            one = told(await run(env, python, str(script), place, "1"))
            await run(env, KUBECTL, "scale", "daskworkergroup/demo-default", "--replicas=2")
            two = told(await run(env, python, str(script), place, "2"))
            await run(env, KUBECTL, "delete", "daskcluster", "demo")
            await run(env, KUBECTL, "wait", "--for=delete", "pod", "--all", "--timeout=60s")
        except AssertionError as error:
            seen = await run(env, KUBECTL, "get", "pods,deployments,services,daskclusters", "-o", "wide")
            seen += await run(env, KUBECTL, "logs", "-l", "dask.org/component", "--prefix", "--tail=30")
            raise AssertionError(f"{error}\n{seen}\n{(tmp_path / 'operator.log').read_text()[-3000:]}") from None
        finally:
            operator.terminate()
            await operator.wait()
    for workers, found in ((1, one), (2, two)):
        assert found["sum"] == str(sum(x * x for x in range(100)))
        assert len(found["hosts"].split()) == workers
        assert all(host.startswith("demo-default-worker-") for host in found["hosts"].split())


def told(out: str) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in out.splitlines() if line.split(" ")[0] in ("hosts", "sum"))


async def run(env: dict[str, str], *command: str, seconds: float = 60, stdin: str = "") -> str:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe, env=env)
    try:
        async with asyncio.timeout(seconds):
            out, err = await process.communicate(stdin.encode())
    except TimeoutError:
        process.kill()
        out, err = await process.communicate()
        raise AssertionError(f"{command} took longer than {seconds} s: {out.decode()} {err.decode()[-3000:]}") from None
    assert process.returncode == 0, (command, out.decode(), err.decode()[-3000:])
    return out.decode()
