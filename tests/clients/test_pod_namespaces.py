"""Pods with network namespaces of their own: what they see, whom they reach, what is kept from them, what stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

import sampan.testing
from sampan.kernel import nftables
from sampan.kube.client.http import HttpClient
from sampan.kube.objects import Object
from sampan.kube.resources import ENDPOINT_SLICES, EVENTS, INGRESSES, NETWORK_POLICIES, NODES, PODS, SERVICES
from sampan.parts.node.runtime import links
from tests.clients.kubectl import kubectl

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces"),
    pytest.mark.xdist_group("pod-namespaces"),
]

ONLY = ["kubernetes", "workloads", "node", "network"]
SETTINGS = {"kubernetes.store": "memory", "network.upstream": ["127.0.0.1:1"]}
NAMESPACE = {"sampan.dev/network": "namespace"}
# answers with its name and whom it sees, by TCP and UDP; and by TCP on its localhost only
SERVE = """
import os, socket, threading
name = os.environ["NAME"]
def tcp(host, port):
    with socket.create_server((host, port)) as server:
        while True:
            there, peer = server.accept()
            with there:
                there.sendall(f"{name} {peer[0]}".encode())
threading.Thread(target=tcp, args=("127.0.0.1", 9000)).start()
threading.Thread(target=tcp, args=("0.0.0.0", 8080)).start()
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.bind(("0.0.0.0", 8080))
    while True:
        _, peer = server.recvfrom(100)
        server.sendto(f"{name} {peer[0]}".encode(), peer)
"""
# does what it is told and leaves what came of it, a list in JSON
ASK = """
import fcntl, json, os, socket, struct, sys
def tcp(host, port):
    with socket.create_connection((host, int(port)), 2) as there:
        return there.recv(100).decode()
def udp(host, port, times=1, source=0):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
        there.bind(("", source))
        there.settimeout(2)
        there.connect((host, int(port)))
        there.send(b"?")
        return there.recv(100).decode()
def names(host, port, times):
    return sorted({tcp(host, port).split()[0] for _ in range(int(times))})
def interfaces():
    found = [name for _, name in socket.if_nameindex()]
    with socket.socket() as any:
        packed = fcntl.ioctl(any, 0x8915, struct.pack("256s", b"eth0"))[20:24]
    return [found, socket.inet_ntoa(packed), sorted(os.listdir("/sys/class/net")), socket.gethostbyname(socket.gethostname())]
def resolve(name):
    return sorted({one[4][0] for one in socket.getaddrinfo(name, 80, socket.AF_INET)})
def raw():
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
    return "raw"
def handshake(host, port):
    import ssl
    context = ssl._create_unverified_context()
    with socket.create_connection((host, int(port)), 2) as there, context.wrap_socket(there) as secured:
        return secured.version()[:3]
def spoof(address, host, port):
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as there:
        data = struct.pack(">HHHH", 7, int(port), 9, 0) + b"?"
        head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(data), 1, 0, 64, 17, 0, socket.inet_aton(address), socket.inet_aton(host))
        there.sendto(head + data, (host, 0))
    return "sent"
found = []
for line in sys.argv[1:]:
    name, *words = line.split()
    try:
        found.append(globals()[name](*words))
    except OSError as error:
        found.append(type(error).__name__)
with open("/dev/termination-log", "w") as file:
    json.dump(found, file)
"""

# asks the Service that it is behind itself, until it is
HAIRPIN = """
import os, socket, time
while True:
    try:
        with socket.create_connection(("self", 80), 1) as there:
            found = there.recv(100).decode()
            break
    except OSError:
        time.sleep(0.05)
with open("/dev/termination-log", "w") as file:
    file.write(found)
os._exit(0)
"""

# one page, at a port of the pod and at one of its localhost
PAGE = """
import http.server, threading
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"page")
serve = lambda *where: http.server.ThreadingHTTPServer(where, Page).serve_forever()
threading.Thread(target=serve, args=("127.0.0.1", 9000)).start()
serve("0.0.0.0", 8080)
"""
SHOW = """
import json, os, socket
print(json.dumps([sorted(os.listdir("/sys/class/net")), socket.gethostbyname(socket.gethostname()), open("/etc/resolv.conf").read().split()]))
"""


def _pod(name: str, *command: str, annotations: dict[str, str] | None = None, **spec: Any) -> Object:
    container: Object = {"name": "c", "image": "python", "command": ["python", "-c", *command]}
    container["env"] = [{"name": "NAME", "value": name}]
    metadata = {"name": name, "labels": {"app": name.partition("-")[0]}, "annotations": annotations or {}}
    return {
        "metadata": metadata,
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 0, "restartPolicy": "Never", **spec},
    }


def _service(name: str, **spec: Any) -> Object:
    ports = [
        {"name": "tcp", "port": 80, "targetPort": 8080},
        {"name": "udp", "port": 80, "targetPort": 8080, "protocol": "UDP"},
    ]
    return {"metadata": {"name": name}, "spec": {"selector": {"app": name}, "ports": ports, **spec}}


class World:
    """A platform with one node, and what tests do with it."""

    def __init__(self, client: HttpClient, node: Object) -> None:
        self.client = client
        self.node = node
        self.table, self.pod_range = node["metadata"]["annotations"]["sampan.dev/pods-table"].split()
        self._asked = 0

    async def pod(self, name: str, *phases: str) -> Object:
        async with asyncio.timeout(40):
            while True:
                pod = await self.client.get(PODS, name, "default")
                if pod.get("status", {}).get("phase") in phases:
                    return pod
                await asyncio.sleep(0.02)

    async def serve(self, name: str, annotations: dict[str, str] | None = None, **spec: Any) -> str:
        """A running server; its address."""
        await self.client.create(PODS, _pod(name, SERVE, annotations=annotations, **spec), "default")
        address: str = (await self.pod(name, "Running"))["status"]["podIP"]
        async with asyncio.timeout(20):
            while True:
                try:
                    (await asyncio.open_connection(address, 8080))[1].close()
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    return address

    async def ask(
        self, *lines: str, app: str = "ask", annotations: dict[str, str] | None = None, **spec: Any
    ) -> list[Any]:
        """What another pod finds; it is gone afterwards."""
        self._asked += 1
        name = f"{app}-{self._asked}"
        await self.client.create(PODS, _pod(name, ASK, *lines, annotations=annotations, **spec), "default")
        pod = await self.pod(name, "Succeeded", "Failed")
        message = pod["status"]["containerStatuses"][0]["state"]["terminated"].get("message", "null")
        await self.client.delete(PODS, name, "default")
        found: list[Any] = json.loads(message)
        return found

    async def settled(self, wanted: list[Any], *lines: str, words: int = 0, **options: Any) -> None:
        """What was written takes a moment to reach the rules. ``words``: of each answer only the first so many."""
        async with asyncio.timeout(30):
            while True:
                found = await self.ask(*lines, **options)
                if words:
                    found = [one[0] if isinstance(one, list) else " ".join(one.split()[:words]) for one in found]
                if found == wanted:
                    return
                print(found)

    async def address(self, service: Object) -> str:
        """A new Service's address, once all its pods are behind it."""
        made = await self.client.create(SERVICES, service, "default")
        address: str = made["spec"]["clusterIP"]
        return address

    async def behind(self, service: str, count: int) -> None:
        """So many endpoints are ready."""
        async with asyncio.timeout(20):
            while True:
                slices = (await self.client.list(ENDPOINT_SLICES, "default")).items
                own = [one for one in slices if one["metadata"]["labels"].get("kubernetes.io/service-name") == service]
                ready = [e for one in own for e in one.get("endpoints") or () if e["conditions"]["ready"]]
                if len(ready) == count:
                    return
                await asyncio.sleep(0.02)


@asynccontextmanager
async def _world(**settings: Any) -> AsyncIterator[World]:
    async with (
        sampan.testing.Platform(only=ONLY, settings={**SETTINGS, **settings}) as platform,
        platform.client() as client,
    ):
        node = (await client.list(NODES)).items[0]
        if settings.get("node.tier") == "T1n" and not any(
            one["reason"] == "T1n" for one in node["status"]["conditions"]
        ):
            pytest.skip("no namespaces with nf_tables here")
        world = World(client, node)
        yield world
    assert not nftables.exists(world.table)
    assert not links.present(IPv4Network(world.pod_range))
    packed = socket.inet_aton(world.pod_range.partition("/")[0])
    routes = await asyncio.to_thread(Path("/proc/net/route").read_text)
    assert packed[::-1].hex().upper() not in routes


async def _host(address: str, port: int) -> str:
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_connection(address, port)
        found = (await reader.read(100)).decode()
        writer.close()
        return found


REFUSED, LATE = "ConnectionRefusedError", "TimeoutError"


async def test_in_tier_t1n_every_pod_has_a_network_of_its_own() -> None:
    async with _world(**{"node.tier": "T1n"}) as world:
        first, second = await world.serve("web-1"), await world.serve("web-2")  # both at 0.0.0.0:8080
        service = await world.address(_service("web", type="NodePort"))
        await world.address({**_service("web", sessionAffinity="ClientIP"), "metadata": {"name": "sticky"}})
        nobody = await world.address(_service("nobody"))
        for name in ("web", "sticky"):
            await world.behind(name, 2)

        # what it sees of itself
        pod_range = first.rpartition(".")[0]
        found = await world.ask("interfaces", "raw", "tcp 127.0.0.1 9000", f"tcp {pod_range}.250 8080")
        interfaces, me, shown, by_name = found[0]
        assert interfaces == ["lo", "eth0"]
        assert shown == ["eth0", "lo"]
        assert me == by_name
        assert me.startswith(pod_range)
        assert found[1:] == ["raw", REFUSED, "OSError"]

        # pods, Services by name and address, over TCP and UDP, with the client's address seen
        found = await world.ask(
            "interfaces", f"tcp {first} 8080", f"udp {second} 8080", "tcp web 80", f"udp {service} 80"
        )
        me = found[0][1]
        assert found[1:3] == [f"web-1 {me}", f"web-2 {me}"]
        assert {found[3], found[4]} <= {f"web-1 {me}", f"web-2 {me}"}

        # every endpoint, or always the same; refusals; names; the API server
        await world.settled([["web-1", "web-2"]], "names web 80 40")
        [found] = await world.ask("names sticky 80 20")
        assert found in (["web-1"], ["web-2"])
        await world.settled([REFUSED] * 3, f"tcp {service} 81", f"tcp {nobody} 80", f"udp {nobody} 80")
        names = ("resolve kubernetes.default.svc.cluster.local", "resolve absent.default", "handshake kubernetes 443")
        assert await world.ask(*names) == [["10.96.0.1"], "gaierror", "TLS"]
        assert await world.ask("tcp 127.0.0.1 10250", f"tcp {links.GATEWAY} 10250") == [REFUSED, REFUSED]

        # one that leaves the Service is asked no more; the machine reaches pods, node ports and Services
        await world.client.delete(PODS, "web-2", "default")
        await world.behind("web", 1)
        await world.settled([["web-1"], ["web-1"]], "names web 80 20", "names sticky 80 5")
        assert await _host(first, 8080) == f"web-1 {links.GATEWAY}"
        port = (await world.client.get(SERVICES, "web", "default"))["spec"]["ports"][0]["nodePort"]
        assert await _host("127.0.0.1", port) == f"web-1 {links.GATEWAY}"
        assert (await _host(service, 80)).startswith("web-1 ")

        # a pod reaches itself through its Service, and is seen as the node
        await world.client.create(
            PODS,
            _pod(
                "self-1",
                f"import threading\nthreading.Thread(target=lambda: exec({SERVE!r}, {{}}), daemon=True).start()\n{HAIRPIN}",
            ),
            "default",
        )
        await world.address(_service("self", publishNotReadyAddresses=True))
        pod = await world.pod("self-1", "Succeeded", "Failed")
        assert pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"] == f"self-1 {links.GATEWAY}"


async def test_pods_with_and_without_namespaces_on_one_node() -> None:
    async with _world() as world:
        if not any(one["reason"] == "T1" for one in world.node["status"]["conditions"]):
            pytest.skip("no cgroup eBPF here")
        assert not nftables.exists(world.table)
        plain = await world.serve("web-plain")
        apart = await world.serve("web-apart", NAMESPACE)
        assert nftables.exists(world.table)
        service = await world.address(_service("web"))
        await world.behind("web", 2)
        await world.settled([["web-apart", "web-plain"]], "names web 80 40")
        both = (f"tcp {plain} 8080", f"udp {plain} 8080", f"tcp {apart} 8080", f"udp {apart} 8080")
        more = ("names web 80 40", "resolve web", "handshake kubernetes 443", f"tcp {service} 81")
        for annotations in ({}, NAMESPACE):
            found = await world.ask(*both, *more, annotations=annotations)
            peers = {one.split()[1] for one in found[:4]}
            assert len(peers) == 1, found
            assert peers.pop() not in (plain, apart, links.GATEWAY)
            assert [one.split()[0] for one in found[:4]] == ["web-plain"] * 2 + ["web-apart"] * 2
            assert found[4:] == [["web-apart", "web-plain"], [service], "TLS", REFUSED]

        # policy holds between them, whichever way and whoever is isolated; the node and replies pass
        friends = {"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}], "ports": [{"port": 8080}]}
        await world.client.create(
            NETWORK_POLICIES,
            {
                "metadata": {"name": "friends"},
                "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [friends]},
            },
            "default",
        )
        for annotations in (NAMESPACE, {}):
            asked = (f"tcp {plain} 8080", f"tcp {apart} 8080")
            await world.settled([LATE] * 2, *asked, annotations=annotations)
            await world.settled(["web-plain", "web-apart"], *asked, app="friend", annotations=annotations, words=1)
        assert await _host(apart, 8080) == f"web-apart {links.GATEWAY}"
        await world.client.delete(NETWORK_POLICIES, "friends", "default")
        await world.settled(["web-apart"], f"tcp {apart} 8080", annotations=NAMESPACE, words=1)

        # egress of one with a namespace: names and the one port, nothing else
        await world.client.create(
            NETWORK_POLICIES,
            {
                "metadata": {"name": "quiet"},
                "spec": {
                    "podSelector": {"matchLabels": {"app": "quiet"}},
                    "policyTypes": ["Egress"],
                    "egress": [
                        {
                            "to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": [f"{plain}/32"]}}],
                            "ports": [{"port": 8000, "endPort": 8080}],
                        }
                    ],
                },
            },
            "default",
        )
        told = (f"tcp {plain} 8080", f"tcp {apart} 8080", "resolve web")
        await world.settled([LATE, "web-apart", service], *told, app="quiet", annotations=NAMESPACE, words=1)

        # the table is there only as long as somebody needs it
        await world.client.delete(PODS, "web-apart", "default")
        async with asyncio.timeout(20):
            while nftables.exists(world.table):
                await asyncio.sleep(0.05)
        assert (await world.ask("names web 80 5")) == [["web-plain"]]


async def test_a_pod_that_can_have_no_namespace_is_not_started() -> None:
    async with (
        sampan.testing.Platform(only=ONLY, settings={**SETTINGS, "node.tier": "T2"}) as platform,
        platform.client() as client,
    ):
        await client.create(PODS, _pod("apart", "pass", annotations=NAMESPACE), "default")
        async with asyncio.timeout(20):
            while not (
                told := [
                    one["message"]
                    for one in (await client.list(EVENTS, "default")).items
                    if one["reason"] == "FailedCreatePodSandBox"
                ]
            ):
                await asyncio.sleep(0.05)
        assert "a network namespace of the pod's own needs tier T1 or T1n; this node has T" in told[0]


async def test_kubectl_probes_and_the_gateway_reach_pods_with_namespaces() -> None:
    parts = [*ONLY, "traffic"]
    async with (
        sampan.testing.Platform(only=parts, settings={**SETTINGS, "node.tier": "T1n"}) as platform,
        platform.client() as client,
    ):
        node = (await client.list(NODES)).items[0]
        if not any(one["reason"] == "T1n" for one in node["status"]["conditions"]):
            pytest.skip("no namespaces with nf_tables here")
        with socket.create_server(("127.0.0.1", 0)) as free:
            host_port = free.getsockname()[1]
        page = _pod("page", PAGE)
        page["spec"]["containers"][0] |= {
            "ports": [{"containerPort": 8080, "hostPort": host_port}],
            "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
            "livenessProbe": {"tcpSocket": {"port": 8080}},
            "startupProbe": {"exec": {"command": ["true"]}},
        }
        await client.create(PODS, page, "default")
        ports = [{"port": 80, "targetPort": 8080}]
        await client.create(
            SERVICES, {"metadata": {"name": "page"}, "spec": {"selector": {"app": "page"}, "ports": ports}}, "default"
        )
        backend = {"service": {"name": "page", "port": {"number": 80}}}
        path = {"path": "/", "pathType": "Prefix", "backend": backend}
        await client.create(
            INGRESSES,
            {"metadata": {"name": "page"}, "spec": {"rules": [{"host": "page.test", "http": {"paths": [path]}}]}},
            "default",
        )

        async def kubectl_run(*arguments: str) -> str:
            process = await _kubectl(platform, *arguments)
            async with asyncio.timeout(40):
                out, err = await process.communicate()
            assert process.returncode == 0, err.decode()
            return out.decode()

        await kubectl_run("wait", "--for=condition=Ready", "pod/page", "--timeout=30s")
        address = (await client.get(PODS, "page", "default"))["status"]["podIP"]
        shown = json.loads(await kubectl_run("exec", "page", "--", "python", "-c", SHOW))
        assert shown[:2] == [["eth0", "lo"], address]
        assert shown[2][shown[2].index("nameserver") + 1] == "10.96.0.10"
        assert "GET / " in await kubectl_run("logs", "page")

        forwarding = await _kubectl(platform, "port-forward", "pod/page", ":9000")  # its localhost only
        assert forwarding.stdout is not None
        async with asyncio.timeout(30):
            line = (await forwarding.stdout.readline()).decode()
        assert await _page("127.0.0.1", int(line.split("127.0.0.1:")[1].split(" ")[0])) == "page"
        forwarding.terminate()
        await forwarding.wait()

        gateway = int(platform.address("gateway").rpartition(":")[2])
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(OSError, AssertionError):
                    if await _page("127.0.0.1", gateway, host="page.test") == "page":
                        break
                await asyncio.sleep(0.05)
        assert await _page("127.0.0.1", host_port) == "page"


async def _kubectl(platform: sampan.testing.Platform, *arguments: str) -> asyncio.subprocess.Process:
    environment = {**os.environ, "KUBECONFIG": str(platform.kubeconfig)}
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(str(kubectl()), *arguments, stdout=pipe, stderr=pipe, env=environment)


async def _page(address: str, port: int, host: str = "page") -> str:
    """The last line of what a server answers, which must be well."""
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_connection(address, port)
        writer.write(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = (await reader.read()).decode()
        writer.close()
    assert answer.split(" ", 2)[1] == "200", answer
    return answer.rpartition("\n")[2]
