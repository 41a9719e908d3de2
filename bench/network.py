"""What a Service costs: DNS answers by CPU time, connections through a ClusterIP beside plain loopback.

    python bench/network.py            # root for the eBPF and nf_tables parts
    python bench/network.py dns | programs | packets

The connection figures need root and a cgroup v2 tree; the variants take turns in one process (client and server) on one CPU.
CPU time is counted, the best of several rounds: a neighbour's load is not what is measured.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Network
from pathlib import Path

from prometheus_client import CollectorRegistry
from tests.namespaces import end_process, process_apart

from sampan.kernel import bpf
from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.kube.objects import Object
from sampan.parts.network.datapath.kernel import KernelPath, level_of
from sampan.parts.network.datapath.packet_table import PacketTable
from sampan.parts.network.dns import message
from sampan.parts.network.dns.server import NameServer
from sampan.parts.network.dns.upstream import Upstream
from sampan.parts.network.dns.zone import Zone
from sampan.parts.network.records import ServiceRecords, service_records
from sampan.parts.network.services import Backends, Frontend
from sampan.parts.node.runtime import links, netlink, syscalls

ROUNDS = 15
BATCH = 400


class _World:
    def __init__(self, count: int) -> None:
        service: Object = {"spec": {"clusterIP": "10.96.0.20", "ports": [{"name": "http", "port": 80}]}}
        endpoints = [{"addresses": [f"10.244.0.{n}"], "hostname": f"db-{n}"} for n in range(2, 12)]
        ports = [{"name": "http", "port": 80, "protocol": "TCP"}]
        slices: list[Object] = [{"addressType": "IPv4", "endpoints": endpoints, "ports": ports}]
        self._services = {f"s{n}": service_records(service, []) for n in range(count)}
        headless: Object = {"spec": {"clusterIP": "None", "ports": ports}}
        self._services["db"] = service_records(headless, slices)

    def has_namespace(self, name: str) -> bool:
        return name == "default"

    def service(self, namespace: str, name: str) -> ServiceRecords | None:
        return self._services.get(name)

    def names_of(self, address: str) -> list[str]:
        return []


async def dns() -> None:
    clock = Clock()
    async with Tasks(clock) as tasks:
        zone = Zone(_World(5000), server="10.96.0.10")
        server = NameServer(zone, Upstream(clock, []), clock, tasks, CollectorRegistry())
        print(f"{'DNS answer, 5,000 Services':44}{'us CPU':>10}{'x limit of 300':>16}")
        for name, kind in (
            ("s4999.default.svc.cluster.local", message.A),
            ("s4999.default.svc.cluster.local.default.svc.cluster.local", message.A),
            ("db.default.svc.cluster.local", message.A),
            ("_http._tcp.db.default.svc.cluster.local", message.SRV),
        ):
            query = message.write_query(7, name, kind)
            best = float("inf")
            for _ in range(ROUNDS):
                began = time.process_time()
                for _ in range(1000):
                    server.take(query, len)
                best = min(best, (time.process_time() - began) * 1000)
            print(f"{message.TYPE_NAMES[kind] + ' ' + name:60.60}"[:44] + f"{best:10.1f}{best / 300:16.3f}")


def _serve(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        connection.recv(64)
        connection.sendall(b"y" * 100)
        connection.close()


def _exchange(address: tuple[str, int]) -> None:
    with socket.socket() as client:
        client.connect(address)
        client.sendall(b"x")
        while client.recv(200):
            pass


def _connect(address: tuple[str, int], listener: socket.socket) -> None:
    """Set up and tear down, in one thread: the cost of connecting alone."""
    with socket.socket() as client:
        client.connect(address)
        listener.accept()[0].close()


def connections() -> None:
    from sampan.parts.node.runtime.cgroups import Cgroups

    if os.geteuid() != 0:
        print("connections: needs root")
        return
    groups = Cgroups.find(f"bench-{uuid.uuid4().hex[:8]}")
    root = groups.unified
    if root is None:
        print("connections: no cgroup v2 tree")
        return
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    inside, outside = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_serve, args=(outside,), daemon=True).start()
    home = str(root.parent / "cgroup.procs")
    groups.create("pod")
    pods = bpf.Map(bpf.HASH, 8, 24, 16)
    pods.update(struct.pack("=Q", (root / "pod").stat().st_ino), bytes((10, 244, 0, 9)) + bytes(20))
    path = KernelPath(root, Clock(), pods=pods, level=level_of(root) + 1)
    began = time.perf_counter()
    for number in range(5000):
        address = f"10.97.{number // 250}.{number % 250 + 1}"
        path.set(Frontend(address, 80, "TCP"), Backends((inside.getsockname(), inside.getsockname())))
    programmed = (time.perf_counter() - began) / 5000 * 1e6
    path.set(Frontend("10.96.7.7", 80, "TCP"), Backends((inside.getsockname(),)))
    path.set(Frontend("10.96.7.8", 80, "TCP"), Backends((outside.getsockname(),)))

    def move(place: str) -> None:
        Path(place).write_text("0")

    pod = str(root / "pod" / "cgroup.procs")
    try:
        direct, through = inside.getsockname(), ("10.96.7.7", 80)
        plain, service = outside.getsockname(), ("10.96.7.8", 80)
        results: dict[str, float] = {}
        variants: dict[str, tuple[str, Callable[[], None]]] = {
            "connect, plain loopback": (home, lambda: _connect(direct, inside)),
            "connect, ClusterIP among 5,000": (pod, lambda: _connect(through, inside)),
            "request of 100 bytes, plain loopback": (home, lambda: _exchange(plain)),
            "request of 100 bytes, ClusterIP": (pod, lambda: _exchange(service)),
        }
        for _ in range(ROUNDS):
            for name, (place, work) in variants.items():
                move(place)
                began = time.process_time()
                for _ in range(BATCH):
                    work()
                results[name] = min(results.get(name, 1e9), (time.process_time() - began) / BATCH * 1e6)
        print(f"\n{'one connection, one CPU':44}{'us CPU':>10}{'x loopback':>16}")
        base = 0.0
        for index, (name, value) in enumerate(results.items()):
            base = value if index % 2 == 0 else base
            print(f"{name:44}{value:10.1f}{value / base:16.3f}")
        print(f"{'programming one Service of two endpoints':44}{programmed:10.1f}")
    finally:
        move(home)
        path.close()
        pods.close()
        inside.close()
        outside.close()
        with suppress(OSError):
            groups.destroy()


# -- pods with network namespaces

POD_RANGE = "10.244.9.0/24"
SERVER, CLIENT = "10.244.9.2", "10.244.9.3"


def _pod(address: str, notes: Path) -> int:
    """A process with a network namespace and a link."""
    pid = process_apart()
    links.connect(address, pid, {}, notes)
    return pid


def _services(count: int) -> dict[Frontend, Backends]:
    backends = Backends(((SERVER, 8080), (CLIENT, 8080)))
    return {Frontend(f"10.97.{n // 250}.{n % 250 + 1}", 80, "TCP"): backends for n in range(count)}


def packets() -> None:
    """All in a network namespace of its own: nothing of the machine's is touched. By the clock: the kernel's work for packets
    is not counted as this process's."""
    if os.geteuid() != 0:
        print("packets: needs root")
        return
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    syscalls.unshare(syscalls.CLONE_NEWNET)
    netlink.set_up("lo")
    table = PacketTable("sampan-bench", POD_RANGE, host=False)
    ranges = [IPv4Network(POD_RANGE)]
    began = time.perf_counter()
    table.begin(_services(1000), {}, ranges)
    at_once = time.perf_counter() - began
    table.begin({}, {}, ranges)
    began = time.perf_counter()
    for frontend, backends in _services(1000).items():
        table.set(frontend, backends)
    singly = time.perf_counter() - began
    table.remove()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        pids = {address: _pod(address, Path(folder)) for address in (SERVER, CLIENT)}
        pod_cost = (time.perf_counter() - began) / 2
        try:
            results = _packet_rounds(table, pids)
        finally:
            for pid in pids.values():
                end_process(pid)
    print(f"\n{'one connection set up and closed, one CPU':54}{'us':>8}{'x loopback':>12}")
    base = next(iter(results.values()))
    for name, value in results.items():
        print(f"{name:54}{value:8.1f}{value / base:12.3f}")
    print(f"{'1,000 Services of two endpoints: in one transaction':54}{at_once * 1e3:8.1f} ms")
    print(f"{'the same one by one':54}{singly * 1e3:8.1f} ms")
    print(f"{'a namespace with its link, address and routes':54}{pod_cost * 1e3:8.1f} ms")


def _packet_rounds(table: PacketTable, pids: dict[str, int]) -> dict[str, float]:
    descriptors = {address: os.pidfd_open(pid) for address, pid in pids.items()}
    local = socket.create_server(("127.0.0.1", 0))
    with links.inside(descriptors[SERVER]):
        apart = socket.create_server(("0.0.0.0", 8080))
    results: dict[str, float] = {}
    frontends = {Frontend("10.96.7.7", 80, "TCP"): Backends(((SERVER, 8080),))}

    def measure(name: str, target: tuple[str, int], listener: socket.socket) -> None:
        began = time.perf_counter()
        for _ in range(BATCH // 4):
            _connect(target, listener)
        results[name] = min(results.get(name, 1e9), (time.perf_counter() - began) / (BATCH // 4) * 1e6)

    for _ in range(ROUNDS * 2):
        measure("plain loopback", local.getsockname(), local)
        with links.inside(descriptors[CLIENT]):
            measure("pod to pod by its address, without Services", (SERVER, 8080), apart)
        for count in (1, 5000):
            table.begin({**frontends, **_services(count - 1)}, {}, [IPv4Network(POD_RANGE)])
            with links.inside(descriptors[CLIENT]):
                measure(f"ClusterIP among {count:,} by nf_tables", ("10.96.7.7", 80), apart)
        with links.inside(descriptors[CLIENT]):
            measure("pod to pod by its address, connections tracked", (SERVER, 8080), apart)
        measure("plain loopback beside the table", local.getsockname(), local)
        table.remove()
    return results


if __name__ == "__main__":
    wanted = sys.argv[1:] or ["dns", "programs", "packets"]
    if "dns" in wanted:
        asyncio.run(dns())
    if "programs" in wanted:
        connections()
    if "packets" in wanted:
        packets()
