"""kill -9 of the platform while pods speak through a Service: not one connection fails, before, during or after."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import psutil
import pytest

from sampan.kernel import detached, nftables
from sampan.kernel.folder import DataDirectory
from sampan.parts.node.runtime import links

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: Services by eBPF or nf_tables"),
]

ONLY = "kubernetes,workloads,node,network"
SERVE = "import http.server as h; h.HTTPServer(('', 8080), h.SimpleHTTPRequestHandler).serve_forever()"
ASK = """
import sys, time, urllib.request
while True:
    try:
        found = urllib.request.urlopen("http://%s:8000/", timeout=20).status
    except OSError as error:
        found = repr(error)
    with open("/results/seen", "a") as file:
        print(found, file=file)
    time.sleep(0.02)
"""


def _pod(name: str, command: str, **spec: Any) -> dict[str, Any]:
    container = {"name": "c", "image": "python", "command": ["python", "-c", command], **spec.pop("container", {})}
    metadata = {"name": name, "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container], **spec}}


@pytest.fixture(params=["T1", "T1n"])
def tier(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def sampan(tmp_path: Path, tier: str) -> Iterator[Callable[..., str]]:
    data = tmp_path / "data"

    def run(*arguments: str, stdin: str = "") -> str:
        environment = {
            **os.environ,
            "SAMPAN_DATA_DIR": str(data),
            "SAMPAN_PLATFORM_PORTS": "auto",
            "SAMPAN_NODE_TIER": tier,
            "KUBECONFIG": str(data / "kubeconfig"),
        }
        if arguments[0] == "kubectl":
            arguments = (str(Path(sysconfig.get_path("scripts")) / "kubectl"), *arguments[1:])
        else:
            arguments = (sys.executable, "-m", "sampan", *arguments)
        done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=60, input=stdin)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    yield run
    # an orderly end also ends the pods; where a failure left no platform there is one again first
    for command in (["up", "--detach", "--only", ONLY], ["down"]):
        environment = {**os.environ, "SAMPAN_DATA_DIR": str(data), "SAMPAN_PLATFORM_PORTS": "auto"}
        subprocess.run([sys.executable, "-m", "sampan", *command], capture_output=True, env=environment, timeout=60)
    if holder := DataDirectory(data).holder():
        psutil.Process(holder).kill()
    detached.end_all(DataDirectory(data).run)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _node(sampan: Callable[..., str], tier: str) -> tuple[str, IPv4Network]:
    """The node's table and pod range."""
    [node] = json.loads(sampan("kubectl", "get", "nodes", "-o", "json"))["items"]
    if not any(one["reason"] == tier for one in node["status"]["conditions"]):
        pytest.skip(f"no tier {tier} here")
    table, pod_range = node["metadata"]["annotations"]["sampan.dev/pods-table"].split()
    return table, IPv4Network(pod_range)


def test_connections_through_a_service_outlive_the_platform(
    sampan: Callable[..., str], tmp_path: Path, tier: str
) -> None:
    results = tmp_path / "results"
    results.mkdir()
    up = ["up", "--detach", "--only", ONLY]
    sampan(*up)
    table, pod_range = _node(sampan, tier)
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 8000, "targetPort": 8080}]},
    }
    probe = {"readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}
    for one in (service, _pod("web", SERVE, container=probe)):
        sampan("kubectl", "apply", "-f", "-", stdin=json.dumps(one))
    sampan("kubectl", "wait", "--for=condition=Ready", "pod/web", "--timeout=30s")
    address = json.loads(sampan("kubectl", "get", "service", "web", "-o", "json"))["spec"]["clusterIP"]
    mounts = {"volumeMounts": [{"name": "results", "mountPath": "/results"}]}
    volumes = [{"name": "results", "hostPath": {"path": str(results)}}]
    asker = _pod("asker", ASK.replace("%s", address), container=mounts, volumes=volumes)
    sampan("kubectl", "apply", "-f", "-", stdin=json.dumps(asker))
    seen = results / "seen"

    def lines() -> list[str]:
        return seen.read_text().split() if seen.exists() else []

    _until(lambda: len(lines()) > 20)
    os.kill(json.loads(sampan("status", "--json"))["pid"], signal.SIGKILL)
    dead = len(lines())
    _until(lambda: len(lines()) > dead + 20)  # nobody is there
    sampan(*up)
    alive = len(lines())
    _until(lambda: len(lines()) > alive + 20)
    told = lines()
    assert set(told[told.index("200") :]) == {"200"}  # the Service has its endpoint a moment after the pod is ready
    sampan("down")
    assert not nftables.exists(table)
    assert not links.present(pod_range)


@pytest.mark.parametrize("tier", ["T1n"], indirect=True)
def test_the_start_after_everything_was_killed_begins_with_a_clean_network(
    sampan: Callable[..., str], tmp_path: Path, tier: str
) -> None:
    up = ["up", "--detach", "--only", ONLY]
    sampan(*up)
    table, pod_range = _node(sampan, tier)
    for name in ("stays", "goes"):
        sampan("kubectl", "apply", "-f", "-", stdin=json.dumps(_pod(name, "import time; time.sleep(1000)")))
    sampan("kubectl", "wait", "--for=condition=Ready", "pod/stays", "pod/goes", "--timeout=30s")
    before = links.present(pod_range)
    assert len(before) == 2
    os.kill(json.loads(sampan("status", "--json"))["pid"], signal.SIGKILL)
    os.kill(int((tmp_path / "data/parts/node/run/keeper.pid").read_text()), signal.SIGKILL)
    sampan(*up)
    sampan("kubectl", "delete", "pod", "goes", "--now")

    def restarted() -> bool:
        [pod] = json.loads(sampan("kubectl", "get", "pods", "-o", "json"))["items"]
        [status] = pod["status"]["containerStatuses"]
        return bool(
            status["restartCount"] == 1 and status["ready"] and links.present(pod_range) == [pod["status"]["podIP"]]
        )

    _until(restarted)
    assert nftables.exists(table)
    sampan("down")
    assert not nftables.exists(table)
    assert not links.present(pod_range)
