"""Services and policy by eBPF programs, with real sockets in real cgroups."""

from __future__ import annotations

import errno
import os
import socket
import threading
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from sampan.kernel.clock import Clock
from sampan.parts.network.datapath.kernel import KernelPath, find_pods, level_of
from sampan.parts.network.policy import EVERYWHERE, Allowance, Isolation
from sampan.parts.network.services import Backends, Frontend
from sampan.parts.node.runtime import netlink
from sampan.parts.node.runtime.addresses import PodAddresses
from sampan.parts.node.runtime.cgroups import Cgroups
from sampan.parts.node.runtime.tiers import in_child

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: cgroups and eBPF"),
]

VIP = "10.96.7.7"


class Node:
    """A cgroup with two pods, as the node part makes it."""

    def __init__(self) -> None:
        self.cgroups = Cgroups.find(f"net-{uuid.uuid4().hex[:8]}")
        root = self.cgroups.unified
        if root is None:
            pytest.skip("no cgroup v2 tree that can be written")
        self.root: Path = root
        self.number = 200 + os.getpid() % 50
        self.range = f"10.244.{self.number}.0/24"
        netlink.add_local_route(self.range)
        self.level = level_of(root) + 1
        self.addresses = PodAddresses(root, self.level, self.range, ["10.244.0.0/16", "10.96.0.0/12"])
        self.pods = [self.pod("a", 2), self.pod("b", 3)]
        self.path = self.attach()

    def attach(self) -> KernelPath:
        pods = find_pods(self.root)
        assert pods is not None
        return KernelPath(self.root, Clock(), pods=pods, level=self.level)

    def pod(self, name: str, number: int) -> str:
        address = f"10.244.{self.number}.{number}"
        (self.root / name).mkdir()
        self.addresses.add(self.root / name, address)
        return address

    def inside(self, pod: str, work: Callable[[], None]) -> str:
        """Run in a pod; "" or what failed."""

        def enter() -> None:
            (self.root / pod / "cgroup.procs").write_text("0")
            work()

        return in_child(enter)

    def close(self) -> None:
        self.path.close()
        self.cgroups.destroy()
        netlink.remove_local_route(self.range)


@pytest.fixture
async def node() -> AsyncIterator[Node]:  # the path's clock wants a running loop
    made = Node()
    yield made
    made.close()


class Server:
    """Says its name to whoever comes, over TCP or UDP."""

    def __init__(self, name: str, address: str = "127.0.0.1", kind: int = socket.SOCK_STREAM) -> None:
        self.name = name.encode()
        self.socket = socket.socket(socket.AF_INET, kind)
        self.socket.bind((address, 0))
        self.at: tuple[str, int] = self.socket.getsockname()
        self.callers: list[str] = []
        if kind == socket.SOCK_STREAM:
            self.socket.listen(64)
        threading.Thread(target=self._stream if kind == socket.SOCK_STREAM else self._datagrams, daemon=True).start()

    def _stream(self) -> None:
        while True:
            try:
                connection, peer = self.socket.accept()
            except OSError:
                return
            self.callers.append(peer[0])
            connection.sendall(self.name)
            connection.close()

    def _datagrams(self) -> None:
        while True:
            try:
                data, peer = self.socket.recvfrom(100)
            except OSError:
                return
            self.callers.append(peer[0])
            self.socket.sendto(self.name + data, peer)

    def close(self) -> None:
        self.socket.close()


def _call(address: tuple[str, int] = (VIP, 80), family: int = socket.AF_INET) -> bytes:
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(5)
        client.connect(address)
        assert client.getpeername()[:2] == address
        return client.recv(100)


def _refusal(address: tuple[str, int], kind: int = socket.SOCK_STREAM) -> str:
    with socket.socket(socket.AF_INET, kind) as client:
        client.settimeout(5)
        try:
            if kind == socket.SOCK_STREAM:
                client.connect(address)
            else:
                client.sendto(b"x", address)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
    return ""


def _same(found: object, wanted: object) -> None:
    if found != wanted:
        raise AssertionError(f"{found!r} is not {wanted!r}")


async def test_a_service_reaches_a_server_of_the_platform_from_a_pod(node: Node) -> None:
    with closing(Server("api")) as server:
        node.path.set(Frontend(VIP, 80, "TCP"), Backends((server.at,)))
        assert node.inside("a", lambda: _same(_call(), b"api")) == ""
        mapped = (f"::ffff:{VIP}", 80)
        assert node.inside("a", lambda: _same(_call(mapped, socket.AF_INET6), b"api")) == ""
        assert server.callers == [node.pods[0]] * 2  # seen under the pod's own address
        assert "timed out" not in node.inside("a", lambda: _same(_refusal((VIP, 81)), "ECONNREFUSED"))


async def test_connections_spread_over_endpoints_and_follow_changes(node: Node) -> None:
    with closing(Server("1")) as one, closing(Server("2")) as two:
        front = Frontend(VIP, 80, "TCP")
        node.path.set(front, Backends((one.at, two.at)))

        def spread() -> None:
            seen = Counter(_call() for _ in range(60))
            _same(set(seen), {b"1", b"2"})

        assert node.inside("a", spread) == ""
        node.path.set(front, Backends((two.at,)))
        assert node.inside("a", lambda: _same({_call() for _ in range(10)}, {b"2"})) == ""
        node.path.set(front, Backends(()))
        assert node.inside("a", lambda: _same(_refusal((VIP, 80)), "ECONNREFUSED")) == ""
        assert node.inside("a", lambda: _same(_refusal((VIP, 81)), "ECONNREFUSED")) == ""
        node.path.set(front, Backends((), drop=True))
        assert node.inside("a", lambda: _same(_refusal((VIP, 80)), "ETIMEDOUT")) == ""


async def test_a_load_balancer_keeps_its_source_ranges_inside_the_cluster(node: Node) -> None:
    with closing(Server("1")) as one:
        front, backends = Frontend(VIP, 80, "TCP"), Backends((one.at,), reach="external")
        a, b = node.pods
        node.path.set(front, backends._replace(sources=(f"{a}/32", "192.0.2.0/24")))
        assert node.inside("a", lambda: _same(_call(), b"1")) == ""
        assert node.inside("b", lambda: _same(_refusal((VIP, 80)), "ETIMEDOUT")) == ""
        node.path.set(front, backends._replace(sources=(f"{b}/32",)))
        assert node.inside("a", lambda: _same(_refusal((VIP, 80)), "ETIMEDOUT")) == ""
        assert node.inside("b", lambda: _same(_call(), b"1")) == ""
        node.path.sweep()
        assert node.inside("b", lambda: _same(_call(), b"1")) == ""
        node.path.set(front, backends)
        node.path.sweep()
        assert node.inside("a", lambda: _same(_call(), b"1")) == ""
        assert not list(node.path.tables.sources)


async def test_nobody_inherits_who_may_reach_a_load_balancer_that_is_gone(node: Node) -> None:
    with closing(Server("1")) as one:
        a, b = node.pods
        front, backends = Frontend(VIP, 80, "TCP"), Backends((one.at,), reach="external", sources=(f"{a}/32",))
        node.path.set(front, backends)
        node.path.unset(front)
        node.path.close()  # killed before it swept
        node.path = node.attach()
        assert list(node.path.tables.sources)
        node.path.set(Frontend(VIP, 90, "TCP"), backends._replace(sources=(f"{b}/32",)))
        assert node.inside("a", lambda: _same(_refusal((VIP, 90)), "ETIMEDOUT")) == ""
        node.path.sweep()
        assert len(list(node.path.tables.sources)) == 1


async def test_a_service_that_does_not_fit_takes_no_room_from_others(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))

    with closing(Server("1")) as one:
        front, backends = Frontend(VIP, 80, "TCP"), Backends((one.at,), affinity=9, sources=(f"{node.pods[0]}/32",))
        with monkeypatch.context() as patch, pytest.raises(OSError, match="too long"):
            patch.setattr(node.path.tables.services, "update", full)
            node.path.set(front, backends)
        assert not [*node.path.tables.sources, *node.path.tables.backends]
        node.path.set(front, backends)
        assert node.inside("a", lambda: _same(_call(), b"1")) == ""


async def test_a_client_stays_with_its_endpoint_while_it_is_there(node: Node) -> None:
    with closing(Server("1")) as one, closing(Server("2")) as two, closing(Server("3")) as three:
        front = Frontend(VIP, 80, "TCP")
        node.path.set(front, Backends((one.at, two.at, three.at), affinity=10))
        assert node.inside("a", lambda: _same(len({_call() for _ in range(20)}), 1)) == ""
        kept = next(server for server in (one, two, three) if server.callers)
        others = tuple(server.at for server in (one, two, three) if server is not kept)
        node.path.set(front, Backends((*others, kept.at), affinity=10))
        assert node.inside("a", lambda: _same({_call() for _ in range(10)}, {kept.name})) == ""
        node.path.set(front, Backends(others, affinity=10))
        assert node.inside("a", lambda: _same(len({_call() for _ in range(20)}), 1)) == ""


async def test_datagrams_come_back_from_the_service(node: Node) -> None:
    with closing(Server("dns", kind=socket.SOCK_DGRAM)) as server:
        node.path.set(Frontend(VIP, 53, "UDP"), Backends((server.at,)))

        def unconnected() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(5)
                client.sendto(b"?", (VIP, 53))
                _same(client.recvfrom(100), (b"dns?", (VIP, 53)))

        def connected() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(5)
                client.connect((VIP, 53))
                client.send(b"!")
                _same(client.recvfrom(100), (b"dns!", (VIP, 53)))
                _same(client.getpeername(), (VIP, 53))

        def mapped() -> None:
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
                client.settimeout(5)
                client.sendto(b"6", (f"::ffff:{VIP}", 53))
                answer, source = client.recvfrom(100)
                _same((answer, source[:2]), (b"dns6", (f"::ffff:{VIP}", 53)))

        for work in (unconnected, connected, mapped):
            assert node.inside("a", work) == ""
        assert node.inside("a", lambda: _same(_refusal((VIP, 54), socket.SOCK_DGRAM), "ECONNREFUSED")) == ""


async def test_a_new_process_takes_over_what_is_attached(node: Node) -> None:
    with closing(Server("1")) as one, closing(Server("2")) as two:
        node.path.set(Frontend(VIP, 80, "TCP"), Backends((one.at,)))
        node.path.set(Frontend(VIP, 90, "TCP"), Backends((one.at,)))
        former = node.path
        node.path.close()
        assert node.inside("a", lambda: _same(_call(), b"1")) == ""  # nobody is there, Services work
        node.path = node.attach()
        assert node.path.adopted
        assert node.inside("a", lambda: _same(_call(), b"1")) == ""
        node.path.set(Frontend(VIP, 80, "TCP"), Backends((two.at,)))
        node.path.sweep()
        former.sweep()  # due only after its end: nothing is its to sweep any more
        assert node.inside("a", lambda: _same(_call(), b"2")) == ""
        assert node.inside("a", lambda: _same(_refusal((VIP, 90)), "ECONNREFUSED")) == ""


async def test_programs_that_the_node_attaches_anew_are_noticed(node: Node) -> None:
    with closing(Server("api")) as server:
        node.path.set(Frontend(VIP, 80, "TCP"), Backends((server.at,)))
        assert node.path.stands()
        # as a keeper does that starts again over the same cgroup
        again = PodAddresses(node.root, node.level, node.range, ["10.244.0.0/16", "10.96.0.0/12"])
        again.add(node.root / "a", node.pods[0])
        assert not node.path.stands()
        node.path.close()
        node.path = node.attach()
        assert node.path.stands()
        node.path.set(Frontend(VIP, 80, "TCP"), Backends((server.at,)))
        assert node.inside("a", lambda: _same(_call(), b"api")) == ""


def _allow(port: int, *peers: str, protocol: str = "TCP") -> Allowance:
    return Allowance(protocol, port, port, frozenset(IPv4Network(peer) for peer in peers))


async def test_policies_hold_between_pods(node: Node) -> None:
    a, b = node.pods
    with closing(Server("b", b)) as server, closing(Server("host")) as outside:
        node.path.set(Frontend(VIP, 80, "TCP"), Backends((server.at,)))
        node.path.set(Frontend(VIP, 81, "TCP"), Backends((outside.at,)))

        def expect(result: str) -> None:
            for address in ((VIP, 80), server.at):
                assert node.inside("a", lambda address=address: _same(_refusal(address), result)) == ""  # type: ignore[misc]

        expect("")
        node.path.enforce({b: Isolation(ingress=())})
        expect("ETIMEDOUT")
        assert _refusal(server.at) == ""  # the node itself reaches its pods
        assert node.inside("b", lambda: _same(_refusal(server.at), "")) == ""  # and a pod itself
        node.path.enforce({b: Isolation(ingress=(_allow(server.at[1], a),))})
        expect("")
        node.path.enforce({b: Isolation(ingress=(_allow(server.at[1] - 1, a),))})
        expect("ETIMEDOUT")
        node.path.enforce(
            {b: Isolation(ingress=(Allowance("TCP", 1000, 65535, frozenset((IPv4Network(node.range),))),))}
        )
        expect("")
        node.path.enforce({a: Isolation(egress=())})
        expect("ETIMEDOUT")
        assert node.inside("a", lambda: _same(_call((VIP, 81)), b"host")) == ""  # the platform's own servers
        node.path.enforce({a: Isolation(egress=(_allow(server.at[1], str(EVERYWHERE)),)), b: Isolation(ingress=())})
        expect("ETIMEDOUT")
        node.path.enforce({})
        expect("")


async def test_answers_to_allowed_datagrams_pass(node: Node) -> None:
    a, b = node.pods
    ready, done = os.pipe(), os.pipe()

    def serve() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((b, 7000 + node.number))
            os.write(ready[1], b"r")
            data, peer = sock.recvfrom(100)
            sock.sendto(b"re:" + data, peer)
            os.read(done[0], 1)

    node.path.enforce({a: Isolation(ingress=()), b: Isolation(egress=(), ingress=None)})
    results: list[str] = []
    thread = threading.Thread(target=lambda: results.append(node.inside("b", serve)))
    thread.start()
    os.read(ready[0], 1)

    def ask() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            client.bind((a, 0))
            client.sendto(b"q", (b, 7000 + node.number))
            _same(client.recv(100), b"re:q")

    assert node.inside("a", ask) == ""
    os.write(done[1], b"d")
    thread.join()
    assert results == [""]
    assert node.inside("b", lambda: _same(_refusal((a, 9), socket.SOCK_DGRAM), "EPERM")) == ""
