"""The keeper's life: one loop over its socket, its containers' streams and its children's ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import signal
import socket
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from sampan.kernel import nftables
from sampan.kernel.clock import Clock, Timeline
from sampan.parts.node.runtime import links, netlink, syscalls, tiers
from sampan.parts.node.runtime.keeper.agents import Agents, Operation, Reply, Request
from sampan.parts.node.runtime.keeper.containers import Containers
from sampan.parts.node.runtime.keeper.executions import Executions
from sampan.parts.node.runtime.keeper.inheritance import claim_range, end_leftovers
from sampan.parts.node.runtime.keeper.sandboxes import Sandboxes
from sampan.parts.node.runtime.keeper.sockets import Sockets
from sampan.parts.node.runtime.keeper.zygotes import Zygotes
from sampan.parts.node.runtime.layout import Layout
from sampan.parts.node.runtime.roots import make_skeleton

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


class Keeper:
    """The keeper's state and its one loop."""

    ground: tiers.Ground
    """What the machine gives; known once `run` has begun."""
    pod_range: str
    privileged: bool

    def __init__(self, options: Options) -> None:
        self.options = options
        self.layout = Layout(Path(options.base))
        self.clock = Clock(Timeline(**options.timeline) if options.timeline else None)
        self.selector = selectors.DefaultSelector()
        self.zygotes = Zygotes(self.selector)
        self.sockets = Sockets(self.selector)
        self.sandboxes = Sandboxes(self)
        self.containers = Containers(self)
        self.executions = Executions(self)
        self.agents = Agents(self.selector, self._operations(), self._greeting, self._agent_left)
        self.owners: dict[int, tuple[str, str]] = {}
        """What a pid is: ("container", id), ("exec", number), ("sandbox", uid)."""
        self.unclaimed: dict[int, int] = {}
        """Wait statuses that arrived before the pid was reported; dropped when nothing is starting."""
        self.lonely_since = self.clock.monotonic()
        self.leaving = False

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
        self.pod_range, self._range_lock = claim_range(self.options.pod_range, self.layout)
        self.ground = tiers.probe(
            self.options.name, base / "probe", self.pod_range, self.options.networks, self.options.tier
        )
        self.privileged = os.geteuid() == 0 and self.ground.isolation == "root"
        if self.ground.links:
            netlink.add_unreachable(self.pod_range)
        elif self.ground.addresses is None:
            self.sockets.start([one for one in self.options.networks if not _holds(one, self.pod_range)])
        end_leftovers(self.layout, self.ground.cgroups, self.clock)
        if self.privileged:
            links.sweep(self.pod_range)
        self.layout.skeleton.mkdir(exist_ok=True)
        make_skeleton(str(self.layout.skeleton))
        self.sandboxes.write_pause()
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
        self.selector.register(listener, selectors.EVENT_READ, lambda: self.agents.accept(listener))
        self.selector.register(wakeup, selectors.EVENT_READ, lambda: self._woken(wakeup))
        try:
            while not (self.leaving and not self.containers.held and not self.sandboxes.held):
                timeout = None if self.agents.connected and not self.leaving else 0.25 if self.leaving else 1.0
                for key, _events in self.selector.select(self.sandboxes.blanks.wait(timeout)):
                    # an earlier callback of this round may have closed it, and the number may stand for another file now
                    if self.selector.get_map().get(key.fd) is key:
                        key.data()
                self._look_around()
                self.sandboxes.blanks.look_ahead()
        finally:
            self._end(listener)

    def _end(self, listener: socket.socket) -> None:
        self.zygotes.end()
        self.sandboxes.blanks.end()
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
            with contextlib.suppress(OSError):
                netlink.remove_unreachable(self.pod_range)
            with contextlib.suppress(OSError):
                nftables.remove(table_of(self.options.name))
            with contextlib.suppress(OSError):
                links.sweep(self.pod_range)
            with contextlib.suppress(OSError):
                links.restore_forwarding()

    def _look_around(self) -> None:
        if self.agents.connected:
            return
        limit = (
            self.options.abandon
            if self.containers.held or self.sandboxes.held
            else min(IDLE_LIMIT, self.options.abandon)
        )
        if not self.leaving and self.clock.monotonic() - self.lonely_since > limit:
            self._leave()

    def _leave(self) -> None:
        """End everything; the loop ends when it is gone."""
        self.leaving = True
        for uid in list(self.sandboxes.held):
            self.sandboxes.remove(uid, lambda _: None)

    def _spare_from_oom(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("-999")

    def places_sockets(self, pod: str) -> bool:
        """The sockets of a pod's processes go where `placing` says."""
        return (
            self.sockets.why is None and bool(self.sandboxes.held[pod].address) and not self.sandboxes.held[pod].netns
        )

    # -- the agent's requests

    def _operations(self) -> dict[str, Operation]:
        return {
            "timeline": self._timeline,
            "list": self._list,
            "leave": self._told_to_leave,
            "warm": self._warm,
            "sandbox": self.sandboxes.create,
            "remove_sandbox": self.sandboxes.remove_one,
            "start": self.containers.start,
            "signal": self.containers.signal,
            "update": self.containers.update,
            "attach": self.containers.attach,
            "resize": self.containers.resize,
            "reopen_log": self.containers.reopen_log,
            "usage": self.containers.usage,
            "remove_container": self.containers.remove,
            "exec": self.executions.start,
            "kill_exec": self.executions.kill,
        }

    def _greeting(self) -> dict[str, Any]:
        return {
            "tier": self.ground.tier,
            "isolation": self.ground.isolation,
            "why": self.ground.why,
            "sockets": self.sockets.why,
            "pod_range": self.pod_range,
            "controllers": sorted(self.ground.cgroups.has),
            "cgroup": str(self.ground.cgroups.unified or ""),
            "table": table_of(self.options.name) if self.privileged else "",
            "pid": os.getpid(),
        }

    def _agent_left(self, connection: socket.socket) -> None:
        if not self.agents.connected:
            self.lonely_since = self.clock.monotonic()
        self.executions.drop(connection)

    def _timeline(self, request: Request, reply: Reply, *_: Any) -> None:
        with contextlib.suppress(ValueError):
            # the loop of this process is not asyncio's: only the clock's readings are used
            self.clock._timeline = Timeline(**request["timeline"])
        reply({})

    def _list(self, request: Request, reply: Reply, _: list[int], connection: socket.socket) -> None:
        number = request["id"]
        for sandbox in self.sandboxes.held.values():
            self.agents.send(connection, {"event": "sandbox", "list": number, "sandbox": asdict(sandbox)})
        for running in self.containers.held.values():
            self.agents.send(connection, {"event": "container", "list": number, "container": asdict(running.state)})
        reply({})

    def _told_to_leave(self, request: Request, reply: Reply, *_: Any) -> None:
        del request
        reply({})
        self._leave()

    def _warm(self, request: Request, reply: Reply, *_: Any) -> None:
        self.zygotes.take(request["python"])
        reply({})

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
            self.sandboxes.blanks.reaped(pid)
            if pid in self.owners:
                self.claim(pid)
        if not (self.containers.starting or self.executions.starting):
            self.unclaimed.clear()
        self.zygotes.reap()
        self.sandboxes.reap()

    def claim(self, pid: int) -> None:
        """A known pid has ended, now or before it was known."""
        raw = self.unclaimed.pop(pid, None)
        if raw is None:
            return
        kind, identity = self.owners.pop(pid)
        if kind == "container":
            running = self.containers.held.get(identity)
            if running is not None:
                running.raw = raw
                self.containers.maybe_exited(running)
        elif kind == "exec":
            execution = self.executions.held.get(int(identity))
            if execution is not None:
                execution.raw = raw
                self.executions.over(execution)
        else:
            sandbox = self.sandboxes.held.get(identity)
            if sandbox is not None:
                sandbox.alive = False
                self.agents.tell({"event": "sandbox-ended", "sandbox": identity})


def table_of(name: str) -> str:
    """The nf_tables table of a node: the network part fills it where pods have network namespaces; it goes with the pods."""
    return f"sampan-{name}"


def _holds(network: str, part: str) -> bool:
    return IPv4Network(part).subnet_of(IPv4Network(network))
