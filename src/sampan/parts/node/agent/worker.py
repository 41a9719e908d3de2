"""One pod's worker: does what `plan` decides and keeps the pod's status true.

The worker owns the pod's `PodState`. Whatever happens (the object changed, a container ended, a probe spoke, an attempt failed)
is noted there and followed by `wake`; the loop then plans, begins the actions as tasks of their own, and hands the new status
to the agent's status writer. Nothing is done by polling, so an idle pod costs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sampan.kube.objects import Object, dig
from sampan.kube.status import ApiError
from sampan.parts.node.agent import launching
from sampan.parts.node.agent.ending import Ending
from sampan.parts.node.agent.payload import PodFacts
from sampan.parts.node.agent.plan import Action, End, Finish, Kill, SetUp, Start, TearDown, completed, plan
from sampan.parts.node.agent.probing import Probing
from sampan.parts.node.agent.resizing import Resizing
from sampan.parts.node.agent.starting import Starting
from sampan.parts.node.agent.state import ContainerState, PodState, roles
from sampan.parts.node.agent.status import pod_status
from sampan.parts.node.agent.volumes import PodVolumes, memory_volumes
from sampan.parts.node.errors import NodeError
from sampan.parts.node.images.image import Image
from sampan.parts.node.runtime.interface import Container, ExitRecord, SandboxSpec

if TYPE_CHECKING:
    from sampan.parts.node.agent.agent import Agent

log = logging.getLogger(__name__)

Work = Callable[[], Coroutine[Any, Any, None]]

SETUP_RETRY_FIRST, SETUP_RETRY_LIMIT = 0.5, 120.0


class PodWorker:
    """Makes one pod real."""

    def __init__(self, agent: Agent, pod: Object) -> None:
        self.agent = agent
        self.pod = pod
        self.uid: str = pod["metadata"]["uid"]
        self.state = PodState(started=agent.clock.time())
        self.volumes = PodVolumes()
        self.images: dict[str, Image] = {}
        self._woken = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.kills: dict[str, asyncio.Event] = {}
        """Containers that are being ended; set when there is news of one."""
        self.starting = Starting(self)
        self.ending = Ending(self)
        self.probing = Probing(self)
        self.resizing = Resizing(self)
        self.status: Object | None = None
        self.told: set[str] = set()
        """Passing conditions that its written status may have."""
        self.written = 0
        """The object's revision when its status was last written."""
        self.amended = -math.inf
        """When it was last written again because the object said something else."""
        self.gone = False
        self._stale = False
        """A sandbox of this pod has been lost, and may not be cleared away yet."""
        self._sync_containers()

    # -- what others tell

    @property
    def key(self) -> str:
        return f"{self.pod['metadata']['namespace']}/{self.pod['metadata']['name']}"

    def update(self, pod: Object) -> None:
        """The object changed."""
        self.pod = pod
        self._sync_containers()
        if pod["metadata"].get("deletionTimestamp"):
            # a shorter grace period (a second, forced delete) applies to what is being ended already
            for event in self.kills.values():
                event.set()
        self.wake()

    def wake(self) -> None:
        """Look at the pod again."""
        self._woken.set()

    def exited(self, container: Container) -> None:
        """A process of this pod ended; a no-op once the pod is `gone`, when nobody is left to look at it."""
        if self.gone:
            return
        state = next((one for one in self.state.containers.values() if one.id == container.id), None)
        if state is not None and state.running:
            self.ending.note(container)
            self.wake()

    def lost(self) -> None:
        """Every process is gone with the keeper, and nobody can tell how it ended."""
        now = self.agent.clock.time()
        for state in self.state.containers.values():
            if state.running:
                record = ExitRecord(137, now, error="lost")
                self.ending.note(Container(state.id, self.uid, state.name, state.restarts, state.started, exit=record))
        self.sandbox_lost()

    def sandbox_lost(self) -> None:
        """The sandbox is gone: it will be made anew."""
        self.state.sandbox = False
        self._stale = True
        self.wake()

    def evict(self, message: str, grace: float, *, disruption: bool = False) -> None:
        """End the pod as Failed for what it takes; ``disruption``: for the sake of the node, not for a limit of its own."""
        if self.state.ending or self.state.finished:
            return
        self.state.ending, self.state.ending_message, self.state.ending_grace = "Evicted", message, grace
        self.state.disrupted = message if disruption else ""
        self.event("Warning", "Evicted", message)
        self.wake()

    # -- the loop

    def run(self) -> None:
        """Begin to work, until the object is gone or `cancel`."""
        self._loop = self.agent.tasks.start(f"{self.key}/pod", self._run())

    async def _run(self) -> None:
        """One pod's trouble stays one pod's trouble."""
        await self.agent.sources.follow(self.pod)
        while not self.gone:
            try:
                await self._work()
            except Exception:
                log.exception("%s: the worker failed; going on", self.key)
                await self.agent.clock.sleep(1.0)

    async def _work(self) -> None:
        while not self.gone:
            self._woken.clear()
            now = self.agent.clock.monotonic()
            over = completed(self.pod, self.state)
            if over in ("Succeeded", "Failed") and not self.state.finished:
                self.state.finished = "Succeeded" if over == "Succeeded" else "Failed"
            self.resizing.review()
            decision = plan(self.pod, self.state, now, self.agent.clock.time())
            for action in decision.actions:
                self._begin(action)
            self._report()
            timeout = None
            for container in self.state.containers.values():
                if container.retry_at > now:
                    decision.wait(container.retry_at)
            if decision.look_again_at is not None:
                timeout = max(0.0, decision.look_again_at - self.agent.clock.monotonic()) + 0.001
            with contextlib.suppress(TimeoutError):
                async with self.agent.clock.timeout(timeout):
                    await self._woken.wait()

    async def cancel(self) -> None:
        """Let go of everything under way (the processes go on)."""
        tasks = [task for task in (self._loop, *self._tasks) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def release(self) -> None:
        """Let go of what refers back here, after `cancel` and for good: so the pod's objects go now, not at some later collection."""
        self._loop = None
        del self.starting, self.ending, self.probing, self.resizing

    def _begin(self, action: Action) -> None:
        match action:
            case SetUp():
                self.state.sandbox_busy = True
                self.begin("set-up", self._set_up)
            case Start(name):
                self.state.containers[name].busy = "starting"
                self.begin(f"start-{name}", partial(self.starting.start, self.state.containers[name]))
            case Kill(name, grace, reason, message):
                self.state.containers[name].busy = "killing"
                self.kills[name] = asyncio.Event()
                end = partial(self.ending.kill, self.state.containers[name], grace, reason, message)
                self.begin(f"kill-{name}", end)
            case TearDown():
                self.state.sandbox_busy = True
                self.begin("tear-down", self._tear_down)
            case Finish():
                self.state.sandbox_busy = True
                self.begin("finish", self._finish)
            case End(reason, message):
                self.state.ending, self.state.ending_message = reason, message
                self.event("Normal" if reason == "DeadlineExceeded" else "Warning", reason, message)
                self.wake()

    def begin(self, name: str, work: Work) -> asyncio.Task[None]:
        """Do something as a task of this pod's."""
        # the coroutine is made inside the task: one that is cancelled before it began would never be awaited
        task = self.agent.tasks.start(f"{self.key}/{name}", self._guarded(name, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _guarded(self, name: str, work: Work) -> None:
        """A failure nobody foresaw must not take the node down: log it, and let the plan try again in a while."""
        try:
            await work()
        except Exception:
            log.exception("%s: %s failed", self.key, name)
            await self.agent.clock.sleep(1.0)
            if name in ("set-up", "tear-down", "finish"):
                self.state.sandbox_busy = False
            for container in self.state.containers.values():
                if name in (f"start-{container.name}", f"kill-{container.name}"):
                    container.busy = ""
        self.wake()

    def _report(self) -> None:
        clock = self.agent.clock
        status = pod_status(self.pod, self.state, clock.monotonic(), clock.time(), self.agent.host_address, self.status)
        if status != self.status:
            self.status = status
            self.agent.writer.write(self)

    # -- actions

    async def _set_up(self) -> None:
        """Sandbox, volumes, and the files every container sees."""
        state, agent = self.state, self.agent
        match launching.apparmor(self.pod):
            case "Localhost":
                state.ending, state.sandbox_busy = "AppArmor", False
                state.ending_message = "Cannot enforce AppArmor: AppArmor is not enabled on the host"
                self.event("Warning", "AppArmor", state.ending_message)
                self.wake()
                return
            case "RuntimeDefault":
                self.event("Warning", "AppArmor", "The default AppArmor profile is not enforced on this node")
        try:
            if self._stale:
                # there was a sandbox before: make sure nothing of it is left
                await agent.runtime.remove_sandbox(self.uid)
                self._stale = False
            # neither needs the other, and both take their time
            sandbox, _tokens = await asyncio.gather(
                agent.runtime.create_sandbox(self._sandbox_spec()), agent.tokens.fetch(self.pod)
            )
            # hostNetwork pods have the node's address
            state.address = sandbox.address or agent.host_address
            agent.on_address(self.pod, state.address, False)
            facts = await agent.facts(self.pod, state.address)
            self.volumes = await asyncio.to_thread(self._write_files, facts)
            for name, image in self.volumes.images.items():
                found = await agent.images.get(image["reference"], image.get("pullPolicy") or "IfNotPresent")
                self.volumes.places[name] = found.layers[0] if found.layers else str(agent.layout.skeleton)
        except (NodeError, ApiError, OSError) as error:
            self._set_up_failed(error)
            return
        state.sandbox, state.sandbox_busy, state.sandbox_delay = True, False, 0.0
        self.wake()

    def _set_up_failed(self, error: Exception) -> None:
        state, agent = self.state, self.agent
        reason = error.reason if isinstance(error, NodeError) else "FailedCreatePodSandBox"
        self.event("Warning", reason, str(error))
        state.sandbox_delay = min(max(SETUP_RETRY_FIRST, state.sandbox_delay * 2), SETUP_RETRY_LIMIT)
        state.sandbox_retry_at = agent.clock.monotonic() + state.sandbox_delay
        state.sandbox_busy = False
        self.wake()

    def _sandbox_spec(self) -> SandboxSpec:
        spec, metadata = self.pod["spec"], self.pod["metadata"]
        network: Literal["pod", "host", "namespace"] = "pod"
        if spec.get("hostNetwork"):
            network = "host"
        elif dig(metadata, "annotations", "sampan.dev/network") == "namespace":
            network = "namespace"
        sysctls = {item["name"]: item["value"] for item in dig(spec, "securityContext", "sysctls", default=())}
        return SandboxSpec(
            id=self.uid,
            name=metadata["name"],
            namespace=metadata["namespace"],
            hostname=self.hostname(),
            network=network,
            memory=tuple(memory_volumes(self.pod, self.agent.layout)),
            host_pid=bool(spec.get("hostPID")),
            host_ipc=bool(spec.get("hostIPC")),
            sysctls=sysctls,
            names=self.agent.names(self.pod),
        )

    def hostname(self) -> str:
        hostname: str = self.pod["spec"].get("hostname") or self.pod["metadata"]["name"]
        return hostname[:63].rstrip("-.")

    def _write_files(self, facts: PodFacts) -> PodVolumes:
        directory = self.agent.layout.pod(self.uid)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "etc-hosts").write_text(launching.hosts_file(self.pod, self.state.address, self.hostname()))
        host = Path("/etc/resolv.conf")
        text = host.read_text() if host.exists() else ""
        (directory / "resolv.conf").write_text(
            launching.resolver_file(self.pod, self.agent.dns, self.agent.domain, text)
        )
        (directory / "hostname").write_text(self.hostname() + "\n")
        return self.agent.volumes.prepare(facts, self.agent.find)

    async def _tear_down(self) -> None:
        """Nothing runs any more: give back sandbox and volumes."""
        await self.agent.runtime.remove_sandbox(self.uid)
        for container in self.state.containers.values():
            self.agent.by_container.pop(container.id, None)
        await asyncio.to_thread(self.agent.volumes.remove, self.uid)
        self.state.sandbox = False
        self.state.removed, self.state.sandbox_busy = True, False
        self.wake()

    async def _finish(self) -> None:
        """The final status is written; take the object away."""
        await self.agent.writer.flush(self)
        try:
            await self.agent.delete_pod(self.pod)
        except ApiError as error:
            if not error.not_found:
                # also after a conflict: if it says that this pod is gone, the worker is dropped before it asks again
                await self.agent.clock.sleep(1.0)
                self.state.sandbox_busy = False
                self.wake()
                return
        self.state.sandbox_busy = True

    # -- small things

    def _sync_containers(self) -> None:
        for spec, role in roles(self.pod):
            if spec["name"] not in self.state.containers:
                self.state.containers[spec["name"]] = ContainerState(spec["name"], role)

    def spec_of(self, name: str) -> Object:
        """A container's spec."""
        return next(spec for spec, _ in roles(self.pod) if spec["name"] == name)

    def event(self, type: Literal["Normal", "Warning"], reason: str, message: str, container: str = "") -> None:
        self.agent.event(self.pod, type, reason, message, container)
