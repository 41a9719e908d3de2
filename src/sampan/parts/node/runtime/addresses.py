"""Every pod its own address without a network namespace (tier T1).

The pod range is one local route on ``lo`` (every address of it can be bound and reached), and a handful of eBPF programs on
the node's cgroup give each socket of a pod the pod's address. A program finds the pod by the cgroup at the pod level that
the calling process is in, in one map filled at a pod's start; so adding a pod is one map update, whatever the programs do.

What a process in a pod sees:

* ``bind`` to any address is a bind to the pod's address; to 127.0.0.1, to the pod's hidden loopback address (127.7.x.y),
  which nobody else may bind or reach: localhost is private. Another pod's address is refused.
* ``connect`` to 127.0.0.1:port goes to the hidden address if something of the pod listens there, else to the pod's own
  address (the sidecar pattern: a wildcard server reached by localhost). Connections to pods and Services leave from the
  pod's address.
* ``getsockname`` and ``getpeername`` show 127.0.0.1 for the hidden address.

The programs go with the cgroup directory, and they go on working while the agent is away. Addresses are loaded and compared
in network order as they lie in memory, read as little-endian words (both machines supported are little-endian).
"""

from __future__ import annotations

import ipaddress
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from sampan.kernel import bpf
from sampan.kernel.bpf import FP, R0, R1, R2, R3, R6, R7, R8, Assembler

PODS = "sampan_pods"
"""The kernel's name of the map from a pod's cgroup id to its addresses (the first four bytes are the pod's IPv4 address, or zero
for a pod that has a network namespace)."""
_LOCALHOST = 0x0100007F
_POD_VALUE = struct.Struct("=4s4s16s")

# struct bpf_sock_addr
_USER_IP4, _USER_IP6, _USER_PORT, _PROTOCOL, _SOURCE_IP4, _SOCKET = 4, 8, 24, 36, 40, 64
# a pod's map value
_ADDRESS, _HIDDEN, _ADDRESS6 = 0, 4, 8


def _word(address: str) -> int:
    return int.from_bytes(ipaddress.IPv4Address(address).packed, "little")


def hidden_address(address: str) -> str:
    """The loopback address that stands for 127.0.0.1 of the pod with this address: 127.7 and its last two bytes."""
    packed = ipaddress.IPv4Address(address).packed
    return str(ipaddress.IPv4Address(bytes((127, 7)) + packed[2:]))


def address6(address: str) -> str:
    """The pod's IPv6 address, for servers that insist on IPv6-only sockets: its IPv4 address under fd00:7377::/96."""
    return str(ipaddress.IPv6Address(b"\xfd\x00\x73\x77" + bytes(8) + ipaddress.IPv4Address(address).packed))


class PodAddresses:
    """The maps and programs of one node, attached to its cgroup.

    ``networks`` are the IPv4 ranges of pods and Services, to which a pod speaks from its own address; ``pod_range`` is the
    node's own part, of which a process may bind only its pod's address.
    """

    def __init__(self, cgroup: Path, level: int, pod_range: str, networks: Sequence[str]) -> None:
        # the network part finds it by this name: which address a calling process has
        self._pods = bpf.Map(bpf.HASH, 8, _POD_VALUE.size, 4096, name=PODS)
        # LRU: entries of sockets long closed leave by themselves
        self._ports = bpf.Map(bpf.LRU_HASH, 8, 4, 65536)
        self._level = level
        self._range = ipaddress.IPv4Network(pod_range)
        self._networks = [ipaddress.IPv4Network(network) for network in networks]
        directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name, kind, attach_type, build in self._programs():
                assembler = Assembler()
                build(assembler)
                program = bpf.load(assembler.code(), kind, attach_type, name)
                try:
                    bpf.attach(directory, program, attach_type)
                finally:
                    os.close(program)
        finally:
            os.close(directory)

    def add(self, cgroup: Path, address: str) -> None:
        """Processes in this pod cgroup have this address from now on. Raises OSError."""
        value = _POD_VALUE.pack(
            ipaddress.IPv4Address(address).packed,
            ipaddress.IPv4Address(hidden_address(address)).packed,
            ipaddress.IPv6Address(address6(address)).packed,
        )
        # the inode number of a cgroup v2 directory is its id
        self._pods.update(struct.pack("=Q", cgroup.stat().st_ino), value)

    def leave_alone(self, cgroup: Path) -> None:
        """Processes in this pod cgroup have a network namespace of their own, where no address needs translating. Raises OSError."""
        self._pods.update(struct.pack("=Q", cgroup.stat().st_ino), bytes(_POD_VALUE.size))

    def remove(self, cgroup: Path) -> None:
        """Forget a pod; call it before its cgroup directory goes."""
        self._pods.delete(struct.pack("=Q", cgroup.stat().st_ino))

    def close(self) -> None:
        self._pods.close()
        self._ports.close()

    # -- the programs

    def _programs(self) -> list[tuple[str, int, int, Callable[[Assembler], None]]]:
        address = bpf.CGROUP_SOCK_ADDR
        return [
            ("pod_bind4", address, bpf.BIND4, self._bind4),
            ("pod_bind6", address, bpf.BIND6, self._bind6),
            ("pod_post_bind4", bpf.CGROUP_SOCK, bpf.POST_BIND4, self._post_bind4),
            ("pod_connect4", address, bpf.CONNECT4, self._connect4),
            ("pod_connect6", address, bpf.CONNECT6, self._connect6),
            ("pod_sendmsg4", address, bpf.SENDMSG4, self._sendmsg4),
            ("pod_recvmsg4", address, bpf.RECVMSG4, self._show_localhost),
            ("pod_getpeer4", address, bpf.GETPEERNAME4, self._show_localhost),
            ("pod_getsock4", address, bpf.GETSOCKNAME4, self._show_localhost),
        ]

    def _find_pod(self, a: Assembler) -> None:
        """r6 = context, r7 = the pod's value; leaves the program with "go on" where the caller is in no pod."""
        a.move(R6, R1)
        a.set(R1, self._level)
        a.call(bpf.CURRENT_ANCESTOR_CGROUP)
        a.store(8, FP, -8, R0)
        a.map(R1, self._pods.descriptor)
        a.move(R2, FP)
        a.add(R2, -8)
        a.call(bpf.MAP_LOOKUP)
        a.jump_if_null(R0, "pass")
        a.move(R7, R0)
        a.load(4, R1, R7, _ADDRESS)
        a.jump_if(R1, "==", 0, "pass")

    def _leave(self, a: Assembler) -> None:
        a.label("pass")
        a.leave(1)
        if a.uses("refuse"):  # the verifier takes no unreachable code
            a.label("refuse")
            a.leave(0)

    def _bind4(self, a: Assembler) -> None:
        self._find_pod(a)
        a.load(4, R8, R6, _USER_IP4)
        a.jump_if(R8, "==", 0, "any")
        a.jump_if(R8, "==", _LOCALHOST, "local")
        a.move(R1, R8)
        a.mask(R1, 0xFF)
        a.jump_if(R1, "==", 127, "refuse")
        a.load(4, R1, R7, _ADDRESS)
        a.jump_if_register(R8, "==", R1, "pass")
        self._refuse_foreign(a, R8)
        a.jump("pass")
        a.label("any")
        a.load(4, R1, R7, _ADDRESS)
        a.store(4, R6, _USER_IP4, R1)
        a.jump("pass")
        a.label("local")
        a.load(4, R1, R7, _HIDDEN)
        a.store(4, R6, _USER_IP4, R1)
        self._leave(a)

    def _refuse_foreign(self, a: Assembler, register: int) -> None:
        a.move(R1, register)
        a.mask(R1, _word(str(self._range.netmask)))
        a.jump_if(R1, "==", _word(str(self._range.network_address)), "refuse")

    def _bind6(self, a: Assembler) -> None:
        self._find_pod(a)
        for offset in (8, 12):
            a.load(4, R1, R6, offset)
            a.jump_if(R1, "!=", 0, "pass")
        a.load(4, R1, R6, 16)
        a.load(4, R8, R6, 20)
        a.jump_if(R1, "==", 0xFFFF0000, "mapped")
        a.jump_if(R1, "!=", 0, "pass")
        a.jump_if(R8, "==", 0, "wildcard")
        a.jump_if(R8, "==", 0x01000000, "wildcard")
        a.jump("pass")
        a.label("mapped")
        a.jump_if(R8, "==", 0, "to4")
        a.jump_if(R8, "==", _LOCALHOST, "to4")
        a.load(4, R1, R7, _ADDRESS)
        a.jump_if_register(R8, "==", R1, "pass")
        self._refuse_foreign(a, R8)
        a.jump("pass")
        a.label("wildcard")
        # byte 19 of the common socket header holds the ipv6only bit (0x20): such a socket cannot take a mapped address
        a.load(8, R3, R6, _SOCKET)
        a.store_value(8, FP, -16, 0)
        a.store_value(8, FP, -24, 0)
        a.store_value(8, FP, -32, 0)
        a.move(R1, FP)
        a.add(R1, -32)
        a.set(R2, 20)
        a.call(bpf.PROBE_READ_KERNEL)
        a.load(1, R1, FP, -32 + 19)
        a.mask(R1, 0x20)
        a.jump_if(R1, "!=", 0, "only6")
        a.label("to4")
        a.store_value(4, FP, -8, 0)
        a.load(4, R1, FP, -8)
        a.store(4, R6, 8, R1)
        a.store(4, R6, 12, R1)
        a.set(R1, 0xFFFF0000)
        a.store(4, R6, 16, R1)
        a.load(4, R1, R7, _ADDRESS)
        a.store(4, R6, 20, R1)
        a.jump("pass")
        a.label("only6")
        for index in range(4):
            a.load(4, R1, R7, _ADDRESS6 + 4 * index)
            a.store(4, R6, _USER_IP6 + 4 * index, R1)
        self._leave(a)

    def _port_key(self, a: Assembler) -> None:
        """The local-port key at fp-16 from pod address and r8 = port (host order) | protocol << 16."""
        a.load(4, R1, R7, _ADDRESS)
        a.store(4, FP, -16, R1)
        a.store(4, FP, -12, R8)

    def _post_bind4(self, a: Assembler) -> None:
        self._find_pod(a)
        a.load(4, R8, R6, 12)  # protocol
        a.shift_left(R8, 16)
        a.load(4, R1, R6, 44)  # src_port
        a.either(R8, R1)
        self._port_key(a)
        a.load(4, R8, R6, 24)  # src_ip4
        a.load(4, R1, R7, _HIDDEN)
        a.jump_if_register(R8, "==", R1, "local")
        a.load(4, R1, R7, _ADDRESS)
        a.jump_if_register(R8, "!=", R1, "pass")
        a.map(R1, self._ports.descriptor)
        a.move(R2, FP)
        a.add(R2, -16)
        a.call(bpf.MAP_DELETE)
        a.jump("pass")
        a.label("local")
        a.store_value(4, FP, -20, 1)
        a.map(R1, self._ports.descriptor)
        a.move(R2, FP)
        a.add(R2, -16)
        a.move(R3, FP)
        a.add(R3, -20)
        a.set(4, 0)
        a.call(bpf.MAP_UPDATE)
        self._leave(a)

    def _local_target(self, a: Assembler, done: str) -> None:
        """r8 = where 127.0.0.1:port of this context leads, then jump to ``done``."""
        a.load(4, R8, R6, _PROTOCOL)
        a.shift_left(R8, 16)
        a.load(4, R1, R6, _USER_PORT)
        a.swap16(R1)
        a.either(R8, R1)
        self._port_key(a)
        a.map(R1, self._ports.descriptor)
        a.move(R2, FP)
        a.add(R2, -16)
        a.call(bpf.MAP_LOOKUP)
        a.load(4, R8, R7, _HIDDEN)
        a.jump_if_found(R0, done)
        a.load(4, R8, R7, _ADDRESS)
        a.jump(done)

    def _if_ours(self, a: Assembler, register: int, label: str) -> None:
        """Jump where an address lies in the pods' or Services' ranges."""
        for network in self._networks:
            a.move(R1, register)
            a.mask(R1, _word(str(network.netmask)))
            a.jump_if(R1, "==", _word(str(network.network_address)), label)

    def _screen_loopback(self, a: Assembler) -> None:
        """r8 = destination: jump to "local" for 127.0.0.1, refuse other loopback (but a resolver's port 53)."""
        a.jump_if(R8, "==", _LOCALHOST, "local")
        a.move(R1, R8)
        a.mask(R1, 0xFF)
        a.jump_if(R1, "!=", 127, "outside")
        a.load(4, R1, R6, _USER_PORT)
        a.swap16(R1)
        a.jump_if(R1, "==", 53, "pass")
        a.jump("refuse")

    def _connect4(self, a: Assembler) -> None:
        self._find_pod(a)
        a.load(4, R8, R6, _USER_IP4)
        self._screen_loopback(a)
        a.label("outside")
        self._if_ours(a, R8, "ours")
        a.jump("pass")
        a.label("local")
        self._local_target(a, "target")
        a.label("target")
        a.store(4, R6, _USER_IP4, R8)
        a.load(4, R1, R7, _ADDRESS)
        a.jump_if_register(R8, "!=", R1, "pass")
        a.label("ours")
        self._bind_source(a, mapped=False)
        self._leave(a)

    def _bind_source(self, a: Assembler, *, mapped: bool) -> None:
        """Give the socket the pod's address as source; a socket that is bound already keeps its own."""
        size = 28 if mapped else 16
        for offset in range(-64, -64 + 32, 8):
            a.store_value(8, FP, offset, 0)
        a.store_value(2, FP, -64, 10 if mapped else 2)
        a.load(4, R1, R7, _ADDRESS)
        if mapped:
            a.store_value(4, FP, -64 + 16, 0xFFFF0000)
            a.store(4, FP, -64 + 20, R1)
        else:
            a.store(4, FP, -64 + 4, R1)
        a.move(R1, R6)
        a.move(R2, FP)
        a.add(R2, -64)
        a.set(R3, size)
        a.call(bpf.BIND)

    def _connect6(self, a: Assembler) -> None:
        self._find_pod(a)
        for offset in (8, 12):
            a.load(4, R1, R6, offset)
            a.jump_if(R1, "!=", 0, "pass")
        a.load(4, R1, R6, 16)
        a.load(4, R8, R6, 20)
        a.jump_if(R1, "==", 0xFFFF0000, "mapped")
        a.jump_if(R1, "!=", 0, "pass")
        a.jump_if(R8, "==", 0x01000000, "local")
        a.jump("pass")
        a.label("mapped")
        self._screen_loopback(a)
        a.label("outside")
        self._if_ours(a, R8, "ours")
        a.jump("pass")
        a.label("local")
        self._local_target(a, "target")
        a.label("target")
        a.set(R1, 0xFFFF0000)
        a.store(4, R6, 16, R1)
        a.store(4, R6, 20, R8)
        a.load(4, R1, R7, _ADDRESS)
        a.jump_if_register(R8, "!=", R1, "pass")
        a.label("ours")
        self._bind_source(a, mapped=True)
        self._leave(a)

    def _sendmsg4(self, a: Assembler) -> None:
        self._find_pod(a)
        a.load(4, R8, R6, _USER_IP4)
        self._screen_loopback(a)
        a.label("outside")
        self._if_ours(a, R8, "ours")
        a.jump("pass")
        a.label("local")
        self._local_target(a, "target")
        a.label("target")
        a.store(4, R6, _USER_IP4, R8)
        a.load(4, R1, R7, _ADDRESS)
        a.jump_if_register(R8, "!=", R1, "pass")
        a.label("ours")
        a.load(4, R1, R6, _SOURCE_IP4)
        a.jump_if(R1, "!=", 0, "pass")
        a.load(4, R1, R7, _ADDRESS)
        a.store(4, R6, _SOURCE_IP4, R1)
        self._leave(a)

    def _show_localhost(self, a: Assembler) -> None:
        self._find_pod(a)
        a.load(4, R8, R6, _USER_IP4)
        a.load(4, R1, R7, _HIDDEN)
        a.jump_if_register(R8, "!=", R1, "pass")
        a.set(R1, _LOCALHOST)
        a.store(4, R6, _USER_IP4, R1)
        a.label("pass")
        a.leave(1)
