"""What joins a pod's network namespace with the host (tier T1n, and pods of T1 that ask for one): a routed veth pair.

The pod has ``eth0`` with its address and nothing else on it; everything goes via 169.254.1.1, which every pair's host end
has. The host has one route of 32 bits to the pod, in the table of local addresses: there it wins over the pod range, which
in T1 is one local route. There is no bridge, so a pod's packets pass the host's network stack, where Services and policies
are kept, whomever they go to; and a routed pair costs less than one on a bridge.

The host end is named for the pod's address, which no other platform of the machine gives away. Its own settings make the rest:
it forwards; it takes packets from the pod's address only; and it may deliver to 127.0.0.1, where the platform's own servers
listen (nothing but what nf_tables sends there: the network part drops the rest). They all go with the link, and the link goes
with the pod's last process: the kernel takes many at once, a little later (one by one each would cost 30 ms). What stays is
that the machine forwards (``net.ipv4.ip_forward``), so that pods reach other networks and are answered: `restore_forwarding`
takes that back when the machine has no pod of this kind any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from sampan.kernel import nftables
from sampan.parts.node.runtime import netlink, syscalls

GATEWAY = "169.254.1.1"
"""The host, as pods see it."""
PREFIX = "spn"
"""Begins the names of all host ends."""
INSIDE = "eth0"
_PAUSES, _PAUSE = 25, 0.02
"""How often, and for how many seconds, the kernel is waited for to take links away."""
_CONF = Path("/proc/sys/net/ipv4/conf")
_CONF6 = Path("/proc/sys/net/ipv6/conf")
DEFAULT_SYSCTLS = {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}
"""As container runtimes set them in a pod's namespace: any user may listen on port 80, and ping."""


def name_of(address: str) -> str:
    """The host end of the pod with this address."""
    return PREFIX + IPv4Address(address).packed.hex()


def address_of(name: str) -> str:
    """The pod's address by the name of its host end; "" for another device's name."""
    try:
        return str(IPv4Address(bytes.fromhex(name.removeprefix(PREFIX)))) if name.startswith(PREFIX) else ""
    except ValueError:
        return ""


@contextlib.contextmanager
def inside(descriptor: int) -> Iterator[None]:
    """Be in another network namespace (of a namespace file or a pidfd) with this thread. Raises OSError."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(descriptor, syscalls.CLONE_NEWNET)
        try:
            yield
        finally:
            syscalls.setns(own, syscalls.CLONE_NEWNET)
    finally:
        os.close(own)


def connect(address: str, pid: int, sysctls: Mapping[str, str], folder: Path = Path("/run/sampan")) -> None:
    """Join the network namespace of a process with the host; the pod has this address. ``folder`` is for notes. Raises OSError."""
    host = name_of(address)
    netlink.remove_link(host)
    netlink.add_veth(host, INSIDE, pid)
    try:
        _write(_CONF6 / host / "disable_ipv6", "1")
        for setting in ("forwarding", "rp_filter", "route_localnet"):
            (_CONF / host / setting).write_text("1")
        netlink.add_address(host, GATEWAY, 32)
        netlink.set_up(host)
        descriptor = os.pidfd_open(pid)
        try:
            with inside(descriptor):
                _set_up_inside(address, sysctls)
        finally:
            os.close(descriptor)
        # last: nobody reaches the pod before it can answer
        netlink.add_host_route(address, host)
        forward(folder)
    except OSError:
        netlink.remove_link(host)
        raise


def _set_up_inside(address: str, sysctls: Mapping[str, str]) -> None:
    _write(_CONF6 / INSIDE / "disable_ipv6", "1")
    netlink.set_up("lo")
    netlink.add_address(INSIDE, address, 32)
    netlink.set_up(INSIDE)
    netlink.add_link_route(f"{GATEWAY}/32", INSIDE)
    netlink.add_default_route(INSIDE, GATEWAY)
    # what else may be asked for belongs to other namespaces, which this thread is not in
    asked = {name.replace("/", "."): value for name, value in sysctls.items()}
    for name, value in {**DEFAULT_SYSCTLS, **asked}.items():
        if not name.startswith("net."):
            continue
        try:
            Path("/proc/sys", *name.split(".")).write_text(value)
        except OSError as error:
            if name in asked:
                raise OSError(error.errno, f"sysctl {name}: {error.strerror}") from error


def _write(path: Path, value: str) -> None:
    """A setting that some machines do not have (IPv6 may be off)."""
    with contextlib.suppress(FileNotFoundError):
        path.write_text(value)


def disconnect(address: str) -> None:
    """Take the link of a pod away; a missing one is fine. Raises OSError."""
    netlink.remove_link(name_of(address))


def present(network: IPv4Network | None = None) -> list[str]:
    """The addresses of pods that have links now (in a range)."""
    found = filter(None, (address_of(name) for _, name in socket.if_nameindex()))
    return [one for one in found if network is None or ipaddress.IPv4Address(one) in network]


def sweep(pod_range: str) -> None:
    """Take away every link of pods that have ended; the range is this node's alone. Blocks a little. Raises OSError."""
    network = IPv4Network(pod_range)
    for _ in range(_PAUSES):
        if not present(network):
            return
        threading.Event().wait(_PAUSE)  # the kernel is at it
    for address in present(network):
        disconnect(address)


# -- the way out


_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
_DEVICES = Path("/sys/class/net")


def _note(folder: Path) -> Path:
    """The file that tells that this machine (this network namespace) did not forward before."""
    return folder / f"forwards-{os.stat('/proc/thread-self/ns/net').st_ino}"


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Of all keepers of this machine."""
    folder.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(folder / "forwarding", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def forward(folder: Path = Path("/run/sampan")) -> None:
    """Have the machine forward, so that pods reach each other and other networks. Raises OSError."""
    with _alone(folder):
        if _FORWARDING.read_text().strip() != "1":
            _note(folder).touch()
            _FORWARDING.write_text("1")


def restore_forwarding(folder: Path = Path("/run/sampan")) -> None:
    """Once no pod of this machine has a link, the machine forwards no longer if it did not before.

    Somebody else may have come to rely on it: where there are bridges (of other containers, of virtual machines) it stays.
    Raises OSError.
    """
    if not _note(folder).exists():
        return
    with _alone(folder):
        if present():
            return
        if not any((device / "bridge").exists() for device in _DEVICES.iterdir()):
            _FORWARDING.write_text("0")
        _note(folder).unlink(missing_ok=True)


# -- may it be had?


def probe(pod_range: str) -> None:
    """In a throw-away process: everything that pods with namespaces and their Services need. Raises OSError."""
    # in a namespace from the first: two platforms that look at the same moment do not take each other's link away
    syscalls.unshare(syscalls.CLONE_NEWNET)
    ours = name_of(str(IPv4Network(pod_range).network_address))
    netlink.add_veth(ours, f"{ours}p", os.getpid())
    for setting in ("forwarding", "rp_filter", "route_localnet"):
        (_CONF / ours / setting).write_text("1")
    batch = nftables.Batch("sampan-probe")
    batch.add_table()
    batch.add_chain("destinations", "nat", nftables.PREROUTING, nftables.DESTINATION)
    batch.add_chain("sources", "nat", nftables.POSTROUTING, nftables.SOURCE)
    batch.add_chain("forward", "filter", nftables.FORWARD, nftables.FILTER)
    batch.add_chain("untracked", "filter", nftables.OUTPUT, nftables.RAW)
    key = (nftables.ADDRESS, nftables.INTEGER)
    batch.add_set("backends", key, data=(nftables.ADDRESS, nftables.PORT))
    batch.add_set("clients", key, nftables.TIMEOUT | nftables.DYNAMIC, data=(nftables.ADDRESS, nftables.PORT))
    batch.add_set("peers", (nftables.ADDRESS, nftables.PORT), nftables.INTERVAL)
    batch.add_rule(
        "destinations",
        nftables.destination_address(0),
        nftables.random_number(2, 1),
        nftables.looked_up("backends", 0, 4),
        nftables.remembered("clients", 0, 4, 10),
        nftables.redirected(4, 5),
    )
    batch.add_rule(
        "destinations",
        nftables.destination_address(0),
        nftables.meta(nftables.PROTOCOL_OF_PACKET, 1),
        nftables.forgotten("clients", 0, 0),
    )
    batch.add_rule("destinations", nftables.refused_by_reset())
    batch.add_rule("sources", nftables.masqueraded())
    batch.add_rule("untracked", nftables.untracked())
    batch.add_rule("forward", nftables.ct_state(0), nftables.masked(0, struct.pack("=I", 6)))
    batch.commit()
