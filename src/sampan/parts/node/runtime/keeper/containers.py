"""Starting, signalling and forgetting containers, and writing down how they end.

A container is started in a fork (of the keeper, or of a zygote) that reports (`start_report`): its pid, an error, or, when the
report ends, that the program runs. A container is its main process: what it leaves behind ends with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from dataclasses import asdict
from functools import partial
from signal import SIGKILL
from typing import TYPE_CHECKING, Any

from sampan.parts.node.runtime import launch
from sampan.parts.node.runtime.interface import Container, ExitRecord, Limits
from sampan.parts.node.runtime.keeper.agents import Reply, Request
from sampan.parts.node.runtime.keeper.processes import exit_code, process_start, process_usage
from sampan.parts.node.runtime.keeper.start_report import StartReport, Told
from sampan.parts.node.runtime.keeper.streams import Running, Streams, close, resize
from sampan.parts.node.runtime.keeper.zygotes import Zygote
from sampan.parts.node.runtime.layout import record_exit, write_atomically
from sampan.parts.node.runtime.logs import LogFile

if TYPE_CHECKING:
    from sampan.parts.node.runtime.keeper.keeper import Keeper


class Containers:
    """The containers of this keeper, by id."""

    def __init__(self, keeper: Keeper) -> None:
        self.held: dict[str, Running] = {}
        self._keeper = keeper
        self._streams = Streams(keeper.selector, keeper.clock)

    @property
    def starting(self) -> bool:
        """The pid of some container is not known yet."""
        return any(running.starting for running in self.held.values())

    def start(self, request: Request, reply: Reply, *_: Any) -> None:
        """Start the container whose spec lies in its directory; answers once it runs, or with why it never will."""
        directory = self._keeper.layout.container(request["sandbox"], request["container"])
        spec = launch.read_container(f"{directory}/spec.json")
        if spec.id in self.held:
            reply({"container": asdict(self.held[spec.id].state)})
            return
        sandbox = self._keeper.sandboxes.held[spec.sandbox]
        if not sandbox.alive:
            raise OSError("the pod's sandbox has ended")
        cgroups = self._keeper.ground.cgroups
        cgroups.create(spec.sandbox, spec.id, spec.limits)
        for name in ("root", "work"):
            (directory / name).mkdir(exist_ok=True)
        running = Running(
            Container(
                spec.id, spec.sandbox, spec.name, spec.attempt, started_at=self._keeper.clock.time(), labels=spec.labels
            ),
            spec,
            LogFile(spec.log_path, spec.log_size, spec.log_files),
            reply=reply,
            oom_before=cgroups.oom_kills(spec.sandbox, spec.id),
        )
        self.held[spec.id] = running
        self._launch(
            running, self._keeper.zygotes.take(spec.python) if spec.python and self._keeper.options.zygote else None
        )

    def _launch(self, running: Running, zygote: Zygote | None) -> None:
        """Make the container's streams and fork it, from the zygote where one is given."""
        spec = running.spec
        directory = self._keeper.layout.container(spec.sandbox, spec.id)
        sandbox, cgroups = self._keeper.sandboxes.held[spec.sandbox], self._keeper.ground.cgroups
        streams = self._streams.make(running)
        running.report = report = StartReport(
            self._keeper.selector,
            Told(
                partial(self._forked, running),
                self._keeper.sandboxes.place_sockets(spec.sandbox),
                partial(self._started, running),
            ),
        )
        entry = launch.Entry(
            tuple(cgroups.members(spec.sandbox, spec.id)),
            sandbox.pid if self._keeper.ground.isolation != "none" else 0,
            self._keeper.sandboxes.flags(spec.sandbox),
        )
        settings = {
            "directory": str(directory),
            "skeleton": str(self._keeper.layout.skeleton),
            "devices": str(self._keeper.layout.memory(spec.sandbox, ".dev")),
            "mounts": self._keeper.ground.isolation != "none",
            "root": self._keeper.privileged,
            "rlimits": "pids" not in cgroups.has,
            "sockets": self._keeper.places_sockets(spec.sandbox),
            "own_network": bool(sandbox.netns),
        }
        status = report.descriptor
        running.forked = zygote is not None and self._start_forked(zygote, entry, settings, streams, status)
        if not running.forked:
            child = os.fork()
            if child == 0:
                launch.enter(entry, status, lambda: launch.start_container(str(directory), settings, streams, status))
                os._exit(1)
        for descriptor in {*streams}:
            os.close(descriptor)
        report.forked()

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

    def _forked(self, running: Running, pid: int) -> None:
        """The container's process is there, though not yet what it is to become."""
        running.state.pid = pid
        self._keeper.owners[pid] = ("container", running.state.id)
        directory = self._keeper.layout.container(running.state.sandbox, running.state.id)
        started = {"pid": pid, "start": process_start(pid)}
        write_atomically(directory / "started.json", json.dumps(started).encode())
        self._keeper.claim(pid)

    def _started(self, running: Running) -> None:
        """The program runs, or never will."""
        assert running.report is not None
        running.error, running.code = running.report.error, running.report.code
        if not running.state.pid and running.forked and not running.error:
            # the zygote was killed with the request in its hands: start it without one
            self._keeper.ground.cgroups.kill(running.state.sandbox, running.state.id)
            for descriptor in list(running.streams):
                self._streams.close_stream(running, descriptor)
            if running.stdin >= 0:
                close(running.stdin)
                running.stdin = -1
            self._launch(running, None)
            return
        if not running.state.pid:
            running.error = running.error or "the process that was to start it was killed"
            running.code = running.code or 128
            running.raw = 0
        self.maybe_exited(running)
        reply, running.reply = running.reply, None
        if reply is None:
            return
        if running.error:
            reply({"error": running.error, "code": running.code, "container": asdict(running.state)})
        else:
            reply({"container": asdict(running.state)})

    def signal(self, request: Request, reply: Reply, *_: Any) -> None:
        """Signal the main process (``everyone``: all its processes)."""
        running = self.held.get(request["container"])
        if running is not None and running.raw is None and running.state.pid:
            number = request["signal"]
            if request["everyone"] and number == SIGKILL:
                self._keeper.ground.cgroups.kill(running.state.sandbox, running.state.id)
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.state.pid, number)
            if request["everyone"] and self._keeper.ground.isolation == "none":
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(running.state.pid, number)
        reply({})

    def update(self, request: Request, reply: Reply, *_: Any) -> None:
        """Put a running container under other limits."""
        running = self.held.get(request["container"])
        if running is not None and running.state.exit is None:
            state = running.state
            self._keeper.ground.cgroups.limit(state.sandbox, state.id, Limits(**request["limits"]))
            state.labels = {**state.labels, **request["labels"]}
        reply({})

    def remove(self, request: Request, reply: Reply, *_: Any) -> None:
        """Forget an ended container."""
        running = self.held.get(request["container"])
        if running is not None:
            if running.state.exit is None:
                raise OSError("the container still runs")
            self._keeper.ground.cgroups.remove(running.state.sandbox, running.state.id)
            self.forget(running)
        reply({})

    def attach(self, request: Request, reply: Reply, descriptors: list[int], *_: Any) -> None:
        """Join the descriptors to a container's streams."""
        running = self.held.get(request["container"])
        if running is None:
            raise OSError("the container is not running")
        self._streams.attach(running, request["streams"], descriptors)
        reply({})

    def resize(self, request: Request, reply: Reply, *_: Any) -> None:
        """Set the size of a container's terminal, or of an execution's."""
        terminal = -1
        if "exec" in request:
            terminal = self._keeper.executions.terminal(request["exec"])
        elif running := self.held.get(request.get("container", "")):
            terminal = running.terminal
        if terminal >= 0:
            resize(terminal, request["rows"], request["columns"])
        reply({})

    def reopen_log(self, request: Request, reply: Reply, *_: Any) -> None:
        """Go on in a new log file."""
        self.held[request["container"]].log.rotate()
        reply({})

    def forget(self, running: Running) -> None:
        """Close everything of a container."""
        self.held.pop(running.state.id, None)
        for descriptor in list(running.streams):
            self._streams.close_stream(running, descriptor)
        running.log.close()
        if running.stdin >= 0 and running.stdin != running.terminal:
            close(running.stdin)
        for attachment in list(running.attached):
            self._streams.detach(running, attachment)

    def usage(self, request: Request, reply: Reply, *_: Any) -> None:
        """What running containers use."""
        usages = {}
        for identity in request["containers"]:
            running = self.held.get(identity)
            if running is not None and running.state.exit is None:
                usage = self._keeper.ground.cgroups.usage(running.state.sandbox, identity)
                if not self._keeper.ground.cgroups.has & {"memory", "cpuacct"}:
                    usage = process_usage(self._keeper.ground.cgroups.processes(running.state.sandbox, identity))
                usages[identity] = asdict(usage)
        reply({"usage": usages})

    def maybe_exited(self, running: Running) -> None:
        """Write the exit record and tell, once the process is reaped and its start is settled."""
        if running.raw is None or running.starting or running.state.exit is not None:
            return
        state = running.state
        # a container is its main process: what it leaves behind ends with it
        self._keeper.ground.cgroups.kill(state.sandbox, state.id)
        code, number = exit_code(running.raw)
        if running.error:
            code, number = running.code, 0
        oom = number == SIGKILL and self._keeper.ground.cgroups.oom_kills(state.sandbox, state.id) > running.oom_before
        for descriptor in list(running.streams):
            self._streams.drain(running, descriptor)
        state.exit = ExitRecord(code, self._keeper.clock.time(), number, oom, running.error)
        record_exit(self._keeper.layout.container(state.sandbox, state.id), state.exit)
        self._keeper.agents.tell({"event": "exited", "container": asdict(state)})
        self._keeper.sandboxes.finish_removal(state.sandbox)
