"""A machine in a network namespace, with pods that have links, a neighbour outside, and the nf_tables data path over real sockets.

``python -m tests.clients.packet_world SCENARIO`` runs one scenario in namespaces of its own and prints what was seen as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import random
import select
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from sampan.kernel import nftables
from sampan.parts.network.datapath.packets import PacketPath
from sampan.parts.network.policy import Allowance, Isolation
from sampan.parts.network.services import Backends, Frontend
from sampan.parts.node.runtime import links, netlink, syscalls
from tests.namespaces import end_process, process_apart

RANGE = "10.244.9.0/24"
FIRST, SECOND, THIRD = (f"10.244.9.{n}" for n in (2, 3, 4))
NAMES = Frontend("10.96.0.10", 53, "UDP")
WEB = Frontend("10.96.0.7", 80, "TCP")
BALANCER = Frontend("198.51.100.9", 53, "UDP")
INSIDE, OUTSIDE = "198.51.100.1", "198.51.100.2"
PATIENCE = 5.0


class World:
    """The machine."""

    def __init__(self) -> None:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        netlink.set_up("lo")
        self._pids: dict[str, int] = {}
        self.path = PacketPath("sampan-test", RANGE, host=True)
        asyncio.run(self.path.begin({}, {}, [IPv4Network(RANGE)]))

    def pod(self, address: str) -> None:
        self._pids[address] = process_apart()
        links.connect(address, self._pids[address], {}, folder=Path(f"/tmp/sampan-test-{os.getpid()}"))

    def neighbour(self) -> None:
        """A machine that knows nothing of pods."""
        self._pids[OUTSIDE] = process_apart()
        netlink.add_veth("wire", "eth0", self._pids[OUTSIDE])
        netlink.add_address("wire", INSIDE, 24)
        netlink.set_up("wire")
        with self.at(OUTSIDE):
            netlink.add_address("eth0", OUTSIDE, 24)
            netlink.set_up("eth0")
        netlink.add_link_route("198.51.100.0/24", "wire")

    @contextlib.contextmanager
    def at(self, address: str) -> Iterator[None]:
        """Sockets made here are that pod's; they stay so."""
        descriptor = os.pidfd_open(self._pids[address])
        try:
            with links.inside(descriptor):
                yield
        finally:
            os.close(descriptor)

    def udp(self, address: str = "", port: int = 0, bound: str = "") -> socket.socket:
        """A datagram socket of a pod, or of the machine."""

        def make() -> socket.socket:
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.bind((bound, port))
            made.settimeout(PATIENCE)
            return made

        if not address:
            return make()
        with self.at(address):
            return make()

    def end(self) -> None:
        for pid in self._pids.values():
            end_process(pid)
        folder = Path(f"/tmp/sampan-test-{os.getpid()}")
        for left in folder.glob("*"):
            left.unlink()
        if folder.exists():
            folder.rmdir()


def _put(path: PacketPath, frontend: Frontend, *endpoints: tuple[str, int], **more: Any) -> None:
    asyncio.run(path.put(frontend, Backends(endpoints, **more)))


def flows(world: World) -> list[str]:
    """A client that never stops asking is answered by who is an endpoint now; then by nobody."""
    for address in (FIRST, SECOND, THIRD):
        world.pod(address)
    servers = {address: world.udp(address, 5353) for address in (FIRST, SECOND)}
    client = world.udp(THIRD, 4000)
    client.connect((NAMES.address, NAMES.port))
    seen = []
    for address in (FIRST, SECOND):
        _put(world.path, NAMES, (address, 5353))
        for _ in range(2):
            client.send(b"?")
            data, peer = servers[address].recvfrom(10)
            servers[address].sendto(data, peer)
            seen.append(f"{address} {peer[0]} {client.recv(10).decode()}")
    asyncio.run(world.path.put(NAMES, Backends(())))
    client.send(b"?")
    try:
        client.recv(10)
    except ConnectionRefusedError as error:
        seen.append(type(error).__name__)
    return seen


def outside(world: World) -> list[str]:
    """A network outside sees the machine, and its answers come back; it cannot begin with a pod's address behind it."""
    world.neighbour()
    world.pod(FIRST)
    server, client = world.udp(OUTSIDE, 7), world.udp(FIRST)
    client.sendto(b"hello", (OUTSIDE, 7))
    _, peer = server.recvfrom(10)
    server.sendto(b"answer", peer)
    return [peer[0], client.recv(10).decode()]


def forged(world: World) -> dict[str, list[str]]:
    """What a pod writes on its wire by hand: its own address passes, another's and the machine's localhost do not."""
    world.pod(FIRST)
    world.pod(SECOND)
    heard = {"pod": world.udp(SECOND, 7), "localhost": world.udp("", 7, "127.0.0.1")}
    with world.at(FIRST):
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
        wire.bind(("eth0", 0x0800))
        own = wire.getsockname()[4]
    host = _hardware(links.name_of(FIRST))
    seen: dict[str, list[str]] = {name: [] for name in heard}

    def send(source: str, target: str, words: bytes, port: int = 7) -> None:
        data = struct.pack(">HHHH", len(words), port, 8 + len(words), 0) + words
        head = struct.pack(
            ">BBHHHBBH4s4s",
            *(0x45, 0, 20 + len(data), 1, 0, 64, 17, 0),
            *(socket.inet_aton(source), socket.inet_aton(target)),
        )
        total = sum(struct.unpack(">10H", head))
        total = (total & 0xFFFF) + (total >> 16)
        head = head[:10] + struct.pack(">H", ~(total + (total >> 16)) & 0xFFFF) + head[12:]
        wire.send(host + own + b"\x08\x00" + head + data)

    send(THIRD, SECOND, b"forged")
    send(SECOND, SECOND, b"forged")
    send(FIRST, "127.0.0.1", b"forged")
    send(FIRST, SECOND, b"own")
    seen["pod"].append(heard["pod"].recv(10).decode())
    # through a Service localhost is reached; without our rule by hand, too: the rule is what keeps it apart
    _put(world.path, NAMES, ("127.0.0.1", 7))
    send(FIRST, NAMES.address, b"service", NAMES.port)
    seen["localhost"].append(heard["localhost"].recv(10).decode())
    asyncio.run(world.path.end())
    send(FIRST, "127.0.0.1", b"unguarded")
    seen["localhost"].append(heard["localhost"].recv(10).decode())
    return seen


def _hardware(name: str) -> bytes:
    """An interface's hardware address (/sys shows another namespace's)."""
    with socket.socket() as any_socket:
        return fcntl.ioctl(any_socket, 0x8927, struct.pack("256s", name.encode()))[18:24]


def changes(world: World) -> int:
    """The kernel takes whatever frontends and policies become, one after the other."""
    chance = random.Random(7)
    pods = [f"10.244.9.{n}" for n in range(2, 8)]
    networks = [
        IPv4Network(one) for one in ("0.0.0.0/0", "10.244.9.0/25", "10.244.9.4/31", "10.244.9.5/32", "192.0.2.0/24")
    ]

    def allowance() -> Allowance:
        first, last = sorted((chance.randint(1, 30), chance.randint(1, 30)))
        return Allowance(
            chance.choice(["TCP", "UDP"]), first, last, frozenset(chance.sample(networks, chance.randint(1, 3)))
        )

    def side() -> tuple[Allowance, ...] | None:
        return None if chance.random() < 0.3 else tuple(allowance() for _ in range(chance.randint(0, 4)))

    async def change() -> None:
        frontend = Frontend(f"10.96.0.{chance.randint(1, 5)}", chance.choice([80, 443]), chance.choice(["TCP", "UDP"]))
        endpoints = tuple((pod, chance.choice([80, 81])) for pod in chance.sample(pods, chance.randint(0, 4)))
        backends = Backends(endpoints, affinity=chance.choice([0, 60]), drop=chance.random() < 0.2)
        putting = world.path.drop(frontend) if chance.random() < 0.2 else world.path.put(frontend, backends)
        isolated = {pod: Isolation(side(), side()) for pod in chance.sample(pods, chance.randint(0, 4))}
        await asyncio.gather(putting, world.path.enforce(isolated))

    async def many() -> None:
        for _ in range(120):
            await change()

    asyncio.run(many())
    return 120


def guarded(world: World) -> list[str]:
    """A load balancer takes clients from its source ranges only: another pod hears nothing, nor does the machine."""
    world.neighbour()
    for address in (FIRST, SECOND, THIRD):
        world.pod(address)
    server = world.udp(FIRST, 5353)
    _put(world.path, BALANCER, (FIRST, 5353), reach="external", sources=(f"{SECOND}/32",))
    seen = []
    for address in (SECOND, THIRD, ""):
        with contextlib.suppress(PermissionError):  # what a process of the machine hears of a dropped datagram
            world.udp(address).sendto((address or "machine").encode(), (BALANCER.address, BALANCER.port))
        server.settimeout(PATIENCE if address == SECOND else 0.2)
        try:
            seen.append(server.recvfrom(100)[0].decode())
        except TimeoutError:
            seen.append("")
    _put(world.path, BALANCER, (FIRST, 5353), reach="external")
    world.udp(THIRD).sendto(b"anybody", (BALANCER.address, BALANCER.port))
    server.settimeout(PATIENCE)
    return [*seen, server.recvfrom(100)[0].decode()]


def slipped(world: World) -> list[str]:
    """A connection whose first packet no rule translated leads to its Service all the same, and not outside."""
    world.neighbour()
    netlink.add_default_route("wire", OUTSIDE)
    world.pod(FIRST)
    world.pod(SECOND)
    with world.at(SECOND):
        server = socket.create_server(("0.0.0.0", 8080))
    with world.at(FIRST):
        client = socket.socket()
    frontends = {WEB: Backends(((SECOND, 8080),))}
    asyncio.run(world.path.begin(frontends, {}, [IPv4Network(RANGE)]))
    batch = nftables.Batch("sampan-test")
    batch.flush("services")
    batch.commit()
    client.setblocking(False)
    client.connect_ex((WEB.address, WEB.port))
    seen = [str(select.select([], [client], [], 0.2)[1])]
    asyncio.run(world.path.begin(frontends, {}, [IPv4Network(RANGE)]))
    server.settimeout(PATIENCE * 2)
    return [*seen, server.accept()[1][0]]


def twice(world: World) -> list[bool]:
    """A table is replaced whole, and taken away twice."""
    again = PacketPath("sampan-test", RANGE, host=False)
    asyncio.run(again.begin({WEB: Backends(((FIRST, 1),))}, {}, []))
    found = [again.stands()]
    asyncio.run(again.end())
    found.append(again.stands())
    asyncio.run(again.end())
    return [*found, nftables.exists("sampan-test")]


SCENARIOS: dict[str, Callable[[World], Any]] = {
    one.__name__: one for one in (flows, outside, forged, changes, guarded, slipped, twice)
}


def main() -> None:
    """Run the scenario that is named."""
    world = World()
    try:
        print(json.dumps(SCENARIOS[sys.argv[1]](world)))
    finally:
        world.end()


if __name__ == "__main__":
    main()
