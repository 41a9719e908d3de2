"""Service addresses and node ports: given out at creation, never twice, given back with the Service.

What is taken follows from the Services in the store (the allocator listens to it), plus what writes under way have reserved;
so nothing has to be stored or repaired.

Each platform begins at a place of its own, drawn at its start, and goes on from there: node ports (and, where forwarders listen for
them, addresses) are the machine's, on which there may be further platforms that begin with nothing taken, too.
"""

from __future__ import annotations

import ipaddress
import itertools
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec

from sampan.kube.objects import Object
from sampan.kube.status import FieldError
from sampan.kube.store.interface import Change, Store
from sampan.kube.types.resource import ResourceType

SERVICE_RANGE = "10.96.0.0/16"
NODE_PORTS = range(30000, 32768)
CHOSEN_BY_HAND = 86
"""Node ports at the low end that are given out last, as upstream's are: they are for those who name one."""
SERVICES = "/registry/core/services/"

_WITH_ADDRESS = ("", "ClusterIP", "NodePort", "LoadBalancer")
_WITH_NODE_PORTS = ("NodePort", "LoadBalancer")


class Allocation:
    """What one write reserved; undone at its end unless `keep` is called."""

    def __init__(self) -> None:
        self.errors: list[FieldError] = []
        self.kept = False
        self.undo: list[Callable[[], None]] = []

    def keep(self) -> None:
        """The write has been stored."""
        self.kept = True


class _Port(msgspec.Struct):
    nodePort: int = 0
    protocol: str = "TCP"


class _Spec(msgspec.Struct):
    clusterIP: str = ""
    clusterIPs: list[str] | None = None
    ports: list[_Port] | None = None
    healthCheckNodePort: int = 0


class _Service(msgspec.Struct):
    spec: _Spec = msgspec.field(default_factory=_Spec)


_decoder = msgspec.json.Decoder(_Service)


def _taken(value: bytes) -> set[str | tuple[int, str]]:
    spec = _decoder.decode(value).spec
    found: set[str | tuple[int, str]] = {
        ip for ip in (*(spec.clusterIPs or ()), spec.clusterIP) if ip not in ("", "None")
    }
    found.update((port.nodePort, port.protocol) for port in spec.ports or () if port.nodePort)
    if spec.healthCheckNodePort:
        found.add((spec.healthCheckNodePort, "TCP"))
    return found


class ServiceAllocator:
    """Gives Services their cluster addresses and node ports."""

    def __init__(self, store: Store, service_range: str = SERVICE_RANGE) -> None:
        self._network = ipaddress.ip_network(service_range)
        self._range = service_range
        self._holders: dict[str | tuple[int, str], str] = {}
        self._reserved: set[str | tuple[int, str]] = set()
        # Static choices are made by hand from the low end, so automatic ones start above it, as upstream's do.
        size = self._network.num_addresses
        self._low = min(max(16, size // 16), 256) if size > 32 else 1
        self._next_ip = self._low + secrets.randbelow(max(size - 1 - self._low, 1))
        self._next_port = secrets.choice(NODE_PORTS[CHOSEN_BY_HAND:])
        for entry in store.range(SERVICES):
            for held in _taken(entry.value):
                self._holders[held] = entry.key
        self._unsubscribe = store.subscribe(SERVICES, self._changed)

    def close(self) -> None:
        """Stop following the store."""
        self._unsubscribe()

    def address(self, index: int) -> str:
        """The address at a place in the range (1: the API server's own Service, 10: DNS)."""
        return str(self._network[index])

    def _changed(self, change: Change) -> None:
        if change.previous is not None:
            for held in _taken(change.previous):
                if self._holders.get(held) == change.key:
                    del self._holders[held]
        if change.value is not None:
            for held in _taken(change.value):
                self._holders[held] = change.key

    @contextmanager
    def allocating(self, type: ResourceType, new: Object, old: Object | None) -> Iterator[Allocation]:
        """Complete a Service's addresses and ports, in place, for the time of a write; other kinds pass through."""
        allocation = Allocation()
        if type.resource.plural != "services" or type.resource.group or not isinstance(new.get("spec"), dict):
            yield allocation
            return
        try:
            self._complete(allocation, type.key(new["metadata"].get("namespace"), new["metadata"]["name"]), new, old)
            yield allocation
        finally:
            for undo in allocation.undo:
                undo()

    def _complete(self, allocation: Allocation, key: str, new: Object, old: Object | None) -> None:
        spec: dict[str, Any] = new["spec"]
        before: Mapping[str, Any] = (old or {}).get("spec") or {}
        kind = spec.get("type") or "ClusterIP"
        if kind in _WITH_ADDRESS:
            self._addresses(allocation, key, spec, before)
        elif before.get("type", "ClusterIP") in _WITH_ADDRESS and spec.get("clusterIP") == before.get("clusterIP"):
            spec.pop("clusterIP", None)
            spec.pop("clusterIPs", None)
        if kind in _WITH_NODE_PORTS:
            self._ports(allocation, key, spec, before)
        elif before.get("type") in _WITH_NODE_PORTS:
            held = {port.get("nodePort") for port in before.get("ports") or ()}
            for port in spec.get("ports") or ():
                if port.get("nodePort") in held:
                    port.pop("nodePort", None)
        if kind == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local":
            self._health_check(allocation, key, spec, before)
        elif spec.get("healthCheckNodePort") == before.get("healthCheckNodePort"):
            spec.pop("healthCheckNodePort", None)

    def _reserve(self, allocation: Allocation, item: str | tuple[int, str]) -> None:
        self._reserved.add(item)
        allocation.undo.append(lambda: self._reserved.discard(item))

    def _free(self, item: str | tuple[int, str], key: str) -> bool:
        return item not in self._reserved and self._holders.get(item, key) == key

    def _addresses(self, allocation: Allocation, key: str, spec: dict[str, Any], before: Mapping[str, Any]) -> None:
        wanted = spec.get("clusterIP") or next(iter(spec.get("clusterIPs") or ()), "")
        if not wanted and before.get("clusterIP"):
            # A client that does not know the address keeps it.
            wanted = before["clusterIP"]
        if wanted == "None":
            spec["clusterIP"], spec["clusterIPs"] = "None", ["None"]
            return
        if not wanted:
            chosen = self._choose_ip(key)
            if chosen is None:
                message = "Invalid value: null: failed to allocate a serviceIP: range is full"
                allocation.errors.append(FieldError("spec.clusterIPs", "InternalError", message))
                return
            wanted = chosen
        elif wanted != before.get("clusterIP"):
            problem = self._refusal(wanted, key)
            if problem:
                message = f'Invalid value: ["{wanted}"]: failed to allocate IP {wanted}: {problem}'
                allocation.errors.append(FieldError("spec.clusterIPs", "FieldValueInvalid", message))
                return
        self._reserve(allocation, wanted)
        spec["clusterIP"] = wanted
        if not spec.get("clusterIPs") or spec["clusterIPs"][0] != wanted:
            spec["clusterIPs"] = [wanted]

    def _refusal(self, wanted: str, key: str) -> str:
        try:
            address = ipaddress.ip_address(wanted)
        except ValueError:
            return "must be a valid IP address"
        if address not in self._network or address == self._network[0]:
            return f"the provided IP ({wanted}) is not in the valid range. The range of valid IPs is {self._range}"
        return "" if self._free(wanted, key) else "provided IP is already allocated"

    def _choose_ip(self, key: str) -> str | None:
        last = self._network.num_addresses - 1
        for start, end in ((self._low, last), (1, self._low)):
            span = end - start
            for offset in range(span):
                place = start + (max(self._next_ip - start, 0) + offset) % span
                candidate = str(self._network[place])
                if candidate not in self._reserved and candidate not in self._holders:
                    if start == self._low:
                        self._next_ip = place + 1
                    return candidate
        return None

    def _ports(self, allocation: Allocation, key: str, spec: dict[str, Any], before: Mapping[str, Any]) -> None:
        if spec.get("type") == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts") is False:
            return
        held = {
            (port.get("port"), port.get("protocol") or "TCP"): port.get("nodePort")
            for port in before.get("ports") or ()
        }
        mine = set(held.values())
        chosen: dict[int, set[str]] = {}
        for index, port in enumerate(spec.get("ports") or ()):
            if not isinstance(port, dict):
                continue
            protocol = port.get("protocol") or "TCP"
            wanted = port.get("nodePort") or held.get((port.get("port"), protocol))
            path = f"spec.ports[{index}].nodePort"
            if wanted and isinstance(wanted, int):
                if wanted not in NODE_PORTS:
                    limits = f"{NODE_PORTS.start}-{NODE_PORTS.stop - 1}"
                    message = f"Invalid value: {wanted}: provided port is not in the valid range. The range of valid ports is {limits}"
                    allocation.errors.append(FieldError(path, "FieldValueInvalid", message))
                    continue
                if wanted not in mine and not self._free((wanted, protocol), key):
                    message = f"Invalid value: {wanted}: provided port is already allocated"
                    allocation.errors.append(FieldError(path, "FieldValueInvalid", message))
                    continue
            else:
                wanted = self._choose_port(protocol, chosen)
                if wanted is None:
                    message = "Internal error: failed to allocate a nodePort: range is full"
                    allocation.errors.append(FieldError(path, "InternalError", message))
                    continue
            chosen.setdefault(wanted, set()).add(protocol)
            self._reserve(allocation, (wanted, protocol))
            port["nodePort"] = wanted

    def _health_check(self, allocation: Allocation, key: str, spec: dict[str, Any], before: Mapping[str, Any]) -> None:
        """The port on which a node tells load balancers whether it has endpoints of its own."""
        held = before.get("healthCheckNodePort")
        wanted = spec.get("healthCheckNodePort") or held
        path = "spec.healthCheckNodePort"
        if wanted and wanted != held and not self._free((wanted, "TCP"), key):
            message = f"Internal error: failed to allocate requested HealthCheck NodePort {wanted}: provided port is already allocated"
            allocation.errors.append(FieldError(path, "InternalError", message))
            return
        if not wanted:
            wanted = self._choose_port("TCP", {})
        if wanted is None:
            message = "Internal error: failed to allocate a HealthCheck NodePort: range is full"
            allocation.errors.append(FieldError(path, "InternalError", message))
            return
        self._reserve(allocation, (wanted, "TCP"))
        spec["healthCheckNodePort"] = wanted

    def _choose_port(self, protocol: str, chosen: Mapping[int, set[str]]) -> int | None:
        automatic = NODE_PORTS[CHOSEN_BY_HAND:]
        first = self._next_port if self._next_port in automatic else automatic.start
        last = NODE_PORTS[:CHOSEN_BY_HAND]
        for port in itertools.chain(range(first, automatic.stop), range(automatic.start, first), last):
            taken = {(port, "TCP"), (port, "UDP"), (port, "SCTP")}
            if port not in chosen and not taken & self._reserved and not any(item in self._holders for item in taken):
                self._next_port = port + 1
                return port
        return None
