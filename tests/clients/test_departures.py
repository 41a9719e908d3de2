"""Clients that vanish while their input is held back: nobody reads from them, and still it is noticed."""

from __future__ import annotations

import asyncio
import socket
import struct
import time

import aiohttp
import psutil
import pytest

from sampan.kernel import departure
from sampan.kernel.clock import Clock
from sampan.kernel.departure import while_there
from sampan.kube.resources import NODES, PODS
from sampan.testing.platform import Platform

AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER: an end without a farewell, as of a client whose machine has nothing of it any more."""


@pytest.fixture(autouse=True)
def looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(departure, "LOOK", 0.1)


@pytest.mark.parametrize(("how", "leaves"), [("reset", True), ("closed", True), ("stays", False)])
async def test_the_state_of_a_connection_tells_who_has_left(how: str, leaves: bool) -> None:
    told: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        try:
            async with while_there(writer.transport, Clock()):
                await asyncio.sleep(30 if leaves else 1)
            told.set_result("stayed")
        except ConnectionResetError:
            told.set_result("left")
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        with socket.create_connection(server.sockets[0].getsockname()) as client:
            client.sendall(b"what nobody reads")
            if how == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
            if how != "stays":
                client.close()
            async with asyncio.timeout(20):
                assert await told == ("left" if leaves else "stayed")


def running(name: str) -> list[psutil.Process]:
    found = psutil.process_iter(["cmdline"])
    return [each for each in found if each.info["cmdline"] == ["sleep", name]]


async def test_a_command_that_reads_no_input_ends_when_its_client_has_gone() -> None:
    async with Platform(only=["kubernetes", "node"]) as platform:
        client = platform.client()
        node = (await client.list(NODES)).items[0]["metadata"]["name"]
        spec = {"nodeName": node, "containers": [{"name": "c", "image": "busybox", "command": ["sleep", "1000"]}]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "box"}, "spec": spec}
        await client.create(PODS, pod, "default")
        async with asyncio.timeout(40):
            while (await client.get(PODS, "box", "default")).get("status", {}).get("phase") != "Running":
                await asyncio.sleep(0.05)
        seconds = f"{1000 + time.time_ns() % 1_000_000}"
        query = f"stdin=1&stdout=1&command=sleep&command={seconds}"
        url = f"https://{platform.address('kubernetes')}/api/v1/namespaces/default/pods/box/exec?{query}"
        authority = platform.kernel.authority
        trusted = authority.client_context(authority.client_certificate("ann", ["system:masters"]))
        async with aiohttp.ClientSession() as session:
            exec_ = await session.ws_connect(url, protocols=["v5.channel.k8s.io"], ssl=trusted)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(3):
                    while True:
                        await exec_.send_bytes(b"\x00" + b"x" * 30_000)
            assert running(seconds)
            connection = exec_.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
            exec_._response.connection.transport.abort()  # type: ignore[union-attr]
            async with asyncio.timeout(30):
                while await asyncio.to_thread(running, seconds):
                    await asyncio.sleep(0.1)
