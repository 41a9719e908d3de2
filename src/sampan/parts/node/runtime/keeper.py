"""The keeper: the process that holds a node's containers, so that they outlive the agent.

One single-threaded process a node. It is the subreaper of everything the node runs, holds the standard streams, writes the
logs, and writes each exit record to disk before it tells anybody. The agent may be killed and come back at any time: it
connects, lists, and goes on. A zygote may be killed too: its containers are the keeper's children, and the next Python
container is exec'ed while a new zygote warms up. If the keeper itself dies, nothing can be known about its containers any
more, so the next agent ends what is left of them by cgroup (or recorded pid) and reports them lost.

The agent speaks to it over a SOCK_SEQPACKET socket in JSON: ``{"id": 1, "op": "start", ...}`` is answered by
``{"id": 1, ...}`` or ``{"id": 1, "error": ..., "code": ...}``; ``{"event": "exited", ...}`` comes unasked. Whatever is large
(specs) lies in files; descriptors of an exec or attach travel beside the message.

An agent that stays away for ``abandon`` seconds is taken to be gone for good: the keeper ends everything and leaves.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import selectors
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from sampan.kernel.clock import Clock, Timeline
from sampan.parts.node.runtime import launch, netlink, pause, syscalls, tiers
from sampan.parts.node.runtime.interface import Container, ContainerSpec, ExitRecord, Memory, Sandbox, SandboxSpec
from sampan.parts.node.runtime.layout import Layout, write_atomically
from sampan.parts.node.runtime.logs import LineFormatter, LogFile

READ_SIZE = 64 * 1024
MESSAGE_SIZE = 1 << 18
ATTACH_BACKLOG = 1 << 20
"""Bytes an attached client may lag behind before it is cut off."""
OUTGOING_LIMIT = 100_000
"""Messages that may wait for an agent before it is taken to be stuck."""
ZYGOTES = 4
"""Warm interpreters at most; the least recently used one goes."""
IDLE_LIMIT = 5.0
"""Seconds an unused keeper waits for an agent when it has no containers."""


@dataclass
class Options:
    """How an agent starts a keeper; the JSON of its one argument."""

    base: str
    name: str
    """Names the node's cgroup, unique on the machine."""
    pod_range: str
    """The node's IPv4 range, or "" to choose a free 10.244.N.0/24."""
    networks: list[str]
    tier: str = "auto"
    abandon: float = 600.0
    timeline: dict[str, float] = field(default_factory=dict)
    zygote: bool = True


@dataclass
class Running:
    """A container of this keeper."""

    state: Container
    spec: ContainerSpec
    log: LogFile
    status: int = -1
    """The status pipe while it starts."""
    status_rest: bytes = b""
    error: str = ""
    code: int = 0
    reply: Callable[[dict[str, Any]], None] | None = None
    streams: dict[int, LineFormatter] = field(default_factory=dict)
    stdin: int = -1
    terminal: int = -1
    attached: list[Attachment] = field(default_factory=list)
    raw: int | None = None
    """The wait status, once reaped."""
    oom_before: int = 0
    pending_stdin: bytes = b""
    forked: bool = False
    """A zygote was asked to start it."""


@dataclass
class Attachment:
    """A client's descriptors on a container's streams."""

    stdin: int
    stdout: int
    stderr: int
    backlog: dict[int, bytes] = field(default_factory=dict)


@dataclass
class Execution:
    """A further process in a container."""

    number: int
    container: str
    status: int
    terminal: int
    agent: socket.socket
    pid: int = 0
    status_rest: bytes = b""
    error: str = ""
    code: int = 0
    raw: int | None = None
    started: bool = False


@dataclass
class Zygote:
    """A warm interpreter."""

    process: subprocess.Popen[bytes]
    connection: socket.socket
    ready: bool = False
    failed: bool = False


class Keeper:
    """The keeper's state and its one loop."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.layout = Layout(Path(options.base))
        self.clock = Clock(Timeline(**options.timeline) if options.timeline else None)
        self.selector = selectors.DefaultSelector()
        self.sandboxes: dict[str, Sandbox] = {}
        self.sandbox_specs: dict[str, SandboxSpec] = {}
        self.containers: dict[str, Running] = {}
        self.executions: dict[int, Execution] = {}
        self.zygotes: dict[str, Zygote] = {}
        self.agents: list[socket.socket] = []
        self.outgoing: dict[socket.socket, deque[bytes]] = {}
        """Messages that an agent's socket has no room for yet."""
        self.owners: dict[int, tuple[str, str]] = {}
        """What a pid is: ("container", id), ("exec", number), ("sandbox", uid)."""
        self.unclaimed: dict[int, int] = {}
        """Wait statuses that arrived before the pid was reported; dropped when nothing is starting."""
        self.removing: dict[str, list[Callable[[dict[str, Any]], None]]] = {}
        self.lonely_since = self.clock.monotonic()
        self.leaving = False
        self.numbers = 0
        self.range_lock = -1

    # -- life

    def run(self) -> None:
        """Serve until told to leave or abandoned."""
        base = self.layout.base
        base.mkdir(parents=True, exist_ok=True)
        self.layout.pods.mkdir(exist_ok=True)
        lock = os.open(self.layout.pid, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SystemExit("another keeper serves this node") from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        syscalls.set_name("sampan-keeper")
        self._spare_from_oom()
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        wakeup, self._wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._leave())
        self.pod_range = self._claim_range()
        self.ground = tiers.probe(
            self.options.name, base / "probe", self.pod_range, self.options.networks, self.options.tier
        )
        self.privileged = os.geteuid() == 0 and self.ground.isolation == "root"
        self._clean_up()
        self.layout.skeleton.mkdir(exist_ok=True)
        launch.make_skeleton(str(self.layout.skeleton))
        self._write_pause()
        directory = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        # the path of a Unix socket is limited to 107 bytes; the data directory's is not
        place = f"/proc/self/fd/{directory}/keeper.sock"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(place)
        old = os.umask(0o077)
        listener.bind(place)
        os.umask(old)
        listener.listen(8)
        self.selector.register(listener, selectors.EVENT_READ, lambda: self._accept(listener))
        self.selector.register(wakeup, selectors.EVENT_READ, lambda: self._woken(wakeup))
        try:
            while not (self.leaving and not self.containers and not self.sandboxes):
                timeout = None if self.agents and not self.leaving else 0.25 if self.leaving else 1.0
                for key, _events in self.selector.select(timeout):
                    # an earlier callback of this round may have closed it, and the number may stand for another file now
                    if self.selector.get_map().get(key.fd) is key:
                        key.data()
                self._look_around()
        finally:
            self._end(listener)

    def _end(self, listener: socket.socket) -> None:
        for zygote in self.zygotes.values():
            zygote.connection.close()
            zygote.process.kill()
        with contextlib.suppress(OSError):
            os.unlink(self.layout.socket)
        listener.close()
        self.ground.cgroups.destroy()
        if self.ground.addresses is not None:
            self.ground.addresses.close()
        if self.privileged:
            for network in (self.pod_range, tiers.range6(self.pod_range)):
                with contextlib.suppress(OSError):
                    netlink.remove_local_route(network)

    def _look_around(self) -> None:
        if self.agents:
            return
        limit = self.options.abandon if self.containers or self.sandboxes else min(IDLE_LIMIT, self.options.abandon)
        if not self.leaving and self.clock.monotonic() - self.lonely_since > limit:
            self._leave()

    def _leave(self) -> None:
        """End everything; the loop ends when it is gone."""
        self.leaving = True
        for uid in list(self.sandboxes):
            self._remove_sandbox(uid, lambda _: None)

    def _spare_from_oom(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("-999")

    def _write_pause(self) -> None:
        self.pause = str(self.layout.base / "pause")
        try:
            write_atomically(Path(self.pause), pause.program())
            os.chmod(self.pause, 0o755)
            self.pause_args: tuple[str, ...] = (self.pause,)
        except KeyError:
            self.pause_args = ("/bin/sleep", "infinity")

    def _claim_range(self) -> str:
        """A pod range no other platform of this machine uses, held by a file lock."""
        directory = Path("/run/sampan") if os.geteuid() == 0 else Path(f"/tmp/sampan-{os.getuid()}")
        directory.mkdir(mode=0o700, exist_ok=True)
        wished = [self.options.pod_range] if self.options.pod_range else [f"10.244.{n}.0/24" for n in range(256)]
        remembered = self.layout.base / "pod-range"
        if not self.options.pod_range and remembered.exists():
            wished.insert(0, remembered.read_text().strip())
        for candidate in wished:
            lock = os.open(
                directory / f"pods-{candidate.replace('/', '_')}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(lock)
                continue
            self.range_lock = lock
            write_atomically(remembered, candidate.encode())
            return candidate
        raise SystemExit(f"the pod range {', '.join(wished[:3])} is used by another platform on this machine")

    def _clean_up(self) -> None:
        """End what a keeper before this one left behind: its cgroups, and recorded processes where there are none."""
        cgroups = self.ground.cgroups
        for pod in cgroups.pods():
            cgroups.kill(pod)
        for started in self.layout.pods.glob("*/containers/*/started.json"):
            if (started.parent / "exit.json").exists():
                continue
            with contextlib.suppress(OSError, ValueError, KeyError):
                record = json.loads(started.read_bytes())
                if process_start(record["pid"]) == record["start"]:
                    os.killpg(record["pid"], signal.SIGKILL)
            self._record(started.parent, ExitRecord(137, self.clock.time(), error="lost"))
        for sandbox in self.layout.pods.glob("*/sandbox.json"):
            sandbox.unlink()
        for pod in cgroups.pods():
            for _ in range(100):
                if cgroups.remove(pod):
                    break
                os.sched_yield()

    # -- the agent's requests

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.agents.append(connection)
        self.outgoing[connection] = deque()
        self.selector.register(connection, selectors.EVENT_READ, lambda: self._receive(connection))
        self._send(
            connection,
            {
                "event": "hello",
                "tier": self.ground.tier,
                "isolation": self.ground.isolation,
                "why": self.ground.why,
                "pod_range": self.pod_range,
                "controllers": sorted(self.ground.cgroups.has),
                "cgroup": str(self.ground.cgroups.unified or ""),
                "pid": os.getpid(),
            },
        )

    def _send(self, connection: socket.socket, message: dict[str, Any]) -> None:
        if connection not in self.agents:
            return
        encoded = json.dumps(message).encode()
        waiting = self.outgoing[connection]
        if not waiting:
            try:
                connection.send(encoded)
            except BlockingIOError:
                self.selector.modify(connection, selectors.EVENT_READ | selectors.EVENT_WRITE, self._both(connection))
            except OSError:
                self._drop(connection)
                return
            else:
                return
        waiting.append(encoded)
        if len(waiting) > OUTGOING_LIMIT:
            # the agent reads no more: cut it off; what it missed it finds by listing when it comes back
            self._drop(connection)

    def _both(self, connection: socket.socket) -> Callable[[], None]:
        """Write what waits for an agent, and read what it says."""

        def ready() -> None:
            waiting = self.outgoing.get(connection)
            while waiting:
                try:
                    connection.send(waiting[0])
                except BlockingIOError:
                    break
                except OSError:
                    self._drop(connection)
                    return
                waiting.popleft()
            if waiting is not None and not waiting:
                self.selector.modify(connection, selectors.EVENT_READ, lambda: self._receive(connection))
            self._receive(connection)

        return ready

    def _drop(self, connection: socket.socket) -> None:
        if connection not in self.agents:
            return
        self.agents.remove(connection)
        del self.outgoing[connection]
        self.selector.unregister(connection)
        connection.close()
        if not self.agents:
            self.lonely_since = self.clock.monotonic()
        for execution in [e for e in self.executions.values() if e.agent is connection]:
            if execution.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(execution.pid, signal.SIGKILL)

    def _receive(self, connection: socket.socket) -> None:
        try:
            message, descriptors, _flags, _address = socket.recv_fds(connection, MESSAGE_SIZE, 4)
        except BlockingIOError:
            return
        except OSError:
            self._drop(connection)
            return
        if not message:
            self._drop(connection)
            return
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        request = json.loads(message)
        number = request.get("id")

        def reply(answer: dict[str, Any]) -> None:
            if number is not None and connection in self.agents:
                self._send(connection, {"id": number, **answer})

        try:
            operation = getattr(self, f"_do_{request['op']}")
            operation(request, reply, descriptors, connection)
        except (OSError, ValueError, KeyError) as error:
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
            reply({"error": str(error), "code": 128})

    def _do_timeline(self, request: dict[str, Any], reply: Any, *_: Any) -> None:
        with contextlib.suppress(ValueError):
            # the loop of this process is not asyncio's: only the clock's readings are used
            self.clock._timeline = Timeline(**request["timeline"])
        reply({})

    def _do_list(self, request: dict[str, Any], reply: Any, _: Any, connection: socket.socket) -> None:
        for sandbox in self.sandboxes.values():
            self._send(connection, {"event": "sandbox", "list": request["id"], "sandbox": asdict(sandbox)})
        for running in self.containers.values():
            self._send(connection, {"event": "container", "list": request["id"], "container": asdict(running.state)})
        reply({})

    def _do_leave(self, request: dict[str, Any], reply: Any, *_: Any) -> None:
        del request
        reply({})
        self._leave()

    def _do_warm(self, request: dict[str, Any], reply: Any, *_: Any) -> None:
        self._zygote(request["python"])
        reply({})

    # -- sandboxes

    def _do_sandbox(self, request: dict[str, Any], reply: Any, *_: Any) -> None:
        fields = request["spec"]
        fields["memory"] = tuple(Memory(**memory) for memory in fields["memory"])
        spec = SandboxSpec(**fields)
        if spec.id in self.sandboxes:
            reply({"sandbox": asdict(self.sandboxes[spec.id])})
            return
        cgroups = self.ground.cgroups
        pod = self.layout.pod(spec.id)
        pod.mkdir(parents=True, exist_ok=True)
        sandbox = Sandbox(spec.id, spec.name, spec.namespace, "", created_at=self.clock.time())
        if spec.network == "pod" or (spec.network == "namespace" and self.privileged):
            sandbox.address = self._allocate(real=self.ground.addresses is not None or spec.network == "namespace")
        cgroups.create(spec.id, "pause")
        if cgroups.unified is not None:
            sandbox.cgroup = str(cgroups.unified / spec.id)
        own_net = spec.network == "namespace" and self.privileged
        if sandbox.address and self.ground.addresses is not None and not own_net:
            self.ground.addresses.add(Path(sandbox.cgroup), sandbox.address)
        try:
            if self.ground.isolation != "none":
                self._fork_sandbox(spec, sandbox, own_net)
            if own_net:
                self._connect_namespace(sandbox)
        except OSError:
            cgroups.kill(spec.id)
            cgroups.remove(spec.id)
            raise
        self.sandboxes[spec.id] = sandbox
        self.sandbox_specs[spec.id] = spec
        write_atomically(
            self.layout.sandbox(spec.id), json.dumps({"spec": asdict(spec), "sandbox": asdict(sandbox)}).encode()
        )
        reply({"sandbox": asdict(sandbox)})

    def _allocate(self, *, real: bool) -> str:
        """The next free address of the range, in turn, so that one is not reused at once. Raises OSError.

        Without programs and namespaces an address is one of the loopback network, by convention.
        """
        network = IPv4Network(self.pod_range)
        taken = {sandbox.address for sandbox in self.sandboxes.values()}
        size = network.num_addresses - 3
        for _ in range(size):
            self._last = getattr(self, "_last", 0) % size + 1
            address = str(network[self._last + 1])
            if not real:
                packed = network[self._last + 1].packed
                address = f"127.{64 + packed[1] % 64}.{packed[2]}.{packed[3]}"
            if address not in taken:
                return address
        raise OSError(f"failed to allocate for range 0: no IP addresses available in range set: {self.pod_range}")

    def _fork_sandbox(self, spec: SandboxSpec, sandbox: Sandbox, own_net: bool) -> None:
        devices = self.layout.memory(spec.id, ".dev")
        devices.mkdir(parents=True, exist_ok=True)
        for memory in spec.memory:
            Path(memory.path).mkdir(parents=True, exist_ok=True)
        flags = tiers.namespaces(self.ground.isolation)
        if spec.host_pid:
            flags &= ~syscalls.CLONE_NEWPID
        if own_net:
            flags |= syscalls.CLONE_NEWNET
        reader, writer = os.pipe2(os.O_CLOEXEC)
        uid, gid = os.getuid(), os.getgid()
        child = os.fork()
        if child == 0:
            try:
                for path in self.ground.cgroups.members(spec.id, "pause"):
                    Path(path).write_text("0")
                launch.reset_signals()
                os.setsid()
                syscalls.unshare(flags)
                if self.ground.isolation == "user":
                    tiers.map_users(uid, gid)
                launch.become_sandbox(spec, str(devices), privileged=self.privileged)
                pid = os.fork()
                if pid:
                    launch.report(writer, pid=pid)
                    os._exit(0)
                null = os.open(os.devnull, os.O_RDWR)
                for number in range(3):
                    os.dup2(null, number)
                os.chdir("/")
                os.execv(self.pause_args[0], ["pause", *self.pause_args[1:]])
            except BaseException as error:
                launch.report(writer, error=str(error))
            os._exit(1)
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            answer = file.read()
        os.waitpid(child, 0)
        for line in answer.splitlines():
            fields = json.loads(line)
            if "error" in fields:
                raise OSError(fields["error"])
            sandbox.pid = fields["pid"]
        self.owners[sandbox.pid] = ("sandbox", spec.id)
        self._claim(sandbox.pid)

    def _connect_namespace(self, sandbox: Sandbox) -> None:
        """A veth pair between the host and the sandbox's network namespace, routed. Raises OSError."""
        host = f"spn{sandbox.id.replace('-', '')[:11]}"
        sandbox.netns = f"/proc/{sandbox.pid}/ns/net"
        netlink.remove_link(host) if os.path.exists(f"/sys/class/net/{host}") else None
        netlink.add_veth(host, "eth0", sandbox.pid)
        netlink.add_address(host, "169.254.1.1", 32)
        netlink.set_up(host)
        # the pod range is a local route: a longer prefix in the same table wins over it
        netlink.add_host_route(sandbox.address, host)

        def inside() -> None:
            descriptor = os.pidfd_open(sandbox.pid)
            syscalls.setns(descriptor, syscalls.CLONE_NEWNET)
            netlink.set_up("lo")
            netlink.add_address("eth0", sandbox.address, 32)
            netlink.set_up("eth0")
            netlink.add_link_route("169.254.1.1/32", "eth0")
            netlink.add_default_route("eth0", "169.254.1.1")

        if error := tiers.in_child(inside):
            raise OSError(error)

    def _do_remove_sandbox(self, request: dict[str, Any], reply: Any, *_: Any) -> None:
        self._remove_sandbox(request["sandbox"], reply)

    def _remove_sandbox(self, uid: str, reply: Callable[[dict[str, Any]], None]) -> None:
        self.removing.setdefault(uid, []).append(reply)
        self._kill_pod(uid)
        self._finish_removal(uid)

    def _kill_pod(self, uid: str) -> None:
        sandbox = self.sandboxes.get(uid)
        self.ground.cgroups.kill(uid)
        pids = [sandbox.pid] if sandbox is not None and sandbox.pid and sandbox.alive else []
        for running in self.containers.values():
            if running.state.sandbox == uid and running.state.exit is None and running.state.pid:
                pids.append(running.state.pid)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)

    def _finish_removal(self, uid: str) -> None:
        """Forget a pod once all of it is reaped."""
        if uid not in self.removing:
            return
        sandbox = self.sandboxes.get(uid)
        members = [running for running in self.containers.values() if running.state.sandbox == uid]
        if any(running.state.exit is None for running in members) or (
            sandbox is not None and sandbox.pid and sandbox.alive
        ):
            return
        if sandbox is not None:
            cgroup = Path(sandbox.cgroup) if sandbox.cgroup else None
            if cgroup is not None and self.ground.addresses is not None and cgroup.exists():
                self.ground.addresses.remove(cgroup)
        if not self.ground.cgroups.remove(uid):
            # processes that are dying still count: look again with the next SIGCHLD, or at the next beat
            self.ground.cgroups.kill(uid)
            for _ in range(200):
                if self.ground.cgroups.remove(uid):
                    break
                os.sched_yield()
        for running in members:
            self._forget(running)
        self.sandboxes.pop(uid, None)
        self.sandbox_specs.pop(uid, None)
        with contextlib.suppress(OSError):
            self.layout.sandbox(uid).unlink()
        for reply in self.removing.pop(uid):
            reply({})

    # -- containers

    def _do_start(self, request: dict[str, Any], reply: Any, *_: Any) -> None:
        directory = self.layout.container(request["sandbox"], request["container"])
        spec = launch.read_container(f"{directory}/spec.json")
        if spec.id in self.containers:
            reply({"container": asdict(self.containers[spec.id].state)})
            return
        sandbox = self.sandboxes[spec.sandbox]
        if not sandbox.alive:
            raise OSError("the pod's sandbox has ended")
        cgroups = self.ground.cgroups
        cgroups.create(spec.sandbox, spec.id, spec.limits)
        for name in ("root", "work"):
            (directory / name).mkdir(exist_ok=True)
        running = Running(
            Container(spec.id, spec.sandbox, spec.name, spec.attempt, started_at=self.clock.time(), labels=spec.labels),
            spec,
            LogFile(spec.log_path, spec.log_size, spec.log_files),
            reply=reply,
            oom_before=cgroups.oom_kills(spec.sandbox, spec.id),
        )
        self.containers[spec.id] = running
        self._launch(running, self._zygote(spec.python) if spec.python and self.options.zygote else None)

    def _launch(self, running: Running, zygote: Zygote | None) -> None:
        """Make the container's streams and fork it, from the zygote where one is given."""
        spec = running.spec
        directory = self.layout.container(spec.sandbox, spec.id)
        sandbox, cgroups = self.sandboxes[spec.sandbox], self.ground.cgroups
        streams = self._make_streams(running)
        running.status, status = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        entry = launch.Entry(
            tuple(cgroups.members(spec.sandbox, spec.id)),
            sandbox.pid if self.ground.isolation != "none" else 0,
            self._flags(spec.sandbox),
        )
        settings = {
            "directory": str(directory),
            "skeleton": str(self.layout.skeleton),
            "devices": str(self.layout.memory(spec.sandbox, ".dev")),
            "mounts": self.ground.isolation != "none",
            "root": self.privileged,
            "rlimits": "pids" not in cgroups.has,
        }
        running.forked = zygote is not None and self._start_forked(zygote, entry, settings, streams, status)
        if not running.forked:
            child = os.fork()
            if child == 0:
                launch.enter(entry, status, lambda: launch.start_container(str(directory), settings, streams))
                os._exit(1)
        for descriptor in {*streams, status}:
            os.close(descriptor)
        self.selector.register(running.status, selectors.EVENT_READ, lambda: self._start_status(running))

    def _flags(self, uid: str) -> int:
        """The namespaces of a pod that its processes join."""
        spec = self.sandbox_specs[uid]
        flags = tiers.namespaces(self.ground.isolation)
        if spec.host_pid:
            flags &= ~syscalls.CLONE_NEWPID
        if self.sandboxes[uid].netns:
            flags |= syscalls.CLONE_NEWNET
        return flags

    def _make_streams(self, running: Running) -> tuple[int, int, int]:
        spec = running.spec
        if spec.tty:
            master, slave = pty.openpty()
            os.set_blocking(master, False)
            running.terminal = master
            running.streams[master] = LineFormatter("stdout")
            self.selector.register(master, selectors.EVENT_READ, lambda: self._output(running, master))
            if spec.stdin:
                running.stdin = master
            return slave, slave, slave
        out_reader, out_writer = os.pipe2(os.O_CLOEXEC)
        err_reader, err_writer = os.pipe2(os.O_CLOEXEC)
        for descriptor, name in ((out_reader, "stdout"), (err_reader, "stderr")):
            os.set_blocking(descriptor, False)
            running.streams[descriptor] = LineFormatter(name)
            self.selector.register(
                descriptor, selectors.EVENT_READ, lambda descriptor=descriptor: self._output(running, descriptor)
            )
        if spec.stdin:
            stdin, running.stdin = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(running.stdin, False)
        else:
            stdin = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        return stdin, out_writer, err_writer

    def _start_forked(
        self,
        zygote: Zygote,
        entry: launch.Entry,
        settings: dict[str, Any],
        streams: tuple[int, int, int],
        status: int,
    ) -> bool:
        try:
            message = json.dumps({**settings, "entry": asdict(entry)}).encode()
            socket.send_fds(zygote.connection, [message], [*streams, status])
        except OSError:
            return False
        return True

    def _start_status(self, running: Running) -> None:
        """Read what the entry and the container's process say until the pipe closes: then it runs (or never will)."""
        try:
            data = os.read(running.status, 1 << 16)
        except BlockingIOError:
            return
        running.status_rest += data
        *lines, running.status_rest = running.status_rest.split(b"\n")
        for line in lines:
            fields = json.loads(line)
            if "pid" in fields:
                running.state.pid = fields["pid"]
                self.owners[running.state.pid] = ("container", running.state.id)
                directory = self.layout.container(running.state.sandbox, running.state.id)
                started = {"pid": running.state.pid, "start": process_start(running.state.pid)}
                write_atomically(directory / "started.json", json.dumps(started).encode())
                self._claim(running.state.pid)
            if "error" in fields:
                running.error, running.code = fields["error"], fields["code"]
        if data:
            return
        self.selector.unregister(running.status)
        os.close(running.status)
        running.status = -1
        if not running.state.pid and running.forked and not running.error:
            # the zygote was killed with the request in its hands: start it without one
            self.ground.cgroups.kill(running.state.sandbox, running.state.id)
            for descriptor in list(running.streams):
                self._close_stream(running, descriptor)
            if running.stdin >= 0:
                self._close(running.stdin)
                running.stdin = -1
            self._launch(running, None)
            return
        if not running.state.pid:
            running.error = running.error or "the process that was to start it was killed"
            running.code = running.code or 128
            running.raw = 0
        self._maybe_exited(running)
        reply, running.reply = running.reply, None
        if reply is None:
            return
        if running.error:
            reply({"error": running.error, "code": running.code, "container": asdict(running.state)})
        else:
            reply({"container": asdict(running.state)})

    def _do_signal(self, request: dict[str, Any], reply: Any, *_: Any) -> None:
        running = self.containers.get(request["container"])
        if running is not None and running.raw is None and running.state.pid:
            number = request["signal"]
            if request["everyone"] and number == signal.SIGKILL:
                self.ground.cgroups.kill(running.state.sandbox, running.state.id)
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.state.pid, number)
            if request["everyone"] and self.ground.isolation == "none":
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(running.state.pid, number)
        reply({})

    def _do_remove_container(self, request: dict[str, Any], reply: Any, *_: Any) -> None:
        running = self.containers.get(request["container"])
        if running is not None:
            if running.state.exit is None:
                raise OSError("the container still runs")
            self.ground.cgroups.remove(running.state.sandbox, running.state.id)
            self._forget(running)
        reply({})

    def _do_reopen_log(self, request: dict[str, Any], reply: Any, *_: Any) -> None:
        self.containers[request["container"]].log.rotate()
        reply({})

    def _forget(self, running: Running) -> None:
        self.containers.pop(running.state.id, None)
        for descriptor in list(running.streams):
            self._close_stream(running, descriptor)
        running.log.close()
        if running.stdin >= 0 and running.stdin != running.terminal:
            self._close(running.stdin)
        for attachment in list(running.attached):
            self._detach(running, attachment)

    # -- streams

    def _output(self, running: Running, descriptor: int) -> None:
        try:
            data = os.read(descriptor, READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # a terminal whose last process is gone answers EIO
        formatter = running.streams[descriptor]
        now = self.clock.time_ns()
        if not data:
            running.log.write(formatter.finish(now))
            self._close_stream(running, descriptor)
            return
        running.log.write(formatter.feed(data, now))
        if running.attached:
            second = len(running.streams) == 2 and descriptor == list(running.streams)[1]
            for attachment in list(running.attached):
                self._copy(running, attachment, attachment.stderr if second else attachment.stdout, data)

    def _close_stream(self, running: Running, descriptor: int) -> None:
        del running.streams[descriptor]
        with contextlib.suppress(KeyError):
            self.selector.unregister(descriptor)
        os.close(descriptor)
        if descriptor == running.terminal:
            if running.stdin == running.terminal:
                running.stdin = -1
            running.terminal = -1
        if not running.streams:
            for attachment in list(running.attached):
                if not attachment.backlog:
                    self._detach(running, attachment)

    def _copy(self, running: Running, attachment: Attachment, descriptor: int, data: bytes) -> None:
        """Give an attached client output, holding back what it does not take yet."""
        if descriptor < 0:
            return
        backlog = attachment.backlog.get(descriptor, b"") + data
        try:
            backlog = backlog[os.write(descriptor, backlog) :]
        except BlockingIOError:
            pass
        except OSError:
            self._detach(running, attachment)
            return
        if len(backlog) > ATTACH_BACKLOG:
            self._detach(running, attachment)
            return
        watched = descriptor in attachment.backlog
        if backlog:
            attachment.backlog[descriptor] = backlog
            if not watched:
                self.selector.register(
                    descriptor, selectors.EVENT_WRITE, lambda: self._copy(running, attachment, descriptor, b"")
                )
        elif watched:
            del attachment.backlog[descriptor]
            self.selector.unregister(descriptor)
            if not running.streams and not attachment.backlog:
                self._detach(running, attachment)

    def _do_attach(self, request: dict[str, Any], reply: Any, descriptors: list[int], *_: Any) -> None:
        running = self.containers.get(request["container"])
        if running is None or not running.streams:
            raise OSError("the container is not running")
        given = iter(descriptors)
        stdin, stdout, stderr = (next(given) if wanted else -1 for wanted in request["streams"])
        attachment = Attachment(stdin, stdout, stderr)
        for descriptor in descriptors:
            os.set_blocking(descriptor, False)
        running.attached.append(attachment)
        if stdin >= 0:
            self.selector.register(stdin, selectors.EVENT_READ, lambda: self._input(running, attachment))
        reply({})

    def _input(self, running: Running, attachment: Attachment) -> None:
        """Pass an attached client's input on; while the container does not read, stop reading the client."""
        if running.pending_stdin:
            self.selector.unregister(attachment.stdin)
            return
        try:
            data = os.read(attachment.stdin, READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.selector.unregister(attachment.stdin)
            self._close(attachment.stdin)
            attachment.stdin = -1
            if running.spec.stdin_once and running.stdin >= 0 and running.stdin != running.terminal:
                self._close(running.stdin)
                running.stdin = -1
            return
        if running.stdin < 0:
            return
        running.pending_stdin = data
        self._push_stdin(running)

    def _push_stdin(self, running: Running) -> None:
        watched = running.stdin in self.selector.get_map() and running.stdin != running.terminal
        try:
            written = os.write(running.stdin, running.pending_stdin)
            running.pending_stdin = running.pending_stdin[written:]
        except BlockingIOError:
            pass
        except OSError:
            running.pending_stdin = b""
        if running.stdin == running.terminal:
            running.pending_stdin = b""  # a terminal that takes no more drops input, as a real one does
            return
        if running.pending_stdin and not watched:
            self.selector.register(running.stdin, selectors.EVENT_WRITE, lambda: self._push_stdin(running))
        elif not running.pending_stdin:
            if watched:
                self.selector.unregister(running.stdin)
            for attachment in running.attached:
                if attachment.stdin >= 0 and attachment.stdin not in self.selector.get_map():
                    self.selector.register(
                        attachment.stdin,
                        selectors.EVENT_READ,
                        lambda attachment=attachment: self._input(running, attachment),
                    )

    def _detach(self, running: Running, attachment: Attachment) -> None:
        if attachment in running.attached:
            running.attached.remove(attachment)
        for descriptor in {attachment.stdin, attachment.stdout, attachment.stderr} - {-1}:
            with contextlib.suppress(KeyError):
                self.selector.unregister(descriptor)
            self._close(descriptor)

    def _close(self, descriptor: int) -> None:
        with contextlib.suppress(OSError):
            os.close(descriptor)

    def _do_resize(self, request: dict[str, Any], reply: Any, *_: Any) -> None:
        terminal = -1
        if "exec" in request and (execution := self.executions.get(request["exec"])):
            terminal = execution.terminal
        elif running := self.containers.get(request.get("container", "")):
            terminal = running.terminal
        if terminal >= 0:
            size = struct.pack("HHHH", request["rows"], request["columns"], 0, 0)
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)
        reply({})

    # -- executions

    def _do_exec(self, request: dict[str, Any], reply: Any, descriptors: list[int], connection: socket.socket) -> None:
        running = self.containers.get(request["container"])
        if running is None or running.state.exit is not None or not running.state.pid:
            raise OSError("container not running")
        spec, args, tty = running.spec, tuple(request["args"]), bool(request["tty"])
        streams = (descriptors[0],) * 3 if tty else (descriptors[0], descriptors[1], descriptors[2])
        self.numbers += 1
        reader, status = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        join = running.state.pid if self.ground.isolation != "none" else 0
        entry = launch.Entry(tuple(self.ground.cgroups.members(spec.sandbox, spec.id)), join, self._flags(spec.sandbox))
        child = os.fork()
        if child == 0:
            launch.enter(entry, status, lambda: launch.start_exec(spec, args, tty, self.privileged, streams))
            os._exit(1)
        os.close(status)
        terminal = os.dup(descriptors[0]) if tty else -1
        for descriptor in descriptors:
            os.close(descriptor)
        execution = Execution(self.numbers, spec.id, reader, terminal, connection)
        self.executions[execution.number] = execution
        self.selector.register(reader, selectors.EVENT_READ, lambda: self._exec_status(execution, reply))

    def _exec_status(self, execution: Execution, reply: Callable[[dict[str, Any]], None]) -> None:
        try:
            data = os.read(execution.status, 1 << 16)
        except BlockingIOError:
            return
        execution.status_rest += data
        *lines, execution.status_rest = execution.status_rest.split(b"\n")
        for line in lines:
            fields = json.loads(line)
            if "pid" in fields:
                execution.pid = fields["pid"]
                self.owners[execution.pid] = ("exec", str(execution.number))
                self._claim(execution.pid)
            if "error" in fields:
                execution.error, execution.code = fields["error"], fields["code"]
        if data:
            return
        self.selector.unregister(execution.status)
        os.close(execution.status)
        execution.started = True
        if execution.error or not execution.pid:
            reply({"error": execution.error or "the process was killed at its start", "code": execution.code or 128})
            execution.error = execution.error or "killed"
            if not execution.pid:
                execution.raw = 0
        else:
            reply({"exec": execution.number})
        self._exec_over(execution)

    def _exec_over(self, execution: Execution) -> None:
        if execution.raw is None or not execution.started:
            return
        self.executions.pop(execution.number, None)
        if execution.terminal >= 0:
            os.close(execution.terminal)
        if not execution.error and execution.agent in self.agents:
            code, _signal = exit_code(execution.raw)
            self._send(execution.agent, {"event": "exec-exited", "exec": execution.number, "code": code})

    def _do_kill_exec(self, request: dict[str, Any], reply: Any, *_: Any) -> None:
        execution = self.executions.get(request["exec"])
        if execution is not None and execution.pid and execution.raw is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(execution.pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(execution.pid, signal.SIGKILL)
        reply({})

    def _do_usage(self, request: dict[str, Any], reply: Any, *_: Any) -> None:
        usages = {}
        for identity in request["containers"]:
            running = self.containers.get(identity)
            if running is not None and running.state.exit is None:
                usage = self.ground.cgroups.usage(running.state.sandbox, identity)
                if not self.ground.cgroups.has & {"memory", "cpuacct"}:
                    usage = process_usage(self.ground.cgroups.processes(running.state.sandbox, identity))
                usages[identity] = asdict(usage)
        reply({"usage": usages})

    # -- the dead

    def _woken(self, wakeup: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(wakeup, 4096)
        while True:
            try:
                pid, raw = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            self.unclaimed[pid] = raw
            if pid in self.owners:
                self._claim(pid)
        starting = any(running.status >= 0 for running in self.containers.values()) or any(
            not execution.started for execution in self.executions.values()
        )
        if not starting:
            self.unclaimed.clear()
        for python, zygote in list(self.zygotes.items()):
            if zygote.process.poll() is not None and not zygote.failed:
                self._bury_zygote(python, zygote)
        for uid in list(self.removing):
            self._finish_removal(uid)

    def _claim(self, pid: int) -> None:
        """A known pid has ended, now or before it was known."""
        raw = self.unclaimed.pop(pid, None)
        if raw is None:
            return
        kind, identity = self.owners.pop(pid)
        if kind == "container":
            running = self.containers.get(identity)
            if running is not None:
                running.raw = raw
                self._maybe_exited(running)
        elif kind == "exec":
            execution = self.executions.get(int(identity))
            if execution is not None:
                execution.raw = raw
                self._exec_over(execution)
        else:
            sandbox = self.sandboxes.get(identity)
            if sandbox is not None:
                sandbox.alive = False
                self._tell({"event": "sandbox-ended", "sandbox": identity})

    def _maybe_exited(self, running: Running) -> None:
        """Write the exit record and tell, once the process is reaped and its start is settled."""
        if running.raw is None or running.status >= 0 or running.state.exit is not None:
            return
        state = running.state
        # a container is its main process: what it leaves behind ends with it
        self.ground.cgroups.kill(state.sandbox, state.id)
        code, number = exit_code(running.raw)
        if running.error:
            code, number = running.code, 0
        oom = number == signal.SIGKILL and self.ground.cgroups.oom_kills(state.sandbox, state.id) > running.oom_before
        for descriptor in list(running.streams):
            self._drain(running, descriptor)
        state.exit = ExitRecord(code, self.clock.time(), number, oom, running.error)
        self._record(self.layout.container(state.sandbox, state.id), state.exit)
        self._tell({"event": "exited", "container": asdict(state)})
        self._finish_removal(state.sandbox)

    def _drain(self, running: Running, descriptor: int) -> None:
        """What the process wrote before it ended is in the log before anybody hears of the end."""
        for _ in range(64):
            if descriptor not in running.streams:
                return
            try:
                if not selectors_ready(descriptor):
                    return
            except OSError:
                return
            self._output(running, descriptor)

    def _record(self, directory: Path, record: ExitRecord) -> None:
        with contextlib.suppress(FileNotFoundError):
            write_atomically(directory / "exit.json", json.dumps(asdict(record)).encode())

    def _tell(self, event: dict[str, Any]) -> None:
        for connection in list(self.agents):
            self._send(connection, event)

    # -- zygotes

    def _zygote(self, python: str) -> Zygote | None:
        """The warm zygote of an interpreter, or None; then one is on its way for the next time."""
        zygote = self.zygotes.pop(python, None)
        if zygote is not None:
            self.zygotes[python] = zygote  # most recently used last
            return zygote if zygote.ready else None
        while len(self.zygotes) >= ZYGOTES:
            oldest = next(iter(self.zygotes))
            gone = self.zygotes.pop(oldest)
            gone.connection.close()
            if gone.process.poll() is None:
                gone.process.kill()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        script = Path(__file__).with_name("zygote.py")
        try:
            process = subprocess.Popen(
                [python, str(script), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8"},
                cwd="/",
            )
        except OSError:
            ours.close()
            return None
        finally:
            theirs.close()
        started = Zygote(process, ours)
        self.zygotes[python] = started
        self.selector.register(ours, selectors.EVENT_READ, lambda: self._hear_zygote(python, started))
        return None

    def _hear_zygote(self, python: str, zygote: Zygote) -> None:
        try:
            message = zygote.connection.recv(4096)
        except OSError:
            message = b""
        if message:
            zygote.ready = True
            return
        self.selector.unregister(zygote.connection)
        zygote.connection.close()
        if self.zygotes.get(python) is zygote and not zygote.ready:
            # it refused to serve this environment: do not try again while it is remembered here
            zygote.failed = True
        elif self.zygotes.get(python) is zygote:
            del self.zygotes[python]

    def _bury_zygote(self, python: str, zygote: Zygote) -> None:
        if zygote.ready and self.zygotes.get(python) is zygote:
            del self.zygotes[python]
            with contextlib.suppress(KeyError, ValueError):
                self.selector.unregister(zygote.connection)
            zygote.connection.close()
            self._zygote(python)


def exit_code(raw: int) -> tuple[int, int]:
    """Exit code and signal of a wait status, as container runtimes report them."""
    if os.WIFSIGNALED(raw):
        return 128 + os.WTERMSIG(raw), os.WTERMSIG(raw)
    return os.WEXITSTATUS(raw), 0


def process_start(pid: int) -> int:
    """A process's start time in clock ticks since boot: with the pid, it names a process for good. 0: no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[19])


def process_usage(pids: list[int]) -> Any:
    """Usage from /proc, where no controller counts."""
    from sampan.parts.node.runtime.interface import Usage

    ticks = pages = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
            pages += int(fields[21])
    memory = pages * os.sysconf("SC_PAGE_SIZE")
    return Usage(ticks * (1_000_000_000 // os.sysconf("SC_CLK_TCK")), memory, memory, len(pids))


def selectors_ready(descriptor: int) -> bool:
    """There is something to read (or the end)."""
    import select

    return bool(select.select([descriptor], [], [], 0)[0])


def main() -> None:
    """Entry point: ``python -m sampan.parts.node.runtime.keeper '<options as JSON>'``."""
    Keeper(Options(**json.loads(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
