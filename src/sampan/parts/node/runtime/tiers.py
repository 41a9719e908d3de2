"""What this machine lets the node do, found by trying it.

Questions are asked in throw-away children: can a process get mounts and process ids of its own (as root, through a user
namespace, or not at all), can pods have addresses of their own by cgroup eBPF programs, and if not, by network namespaces?

====  ==================================================  =======================================================
tier  a pod has                                           and shares with others
====  ==================================================  =======================================================
T1    its own address and localhost, files, process ids   the host's interface list, abstract Unix sockets
T1n   all that, and network interfaces of its own         nothing of the network
T2    its own files and process ids                       addresses by convention: 127.x.y.z and ``$PORT``
T3    its own 127.x.y.z and ``$PORT`` by convention       files, process ids and signals of the same user
====  ==================================================  =======================================================
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Literal

from sampan.parts.node.runtime import links, netlink, syscalls
from sampan.parts.node.runtime.addresses import PodAddresses, address6
from sampan.parts.node.runtime.cgroups import Cgroups
from sampan.parts.node.runtime.interface import Tier

Isolation = Literal["root", "user", "none"]


@dataclass
class Ground:
    """What the node stands on."""

    isolation: Isolation
    addresses: PodAddresses | None
    cgroups: Cgroups
    links: bool = False
    """Every pod gets a network namespace."""
    why: str = ""
    """What kept the node from a better tier."""

    @property
    def tier(self) -> Tier:
        if self.isolation == "none":
            return "T3"
        if self.isolation == "root" and self.addresses is not None:
            return "T1"
        return "T1n" if self.links else "T2"


def in_child(work: Callable[[], None]) -> str:
    """Run ``work`` in a forked child; "" if it succeeded, else what went wrong."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            os.write(writer, str(error).encode()[:4000] or b"failed")
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        answer = file.read().decode(errors="replace")
    os.waitpid(pid, 0)
    return answer


def map_users(uid: int, gid: int) -> None:
    """In a new user namespace: be its root. Raises OSError."""
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def namespaces(isolation: Isolation) -> int:
    """CLONE_NEW* flags of a sandbox's own namespaces (its network aside)."""
    flags = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWPID
    return flags | (syscalls.CLONE_NEWUSER if isolation == "user" else 0)


def range6(pod_range: str) -> str:
    """The IPv6 range that belongs to a pod range."""
    network = IPv4Network(pod_range)
    return f"{address6(str(network.network_address))}/{96 + network.prefixlen}"


def _add_range6(pod_range: str) -> None:
    """IPv6 addresses for servers that insist on them; a machine without IPv6 does without."""
    try:
        netlink.add_local_route(range6(pod_range))
        Path("/proc/sys/net/ipv6/ip_nonlocal_bind").write_text("1")
    except OSError:
        return


def _try_isolation(isolation: Isolation, scratch: Path) -> str:
    uid, gid = os.getuid(), os.getgid()

    def work() -> None:
        syscalls.unshare(namespaces(isolation))
        if isolation == "user":
            map_users(uid, gid)
        syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
        syscalls.mount("tmpfs", str(scratch), "tmpfs")
        lower, upper, inner, root = (scratch / name for name in ("lower", "upper", "work", "root"))
        for directory in (lower, upper, inner, root):
            directory.mkdir()
        syscalls.mount("overlay", str(root), "overlay", 0, f"lowerdir={lower},upperdir={upper},workdir={inner}")
        syscalls.sethostname("probe")

    return in_child(work)


def _try_addresses(cgroups: Cgroups, pod_range: str, networks: list[str]) -> PodAddresses:
    """Load the programs and see one of them work. Raises OSError."""
    unified = cgroups.unified
    if unified is None:
        raise OSError("no cgroup v2 tree that can be written")
    netlink.add_local_route(pod_range)
    _add_range6(pod_range)
    probe = unified / "probe"
    probe.mkdir(exist_ok=True)
    address = str(next(iter(IPv4Network(pod_range).hosts())))
    # the level is the directory's depth in the whole hierarchy; inside a cgroup namespace only trying tells
    visible = 2
    errors = "the programs do not take effect"
    try:
        for level in (visible, *(other for other in range(1, 12) if other != visible)):
            addresses = PodAddresses(unified, level, pod_range, networks)
            addresses.add(probe, address)

            def work() -> None:
                (probe / "cgroup.procs").write_text("0")
                with socket.socket() as server:
                    server.bind(("0.0.0.0", 0))  # noqa: S104 - that it becomes the pod's address is the test
                    if server.getsockname()[0] != address:
                        raise OSError(f"a wildcard server got {server.getsockname()[0]}")

            errors = in_child(work)
            addresses.remove(probe)
            if not errors:
                return addresses
            addresses.close()
    finally:
        probe.rmdir()
    raise OSError(errors)


def probe(name: str, scratch: Path, pod_range: str, networks: list[str], wanted: str = "auto") -> Ground:
    """Find the best tier (or the wanted one, and what is below it if that cannot be had)."""
    cgroups = Cgroups.find(name)
    why: list[str] = []
    isolation: Isolation = "none"
    if wanted != "T3":
        scratch.mkdir(exist_ok=True)
        for candidate in ("root", "user") if os.geteuid() == 0 and wanted != "T2" else ("user",):
            kind: Isolation = "root" if candidate == "root" else "user"
            error = _try_isolation(kind, scratch)
            if not error:
                isolation = kind
                break
            why.append(f"{candidate} namespaces: {error}")
    addresses = None
    if isolation == "root" and wanted in ("auto", "T1"):
        try:
            addresses = _try_addresses(cgroups, pod_range, networks)
        except OSError as error:
            why.append(f"pod addresses: {error}")
    linked = False
    if isolation == "root" and addresses is None and wanted in ("auto", "T1", "T1n"):
        refused = in_child(lambda: links.probe(pod_range))
        linked = not refused
        if refused:
            why.append(f"pod networks: {refused}")
    return Ground(isolation, addresses, cgroups, linked, "; ".join(why))


def tier_here(scratch: Path) -> tuple[Tier, str]:
    """The tier a node would have on this machine, and what keeps it from a better one; leaves nothing behind.

    For a process without threads: it forks.
    """
    name, pod_range = f"probe-{os.getpid()}", f"10.{200 + os.getpid() % 50}.{os.getpid() % 251}.0/30"
    ground = probe(name, scratch, pod_range, [])
    if ground.addresses is not None:
        ground.addresses.close()
    if ground.isolation == "root":
        for added in (pod_range, range6(pod_range)):
            with contextlib.suppress(OSError):
                netlink.remove_local_route(added)
    ground.cgroups.destroy()
    return ground.tier, ground.why
