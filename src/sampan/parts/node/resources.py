"""``metrics.k8s.io``: what pods and the node use, computed when somebody asks (`kubectl top`, the autoscaler)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sampan.kube.objects import Object, Resource
from sampan.kube.types.duration import format_time
from sampan.kube.types.resource import Computed, ResourceType, Strategy
from sampan.parts.node.agent.state import ContainerState
from sampan.parts.node.runtime.interface import Usage

if TYPE_CHECKING:
    from sampan.parts.node.agent.agent import Agent
    from sampan.parts.node.kubelet.stats import Statistics

GROUP, VERSION = "metrics.k8s.io", "v1beta1"
WINDOW = "10.000s"


def usage(cpu_nanocores: int, memory_bytes: int) -> Object:
    """A ``usage`` map as the metrics server writes it."""
    return {"cpu": f"{cpu_nanocores}n", "memory": f"{(memory_bytes + 1023) // 1024}Ki"}


class ResourceMetrics:
    """Computes PodMetrics and NodeMetrics of one node."""

    def __init__(self, agent: Agent, statistics: Statistics) -> None:
        self._agent = agent
        self._statistics = statistics

    def types(self) -> list[ResourceType]:
        """The two kinds, to be served by the API server."""
        return [
            self._type("pods", "PodMetrics", True, self.pods),
            self._type("nodes", "NodeMetrics", False, self.nodes),
        ]

    def _type(self, plural: str, kind: str, namespaced: bool, computed: Computed) -> ResourceType:
        strategy = Strategy()
        strategy.has_status = False
        return ResourceType(
            resource=Resource(GROUP, VERSION, plural),
            kind=kind,
            singular="",
            namespaced=namespaced,
            strategy=strategy,
            list_kind=f"{kind}List",
            verbs=("get", "list"),
            computed=computed,
            owner="node",
        )

    async def pods(self, namespace: str) -> list[Object]:
        """PodMetrics of a namespace ("": all)."""
        sample = await self._statistics.sample()
        stamp = format_time(datetime.fromtimestamp(sample.wall, UTC))
        found: dict[str, Object] = {}
        for worker, state, used in sample.containers():
            metadata = worker.pod["metadata"]
            if (namespace and metadata["namespace"] != namespace) or state.role == "ephemeral":
                continue
            entry = found.setdefault(
                worker.uid,
                {
                    "kind": "PodMetrics",
                    "apiVersion": f"{GROUP}/{VERSION}",
                    "metadata": {
                        "name": metadata["name"],
                        "namespace": metadata["namespace"],
                        "creationTimestamp": stamp,
                        "labels": dict(metadata.get("labels") or {}),
                    },
                    "timestamp": stamp,
                    "window": WINDOW,
                    "containers": [],
                },
            )
            entry["containers"].append({"name": state.name, "usage": self._used(state, used)})
        return list(found.values())

    def _used(self, state: ContainerState, used: Usage) -> Object:
        return usage(self._statistics.nanocores(state.id), used.memory_bytes)

    async def nodes(self, _: str) -> list[Object]:
        """NodeMetrics of this node."""
        sample = await self._statistics.sample()
        stamp = format_time(datetime.fromtimestamp(sample.wall, UTC))
        cpu, memory = self._statistics.machine()
        return [
            {
                "kind": "NodeMetrics",
                "apiVersion": f"{GROUP}/{VERSION}",
                "metadata": {"name": self._agent.name, "creationTimestamp": stamp},
                "timestamp": stamp,
                "window": WINDOW,
                "usage": usage(cpu, memory),
            }
        ]
