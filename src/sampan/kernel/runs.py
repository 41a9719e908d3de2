"""How the platform keeps one part going: in this process, or in a child of its own.

A `Run` is a part under supervision. It waits for what the part needs, brings it up, and when it fails takes it down and
tries again with growing delays. `LocalRun` does so in this process; a part it provides for (in this process) is taken down
first and comes back after it, because it holds what the failed one gave it. `ProcessRun` speaks over a `Channel` with a
child (``kernel.child``) that lives one life; dependents elsewhere reconnect by themselves.

Waits for real work (readiness, draining, processes) and restart delays run on the machine's time, not the platform's: a
frozen clock must not stop repairs, and a jump must not cut a start short.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import msgspec
from prometheus_client import CollectorRegistry

from sampan.kernel.certificates import Authority
from sampan.kernel.channel import Answer, Ask, Begin, Bound, Channel, Failed, Go, Ready, Steer, Stop
from sampan.kernel.clock import Clock, Timeline
from sampan.kernel.errors import SampanError, told
from sampan.kernel.listeners import ListenerBook
from sampan.kernel.part import Part, PartContext, PartSettings
from sampan.kernel.tasks import RESTART_FIRST, RESTART_LIMIT, Tasks
from sampan.kernel.telemetry import Tracer

log = logging.getLogger(__name__)

State = Literal["waiting", "starting", "ready", "failed", "stopping", "stopped"]


class PartFailedError(SampanError):
    """A part did not come up; the message says which and why."""


class PartStatus(msgspec.Struct, kw_only=True):
    """A part as ``sampan status`` shows it."""

    name: str
    state: State
    process: int
    """Process id it lives in; 0 while it has none."""
    restarts: int = 0
    error: str = ""
    """Why it last failed."""
    needs: list[str] = []
    facts: dict[str, Any] = {}


@dataclass
class Surroundings:
    """What the runs of one platform share."""

    root: Path
    sockets: Path
    clock: Clock
    machine: Clock
    tasks: Tasks
    listeners: ListenerBook
    metrics: CollectorRegistry
    authority: Authority
    tracer: Tracer
    services: dict[type[Any], Any]
    part_folder: Callable[[str], Path]
    changed: Callable[[], object]
    """Called when a run's state changes."""
    ready_seconds: float
    drain_seconds: float
    stop_seconds: float
    auto_ports: bool = False
    log_level: str = "info"
    terminal: bool = False
    remembered: dict[str, tuple[str, int]] = field(default_factory=dict)


class Run(ABC):
    """One part under supervision."""

    def __init__(self, around: Surroundings, part: type[Part[Any]], raw: dict[str, Any]) -> None:
        self.around = around
        self.type = part
        self.name = part.name
        self.raw = raw
        self.needs: list[Run] = []
        self.dependents: list[Run] = []
        self.state: State = "waiting"
        self.restarts = 0
        self.error = ""
        self.came_up = False
        """It was ready at least once."""
        self._failure: BaseException | None = None
        self._interrupted = False
        self._stopping = False
        self._wake = asyncio.Event()
        self._raising: asyncio.Task[Any] | None = None
        self._task: asyncio.Task[None] | None = None
        self._down_now = asyncio.Event()
        self._down_now.set()

    # -- what a kind of run does

    @property
    @abstractmethod
    def pid(self) -> int:
        """The process it lives in, 0 if none."""

    async def prepare(self) -> None:
        """What can be done before the needs are ready."""
        return

    @abstractmethod
    async def raise_part(self) -> None:
        """Provision, start, and wait for readiness."""

    @abstractmethod
    async def lower_part(self, drain: bool) -> None:
        """Take down whatever is up."""

    async def settle(self) -> None:
        """Everything has come up for the first time; see `Part.settle`."""
        return

    @abstractmethod
    async def facts(self) -> dict[str, Any]:
        """The part's own status facts."""

    @abstractmethod
    async def metrics(self) -> str | None:
        """Prometheus text of the run's own process; None when that is this process."""

    # -- supervision

    def begin(self) -> None:
        """Supervise from now on."""
        self._task = self.around.tasks.start(f"part/{self.name}", self._supervise())

    async def stop(self) -> None:
        """Drain, take down, and supervise no more."""
        self._stopping = True
        self._wake.set()
        if self._raising is not None:
            self._raising.cancel()
        if self._task is not None:
            await asyncio.wait([self._task])
        self._enter("stopped")

    def fail(self, error: BaseException) -> None:
        """The part failed on its own; the supervision takes it from here."""
        if self._failure is None:
            self._failure = error
        if self._raising is not None:
            self._raising.cancel()
        self._wake.set()

    def interrupt(self) -> None:
        """Something it stands on failed: come down, and up again after it."""
        self._interrupted = True
        self.nudge()

    def nudge(self) -> None:
        """Something changed that it may be waiting for."""
        self._wake.set()

    def status(self, facts: dict[str, Any]) -> PartStatus:
        return PartStatus(
            name=self.name,
            state=self.state,
            process=self.pid,
            restarts=self.restarts,
            error=self.error,
            needs=list(self.type.needs),
            facts=facts,
        )

    async def _supervise(self) -> None:
        delay = RESTART_FIRST
        while not self._stopping:
            self._failure, self._interrupted = None, False
            began = self.around.machine.monotonic()
            failure = await self._life()
            healthy = failure is None
            self._enter("stopping" if healthy else "failed")
            for dependent in self.dependents:
                dependent.interrupt()
            for dependent in self.dependents:
                await dependent._down_now.wait()
            # only who ends drains: what comes up again at once leaves its pods and connections to themselves
            await self.lower_part(drain=healthy and self._stopping)
            self._down_now.set()
            if failure is None:
                continue
            self._report(failure)
            if not self.came_up and not self._stopping:
                return  # a first start that fails is for the person who started the platform, who is told at once
            if self.around.machine.monotonic() - began >= RESTART_LIMIT:
                delay = RESTART_FIRST
            await self._pause(delay)
            delay = min(delay * 2, RESTART_LIMIT)
            self.restarts += 1

    async def _life(self) -> BaseException | None:
        """From preparation to the end of being ready; returns why it failed, None for an orderly end."""
        failure = await self._attempt(self.prepare())
        if failure is not None or self._ending():
            return self._failure or (None if self._ending() else failure)
        while not all(need.state == "ready" for need in self.needs):
            self._enter("waiting")
            await self._woken()
            if self._ending():
                return self._failure
        self._down_now.clear()  # from here on a need that fails must wait until this part is down
        self._enter("starting")
        began = self.around.machine.monotonic()
        failure = await self._attempt(self.raise_part())
        if failure is not None or self._ending():
            return self._failure or (None if self._ending() else failure)
        self.came_up = True
        self.error = ""
        log.info("%s is ready after %.2f s", self.name, self.around.machine.monotonic() - began)
        self._enter("ready")
        while not self._ending():
            await self._woken()
        return self._failure

    def _ending(self) -> bool:
        return self._stopping or self._interrupted or self._failure is not None

    async def _woken(self) -> None:
        await self._wake.wait()
        self._wake.clear()

    async def _pause(self, seconds: float) -> None:
        timer = self.around.machine.call_later(seconds, self._wake.set)
        end = self.around.machine.monotonic() + seconds
        while not self._stopping and self.around.machine.monotonic() < end - 0.001:
            await self._woken()
        timer.cancel()

    async def _attempt(self, work: Coroutine[Any, Any, None]) -> BaseException | None:
        """Do ``work`` within the bound for getting ready; returns what went wrong."""
        around = self.around

        async def bounded() -> BaseException | None:
            try:
                async with around.machine.timeout(around.ready_seconds):
                    await work
            except TimeoutError:
                return PartFailedError(f"{self.name} was not ready within {around.ready_seconds:g} s")
            except Exception as error:
                return error
            return None

        self._raising = raising = around.tasks.start(f"part/{self.name}/raise", bounded())
        try:
            await asyncio.wait([raising])
            if raising.cancelled():
                return self._failure or PartFailedError(f"{self.name} was stopped while it started")
            return raising.result()
        finally:
            self._raising = None
            work.close()

    async def _bounded(self, what: str, work: Coroutine[Any, Any, object], seconds: float) -> None:
        """Do ``work`` of an ending; what goes wrong is logged, for the ending goes on."""
        began = self.around.machine.monotonic()
        try:
            async with self.around.machine.timeout(seconds):
                await work
            log.debug("%s took %.2f s to %s", self.name, self.around.machine.monotonic() - began, what)
        except TimeoutError:
            log.warning("%s did not %s within %g s", self.name, what, seconds)
        except Exception:
            log.exception("%s failed to %s", self.name, what)

    def _report(self, failure: BaseException) -> None:
        self.error = told(failure)
        self._failure = failure
        known = isinstance(failure, SampanError)
        log.error("part %s failed: %s", self.name, self.error, exc_info=None if known else failure)
        self.around.changed()

    @property
    def failure(self) -> BaseException | None:
        """What ended its first start."""
        return self._failure if self.state == "failed" and not self.came_up else None

    def _enter(self, state: State) -> None:
        if state != self.state:
            self.state = state
            self.around.changed()


class LocalRun(Run):
    """A part in this process."""

    _part: Part[Any] | None = None
    _tasks: Tasks | None = None

    @property
    def pid(self) -> int:
        return os.getpid() if self._part is not None else 0

    @property
    def part(self) -> Part[Any] | None:
        """The part while it is up."""
        return self._part

    async def raise_part(self) -> None:
        around = self.around
        self._tasks = Tasks(around.clock, self.name, on_failure=self.fail)
        folder = around.part_folder(self.name)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings = decode_settings(self.type, self.raw)
        context: PartContext[Any] = PartContext(
            name=self.name,
            settings=settings,
            clock=around.clock,
            data_dir=folder,
            tasks=self._tasks,
            listeners=around.listeners,
            metrics=around.metrics,
            authority=around.authority,
            services=around.services,
            root=around.root,
            sockets=around.sockets,
            tracer=around.tracer,
        )
        self._part = part = self.type(context)
        await part.provision()
        await part.start()
        await part.ready()

    async def lower_part(self, drain: bool) -> None:
        part, tasks, around = self._part, self._tasks, self.around
        if part is not None:
            if drain:
                await self._bounded("drain", part.drain(), around.drain_seconds)
            await self._bounded("stop", part.stop(), around.stop_seconds)
        if tasks is not None:
            await self._bounded("end its tasks", tasks.cancel(), around.stop_seconds)
        self._part = self._tasks = None

    async def settle(self) -> None:
        if self._part is not None:
            await self._part.settle()

    async def facts(self) -> dict[str, Any]:
        return self._part.status() if self._part is not None else {}

    async def metrics(self) -> str | None:
        return None


class ProcessRun(Run):
    """A part in a child process."""

    _process: asyncio.subprocess.Process | None = None
    _channel: Channel | None = None

    def __init__(self, around: Surroundings, part: type[Part[Any]], raw: dict[str, Any], remotes: list[str]) -> None:
        super().__init__(around, part, raw)
        self._remotes = remotes
        self._ready = asyncio.Event()
        self._ended = asyncio.Event()
        self._questions: dict[int, asyncio.Future[Any]] = {}
        self._asked = 0

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    async def prepare(self) -> None:
        around = self.around
        self._ready.clear()
        self._ended.clear()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "sampan.kernel.child",
                str(theirs.fileno()),
                str(os.getpid()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C on the terminal is the core's business, which then stops the child
            )
        self._channel = await Channel.over(ours)
        self._channel.send(
            Begin(
                part=f"{self.type.__module__}:{self.type.__qualname__}",
                settings=self.raw,
                root=str(around.root),
                timeline=around.clock.timeline,
                remotes=self._remotes,
                addresses=around.listeners.addresses(),
                remembered=around.remembered | around.listeners.addresses(),
                auto_ports=around.auto_ports,
                log_level=around.log_level,
                terminal=around.terminal,
            )
        )
        around.tasks.start(f"part/{self.name}/child", self._listen(self._process, self._channel))

    async def raise_part(self) -> None:
        assert self._channel is not None
        for name, (host, port) in self.around.listeners.addresses().items():
            self._channel.send(Bound(name, host, port))
        self._channel.send(Go())
        await self._ready.wait()

    async def lower_part(self, drain: bool) -> None:
        process, channel, around = self._process, self._channel, self.around
        if process is None:
            return
        if channel is not None:
            channel.send(Stop(around.drain_seconds if drain else 0.0))
            seconds = around.stop_seconds + (around.drain_seconds if drain else 0.0)
            await self._bounded("end", self._ended.wait(), seconds)
        if process.returncode is None:
            process.kill()
            await process.wait()
        if channel is not None:
            channel.close()
        self._process = self._channel = None

    def steer(self, timeline: Timeline) -> None:
        """Tell the child of a steering."""
        if self._channel is not None:
            self._channel.send(Steer(timeline))

    def bound(self, name: str, host: str, port: int) -> None:
        """Tell the child of an address."""
        if self._channel is not None:
            self._channel.send(Bound(name, host, port))

    async def facts(self) -> dict[str, Any]:
        answer = await self._ask("facts") if self.state == "ready" else None
        return answer if isinstance(answer, dict) else {}

    async def metrics(self) -> str | None:
        answer = await self._ask("metrics") if self.state == "ready" else None
        return answer if isinstance(answer, str) else ""

    async def _ask(self, about: Literal["facts", "metrics"]) -> Any:
        """What the child answers; None when it does not within a few seconds."""
        if self._channel is None:
            return None
        self._asked += 1
        number = self._asked
        self._questions[number] = future = asyncio.get_running_loop().create_future()
        self._channel.send(Ask(number, about))
        try:
            async with self.around.machine.timeout(3.0):
                return await future
        except TimeoutError:
            return None
        finally:
            self._questions.pop(number, None)

    async def _listen(self, process: asyncio.subprocess.Process, channel: Channel) -> None:
        """Hear the child until it is gone."""
        failure: str | None = None
        while (message := await channel.receive()) is not None:
            match message:
                case Ready():
                    self._ready.set()
                case Bound(name, host, port):
                    self.around.listeners.record(name, host, port)
                case Answer(number, body):
                    future = self._questions.get(number)
                    if future is not None and not future.done():
                        future.set_result(body)
                case Failed(error):
                    failure = error
                case _:
                    log.warning("%s sent %s, which only the core may send", self.name, type(message).__name__)
        for future in self._questions.values():
            if not future.done():
                future.set_result(None)
        if process.returncode is None and channel.broken:
            process.kill()  # it no longer hears us
        code = await process.wait()
        self._ended.set()
        if not self._stopping and self.state not in ("stopping", "failed"):
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            self.fail(PartFailedError(failure or f"the process of {self.name} {how}"))


def decode_settings(part: type[Part[Any]], raw: dict[str, Any]) -> PartSettings:
    """A part's raw settings as its struct.

    Raises:
        SettingsError: a value has the wrong type.
    """
    from sampan.kernel.settings import decode

    return decode(part.name, raw, part.settings_type)


def load_object(place: str) -> Any:
    """What ``module:name`` names.

    Raises:
        SampanError: there is no such thing.
    """
    module, _, name = place.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise SampanError(f"{place} cannot be loaded: {error}") from error
