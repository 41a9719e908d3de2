"""The eBPF programs that send connections to Services to endpoints, and keep NetworkPolicy, at the pods' cgroup.

A connection (or UDP message) to a Service is rewritten once, when it is opened: no packet is touched afterwards, so a Service
costs a few hundred nanoseconds a connection. The programs stand behind the node part's own ones (which gave the socket the
pod's address and its private localhost); an endpoint may therefore also be a loopback address of the platform itself.

::

    services  {address, port, protocol}        -> {id, count, flags, affinity in ns}
              {address, 0, 0}                     the address is a Service's: other ports are refused
    backends  {id, n, -1}                      -> {address, port}       the n-th endpoint
              {id, address, port}              -> {address, port}       membership, where clients stay with an endpoint
    sources   {id, address...}                 -> 1                     longest prefix: who may reach a GUARDED service
    affinity  {service, client}                -> {address, port, since}
    origins   {socket, address, port}          -> {address, port}       what an endpoint's datagrams seem to come from
    isolated  {address}                        -> directions            pods that some policy selects
    ports     {address, direction, protocol, port...} -> class          longest prefix
    peers     {class, address...}              -> 1                     longest prefix
    flows     {client, server, port}           -> 1                     UDP that was allowed: answers are, too

Words are in network order as they lie in memory, read as little-endian. A Service without endpoints refuses at once
(ECONNREFUSED), as kube-proxy's REJECT; what a policy forbids times out at once (ETIMEDOUT), UDP gets EPERM, as with netfilter.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import NamedTuple

from sampan.kernel import bpf
from sampan.kernel.bpf import FP, R0, R1, R2, R3, R6, R7, R8, R9, Assembler

INGRESS, EGRESS = 1, 2
"""Directions in ``isolated`` (as bits) and ``ports``."""
DROP = 1
"""A flag in ``services``: without endpoints time out instead of refusing."""
GUARDED = 2
"""A flag in ``services``: only pods that ``sources`` has are served."""
MEMBER = 0xFFFFFFFF
"""Third word of a backend's key by number."""
_UDP = 17

# struct bpf_sock_addr
_USER_IP4, _USER_IP6, _USER_PORT, _PROTOCOL, _SOCKET = 4, 8, 24, 36, 64
_SOCK_SRC_PORT = 44
_MAPPED = 0xFFFF0000

# the stack
_CLIENT, _KIND, _KEY, _AFFINITY, _BACKEND = -8, -12, -24, -40, -56
_VALUE, _NOW, _COOKIE, _ORIGIN, _PORTS, _PEERS, _FLOW, _FLAGS = -72, -80, -96, -104, -120, -136, -152, -160


class Tables(NamedTuple):
    """The maps of the programs."""

    services: bpf.Map
    backends: bpf.Map
    sources: bpf.Map
    affinity: bpf.Map
    origins: bpf.Map
    isolated: bpf.Map
    ports: bpf.Map
    peers: bpf.Map
    flows: bpf.Map

    @staticmethod
    def layout() -> dict[str, tuple[int, int, int, int, int]]:
        """Kind, key size, value size, entries at most and flags of each."""
        grow = bpf.NO_PREALLOC
        return {
            "services": (bpf.HASH, 8, 24, 32768, grow),
            "backends": (bpf.HASH, 12, 8, 262144, grow),
            "sources": (bpf.LPM_TRIE, 12, 4, 32768, grow),
            "affinity": (bpf.LRU_HASH, 12, 16, 16384, 0),
            "origins": (bpf.LRU_HASH, 16, 8, 65536, 0),
            "isolated": (bpf.HASH, 4, 4, 8192, grow),
            "ports": (bpf.LPM_TRIE, 12, 4, 262144, grow),
            "peers": (bpf.LPM_TRIE, 12, 4, 262144, grow),
            "flows": (bpf.LRU_HASH, 12, 4, 16384, 0),
        }

    @classmethod
    def make(cls) -> Tables:
        """New, empty maps. Raises OSError."""
        return cls(
            **{
                name: bpf.Map(kind, key, value, entries, name=f"svc_{name}", flags=flags)
                for name, (kind, key, value, entries, flags) in cls.layout().items()
            }
        )

    def close(self) -> None:
        """Let go of the maps; programs that use them keep them."""
        for one in self:
            one.close()


class Programs:
    """Assembles the programs over their maps.

    ``pods`` is the node's map from a pod's cgroup (at ``level`` of the hierarchy) to its address; without it callers have no
    address and no policy. ``refusals``: the kernel lets a program choose the error (5.18 and later).
    """

    def __init__(self, tables: Tables, pods: bpf.Map | None, level: int, *, refusals: bool = True) -> None:
        self._tables = tables
        self._pods = pods
        self._level = level
        self._refusals = refusals

    def all(self) -> list[tuple[str, int, Callable[[Assembler], None]]]:
        """Name, attach type and assembly of each."""
        return [
            ("svc_connect4", bpf.CONNECT4, self._connect4),
            ("svc_connect6", bpf.CONNECT6, self._connect6),
            ("svc_sendmsg4", bpf.SENDMSG4, self._sendmsg4),
            ("svc_recvmsg4", bpf.RECVMSG4, self._origin4),
            ("svc_recvmsg6", bpf.RECVMSG6, self._origin6),
            ("svc_getpeer4", bpf.GETPEERNAME4, self._origin4),
            ("svc_getpeer6", bpf.GETPEERNAME6, self._origin6),
        ]

    def load(self) -> list[tuple[str, int, int]]:
        """Have the kernel take them: name, attach type and descriptor of each. Raises OSError."""
        loaded: list[tuple[str, int, int]] = []
        for name, attach_type, build in self.all():
            assembler = Assembler()
            build(assembler)
            descriptor = bpf.load(assembler.code(), bpf.CGROUP_SOCK_ADDR, attach_type, name)
            loaded.append((name, attach_type, descriptor))
        return loaded

    # -- opening a connection

    def _connect4(self, a: Assembler) -> None:
        a.move(R6, R1)
        self._client(a)
        a.load(4, R8, R6, _USER_IP4)
        self._translate(a, _USER_IP4, replies=False)

    def _connect6(self, a: Assembler) -> None:
        a.move(R6, R1)
        self._if_mapped(a)
        self._client(a)
        a.load(4, R8, R6, _USER_IP6 + 12)
        self._translate(a, _USER_IP6 + 12, replies=False)

    def _sendmsg4(self, a: Assembler) -> None:
        a.move(R6, R1)
        self._client(a)
        a.load(4, R8, R6, _USER_IP4)
        self._translate(a, _USER_IP4, replies=True)

    def _if_mapped(self, a: Assembler) -> None:
        """Go on only with an IPv4 address in an IPv6 socket."""
        for offset in (0, 4):
            a.load(4, R1, R6, _USER_IP6 + offset)
            a.jump_if(R1, "!=", 0, "pass")
        a.load(4, R1, R6, _USER_IP6 + 8)
        a.jump_if(R1, "!=", _MAPPED, "pass")

    def _client(self, a: Assembler) -> None:
        """The address of the calling pod, or 0."""
        a.store_value(8, FP, _CLIENT, 0)
        if self._pods is None:
            return
        a.set(R1, self._level)
        a.call(bpf.CURRENT_ANCESTOR_CGROUP)
        a.store(8, FP, _COOKIE, R0)
        self._lookup(a, self._pods, _COOKIE)
        a.jump_if_null(R0, "client")
        a.load(4, R1, R0, 0)
        a.jump_if(R1, "==", 0, "pass")  # a network namespace of its own: its packets are translated
        a.store(4, FP, _CLIENT, R1)
        a.label("client")

    def _lookup(self, a: Assembler, table: bpf.Map, key: int) -> None:
        a.map(R1, table.descriptor)
        a.move(R2, FP)
        a.add(R2, key)
        a.call(bpf.MAP_LOOKUP)

    def _update(self, a: Assembler, table: bpf.Map, key: int, value: int) -> None:
        a.map(R1, table.descriptor)
        a.move(R2, FP)
        a.add(R2, key)
        a.move(R3, FP)
        a.add(R3, value)
        a.set(4, 0)
        a.call(bpf.MAP_UPDATE)

    def _translate(self, a: Assembler, place: int, *, replies: bool) -> None:
        """r8 = where the caller wants to go; ``place`` is where the context keeps that."""
        tables = self._tables
        a.load(4, R9, R6, _PROTOCOL)
        a.store(4, FP, _KIND, R9)
        a.shift_left(R9, 16)
        a.load(4, R1, R6, _USER_PORT)
        a.mask(R1, 0xFFFF)
        a.either(R9, R1)
        a.store(4, FP, _KEY, R8)
        a.store(4, FP, _KEY + 4, R9)
        self._lookup(a, tables.services, _KEY)
        a.jump_if_found(R0, "service")
        a.store_value(4, FP, _KEY + 4, 0)
        self._lookup(a, tables.services, _KEY)
        a.jump_if_found(R0, "refused")
        a.mask(R9, 0xFFFF)
        a.jump("policy")

        a.label("service")
        a.move(R7, R0)
        self._guard(a)
        a.load(4, R1, R7, 4)
        a.jump_if(R1, "==", 0, "none")
        a.load(8, R1, R7, 16)
        a.jump_if_null(R1, "choose")
        self._stay(a)
        a.label("choose")
        self._choose(a)
        a.label("chosen")
        # what the endpoint's answers and getpeername will seem to come from
        a.move(R1, R6)
        a.call(bpf.SOCKET_COOKIE)
        a.store(8, FP, _COOKIE, R0)
        a.store(4, FP, _COOKIE + 8, R8)
        a.store(4, FP, _COOKIE + 12, R9)
        a.load(4, R1, FP, _KEY)
        a.store(4, FP, _ORIGIN, R1)
        a.load(4, R1, FP, _KEY + 4)
        a.mask(R1, 0xFFFF)
        a.store(4, FP, _ORIGIN + 4, R1)
        self._update(a, tables.origins, _COOKIE, _ORIGIN)
        a.store(4, R6, place, R8)
        a.store(4, R6, _USER_PORT, R9)

        a.label("policy")
        self._judge(a, replies=replies)
        a.label("pass")
        a.leave(1)
        a.label("none")
        a.load(4, R1, R7, 8)
        a.mask(R1, DROP)
        a.jump_if(R1, "!=", 0, "dropped")
        a.label("refused")
        self._refuse(a, errno.ECONNREFUSED)
        a.label("dropped")
        a.load(4, R1, FP, _KIND)
        a.jump_if(R1, "==", _UDP, "forbidden")
        self._refuse(a, errno.ETIMEDOUT)
        a.label("forbidden")
        a.leave(0)

    def _refuse(self, a: Assembler, code: int) -> None:
        if self._refusals:
            a.set(R1, -code)
            a.call(bpf.SET_RETVAL)
        a.leave(0)

    def _guard(self, a: Assembler) -> None:
        """May the client reach the service at r7?"""
        a.load(4, R1, R7, 8)
        a.mask(R1, GUARDED)
        a.jump_if(R1, "==", 0, "open")
        a.load(4, R1, FP, _CLIENT)
        a.jump_if(R1, "==", 0, "open")  # the node itself
        a.store(4, FP, _PEERS + 8, R1)
        a.load(4, R1, R7, 0)
        a.store(4, FP, _PEERS + 4, R1)
        a.store_value(4, FP, _PEERS, 64)
        self._lookup(a, self._tables.sources, _PEERS)
        a.jump_if_null(R0, "dropped")
        a.label("open")

    def _choose(self, a: Assembler) -> None:
        """r8, r9 = a random endpoint of the service at r7."""
        a.call(bpf.RANDOM)
        a.load(4, R1, R7, 4)
        a.divide_rest(R0, R1)
        a.load(4, R1, R7, 0)
        a.store(4, FP, _BACKEND, R1)
        a.store(4, FP, _BACKEND + 4, R0)
        a.store_value(4, FP, _BACKEND + 8, MEMBER)
        self._lookup(a, self._tables.backends, _BACKEND)
        a.jump_if_null(R0, "refused")
        a.load(4, R8, R0, 0)
        a.load(4, R9, R0, 4)
        a.load(8, R1, R7, 16)
        a.jump_if_null(R1, "chosen")
        a.call(bpf.MONOTONIC_NS)
        a.store(4, FP, _VALUE, R8)
        a.store(4, FP, _VALUE + 4, R9)
        a.store(8, FP, _VALUE + 8, R0)
        self._affinity_key(a)
        self._update(a, self._tables.affinity, _AFFINITY, _VALUE)

    def _affinity_key(self, a: Assembler) -> None:
        a.load(4, R1, FP, _KEY)
        a.store(4, FP, _AFFINITY, R1)
        a.load(4, R1, FP, _KEY + 4)
        a.store(4, FP, _AFFINITY + 4, R1)
        a.load(4, R1, FP, _CLIENT)
        a.store(4, FP, _AFFINITY + 8, R1)

    def _stay(self, a: Assembler) -> None:
        """r8, r9 = the endpoint this client had, while it may and the endpoint is still there."""
        self._affinity_key(a)
        self._lookup(a, self._tables.affinity, _AFFINITY)
        a.jump_if_null(R0, "choose")
        a.move(R8, R0)
        a.call(bpf.MONOTONIC_NS)
        a.store(8, FP, _NOW, R0)
        a.load(8, R1, R8, 8)
        a.subtract(R0, R1)
        a.load(8, R1, R7, 16)
        a.jump_if_more(R0, R1, "choose")
        a.load(4, R1, R7, 0)
        a.store(4, FP, _BACKEND, R1)
        a.load(4, R1, R8, 0)
        a.store(4, FP, _BACKEND + 4, R1)
        a.load(4, R1, R8, 4)
        a.store(4, FP, _BACKEND + 8, R1)
        self._lookup(a, self._tables.backends, _BACKEND)
        a.jump_if_null(R0, "choose")
        a.load(8, R1, FP, _NOW)
        a.store(8, R8, 8, R1)
        a.load(4, R8, FP, _BACKEND + 4)
        a.load(4, R9, FP, _BACKEND + 8)
        a.jump("chosen")

    # -- policy

    def _judge(self, a: Assembler, *, replies: bool) -> None:
        """May the client speak with r8 at port r9?"""
        a.load(4, R1, FP, _CLIENT)
        a.jump_if(R1, "==", 0, "pass")  # the node itself reaches all its pods
        a.jump_if_register(R1, "==", R8, "pass")
        a.move(R1, R8)
        a.mask(R1, 0xFF)
        a.jump_if(R1, "==", 127, "pass")  # the platform's own servers
        a.store_value(8, FP, _FLAGS, 0)
        self._isolation(a, _CLIENT, _FLAGS, "source")
        a.store(4, FP, _COOKIE, R8)
        self._isolation(a, _COOKIE, _FLAGS + 4, "target")
        a.load(8, R1, FP, _FLAGS)
        a.jump_if_null(R1, "pass")
        if replies:
            self._pass_replies(a)
        self._side(a, EGRESS, _FLAGS, lambda: a.load(4, R1, FP, _CLIENT), lambda: a.move(R1, R8), "out")
        self._side(a, INGRESS, _FLAGS + 4, lambda: a.move(R1, R8), lambda: a.load(4, R1, FP, _CLIENT), "in")
        a.load(4, R1, FP, _KIND)
        a.jump_if(R1, "!=", _UDP, "pass")
        self._flow_key(a)
        a.store_value(4, FP, _VALUE, 1)
        self._update(a, self._tables.flows, _FLOW, _VALUE)

    def _isolation(self, a: Assembler, key: int, into: int, label: str) -> None:
        self._lookup(a, self._tables.isolated, key)
        a.jump_if_null(R0, label)
        a.load(4, R1, R0, 0)
        a.store(4, FP, into, R1)
        a.label(label)

    def _flow_key(self, a: Assembler) -> None:
        a.load(4, R1, FP, _CLIENT)
        a.store(4, FP, _FLOW, R1)
        a.store(4, FP, _FLOW + 4, R8)
        a.store(4, FP, _FLOW + 8, R9)

    def _pass_replies(self, a: Assembler) -> None:
        """An answer to a datagram that was allowed goes back whatever the policies say."""
        a.load(8, R1, R6, _SOCKET)
        a.load(4, R1, R1, _SOCK_SRC_PORT)
        a.swap16(R1)
        a.store(4, FP, _FLOW + 8, R1)
        a.store(4, FP, _FLOW, R8)
        a.load(4, R1, FP, _CLIENT)
        a.store(4, FP, _FLOW + 4, R1)
        self._lookup(a, self._tables.flows, _FLOW)
        a.jump_if_found(R0, "pass")

    def _side(
        self,
        a: Assembler,
        direction: int,
        flags: int,
        pod: Callable[[], None],
        peer: Callable[[], None],
        label: str,
    ) -> None:
        """One end's leave: the class of (pod, direction, protocol, port) must hold the peer."""
        a.load(4, R1, FP, flags)
        a.mask(R1, direction)
        a.jump_if(R1, "==", 0, label)
        a.store_value(4, FP, _PORTS, 64)
        pod()
        a.store(4, FP, _PORTS + 4, R1)
        a.move(R1, R9)
        a.shift_left(R1, 16)
        a.load(4, R2, FP, _KIND)
        a.shift_left(R2, 8)
        a.either(R1, R2)
        a.set(R2, direction)
        a.either(R1, R2)
        a.store(4, FP, _PORTS + 8, R1)
        self._lookup(a, self._tables.ports, _PORTS)
        a.jump_if_null(R0, "dropped")
        a.load(4, R1, R0, 0)
        a.store_value(4, FP, _PEERS, 64)
        a.store(4, FP, _PEERS + 4, R1)
        peer()
        a.store(4, FP, _PEERS + 8, R1)
        self._lookup(a, self._tables.peers, _PEERS)
        a.jump_if_null(R0, "dropped")
        a.label(label)

    # -- seeing an answer

    def _origin4(self, a: Assembler) -> None:
        a.move(R6, R1)
        a.load(4, R8, R6, _USER_IP4)
        self._origin(a, _USER_IP4)

    def _origin6(self, a: Assembler) -> None:
        a.move(R6, R1)
        self._if_mapped(a)
        a.load(4, R8, R6, _USER_IP6 + 12)
        self._origin(a, _USER_IP6 + 12)

    def _origin(self, a: Assembler, place: int) -> None:
        """Show the Service where the endpoint r8 answers."""
        a.move(R1, R6)
        a.call(bpf.SOCKET_COOKIE)
        a.store(8, FP, _COOKIE, R0)
        a.store(4, FP, _COOKIE + 8, R8)
        a.load(4, R1, R6, _USER_PORT)
        a.mask(R1, 0xFFFF)
        a.store(4, FP, _COOKIE + 12, R1)
        self._lookup(a, self._tables.origins, _COOKIE)
        a.jump_if_null(R0, "pass")
        a.load(4, R1, R0, 0)
        a.store(4, R6, place, R1)
        a.load(4, R1, R0, 4)
        a.store(4, R6, _USER_PORT, R1)
        a.label("pass")
        a.leave(1)
