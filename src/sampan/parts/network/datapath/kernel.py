"""The eBPF data path: the tables that the programs read, kept in step with frontends and policy.

A change of a frontend writes its endpoints under a new number first and then switches the one entry that leads there, so a
connection sees the old endpoints or the new ones. Old endpoints are swept a little later, when no program can be on its way
to them.

The programs stay attached when this process goes: established and new connections keep working meanwhile. The next process
finds programs and tables by their names at the cgroup, fills the tables anew in place, and replaces programs that a newer
version does otherwise.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from sampan.kernel import bpf
from sampan.kernel.clock import Clock
from sampan.parts.network.datapath.programs import DROP, EGRESS, GUARDED, INGRESS, MEMBER, Programs, Tables
from sampan.parts.network.policy import Isolation, port_prefixes, segments
from sampan.parts.network.services import Backends, Frontend

PODS = "sampan_pods"
"""The kernel's name of the node's map from a pod's cgroup to its address."""
SWEEP_SECONDS = 1.0
"""How long replaced endpoints stay for connections on their way to them."""
_PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}
_SERVICE = struct.Struct("=IIIIQ")


def _service_key(address: str, port: int, protocol: str) -> bytes:
    return IPv4Address(address).packed + port.to_bytes(2, "big") + bytes((_PROTOCOLS.get(protocol, 0), 0))


def _endpoint(address: str, port: int) -> bytes:
    return IPv4Address(address).packed + port.to_bytes(2, "big") + bytes(2)


def _backend_entries(number: int, backends: Backends) -> Iterator[tuple[bytes, bytes]]:
    for index, (address, port) in enumerate(backends.endpoints):
        endpoint = _endpoint(address, port)
        yield struct.pack("=III", number, index, MEMBER), endpoint
        if backends.affinity:
            yield struct.pack("=I", number) + endpoint, endpoint


def _source_keys(number: int, backends: Backends) -> list[bytes]:
    return [
        struct.pack("=II", 32 + network.prefixlen, number) + network.network_address.packed
        for network in backends.admitted()
    ]


def _find_tables(cgroup: int) -> Tables | None:
    """The tables of programs of ours that are attached already, if they are laid out as ours."""
    for one in bpf.attached(cgroup, bpf.CONNECT4):
        if one.name != "svc_connect4":
            continue
        found = {info.name.removeprefix("svc_"): info for info in one.maps}
        layout = Tables.layout()
        if all(
            name in found
            and (found[name].kind, found[name].key_size, found[name].value_size, found[name].entries) == shape[:4]
            for name, shape in layout.items()
        ):
            return Tables(**{name: bpf.Map.of(found[name]) for name in layout})
    return None


def find_pods(cgroup: Path) -> bpf.Map | None:
    """The node's map from pods' cgroups to their addresses, found at the programs that use it. Raises OSError."""
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        info = _pods_info(bpf.attached(directory, bpf.CONNECT4))
        return None if info is None else bpf.Map.of(info)
    finally:
        os.close(directory)


def _pods_info(programs: list[bpf.Attached]) -> bpf.MapInfo | None:
    return next((info for one in reversed(programs) for info in one.maps if info.name == PODS), None)


def level_of(cgroup: Path) -> int:
    """How deep a cgroup directory is in the whole hierarchy. Raises OSError."""
    above = [cgroup, *cgroup.parents]
    for index, identity in enumerate(bpf.cgroup_ids()):
        for depth, directory in enumerate(above):
            if identity and directory.stat().st_ino == identity and (directory / "cgroup.procs").exists():
                return index + depth
    raise OSError(f"{cgroup} is not in this process's cgroup tree")


class KernelPath:
    """The programs at one cgroup and their tables."""

    def __init__(self, cgroup: Path, clock: Clock, *, pods: bpf.Map | None, level: int = 0) -> None:
        """Attach to ``cgroup``; ``pods`` and the ``level`` of pod cgroups say who is calling.

        Raises:
            OSError: no rights, or a kernel without these programs.
        """
        self.cgroup = cgroup
        self._clock = clock
        directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            adopted = _find_tables(directory)
            self.adopted = adopted is not None
            self.tables = adopted or Tables.make()
            _attach(directory, self.tables, pods, level)
        finally:
            os.close(directory)
        self._closed = False
        self._entries: dict[Frontend, tuple[int, Backends]] = {}
        self._markers: dict[str, int] = {}
        # a number that an earlier process used may still have endpoints, and sources that may reach them
        self._next = max(self._numbers(), default=0) + 1 if self.adopted else 1
        self._policy = _PolicyTables(self.tables)

    def stands(self) -> bool:
        """The programs are still the last ones at the cgroup, over the node's present pods; else attach anew."""
        try:
            directory = os.open(self.cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            programs = bpf.attached(directory, bpf.CONNECT4)
        finally:
            os.close(directory)
        if not programs or programs[-1].name != "svc_connect4":
            return False
        pods = _pods_info(programs[:-1])
        return pods is None or pods in programs[-1].maps

    def close(self) -> None:
        """Let go; the programs go on working at the cgroup until it goes."""
        self._closed = True
        self.tables.close()

    # -- frontends

    async def put(self, frontend: Frontend, backends: Backends) -> None:
        """See `DataPath`."""
        self.set(frontend, backends)

    async def drop(self, frontend: Frontend) -> None:
        """See `DataPath`."""
        self.unset(frontend)

    def set(self, frontend: Frontend, backends: Backends) -> None:
        """Write a frontend's entries. Raises OSError (a table is full)."""
        old = self._entries.get(frontend)
        if old is not None and old[1] == backends:
            return
        number = self._next
        self._next = self._next % 0xFFFFFFF0 + 1
        flags = (DROP if backends.drop else 0) | (GUARDED if backends.sources else 0)
        value = _SERVICE.pack(number, len(backends.endpoints), flags, 0, backends.affinity * 1_000_000_000)
        try:
            self._add(number, backends)
            self.tables.services.update(_service_key(*frontend), value)
        except OSError:
            self._remove(number, backends)  # it is tried again under another number, and others need the room
            raise
        self._entries[frontend] = (number, backends)
        if old is not None:
            self._sweep_later(*old)
        elif backends.reach == "cluster":
            count = self._markers.get(frontend.address, 0)
            self._markers[frontend.address] = count + 1
            if count == 0:
                self.tables.services.update(_service_key(frontend.address, 0, ""), _SERVICE.pack(0, 0, 0, 0, 0))

    def unset(self, frontend: Frontend) -> None:
        """Take a frontend's entries away."""
        old = self._entries.pop(frontend, None)
        if old is None:
            return
        self.tables.services.delete(_service_key(*frontend))
        self._sweep_later(*old)
        if old[1].reach == "cluster":
            self._markers[frontend.address] -= 1
            if not self._markers[frontend.address]:
                del self._markers[frontend.address]
                self.tables.services.delete(_service_key(frontend.address, 0, ""))

    def _add(self, number: int, backends: Backends) -> None:
        for key, endpoint in _backend_entries(number, backends):
            self.tables.backends.update(key, endpoint)
        for key in _source_keys(number, backends):
            self.tables.sources.update(key, struct.pack("=I", 1))

    def _remove(self, number: int, backends: Backends) -> None:
        for key, _ in _backend_entries(number, backends):
            self.tables.backends.delete(key)
        for key in _source_keys(number, backends):
            self.tables.sources.delete(key)

    def _sweep_later(self, number: int, backends: Backends) -> None:
        def sweep() -> None:
            if not self._closed:
                self._remove(number, backends)

        self._clock.call_later(SWEEP_SECONDS, sweep)

    def _numbers(self) -> Iterator[int]:
        """The numbers of services that something is known of."""
        for key in self.tables.services:
            value = self.tables.services.lookup(key)
            if value is not None:
                yield _SERVICE.unpack(value)[0]
        for table, layout in ((self.tables.backends, "=I"), (self.tables.sources, "=4xI")):
            for key in table:
                yield struct.unpack_from(layout, key)[0]

    def sweep(self) -> None:
        """Everything there is has been put: forget what an earlier process left besides."""
        if self._closed:
            return  # the platform ended before it had settled
        wanted = {_service_key(*frontend) for frontend in self._entries}
        wanted |= {_service_key(address, 0, "") for address in self._markers}
        for key in [key for key in self.tables.services if key not in wanted]:
            self.tables.services.delete(key)
        numbers = {number for number, _ in self._entries.values()}
        for key in [key for key in self.tables.backends if struct.unpack_from("=I", key)[0] not in numbers]:
            self.tables.backends.delete(key)
        for key in [key for key in self.tables.sources if struct.unpack_from("=4xI", key)[0] not in numbers]:
            self.tables.sources.delete(key)

    @property
    def size(self) -> int:
        """Frontends."""
        return len(self._entries)

    # -- policy

    def enforce(self, isolated: Mapping[str, Isolation]) -> None:
        """Keep these policies from now on, and no others. Raises OSError (a table is full)."""
        self._policy.enforce(isolated)


def _attach(directory: int, tables: Tables, pods: bpf.Map | None, level: int) -> None:
    try:
        loaded = Programs(tables, pods, level).load()
    except OSError:
        loaded = Programs(tables, pods, level, refusals=False).load()
    for name, attach_type, descriptor in loaded:
        try:
            # attached before the old ones are taken off: no connection finds no program
            old = [one for one in bpf.attached(directory, attach_type) if one.name == name]
            bpf.attach(directory, descriptor, attach_type)
            for one in old:
                former = bpf.program(one.id)
                try:
                    bpf.detach(directory, former, attach_type)
                finally:
                    os.close(former)
        finally:
            os.close(descriptor)


class _PolicyTables:
    """``isolated``, ``ports`` and ``peers``, changed by difference."""

    def __init__(self, tables: Tables) -> None:
        self._tables = (tables.isolated, tables.ports, tables.peers)
        self._written: tuple[dict[bytes, bytes], ...] = tuple(
            {key: table.lookup(key) or b"" for key in list(table)} for table in self._tables
        )
        self._classes: dict[frozenset[IPv4Network], int] = {}
        self._next = 1 + max((struct.unpack_from("=4xI", key)[0] for key in self._written[2]), default=0)

    def _class(self, peers: frozenset[IPv4Network]) -> int:
        known = self._classes.get(peers)
        if known is None:
            known = self._classes[peers] = self._next
            self._next += 1
        return known

    def enforce(self, isolated: Mapping[str, Isolation]) -> None:
        flags: dict[bytes, bytes] = {}
        ports: dict[bytes, bytes] = {}
        peers: dict[bytes, bytes] = {}
        used: set[frozenset[IPv4Network]] = set()
        for address, isolation in isolated.items():
            pod = IPv4Address(address).packed
            bits = 0
            for direction, allowances in ((INGRESS, isolation.ingress), (EGRESS, isolation.egress)):
                if allowances is None:
                    continue
                bits |= direction
                for one in segments(allowances):
                    used.add(one.peers)
                    number = struct.pack("=I", self._class(one.peers))
                    where = pod + bytes((direction, _PROTOCOLS[one.protocol]))
                    for port, length in port_prefixes(one.first, one.last):
                        ports[struct.pack("=I", 48 + length) + where + port.to_bytes(2, "big")] = number
            flags[pod] = struct.pack("=I", bits)
        for networks in used:
            number = struct.pack("=I", self._class(networks))
            for network in networks:
                key = struct.pack("=I", 32 + network.prefixlen) + number + network.network_address.packed
                peers[key] = struct.pack("=I", 1)
        self._classes = {networks: number for networks, number in self._classes.items() if networks in used}
        wanted = (flags, ports, peers)
        # leave is written before isolation, and taken back after it: nothing allowed is refused on the way
        for index in (2, 1, 0):
            self._write(index, wanted[index])
        for index in (0, 1, 2):
            self._erase(index, wanted[index].keys())

    def _write(self, index: int, wanted: Mapping[bytes, bytes]) -> None:
        written = self._written[index]
        for key, value in wanted.items():
            if written.get(key) != value:
                self._tables[index].update(key, value)
                written[key] = value

    def _erase(self, index: int, wanted: Iterable[bytes]) -> None:
        written = self._written[index]
        for key in written.keys() - set(wanted):
            self._tables[index].delete(key)
            del written[key]
