"""The official Python client streams: exec and port-forward over the older channel protocols."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sampan.kube.resources import NODES, PODS
from sampan.testing.platform import Platform

kubernetes = pytest.importorskip("kubernetes")


def stream_into(kubeconfig: str) -> tuple[str, int, bytes]:
    """What exec says, its exit code, and what a forwarded port answers. Blocks."""
    from kubernetes import client, config
    from kubernetes.stream import portforward, stream

    config.load_kube_config(kubeconfig)
    core = client.CoreV1Api()
    common: dict[str, Any] = {"stderr": True, "stdout": True, "tty": False}
    script = ["sh", "-c", "read x; echo got $x; exit 5"]
    executed = stream(
        core.connect_get_namespaced_pod_exec,
        "web",
        "default",
        command=script,
        stdin=True,
        _preload_content=False,
        **common,
    )
    executed.write_stdin("abc\n")
    executed.run_forever(timeout=40)
    forwarded = portforward(core.connect_get_namespaced_pod_portforward, "web", "default", ports="80")
    socket = forwarded.socket(80)
    socket.setblocking(True)
    socket.sendall(b"GET / HTTP/1.0\r\n\r\n")
    answer = b""
    while data := socket.recv(4096):
        answer += data
    return executed.read_stdout(), executed.returncode, answer


async def test_the_python_client_executes_and_forwards() -> None:
    async with Platform(only=["kubernetes", "node"]) as platform:
        client = platform.client()
        node = (await client.list(NODES)).items[0]["metadata"]["name"]
        container = {"name": "c", "image": "nginx", "readinessProbe": {"tcpSocket": {"port": 80}}}
        spec = {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [container]}
        await client.create(
            PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": spec}, "default"
        )
        async with asyncio.timeout(40):
            while True:
                pod = await client.get(PODS, "web", "default")
                if any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ())):
                    break
                await asyncio.sleep(0.05)
        async with asyncio.timeout(30):
            said, code, answer = await asyncio.to_thread(stream_into, str(platform.kubeconfig))
    assert (said, code) == ("got abc\n", 5)
    assert b"Welcome to nginx!" in answer
