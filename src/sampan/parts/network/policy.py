"""NetworkPolicy as a function: policies, pods and namespaces in, what each isolated pod may do out. Pure.

A pod that no policy of a direction selects is free in that direction. One that is selected may do what the union of those
policies' rules allows, and nothing else; a connection needs the leave of both ends. `compile` resolves selectors and named
ports to addresses and port ranges, so that `Isolation.allows` (and the kernel's tables, which are made from the same values)
need to know nothing of labels.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Network
from typing import Any, NamedTuple

from sampan.kube.objects import Object, dig
from sampan.kube.types import selectors
from sampan.parts.network.services import is_ipv4

EVERYWHERE = IPv4Network("0.0.0.0/0")
ALL_PORTS = (1, 65535)


class Allowance(NamedTuple):
    """Peers in these networks may be spoken with at these ports."""

    protocol: str
    """``TCP``, ``UDP`` or ``SCTP``."""
    first: int
    last: int
    peers: frozenset[IPv4Network]


class Isolation(NamedTuple):
    """What one pod may do; None in a direction: anything."""

    ingress: tuple[Allowance, ...] | None = None
    egress: tuple[Allowance, ...] | None = None


def _permits(allowances: tuple[Allowance, ...] | None, peer: str, protocol: str, port: int) -> bool:
    if allowances is None:
        return True
    address = ipaddress.IPv4Address(peer)
    return any(
        one.protocol == protocol and one.first <= port <= one.last and any(address in network for network in one.peers)
        for one in allowances
    )


def allows(isolated: Mapping[str, Isolation], source: str, target: str, protocol: str, port: int) -> bool:
    """A pod at ``source`` may open a connection to ``target`` (addresses; ``port`` is the target pod's own)."""
    if source == target:
        return True  # a pod always reaches itself
    free = Isolation()
    return _permits(isolated.get(source, free).egress, target, protocol, port) and _permits(
        isolated.get(target, free).ingress, source, protocol, port
    )


def compile(
    policies: Sequence[Object], pods: Sequence[Object], namespaces: Mapping[str, Mapping[str, str]]
) -> dict[str, Isolation]:
    """What every isolated pod may do, by its address. ``namespaces`` maps names to labels."""
    world = _World(pods, namespaces)
    rules: dict[str, tuple[list[Allowance] | None, list[Allowance] | None]] = {}
    for policy in policies:
        spec = policy["spec"]
        types = spec.get("policyTypes") or (["Ingress", "Egress"] if "egress" in spec else ["Ingress"])
        namespace = policy["metadata"]["namespace"]
        outward = world.egress(spec, namespace) if "Egress" in types else None
        for pod in world.select(spec.get("podSelector") or {}, {namespace}):
            address = pod["status"]["podIP"]
            ingress, egress = rules.get(address, (None, None))
            if "Ingress" in types:
                ingress = [*(ingress or ()), *world.ingress(spec, namespace, pod)]
            if outward is not None:
                egress = [*(egress or ()), *outward]
            rules[address] = (ingress, egress)
    return {
        address: Isolation(
            None if ingress is None else tuple(dict.fromkeys(ingress)),
            None if egress is None else tuple(dict.fromkeys(egress)),
        )
        for address, (ingress, egress) in rules.items()
    }


class _World:
    """Pods with IPv4 addresses, by namespace, and the labels of namespaces."""

    def __init__(self, pods: Sequence[Object], namespaces: Mapping[str, Mapping[str, str]]) -> None:
        self._namespaces = namespaces
        self._pods: dict[str, list[Object]] = {}
        for pod in pods:
            running = dig(pod, "status", "phase") not in ("Succeeded", "Failed")
            if running and is_ipv4(dig(pod, "status", "podIP", default="")) and not pod["spec"].get("hostNetwork"):
                self._pods.setdefault(pod["metadata"]["namespace"], []).append(pod)

    def select(self, selector: Mapping[str, Any], namespaces: Iterable[str]) -> list[Object]:
        return [
            pod
            for namespace in namespaces
            for pod in self._pods.get(namespace, ())
            if selectors.matches(selector, pod["metadata"].get("labels") or {})
        ]

    def _peer_pods(self, peer: Mapping[str, Any], namespace: str) -> list[Object]:
        chosen: Iterable[str] = (namespace,)
        if peer.get("namespaceSelector") is not None:
            wanted = peer["namespaceSelector"]
            chosen = [name for name, labels in self._namespaces.items() if selectors.matches(wanted, labels)]
        return self.select(peer.get("podSelector") or {}, chosen)

    def _networks(self, peers: Sequence[Mapping[str, Any]] | None, namespace: str) -> frozenset[IPv4Network]:
        if not peers:
            return frozenset((EVERYWHERE,))
        found: set[IPv4Network] = set()
        for peer in peers:
            if peer.get("ipBlock"):
                found.update(block_networks(peer["ipBlock"]))
            else:
                found.update(IPv4Network(pod["status"]["podIP"]) for pod in self._peer_pods(peer, namespace))
        return frozenset(found)

    def ingress(self, spec: Mapping[str, Any], namespace: str, pod: Object) -> Iterable[Allowance]:
        for rule in spec.get("ingress") or ():
            peers = self._networks(rule.get("from"), namespace)
            for protocol, first, last in _ranges(rule.get("ports"), pod):
                yield Allowance(protocol, first, last, peers)

    def egress(self, spec: Mapping[str, Any], namespace: str) -> list[Allowance]:
        made: list[Allowance] = []
        for rule in spec.get("egress") or ():
            ports = rule.get("ports")
            named = [port for port in ports or () if isinstance(port.get("port"), str)]
            plain = [port for port in ports or () if not isinstance(port.get("port"), str)]
            if plain or not ports:
                peers = self._networks(rule.get("to"), namespace)
                made += (Allowance(*one, peers) for one in _ranges(plain, None))
            if not named:
                continue
            # a named port is another number at each pod it is resolved for
            everyone = [pod for some in self._pods.values() for pod in some]
            targets = (
                [pod for peer in rule["to"] if not peer.get("ipBlock") for pod in self._peer_pods(peer, namespace)]
                if rule.get("to")
                else everyone
            )
            for pod in targets:
                own = frozenset((IPv4Network(pod["status"]["podIP"]),))
                made += (Allowance(*one, own) for one in _ranges(named, pod))
        return made


def block_networks(block: Mapping[str, Any]) -> list[IPv4Network]:
    """An ipBlock's networks without its exceptions; none for IPv6."""
    try:
        left = [IPv4Network(block["cidr"], strict=False)]
        exceptions = [IPv4Network(one, strict=False) for one in block.get("except") or ()]
    except ValueError:
        return []
    for exception in exceptions:
        rest: list[IPv4Network] = []
        for network in left:
            if not network.overlaps(exception):
                rest.append(network)
            elif exception.prefixlen > network.prefixlen:
                rest += network.address_exclude(exception)
        left = rest
    return left


def _ranges(ports: Sequence[Mapping[str, Any]] | None, pod: Object | None) -> Iterable[tuple[str, int, int]]:
    if not ports:
        for protocol in ("TCP", "UDP", "SCTP"):
            yield protocol, *ALL_PORTS
        return
    for port in ports:
        protocol = port.get("protocol") or "TCP"
        number = port.get("port")
        if number is None:
            yield protocol, *ALL_PORTS
        elif isinstance(number, str):
            resolved = _named(number, protocol, pod)
            if resolved is not None:
                yield protocol, resolved, resolved
        else:
            yield protocol, number, port.get("endPort") or number


def _named(name: str, protocol: str, pod: Object | None) -> int | None:
    if pod is None:
        return None
    sidecars = [one for one in pod["spec"].get("initContainers") or () if one.get("restartPolicy") == "Always"]
    for container in [*pod["spec"].get("containers", ()), *sidecars]:
        for port in container.get("ports") or ():
            if port.get("name") == name and (port.get("protocol") or "TCP") == protocol:
                number: int = port["containerPort"]
                return number
    return None


def segments(allowances: tuple[Allowance, ...]) -> list[Allowance]:
    """The same rights with port ranges that do not overlap, peers united and made minimal."""
    made: list[Allowance] = []
    for protocol in dict.fromkeys(one.protocol for one in allowances):
        own = [one for one in allowances if one.protocol == protocol]
        edges = sorted({edge for one in own for edge in (one.first, one.last + 1)})
        for first, after in itertools.pairwise(edges):
            peers = {network for one in own if one.first <= first and one.last >= after - 1 for network in one.peers}
            if peers:
                united = frozenset(ipaddress.collapse_addresses(peers))
                if made and made[-1].protocol == protocol and made[-1].last == first - 1 and made[-1].peers == united:
                    made[-1] = made[-1]._replace(last=after - 1)
                else:
                    made.append(Allowance(protocol, first, after - 1, united))
    return made


def port_prefixes(first: int, last: int) -> Iterable[tuple[int, int]]:
    """A port range as (port, prefix length of 16 bits) pairs, for tables that match by longest prefix."""
    while first <= last:
        size = (first & -first) or 1 << 16
        while first + size - 1 > last:
            size >>= 1
        yield first, 16 - (size.bit_length() - 1)
        first += size
