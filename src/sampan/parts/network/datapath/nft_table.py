"""The nf_tables table for pods with network namespaces: its chains and sets, and what goes into them. Pure.

A pod's packets come to the host through its link (a veth pair whose host end is named ``spn...``), so the host's packet rules
keep Services and policies for it. One table a node; its maps are looked up once a connection, whatever the number of Services::

    frontends   address . protocol . port                    -> the chain that serves it
    backends    address . protocol . port . n                -> address . port      the n-th endpoint
    members     address . protocol . port . address . port      where clients stay with an endpoint: it is still one
    clients     client . address . protocol . port           -> address . port      with a timeout: the endpoint a client had
    guarded     address . protocol . port                       whom not everybody may reach (a load balancer's source ranges)
    sources     address . protocol . port . clients             who may
    addresses   address                                         Services' own: at other ports they refuse
    themselves  address . address                               an endpoint twice: who connects to itself through a Service
    isolated-in, isolated-out   address                         pods that policies select
    ingress, egress   pod . protocol . ports . peers            what they may do all the same

Chains are shared: one for each number of endpoints (``pick-3``), and for each timeout beside it (``stay-10800-3``), so adding a
Service adds entries and hardly ever a rule. Refusals are at once (a reset, or ICMP's "port unreachable"), as kube-proxy's
REJECT; what a policy forbids is dropped in silence, as network plugins do. What pods send to networks outside seems to come
from the machine. Connections over loopback (between pods without namespaces, of the machine with itself) are not tracked: they
cost what they did, and do not fill the kernel's table of connections.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from sampan.kernel import nftables as nft
from sampan.kernel.nftables import Batch, Element, field
from sampan.parts.network.policy import Allowance, Isolation, segments
from sampan.parts.network.services import Backends, Frontend

LINKS: Final = b"spn"
"""Begins the names of pods' links on the host."""
_LOOPBACK: Final = b"lo\0"
_PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}
REFUSE: Final = "refuse"
SILENT: Final = "silent"

_FRONTEND = (nft.ADDRESS, nft.PROTOCOL, nft.PORT)
_ENDPOINT = (nft.ADDRESS, nft.PORT)
_RULE = (nft.ADDRESS, nft.PROTOCOL, nft.PORT, nft.ADDRESS)

Entries = dict[tuple[str, bytes], Element]
"""Elements by set and key."""


def _address(value: str) -> bytes:
    return IPv4Address(value).packed


def _port(value: int) -> bytes:
    return field(value.to_bytes(2, "big"))


def _protocol(value: str) -> bytes:
    return field(bytes((_PROTOCOLS[value],)))


def _frontend_key(frontend: Frontend) -> bytes:
    return _address(frontend.address) + _protocol(frontend.protocol) + _port(frontend.port)


def chain_of(backends: Backends) -> str:
    """The chain that connections to such a frontend go to."""
    count = len(backends.endpoints)
    if not count:
        return SILENT if backends.drop else REFUSE
    return f"stay-{backends.affinity}-{count}" if backends.affinity else f"pick-{count}"


def entries(frontend: Frontend, backends: Backends) -> Entries:
    """What a frontend needs in the sets."""
    key = _frontend_key(frontend)
    made = [("frontends", Element(key, goto=chain_of(backends)))]
    if backends.sources:
        made.append(("guarded", Element(key)))
        for network in backends.admitted():
            first, last = key + network.network_address.packed, key + network.broadcast_address.packed
            made.append(("sources", Element(first, last=last)))
    if backends.reach == "cluster":
        made.append(("addresses", Element(_address(frontend.address))))
    for index, (address, port) in enumerate(backends.endpoints):
        endpoint = _address(address) + _port(port)
        made.append(("backends", Element(key + struct.pack("=I", index), endpoint)))
        if backends.affinity:
            made.append(("members", Element(key + endpoint)))
        made.append(("themselves", Element(_address(address) * 2)))
    return {(name, one.key + one.last): one for name, one in made}


def _ranges(pod: str, allowances: Iterable[Allowance]) -> Iterable[Element]:
    for one in segments(tuple(allowances)):
        for network in one.peers:
            yield Element(
                _address(pod) + _protocol(one.protocol) + _port(one.first) + network.network_address.packed,
                last=_address(pod) + _protocol(one.protocol) + _port(one.last) + network.broadcast_address.packed,
            )


def policy_entries(isolated: Mapping[str, Isolation]) -> Entries:
    """What policies need in the sets."""
    made: list[tuple[str, Element]] = []
    for pod, isolation in isolated.items():
        for direction, set_name, allowances in (
            ("isolated-in", "ingress", isolation.ingress),
            ("isolated-out", "egress", isolation.egress),
        ):
            if allowances is not None:
                made.append((direction, Element(_address(pod))))
                made += ((set_name, one) for one in _ranges(pod, allowances))
    return {(name, one.key + one.last): one for name, one in made}


# -- the table


def lay_out(batch: Batch, pod_range: IPv4Network, *, host: bool) -> None:
    """The table anew, without Services and policies. ``host``: this machine's processes reach Services, too."""
    batch.add_table()
    batch.delete_table()
    batch.add_table()
    batch.add_set("frontends", _FRONTEND, data=())
    batch.add_set("backends", (*_FRONTEND, nft.INTEGER), data=_ENDPOINT)
    batch.add_set("members", (*_FRONTEND, *_ENDPOINT))
    batch.add_set("clients", (nft.ADDRESS, *_FRONTEND), nft.TIMEOUT | nft.DYNAMIC, data=_ENDPOINT)
    batch.add_set("guarded", _FRONTEND)
    batch.add_set("sources", _RULE, nft.INTERVAL)
    batch.add_set("addresses", (nft.ADDRESS,))
    batch.add_set("themselves", (nft.ADDRESS, nft.ADDRESS))
    batch.add_set("isolated-in", (nft.ADDRESS,))
    batch.add_set("isolated-out", (nft.ADDRESS,))
    batch.add_set("ingress", _RULE, nft.INTERVAL)
    batch.add_set("egress", _RULE, nft.INTERVAL)
    _lay_out_services(batch, pod_range, host)
    _lay_out_policy(batch, pod_range)
    _lay_out_exceptions(batch, pod_range)


def _from(network: IPv4Network, register: int = 0) -> bytes:
    return nft.source_address(register) + nft.within(register, network.network_address.packed, network.prefixlen)


def _to(network: IPv4Network, register: int = 0) -> bytes:
    return nft.destination_address(register) + nft.within(register, network.network_address.packed, network.prefixlen)


_LOCALHOST: Final = IPv4Network("127.0.0.0/8")


def _device(key: int, name: bytes) -> bytes:
    """The device's name begins so (with its end: is so)."""
    return nft.meta(key, 0) + nft.compared(0, name)


def _destination(register: int) -> bytes:
    """address . protocol . port of where the packet goes."""
    return (
        nft.destination_address(register)
        + nft.meta(nft.PROTOCOL_OF_PACKET, register + 1)
        + nft.destination_port(register + 2)
    )


def _lay_out_services(batch: Batch, pod_range: IPv4Network, host: bool) -> None:
    for chain in (REFUSE, SILENT, "services", "outside"):
        batch.add_chain(chain)
    batch.add_rule(
        REFUSE,
        nft.meta(nft.PROTOCOL_OF_PACKET, 0),
        nft.compared(0, bytes((_PROTOCOLS["TCP"],))),
        nft.refused_by_reset(),
    )
    batch.add_rule(REFUSE, nft.refused_as_unreachable())
    batch.add_rule(SILENT, nft.verdict(nft.DROP))
    batch.add_rule(
        "services",
        _destination(0),
        nft.listed("guarded", 0),
        nft.source_address(3),
        nft.listed("sources", 0, present=False),
        nft.verdict(nft.GOTO, SILENT),
    )
    batch.add_rule("services", _destination(0), nft.followed("frontends", 0))
    batch.add_rule("services", nft.destination_address(0), nft.listed("addresses", 0), nft.verdict(nft.GOTO, REFUSE))
    batch.add_chain("from-pods", "nat", nft.PREROUTING, nft.DESTINATION)
    batch.add_rule("from-pods", _from(pod_range), nft.verdict(nft.JUMP, "services"))
    if host:
        batch.add_chain("from-processes", "nat", nft.OUTPUT, nft.DESTINATION)
        batch.add_rule("from-processes", nft.verdict(nft.JUMP, "services"))
    batch.add_chain("sources", "nat", nft.POSTROUTING, nft.SOURCE)
    batch.add_rule(
        "sources",
        _device(nft.OUTPUT_DEVICE, LINKS),
        nft.source_address(0),
        nft.destination_address(1),
        nft.listed("themselves", 0),
        nft.masqueraded(),
    )
    batch.add_rule("sources", _from(pod_range), nft.verdict(nft.GOTO, "outside"))


def lay_out_outside(batch: Batch, pod_ranges: Sequence[IPv4Network]) -> None:
    """Which networks are the cluster's, where pods are seen as they are."""
    batch.flush("outside")
    for network in pod_ranges:
        batch.add_rule("outside", _to(network), nft.verdict(nft.RETURN))
    batch.add_rule("outside", _device(nft.OUTPUT_DEVICE, LINKS), nft.verdict(nft.RETURN))
    batch.add_rule("outside", nft.masqueraded())


def add_choice(batch: Batch, chain: str) -> None:
    """A chain of `chain_of` that is not there yet."""
    kind, _, rest = chain.partition("-")
    batch.add_chain(chain)
    if kind == "pick":
        batch.add_rule(
            chain,
            _destination(0),
            nft.random_number(int(rest), 3),
            nft.looked_up("backends", 0, 4),
            nft.redirected(4, 5),
        )
        return
    seconds, count = map(int, rest.split("-"))
    client = nft.source_address(0) + _destination(1)
    had = client + nft.looked_up("clients", 0, 4)
    batch.add_rule(
        chain,
        had,
        nft.listed("members", 1),
        nft.remembered("clients", 0, 4, seconds),
        nft.redirected(4, 5),
    )
    batch.add_rule(chain, had, nft.forgotten("clients", 0, 4))
    batch.add_rule(
        chain,
        client,
        nft.random_number(count, 4),
        nft.looked_up("backends", 1, 5),
        nft.remembered("clients", 0, 5, seconds),
        nft.redirected(5, 6),
    )
    # too many clients to remember this one
    batch.add_rule(
        chain,
        _destination(0),
        nft.random_number(count, 3),
        nft.looked_up("backends", 0, 4),
        nft.redirected(4, 5),
    )


def _lay_out_policy(batch: Batch, pod_range: IPv4Network) -> None:
    batch.add_chain("policy")
    known = struct.pack("=I", nft.ESTABLISHED | nft.RELATED)
    batch.add_rule(
        "policy",
        nft.ct_state(0),
        nft.masked(0, known),
        nft.compared(0, bytes(4), equal=False),
        nft.verdict(nft.RETURN),
    )
    # the platform's own servers, and a pod that reaches itself
    batch.add_rule("policy", _to(_LOCALHOST), nft.verdict(nft.RETURN))
    batch.add_rule(
        "policy",
        nft.source_address(0),
        nft.destination_address(1),
        nft.listed("themselves", 0),
        nft.verdict(nft.RETURN),
    )
    for isolated, allowed, own, peer in (
        ("isolated-out", "egress", nft.source_address, nft.destination_address),
        ("isolated-in", "ingress", nft.destination_address, nft.source_address),
    ):
        batch.add_rule(
            "policy",
            own(0),
            nft.listed(isolated, 0),
            nft.meta(nft.PROTOCOL_OF_PACKET, 1),
            nft.destination_port(2),
            peer(3),
            nft.listed(allowed, 0, present=False),
            nft.verdict(nft.DROP),
        )
    judged = nft.verdict(nft.JUMP, "policy")
    batch.add_chain("between-pods", "filter", nft.FORWARD, nft.FILTER)
    # a first packet that slipped between two transactions: dropped here its connection is not known yet, and the client's next
    # attempt is served; sent on it would be lost outside, and all after it
    batch.add_rule(
        "between-pods",
        _device(nft.INPUT_DEVICE, LINKS),
        nft.destination_address(0),
        nft.listed("addresses", 0),
        nft.verdict(nft.DROP),
    )
    batch.add_rule("between-pods", _device(nft.INPUT_DEVICE, LINKS), nft.verdict(nft.GOTO, "policy"))
    batch.add_rule("between-pods", _device(nft.OUTPUT_DEVICE, LINKS), judged)
    batch.add_chain("to-processes", "filter", nft.INPUT, nft.FILTER)
    batch.add_rule("to-processes", _device(nft.INPUT_DEVICE, LINKS), judged)
    # the node itself reaches all its pods; pods without namespaces speak from their addresses
    batch.add_chain("to-pods", "filter", nft.OUTPUT, nft.FILTER)
    batch.add_rule("to-pods", _device(nft.OUTPUT_DEVICE, LINKS), _from(pod_range), judged)


def _lay_out_exceptions(batch: Batch, pod_range: IPv4Network) -> None:
    # neither pods without namespaces among each other nor the machine's own loopback need tracking
    for chain, hook, key in (
        ("before", nft.PREROUTING, nft.INPUT_DEVICE),
        ("before-out", nft.OUTPUT, nft.OUTPUT_DEVICE),
    ):
        batch.add_chain(chain, "filter", hook, nft.RAW)
        for network in (pod_range, _LOCALHOST):
            batch.add_rule(chain, _device(key, _LOOPBACK), _from(network), _to(network), nft.untracked())
    # links may deliver to 127.0.0.1 for the sake of Services; nobody is to ask for it himself
    batch.add_rule("before", _device(nft.INPUT_DEVICE, LINKS), _to(_LOCALHOST), nft.verdict(nft.DROP))
