"""Forwarders in user space on real sockets: node ports, load balancers, and Services where the kernel cannot."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import uvloop

import sampan.testing
from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.kube.client.http import HttpClient
from sampan.kube.objects import Object
from sampan.kube.resources import ENDPOINT_SLICES, ENDPOINTS, EVENTS, NETWORK_POLICIES, NODES, SERVICE_NAME, SERVICES
from sampan.parts.network.datapath.forward import UDP_IDLE_SECONDS, ForwardPath
from sampan.parts.network.services import Backends, Frontend

Address = tuple[str, int]


def _free(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def _echo(name: str = "") -> AsyncIterator[Address]:
    """Says its name, then echoes until the end of input."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(name.encode())
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()


async def _say(host: str, port: int, data: bytes = b"") -> bytes:
    reader, writer = await asyncio.open_connection(host, port)

    async def send() -> None:
        writer.write(data)
        await writer.drain()
        writer.write_eof()

    answer, _ = await asyncio.gather(reader.read(), send())
    writer.close()
    return answer


@pytest.fixture
async def path() -> AsyncIterator[ForwardPath]:
    clock = Clock()
    async with Tasks(clock) as tasks:
        made = ForwardPath(clock, tasks)
        yield made
        made.close()


async def test_bytes_pass_whole_in_both_directions_and_ends_are_kept_apart(path: ForwardPath) -> None:
    async with _echo() as server:
        front = Frontend("127.0.0.1", _free(), "TCP")
        await path.put(front, Backends((server,)))
        data = os.urandom(3_000_000)
        assert await _say(front.address, front.port, data) == data


async def test_endpoints_change_under_an_open_port_and_none_means_refused(path: ForwardPath) -> None:
    async with _echo("one") as one, _echo("two") as two:
        front = Frontend("127.0.0.1", _free(), "TCP")
        await path.put(front, Backends((one,)))
        assert await _say(front.address, front.port) == b"one"
        await path.put(front, Backends((two,)))
        assert await _say(front.address, front.port) == b"two"
        await path.put(front, Backends((one, two)))
        assert {await _say(front.address, front.port) for _ in range(40)} == {b"one", b"two"}
        await path.put(front, Backends((one, two), affinity=60))
        assert len({await _say(front.address, front.port) for _ in range(20)}) == 1
        await path.put(front, Backends(()))
        with pytest.raises(ConnectionRefusedError):
            await _say(front.address, front.port)


async def test_an_endpoint_that_is_down_is_passed_over(path: ForwardPath) -> None:
    async with _echo("alive") as alive:
        front = Frontend("127.0.0.1", _free(), "TCP")
        await path.put(front, Backends((("127.0.0.1", _free()), alive)))
        assert {await _say(front.address, front.port) for _ in range(20)} == {b"alive"}
        await path.put(front, Backends((("127.0.0.1", _free()),)))
        with pytest.raises(ConnectionResetError):
            await _say(front.address, front.port)


class _Datagrams(asyncio.DatagramProtocol):
    """Keeps what comes, and answers it where ``answers`` says so."""

    def __init__(self, *, answers: bool) -> None:
        self.answers = answers
        self.got: asyncio.Queue[tuple[bytes, Address]] = asyncio.Queue()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self.got.put_nowait((data, addr))
        if self.answers:
            self.transport.sendto(b"re:" + data, addr)


async def _datagrams(clock: Clock, path: ForwardPath) -> None:
    loop = asyncio.get_running_loop()
    place, server = await loop.create_datagram_endpoint(lambda: _Datagrams(answers=True), local_addr=("127.0.0.1", 0))
    front = Frontend("127.0.0.1", _free(socket.SOCK_DGRAM), "UDP")
    await path.put(front, Backends((place.get_extra_info("sockname"),)))
    clients = []
    seen = []

    async def ask(transport: Any, client: _Datagrams, data: bytes) -> None:
        transport.sendto(data)
        async with asyncio.timeout(40):
            seen.append((await server.got.get())[1])
            assert (await client.got.get())[0] == b"re:" + data

    for _ in range(2):
        clients.append(
            await loop.create_datagram_endpoint(
                lambda: _Datagrams(answers=False), remote_addr=(front.address, front.port)
            )
        )
        await ask(*clients[-1], b"first")
    await ask(*clients[0], b"second")
    assert seen[0] != seen[1]
    assert seen[0] == seen[2]
    # a client that was silent for long comes from another socket
    clock.jump(UDP_IDLE_SECONDS + 1)
    await ask(*clients[0], b"again")
    for transport, _ in clients:
        transport.close()
    place.close()


async def test_datagrams_find_their_way_back() -> None:
    clock = Clock()
    async with Tasks(clock) as tasks:
        path = ForwardPath(clock, tasks)
        await _datagrams(clock, path)
        path.close()


@pytest.mark.parametrize("what", ["bytes", "changes", "down", "datagrams"])
def test_the_same_on_the_platforms_own_event_loop(what: str) -> None:
    async def run() -> None:
        clock = Clock()
        async with Tasks(clock) as tasks:
            path = ForwardPath(clock, tasks)
            if what == "bytes":
                await test_bytes_pass_whole_in_both_directions_and_ends_are_kept_apart(path)
            elif what == "changes":
                await test_endpoints_change_under_an_open_port_and_none_means_refused(path)
            elif what == "down":
                await test_an_endpoint_that_is_down_is_passed_over(path)
            else:
                await _datagrams(clock, path)
            path.close()

    uvloop.run(run())


def _slice(service: str, *endpoints: Address) -> Object:
    return {
        "metadata": {"name": service, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}} for address, _ in endpoints],
        "ports": [{"name": "http", "protocol": "TCP", "port": endpoints[0][1]}],
    }


async def _until(ask: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(40):
        while True:
            try:
                if found := await ask():
                    return found
            except OSError:
                pass
            await asyncio.sleep(0.02)


def _service(name: str, kind: str, port: int, **spec: Any) -> Object:
    ports = [{"name": "http", "port": port}]
    return {"metadata": {"name": name}, "spec": {"type": kind, "ports": ports, **spec}}


async def _ingress(client: HttpClient, name: str) -> Any:
    return ((await client.get(SERVICES, name, "default")).get("status") or {}).get("loadBalancer", {}).get("ingress")


async def test_a_load_balancer_keeps_strangers_out_and_its_health_is_told() -> None:
    settings = {"kubernetes.store": "memory"}
    async with (
        sampan.testing.Platform(only=["kubernetes", "network"], settings=settings) as platform,
        platform.client() as client,
        _echo("hello") as server,
    ):
        port = _free()
        wanted = _service("web", "LoadBalancer", port, loadBalancerSourceRanges=["10.0.0.0/8"])
        wanted["spec"]["externalTrafficPolicy"] = "Local"
        made = await client.create(SERVICES, wanted, "default")
        check = made["spec"]["healthCheckNodePort"]
        assert (await _until(lambda: _health(check)))[0] == 503
        await client.create(ENDPOINT_SLICES, _slice("web", server), "default")
        (given,) = await _until(lambda: _ingress(client, "web"))

        async def kept_out() -> bool:
            try:
                return await _say(given["ip"], port) == b""
            except ConnectionRefusedError:
                return False  # not there yet
            except OSError:
                return True  # reset, noticed while reading or while writing

        assert await _until(kept_out)
        status, told = await _health(check)
        assert (status, told["localEndpoints"]) == (200, 1)
        await client.patch(SERVICES, "web", {"spec": {"loadBalancerSourceRanges": ["127.0.0.0/8"]}}, "default")
        assert await _until(lambda: _say(given["ip"], port)) == b"hello"
        await client.delete(SERVICES, "web", "default")
        async with asyncio.timeout(40):
            while True:
                try:
                    await _health(check)
                except OSError:
                    break
                await asyncio.sleep(0.02)


async def _health(port: int) -> tuple[int, Any]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n")
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), json.loads(body)


async def test_node_ports_and_load_balancers_on_the_host() -> None:
    settings = {"kubernetes.store": "memory"}
    async with (
        sampan.testing.Platform(only=["kubernetes", "network"], settings=settings) as platform,
        platform.client() as client,
        _echo("hello") as server,
    ):
        port = _free()
        made = await client.create(SERVICES, _service("web", "LoadBalancer", port), "default")
        await client.create(ENDPOINT_SLICES, _slice("web", server), "default")
        node_port = made["spec"]["ports"][0]["nodePort"]
        assert await _until(lambda: _say("127.0.0.1", node_port)) == b"hello"
        (given,) = await _until(lambda: _ingress(client, "web"))
        assert given["ip"].startswith("127.")
        assert await _until(lambda: _say(given["ip"], port)) == b"hello"

        # the second one gets another address, so it may have the same port
        await client.create(SERVICES, _service("other", "LoadBalancer", port), "default")
        await client.create(ENDPOINT_SLICES, _slice("other", server), "default")
        (second,) = await _until(lambda: _ingress(client, "other"))
        assert second["ip"] != given["ip"]
        assert await _until(lambda: _say(second["ip"], port)) == b"hello"

        # no longer a load balancer: the address is given back
        ports = [{"name": "http", "port": port}]
        await client.update(SERVICES, {**made, "spec": {**made["spec"], "type": "ClusterIP", "ports": ports}} | {
            "metadata": {"name": "web", "namespace": "default"}
        })  # fmt: skip
        await _until(lambda: _gone(client, "web"))
        assert await _until(lambda: _refuses(given["ip"], port))

        # others' load balancers are left alone
        await client.create(SERVICES, _service("theirs", "LoadBalancer", port, loadBalancerClass="x.io/y"), "default")

        # a node port that something else has
        for candidate in range(32700, 32600, -1):
            with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", candidate)):
                clash = _service("clash", "NodePort", port)
                clash["spec"]["ports"][0]["nodePort"] = candidate
                await client.create(SERVICES, clash, "default")
                await client.create(ENDPOINT_SLICES, _slice("clash", server), "default")
                event = await _until(lambda: _event(client, "FailedToListen", "clash"))
                assert f"127.0.0.1:{candidate}/TCP: the port is in use" in event["message"]
                break
        else:
            pytest.fail("no node port is free")
        assert not await _ingress(client, "theirs")


async def _gone(client: HttpClient, name: str) -> bool:
    return not await _ingress(client, name)


async def _refuses(host: str, port: int) -> bool:
    try:
        await _say(host, port)
    except ConnectionRefusedError:
        return True
    return False


async def _event(client: HttpClient, reason: str, about: str) -> Object | None:
    events = await client.list(EVENTS, "default", field_selector=f"reason={reason},involvedObject.name={about}")
    return events.items[0] if events.items else None


async def test_endpoints_written_by_hand_lead_somewhere() -> None:
    settings = {"kubernetes.store": "memory"}
    async with (
        sampan.testing.Platform(only=["kubernetes", "network"], settings=settings) as platform,
        platform.client() as client,
        _echo("hello") as server,
    ):
        made = await client.create(SERVICES, _service("manual", "NodePort", 80), "default")
        ports = [{"name": "http", "port": server[1]}]
        endpoints: Object = {
            "metadata": {"name": "manual"},
            "subsets": [{"addresses": [{"ip": server[0]}], "ports": ports}],
        }
        endpoints = await client.create(ENDPOINTS, endpoints, "default")
        node_port = made["spec"]["ports"][0]["nodePort"]
        assert await _until(lambda: _say("127.0.0.1", node_port)) == b"hello"
        (mirror,) = (await client.list(ENDPOINT_SLICES, "default", label_selector=f"{SERVICE_NAME}=manual")).items
        assert mirror["endpoints"] == [{"addresses": [server[0]], "conditions": {"ready": True}}]
        assert mirror["metadata"]["ownerReferences"][0]["kind"] == "Endpoints"

        await client.update(ENDPOINTS, {**endpoints, "subsets": []})

        async def refused() -> bool:
            try:
                await _say("127.0.0.1", node_port)
            except ConnectionRefusedError:
                return True
            return False

        assert await _until(refused)


async def test_without_ebpf_services_stand_on_loopback_and_policies_say_so() -> None:
    settings = {"kubernetes.store": "memory", "network.data_path": "forward"}
    async with (
        sampan.testing.Platform(only=["kubernetes", "network"], settings=settings) as platform,
        platform.client() as client,
        _echo("hello") as server,
    ):
        port = _free()
        service = await client.create(SERVICES, _service("web", "ClusterIP", port), "default")
        await client.create(ENDPOINT_SLICES, _slice("web", server), "default")
        annotations = {"sampan.dev/pods-cgroup": ""}
        await client.create(NODES, {"metadata": {"name": "here", "annotations": annotations}})
        shown = "127." + service["spec"]["clusterIP"].partition(".")[2]
        assert await _until(lambda: _say(shown, port)) == b"hello"
        await client.create(NETWORK_POLICIES, {"metadata": {"name": "deny"}, "spec": {"podSelector": {}}}, "default")
        assert await _until(lambda: _event(client, "PolicyNotEnforced", "deny"))
