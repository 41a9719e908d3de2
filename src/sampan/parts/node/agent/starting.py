"""Starting a container: its image, its configuration, its process, its postStart hook; and what is told when that fails."""

from __future__ import annotations

import contextlib
import logging
import uuid
from functools import partial
from typing import TYPE_CHECKING

from sampan.kernel.clock import Clock
from sampan.kube.objects import Object, dig
from sampan.parts.node.agent import launching
from sampan.parts.node.agent.environment import container_environment, service_variables
from sampan.parts.node.agent.plan import crashed
from sampan.parts.node.agent.state import ContainerState, Ended, container_hash, next_delay
from sampan.parts.node.errors import ContainerConfigError, ImageError, NodeError, StartError, VolumeError
from sampan.parts.node.images.image import Image
from sampan.parts.node.images.reference import Reference, default_pull_policy
from sampan.parts.node.runtime.interface import Container
from sampan.parts.node.runtime.process import LaunchFailedError

if TYPE_CHECKING:
    from sampan.parts.node.agent.worker import PodWorker

log = logging.getLogger(__name__)

LISTEN_PATIENCE = 3.0
"""Seconds after which a built-in server that rests without listening counts as ready all the same."""
LISTEN_LIMIT = 60.0
AT_REST = 2_000_000
"""Nanoseconds of a processor that half a second of rest may take."""


class Starting:
    """Starts the containers of one pod."""

    def __init__(self, worker: PodWorker) -> None:
        self._worker = worker

    async def start(self, state: ContainerState) -> None:
        """Image, configuration, process."""
        agent, spec = self._worker.agent, self._worker.spec_of(state.name)
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
        except Exception as error:
            # nobody foresaw it: it is said where the user looks, and tried again later and later
            log.exception("%s: container %s cannot be started", self._worker.key, state.name)
            message = f"{type(error).__name__}: {error}"
            self._wait_with(state, "CreateContainerError", message, f"Error: {message}")
            return
        finally:
            state.busy = ""
            self._worker.wake()
        agent.on_address(self._worker.pod, self._worker.state.address, True)
        self._worker.event("Normal", "Started", f"Started container {state.name}", state.name)
        state.started = started.started_at
        if started.exit is not None and state.running:
            self._worker.ending.note(started)
        if not state.running:
            return  # it has ended already, and `exited` noted it
        if hook := dig(spec, "lifecycle", "postStart"):
            outcome = await agent.handlers.run(hook, state.id, spec, self._worker.state.address, 3600.0)
            if not outcome.ok and state.running:
                message = f"PostStartHook failed: {outcome.message}"
                self._worker.event("Warning", "FailedPostStartHook", message, state.name)
                state.doomed, state.doomed_message = "Killing", "FailedPostStartHook"
                self._worker.wake()
                return
        if not state.running:
            return
        state.started_up = not spec.get("startupProbe")
        state.ready = state.started_up and not spec.get("readinessProbe")
        port = launching.awaited_port(spec, image)
        if state.ready and port:
            state.ready = False
            self._worker.begin(f"listens-{state.name}", partial(self._until_listening, state, spec, port))
        self._worker.probing.start(state)
        self._worker.wake()

    async def _until_listening(self, state: ContainerState, spec: Object, port: int) -> None:
        """A stand-in takes a moment longer to listen than what it stands for; nobody should be sent there before."""
        clock, identity = Clock(), state.id  # programs start on the machine's time, also while the platform is frozen
        began, agent, spent = clock.monotonic(), self._worker.agent, -1
        handler = {"tcpSocket": {"port": port}}
        while state.id == identity and state.running:
            if (await agent.handlers.run(handler, identity, spec, self._worker.state.address, 1.0)).ok:
                break
            waited = clock.monotonic() - began
            if waited >= LISTEN_PATIENCE:
                # on a busy machine it may still be on its way up: then it works; one that rests will not listen there
                with contextlib.suppress(NodeError):
                    usage = (await agent.runtime.usage([identity])).get(identity)
                    before, spent = spent, usage.cpu_ns if usage is not None else 0
                    if waited >= LISTEN_LIMIT or (before >= 0 and spent - before < AT_REST):
                        break
            await clock.sleep(max(0.01, min(0.5, waited / 5)))
        if state.id == identity and state.running:
            state.ready = True
            self._worker.wake()

    async def _image(self, state: ContainerState, spec: Object) -> Image | None:
        agent, clock = self._worker.agent, self._worker.agent.clock
        name = spec["image"]
        try:
            policy = spec.get("imagePullPolicy") or default_pull_policy(name)
            image = await agent.images.get(name, policy)
        except ImageError as error:
            now = clock.monotonic()
            if error.reason == "ErrImagePull":
                if state.reason not in ("ErrImagePull", "ImagePullBackOff"):
                    self._worker.event("Normal", "Pulling", f'Pulling image "{name}"', state.name)
                self._worker.event("Warning", "Failed", f'Failed to pull image "{name}": {error}', state.name)
            else:
                self._worker.event("Warning", "Failed", str(error), state.name)
            self._worker.event("Warning", "Failed", f"Error: {error.reason}", state.name)
            state.reason, state.message = error.reason, str(error)
            state.delay = next_delay(state.delay)
            state.retry_at = now + state.delay
            if error.reason == "ErrImagePull":
                agent.after(1.0, self._back_off_image, state, name)
            return None
        message = f'Container image "{name}" already present on machine'
        self._worker.event("Normal", "Pulled", message, state.name)
        if state.reason in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"):
            state.delay = 0.0
        state.image = name
        state.image_id = image.id if image.builtin else f"{Reference.parse(image.name).repository}@{image.digest}"
        self._worker.images[state.name] = image
        return image

    def _back_off_image(self, state: ContainerState, name: str) -> None:
        if state.reason == "ErrImagePull" and not state.running and not self._worker.gone:
            state.reason, state.message = (
                "ImagePullBackOff",
                f'Back-off pulling image "{name}": ErrImagePull: {state.message}',
            )
            self._worker.event("Normal", "BackOff", f'Back-off pulling image "{name}"', state.name)
            self._worker.event("Warning", "Failed", "Error: ImagePullBackOff", state.name)
            self._worker.wake()

    async def _launch(self, state: ContainerState, spec: Object, image: Image) -> Container:
        agent = self._worker.agent
        enabled = self._worker.pod["spec"].get("enableServiceLinks") is not False
        namespace = self._worker.pod["metadata"]["namespace"]
        base = {"HOSTNAME": self._worker.hostname(), **image.env}
        env, skipped = container_environment(
            self._worker.pod,
            spec,
            base=base,
            services=service_variables(agent.services(), namespace, enabled),
            find=agent.find,
            host=agent.host_address,
            address=self._worker.state.address,
            allocatable=agent.allocatable,
        )
        env = {**agent.tier_environment(self._worker.pod, spec, self._worker.state.address), **env}
        if skipped:
            message = f"Keys [{', '.join(skipped)}] from the EnvFrom sources were skipped since they are considered invalid environment variable names."
            self._worker.event("Warning", "InvalidEnvironmentVariableNames", message, state.name)
        again = bool(state.id)
        identity = uuid.uuid4().hex
        if again:
            state.restarts += 1
        directory = agent.layout.pod(self._worker.uid)
        termination = agent.layout.container(self._worker.uid, identity) / "termination-log"
        termination.parent.mkdir(parents=True, exist_ok=True)
        termination.touch()
        termination.chmod(0o666)
        files = {"/etc/resolv.conf": str(directory / "resolv.conf"), "/etc/hostname": str(directory / "hostname")}
        if not self._worker.pod["spec"].get("hostNetwork") or self._worker.pod["spec"].get("hostAliases"):
            files["/etc/hosts"] = str(directory / "etc-hosts")
        state.hash = container_hash(spec)
        resources = state.allocated if state.allocated is not None else spec.get("resources") or {}
        runtime_spec = launching.container_spec(
            self._worker.pod,
            {**spec, "resources": resources},
            state,
            image,
            env,
            self._worker.volumes,
            identity=identity,
            log=agent.layout.log(self._worker.uid, state.name, state.restarts),
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
        state.applied, state.resize_error = resources, ""
        state.grace = None
        state.ready = state.started_up = False
        state.running, state.started = True, agent.clock.time()
        agent.by_container[identity] = self._worker
        self._worker.event("Normal", "Created", f"Created container: {state.name}", state.name)
        if again:
            state.delay = next_delay(state.delay)
        if previous:
            agent.by_container.pop(previous, None)
            self._worker.begin(f"forget-{previous[:8]}", partial(self._forget, previous))
        return await agent.runtime.start_container(runtime_spec)

    async def _forget(self, container: str) -> None:
        with contextlib.suppress(NodeError):
            await self._worker.agent.runtime.remove_container(container)

    async def _failed_start(self, state: ContainerState, error: Exception) -> None:
        """The process never ran: what the runtime says becomes the container's end."""
        now = self._worker.agent.clock.time()
        code = error.code if isinstance(error, LaunchFailedError) else 128
        message = f"failed to start container: {error}"
        state.running = False
        state.ended = Ended(128 if code in (126, 127) else code, now, now, 0, "StartError", message, state.id)
        state.reason, state.message = "RunContainerError", message
        crashed(state, self._worker.agent.clock.monotonic())
        if not state.delay:
            state.delay = next_delay(0.0)
            state.retry_at = self._worker.agent.clock.monotonic() + state.delay
        self._worker.event("Warning", "Failed", f"Error: {message}", state.name)

    def _wait_with(self, state: ContainerState, reason: str, message: str, event: str) -> None:
        changed = (state.reason, state.message) != (reason, message)
        state.reason, state.message = reason, message
        state.delay = min(max(0.5, state.delay * 2), 60.0)
        state.retry_at = self._worker.agent.clock.monotonic() + state.delay
        if changed:
            self._worker.event("Warning", "Failed", event, state.name)
