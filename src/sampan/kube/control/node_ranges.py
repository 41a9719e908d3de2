"""Pod ranges of nodes that join: each gets a part of the cluster's that no other node has.

The platform's own node brings its range along (whatever is free on its machine). A node that joins registers without one and
names in an annotation the ranges that are taken on its own machine, by other platforms; it is given the first that is free
both here and there. Each platform begins to look somewhere else: two that are joined from one machine at once do not know of
each other's choice.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from ipaddress import AddressValueError, IPv4Network, NetmaskValueError

from sampan.kube.access.plugins.node_addresses import CLUSTER_RANGE
from sampan.kube.access.plugins.node_restriction import NODE_RANGE_PREFIX
from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.interface import For, Source
from sampan.kube.objects import Key, Object, dig
from sampan.kube.resources import NAMESPACES, NODES

TAKEN_RANGES = "sampan.dev/taken-pod-ranges"
"""Annotation of a Node that wants a range: those it cannot have, comma-separated."""
RETRY_SECONDS = 30.0


def networks(texts: Iterable[str]) -> list[IPv4Network]:
    """The texts that are IPv4 ranges."""
    found = []
    for text in texts:
        try:
            found.append(IPv4Network(text.strip()))
        except (AddressValueError, NetmaskValueError, ValueError):
            continue
    return found


def free_range(
    taken: Iterable[IPv4Network], cluster: str = CLUSTER_RANGE, prefix: int = NODE_RANGE_PREFIX, *, begin: int = 0
) -> str:
    """A part of the cluster's range that touches nothing taken, or "".

    The upper half first, from its ``begin``-th on and round: platforms choose their own node's range from the low end, and one
    that starts on the joining node's machine meanwhile would take what was just given.
    """
    held = list(taken)
    parts = list(IPv4Network(cluster).subnets(new_prefix=prefix))
    middle = len(parts) // 2
    first = middle + begin % (len(parts) - middle)
    for candidate in parts[first:] + parts[middle:first] + parts[:middle]:
        if not any(candidate.overlaps(other) for other in held):
            return str(candidate)
    return ""


class NodeRanges(Controller):
    """Gives joining nodes their pod ranges."""

    name = "node-ipam-controller"

    def __init__(self, context: ControlContext) -> None:
        super().__init__(context)
        self._given: dict[str, str] = {}
        """By node, also before the cache shows it."""
        self._first: int | None = None

    def sources(self) -> list[Source]:
        return [For(NODES)]

    async def reconcile(self, key: Key) -> float | None:
        node = self.informer(NODES).get(key)
        if node is None:
            self._given.pop(key.name, None)
            return None
        taken = (node["metadata"].get("annotations") or {}).get(TAKEN_RANGES)
        if taken is None or dig(node, "spec", "podCIDR"):
            return None
        others = [one for one in self.informer(NODES).objects() if one["metadata"]["name"] != key.name]
        held = [
            *(each for one in others for each in ranges_of(one)),
            *(given for name, given in self._given.items() if name != key.name),
            *taken.split(","),
        ]
        chosen = free_range(networks(held), begin=await self._begin())
        if not chosen:
            self.recorder.event(node, "Warning", "CIDRNotAvailable", f"Node {key.name} status is now: CIDRNotAvailable")
            return RETRY_SECONDS
        self._given[key.name] = chosen
        patch = {
            "metadata": {"resourceVersion": node["metadata"]["resourceVersion"]},
            "spec": {"podCIDR": chosen, "podCIDRs": [chosen]},
        }
        await self.client.patch(NODES, key.name, patch)
        return None

    async def _begin(self) -> int:
        """Where this platform begins: a number that follows from what names it, its first namespace's uid."""
        if self._first is None:
            system = await self.client.get(NAMESPACES, "kube-system")
            self._first = zlib.crc32(system["metadata"]["uid"].encode())
        return self._first


def ranges_of(node: Object) -> list[str]:
    """The pod ranges on record for a node."""
    found: list[str] = dig(node, "spec", "podCIDRs", default=[]) or [dig(node, "spec", "podCIDR", default="")]
    return [one for one in found if one]
