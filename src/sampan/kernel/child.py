"""A child process: one part, one life, one line to the core process.

Run by ``kernel.runs`` as ``python -m sampan.kernel.child <descriptor of the channel> <core's process id>``. The child follows
the platform's clock, writes its own log file in the platform's folder, binds its own sockets and tells the core of them. It
dies with the core, however that ends: the kernel sends it SIGKILL (Linux), or it sees the line break.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from sampan.kernel import telemetry
from sampan.kernel.certificates import Authority
from sampan.kernel.channel import Answer, Ask, Begin, Bound, Channel, Failed, Go, Ready, Steer, Stop
from sampan.kernel.clock import Clock
from sampan.kernel.collection import Collector
from sampan.kernel.errors import told
from sampan.kernel.folder import DataDirectory
from sampan.kernel.listeners import ListenerBook
from sampan.kernel.part import Part, PartContext
from sampan.kernel.runs import decode_settings, load_object
from sampan.kernel.tasks import Tasks
from sampan.kernel.telemetry import Tracer

PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends (Linux)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)  # it ended before we asked


class _Ended(Exception):
    """The core is gone or told us to stop."""


class Child:
    """The part of this process and its line to the core."""

    def __init__(self, channel: Channel, begin: Begin) -> None:
        self._channel = channel
        self._begin = begin
        self.clock = Clock(begin.timeline)
        self._go = asyncio.Event()
        self._end = asyncio.Event()
        self._drain_seconds = 0.0
        self._failure: BaseException | None = None
        self._part: Part[Any] | None = None
        self._metrics = CollectorRegistry()
        self._listeners = ListenerBook(auto=begin.auto_ports, remembered=begin.remembered, on_record=self._recorded)
        for name, (host, port) in begin.addresses.items():
            self._hear_address(name, host, port)

    async def live(self) -> int:
        """The whole life; returns the exit code."""
        begin, clock = self._begin, self.clock
        part_type: type[Part[Any]] = load_object(begin.part)
        name = part_type.name
        directory = DataDirectory(Path(begin.root))
        collector = Collector()
        async with (
            Tasks(clock, name, on_failure=self._failed) as tasks,
            Tasks(clock, "core", on_failure=self._failed) as line,
        ):
            line.start("listen", self._listen())
            ProcessCollector(registry=self._metrics)
            services: dict[type[Any], Any] = {Clock: clock}
            folder = directory.part(name)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            context: PartContext[Any] = PartContext(
                name=name,
                settings=decode_settings(part_type, begin.settings),
                clock=clock,
                data_dir=folder,
                tasks=tasks,
                listeners=self._listeners,
                metrics=self._metrics,
                authority=Authority(directory.pki),
                services=services,
                root=directory.path,
                sockets=directory.sockets,
                tracer=Tracer(clock, name),
            )
            try:
                await self._unless_ended(line, self._raise(part_type, context))
                gc.collect()
                collector.begin()
                self._channel.send(Ready())
                await self._end.wait()
            except _Ended:
                pass
            finally:
                collector.end()
                await self._lower(context)
                await tasks.cancel()
            if self._failure is not None:
                raise self._failure
            return 0

    async def _raise(self, part_type: type[Part[Any]], context: PartContext[Any]) -> None:
        await self._go.wait()
        for place in self._begin.remotes:
            await load_object(place)(context)
        self._part = part = part_type(context)
        await part.provision()
        await part.start()
        await part.ready()

    async def _lower(self, context: PartContext[Any]) -> None:
        if self._part is None:
            return
        if self._failure is None and self._drain_seconds > 0:
            try:
                async with Clock().timeout(self._drain_seconds):
                    await self._part.drain()
            except TimeoutError:
                context.log.warning("did not drain within %g s", self._drain_seconds)
        try:
            await self._part.stop()
        except Exception:
            if self._failure is None:
                raise
            context.log.exception("failed to stop after its failure")  # the failure is what must be reported

    async def _unless_ended(self, line: Tasks, work: Any) -> None:
        """Do ``work``, but stop when the core goes or the part's tasks fail."""
        doing = line.start("raise", _captured(work))
        ending = line.start("end", self._end.wait())
        await asyncio.wait([doing, ending], return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if not doing.done():
            doing.cancel()
            await asyncio.wait([doing])
            raise _Ended
        if (error := doing.result()) is not None:
            self._failure = error
            raise _Ended

    def _failed(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._end.set()

    def _recorded(self, name: str, address: tuple[str, int]) -> None:
        if self._hearing:
            return
        self._channel.send(Bound(name, *address))

    _hearing = False

    def _hear_address(self, name: str, host: str, port: int) -> None:
        """Note an address without telling the core, which told us."""
        self._hearing = True
        try:
            self._listeners.record(name, host, port)
        finally:
            self._hearing = False

    async def _listen(self) -> None:
        while (message := await self._channel.receive()) is not None:
            match message:
                case Go():
                    self._go.set()
                case Steer(timeline):
                    self.clock.steer(timeline)
                case Bound(name, host, port):
                    self._hear_address(name, host, port)
                case Ask(number, about):
                    self._channel.send(Answer(number, self._answers[about]()))
                case Stop(drain_seconds):
                    self._drain_seconds = drain_seconds
                    self._end.set()
                case _:
                    logging.getLogger("sampan.child").warning("unexpected %s", type(message).__name__)
        self._end.set()

    @property
    def _answers(self) -> dict[str, Callable[[], Any]]:
        return {
            "facts": lambda: self._part.status() if self._part is not None else {},
            "metrics": lambda: generate_latest(self._metrics).decode(),
        }


async def _captured(work: Any) -> BaseException | None:
    try:
        await work
    except Exception as error:
        return error
    return None


async def run(end: socket.socket) -> int:
    """Live one life over the channel; returns the exit code."""
    channel = await Channel.over(end)
    begin = await channel.receive()
    if not isinstance(begin, Begin):
        return 1
    name = begin.part.rpartition(":")[2]
    try:
        child = Child(channel, begin)
        name = load_object(begin.part).name
        with telemetry.logs(
            DataDirectory(Path(begin.root)).logs, name, child.clock, terminal=begin.terminal, level=begin.log_level
        ):
            try:
                return await child.live()
            except Exception:
                logging.getLogger(f"sampan.{name}").exception("the process ends")
                raise
    except Exception as error:
        channel.send(Failed(told(error)))
        await channel.flush()
        return 1
    finally:
        channel.close()


def main() -> None:
    """The entry of the child process."""
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    die_with(parent)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(run(socket.socket(fileno=descriptor))))


if __name__ == "__main__":
    main()
