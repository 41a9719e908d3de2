"""Nodes that say farewell: their objects are deleted, which a node may not do itself.

A node that leaves marks its own Node when its pods have gone. Nobody but the node and administrators can set the mark.
"""

from __future__ import annotations

from sampan.kube.control.controller import Controller
from sampan.kube.control.interface import For, Source
from sampan.kube.objects import Key
from sampan.kube.resources import LEASES, NODES
from sampan.kube.status import ApiError

LEFT = "sampan.dev/left"
"""Annotation of a Node that has left for good."""


class NodeDeparture(Controller):
    """Deletes the Node and the Lease of who left."""

    name = "node-departure"

    def sources(self) -> list[Source]:
        return [For(NODES)]

    async def reconcile(self, key: Key) -> float | None:
        node = self.informer(NODES).get(key)
        if node is None or (node["metadata"].get("annotations") or {}).get(LEFT) != "true":
            return None
        self.recorder.event(node, "Normal", "RemovingNode", f"Node {key.name} event: Removing Node {key.name}")
        try:
            await self.client.delete(NODES, key.name, uid=node["metadata"]["uid"])
        except ApiError as error:
            if error.conflict:
                return None  # one of this name has joined since
            if not error.not_found:
                raise
        try:
            await self.client.delete(LEASES, key.name, "kube-node-lease")
        except ApiError as error:
            if not error.not_found:
                raise
        return None
