"""logs and exec through the API server to a kubelet: the paths, the checks before, and the bytes in between."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from sampan.kube.client import Client
from sampan.kube.resources import NAMESPACES, NODES, PODS, SERVICE_ACCOUNTS
from sampan.kube.status import ApiError
from sampan.testing import Platform

from .kubectl import Command, kubectl


class Kubelet:
    """Answers as a kubelet does, and remembers what it was asked."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.asked: list[str] = []
        self.peers: list[Any] = []
        self.heads: list[bytes] = []

    async def start(self) -> int:
        authority = self.platform.kernel.authority
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        runner = web.ServerRunner(web.Server(self._handle))
        await runner.setup()
        context = authority.server_context(["127.0.0.1", "node-1"], leaf="test-kubelet", verify_clients=True)
        await web.SockSite(runner, listener, ssl_context=context).start()
        self.runner = runner
        self.raw = await asyncio.start_server(self._echo, "127.0.0.1", 0, ssl=context)
        return int(listener.getsockname()[1])

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Speaks an unknown protocol after the upgrade: everything comes back in capitals."""
        head = await reader.readuntil(b"\r\n\r\n")
        self.asked.append(head.split(b"\r\n")[0].decode())
        self.heads.append(head.lower())
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n")
        while data := await reader.read(65536):
            writer.write(data.upper())
            if data.endswith(b"bye"):
                break
        writer.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(request.raw_path)
        assert request.transport is not None
        self.peers.append(request.transport.get_extra_info("peercert"))
        if request.path.startswith("/containerLogs/"):
            response = web.StreamResponse()
            await response.prepare(request)
            for line in (b"one\n", b"two\n"):
                await response.write(line)
            return response
        if request.path.startswith("/exec/"):
            stream = web.WebSocketResponse(protocols=("v5.channel.k8s.io", "v4.channel.k8s.io"))
            await stream.prepare(request)
            heard = b""
            if "input=1" in request.query_string:
                async for message in stream:
                    if message.data[:1] == b"\x00":
                        heard += message.data[1:]
                    elif message.data[:1] == b"\xff":
                        break
            await stream.send_bytes(b"\x01said " + heard)
            await stream.send_bytes(
                b'\x03{"metadata":{},"status":"Failure","reason":"NonZeroExitCode","message":"command terminated with exit '
                b'code 3","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}'
            )
            await stream.close()
            return stream
        return web.Response(status=404, text="no such path")


@pytest.fixture(scope="module")
def node(request: pytest.FixtureRequest) -> Iterator[tuple[Platform, Kubelet, str]]:
    """A platform without its own node, with a node object that leads to the test's kubelet and a running pod on it."""
    with Platform(only=["kubernetes"]) as platform:
        kubelet = Kubelet(platform)
        port = platform.run(kubelet.start())
        namespace = f"s-{time.time_ns():x}"

        async def objects() -> None:
            client = platform.get(Client)
            await client.create(NAMESPACES, {"metadata": {"name": namespace}})
            try:
                await client.create(SERVICE_ACCOUNTS, {"metadata": {"name": "default", "namespace": namespace}})
            except ApiError as error:
                assert error.already_exists
            raw = kubelet.raw.sockets[0].getsockname()[1]
            for node_name, endpoint in (("node-1", port), ("node-2", raw), ("node-3", 1)):
                made = await client.create(NODES, {"metadata": {"name": node_name}})
                made["status"] = {
                    "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
                    "daemonEndpoints": {"kubeletEndpoint": {"Port": endpoint}},
                }
                await client.update(NODES, made, subresource="status")
            for name, node_name, containers in (
                ("p", "node-1", ["c"]),
                ("two", "node-1", ["a", "b"]),
                ("raw", "node-2", ["c"]),
                ("lost", "node-3", ["c"]),
            ):
                spec = {"nodeName": node_name, "containers": [{"name": c, "image": "x"} for c in containers]}
                pod = await client.create(PODS, {"metadata": {"name": name, "namespace": namespace}, "spec": spec})
                pod["status"] = {
                    "phase": "Running",
                    "containerStatuses": [
                        {
                            "name": c,
                            "image": "x",
                            "imageID": "",
                            "ready": True,
                            "restartCount": 0,
                            "state": {"running": {"startedAt": pod["metadata"]["creationTimestamp"]}}
                            if c != "b"
                            else {"waiting": {"reason": "ContainerCreating"}},
                        }
                        for c in containers
                    ],
                }
                await client.update(PODS, pod, subresource="status")

        platform.run(objects())
        yield platform, kubelet, namespace
        platform.run(kubelet.runner.cleanup())
        platform.call(kubelet.raw.close)


@pytest.fixture
def ctl(node: tuple[Platform, Kubelet, str], tmp_path: Path) -> Command:
    return Command(kubectl(), node[0].kubeconfig, tmp_path, node[2])


def test_logs_come_from_the_kubelet(ctl: Command, node: tuple[Platform, Kubelet, str]) -> None:
    assert ctl("logs", "p", "--tail=5", "--timestamps") == "one\ntwo\n"
    _, kubelet, namespace = node
    assert kubelet.asked[-1] == f"/containerLogs/{namespace}/p/c?timestamps=true&tailLines=5"
    assert (("commonName", "kube-apiserver-kubelet-client"),) in kubelet.peers[-1]["subject"]


def test_logs_are_refused_with_upstreams_words(ctl: Command) -> None:
    assert "a container name must be specified for pod two, choose one of: [a b]" in ctl(
        "get", "--raw", f"/api/v1/namespaces/{ctl.namespace}/pods/two/log", fails=True
    )
    assert "container nope is not valid for pod p" in ctl("logs", "p", "-c", "nope", fails=True)
    assert 'container "b" in pod "two" is waiting to start: ContainerCreating' in ctl(
        "logs", "two", "-c", "b", fails=True
    )
    assert 'previous terminated container "c" in pod "p" not found' in ctl("logs", "p", "-p", fails=True)


def test_exec_joins_the_streams_and_the_exit_code(ctl: Command, node: tuple[Platform, Kubelet, str]) -> None:
    import subprocess

    done = subprocess.run(
        [str(ctl.binary), "-n", ctl.namespace, "exec", "-i", "p", "--", "sh", "-c", "cat"],
        env=ctl.environment(),
        input="hello",
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (done.stdout, done.returncode) == ("said hello", 3), done.stderr
    _, kubelet, namespace = node
    assert kubelet.asked[-1].startswith(f"/exec/{namespace}/p/c?command=sh&command=-c&command=cat")


async def test_any_upgrade_is_passed_on_byte_by_byte(node: tuple[Platform, Kubelet, str]) -> None:
    platform, kubelet, namespace = node
    config = yaml.safe_load(platform.kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    pem = platform.data_dir / "streams.pem"
    pem.write_bytes(base64.b64decode(user["client-certificate-data"]) + base64.b64decode(user["client-key-data"]))
    context.load_cert_chain(pem)
    host, port = cluster["server"].removeprefix("https://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    writer.write(
        f"POST /api/v1/namespaces/{namespace}/pods/raw/portforward HTTP/1.1\r\nHost: x\r\n"
        "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: portforward.k8s.io\r\n"
        "Content-Length: 0\r\n\r\n".encode()
    )
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    payload = b"abc" * 400_000
    writer.write(payload)
    assert await reader.readexactly(len(payload)) == payload.upper()
    writer.write(b"bye")
    assert await reader.read(3) == b"BYE"
    assert await reader.read() == b"", "the end of one side is the end of the other"
    writer.close()
    assert kubelet.asked[-1] == f"POST /portForward/{namespace}/raw HTTP/1.1"
    assert b"x-stream-protocol-version: portforward.k8s.io" in kubelet.heads[-1]


def test_a_kubelet_that_is_gone_is_said_so(ctl: Command) -> None:
    assert "connection refused" in ctl("logs", "lost", fails=True).lower()
