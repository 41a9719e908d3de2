"""The platform: chooses the parts, brings them up in dependency order, keeps them going, and takes them down.

From nothing to ready::

    data directory locked → clock restored → settings merged and decoded → authority → admin socket
        → every part at once, each waiting only for what it needs: provision → start → ready

A first start that fails ends the platform with that part's error, for the person who started it; a part that fails later is
restarted with growing delays (``kernel.runs``) while the others go on, and ``sampan status`` says so. Parts that ask for a
process of their own get one, unless the platform is told to keep everything in one (tests).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import msgspec
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from sampan.kernel import steering, telemetry
from sampan.kernel.admin import AdminServer
from sampan.kernel.certificates import Authority
from sampan.kernel.clock import Clock, Timeline, machine_time
from sampan.kernel.errors import DataDirectoryError, SampanError, SettingsError
from sampan.kernel.folder import DataDirectory, RunState
from sampan.kernel.issuing import Issuing
from sampan.kernel.listeners import ListenerBook
from sampan.kernel.part import OwnProcesses, Part, PartSettings
from sampan.kernel.runs import LocalRun, PartFailedError, PartStatus, ProcessRun, Run, Surroundings, load_object
from sampan.kernel.settings import Section, decode, load, nearest
from sampan.kernel.tasks import Tasks
from sampan.kernel.telemetry import Tracer, gauge
from sampan.kernel.traces import Traces

log = logging.getLogger(__name__)

T = TypeVar("T")

RENEW_EVERY = 86400.0
"""Machine seconds between looks for certificates that are due."""


class PlatformSettings(PartSettings, kw_only=True):
    """Settings of the platform itself (section ``platform``)."""

    ports: Annotated[
        Literal["default", "auto"],
        msgspec.Meta(description="`default`: the upstream's own port numbers; `auto`: free ones, kept across restarts"),
    ] = "default"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], msgspec.Meta(description="the least severe record that is logged")
    ] = "info"
    ready_seconds: Annotated[
        float,
        msgspec.Meta(description="seconds a part may take to become ready before its start counts as failed", gt=0),
    ] = 60.0
    drain_seconds: Annotated[
        float, msgspec.Meta(description="seconds a part may take to finish what is under way when it is stopped", ge=0)
    ] = 5.0
    stop_seconds: Annotated[
        float, msgspec.Meta(description="seconds a part may take to release everything before it is cut off", gt=0)
    ] = 10.0


class PlatformStatus(msgspec.Struct, kw_only=True):
    """A running platform as ``sampan status --json`` shows it."""

    state: Literal["starting", "ready", "degraded", "stopping"]
    pid: int
    version: str
    started: float
    """Machine time, seconds since the epoch."""
    data_dir: str
    clock: dict[str, Any]
    parts: list[PartStatus]
    addresses: dict[str, str]
    """``host:port`` of every listener by name."""


class Platform:
    """One running Sampan; make it, `start` it, `stop` it. All methods belong to one event loop.

    ``parts`` maps each known part's name to its ``module:Class`` (or its class). ``only`` and ``without`` choose among
    them, needs included. ``settings_file`` replaces ``sampan.yaml`` of the data directory; ``flags`` are ``part.field=value``.
    ``clock``: a clock to use as it is (tests), instead of the data directory's. ``one_process`` keeps every part here.
    ``issuing`` makes certificates, this process if it is None.
    ``logs``: where this process's log records go (``none`` leaves logging alone, for tests); ``both`` is file and terminal.
    """

    def __init__(
        self,
        parts: Mapping[str, str | type[Part[Any]]],
        data_dir: Path,
        *,
        version: str = "",
        only: Sequence[str] = (),
        without: Sequence[str] = (),
        settings_file: Path | None = None,
        environment: Mapping[str, str] | None = None,
        flags: Sequence[str] = (),
        clock: Clock | None = None,
        one_process: bool = False,
        logs: Literal["none", "file", "both"] = "none",
        issuing: Issuing | None = None,
    ) -> None:
        self.directory = DataDirectory(data_dir.expanduser().absolute())
        self.version = version
        self._known = parts
        self._chosen = choose(parts, only, without)
        self._settings_file = settings_file
        self._environment = environment
        self._flags = flags
        self._given_clock = clock
        self._one_process = one_process
        self._logs = logs
        self._issuing = issuing
        self._log_sinks = contextlib.ExitStack()
        self._runs: dict[str, Run] = {}
        self._changed = asyncio.Event()
        self._stop_asked = asyncio.Event()
        self._state: Literal["starting", "ready", "stopping"] = "starting"
        self.started = 0.0
        self.metrics = CollectorRegistry()
        self.services: dict[type[Any], Any] = {}

    clock: Clock
    """The platform's clock, from `start` on."""
    settings: PlatformSettings
    listeners: ListenerBook
    authority: Authority
    tracer: Tracer
    traces: Traces

    # -- life

    async def start(self) -> None:
        """Bring everything up; returns when every part is ready (`ready`), or the platform was asked to stop.

        Raises:
            SampanError: the platform cannot run; everything that was up is down again.
        """
        self.directory.open()
        try:
            raw = self._prepare()
            await self._raise(raw)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Drain and stop every part, dependents first; idempotent."""
        if self._state == "ready":
            log.info("the platform stops")
        self._state = "stopping"
        if hasattr(self, "_tasks"):
            await self._lower_runs()
            if self._admin is not None:
                await self._admin.stop()
                self._admin = None
            await self._tasks.cancel()
            if self._given_clock is None:
                await self._keep_reading()
        if self.directory.held:
            (self.directory.run / "state.json").unlink(missing_ok=True)
        self._log_sinks.close()
        self.directory.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def ask_to_stop(self) -> None:
        """Make `wait` return."""
        self._stop_asked.set()
        self._changed.set()

    async def wait(self) -> None:
        """Until somebody asks the platform to stop."""
        await self._stop_asked.wait()

    @property
    def ready(self) -> bool:
        """Every part came up, and nobody has begun to stop it."""
        return self._state == "ready"

    # -- what it shows

    def get(self, interface: type[T]) -> T:
        """What a part of this process provides under ``interface``.

        Raises:
            LookupError: nothing does.
        """
        try:
            service: T = self.services[interface]
        except KeyError:
            raise LookupError(f"no part of this process provides {interface.__name__}") from None
        return service

    async def status(self) -> PlatformStatus:
        """The platform's state, parts and addresses."""
        parts = [run.status(await run.facts()) for run in self._runs.values()]
        degraded = self._state == "ready" and any(part.state != "ready" for part in parts)
        return PlatformStatus(
            state="degraded" if degraded else self._state,
            pid=os.getpid(),
            version=self.version,
            started=self.started,
            data_dir=str(self.directory.path),
            clock=steering.describe(self.clock),
            parts=parts,
            addresses={name: _address_text(*address) for name, address in sorted(self.listeners.addresses().items())},
        )

    async def metrics_text(self, part: str | None = None) -> str:
        """Prometheus text of this process, or of a part's own process.

        Raises:
            SampanError: there is no such part.
        """
        if part is not None:
            run = self._runs.get(part)
            if run is None:
                raise SampanError(f"no part named {part} is running{nearest(part, self._runs)}")
            text = await run.metrics()
            if text is not None:
                return text
        return generate_latest(self.metrics).decode()

    # -- coming up

    def _prepare(self) -> dict[str, Section]:
        """Everything before the parts: settings, clock, authority, addresses."""
        types: dict[str, type[msgspec.Struct]] = {"platform": PlatformSettings}
        types |= {name: part.settings_type for name, part in self._chosen.items()}
        raw = load(
            types,
            file=self._settings_file or self.directory.settings,
            environment=self._environment,
            flags=self._flags,
            others=[name for name in self._known if name not in types],
        )
        self.settings = decode("platform", raw["platform"], PlatformSettings)
        for name, part in self._chosen.items():
            decode(name, raw[name], part.settings_type)  # a mistake is told before anything starts
        self.started = machine_time()
        self.clock = self._given_clock or Clock(steering.restore(self.directory.clock))
        if self._logs != "none":
            sink = telemetry.logs(
                self.directory.logs,
                "core",
                self.clock,
                terminal=self._logs == "both",
                level=self.settings.log_level,
            )
            self._log_sinks.enter_context(sink)
        self.authority = Authority(self.directory.pki, issuing=self._issuing)
        self.tracer = Tracer(self.clock)
        before = self.directory.read_state()
        self._remembered = before.addresses if before is not None else self.directory.read_ports()
        self.listeners = ListenerBook(
            auto=self.settings.ports == "auto", remembered=self._remembered, on_record=self._recorded
        )
        self.services[Clock] = self.clock
        self.services[Tracer] = self.tracer
        self.traces = Traces(self.clock)
        self.tracer.add_exporter(self.traces.take)
        self.services[Traces] = self.traces
        ProcessCollector(registry=self.metrics)
        return raw

    async def _raise(self, raw: Mapping[str, Section]) -> None:
        machine = Clock()
        self._tasks = Tasks(machine, "platform", on_failure=self._broken)
        around = Surroundings(
            root=self.directory.path,
            sockets=self.directory.sockets,
            clock=self.clock,
            machine=machine,
            tasks=self._tasks,
            listeners=self.listeners,
            metrics=self.metrics,
            authority=self.authority,
            tracer=self.tracer,
            services=self.services,
            part_folder=self.directory.part,
            changed=self._on_change,
            ready_seconds=self.settings.ready_seconds,
            drain_seconds=self.settings.drain_seconds,
            stop_seconds=self.settings.stop_seconds,
            auto_ports=self.settings.ports == "auto",
            log_level=self.settings.log_level,
            terminal=self._logs == "both",
            remembered=self._remembered,
        )
        self._link(around, raw)
        self.clock.on_steer(self._steered)
        self._write_state()
        await self._serve_admin()
        self._tasks.keep("certificates", lambda: self._renew(machine))
        kept = self._tasks.start("settle", asyncio.to_thread(self._settle))
        for run in self._runs.values():
            run.begin()
        while not all(run.state == "ready" for run in self._runs.values()):
            for run in self._runs.values():
                if (failure := run.failure) is not None:
                    if isinstance(failure, SampanError):
                        raise failure
                    raise PartFailedError(f"part {run.name} did not start: {run.error}") from failure
            if self._stop_asked.is_set():
                return
            self._changed.clear()
            await self._changed.wait()
        await asyncio.gather(kept, *(run.settle() for run in self._runs.values()))
        self._state = "ready"
        log.info("the platform is ready after %.2f s", machine_time() - self.started)
        self._write_state()

    def _settle(self) -> None:
        """Flush what a first start has made, while the parts come up."""
        try:
            self.directory.settle()
            self.authority.settle()
        except OSError as error:
            raise DataDirectoryError(f"{self.directory.path} cannot be written: {error.strerror}") from error

    def _link(self, around: Surroundings, raw: Mapping[str, Section]) -> None:
        needs = {
            name: [*part.needs, *(want for want in part.wants if want in self._chosen)]
            for name, part in self._chosen.items()
        }
        for name, part in self._chosen.items():
            if part.own_process and not self._one_process:
                remotes = [self._chosen[need].remote for need in closure(self._chosen, needs[name])]
                run: Run = ProcessRun(around, part, raw[name], [remote for remote in remotes if remote])
            else:
                run = LocalRun(around, part, raw[name])
            self._runs[name] = run
        self.services[OwnProcesses] = OwnProcesses(
            name for name, run in self._runs.items() if isinstance(run, ProcessRun)
        )
        for name, run in self._runs.items():
            run.needs = [self._runs[need] for need in needs[name]]
            if isinstance(run, LocalRun):
                for need in run.needs:
                    need.dependents.append(run)

    _admin: AdminServer | None = None

    async def _serve_admin(self) -> None:
        self._admin = AdminServer(self)
        await self._admin.start()

    async def _lower_runs(self) -> None:
        """Stop the runs, each after everything that needs it."""
        down = {name: asyncio.Event() for name in self._runs}

        async def lower(run: Run) -> None:
            for other in self._runs.values():
                if run in other.needs:
                    await down[other.name].wait()
            try:
                await run.stop()
            finally:
                down[run.name].set()

        await asyncio.gather(*(lower(run) for run in self._runs.values()))

    def _broken(self, error: BaseException) -> None:
        """Supervision itself failed: nothing is looked after any more, so the platform ends."""
        log.critical("the platform cannot go on: %s", error, exc_info=error)
        self.ask_to_stop()

    # -- following what happens

    def _on_change(self) -> None:
        self._changed.set()
        states = gauge(self.metrics, "sampan_part_ready", "1 while the part is ready.", ["part"])
        restarts = gauge(
            self.metrics, "sampan_part_restarts", "Restarts of the part since the platform began.", ["part"]
        )
        for run in self._runs.values():
            states.labels(run.name).set(run.state == "ready")
            restarts.labels(run.name).set(run.restarts)
            run.nudge()

    def _recorded(self, name: str, address: tuple[str, int]) -> None:
        for run in self._runs.values():
            if isinstance(run, ProcessRun):
                run.bound(name, *address)
        if self._state == "ready":
            self._write_state()

    def _steered(self, timeline: Timeline) -> None:
        for run in self._runs.values():
            if isinstance(run, ProcessRun):
                run.steer(timeline)
        if self._given_clock is None and self._state != "stopping":
            self._tasks.start("clock/save", self._save_clock())

    async def _save_clock(self) -> None:
        """Keep the reading; while the clock runs faster than the machine's, again and again."""
        machine, timeline = Clock(), self.clock.timeline
        while True:
            await self._keep_reading()
            if timeline.rate in (0.0, 1.0):
                return
            await machine.sleep(steering.SAVE_EVERY)
            if self.clock.timeline != timeline:
                return

    async def _keep_reading(self) -> None:
        try:
            await asyncio.to_thread(steering.save, self.directory.clock, self.clock)
        except OSError as error:
            log.error("the clock's reading cannot be kept, the next start will not know of it: %s", error)

    async def _renew(self, machine: Clock) -> None:
        while True:
            await machine.sleep(RENEW_EVERY)
            for leaf in await asyncio.to_thread(self.authority.renew):
                log.info("renewed certificate %s", leaf)

    def _write_state(self) -> None:
        state = RunState(
            pid=os.getpid(),
            version=self.version,
            started=self.started,
            ready=self._state == "ready",
            addresses=self.listeners.addresses(),
        )
        try:
            self.directory.write_state(state)
            if self._state == "ready":
                self.directory.write_ports(self.listeners.addresses())
        except OSError as error:
            # the admin socket tells the same; a full disk must not take running parts down
            log.error("the state of the run cannot be written: %s", error)


def choose(
    parts: Mapping[str, str | type[Part[Any]]], only: Sequence[str], without: Sequence[str]
) -> dict[str, type[Part[Any]]]:
    """The chosen parts with everything they need, needs first.

    ``only`` empty: all. A part that needs one left out by ``without`` is left out too.

    Raises:
        SettingsError: a name is unknown, ``only`` asks for a part that ``without`` excludes, or parts need each other.
    """
    for name in (*only, *without):
        if name not in parts:
            raise SettingsError(f"there is no part named {name}{nearest(name, parts)}")
    chosen: dict[str, type[Part[Any]]] = {}
    path: list[str] = []

    def missing(name: str) -> str | None:
        """Add ``name`` with its needs; the excluded part that stands in the way, if one does."""
        if name in without:
            return name
        if name in chosen:
            return None
        if name in path:
            raise SettingsError(f"parts need each other: {' → '.join([*path, name])}")
        place = parts[name]
        part: type[Part[Any]] = load_object(place) if isinstance(place, str) else place
        path.append(name)
        blocked = next((found for need in part.needs if (found := missing(need)) is not None), None)
        path.pop()
        if blocked is None:
            chosen[name] = part
        return blocked

    for name in only or parts:
        blocked = missing(name)
        if blocked is not None and only:
            raise SettingsError(f"{name} needs {blocked}, which is excluded")
    return chosen


def closure(parts: Mapping[str, type[Part[Any]]], names: Iterable[str]) -> list[str]:
    """``names`` and everything they need, needs first."""
    ordered: list[str] = []
    for name in names:
        for deeper in [*closure(parts, parts[name].needs), name]:
            if deeper not in ordered:
                ordered.append(deeper)
    return ordered


def _address_text(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
