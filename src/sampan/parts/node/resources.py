"""``metrics.k8s.io``: what pods and the node use, computed when somebody asks (`kubectl top`, the autoscaler)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sampan.kube.objects import Object, Resource
from sampan.kube.resources import PODS
from sampan.kube.types.duration import format_time
from sampan.kube.types.resource import Computed, ResourceType, Strategy
from sampan.parts.node.agent.state import ContainerState
from sampan.parts.node.runtime.interface import Usage

if TYPE_CHECKING:
    from sampan.kube.control.interface import Informers
    from sampan.parts.node.agent.agent import Agent
    from sampan.parts.node.kubelet.stats import Statistics
    from sampan.parts.node.scraping import Scraper

GROUP, VERSION = "metrics.k8s.io", "v1beta1"
WINDOW = "10.000s"


def usage(cpu_nanocores: int, memory_bytes: int) -> Object:
    """A ``usage`` map as the metrics server writes it."""
    return {"cpu": f"{cpu_nanocores}n", "memory": f"{(memory_bytes + 1023) // 1024}Ki"}


class ResourceMetrics:
    """Computes PodMetrics and NodeMetrics: of the platform's own node from its samples, of others by asking them."""

    def __init__(self, agent: Agent, statistics: Statistics, others: Scraper, informers: Informers) -> None:
        self._agent = agent
        self._informers = informers
        self._statistics = statistics
        self._others = others

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
        labels = None
        for summary in await self._others.summaries():
            for pod in summary.content.get("pods") or ():
                reference = pod["podRef"]
                if namespace and reference["namespace"] != namespace:
                    continue
                labels = labels or self._labels()
                found[reference["uid"]] = {
                    "kind": "PodMetrics",
                    "apiVersion": f"{GROUP}/{VERSION}",
                    "metadata": {
                        "name": reference["name"],
                        "namespace": reference["namespace"],
                        "creationTimestamp": stamp,
                        "labels": labels.get(reference["uid"], {}),
                    },
                    "timestamp": stamp,
                    "window": WINDOW,
                    "containers": [{"name": one["name"], "usage": _told(one)} for one in pod["containers"]],
                }
        return list(found.values())

    def _labels(self) -> dict[str, dict[str, str]]:
        """Every pod's labels by its uid."""
        pods = self._informers.informer(PODS).objects()
        return {pod["metadata"]["uid"]: dict(pod["metadata"].get("labels") or {}) for pod in pods}

    def _used(self, state: ContainerState, used: Usage) -> Object:
        return usage(self._statistics.nanocores(state.id), used.memory_bytes)

    async def nodes(self, _: str) -> list[Object]:
        """NodeMetrics of every node that tells."""
        sample = await self._statistics.sample()
        stamp = format_time(datetime.fromtimestamp(sample.wall, UTC))
        told = {self._agent.name: usage(*self._statistics.machine())}
        for summary in await self._others.summaries():
            told[summary.node] = _told(summary.content["node"])
        return [
            {
                "kind": "NodeMetrics",
                "apiVersion": f"{GROUP}/{VERSION}",
                "metadata": {"name": name, "creationTimestamp": stamp},
                "timestamp": stamp,
                "window": WINDOW,
                "usage": used,
            }
            for name, used in told.items()
        ]


def _told(entry: Object) -> Object:
    """``usage`` of a node or container in a summary."""
    return usage(entry["cpu"].get("usageNanoCores", 0), entry["memory"].get("workingSetBytes", 0))
