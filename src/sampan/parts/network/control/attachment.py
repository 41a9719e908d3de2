"""Finds out how this node's pods can be served, and sets the data path up: the kernel's where it can be had, else forwarders.

The Node object tells where the pods' cgroup is (an annotation of the node part; empty where pods have no addresses of their
own). A node that comes back with a new cgroup, or with programs attached after ours, is noticed and served anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.interface import For, Source
from sampan.kube.joining.interface import JOINED
from sampan.kube.objects import Key, Object, dig
from sampan.kube.resources import NODES
from sampan.parts.network.control.policies import NetworkPolicies
from sampan.parts.network.control.proxy import ServiceProxy
from sampan.parts.network.datapath.forward import ForwardPath
from sampan.parts.network.datapath.kernel import KernelPath, find_pods, level_of
from sampan.parts.network.services import Backends, Frontend

log = logging.getLogger(__name__)

PODS_CGROUP = "sampan.dev/pods-cgroup"
"""The Node's annotation that tells where its pods' sockets can be reached."""
CHECK_SECONDS = 30.0
"""Between looks at whether the programs still stand as they should."""

SETTLE_SECONDS = 10.0
"""After which every Service has been put, and what an earlier process left in the tables besides goes."""

Mode = Literal["", "ebpf", "forward"]


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

    def sources(self) -> list[Source]:
        return [For(NODES)]

    async def reconcile(self, key: Key) -> float | None:
        node = self.informer(NODES).get(key)
        if node is None:
            return None
        annotations = node["metadata"].get("annotations") or {}
        own = key.name == self._node if self._node else JOINED not in annotations
        if PODS_CGROUP not in annotations or not own:
            return None  # a node of some other process, maybe on another machine
        self._know(key.name, node)
        cgroup = Path(annotations[PODS_CGROUP]) if annotations[PODS_CGROUP] else None
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
        self._policies.use(kernel.enforce)
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
        self._policies.use(None)

    def _set_mode(self, mode: Mode) -> None:
        if self.mode != mode:
            self.mode = mode
            log.info("Services reach their endpoints by %s", "eBPF" if mode == "ebpf" else "forwarders in user space")
            self._changed()


def _for_pods(frontend: Frontend, backends: Backends) -> bool:
    return not is_loopback(frontend.address)


def _for_everyone(frontend: Frontend, backends: Backends) -> bool:
    return backends.reach == "cluster"
