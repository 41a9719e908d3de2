"""Further processes in running containers: `kubectl exec`, exec probes and hooks.

They belong to the agent that asked: when it goes, they go.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from sampan.parts.node.runtime import launch
from sampan.parts.node.runtime.keeper.agents import Reply, Request
from sampan.parts.node.runtime.keeper.processes import exit_code
from sampan.parts.node.runtime.keeper.start_report import StartReport, Told

if TYPE_CHECKING:
    from sampan.parts.node.runtime.keeper.keeper import Keeper


@dataclass
class Execution:
    """A further process in a container."""

    number: int
    container: str
    terminal: int
    agent: socket.socket
    report: StartReport = field(init=False)
    pid: int = 0
    error: str = ""
    raw: int | None = None
    started: bool = False


class Executions:
    """The further processes, by number."""

    def __init__(self, keeper: Keeper) -> None:
        self.held: dict[int, Execution] = {}
        self._keeper = keeper
        self._numbers = 0

    @property
    def starting(self) -> bool:
        """The pid of one of them may not be known yet."""
        return any(not execution.started for execution in self.held.values())

    def terminal(self, number: int) -> int:
        """The terminal of an execution, -1 where there is none."""
        execution = self.held.get(number)
        return execution.terminal if execution is not None else -1

    def drop(self, agent: socket.socket) -> None:
        """End what an agent that is gone had asked for."""
        for execution in [e for e in self.held.values() if e.agent is agent]:
            if execution.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(execution.pid, signal.SIGKILL)

    def start(self, request: Request, reply: Reply, descriptors: list[int], connection: socket.socket) -> None:
        """Start a process beside a container's main one."""
        running = self._keeper.containers.held.get(request["container"])
        if running is None or running.state.exit is not None or not running.state.pid:
            raise OSError("container not running")
        own_network = bool(self._keeper.sandboxes.held[running.spec.sandbox].netns)
        spec, args, tty = replace(running.spec, own_network=own_network), tuple(request["args"]), bool(request["tty"])
        streams = (descriptors[0],) * 3 if tty else (descriptors[0], descriptors[1], descriptors[2])
        self._numbers += 1
        join = running.state.pid if self._keeper.ground.isolation != "none" else 0
        entry = launch.Entry(
            tuple(self._keeper.ground.cgroups.members(spec.sandbox, spec.id)),
            join,
            self._keeper.sandboxes.flags(spec.sandbox),
        )
        execution = Execution(self._numbers, spec.id, -1, connection)
        execution.report = report = StartReport(
            self._keeper.selector,
            Told(
                partial(self._forked, execution),
                self._keeper.sandboxes.place_sockets(spec.sandbox),
                partial(self._started, execution, reply),
            ),
        )
        process = launch.Execution(spec, args, tty, self._keeper.privileged, self._keeper.places_sockets(spec.sandbox))
        child = os.fork()
        if child == 0:
            status = report.descriptor
            launch.enter(entry, status, lambda: launch.start_exec(process, streams, status))
            os._exit(1)
        report.forked()
        execution.terminal = os.dup(descriptors[0]) if tty else -1
        for descriptor in descriptors:
            os.close(descriptor)
        self.held[execution.number] = execution

    def _forked(self, execution: Execution, pid: int) -> None:
        execution.pid = pid
        self._keeper.owners[pid] = ("exec", str(execution.number))
        self._keeper.claim(pid)

    def _started(self, execution: Execution, reply: Reply) -> None:
        execution.started = True
        execution.error = execution.report.error
        if execution.error or not execution.pid:
            code = execution.report.code or 128
            execution.error = execution.error or "the process was killed at its start"
            reply({"error": execution.error, "code": code})
            if not execution.pid:
                execution.raw = 0
        else:
            reply({"exec": execution.number})
        self.over(execution)

    def over(self, execution: Execution) -> None:
        """Tell how it ended, once it is reaped and its start is settled."""
        if execution.raw is None or not execution.started:
            return
        self.held.pop(execution.number, None)
        if execution.terminal >= 0:
            os.close(execution.terminal)
        if not execution.error and execution.agent in self._keeper.agents.connected:
            code, _signal = exit_code(execution.raw)
            self._keeper.agents.send(execution.agent, {"event": "exec-exited", "exec": execution.number, "code": code})

    def kill(self, request: Request, reply: Reply, *_: Any) -> None:
        """End a further process and its group."""
        execution = self.held.get(request["exec"])
        if execution is not None and execution.pid and execution.raw is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(execution.pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(execution.pid, signal.SIGKILL)
        reply({})
