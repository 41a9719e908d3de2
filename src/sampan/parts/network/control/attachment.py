"""Finds out how this node's pods can be served, and sets the data paths up: the kernel's where they can be had, else forwarders.

The Node object tells in annotations of the node part where the pods' cgroup is (empty where pods have no addresses of their own
by eBPF), and the table and pod range for pods with network namespaces. Where there is a cgroup, the table is there for those
pods that asked for a namespace, and only while there are some: it costs all others a little. Where there is only the table, all
pods have namespaces. A node that comes back with a new cgroup, or with programs attached after ours, is noticed and served anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Network
from pathlib import Path
from typing import Literal

from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.interface import For, Source, Watches
from sampan.kube.control.node_ranges import networks
from sampan.kube.joining.interface import JOINED
from sampan.kube.objects import Key, Object, dig
from sampan.kube.resources import NODES, PODS
from sampan.parts.network.control.policies import NetworkPolicies
from sampan.parts.network.control.proxy import ServiceProxy
from sampan.parts.network.datapath.forward import ForwardPath
from sampan.parts.network.datapath.kernel import KernelPath, find_pods, level_of
from sampan.parts.network.datapath.packets import PacketPath
from sampan.parts.network.policy import Isolation
from sampan.parts.network.services import Backends, Frontend

log = logging.getLogger(__name__)

PODS_CGROUP = "sampan.dev/pods-cgroup"
"""The Node's annotation that tells where its pods' sockets can be reached."""
PODS_TABLE = "sampan.dev/pods-table"
"""Its annotation that names the table for pods with network namespaces, and the node's pod range."""
OWN_NETWORK = "sampan.dev/network"
"""A pod's annotation: ``namespace`` asks for a network namespace."""
CHECK_SECONDS = 30.0
"""Between looks at whether the programs still stand as they should."""

SETTLE_SECONDS = 10.0
"""After which every Service has been put, and what an earlier process left in the tables besides goes."""

Mode = Literal["", "ebpf", "nft", "forward"]
"""How pods reach Services: those with network namespaces always by nf_tables."""


def asks_for_namespace(pod: Object) -> bool:
    """The pod wants a network namespace, and still needs it."""
    annotations = pod["metadata"].get("annotations") or {}
    ended = dig(pod, "status", "phase", default="") in ("Succeeded", "Failed")
    return annotations.get(OWN_NETWORK) == "namespace" and not ended


def is_loopback(address: str) -> bool:
    """An address of 127.0.0.0/8."""
    return address.startswith("127.")


class Attachment(Controller):
    """Watches this machine's Node and keeps the pods' data path."""

    name = "pod-network"

    def __init__(
        self,
        context: ControlContext,
        proxy: ServiceProxy,
        policies: NetworkPolicies,
        forwarders: ForwardPath,
        wanted: Literal["auto", "ebpf", "forward"],
        changed: Callable[[], None],
        node: str = "",
    ) -> None:
        """``forwarders`` take cluster addresses where the kernel cannot; ``changed`` hears of a new `mode`; ``node`` is this
        machine's own (default: the one that did not join from elsewhere)."""
        super().__init__(context)
        self._proxy = proxy
        self._policies = policies
        self._forwarders = forwarders
        self._choice = wanted
        self._changed = changed
        self._node = node
        self.mode: Mode = ""
        self.kernel: KernelPath | None = None
        self.packets: PacketPath | None = None

    def sources(self) -> list[Source]:
        return [For(NODES), Watches(PODS, self._node_of)]

    def _node_of(self, pod: Object) -> Iterable[Key]:
        name = pod["spec"].get("nodeName")
        annotations = pod["metadata"].get("annotations") or {}
        return (Key("", name),) if name and annotations.get(OWN_NETWORK) == "namespace" else ()

    async def reconcile(self, key: Key) -> float | None:
        node = self.informer(NODES).get(key)
        if node is None:
            return None
        annotations = node["metadata"].get("annotations") or {}
        own = key.name == self._node if self._node else JOINED not in annotations
        if not own:
            await self._know_ranges()
            return None  # a node of some other process, maybe on another machine
        if PODS_CGROUP not in annotations:
            return None
        self._know(key.name, node)
        table, _, pod_range = annotations.get(PODS_TABLE, "").partition(" ")
        cgroup = Path(annotations[PODS_CGROUP]) if annotations[PODS_CGROUP] else None
        if cgroup is None and table:
            return await self._by_packets(node, table, pod_range)
        served = await self._by_programs(node, cgroup)
        if table and any(asks_for_namespace(pod) for pod in self._pods_of(key.name)):
            return await self._serve_packets(node, table, pod_range, host=False)
        await self._end_packets()
        return served

    def _pods_of(self, name: str) -> Iterable[Object]:
        return (pod for pod in self.informer(PODS).objects() if pod["spec"].get("nodeName") == name)

    # -- packets

    async def _by_packets(self, node: Object, table: str, pod_range: str) -> float:
        """All pods have network namespaces."""
        if self.mode == "forward":
            self._proxy.leave(self._forwarders)
            self._forwarders.close()
        if self.kernel is not None:
            self._proxy.leave(self.kernel)
            self.kernel.close()
            self.kernel = None
        self._set_mode("nft")
        return await self._serve_packets(node, table, pod_range, host=True)

    async def _serve_packets(self, node: Object, table: str, pod_range: str, *, host: bool) -> float:
        known = self.packets
        try:
            if known is not None and (known.table, known.pod_range) == (table, pod_range) and known.stands():
                await self._know_ranges()
                await self._drop_former(known)
                return CHECK_SECONDS
            if known is not None and known.table != table:
                await self._end_packets()
            elif known is not None:
                self._proxy.leave(known)
                await known.leave()  # what it left of its table is replaced at once
            path = PacketPath(table, pod_range, host=host)
            frontends = {one: each for one, each in self._proxy.wanted().items() if _for_pods(one, each)}
            await path.begin(frontends, self._policies.compiled(), self._ranges(pod_range))
        except OSError as error:
            self.recorder.event(
                node, "Warning", "ServiceProgramsFailed", f"Services cannot be served by nf_tables: {error}"
            )
            return CHECK_SECONDS
        self.packets = path
        await self._know_ranges()  # another node may have come while the table began
        await self._proxy.use(path, _for_pods)
        self._use_policies()
        await path.settle()
        return CHECK_SECONDS

    async def _drop_former(self, path: PacketPath) -> None:
        """Take away what a path began with and what had changed before the proxy came to it. Raises OSError."""
        former = path.frontends - self._proxy.frontends.keys()
        for frontend in former - self._proxy.wanted().keys() if former else ():
            await path.drop(frontend)

    async def _end_packets(self) -> None:
        """No pod has a namespace any more. Raises OSError."""
        path, self.packets = self.packets, None
        if path is not None:
            self._proxy.leave(path)
            self._use_policies()
            await path.end()

    def _ranges(self, own: str) -> list[IPv4Network]:
        given = {dig(node, "spec", "podCIDR", default="") for node in self.informer(NODES).objects()}
        return networks(sorted({own, *given}))

    async def _know_ranges(self) -> None:
        if self.packets is not None:
            await self.packets.know(self._ranges(self.packets.pod_range))

    def _use_policies(self) -> None:
        """Have policies kept by every path that can."""
        kernel, packets = self.kernel, self.packets

        async def enforce(isolated: Mapping[str, Isolation]) -> None:
            if kernel is not None:
                kernel.enforce(isolated)
            if packets is not None:
                await packets.enforce(isolated)

        self._policies.use(enforce if kernel is not None or packets is not None else None)

    # -- programs and forwarders

    async def _by_programs(self, node: Object, cgroup: Path | None) -> float | None:
        if cgroup is None or self._choice == "forward":
            await self._forward()
            return None
        if self.kernel is not None and self.kernel.cgroup == cgroup and self.kernel.stands():
            return CHECK_SECONDS
        try:
            await self._attach(cgroup)
        except OSError as error:
            self.recorder.event(
                node, "Warning", "ServiceProgramsFailed", f"Services cannot be served by eBPF at {cgroup}: {error}"
            )
            await self._forward()
        return CHECK_SECONDS

    def _know(self, name: str, node: Object) -> None:
        addresses = [
            one["address"]
            for one in dig(node, "status", "addresses", default=())
            if one.get("type") in ("InternalIP", "ExternalIP") and not is_loopback(one["address"])
        ]
        known = [*self._proxy.node_addresses[:1], *dict.fromkeys(addresses)]
        if (self._proxy.node, self._proxy.node_addresses) != (name, known):
            self._proxy.node, self._proxy.node_addresses = name, known
            self._proxy.again()

    async def _attach(self, cgroup: Path) -> None:
        def make() -> KernelPath:
            pods = find_pods(cgroup)
            try:
                return KernelPath(cgroup, self.clock, pods=pods, level=level_of(cgroup) + 1)
            finally:
                if pods is not None:
                    pods.close()

        kernel = await asyncio.to_thread(make)
        former, self.kernel = self.kernel, kernel
        if former is not None:
            self._proxy.leave(former)
            former.close()
        if self.mode == "forward":
            self._proxy.leave(self._forwarders)
            self._forwarders.close()
        await self._proxy.use(kernel, _for_pods)
        self.clock.call_later(SETTLE_SECONDS, self._sweep, kernel)
        self._use_policies()
        self._set_mode("ebpf")

    def _sweep(self, kernel: KernelPath) -> None:
        if self.kernel is kernel:
            kernel.sweep()

    async def _forward(self) -> None:
        if self.mode == "forward":
            return
        if self.kernel is not None:
            self._proxy.leave(self.kernel)
            self.kernel.close()
            self.kernel = None
        self._set_mode("forward")  # first: it decides where the forwarders listen
        await self._proxy.use(self._forwarders, _for_everyone)
        self._use_policies()

    def _set_mode(self, mode: Mode) -> None:
        if self.mode != mode:
            self.mode = mode
            log.info("Services reach their endpoints by %s", _WORDS[mode])
            self._changed()


_WORDS = {"": "nothing", "ebpf": "eBPF", "nft": "nf_tables", "forward": "forwarders in user space"}


def _for_pods(frontend: Frontend, backends: Backends) -> bool:
    return not is_loopback(frontend.address)


def _for_everyone(frontend: Frontend, backends: Backends) -> bool:
    return backends.reach == "cluster"
