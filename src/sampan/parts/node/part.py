"""The node part: this machine as a node of the cluster, and its pods as processes.

Read this first. The part runs one `Agent` (what is wanted → what runs) over one `ProcessRuntime` (how it runs) and the node's
`Images`, and serves the kubelet API (logs, exec, attach, port-forward, stats) beside them. The processes belong to a keeper
that outlives this part: after a crash the next start picks them up; an orderly end of the platform ends them.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from sampan.kernel.addresses import advertised
from sampan.kernel.part import Part, PartSettings
from sampan.kube.client import Client
from sampan.kube.control.controller import ControlContext
from sampan.kube.joining.interface import Joined
from sampan.kube.part import ServiceRange
from sampan.kube.resources import NODES
from sampan.kube.types.resource import TypeRegistry
from sampan.parts.node import ImageDigests, PodAddresses, Routes
from sampan.parts.node.agent.agent import Agent
from sampan.parts.node.agent.eviction import Reserve
from sampan.parts.node.agent.peers import PeerRoutes
from sampan.parts.node.agent.sources import InformedSources, ReferencedSources
from sampan.parts.node.agent.worker import PodWorker
from sampan.parts.node.images.provider import Images
from sampan.parts.node.runtime.interface import ADDRESSED
from sampan.parts.node.runtime.process import ProcessRuntime

PODS = "10.244.0.0/16"
SERVICES = ("10.96.0.0/12", "10.112.0.0/12")
"""Where Services have their addresses unless the platform was given a range; a joined node knows no other."""


class NodeSettings(PartSettings, kw_only=True):
    """Settings of the node (section ``node``)."""

    name: Annotated[str, msgspec.Meta(description="the node's name; the host's name where empty")] = ""
    port: Annotated[int, msgspec.Meta(description="port of the kubelet API", ge=0, le=65535)] = 10250
    host: Annotated[str, msgspec.Meta(description="address the kubelet API listens on and the node is known under")] = (
        "127.0.0.1"
    )
    tier: Annotated[
        Literal["auto", "T1", "T1n", "T2", "T3"],
        msgspec.Meta(description="isolation of pods; `auto` is the best this machine gives"),
    ] = "auto"
    pod_range: Annotated[
        str, msgspec.Meta(description="addresses of this node's pods; empty: a free 10.244.N.0/24")
    ] = ""
    max_pods: Annotated[int, msgspec.Meta(description="pods the node takes", ge=1)] = 250
    labels: Annotated[dict[str, str], msgspec.Meta(description="labels of the Node object")] = msgspec.field(
        default_factory=dict
    )
    zygote: Annotated[bool, msgspec.Meta(description="fork Python containers from a warm interpreter")] = True
    log_size: Annotated[int, msgspec.Meta(description="bytes of a container's log before it is rotated")] = 10 << 20
    log_files: Annotated[int, msgspec.Meta(description="files kept of a container's log", ge=2)] = 5
    housekeeping: Annotated[
        float, msgspec.Meta(description="seconds between looks at what pods take of disk and memory", gt=0)
    ] = 10.0
    disk_reserve: Annotated[
        int, msgspec.Meta(description="bytes of disk that are to stay free; below, pods are evicted (0: never)", ge=0)
    ] = 256 << 20
    memory_reserve: Annotated[
        int, msgspec.Meta(description="bytes of memory that are to stay free; below, pods are evicted (0: never)", ge=0)
    ] = 100 << 20
    abandon: Annotated[
        float, msgspec.Meta(description="seconds that pods go on without an agent before they are ended", ge=0)
    ] = 600.0
    keep_pods: Annotated[
        bool, msgspec.Meta(description="leave pods running when the platform is stopped in an orderly way")
    ] = False


class NodePart(Part[NodeSettings]):
    """This machine as a node."""

    name = "node"
    needs = ("kubernetes",)
    settings_type: ClassVar[type[PartSettings]] = NodeSettings

    _agent: Agent | None = None
    _runtime: ProcessRuntime | None = None
    _listener: socket.socket | None = None
    _kubelet: Any = None
    _routes: PeerRoutes | None = None
    _ending = False
    """The pods are being ended, for the platform goes down."""

    async def provision(self) -> None:
        """Open the image store and bind the kubelet's port."""
        context, settings = self.context, self.context.settings
        self._images = Images(context.data_dir / "images")
        await asyncio.to_thread(self._images.store.open)
        context.provide(ImageDigests, self._images)
        if context.find(PodAddresses) is None:  # who subscribed before this part was started again goes on to be told
            context.provide(PodAddresses, PodAddresses())
        self._listener = context.listeners.bind("kubelet", settings.port, settings.host)

    async def start(self) -> None:
        """Start the runtime and the agent, and serve the kubelet API."""
        context, settings = self.context, self.context.settings
        control = context.get(ControlContext)
        joined = context.find(Joined)
        services = context.find(ServiceRange)
        self._runtime = runtime = ProcessRuntime(
            context.data_dir / "run",
            context.clock,
            context.tasks,
            pod_range=settings.pod_range or (joined.pod_range if joined is not None else ""),
            networks=[PODS, *([services.cidr] if services is not None else SERVICES)],
            tier=settings.tier,
            abandon=settings.abandon,
            zygote=settings.zygote,
            book=None if settings.keep_pods else context.root / "run",
        )
        self._agent = agent = Agent(
            name=settings.name or socket.gethostname().lower(),
            client=context.get(Client),
            informers=control.informers,
            clock=context.clock,
            tasks=context.tasks,
            runtime=runtime,
            images=self._images,
            host_address=advertised(settings.host),
            max_pods=settings.max_pods,
            labels=settings.labels,
            log_size=settings.log_size,
            log_files=settings.log_files,
            sources=InformedSources(control.informers) if joined is None else ReferencedSources(control),
            api_server=None if joined is None else joined.server,
            reserve=Reserve(settings.disk_reserve, settings.memory_reserve),
            housekeeping=settings.housekeeping,
            on_address=context.get(PodAddresses).tell,
            routes=lambda: context.find(Routes),
        )
        address = context.listeners.address("kubelet")
        assert address is not None
        agent.port = address[1]
        try:
            await agent.start()
            await self._serve(agent)
            if self._runtime.tier in ADDRESSED:
                self._routes = PeerRoutes(control, agent.name)
                await self._routes.start()
        except Exception:
            await runtime.give_up()
            raise

    async def _serve(self, agent: Agent) -> None:
        from sampan.parts.node.kubelet.server import KubeletServer

        assert self._listener is not None
        joined = self.context.find(Joined)
        if joined is not None:
            tls = await asyncio.to_thread(joined.serving)
        else:
            names = [agent.name, agent.host_address, "localhost"]
            tls = await asyncio.to_thread(self.context.authority.server_context, names, verify_clients=True)
        self._kubelet = KubeletServer(agent, self.context.metrics)
        await self._kubelet.start(self._listener, tls)
        statistics = self._kubelet.statistics
        self.context.tasks.keep("statistics", statistics.run)
        types = self.context.find(TypeRegistry)
        if types is not None:
            from sampan.kube.part import joined_kubelets
            from sampan.parts.node.resources import ResourceMetrics
            from sampan.parts.node.scraping import Scraper

            authority, informers = self.context.authority, self.context.get(ControlContext).informers
            others = Scraper(informers.informer(NODES), agent.name, lambda: joined_kubelets(authority))
            types.add(ResourceMetrics(agent, statistics, others, informers).types())

    async def drain(self) -> None:
        """The platform goes down in an orderly way: end the pods, unless they are to stay."""
        if self._kubelet is not None:
            await self._kubelet.stop()
            self._kubelet = None
        if self._agent is not None and self._runtime is not None and not self.context.settings.keep_pods:
            self._ending = True
            await self._agent.close()
            await self._runtime.start(lambda _: None, lambda: None)
            await self._runtime.end()
            if self._routes is not None:
                await self._routes.clear()
            self._agent, self._ending = None, False

    async def stop(self) -> None:
        """Let go of everything; what still runs goes on, but for pods whose ending took longer than a drain may."""
        if self._ending and self._runtime is not None:
            self.context.log.warning("the pods have not ended yet: their keeper goes on with that, and ends then")
            await asyncio.to_thread(self._runtime.dismiss)
        if self._kubelet is not None:
            await self._kubelet.stop()
        if self._agent is not None:
            await self._agent.close()
        if self._listener is not None:
            self._listener.close()

    def status(self) -> dict[str, Any]:
        """Node name, tier and pods."""
        if self._agent is None or self._runtime is None:
            return {}
        return {
            "node": self._agent.name,
            "tier": self._runtime.tier,
            "pods": len(self._agent.workers),
            "pod_range": self._runtime.pod_range,
            "rows": {"pods": sorted(_row(worker) for worker in self._agent.workers.values())},
        }


def _row(worker: PodWorker) -> list[str]:
    """A pod as a line of ``sampan status``: its key, phase, ready containers, restarts and address."""
    status = worker.status or worker.pod.get("status") or {}
    containers = status.get("containerStatuses") or []
    ready, restarts = sum(1 for one in containers if one["ready"]), sum(one["restartCount"] for one in containers)
    return [
        worker.key,
        "Terminating" if worker.pod["metadata"].get("deletionTimestamp") else status.get("phase", "Pending"),
        f"{ready}/{len(worker.pod['spec']['containers'])}",
        f"{restarts} restarts" if restarts else "",
        status.get("podIP", ""),
    ]
