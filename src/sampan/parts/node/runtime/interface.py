"""The seam between the agent and whatever runs its containers.

A *sandbox* is what a pod's containers share (address, host name, IPC, process ids, memory-backed volumes); a *container* is
one process tree with its own view of the file system. The specs hold resolved values only (no Kubernetes objects), so an
OCI runtime can implement `Runtime` as well as `ProcessRuntime` does. Everything is identified by names the agent chooses, and
a runtime can list what it has after an agent restart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Tier = Literal["T1", "T1n", "T2", "T3"]
"""What the machine lets the process runtime do; see `tiers`."""
ADDRESSED: frozenset[Tier] = frozenset(("T1", "T1n"))
"""The tiers whose pods have addresses of the pod range, where others reach them; else they are loopback ones by convention."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A file or directory of the node at a place in the container."""

    source: str
    target: str
    read_only: bool = False
    sub: str = ""
    """A path below ``source``, which no link there leads out of: whoever writes in the volume may change it any time."""


@dataclass(frozen=True, slots=True)
class Memory:
    """A tmpfs the sandbox keeps for its containers at ``path`` (which exists on the node, empty)."""

    path: str
    size: int = 0
    """Bytes; 0: half of the machine's memory."""


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What the containers of a pod share."""

    id: str
    """The pod's uid."""
    name: str
    namespace: str
    hostname: str
    network: Literal["pod", "host", "namespace"] = "pod"
    memory: tuple[Memory, ...] = ()
    host_pid: bool = False
    host_ipc: bool = False
    sysctls: dict[str, str] = field(default_factory=dict)
    names: str = ""
    """Who answers what the pod asks the machine's name servers, in a tier whose pods have no resolv.conf of their own."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Resource limits; 0 is none."""

    memory: int = 0
    """Bytes."""
    cpu: float = 0.0
    """Cores."""
    cpu_request: float = 0.0
    """Cores asked for: the weight under contention."""
    pids: int = 0


@dataclass(frozen=True, slots=True)
class Root:
    """The container's file system below its mounts."""

    layers: tuple[str, ...] = ()
    """Extracted image layers, topmost first."""
    host: bool = True
    """The host's programs (/usr, /bin, /etc, ...) lie under the layers; otherwise the layers are a whole system."""
    read_only: bool = False
    extra: tuple[str, ...] = ()
    """Host directories shown read-only at their own path (interpreters, dependency environments)."""


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """One container, with everything resolved."""

    id: str
    sandbox: str
    name: str
    attempt: int
    args: tuple[str, ...]
    env: dict[str, str]
    cwd: str = "/"
    root: Root = Root()
    mounts: tuple[Mount, ...] = ()
    limits: Limits = Limits()
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    user: str = ""
    """A user name to look up in the container's /etc/passwd instead of ``uid``."""
    privileged: bool = False
    no_new_privileges: bool = False
    seccomp: bool = False
    """Refuse the system calls that container runtimes refuse by default."""
    capabilities_add: tuple[str, ...] = ()
    capabilities_drop: tuple[str, ...] = ()
    python: str = ""
    """The interpreter the image's programs use; one of them may be forked from that interpreter's zygote."""
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    log_path: str = ""
    log_size: int = 10 << 20
    log_files: int = 5
    termination_log: str = ""
    """The node file behind the termination message, if any."""
    labels: dict[str, str] = field(default_factory=dict)
    """Kept by the runtime and given back by `Runtime.list`."""
    own_network: bool = False
    """The sandbox has a network namespace; the runtime knows, and fills it in."""


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """How a container ended; written to disk before anybody is told."""

    code: int
    """128 + signal for a killed process."""
    finished_at: float
    signal: int = 0
    oom: bool = False
    error: str = ""
    """Why it never ran (no such command); then ``code`` is 127 or 126 or 128."""


@dataclass(slots=True)
class Container:
    """A container as the runtime knows it."""

    id: str
    sandbox: str
    name: str
    attempt: int
    started_at: float = 0.0
    pid: int = 0
    exit: ExitRecord | None = None
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Sandbox:
    """A sandbox as the runtime knows it."""

    id: str
    name: str
    namespace: str
    address: str
    cgroup: str = ""
    """The pod's cgroup v2 directory, where programs of the network can be attached; "" where there is none."""
    netns: str = ""
    """Path of the pod's own network namespace, if it has one."""
    pid: int = 0
    created_at: float = 0.0
    alive: bool = True


@dataclass(frozen=True, slots=True)
class Usage:
    """What a container has used."""

    cpu_ns: int
    memory_bytes: int
    """The working set: usage less inactive page cache."""
    rss_bytes: int
    pids: int
    disk_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ExecSpec:
    """A further process in a running container."""

    container: str
    args: tuple[str, ...]
    tty: bool = False
    stdin: bool = False
    stdout: bool = True
    stderr: bool = True


class Process(Protocol):
    """The agent's end of an exec or attach: descriptors to use as one likes, owned (and closed) by the holder."""

    stdin: int | None
    stdout: int | None
    """The terminal itself with ``tty``: read and written."""
    stderr: int | None

    async def wait(self) -> int:
        """The exit code once the process has ended."""
        ...

    def resize(self, columns: int, rows: int) -> None:
        """Set the terminal's size; nothing without one."""
        ...

    def kill(self) -> None:
        """End the process if it still runs."""
        ...

    def close(self) -> None:
        """Close the descriptors; idempotent."""
        ...


OnExit = Callable[[Container], None]


class Runtime(Protocol):
    """Runs sandboxes and containers. Methods raise the node's errors with messages for a container's status."""

    name: str
    """As in ``containerRuntimeVersion`` and container ids: ``<name>://``."""
    tier: Tier

    async def start(self, on_exit: OnExit, on_lost: Callable[[], None]) -> None:
        """Be ready. ``on_exit`` is called once a container has ended; ``on_lost`` when everything was lost at once."""
        ...

    async def close(self) -> None:
        """Let go without ending anything."""
        ...

    async def end(self) -> None:
        """End everything that runs here and let go."""
        ...

    async def list(self) -> tuple[list[Sandbox], list[Container]]:
        """All sandboxes and containers not removed yet, ended ones included."""
        ...

    async def create_sandbox(self, spec: SandboxSpec) -> Sandbox: ...

    async def remove_sandbox(self, sandbox: str) -> None:
        """End whatever still runs in it and forget it with its containers; idempotent. Logs and volumes stay."""
        ...

    async def start_container(self, spec: ContainerSpec) -> Container:
        """Start it. Raises StartError; the container may have ended already when this returns."""
        ...

    async def signal(self, container: str, signal: int, *, everyone: bool = False) -> None:
        """Signal the main process (``everyone``: all its processes); nothing when it has ended."""
        ...

    async def update(self, container: str, limits: Limits, labels: dict[str, str]) -> None:
        """Put a running container under other limits and change these of its labels; nothing when it has ended."""
        ...

    async def remove_container(self, container: str) -> None:
        """Forget an ended container and its writable layer; idempotent."""
        ...

    async def exec(self, spec: ExecSpec) -> Process: ...

    async def attach(self, container: str, *, stdin: bool, stdout: bool, stderr: bool) -> Process: ...

    async def usage(self, containers: Sequence[str]) -> dict[str, Usage]:
        """Of running containers; those that are gone are left out."""
        ...

    async def reopen_log(self, container: str) -> None:
        """Continue the log in a new file now."""
        ...

    async def dial(self, sandbox: str, port: int) -> Any:
        """A connected, non-blocking socket to a port of the pod (its localhost where only that listens)."""
        ...
