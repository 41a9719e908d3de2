"""The scheduler's picture of the cluster: nodes, the pods on them, and what those have asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from sampan.kube.objects import Object
from sampan.kube.types import quantity

DEFAULT_REQUESTS = {"cpu": 100, "memory": 200 * 1024 * 1024}
"""What a pod that asks for nothing counts as when nodes are compared (100m, 200 MB)."""
Amounts = dict[str, int]
"""Resource amounts: CPU in millicores, everything else in its unit (bytes, pieces)."""


def amounts(quantities: Mapping[str, Any] | None) -> Amounts:
    """A resource list as integers."""
    return {name: _amount(name, str(value)) for name, value in (quantities or {}).items()}


@lru_cache(maxsize=4096)
def _amount(name: str, value: str) -> int:
    exact = quantity.parse(value)
    return -int(-(exact * 1000) // 1) if name == "cpu" else -int(-exact // 1)


def _plus(left: Amounts, right: Mapping[str, int]) -> Amounts:
    total = dict(left)
    for name, value in right.items():
        total[name] = total.get(name, 0) + value
    return total


def _peak(left: Amounts, right: Mapping[str, int]) -> Amounts:
    return {name: max(left.get(name, 0), right.get(name, 0)) for name in left.keys() | right.keys()}


def requests(pod: Mapping[str, Any]) -> Amounts:
    """What a pod needs at its most: all containers and sidecars together, or the greediest init container beside the
    sidecars started before it; plus overhead.
    """
    spec = pod["spec"]
    sidecars: Amounts = {}
    init_peak: Amounts = {}
    for container in spec.get("initContainers") or ():
        asked = amounts((container.get("resources") or {}).get("requests"))
        if container.get("restartPolicy") == "Always":
            sidecars = _plus(sidecars, asked)
            init_peak = _peak(init_peak, sidecars)
        else:
            init_peak = _peak(init_peak, _plus(sidecars, asked))
    running = dict(sidecars)
    for container in spec["containers"]:
        running = _plus(running, amounts((container.get("resources") or {}).get("requests")))
    total = _peak(running, init_peak)
    return _plus(total, amounts(spec["overhead"])) if spec.get("overhead") else total


def host_ports(pod: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """(protocol, host IP, host port) a pod claims on its node."""
    return [
        (port.get("protocol") or "TCP", port.get("hostIP") or "0.0.0.0", port["hostPort"])  # noqa: S104 - API default
        for container in pod["spec"]["containers"]
        for port in container.get("ports") or ()
        if port.get("hostPort")
    ]


@dataclass(slots=True)
class PodInfo:
    """A pod with what the scheduler derives from it once."""

    pod: Object
    requests: Amounts
    ports: list[tuple[str, str, int]]
    repels: list[Mapping[str, Any]]
    """Its required anti-affinity terms."""

    @staticmethod
    def of(pod: Object) -> PodInfo:
        anti = (pod["spec"].get("affinity") or {}).get("podAntiAffinity") or {}
        repels = anti.get("requiredDuringSchedulingIgnoredDuringExecution") or []
        return PodInfo(pod, requests(pod), host_ports(pod), repels)

    @property
    def load(self) -> Amounts:
        """CPU and memory it counts as when nodes are compared."""
        return {name: self.requests.get(name) or default for name, default in DEFAULT_REQUESTS.items()}

    @property
    def uid(self) -> str:
        uid: str = self.pod["metadata"]["uid"]
        return uid

    @property
    def namespace(self) -> str:
        namespace: str = self.pod["metadata"]["namespace"]
        return namespace

    @property
    def labels(self) -> Mapping[str, str]:
        return self.pod["metadata"].get("labels") or {}

    @property
    def priority(self) -> int:
        return int(self.pod["spec"].get("priority") or 0)


@dataclass(slots=True)
class NodeInfo:
    """One node and the pods bound (or about to be bound) to it."""

    node: Object
    pods: dict[str, PodInfo] = field(default_factory=dict)
    requested: Amounts = field(default_factory=dict)
    load: Amounts = field(default_factory=dict)
    """What the pods count as when nodes are compared."""
    repelling: dict[str, PodInfo] = field(default_factory=dict)
    """The pods with required anti-affinity."""
    allocatable: Amounts = field(init=False)
    """What the node offers to pods."""

    def __post_init__(self) -> None:
        self.update(self.node)

    def update(self, node: Object) -> None:
        """Take note of the node's new state."""
        self.node = node
        status = node.get("status") or {}
        self.allocatable = amounts(status.get("allocatable") or status.get("capacity"))

    @property
    def name(self) -> str:
        name: str = self.node["metadata"]["name"]
        return name

    @property
    def labels(self) -> Mapping[str, str]:
        return self.node["metadata"].get("labels") or {}

    @property
    def taints(self) -> list[Mapping[str, Any]]:
        return (self.node.get("spec") or {}).get("taints") or []

    def add(self, info: PodInfo) -> None:
        self.remove(info.uid)
        self.pods[info.uid] = info
        self.requested = _plus(self.requested, info.requests)
        self.load = _plus(self.load, info.load)
        if info.repels:
            self.repelling[info.uid] = info

    def remove(self, uid: str) -> None:
        info = self.pods.pop(uid, None)
        if info is not None:
            self.requested = _plus(self.requested, {name: -value for name, value in info.requests.items()})
            self.load = _plus(self.load, {name: -value for name, value in info.load.items()})
            self.repelling.pop(uid, None)

    def without(self, uids: Iterable[str]) -> NodeInfo:
        """A copy of the node in which these pods are gone."""
        copied = NodeInfo(self.node, dict(self.pods), dict(self.requested), dict(self.load), dict(self.repelling))
        for uid in uids:
            copied.remove(uid)
        return copied


@dataclass(slots=True)
class Cluster:
    """Everything a scheduling decision reads."""

    nodes: dict[str, NodeInfo] = field(default_factory=dict)
    namespace_labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    claims: Mapping[tuple[str, str], Object] = field(default_factory=dict)
    """PersistentVolumeClaims by (namespace, name)."""
    volumes: Mapping[str, Object] = field(default_factory=dict)
    storage_classes: Mapping[str, Object] = field(default_factory=dict)

    def __iter__(self) -> Iterator[NodeInfo]:
        return iter(self.nodes.values())

    def with_node(self, changed: NodeInfo) -> Cluster:
        """The same cluster with one node replaced."""
        nodes = {**self.nodes, changed.name: changed}
        return Cluster(nodes, self.namespace_labels, self.claims, self.volumes, self.storage_classes)
