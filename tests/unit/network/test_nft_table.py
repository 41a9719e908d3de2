"""What the nf_tables data table puts into its table, against a kernel of the test's own and against the policy's own judgement."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampan.kernel import nftables
from sampan.parts.network.datapath import conntrack
from sampan.parts.network.datapath.packet_table import PacketTable
from sampan.parts.network.policy import ALL_PORTS, Allowance, Isolation, allows
from sampan.parts.network.services import Backends, Frontend
from tests.unit.kernel.nft_decoder import Kernel

FIRST, SECOND, THIRD = (f"10.244.0.{n}" for n in (2, 3, 4))
WEB = Frontend("10.96.0.7", 80, "TCP")
NAMES = Frontend("10.96.0.10", 53, "UDP")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    _into(made, monkeypatch)
    return made


def _into(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nftables.Batch, "commit", lambda batch: kernel.take(batch.encoded()) if len(batch) else None)


def _table(frontends: dict[Frontend, Backends] | None = None, **policies: Any) -> PacketTable:
    table = PacketTable("t", "10.244.0.0/24", host=False)
    table.begin(frontends or {}, policies.get("isolated", {}), [IPv4Network("10.244.0.0/24")])
    return table


def _held(kernel: Kernel) -> dict[tuple[str, bytes], Any]:
    return {
        (name, key): data for name, one in kernel.tables["t"]["sets"].items() for key, data in one["elements"].items()
    }


def _leads_to(kernel: Kernel, frontend: Frontend) -> tuple[str, set[tuple[str, int]]]:
    """The chain and the endpoints of a frontend, as packets find them."""
    sets = kernel.tables["t"]["sets"]
    protocol = {"TCP": 6, "UDP": 17}[frontend.protocol]
    key = IPv4Address(frontend.address).packed + bytes((protocol, 0, 0, 0)) + struct.pack(">HH", frontend.port, 0)
    chain = sets["frontends"]["elements"][key]
    count = int(chain.rpartition("-")[2]) if "-" in chain else 0
    found = set()
    for index in range(count):
        value = sets["backends"]["elements"][key + struct.pack("=I", index)]
        found.add((str(IPv4Address(value[:4])), struct.unpack(">H", value[4:6])[0]))
    return chain, found


def test_a_frontend_leads_to_its_endpoints_through_shared_chains(kernel: Kernel) -> None:
    two = Backends(((FIRST, 8080), (SECOND, 8081)))
    table = _table({WEB: two, NAMES: Backends((("127.0.0.1", 9053),))})
    assert _leads_to(kernel, WEB) == ("pick-2", {(FIRST, 8080), (SECOND, 8081)})
    assert _leads_to(kernel, NAMES) == ("pick-1", {("127.0.0.1", 9053)})
    rules = len(kernel.tables["t"]["chains"]["pick-2"])
    table.set(WEB._replace(port=81), two)
    assert len(kernel.tables["t"]["chains"]["pick-2"]) == rules
    assert len(table.frontends) == 3


@pytest.mark.parametrize(
    ("backends", "chain"),
    [
        (Backends(()), "refuse"),
        (Backends((), drop=True), "silent"),
        (Backends(((FIRST, 1),), affinity=600), "stay-600-1"),
    ],
)
def test_the_chain_says_what_becomes_of_a_connection(kernel: Kernel, backends: Backends, chain: str) -> None:
    _table({WEB: backends})
    assert _leads_to(kernel, WEB)[0] == chain
    assert chain in kernel.tables["t"]["chains"]


def test_only_clients_that_stay_need_to_know_who_is_an_endpoint(kernel: Kernel) -> None:
    table = _table({WEB: Backends(((FIRST, 1), (SECOND, 1)), affinity=10)})
    members = kernel.tables["t"]["sets"]["members"]["elements"]
    assert {key[12:16] for key in members} == {IPv4Address(FIRST).packed, IPv4Address(SECOND).packed}
    table.set(WEB, Backends(((SECOND, 1),), affinity=10))
    assert {key[12:16] for key in members} == {IPv4Address(SECOND).packed}


def test_an_address_is_refused_at_other_ports_until_its_last_frontend_goes(kernel: Kernel) -> None:
    table = _table({WEB: Backends(()), WEB._replace(port=81): Backends(())})
    addresses = kernel.tables["t"]["sets"]["addresses"]["elements"]
    assert set(addresses) == {IPv4Address(WEB.address).packed}
    table.set(WEB, None)
    assert addresses
    table.set(WEB._replace(port=81), None)
    assert not addresses


def test_ports_of_the_node_make_its_address_no_services(kernel: Kernel) -> None:
    _table({Frontend("192.0.2.2", 30080, "TCP"): Backends(((FIRST, 1),), reach="node")})
    assert not kernel.tables["t"]["sets"]["addresses"]["elements"]


def test_a_refused_batch_changes_nothing_here_either(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    table = _table({WEB: Backends(((FIRST, 1),))})

    def refuse(batch: nftables.Batch) -> None:
        raise OSError(12, "no memory")

    with monkeypatch.context() as patched:
        patched.setattr(nftables.Batch, "commit", refuse)
        with pytest.raises(OSError, match="no memory"):
            table.set(WEB, Backends(((FIRST, 1), (SECOND, 1))))
    table.set(WEB, Backends(((FIRST, 1), (SECOND, 1))))
    assert _leads_to(kernel, WEB) == ("pick-2", {(FIRST, 1), (SECOND, 1)})


def test_other_nodes_pods_are_spoken_to_as_they_are(kernel: Kernel) -> None:
    table = _table()
    outside = kernel.tables["t"]["chains"]["outside"]
    assert [rule[-1][0] for rule in outside] == ["immediate", "immediate", "masq"]
    table.know([IPv4Network("10.244.0.0/24"), IPv4Network("10.244.1.0/24")])
    assert [rule[-1][0] for rule in outside] == ["immediate", "immediate", "immediate", "masq"]


def test_a_load_balancer_serves_only_those_it_takes_clients_from(kernel: Kernel) -> None:
    sources = ("10.244.0.0/30", "10.244.0.2/32", "fd00::/8")
    table = _table({WEB: Backends(((FIRST, 80),), reach="external", sources=sources), NAMES: Backends(((FIRST, 53),))})
    key = IPv4Address(WEB.address).packed + bytes((6, 0, 0, 0)) + struct.pack(">HH", 80, 0)
    sets = kernel.tables["t"]["sets"]
    ends = (IPv4Address("10.244.0.0").packed, IPv4Address("10.244.0.3").packed)
    assert list(sets["guarded"]["elements"]) == [key]
    assert list(sets["sources"]["elements"]) == [key + ends[0] + key + ends[1]]
    table.set(WEB, Backends(((FIRST, 80),), reach="external"))
    assert not sets["guarded"]["elements"]
    assert not sets["sources"]["elements"]


_ENDPOINTS = st.lists(
    st.tuples(st.sampled_from([FIRST, SECOND, THIRD, "127.0.0.1"]), st.sampled_from([80, 81])), unique=True, max_size=4
).map(tuple)
_BACKENDS = st.builds(
    Backends,
    _ENDPOINTS,
    affinity=st.sampled_from([0, 0, 60]),
    drop=st.booleans(),
    reach=st.sampled_from(["cluster", "external", "node"]),
    sources=st.sampled_from(
        [(), (), ("10.244.0.2/32",), ("10.244.0.0/30", "10.244.0.0/29", "192.0.2.0/24"), ("fd00::/8",)]
    ),
)
_FRONTENDS = st.builds(
    Frontend, st.sampled_from(["10.96.0.1", "10.96.0.2"]), st.sampled_from([80, 443]), st.sampled_from(["TCP", "UDP"])
)


@settings(max_examples=200)
@given(
    st.dictionaries(_FRONTENDS, _BACKENDS, max_size=4),
    st.lists(st.tuples(_FRONTENDS, st.one_of(st.none(), _BACKENDS)), max_size=12),
)
def test_whatever_changes_the_table_has_what_a_new_one_would_have(
    start: dict[Frontend, Backends], changes: list[tuple[Frontend, Backends | None]]
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        changed, fresh = Kernel(), Kernel()
        _into(changed, patched)
        table, wanted = _table(start), dict(start)
        for frontend, backends in changes:
            table.set(frontend, backends)
            wanted.pop(frontend, None)
            if backends is not None:
                wanted[frontend] = backends
        _into(fresh, patched)
        _table(wanted)
        assert _held(changed) == _held(fresh)
        for frontend, backends in wanted.items():
            assert _leads_to(changed, frontend)[1] == set(backends.endpoints)


# -- policy


def _permitted(kernel: Kernel, isolated: str, allowed: str, pod: str, peer: str, protocol: int, port: int) -> bool:
    sets = kernel.tables["t"]["sets"]
    own, other = IPv4Address(pod).packed, IPv4Address(peer).packed
    if own not in sets[isolated]["elements"]:
        return True
    wanted = (own, bytes((protocol,)), struct.pack(">H", port), other)
    for key in sets[allowed]["elements"]:
        first, last = key[:16], key[16:]
        parts = [(one[:4], one[4:5], one[8:10], one[12:16]) for one in (first, last)]
        if all(low <= value <= high for low, value, high in zip(parts[0], wanted, parts[1], strict=True)):
            return True
    return False


_NETWORKS = st.sampled_from(["0.0.0.0/0", "10.244.0.0/30", "10.244.0.3/32", "10.244.0.4/31", "192.0.2.0/24"])
_ALLOWANCES = st.builds(
    lambda protocol, ports, peers: Allowance(protocol, min(ports), max(ports), frozenset(map(IPv4Network, peers))),
    st.sampled_from(["TCP", "UDP"]),
    st.one_of(st.just(ALL_PORTS), st.tuples(st.integers(1, 12), st.integers(1, 12))),
    st.sets(_NETWORKS, min_size=1, max_size=3),
)
_SIDES = st.one_of(st.none(), st.lists(_ALLOWANCES, max_size=4).map(tuple))
_ISOLATED = st.dictionaries(st.sampled_from([FIRST, SECOND, THIRD]), st.builds(Isolation, _SIDES, _SIDES), max_size=3)


@settings(max_examples=150)
@given(_ISOLATED, _ISOLATED)
def test_the_sets_permit_what_the_policies_do(before: dict[str, Isolation], isolated: dict[str, Isolation]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        kernel = Kernel()
        _into(kernel, patched)
        table = _table(isolated=before)
        table.enforce(isolated)
    for source in (FIRST, SECOND, "192.0.2.9"):
        for target in (FIRST, THIRD, "198.51.100.1"):
            if source == target:
                continue
            for name, protocol in (("TCP", 6), ("UDP", 17)):
                for port in (1, 6, 12, 65535):
                    judged = _permitted(
                        kernel, "isolated-out", "egress", source, target, protocol, port
                    ) and _permitted(kernel, "isolated-in", "ingress", target, source, protocol, port)
                    assert judged == allows(isolated, source, target, name, port)


# -- flows


def _tuple(kind: int, source: tuple[str, int], target: tuple[str, int], protocol: int = 17) -> bytes:
    attribute = nftables.attribute
    addresses = attribute(1, IPv4Address(source[0]).packed) + attribute(2, IPv4Address(target[0]).packed)
    ports = attribute(2, struct.pack(">H", source[1])) + attribute(3, struct.pack(">H", target[1]))
    return attribute(
        kind | 0x8000, attribute(0x8001, addresses) + attribute(0x8002, attribute(1, bytes((protocol,))) + ports)
    )


def test_flows_are_read_and_those_to_no_endpoint_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(endpoint: str, protocol: int = 17) -> bytes:
        client = (THIRD, 5555)
        asked = _tuple(1, client, (NAMES.address, 53), protocol)
        return asked + _tuple(2, (endpoint, 9053), client, protocol) + nftables.attribute(3, bytes(4))

    kept, stale, tcp = (conntrack.parse(one) for one in (body(FIRST), body(SECOND), body(SECOND, 6)))
    assert kept is not None
    assert (kept.asked, kept.answering, kept.protocol) == ((NAMES.address, 53), (FIRST, 9053), 17)
    assert conntrack.parse(_tuple(1, ("1.1.1.1", 1), ("2.2.2.2", 2))) is None
    assert conntrack.parse(b"") is None
    forgotten: list[Any] = []
    monkeypatch.setattr(conntrack, "flows", lambda: iter([kept, stale, tcp]))
    monkeypatch.setattr(conntrack, "forget", forgotten.append)
    assert conntrack.forget_stale({(NAMES.address, 53): {(FIRST, 9053)}}) == 1
    assert forgotten == [stale]
    assert conntrack.forget_stale({(NAMES.address, 54): set()}) == 0
