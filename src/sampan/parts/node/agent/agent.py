"""The node agent: follows the pods bound to its node and keeps a worker for each.

What flows in: the node's pods (an informer with a field selector), ConfigMaps, Secrets, Services, claims (informers), ends of
containers (the runtime). What flows out: pod statuses, events, the Node object and its Lease. After a restart the agent lists
what the runtime still runs and hands it to the workers; what belongs to no pod any more is ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal

from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.kube.client import Client
from sampan.kube.control.events import EventRecorder
from sampan.kube.control.interface import Informer, Informers
from sampan.kube.objects import Key, Object, copy, dig
from sampan.kube.resources import ENDPOINT_SLICES, PODS, SERVICES
from sampan.parts.network import loopback_address
from sampan.parts.node import OnAddress, Routes
from sampan.parts.node.agent import launching
from sampan.parts.node.agent.adoption import adopt
from sampan.parts.node.agent.eviction import NOTHING_RESERVED, Eviction, Reserve
from sampan.parts.node.agent.following import Following
from sampan.parts.node.agent.handlers import Handlers
from sampan.parts.node.agent.letting_go import LettingGo
from sampan.parts.node.agent.payload import PodFacts
from sampan.parts.node.agent.registration import Registration
from sampan.parts.node.agent.sources import InformedSources, Sources
from sampan.parts.node.agent.tokens import Tokens
from sampan.parts.node.agent.volumes import Volumes
from sampan.parts.node.agent.worker import PodWorker
from sampan.parts.node.agent.writer import StatusWriter
from sampan.parts.node.errors import NodeError
from sampan.parts.node.images.provider import Images
from sampan.parts.node.runtime.interface import ADDRESSED, Container
from sampan.parts.node.runtime.process import ProcessRuntime

log = logging.getLogger(__name__)


class Agent:
    """One node's agent."""

    def __init__(
        self,
        *,
        name: str,
        client: Client,
        informers: Informers,
        clock: Clock,
        tasks: Tasks,
        runtime: ProcessRuntime,
        images: Images,
        host_address: str = "127.0.0.1",
        domain: str = "cluster.local",
        max_pods: int = 250,
        labels: Mapping[str, str] | None = None,
        log_size: int = 10 << 20,
        log_files: int = 5,
        sources: Sources | None = None,
        api_server: tuple[str, int] | None = None,
        reserve: Reserve = NOTHING_RESERVED,
        housekeeping: float = 10.0,
        on_address: OnAddress = lambda pod, address, runs: None,
        routes: Callable[[], Routes | None] = lambda: None,
    ) -> None:
        """``sources`` finds what pods refer to (default: by the informers); ``api_server`` is where this machine reaches the
        API, if not on its own loopback; ``on_address`` is called when a pod has its address, and when a container has begun;
        ``routes`` gives who sends requests to pods, where that is known."""
        self.name = name
        self.client = client
        self.clock = clock
        self.tasks = tasks
        self.runtime = runtime
        self.images = images
        self.layout = runtime.layout
        self.volumes = Volumes(self.layout)
        self.handlers = Handlers(runtime, clock)
        self.writer = StatusWriter(self)
        self.host_address = host_address
        self.on_address = on_address
        self.domain = domain
        self.log_size, self.log_files = log_size, log_files
        self.port = 10250
        self.workers: dict[str, PodWorker] = {}
        self.by_container: dict[str, PodWorker] = {}
        self.allocatable: dict[str, str] = {}
        self._informers = informers
        self._recorder = EventRecorder(client, clock, tasks, "kubelet", host=name)
        self.tokens = Tokens(client, clock)
        self.following = Following(self)
        self.eviction = Eviction(self, reserve, housekeeping)
        self.registration = Registration(self, labels or {}, max_pods)
        self._closed = False
        self._runtime_up = False
        self._pods: Informer
        self.letting_go = LettingGo(informers.informer(ENDPOINT_SLICES), clock, routes)
        self.sources: Sources = sources or InformedSources(informers)
        self._api_server = api_server

    # -- life

    async def start(self) -> None:
        """Register the node, pick up what runs, and follow the node's pods."""
        await self.runtime.start(self._exited, self._lost, self._sandbox_ended)
        self._runtime_up = True
        await self.registration.start()
        self._services = self._informers.informer(SERVICES)
        self._pods = self._informers.informer(PODS, field_selector=f"spec.nodeName={self.name}")
        for informer in (self._services, self._pods):
            await informer.wait_synced()
        await self.sources.start()
        await self._recover()
        self._pods.on_change(self._pod_changed)
        for plural in ("configmaps", "secrets"):
            self.sources.on_change(plural, self.following.source_changed)
        for plural in ("persistentvolumeclaims", "persistentvolumes"):
            self.sources.on_change(plural, self.following.claim_changed)
        self.tasks.keep("eviction", self.eviction.run)
        self.tasks.keep("tokens", self.following.watch_tokens)

    async def close(self) -> None:
        """Let go: the processes go on."""
        self._closed = True
        await asyncio.gather(*(worker.cancel() for worker in self.workers.values()))
        await self.runtime.close()

    async def _recover(self) -> None:
        """Give running sandboxes back to their pods; end what belongs to none."""
        sandboxes, containers = await self.runtime.list()
        known = {pod["metadata"]["uid"]: pod for pod in self._pods.objects()}
        by_pod: dict[str, list[Container]] = {}
        for container in containers:
            by_pod.setdefault(container.sandbox, []).append(container)
        alive = {sandbox.id: sandbox for sandbox in sandboxes}
        for uid, sandbox in alive.items():
            if uid not in known:
                log.info("ending %s/%s, whose pod is gone", sandbox.namespace, sandbox.name)
                await self.runtime.remove_sandbox(uid)
        for entry in list(self.layout.pods.iterdir()):
            if entry.name not in known:
                await asyncio.to_thread(self.volumes.forget, entry.name)
        for uid, pod in known.items():
            worker = self._worker(pod)
            found = alive.get(uid)
            phase = dig(pod, "status", "phase")
            if phase in ("Succeeded", "Failed"):
                worker.state.finished = phase
                worker.state.removed = found is None
            await self.sources.follow(pod)
            if found is not None and not by_pod.get(uid) and not worker.state.finished:
                # killed between making the sandbox and starting the first container: nobody knows how far it had come
                worker.sandbox_lost()
            elif found is not None:
                worker.volumes = await asyncio.to_thread(self._volumes_again, await self.facts(pod, found.address))
                adopt(worker, found.address or self.host_address, by_pod.get(uid, []))
                for container in by_pod.get(uid, []):
                    self.by_container[container.id] = worker
            elif by_pod.get(uid) or dig(pod, "status", "startTime"):
                adopt(worker, "", by_pod.get(uid, []))
                worker.sandbox_lost()
            worker.run()

    def _volumes_again(self, facts: PodFacts) -> Any:
        from sampan.parts.node.agent.volumes import PodVolumes

        try:
            return self.volumes.prepare(facts, self.find)
        except NodeError:
            return PodVolumes()

    # -- pods

    def _worker(self, pod: Object) -> PodWorker:
        worker = PodWorker(self, pod)
        self.workers[worker.uid] = worker
        return worker

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        if old is not None and (new is None or new["metadata"]["uid"] != old["metadata"]["uid"]):
            self._pod_gone(old)
        if new is None:
            return
        worker = self.workers.get(new["metadata"]["uid"])
        if worker is None:
            if dig(new, "status", "phase") in ("Succeeded", "Failed"):
                worker = self._worker(new)
                worker.state.finished = new["status"]["phase"]
            else:
                worker = self._worker(new)
            worker.run()
            return
        told = ("labels", "annotations")
        if old is not None and any(old["metadata"].get(name) != new["metadata"].get(name) for name in told):
            self.following.refresh(worker.uid)
        if old is not None and old["spec"] != new["spec"]:
            self.tasks.start(f"{worker.key}/sources", self.sources.follow(new))
        worker.update(new)
        self.writer.review(worker)

    def _pod_gone(self, pod: Object) -> None:
        """The object is gone: finished as planned, or removed by force while its processes live."""
        worker = self.workers.get(pod["metadata"]["uid"])
        if worker is None:
            return
        if worker.state.removed or not (worker.state.sandbox or worker.state.sandbox_busy):
            self._drop(worker)
            return
        forced = copy(pod)
        forced["metadata"]["deletionTimestamp"] = forced["metadata"].get("deletionTimestamp") or "now"
        forced["metadata"]["deletionGracePeriodSeconds"] = 1
        forced["metadata"]["annotations"] = {**(forced["metadata"].get("annotations") or {}), _GONE: "true"}
        worker.update(forced)

    def _drop(self, worker: PodWorker) -> None:
        worker.gone = True
        worker.wake()
        self.workers.pop(worker.uid, None)
        self.tokens.drop(worker.uid)
        self.tasks.start(f"{worker.key}/forget", self._forget(worker))

    async def _forget(self, worker: PodWorker) -> None:
        await worker.cancel()
        self.sources.forget(worker.uid)
        await asyncio.to_thread(self.volumes.forget, worker.uid)
        worker.release()

    async def delete_pod(self, pod: Object) -> None:
        """Take a pod's object away: its processes have ended and its status is written. Raises ApiError."""
        metadata = pod["metadata"]
        if _GONE in (metadata.get("annotations") or {}):
            worker = self.workers.get(metadata["uid"])
            if worker is not None:
                # not from within the worker's own task, which the drop waits for
                self.after(0.0, self._drop, worker)
            return
        await self.client.delete(PODS, metadata["name"], metadata["namespace"], grace_period=0, uid=metadata["uid"])

    def _exited(self, container: Container) -> None:
        worker = self.by_container.get(container.id)
        if worker is not None:
            worker.exited(container)

    def _sandbox_ended(self, uid: str) -> None:
        worker = self.workers.get(uid)
        if worker is not None and worker.state.sandbox and not worker.state.sandbox_busy:
            worker.sandbox_lost()
            self.event(worker.pod, "Normal", "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")

    def _lost(self) -> None:
        """The keeper died, and every process with it: start over with a new one."""
        self._runtime_up = False
        self.tasks.start("runtime-again", self._again())

    async def _again(self) -> None:
        log.error("the node's keeper is gone; starting another")
        for worker in self.workers.values():
            worker.lost()
        while True:
            try:
                await self.runtime.start(self._exited, self._lost, self._sandbox_ended)
                break
            except NodeError as error:
                log.error("%s", error)
                await self.clock.sleep(1.0)
        self._runtime_up = True
        for worker in self.workers.values():
            worker.wake()
            self.writer.review(worker)

    # -- what workers ask

    @property
    def runtime_up(self) -> bool:
        """The keeper answers."""
        return self._runtime_up

    @property
    def dns(self) -> str:
        """The cluster's DNS server, or "" where there is none."""
        service = self._services.get(Key("kube-system", "kube-dns"))
        address = str(dig(service, "spec", "clusterIP", default="None"))
        if address == "None":
            return ""
        return address if self.runtime.tier in ADDRESSED else loopback_address(address)

    def names(self, pod: Object) -> str:
        """Who answers a pod's questions to the machine's name servers; "" where they do, or a resolv.conf says it."""
        if self.runtime.isolation != "none":
            return ""
        servers, _, _ = launching.resolver(pod, self.dns, self.domain, "")
        return self.dns if self.dns in servers else ""

    def find(self, kind: str, namespace: str, name: str) -> Object | None:
        """A ConfigMap, Secret, claim or volume from the caches."""
        return self.sources.get(kind, Key(namespace, name))

    def services(self) -> list[Object]:
        """Services as this node's pods reach them."""
        found = self._services.objects()
        return (
            found if self.runtime.tier in ADDRESSED else [_on_loopback(service, self._api_server) for service in found]
        )

    async def reclaim_images(self) -> None:
        """Give back the disk of what images can be made from again and no pod uses now."""
        used = {state.image_id for worker in self.workers.values() for state in worker.state.containers.values()}
        freed = await asyncio.to_thread(self.images.reclaim, used)
        if freed:
            log.info("gave back %d MiB of unpacked images", freed >> 20)

    def after(self, seconds: float, callback: Callable[..., object], *arguments: Any) -> None:
        """Call back later, on the platform's clock."""
        self.clock.call_later(seconds, self._due, callback, *arguments)

    def _due(self, callback: Callable[..., object], *arguments: Any) -> None:
        if not self._closed:
            callback(*arguments)

    def event(
        self, pod: Object, type: Literal["Normal", "Warning"], reason: str, message: str, container: str = ""
    ) -> None:
        """An event about a pod."""
        del container
        self._recorder.event(pod, type, reason, message)

    async def facts(self, pod: Object, address: str) -> PodFacts:
        """What payload volumes of a pod may ask about; fetches the tokens they need. Raises ApiError."""
        tokens = await self.tokens.fetch(pod)
        return PodFacts(pod, self.host_address, address, self.allocatable, self.find, tokens)

    def tier_environment(self, pod: Object, container: Object, address: str) -> dict[str, str]:
        """Where pods have no addresses of their own by force, programs are told where to listen."""
        if self.runtime.tier in ADDRESSED or pod["spec"].get("hostNetwork"):
            return {}
        ports = [port["containerPort"] for port in container.get("ports") or ()]
        told = {"HOST": address, "POD_IP": address}
        if self.names(pod):
            # who asks the C library finds Services by their short names, as with a resolv.conf
            _, searches, options = launching.resolver(pod, self.dns, self.domain, "")
            told |= {"LOCALDOMAIN": " ".join(searches), "RES_OPTIONS": " ".join(options)}
        return {**told, "PORT": str(ports[0])} if ports else told


_GONE = "sampan.dev/object-is-gone"


def _on_loopback(service: Object, api_server: tuple[str, int] | None) -> Object:
    """A Service as pods without addresses of their own reach it: by a forwarder on a loopback address."""
    spec, metadata = service["spec"], service["metadata"]
    if spec.get("clusterIP") in (None, "", "None"):
        return service
    if (metadata["namespace"], metadata["name"]) == ("default", "kubernetes"):
        # the API server itself, mostly on this machine's own loopback; its port there needs no rights, as the Service's would
        host, number = api_server or ("127.0.0.1", None)
        ports = [{**port, "port": number or port["targetPort"]} for port in spec["ports"]]
        return {**service, "spec": {**spec, "clusterIP": host, "ports": ports}}
    return {**service, "spec": {**spec, "clusterIP": loopback_address(spec["clusterIP"])}}
