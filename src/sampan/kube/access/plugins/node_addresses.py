"""Which addresses a joined node may tell of itself and of its pods.

Whoever connects to a Service, a pod or a kubelet goes where a node says it is. So a node's pods are in the node's own ranges, or
at the loopback addresses that stand for these where pods have none of their own; what shares the node's addresses is at those;
and a node is nowhere where pods and Services are. Pure functions over Nodes and Services.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from typing import Any

from sampan.kube.objects import Object, dig

CLUSTER_RANGE = "10.244.0.0/16"
"""Addresses of pods, of which each node that joins has a part (``control.node_ranges``)."""
PODS_LOOPBACK = (IPv4Network("127.64.0.0/10"), IPv4Network("127.7.0.0/16"))
"""Where pods without addresses of their own are, and what stands for the localhost of those that have one."""

_IP_TYPES = frozenset({"InternalIP", "ExternalIP"})


def pod_ranges(node: Object | None) -> frozenset[str]:
    """A Node's pod ranges, as it tells them."""
    spec: Mapping[str, Any] = dig(node, "spec", default={})
    return frozenset(one for one in (spec.get("podCIDR"), *(spec.get("podCIDRs") or ())) if one)


def parsed_range(text: str) -> IPv4Network | None:
    """The IPv4 range, if it is one."""
    try:
        return IPv4Network(text)
    except ValueError:
        return None


def on_loopback(network: IPv4Network) -> IPv4Network:
    """Where a range's pods are when they have no addresses of their own: 10.244.3.0/24 at 127.116.3.0/24."""
    packed = network.network_address.packed
    return IPv4Network((bytes((127, 64 + packed[1] % 64)) + packed[2:], max(network.prefixlen, 16)))


def node_addresses(node: Object | None) -> frozenset[str]:
    """The IP addresses on record for a Node."""
    addresses: Iterable[Mapping[str, str]] = dig(node, "status", "addresses", default=())
    return frozenset(one.get("address", "") for one in addresses if one.get("type") in _IP_TYPES)


def pod_addresses(pod: Object | None) -> frozenset[str]:
    """The addresses that a pod's status tells."""
    status: Mapping[str, Any] = dig(pod, "status", default={})
    several = (one.get("ip") for one in status.get("podIPs") or ())
    return frozenset(one for one in (status.get("podIP"), *several) if one)


def host_addresses(pod: Object | None) -> frozenset[str]:
    """The addresses of its node that a pod's status tells."""
    status: Mapping[str, Any] = dig(pod, "status", default={})
    several = (one.get("ip") for one in status.get("hostIPs") or ())
    return frozenset(one for one in (status.get("hostIP"), *several) if one)


def may_have_pod(text: str, node: Object | None, others: Iterable[Object], services: Iterable[Object]) -> bool:
    """Whether a pod of this node, not on the host's network, may be at an address.

    A node without a range on record has its addresses from elsewhere (a network plugin): anywhere but where others are.
    """
    address = _address(text)
    if address is None:
        return False
    own = [network for network in map(parsed_range, pod_ranges(node)) if network is not None]
    if own:
        return any(address in network or address in on_loopback(network) for network in own)
    taken = [network for other in others for network in map(parsed_range, pod_ranges(other)) if network is not None]
    return not (
        address.is_loopback
        or _nowhere(address)
        or any(address in network for network in taken)
        or address in _service_addresses(services)
    )


def may_be_node(text: str, services: Iterable[Object]) -> bool:
    """Whether a node may be at an address: not where pods or Services are."""
    address = _address(text)
    if address is None or _nowhere(address):
        return False
    if isinstance(address, IPv4Address) and any(
        address in network for network in (IPv4Network(CLUSTER_RANGE), *PODS_LOOPBACK)
    ):
        return False
    return address not in _service_addresses(services)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """The address that connections go to: ``::ffff:10.96.0.1`` is 10.96.0.1."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _nowhere(address: IPv4Address | IPv6Address) -> bool:
    return address.is_unspecified or address.is_link_local or address.is_multicast


def _service_addresses(services: Iterable[Object]) -> frozenset[IPv4Address | IPv6Address]:
    """Cluster addresses, and where forwarders listen for them (``10.96.0.10`` at ``127.96.0.10``)."""
    spoken = [
        address
        for one in services
        for text in dig(one, "spec", "clusterIPs", default=())
        if (address := _address(text))
    ]
    listening = [IPv4Address(b"\x7f" + address.packed[1:]) for address in spoken if isinstance(address, IPv4Address)]
    return frozenset((*spoken, *listening))
