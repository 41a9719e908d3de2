"""NetworkPolicy as values: who may speak with whom."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.kube.objects import Object
from sampan.parts.network.policy import (
    Allowance,
    allows,
    block_networks,
    compile,
    port_prefixes,
    segments,
)


def _pod(namespace: str, name: str, address: str, **spec: Any) -> Object:
    containers = [{"name": "c", "ports": [{"name": "http", "containerPort": int(address.rpartition(".")[2]) + 8000}]}]
    return {
        "metadata": {"name": name, "namespace": namespace, "labels": {"pod": name}},
        "spec": {"containers": containers, **spec},
        "status": {"podIP": address, "phase": "Running"},
    }


X_A, X_B, Y_A, Y_B = "10.244.0.1", "10.244.0.2", "10.244.0.3", "10.244.0.4"
PODS = [_pod("x", "a", X_A), _pod("x", "b", X_B), _pod("y", "a", Y_A), _pod("y", "b", Y_B)]
NAMESPACES = {name: {"kubernetes.io/metadata.name": name} for name in ("x", "y")}
ALL = {X_A, X_B, Y_A, Y_B}
OUTSIDE = "192.0.2.1"
POD_A: Object = {"podSelector": {"matchLabels": {"pod": "a"}}}
NAMESPACE_Y: Object = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "y"}}}


def _policy(namespace: str = "x", **spec: Any) -> Object:
    return {"metadata": {"name": "p", "namespace": namespace}, "spec": {"podSelector": {}, **spec}}


def _sources(target: str, *policies: Object, port: int = 80, protocol: str = "TCP") -> set[str]:
    """Who reaches ``target``."""
    isolated = compile(policies, PODS, NAMESPACES)
    return {one for one in (*ALL, OUTSIDE) if allows(isolated, one, target, protocol, port)}


def _targets(source: str, *policies: Object, port: int = 80, protocol: str = "TCP") -> set[str]:
    isolated = compile(policies, PODS, NAMESPACES)
    return {one for one in (*ALL, OUTSIDE) if allows(isolated, source, one, protocol, port)}


EVERYONE = ALL | {OUTSIDE}


@pytest.mark.parametrize(
    ("spec", "reach_x_a"),
    [
        ({"podSelector": {"matchLabels": {"pod": "c"}}}, EVERYONE),  # selects nobody
        ({}, {X_A}),  # deny all; a pod always reaches itself
        ({"ingress": []}, {X_A}),
        ({"ingress": [{}]}, EVERYONE),
        ({"policyTypes": ["Egress"]}, EVERYONE - {X_B}),  # says nothing of ingress; x/b may not leave
        ({"ingress": [{"from": [POD_A]}]}, {X_A}),  # pods of the same namespace
        ({"ingress": [{"from": [{"podSelector": {}}]}]}, {X_A, X_B}),
        ({"ingress": [{"from": [NAMESPACE_Y]}]}, {X_A, Y_A, Y_B}),
        ({"ingress": [{"from": [{"namespaceSelector": {}}]}]}, ALL),
        ({"ingress": [{"from": [{**NAMESPACE_Y, **POD_A}]}]}, {X_A, Y_A}),  # one item: both
        ({"ingress": [{"from": [NAMESPACE_Y, {"podSelector": {"matchLabels": {"pod": "b"}}}]}]}, ALL),  # two: either
        ({"ingress": [{"from": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]}]}, {X_A, OUTSIDE}),
        ({"ingress": [{"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["192.0.2.0/24"]}}]}]}, ALL),
        ({"ingress": [{"from": [{"ipBlock": {"cidr": "fd00::/8"}}]}]}, {X_A}),
        ({"ingress": [{"ports": [{"port": 80}]}]}, EVERYONE),
        ({"ingress": [{"ports": [{"port": 81}]}]}, {X_A}),
        ({"ingress": [{"ports": [{"port": 80, "protocol": "UDP"}]}]}, {X_A}),
        ({"ingress": [{"ports": [{"port": 70, "endPort": 90}]}]}, EVERYONE),
        ({"ingress": [{"ports": [{"protocol": "TCP"}]}]}, EVERYONE),
        ({"ingress": [{"ports": [{"port": "http"}]}]}, {X_A}),  # http is 8001 at x/a
    ],
)
def test_ingress(spec: dict[str, Any], reach_x_a: set[str]) -> None:
    assert _sources(X_A, _policy(**spec)) == reach_x_a


def test_named_ports_are_those_of_each_pod() -> None:
    policy = _policy(ingress=[{"ports": [{"port": "http"}]}])
    assert _sources(X_A, policy, port=8001) == EVERYONE
    assert _sources(X_B, policy, port=8001) == {X_B}
    assert _sources(X_B, policy, port=8002) == EVERYONE
    outward = _policy(egress=[{"to": [NAMESPACE_Y], "ports": [{"port": "http"}]}], policyTypes=["Egress"])
    assert _targets(X_A, outward, port=8003) == {X_A, Y_A}
    assert _targets(X_A, outward, port=8004) == {X_A, Y_B}


@pytest.mark.parametrize(
    ("spec", "reached_from_x_a"),
    [
        ({"egress": []}, {X_A}),  # an egress section makes it a policy of both directions
        ({"egress": [{}], "policyTypes": ["Egress"]}, EVERYONE),
        ({"egress": [{"to": [NAMESPACE_Y]}]}, {X_A, Y_A, Y_B}),
        ({"egress": [{"to": [{"ipBlock": {"cidr": "192.0.2.1/32"}}]}]}, {X_A, OUTSIDE}),
        ({"egress": [{"ports": [{"port": 443}]}]}, {X_A}),
    ],
)
def test_egress(spec: dict[str, Any], reached_from_x_a: set[str]) -> None:
    assert _targets(X_A, _policy(**spec)) == reached_from_x_a


def test_several_policies_allow_what_any_of_them_allows() -> None:
    one = _policy(ingress=[{"from": [NAMESPACE_Y]}])
    two = _policy(ingress=[{"from": [{"podSelector": {}}]}])
    assert _sources(X_A, _policy(), one, two) == ALL


def test_both_ends_must_allow() -> None:
    leave = _policy("y", egress=[{"to": [{"namespaceSelector": {}}]}], policyTypes=["Egress"])
    deny = _policy("x")
    assert _targets(Y_A, leave) == ALL
    assert _targets(Y_A, leave, deny) == {Y_A, Y_B}


def test_pods_of_the_hosts_network_and_finished_ones_are_not_pods_here() -> None:
    done = _pod("x", "a", "10.244.0.9")
    done["status"]["phase"] = "Succeeded"
    pods = [_pod("x", "a", "127.0.0.1", hostNetwork=True), done]
    assert compile([_policy()], pods, NAMESPACES) == {}


@given(st.integers(0, 32), st.integers(0, 2**32 - 1), st.lists(st.integers(0, 2**32 - 1), max_size=3))
def test_a_block_without_its_exceptions(length: int, base: int, holes: list[int]) -> None:
    cidr = IPv4Network((base, length), strict=False)
    exceptions = [IPv4Network((hole, 28), strict=False) for hole in holes]
    found = block_networks({"cidr": str(cidr), "except": [str(one) for one in exceptions]})
    for probe in (base, *holes, *(hole ^ 16 for hole in holes)):
        address = IPv4Address(probe)
        wanted = address in cidr and not any(address in one for one in exceptions)
        assert any(address in one for one in found) == wanted


@given(st.integers(1, 65535), st.integers(1, 65535))
def test_a_port_range_as_prefixes(one: int, other: int) -> None:
    first, last = min(one, other), max(one, other)
    at = first
    for port, length in port_prefixes(first, last):
        size = 1 << (16 - length)
        assert port == at
        assert port % size == 0
        at += size
    assert at == last + 1


_networks = st.frozensets(
    st.sampled_from([IPv4Network("10.0.0.0/8"), IPv4Network(f"{X_A}/32"), IPv4Network("192.0.2.0/24")]), min_size=1
)
_allowances = st.builds(
    lambda protocol, first, size, peers: Allowance(protocol, first, first + size, peers),
    st.sampled_from(["TCP", "UDP"]),
    st.integers(1, 12),
    st.integers(0, 6),
    _networks,
)


@given(st.lists(_allowances, max_size=5))
def test_segments_say_the_same_without_overlap(given_rules: list[Allowance]) -> None:
    found = segments(tuple(given_rules))
    for protocol in ("TCP", "UDP"):
        for port in range(20):
            hits = [one for one in found if one.protocol == protocol and one.first <= port <= one.last]
            assert len(hits) <= 1
            for peer in (X_A, X_B, OUTSIDE):
                address = IPv4Address(peer)
                wanted = any(
                    one.protocol == protocol
                    and one.first <= port <= one.last
                    and any(address in network for network in one.peers)
                    for one in given_rules
                )
                assert any(address in network for one in hits for network in one.peers) == wanted


def test_pods_at_other_addresses_keep_no_policy_from_being_kept() -> None:
    everything = {
        "metadata": {"name": "p", "namespace": "x"},
        "spec": {
            "podSelector": {},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [POD_A], "ports": [{"port": 80}]}],
        },
    }
    others = [_pod("x", "c", X_B), _pod("x", "a", "1")]
    others[0]["status"]["podIP"], others[1]["status"]["podIP"] = "fd00::9", "nowhere"
    assert compile([everything], [*PODS, *others], NAMESPACES) == compile([everything], PODS, NAMESPACES)
