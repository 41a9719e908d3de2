"""The node's own objects: the Node, its status, and the Lease that says it is alive."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sampan.kube.objects import Object
from sampan.kube.resources import LEASES, NODES
from sampan.kube.status import ApiError
from sampan.kube.types.duration import format_micro_time
from sampan.parts.node.agent import node_object
from sampan.parts.node.runtime.interface import ADDRESSED

if TYPE_CHECKING:
    from sampan.parts.node.agent.agent import Agent

LEASE_EVERY = 10.0
STATUS_EVERY = 300.0


class Registration:
    """Keeps the node known."""

    _facts: dict[str, Any]

    def __init__(self, agent: Agent, labels: Mapping[str, str], max_pods: int) -> None:
        self._agent = agent
        self._labels = dict(labels)
        self._max_pods = max_pods

    async def start(self) -> None:
        """Make the node known, and keep it so. Raises ApiError."""
        self._facts = await asyncio.to_thread(node_object.machine, self._agent.layout.base)
        await self.register()
        self._agent.tasks.keep("lease", self._beat)
        self._agent.tasks.keep("node-status", self._node_status)

    async def register(self) -> None:
        """Create the Node (or bring it up to date) and post its status. Raises ApiError."""
        runtime = self._agent.runtime
        wanted = node_object.node(
            self._agent.name,
            runtime.pod_range,
            self._labels,
            self._facts,
            cgroup=runtime.cgroup if runtime.tier == "T1" else "",
            table=f"{runtime.table} {runtime.pod_range}" if runtime.table and runtime.tier in ADDRESSED else "",
        )
        try:
            found = await self._agent.client.get(NODES, self._agent.name)
        except ApiError as error:
            if not error.not_found:
                raise
            found = await self._agent.client.create(NODES, wanted)
        own = {name: wanted["metadata"][name] for name in ("labels", "annotations")}
        if found["spec"].get("podCIDR") != self._agent.runtime.pod_range or any(
            not values.items() <= (found["metadata"].get(name) or {}).items() for name, values in own.items()
        ):
            patch = {"metadata": own, "spec": wanted["spec"]}
            with contextlib.suppress(ApiError):
                # podCIDR cannot change once set; a node that came back with another range keeps the old one on record
                found = await self._agent.client.patch(NODES, self._agent.name, patch)
        await self._post_status(found)
        await self._renew()
        self._agent.event(found, "Normal", "Starting", "Starting kubelet.")

    async def post(self) -> None:
        """Post the node's status now. Raises ApiError."""
        await self._post_status(await self._agent.client.get(NODES, self._agent.name))

    async def _post_status(self, found: Object) -> None:
        self._facts = await asyncio.to_thread(node_object.machine, self._agent.layout.base)
        status = node_object.status(
            self._agent.name,
            self._facts,
            old=found,
            address=self._agent.host_address,
            port=self._agent.port,
            pods=self._max_pods,
            tier=self._agent.runtime.tier,
            why=self._agent.runtime.why,
            images=await asyncio.to_thread(self._agent.images.listed),
            ready=self._agent.runtime_up,
            pressures=self._agent.eviction.pressures,
            now=self._agent.clock.now(),
        )
        self._agent.allocatable = status["allocatable"]
        await self._agent.client.patch(NODES, self._agent.name, {"status": status}, subresource="status")

    async def _node_status(self) -> None:
        posted = self._agent.clock.monotonic()
        up = True
        while True:
            await self._agent.clock.sleep(LEASE_EVERY)
            if self._agent.clock.monotonic() - posted < STATUS_EVERY and up == self._agent.runtime_up:
                continue
            posted, up = self._agent.clock.monotonic(), self._agent.runtime_up
            try:
                await self.post()
            except ApiError as error:
                if error.not_found:
                    await self.register()
                else:
                    raise

    async def _beat(self) -> None:
        while True:
            await self._agent.clock.sleep(LEASE_EVERY)
            await self._renew()

    async def _renew(self) -> None:
        stamp = format_micro_time(self._agent.clock.now())
        spec = {
            "holderIdentity": self._agent.name,
            "leaseDurationSeconds": node_object.LEASE_SECONDS,
            "renewTime": stamp,
        }
        namespace = "kube-node-lease"
        try:
            await self._agent.client.patch(LEASES, self._agent.name, {"spec": spec}, namespace)
        except ApiError as error:
            if not error.not_found:
                raise
            lease = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self._agent.name, "namespace": namespace},
                "spec": spec,
            }
            await self._agent.client.create(LEASES, lease, namespace)
