"""One pod's worker: does what `plan` decides and keeps the pod's status true.

The worker owns the pod's `PodState`. Whatever happens (the object changed, a container ended, a probe spoke, an attempt failed)
is noted there and followed by `wake`; the loop then plans, begins the actions as tasks of their own, and hands the new status
to the agent's status writer. Nothing is done by polling, so an idle pod costs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sampan.kube.objects import Object, dig
from sampan.kube.status import ApiError
from sampan.parts.node.agent import launching
from sampan.parts.node.agent.environment import container_environment, service_variables
from sampan.parts.node.agent.payload import PodFacts
from sampan.parts.node.agent.plan import Action, End, Finish, Kill, SetUp, Start, TearDown, completed, crashed, plan
from sampan.parts.node.agent.probes import Kind, watch
from sampan.parts.node.agent.state import ContainerState, Ended, PodState, container_hash, next_delay, roles
from sampan.parts.node.agent.status import pod_status
from sampan.parts.node.agent.volumes import PodVolumes, memory_volumes
from sampan.parts.node.errors import ContainerConfigError, ImageError, NodeError, StartError, VolumeError
from sampan.parts.node.images.image import Image
from sampan.parts.node.images.reference import default_pull_policy
from sampan.parts.node.runtime.interface import Container, ExitRecord, SandboxSpec
from sampan.parts.node.runtime.process import LaunchFailedError

if TYPE_CHECKING:
    from sampan.parts.node.agent.agent import Agent

log = logging.getLogger(__name__)

TERMINATION_MESSAGE_LIMIT = 4096
FALLBACK_LINES, FALLBACK_BYTES = 80, 2048
SETUP_RETRY_FIRST, SETUP_RETRY_LIMIT = 0.5, 120.0
HOOK_OVERRUN = 2.0
"""Seconds a container still gets after a preStop hook used up the grace period."""


LISTEN_PATIENCE = 3.0
"""Seconds a built-in server may take to listen before it counts as ready all the same."""


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
        self._probes: dict[str, list[asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._kills: dict[str, asyncio.Event] = {}
        self.status: Object | None = None
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
            for event in self._kills.values():
                event.set()
        self.wake()

    def wake(self) -> None:
        """Look at the pod again."""
        self._woken.set()

    def adopt(self, address: str, containers: list[Container]) -> None:
        """Pick up what runs since before an agent restart."""
        self.state.sandbox, self.state.address = True, address
        known: dict[str, Object] = {}
        for status in [
            *dig(self.pod, "status", "containerStatuses", default=()),
            *dig(self.pod, "status", "initContainerStatuses", default=()),
        ]:
            state = self.state.containers.get(status["name"])
            known[(status.get("containerID") or "").rpartition("/")[2]] = status
            if state is not None:
                state.restarts = status.get("restartCount", 0)
                state.last = _ended(dig(status, "lastState", "terminated"))
                state.image, state.image_id = status.get("image", ""), status.get("imageID", "")
                state.ended = _ended(dig(status, "state", "terminated"))
        for container in sorted(containers, key=lambda one: (one.attempt, one.started_at)):
            state = self.state.containers.get(container.labels.get("container", ""))
            if state is None:
                continue
            state.id, state.restarts = container.id, max(container.attempt, state.restarts)
            state.hash = container.labels.get("hash", "")
            state.image, state.image_id = container.labels.get("image", ""), container.labels.get("image_id", "")
            state.started = container.started_at
            if container.exit is not None:
                state.running = True
                self._note_exit(container)
            else:
                state.running, state.ended = True, None
                # what was ready stays so until a probe says otherwise: an agent's restart takes nothing out of Services
                spec, status = self.spec_of(state.name), known.get(container.id, {})
                state.started_up = not spec.get("startupProbe") or bool(status.get("started"))
                state.ready = state.started_up and (not spec.get("readinessProbe") or bool(status.get("ready")))
                self._start_probes(state)
        mains = [state for state in self.state.containers.values() if state.role == "main"]
        self.state.initialized = any(state.id for state in mains)

    def exited(self, container: Container) -> None:
        """A process of this pod ended."""
        state = next((one for one in self.state.containers.values() if one.id == container.id), None)
        if state is not None and state.running:
            self._note_exit(container)
            self.wake()

    def lost(self) -> None:
        """Every process is gone with the keeper, and nobody can tell how it ended."""
        now = self.agent.clock.time()
        for state in self.state.containers.values():
            if state.running:
                record = ExitRecord(137, now, error="lost")
                self._note_exit(Container(state.id, self.uid, state.name, state.restarts, state.started, exit=record))
        self.sandbox_lost()

    def sandbox_lost(self) -> None:
        """The sandbox is gone: it will be made anew."""
        self.state.sandbox = False
        self._stale = True
        self.wake()

    # -- the loop

    async def run(self) -> None:
        """Work until the object is gone."""
        while not self.gone:
            self._woken.clear()
            now = self.agent.clock.monotonic()
            over = completed(self.pod, self.state)
            if over in ("Succeeded", "Failed") and not self.state.finished:
                self.state.finished = "Succeeded" if over == "Succeeded" else "Failed"
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
        tasks = [*self._tasks, *(task for probes in self._probes.values() for task in probes)]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _begin(self, action: Action) -> None:
        match action:
            case SetUp():
                self.state.sandbox_busy = True
                self._task("set-up", self._set_up())
            case Start(name):
                self.state.containers[name].busy = "starting"
                self._task(f"start-{name}", self._start(self.state.containers[name]))
            case Kill(name, grace, reason, message):
                self.state.containers[name].busy = "killing"
                self._kills[name] = asyncio.Event()
                self._task(f"kill-{name}", self._kill(self.state.containers[name], grace, reason, message))
            case TearDown():
                self.state.sandbox_busy = True
                self._task("tear-down", self._tear_down())
            case Finish():
                self.state.sandbox_busy = True
                self._task("finish", self._finish())
            case End(reason, message):
                self.state.ending, self.state.ending_message = reason, message
                self._event("Normal" if reason == "DeadlineExceeded" else "Warning", reason, message)
                self.wake()

    def _task(self, name: str, work: object) -> None:
        assert asyncio.iscoroutine(work)
        task = self.agent.tasks.start(f"{self.key}/{name}", self._guarded(name, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, name: str, work: object) -> None:
        """A failure nobody foresaw must not take the node down: log it, and let the plan try again in a while."""
        assert asyncio.iscoroutine(work)
        try:
            await work
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
        status = pod_status(
            self.pod, self.state, self.agent.clock.monotonic(), self.agent.clock.time(), self.agent.host_address
        )
        if status != self.status:
            self.status = status
            self.agent.writer.write(self)

    # -- actions

    async def _set_up(self) -> None:
        """Sandbox, volumes, and the files every container sees."""
        state, agent = self.state, self.agent
        try:
            if self._stale:
                # there was a sandbox before: make sure nothing of it is left
                await agent.runtime.remove_sandbox(self.uid)
                self._stale = False
            # neither needs the other, and both take their time
            sandbox, _tokens = await asyncio.gather(
                agent.runtime.create_sandbox(self._sandbox_spec()), agent.fetch_tokens(self.pod)
            )
            # hostNetwork pods have the node's address
            state.address = sandbox.address or agent.host_address
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
        self._event("Warning", reason, str(error))
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
            hostname=self._hostname(),
            network=network,
            memory=tuple(memory_volumes(self.pod, self.agent.layout)),
            host_pid=bool(spec.get("hostPID")),
            host_ipc=bool(spec.get("hostIPC")),
            sysctls=sysctls,
        )

    def _hostname(self) -> str:
        hostname: str = self.pod["spec"].get("hostname") or self.pod["metadata"]["name"]
        return hostname[:63].rstrip("-.")

    def _write_files(self, facts: PodFacts) -> PodVolumes:
        directory = self.agent.layout.pod(self.uid)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "etc-hosts").write_text(launching.hosts_file(self.pod, self.state.address, self._hostname()))
        host = Path("/etc/resolv.conf")
        text = host.read_text() if host.exists() else ""
        (directory / "resolv.conf").write_text(
            launching.resolver_file(self.pod, self.agent.dns, self.agent.domain, text)
        )
        (directory / "hostname").write_text(self._hostname() + "\n")
        return self.agent.volumes.prepare(facts, self.agent.find)

    async def _start(self, state: ContainerState) -> None:
        """Image, configuration, process."""
        agent, spec = self.agent, self.spec_of(state.name)
        try:
            image = await self._image(state, spec)
            if image is None:
                return
            started = await self._launch(state, spec, image)
        except (ContainerConfigError, VolumeError) as error:
            self._wait_with(state, "CreateContainerConfigError", str(error), f"Error: {error}")
            return
        except (StartError, OSError) as error:
            await self._failed_start(state, error)
            return
        except NodeError as error:
            self._wait_with(state, error.reason, str(error), f"Error: {error}")
            return
        finally:
            state.busy = ""
            self.wake()
        self._event("Normal", "Started", f"Started container {state.name}", state.name)
        state.started = started.started_at
        if started.exit is not None and state.running:
            self._note_exit(started)
        if not state.running:
            return  # it has ended already, and `exited` noted it
        if hook := dig(spec, "lifecycle", "postStart"):
            outcome = await agent.handlers.run(hook, state.id, spec, self.state.address, 3600.0)
            if not outcome.ok and state.running:
                message = f"PostStartHook failed: {outcome.message}"
                self._event("Warning", "FailedPostStartHook", message, state.name)
                state.doomed, state.doomed_message = "Killing", "FailedPostStartHook"
                self.wake()
                return
        if not state.running:
            return
        state.started_up = not spec.get("startupProbe")
        state.ready = state.started_up and not spec.get("readinessProbe")
        port = launching.awaited_port(spec, image)
        if state.ready and port:
            state.ready = False
            name = f"listens-{state.name}"
            self.agent.tasks.start(f"{self.key}/{name}", self._guarded(name, self._until_listening(state, spec, port)))
        self._start_probes(state)
        self.wake()

    async def _until_listening(self, state: ContainerState, spec: Object, port: int) -> None:
        """A stand-in takes a moment longer to listen than what it stands for; nobody should be sent there before."""
        clock, identity = self.agent.clock, state.id
        began = clock.monotonic()
        handler = {"tcpSocket": {"port": port}}
        while state.id == identity and state.running and clock.monotonic() - began < LISTEN_PATIENCE:
            if (await self.agent.handlers.run(handler, identity, spec, self.state.address, 1.0)).ok:
                break
            await clock.sleep(0.01)
        if state.id == identity and state.running:
            state.ready = True
            self.wake()

    async def _image(self, state: ContainerState, spec: Object) -> Image | None:
        agent, clock = self.agent, self.agent.clock
        name = spec["image"]
        try:
            policy = spec.get("imagePullPolicy") or default_pull_policy(name)
            image = await agent.images.get(name, policy)
        except ImageError as error:
            now = clock.monotonic()
            if error.reason == "ErrImagePull":
                if state.reason not in ("ErrImagePull", "ImagePullBackOff"):
                    self._event("Normal", "Pulling", f'Pulling image "{name}"', state.name)
                self._event("Warning", "Failed", f'Failed to pull image "{name}": {error}', state.name)
            else:
                self._event("Warning", "Failed", str(error), state.name)
            self._event("Warning", "Failed", f"Error: {error.reason}", state.name)
            state.reason, state.message = error.reason, str(error)
            state.delay = next_delay(state.delay)
            state.retry_at = now + state.delay
            if error.reason == "ErrImagePull":
                agent.after(1.0, self._back_off_image, state, name)
            return None
        message = f'Container image "{name}" already present on machine'
        self._event("Normal", "Pulled", message, state.name)
        if state.reason in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"):
            state.delay = 0.0
        state.image = name
        state.image_id = (
            image.id if image.builtin else f"{image.name.partition('@')[0].rpartition(':')[0]}@{image.digest}"
        )
        self.images[state.name] = image
        return image

    def _back_off_image(self, state: ContainerState, name: str) -> None:
        if state.reason == "ErrImagePull" and not state.running and not self.gone:
            state.reason, state.message = (
                "ImagePullBackOff",
                f'Back-off pulling image "{name}": ErrImagePull: {state.message}',
            )
            self._event("Normal", "BackOff", f'Back-off pulling image "{name}"', state.name)
            self._event("Warning", "Failed", "Error: ImagePullBackOff", state.name)
            self.wake()

    async def _launch(self, state: ContainerState, spec: Object, image: Image) -> Container:
        agent = self.agent
        enabled = self.pod["spec"].get("enableServiceLinks") is not False
        namespace = self.pod["metadata"]["namespace"]
        base = {"HOSTNAME": self._hostname(), **image.env}
        env, skipped = container_environment(
            self.pod,
            spec,
            base=base,
            services=service_variables(agent.services(), namespace, enabled),
            find=agent.find,
            host=agent.host_address,
            address=self.state.address,
            allocatable=agent.allocatable,
        )
        env = {**agent.tier_environment(self.pod, spec, self.state.address), **env}
        if skipped:
            message = f"Keys [{', '.join(skipped)}] from the EnvFrom sources were skipped since they are considered invalid environment variable names."
            self._event("Warning", "InvalidEnvironmentVariableNames", message, state.name)
        again = bool(state.id)
        identity = uuid.uuid4().hex
        if again:
            state.restarts += 1
        directory = agent.layout.pod(self.uid)
        termination = agent.layout.container(self.uid, identity) / "termination-log"
        termination.parent.mkdir(parents=True, exist_ok=True)
        termination.touch()
        termination.chmod(0o666)
        files = {"/etc/resolv.conf": str(directory / "resolv.conf"), "/etc/hostname": str(directory / "hostname")}
        if not self.pod["spec"].get("hostNetwork") or self.pod["spec"].get("hostAliases"):
            files["/etc/hosts"] = str(directory / "etc-hosts")
        state.hash = container_hash(spec)
        runtime_spec = launching.container_spec(
            self.pod,
            spec,
            state,
            image,
            env,
            self.volumes,
            identity=identity,
            log=agent.layout.log(self.uid, state.name, state.restarts),
            files=files,
            termination_log=termination,
            isolated=agent.runtime.isolation != "none",
            log_size=agent.log_size,
            log_files=agent.log_files,
        )
        previous = state.id
        state.last = state.ended or state.last
        state.ended = None
        state.id, state.reason, state.message = identity, "", ""
        state.doomed = state.doomed_message = ""
        state.grace = None
        state.ready = state.started_up = False
        state.running, state.started = True, agent.clock.time()
        agent.by_container[identity] = self
        self._event("Normal", "Created", f"Created container: {state.name}", state.name)
        if again:
            state.delay = next_delay(state.delay)
        if previous:
            agent.by_container.pop(previous, None)
            self._task(f"forget-{previous[:8]}", self._forget(previous))
        return await agent.runtime.start_container(runtime_spec)

    async def _forget(self, container: str) -> None:
        with contextlib.suppress(NodeError):
            await self.agent.runtime.remove_container(container)

    async def _failed_start(self, state: ContainerState, error: Exception) -> None:
        """The process never ran: what the runtime says becomes the container's end."""
        now = self.agent.clock.time()
        code = error.code if isinstance(error, LaunchFailedError) else 128
        message = f"failed to start container: {error}"
        state.running = False
        state.ended = Ended(128 if code in (126, 127) else code, now, now, 0, "StartError", message, state.id)
        state.reason, state.message = "RunContainerError", message
        crashed(state, self.agent.clock.monotonic())
        if not state.delay:
            state.delay = next_delay(0.0)
            state.retry_at = self.agent.clock.monotonic() + state.delay
        self._event("Warning", "Failed", f"Error: {message}", state.name)

    def _wait_with(self, state: ContainerState, reason: str, message: str, event: str) -> None:
        changed = (state.reason, state.message) != (reason, message)
        state.reason, state.message = reason, message
        state.delay = min(max(0.5, state.delay * 2), 60.0)
        state.retry_at = self.agent.clock.monotonic() + state.delay
        if changed:
            self._event("Warning", "Failed", event, state.name)

    async def _kill(self, state: ContainerState, grace: float, reason: str, message: str) -> None:
        """preStop hook, stop signal, grace, SIGKILL; returns once the process has ended."""
        agent, clock, spec = self.agent, self.agent.clock, self.spec_of(state.name)
        state.ready = False
        if message:
            self._event("Normal", reason or "Killing", message, state.name)
        self._stop_probes(state)
        deadline = clock.monotonic() + grace
        hook = dig(spec, "lifecycle", "preStop")
        if hook and grace > 0 and state.running:
            outcome = await agent.handlers.run(hook, state.id, spec, self.state.address, grace)
            if not outcome.ok:
                self._event("Warning", "FailedPreStopHook", f"PreStopHook failed: {outcome.message}", state.name)
            deadline = max(deadline, clock.monotonic() + HOOK_OVERRUN)
        image = self.images.get(state.name)
        name = dig(spec, "lifecycle", "stopSignal") or (image.config.stop_signal if image else "") or "SIGTERM"
        if state.running and grace > 0:
            await agent.runtime.signal(state.id, _signal(name))
        while state.running:
            left = deadline - clock.monotonic()
            if left <= 0:
                await agent.runtime.signal(state.id, signal.SIGKILL, everyone=True)
                left = 5.0
            event = self._kills.get(state.name) or asyncio.Event()
            event.clear()
            if self.pod["metadata"].get("deletionTimestamp"):
                asked = self.pod["metadata"].get("deletionGracePeriodSeconds")
                if asked is not None and asked < grace:
                    deadline = min(deadline, clock.monotonic() + asked)
                    grace = asked
                    left = max(0.0, deadline - clock.monotonic())
            with contextlib.suppress(TimeoutError):
                async with clock.timeout(max(0.001, left)):
                    await event.wait()
        state.busy = ""
        self._kills.pop(state.name, None)
        self.wake()

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
            if not error.not_found and not error.conflict:
                await self.agent.clock.sleep(1.0)
                self.state.sandbox_busy = False
                self.wake()
                return
        self.state.sandbox_busy = True

    # -- ends and probes

    def _note_exit(self, container: Container) -> None:
        state = next(one for one in self.state.containers.values() if one.id == container.id)
        record = container.exit
        assert record is not None
        self._stop_probes(state)
        state.running = state.ready = state.started_up = False
        reason = "OOMKilled" if record.oom else "Completed" if record.code == 0 else "Error"
        message = ""
        if record.error == "lost":
            reason, message = "ContainerStatusUnknown", "The container could not be located when the pod was terminated"
        elif record.error:
            reason, message = "StartError", f"failed to start container: {record.error}"
        else:
            message = self._termination_message(state, record.code)
        state.ended = Ended(
            128 if record.error and record.error != "lost" else record.code,
            record.finished_at,
            container.started_at or state.started,
            record.signal,
            reason,
            message,
            container.id,
        )
        crashed(state, self.agent.clock.monotonic())
        if state.delay and self.state.sandbox and not self.pod["metadata"].get("deletionTimestamp"):
            name = f"{self.pod['metadata']['name']}_{self.pod['metadata']['namespace']}({self.uid})"
            text = f"Back-off restarting failed container {state.name} in pod {name}"
            policy = self.pod["spec"].get("restartPolicy") or "Always"
            if policy == "Always" or (policy == "OnFailure" and record.code):
                self._event("Warning", "BackOff", text, state.name)
        if event := self._kills.get(state.name):
            event.set()

    def _termination_message(self, state: ContainerState, code: int) -> str:
        """What the container left at its termination path, else the end of its log if asked. Small files only."""
        path = self.agent.layout.container(self.uid, state.id) / "termination-log"
        try:
            with path.open("rb") as file:
                text = file.read(TERMINATION_MESSAGE_LIMIT).decode(errors="replace")
        except OSError:
            text = ""
        spec = self.spec_of(state.name)
        if text or code == 0 or spec.get("terminationMessagePolicy") != "FallbackToLogsOnError":
            return text
        try:
            with self.agent.layout.log(self.uid, state.name, state.restarts).open("rb") as file:
                file.seek(0, 2)
                file.seek(max(0, file.tell() - 16384))
                lines = file.read().decode(errors="replace").splitlines()[-FALLBACK_LINES:]
        except OSError:
            return ""
        return "\n".join(line.split(" ", 3)[3] for line in lines if line.count(" ") >= 3)[-FALLBACK_BYTES:]

    def _start_probes(self, state: ContainerState) -> None:
        spec = self.spec_of(state.name)
        kinds: list[Kind] = (
            ["startup"] if spec.get("startupProbe") and not state.started_up else ["liveness", "readiness"]
        )
        for kind in kinds:
            probe = spec.get(f"{kind}Probe")
            if not probe:
                continue
            identity = state.id

            def verdict(kind: Kind, ok: bool, message: str, identity: str = identity) -> None:
                self._verdict(state, identity, kind, ok, message)

            def failed(kind: Kind, message: str, identity: str = identity) -> None:
                if state.id == identity and state.running:
                    self._event("Warning", "Unhealthy", f"{kind.capitalize()} probe failed: {message}", state.name)

            jitter = (int(self.uid.replace("-", "")[:6] or "0", 16) % 100) / 100
            work = watch(
                kind,
                probe,
                handlers=self.agent.handlers,
                container=state.id,
                spec=spec,
                address=self.state.address,
                clock=self.agent.clock,
                verdict=verdict,
                failed=failed,
                jitter=jitter,
            )
            task = self.agent.tasks.start(
                f"{self.key}/{kind}-{state.name}", self._guarded(f"{kind}-{state.name}", work)
            )
            self._probes.setdefault(state.name, []).append(task)

    def _stop_probes(self, state: ContainerState) -> None:
        for task in self._probes.pop(state.name, ()):
            if task is not asyncio.current_task():
                task.cancel()

    def _verdict(self, state: ContainerState, identity: str, kind: Kind, ok: bool, message: str) -> None:
        if state.id != identity or not state.running:
            return
        spec = self.spec_of(state.name)
        if kind == "readiness":
            state.ready = ok
        elif ok:
            if kind == "startup":
                state.started_up = True
                state.ready = not spec.get("readinessProbe")
                self._start_probes(state)
        else:
            probe = spec[f"{kind}Probe"]
            state.doomed = "Killing"
            state.doomed_message = f"Container {state.name} failed {kind} probe, will be restarted"
            state.grace = probe.get("terminationGracePeriodSeconds")
        self.wake()

    # -- small things

    def _sync_containers(self) -> None:
        for spec, role in roles(self.pod):
            if spec["name"] not in self.state.containers:
                self.state.containers[spec["name"]] = ContainerState(spec["name"], role)

    def spec_of(self, name: str) -> Object:
        """A container's spec."""
        return next(spec for spec, _ in roles(self.pod) if spec["name"] == name)

    def _event(self, type: Literal["Normal", "Warning"], reason: str, message: str, container: str = "") -> None:
        self.agent.event(self.pod, type, reason, message, container)


def _signal(name: str) -> int:
    if name.isdigit():
        return int(name)
    try:
        return int(signal.Signals[name if name.startswith("SIG") else f"SIG{name}"])
    except KeyError:
        return int(signal.SIGTERM)


def _ended(terminated: Object | None) -> Ended | None:
    if not terminated:
        return None
    from sampan.kube.types.duration import parse_time

    def seconds(name: str) -> float:
        return parse_time(terminated[name]).timestamp() if terminated.get(name) else 0.0

    return Ended(
        terminated["exitCode"],
        seconds("finishedAt"),
        seconds("startedAt"),
        terminated.get("signal", 0),
        terminated.get("reason", ""),
        terminated.get("message", ""),
        (terminated.get("containerID") or "").rpartition("/")[2],
    )
