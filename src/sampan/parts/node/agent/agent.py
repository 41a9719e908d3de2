"""The node agent: follows the pods bound to its node and keeps a worker for each.

What flows in: the node's pods (an informer with a field selector), ConfigMaps, Secrets, Services, claims (informers), ends of
containers (the runtime). What flows out: pod statuses, events, the Node object and its Lease. After a restart the agent lists
what the runtime still runs and hands it to the workers; what belongs to no pod any more is ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal

from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.kube.client import Client
from sampan.kube.control.events import EventRecorder
from sampan.kube.control.interface import Informer, Informers
from sampan.kube.objects import Key, Object, copy, dig
from sampan.kube.resources import (
    CONFIG_MAPS,
    LEASES,
    NODES,
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    PODS,
    SECRETS,
    SERVICE_ACCOUNTS,
    SERVICES,
)
from sampan.kube.status import ApiError
from sampan.kube.types.duration import format_micro_time
from sampan.parts.network import loopback_address
from sampan.parts.node.agent import node_object
from sampan.parts.node.agent.handlers import Handlers
from sampan.parts.node.agent.payload import PodFacts, audiences
from sampan.parts.node.agent.volumes import Volumes
from sampan.parts.node.agent.worker import PodWorker
from sampan.parts.node.agent.writer import StatusWriter
from sampan.parts.node.errors import NodeError
from sampan.parts.node.images.provider import Images
from sampan.parts.node.runtime.interface import Container
from sampan.parts.node.runtime.process import ProcessRuntime

log = logging.getLogger(__name__)

LEASE_EVERY = 10.0
STATUS_EVERY = 300.0
REFRESH_DEBOUNCE = 0.5
TOKEN_CHECK = 60.0
ADDRESS_NETWORKS = ("10.244.0.0/16", "10.96.0.0/12")


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
    ) -> None:
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
        self.domain = domain
        self.log_size, self.log_files = log_size, log_files
        self.port = 10250
        self.workers: dict[str, PodWorker] = {}
        self.by_container: dict[str, PodWorker] = {}
        self.allocatable: dict[str, str] = {}
        self._max_pods = max_pods
        self._labels = dict(labels or {})
        self._informers = informers
        self._recorder = EventRecorder(client, clock, tasks, "kubelet", host=name)
        self._tokens: dict[str, dict[str, tuple[str, float]]] = {}
        self._stale: set[str] = set()
        self._refreshing = False
        self._runtime_up = False
        self._pods: Informer
        self._stores: dict[str, Informer] = {}

    # -- life

    async def start(self) -> None:
        """Register the node, pick up what runs, and follow the node's pods."""
        await self.runtime.start(self._exited, self._lost, self._sandbox_ended)
        self._runtime_up = True
        self._facts = await asyncio.to_thread(node_object.machine, self.layout.base)
        await self.register()
        for plural, resource in (
            ("configmaps", CONFIG_MAPS),
            ("secrets", SECRETS),
            ("services", SERVICES),
            ("persistentvolumeclaims", PERSISTENT_VOLUME_CLAIMS),
            ("persistentvolumes", PERSISTENT_VOLUMES),
        ):
            self._stores[plural] = self._informers.informer(resource)
        self._pods = self._informers.informer(PODS, field_selector=f"spec.nodeName={self.name}")
        for informer in (*self._stores.values(), self._pods):
            await informer.wait_synced()
        await self._recover()
        self._pods.on_change(self._pod_changed)
        for plural in ("configmaps", "secrets"):
            self._stores[plural].on_change(self._source_changed)
        for plural in ("persistentvolumeclaims", "persistentvolumes"):
            self._stores[plural].on_change(self._claim_changed)
        self.tasks.keep("lease", self._beat)
        self.tasks.keep("node-status", self._node_status)
        self.tasks.keep("tokens", self._watch_tokens)

    async def close(self) -> None:
        """Let go: the processes go on."""
        for worker in list(self.workers.values()):
            await worker.cancel()
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
            if found is not None and not by_pod.get(uid) and not worker.state.finished:
                # killed between making the sandbox and starting the first container: nobody knows how far it had come
                worker.sandbox_lost()
            elif found is not None:
                worker.volumes = await asyncio.to_thread(self._volumes_again, await self.facts(pod, found.address))
                worker.adopt(found.address or self.host_address, by_pod.get(uid, []))
                for container in by_pod.get(uid, []):
                    self.by_container[container.id] = worker
            elif by_pod.get(uid) or dig(pod, "status", "startTime"):
                worker.adopt("", by_pod.get(uid, []))
                worker.sandbox_lost()
            self._run(worker)

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

    def _run(self, worker: PodWorker) -> None:
        self.tasks.start(f"{worker.key}/pod", self._guarded(worker))

    async def _guarded(self, worker: PodWorker) -> None:
        """One pod's trouble stays one pod's trouble."""
        while not worker.gone:
            try:
                await worker.run()
            except Exception:
                log.exception("%s: the worker failed; going on", worker.key)
                await self.clock.sleep(1.0)

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
            self._run(worker)
            return
        told = ("labels", "annotations")
        if old is not None and any(old["metadata"].get(name) != new["metadata"].get(name) for name in told):
            self._refresh(worker.uid)
        worker.update(new)

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
        self._tokens.pop(worker.uid, None)
        self.tasks.start(f"{worker.key}/forget", self._forget(worker))

    async def _forget(self, worker: PodWorker) -> None:
        await worker.cancel()
        await asyncio.to_thread(self.volumes.forget, worker.uid)

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

    # -- what workers ask

    @property
    def runtime_up(self) -> bool:
        """The keeper answers."""
        return self._runtime_up

    @property
    def dns(self) -> str:
        """The cluster's DNS server, or "" where there is none."""
        service = self._stores["services"].get(Key("kube-system", "kube-dns"))
        address = str(dig(service, "spec", "clusterIP", default="None"))
        if address == "None":
            return ""
        return address if self.runtime.tier == "T1" else loopback_address(address)

    def find(self, kind: str, namespace: str, name: str) -> Object | None:
        """A ConfigMap, Secret, claim or volume from the caches."""
        return self._stores[kind].get(Key(namespace, name))

    def services(self) -> list[Object]:
        """Services as this node's pods reach them."""
        found = self._stores["services"].objects()
        return found if self.runtime.tier == "T1" else [_on_loopback(service) for service in found]

    def after(self, seconds: float, callback: Callable[..., object], *arguments: Any) -> None:
        """Call back later, on the platform's clock."""
        self.clock.call_later(seconds, callback, *arguments)

    def event(
        self, pod: Object, type: Literal["Normal", "Warning"], reason: str, message: str, container: str = ""
    ) -> None:
        """An event about a pod."""
        del container
        self._recorder.event(pod, type, reason, message)

    async def facts(self, pod: Object, address: str) -> PodFacts:
        """What payload volumes of a pod may ask about; fetches the tokens they need. Raises ApiError."""
        tokens = await self.fetch_tokens(pod)
        return PodFacts(pod, self.host_address, address, self.allocatable, self.find, tokens)

    async def fetch_tokens(self, pod: Object) -> dict[str, str]:
        """The service account tokens a pod's volumes hold, by audience; asks for those that are missing or due."""
        wanted = audiences(pod["spec"].get("volumes") or [])
        metadata = pod["metadata"]
        held = self._tokens.setdefault(metadata["uid"], {})
        for audience, seconds in wanted.items():
            if audience in held and held[audience][1] > self.clock.time():
                continue
            request = {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {
                    "audiences": [audience] if audience else [],
                    "expirationSeconds": seconds,
                    "boundObjectRef": {
                        "apiVersion": "v1",
                        "kind": "Pod",
                        "name": metadata["name"],
                        "uid": metadata["uid"],
                    },
                },
            }
            account = pod["spec"].get("serviceAccountName") or "default"
            answer = await self.client.create(
                SERVICE_ACCOUNTS, request, metadata["namespace"], name=account, subresource="token"
            )
            # renewed at 80 % of its life, or after a day
            held[audience] = (answer["status"]["token"], self.clock.time() + min(seconds * 0.8, 86400.0))
        return {audience: token for audience, (token, _until) in held.items()}

    def tier_environment(self, pod: Object, container: Object, address: str) -> dict[str, str]:
        """Where pods have no addresses of their own by force, programs are told where to listen."""
        if self.runtime.tier == "T1" or pod["spec"].get("hostNetwork"):
            return {}
        ports = [port["containerPort"] for port in container.get("ports") or ()]
        told = {"HOST": address, "POD_IP": address}
        return {**told, "PORT": str(ports[0])} if ports else told

    # -- volumes that follow their sources

    def _source_changed(self, old: Object | None, new: Object | None) -> None:
        changed = new or old
        assert changed is not None
        namespace, name = changed["metadata"]["namespace"], changed["metadata"]["name"]
        for worker in self.workers.values():
            if worker.pod["metadata"]["namespace"] != namespace:
                continue
            if name in _sources(worker.pod):
                self._refresh(worker.uid)
            if not worker.state.sandbox or any(
                c.reason == "CreateContainerConfigError" for c in worker.state.containers.values()
            ):
                for container in worker.state.containers.values():
                    if container.reason == "CreateContainerConfigError":
                        container.retry_at = container.delay = 0.0
                worker.state.sandbox_retry_at = 0.0
                worker.wake()

    def _claim_changed(self, _old: Object | None, new: Object | None) -> None:
        if new is None:
            return
        for worker in self.workers.values():
            if not worker.state.sandbox and worker.state.sandbox_retry_at:
                worker.state.sandbox_retry_at = 0.0
                worker.wake()

    def _refresh(self, uid: str) -> None:
        self._stale.add(uid)
        if not self._refreshing:
            self._refreshing = True
            self.tasks.start("refresh-volumes", self._refresh_stale())

    async def _refresh_stale(self) -> None:
        try:
            await self.clock.sleep(REFRESH_DEBOUNCE)
            while self._stale:
                worker = self.workers.get(self._stale.pop())
                if worker is None or not worker.state.sandbox:
                    continue
                try:
                    facts = await self.facts(worker.pod, worker.state.address)
                    await asyncio.to_thread(self.volumes.refresh, facts)
                except (ApiError, OSError) as error:
                    log.warning("%s: volumes not refreshed: %s", worker.key, error)
        finally:
            self._refreshing = False

    async def _watch_tokens(self) -> None:
        while True:
            await self.clock.sleep(TOKEN_CHECK)
            now = self.clock.time()
            for uid, held in list(self._tokens.items()):
                if any(until <= now for _token, until in held.values()) and uid in self.workers:
                    self._refresh(uid)

    # -- the node

    async def register(self) -> None:
        """Create the Node (or bring it up to date) and post its status. Raises ApiError."""
        cgroup = self.runtime.cgroup if self.runtime.tier == "T1" else ""
        wanted = node_object.node(self.name, self.runtime.pod_range, self._labels, self._facts, cgroup)
        try:
            found = await self.client.get(NODES, self.name)
        except ApiError as error:
            if not error.not_found:
                raise
            found = await self.client.create(NODES, wanted)
        own = {name: wanted["metadata"][name] for name in ("labels", "annotations")}
        if found["spec"].get("podCIDR") != self.runtime.pod_range or any(
            not values.items() <= (found["metadata"].get(name) or {}).items() for name, values in own.items()
        ):
            patch = {"metadata": own, "spec": wanted["spec"]}
            with contextlib.suppress(ApiError):
                # podCIDR cannot change once set; a node that came back with another range keeps the old one on record
                found = await self.client.patch(NODES, self.name, patch)
        await self._post_status(found)
        await self._renew()
        self._recorder.event(found, "Normal", "Starting", "Starting kubelet.")

    async def _post_status(self, found: Object) -> None:
        self._facts = await asyncio.to_thread(node_object.machine, self.layout.base)
        status = node_object.status(
            self.name,
            self._facts,
            old=found,
            address=self.host_address,
            port=self.port,
            pods=self._max_pods,
            tier=self.runtime.tier,
            why=self.runtime.why,
            images=await asyncio.to_thread(self.images.listed),
            ready=self._runtime_up,
            now=self.clock.now(),
        )
        self.allocatable = status["allocatable"]
        await self.client.patch(NODES, self.name, {"status": status}, subresource="status")

    async def _node_status(self) -> None:
        posted = self.clock.monotonic()
        up = True
        while True:
            await self.clock.sleep(LEASE_EVERY)
            if self.clock.monotonic() - posted < STATUS_EVERY and up == self._runtime_up:
                continue
            posted, up = self.clock.monotonic(), self._runtime_up
            try:
                await self._post_status(await self.client.get(NODES, self.name))
            except ApiError as error:
                if error.not_found:
                    await self.register()
                else:
                    raise

    async def _beat(self) -> None:
        while True:
            await self.clock.sleep(LEASE_EVERY)
            await self._renew()

    async def _renew(self) -> None:
        stamp = format_micro_time(self.clock.now())
        spec = {"holderIdentity": self.name, "leaseDurationSeconds": node_object.LEASE_SECONDS, "renewTime": stamp}
        namespace = "kube-node-lease"
        try:
            await self.client.patch(LEASES, self.name, {"spec": spec}, namespace)
        except ApiError as error:
            if not error.not_found:
                raise
            lease = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self.name, "namespace": namespace},
                "spec": spec,
            }
            await self.client.create(LEASES, lease, namespace)


_GONE = "sampan.dev/object-is-gone"


def _sources(pod: Object) -> set[str]:
    """Names of the ConfigMaps and Secrets that volumes of a pod show."""
    names: set[str] = set()
    for volume in pod["spec"].get("volumes") or ():
        sources = [volume, *(dig(volume, "projected", "sources", default=()))]
        for source in sources:
            if part := source.get("configMap"):
                names.add(part.get("name", ""))
            if part := source.get("secret"):
                names.add(part.get("secretName") or part.get("name", ""))
    return names


def _on_loopback(service: Object) -> Object:
    """A Service as pods without addresses of their own reach it: by a forwarder on a loopback address."""
    spec, metadata = service["spec"], service["metadata"]
    if spec.get("clusterIP") in (None, "", "None"):
        return service
    if (metadata["namespace"], metadata["name"]) == ("default", "kubernetes"):
        # the API server is on this machine's own loopback; its port there needs no rights, as the Service's would
        ports = [{**port, "port": port["targetPort"]} for port in spec["ports"]]
        return {**service, "spec": {**spec, "clusterIP": "127.0.0.1", "ports": ports}}
    return {**service, "spec": {**spec, "clusterIP": loopback_address(spec["clusterIP"])}}
