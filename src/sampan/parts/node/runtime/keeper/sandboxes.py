"""Sandboxes: what the containers of a pod share, made and taken away.

A sandbox is a cgroup, an address (by the node's eBPF programs, or through a network namespace of its own), and a first process
that holds its namespaces. It is removed only when everything in it has been reaped, so that nothing of a pod is left when its
removal is answered.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sampan.parts.node.runtime import launch, links, pause, syscalls, tiers
from sampan.parts.node.runtime.interface import Memory, Sandbox, SandboxSpec
from sampan.parts.node.runtime.keeper.agents import Reply, Request
from sampan.parts.node.runtime.keeper.blanks import Blanks
from sampan.parts.node.runtime.keeper.processes import process_start
from sampan.parts.node.runtime.layout import write_atomically

if TYPE_CHECKING:
    from sampan.parts.node.runtime.keeper.keeper import Keeper


class Sandboxes:
    """The sandboxes of this keeper, by pod uid."""

    def __init__(self, keeper: Keeper) -> None:
        self.held: dict[str, Sandbox] = {}
        self.blanks = Blanks()
        self._keeper = keeper
        self._specs: dict[str, SandboxSpec] = {}
        self._removing: dict[str, list[Reply]] = {}
        self._pause_args: tuple[str, ...] = ()
        self._last = 0
        """The place in the range of the address given out last."""

    def write_pause(self) -> None:
        """Put the program of every sandbox's first process in its place. Raises OSError."""
        place = str(self._keeper.layout.base / "pause")
        try:
            write_atomically(Path(place), pause.program())
            os.chmod(place, 0o755)
            self._pause_args = (place,)
        except KeyError:
            self._pause_args = ("/bin/sleep", "infinity")
        ground = self._keeper.ground
        flags = tiers.namespaces(ground.isolation) | (syscalls.CLONE_NEWNET if ground.links else 0)
        self.blanks.start(ground.isolation, flags, self._pause_args, privileged=self._keeper.privileged)

    def create(self, request: Request, reply: Reply, *_: Any) -> None:
        """Make a sandbox; one that is there already is given back."""
        fields = request["spec"]
        fields["memory"] = tuple(Memory(**memory) for memory in fields["memory"])
        spec = SandboxSpec(**fields)
        if spec.id in self.held:
            reply({"sandbox": asdict(self.held[spec.id])})
            return
        cgroups = self._keeper.ground.cgroups
        pod = self._keeper.layout.pod(spec.id)
        pod.mkdir(parents=True, exist_ok=True)
        sandbox = Sandbox(spec.id, spec.name, spec.namespace, "", created_at=self._keeper.clock.time())
        ground = self._keeper.ground
        if spec.network == "namespace" and not self._keeper.privileged:
            raise OSError(f"a network namespace of the pod's own needs tier T1 or T1n; this node has {ground.tier}")
        own_net = spec.network == "namespace" or (spec.network == "pod" and ground.links)
        if spec.network != "host":
            sandbox.address = self._allocate(real=own_net or ground.addresses is not None)
        cgroups.create(spec.id, "pause")
        if cgroups.unified is not None:
            sandbox.cgroup = str(cgroups.unified / spec.id)
        try:
            if sandbox.address and ground.addresses is not None:
                if own_net:
                    ground.addresses.leave_alone(Path(sandbox.cgroup))
                else:
                    ground.addresses.add(Path(sandbox.cgroup), sandbox.address)
            if ground.isolation != "none":
                self._fork_sandbox(spec, sandbox, own_net)
            if own_net:
                links.connect(sandbox.address, sandbox.pid, spec.sysctls)
                sandbox.netns = f"/proc/{sandbox.pid}/ns/net"
        except OSError:
            self._discard(sandbox)
            raise
        self.held[spec.id] = sandbox
        self._specs[spec.id] = spec
        write_atomically(
            self._keeper.layout.sandbox(spec.id),
            json.dumps(
                {"spec": asdict(spec), "sandbox": asdict(sandbox), "start": process_start(sandbox.pid)}
            ).encode(),
        )
        reply({"sandbox": asdict(sandbox)})

    def _discard(self, sandbox: Sandbox) -> None:
        """Nothing is to be left of a sandbox that could not be made."""
        cgroups = self._keeper.ground.cgroups
        if sandbox.pid in self._keeper.owners:  # not reaped: the number is still its own
            del self._keeper.owners[sandbox.pid]
            with contextlib.suppress(ProcessLookupError):
                os.kill(sandbox.pid, signal.SIGKILL)
        if sandbox.address and self._keeper.ground.addresses is not None:
            self._keeper.ground.addresses.remove(Path(sandbox.cgroup))
        cgroups.kill(sandbox.id)
        cgroups.remove(sandbox.id)

    def _allocate(self, *, real: bool) -> str:
        """The next free address of the range, in turn, so that one is not reused at once. Raises OSError.

        Without programs and namespaces an address is one of the loopback network, by convention.
        """
        network = IPv4Network(self._keeper.pod_range)
        taken = {sandbox.address for sandbox in self.held.values()}
        size = network.num_addresses - 3
        for _ in range(size):
            self._last = self._last % size + 1
            address = str(network[self._last + 1])
            if not real:
                packed = network[self._last + 1].packed
                address = f"127.{64 + packed[1] % 64}.{packed[2]}.{packed[3]}"
            if address not in taken:
                return address
        raise OSError(
            f"failed to allocate for range 0: no IP addresses available in range set: {self._keeper.pod_range}"
        )

    def _fork_sandbox(self, spec: SandboxSpec, sandbox: Sandbox, own_net: bool) -> None:
        devices = self._keeper.layout.memory(spec.id, ".dev")
        devices.mkdir(parents=True, exist_ok=True)
        for memory in spec.memory:
            Path(memory.path).mkdir(parents=True, exist_ok=True)
        flags = tiers.namespaces(self._keeper.ground.isolation)
        if spec.host_pid:
            flags &= ~syscalls.CLONE_NEWPID
        if own_net:
            flags |= syscalls.CLONE_NEWNET
        groups = self._keeper.ground.cgroups.members(spec.id, "pause")
        blank = self.blanks.take(flags)
        if blank is not None and blank.become(spec, str(devices), groups):
            self._own(blank.pid, sandbox)
            return
        reader, writer = os.pipe2(os.O_CLOEXEC)
        uid, gid = os.getuid(), os.getgid()
        child = os.fork()
        if child == 0:
            try:
                for path in groups:
                    Path(path).write_text("0")
                launch.reset_signals()
                os.setsid()
                syscalls.unshare(flags)
                if self._keeper.ground.isolation == "user":
                    tiers.map_users(uid, gid)
                launch.become_sandbox(spec, str(devices), privileged=self._keeper.privileged)
                pid = os.fork()
                if pid:
                    launch.report(writer, pid=pid)
                    os._exit(0)
                null = os.open(os.devnull, os.O_RDWR)
                for number in range(3):
                    os.dup2(null, number)
                os.chdir("/")
                os.execv(self._pause_args[0], ["pause", *self._pause_args[1:]])
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
            self._own(fields["pid"], sandbox)

    def _own(self, pid: int, sandbox: Sandbox) -> None:
        """This is the sandbox's first process."""
        sandbox.pid = pid
        self._keeper.owners[pid] = ("sandbox", sandbox.id)
        self._keeper.claim(pid)

    def remove_one(self, request: Request, reply: Reply, *_: Any) -> None:
        """End a sandbox and all that runs in it; answers when it is gone."""
        self.remove(request["sandbox"], reply)

    def remove(self, uid: str, reply: Reply) -> None:
        """End a pod; ``reply`` is called when it is gone."""
        self._removing.setdefault(uid, []).append(reply)
        self._kill_pod(uid)
        self.finish_removal(uid)

    def _kill_pod(self, uid: str) -> None:
        sandbox = self.held.get(uid)
        self._keeper.ground.cgroups.kill(uid)
        pids = [sandbox.pid] if sandbox is not None and sandbox.pid and sandbox.alive else []
        for running in self._keeper.containers.held.values():
            if running.state.sandbox == uid and running.state.exit is None and running.state.pid:
                pids.append(running.state.pid)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)

    def finish_removal(self, uid: str) -> None:
        """Forget a pod once all of it is reaped."""
        if uid not in self._removing:
            return
        sandbox = self.held.get(uid)
        members = [running for running in self._keeper.containers.held.values() if running.state.sandbox == uid]
        if any(running.state.exit is None for running in members) or (
            sandbox is not None and sandbox.pid and sandbox.alive
        ):
            return
        if sandbox is not None:
            cgroup = Path(sandbox.cgroup) if sandbox.cgroup else None
            if cgroup is not None and self._keeper.ground.addresses is not None and cgroup.exists():
                self._keeper.ground.addresses.remove(cgroup)
        if not self._keeper.ground.cgroups.remove(uid):
            # processes that are dying still count: look again with the next SIGCHLD, or at the next beat
            self._keeper.ground.cgroups.kill(uid)
            for _ in range(200):
                if self._keeper.ground.cgroups.remove(uid):
                    break
                os.sched_yield()
        for running in members:
            self._keeper.containers.forget(running)
        self.held.pop(uid, None)
        self._specs.pop(uid, None)
        self._keeper.sockets.forget(uid)
        with contextlib.suppress(OSError):
            self._keeper.layout.sandbox(uid).unlink()
        for reply in self._removing.pop(uid):
            reply({})

    def flags(self, uid: str) -> int:
        """The namespaces of a pod that its processes join."""
        spec = self._specs[uid]
        flags = tiers.namespaces(self._keeper.ground.isolation)
        if spec.host_pid:
            flags &= ~syscalls.CLONE_NEWPID
        if self.held[uid].netns:
            flags |= syscalls.CLONE_NEWNET
        return flags

    def place_sockets(self, uid: str) -> Callable[[int], None]:
        """What takes the listener of a process of this pod."""
        return partial(self._keeper.sockets.add, self.held[uid], self._specs[uid].names)

    def reap(self) -> None:
        """Finish the removals that waited for processes to be reaped."""
        for uid in list(self._removing):
            self.finish_removal(uid)
