"""Routes to the pods of other nodes.

Each node's pods have addresses of its own range (tier T1). A node on another machine is the gateway to its range; the range
of a node on this very machine is local, and needs no route. Routes carry a number of ours as their origin (``ip route show
proto 115``); they stay while this process is away, for the pods stay, too.
"""

from __future__ import annotations

import asyncio
from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError

from sampan.kernel.addresses import is_own
from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.interface import For, Source
from sampan.kube.objects import Key, Object, dig
from sampan.kube.resources import NODES
from sampan.parts.node.runtime import netlink

CHECK_SECONDS = 60.0
"""Between looks at whether the routes still stand."""


def gateway_of(node: Object) -> tuple[str, str] | None:
    """A node's pod range and the address it is reached at; None where it has not both."""
    try:
        network = str(IPv4Network(dig(node, "spec", "podCIDR", default="")))
        addresses = dig(node, "status", "addresses", default=())
        internal = next((one["address"] for one in addresses if one.get("type") == "InternalIP"), "")
        return network, str(IPv4Address(internal))
    except (AddressValueError, NetmaskValueError, ValueError):
        return None


def wanted_routes(nodes: list[Object], own: str, is_local: frozenset[str] = frozenset()) -> dict[str, str]:
    """Pod range to gateway, for the nodes on other machines; ``is_local`` are addresses of this one."""
    routes = {}
    for node in nodes:
        found = gateway_of(node)
        if node["metadata"]["name"] == own or found is None:
            continue
        network, address = found
        if address not in is_local and not IPv4Address(address).is_loopback:
            routes[network] = address
    return routes


class PeerRoutes(Controller):
    """Keeps the routes to other nodes' pods."""

    name = "pod-routes"

    def __init__(self, context: ControlContext, node: str) -> None:
        """``node`` is this machine's own."""
        super().__init__(context)
        self._node = node
        self._mine: set[str] = set()

    def sources(self) -> list[Source]:
        return [For(NODES)]

    async def reconcile(self, key: Key) -> float | None:
        nodes = self.informer(NODES).objects()
        told = {found[1] for node in nodes if (found := gateway_of(node)) is not None}
        local = frozenset(address for address in told if is_own(address))
        wanted = wanted_routes(nodes, self._node, local)
        failures = await asyncio.to_thread(self._bring_in_line, wanted)
        node = self.informer(NODES).get(key)
        found = gateway_of(node) if node is not None else None
        if node is not None and found is not None and found[0] in failures:
            self.recorder.event(
                node,
                "Warning",
                "FailedToCreateRoute",
                f"Could not create route for node {key.name} {found[0]} via {found[1]} on node {self._node}: "
                f"{failures[found[0]]}; pods of nodes that are not in one network cannot reach each other",
            )
        return CHECK_SECONDS if wanted else None

    def _bring_in_line(self, wanted: dict[str, str]) -> dict[str, str]:
        """Set and take away routes; what could not be set, and why."""
        failures: dict[str, str] = {}
        present = netlink.peer_routes()
        for network, gateway in wanted.items():
            if present.get(network) != gateway:
                try:
                    netlink.add_peer_route(network, gateway)
                except OSError as error:
                    failures[network] = error.strerror or str(error)
                    continue
            self._mine.add(network)
        # other platforms of this machine may have routes of the same kind: only what was wanted here before goes
        for network in self._mine - wanted.keys():
            netlink.remove_peer_route(network)
        self._mine &= wanted.keys()
        return failures

    async def clear(self) -> None:
        """Take every route away: the node goes down for good."""
        await asyncio.to_thread(self._bring_in_line, {})
