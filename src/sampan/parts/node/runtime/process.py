"""The process runtime: the agent's side of the keeper.

Starts a keeper where none serves the node, speaks to it over its socket, and offers `Runtime`. It keeps no state of its own
beyond what is under way: after an agent restart, `ProcessRuntime.list` tells what runs. Containers whose keeper died are found
by their files and given back as ended with the error ``lost``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import itertools
import json
import logging
import os
import pty
import shutil
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from sampan.kernel import detached
from sampan.kernel.addresses import door
from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.parts.node.errors import NodeError, RuntimeLostError, SandboxError, StartError
from sampan.parts.node.runtime import links
from sampan.parts.node.runtime.interface import (
    ADDRESSED,
    Container,
    ContainerSpec,
    ExecSpec,
    ExitRecord,
    Limits,
    OnExit,
    Process,
    Sandbox,
    SandboxSpec,
    Tier,
    Usage,
)
from sampan.parts.node.runtime.kept import KeptProcess
from sampan.parts.node.runtime.layout import Layout

log = logging.getLogger(__name__)

MESSAGE_SIZE = 1 << 18
GIVE_UP_LIMIT = 5.0
"""Seconds for a keeper to end that was started for a node that does not come up."""
START_LIMIT = 20.0
"""Seconds a keeper may take to come up on a busy machine."""
KEEPER = "node-keeper"
"""The keeper's name among the processes that outlive the core."""


class LaunchFailedError(StartError):
    """The program could not be started; ``code`` is the exit code a runtime reports for it."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class ProcessRuntime:
    """Runs containers as processes through a keeper that outlives this one."""

    name = "sampan"

    def __init__(
        self,
        directory: Path,
        clock: Clock,
        tasks: Tasks,
        *,
        pod_range: str = "",
        networks: Sequence[str] = ("10.244.0.0/16", "10.96.0.0/12"),
        tier: str = "auto",
        abandon: float = 600.0,
        zygote: bool = True,
        book: Path | None = None,
    ) -> None:
        """``book``: the platform's ``run`` folder, where the keeper is noted for ``sampan down`` to end when no agent can."""
        self.layout = Layout(directory)
        self.tier: Tier = "T3"
        self.why = ""
        """What kept the machine from a better tier, and pods from ports of their own."""
        self.pod_range = pod_range
        """The node's pod range, known after `start`."""
        self.controllers: frozenset[str] = frozenset()
        self.cgroup = ""
        """The node's cgroup v2 directory: where the network attaches its programs."""
        self.table = ""
        """The nf_tables table that is the node's own; "" where it can have none."""
        self.isolation = "none"
        self._clock = clock
        self._tasks = tasks
        self._book = book
        self._options: dict[str, Any] = {
            "base": str(directory),
            "name": hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:10],
            "pod_range": pod_range,
            "networks": list(networks),
            "tier": tier,
            "abandon": abandon,
            "zygote": zygote,
        }
        self._connection: socket.socket | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._listing: dict[int, tuple[list[Sandbox], list[Container]]] = {}
        self._outgoing: deque[tuple[bytes, list[int]]] = deque()
        self._executions: dict[int, KeptProcess] = {}
        self._early: dict[int, int] = {}
        self._on_exit: OnExit = lambda _: None
        self._on_lost: Callable[[], None] = lambda: None
        self._on_sandbox_end: Callable[[str], None] = lambda _: None
        self._hello: asyncio.Future[None] | None = None
        self._keeper: asyncio.Future[subprocess.Popen[bytes]] | None = None
        """The keeper that was started last; a start that was cancelled leaves it to the next, which starts no second one."""
        self.keeper_pid = 0

    # -- life

    async def start(
        self, on_exit: OnExit, on_lost: Callable[[], None], on_sandbox_end: Callable[[str], None] = lambda _: None
    ) -> None:
        """Connect to the node's keeper, starting one where none serves.

        Raises:
            RuntimeLostError: no keeper comes up; its last words are in ``keeper.log``.
        """
        self._on_exit, self._on_lost, self._on_sandbox_end = on_exit, on_lost, on_sandbox_end
        self.layout.base.mkdir(parents=True, exist_ok=True)
        self.layout.pods.mkdir(exist_ok=True)
        machine = Clock()  # the keeper starts however the platform's clock runs
        deadline = machine.monotonic() + START_LIMIT
        before = self._keeper
        if before is not None and before.done() and (before.exception() or before.result().poll() is not None):
            self._keeper = None
        while not await self._connected():
            if self._keeper is None:
                self._keeper = asyncio.get_running_loop().run_in_executor(None, self._spawn)
            process = await asyncio.shield(self._keeper)
            if process.poll() is not None and process.returncode != 0:
                words = (self.layout.base / "keeper.log").read_text(errors="replace").strip()[-500:]
                raise RuntimeLostError(f"the node's keeper ended at its start: {words}")
            if machine.monotonic() > deadline:
                raise RuntimeLostError(f"the node's keeper does not answer at {self.layout.socket}")
            await machine.sleep(0.01)
        if self._book is not None:
            with contextlib.suppress(psutil.NoSuchProcess):  # gone already: `on_lost` says so
                await asyncio.to_thread(detached.note, self._book, KEEPER, self.keeper_pid)

    async def _connected(self) -> bool:
        """Connect and be greeted; a keeper that is just dying may accept and never speak."""
        if not self._connect():
            return False
        assert self._hello is not None
        try:
            await self._hello
        except RuntimeLostError:
            return False
        return True

    def _spawn(self) -> subprocess.Popen[bytes]:
        timeline = self._clock.timeline
        options = {
            **self._options,
            "timeline": {name: getattr(timeline, name) for name in ("origin", "base", "wall_offset", "rate")},
        }
        source = str(Path(__file__).resolve().parents[4])
        path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")]))
        with (self.layout.base / "keeper.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "sampan.parts.node.runtime.keeper", json.dumps(options)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                env={**os.environ, "PYTHONPATH": path},
            )

    def _connect(self) -> bool:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        directory = os.open(self.layout.base, os.O_RDONLY | os.O_DIRECTORY)
        try:
            connection.connect(f"/proc/self/fd/{directory}/keeper.sock")
        except OSError:
            connection.close()
            return False
        finally:
            os.close(directory)
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        loop = asyncio.get_running_loop()
        self._connection = connection
        self._hello = loop.create_future()
        loop.add_reader(connection.fileno(), self._receive)
        return True

    async def close(self) -> None:
        """Let go; everything goes on running."""
        self._disconnect()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            asyncio.get_running_loop().remove_reader(connection.fileno())
            asyncio.get_running_loop().remove_writer(connection.fileno())
            connection.close()
        self._outgoing.clear()
        lost = RuntimeLostError("the node's keeper is gone")
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(lost)
        self._waiting.clear()
        for execution in list(self._executions.values()):
            execution.ended(137)
        self._executions.clear()
        if self._hello is not None and not self._hello.done():
            self._hello.set_exception(lost)

    async def end(self) -> None:
        """End every container and the keeper, and wait until it is gone."""
        if self._connection is None:
            return
        with contextlib.suppress(NodeError):
            await self._ask("leave")
        machine = Clock()
        for _ in range(1000):
            if self._connection is None:
                break
            await machine.sleep(0.01)
        self._disconnect()
        if self._book is not None:
            await asyncio.to_thread(detached.forget, self._book, KEEPER)

    async def give_up(self) -> None:
        """The node does not come up: end the keeper that this runtime started, if it did, and wait until it is gone."""
        if self._keeper is None:
            return  # an earlier one, whose pods go on
        process = await asyncio.shield(self._keeper)
        self._disconnect()
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, GIVE_UP_LIMIT)
        except subprocess.TimeoutExpired:
            log.warning("the node's keeper (process %d) is still ending its pods", process.pid)
            return
        if self._book is not None:
            await asyncio.to_thread(detached.forget, self._book, KEEPER)

    def dismiss(self) -> None:
        """Have the keeper end every container and itself, without waiting for it. Reads a file."""
        keeper = detached.living(self._book, KEEPER) if self._book is not None else None
        if keeper is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                keeper.terminate()

    def follow_clock(self) -> asyncio.Future[dict[str, Any]]:
        """Tell the keeper that the platform's clock was steered."""
        timeline = self._clock.timeline
        return self._request(
            "timeline",
            {"timeline": {name: getattr(timeline, name) for name in ("origin", "base", "wall_offset", "rate")}},
        )

    # -- messages

    def _receive(self) -> None:
        while self._connection is not None:
            try:
                message = self._connection.recv(MESSAGE_SIZE)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                greeted = self._hello is not None and self._hello.done()
                self._disconnect()
                if greeted:
                    self._on_lost()
                return
            self._handle(json.loads(message))

    def _handle(self, message: dict[str, Any]) -> None:
        match message.get("event"):
            case None:
                future = self._waiting.pop(message["id"], None)
                if future is not None and not future.done():
                    future.set_result(message)
            case "exited":
                self._on_exit(_container(message["container"]))
            case "exec-exited":
                execution = self._executions.pop(message["exec"], None)
                if execution is not None:
                    execution.ended(message["code"])
                else:
                    self._early[message["exec"]] = message["code"]
            case "sandbox-ended":
                self._on_sandbox_end(message["sandbox"])
            case "sandbox":
                self._listing[message["list"]][0].append(Sandbox(**message["sandbox"]))
            case "container":
                self._listing[message["list"]][1].append(_container(message["container"]))
            case "hello":
                self.tier, self.why = message["tier"], message["why"]
                if self.tier not in ADDRESSED and message["sockets"]:
                    shared = f"pods share the machine's ports: {message['sockets']}"
                    self.why = "; ".join(filter(None, [self.why, shared]))
                self.pod_range, self.cgroup = message["pod_range"], message["cgroup"]
                self.table = message["table"]
                self.controllers = frozenset(message["controllers"])
                self.isolation = message["isolation"]
                self.keeper_pid = message["pid"]
                if self._hello is not None and not self._hello.done():
                    self._hello.set_result(None)

    def _request(
        self, operation: str, fields: dict[str, Any], descriptors: Sequence[int] = (), number: int = 0
    ) -> asyncio.Future[dict[str, Any]]:
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        if self._connection is None:
            future.set_exception(RuntimeLostError("the node's keeper is gone"))
            return future
        number = number or next(self._numbers)
        self._waiting[number] = future
        message = json.dumps({"id": number, "op": operation, **fields}).encode()
        # the caller closes its descriptors once the answer is there, and that cannot be before the message has gone
        self._outgoing.append((message, list(descriptors)))
        if len(self._outgoing) == 1:
            self._write()
        return future

    def _write(self) -> None:
        """Send what waits, as far as the keeper's socket has room."""
        connection = self._connection
        loop = asyncio.get_running_loop()
        while connection is not None and self._outgoing:
            message, descriptors = self._outgoing[0]
            try:
                if descriptors:
                    socket.send_fds(connection, [message], descriptors)
                else:
                    connection.send(message)
            except BlockingIOError:
                loop.add_writer(connection.fileno(), self._write)
                return
            except OSError as error:
                if error.errno != errno.EBADF:
                    return  # the reader sees the same end and tells everybody
                # who asked was cancelled and has closed its descriptors: nobody waits for this any more
            self._outgoing.popleft()
        if connection is not None:
            loop.remove_writer(connection.fileno())

    async def _ask(self, operation: str, descriptors: Sequence[int] = (), **fields: Any) -> dict[str, Any]:
        return await self._request(operation, fields, descriptors)

    # -- Runtime

    async def list(self) -> tuple[list[Sandbox], list[Container]]:
        number = next(self._numbers)
        self._listing[number] = ([], [])
        try:
            await self._request("list", {}, number=number)
            sandboxes, containers = self._listing[number]
        finally:
            del self._listing[number]
        known = {container.id for container in containers}
        for record in sorted(self.layout.pods.glob("*/containers/*/exit.json")):
            if record.parent.name in known:
                continue
            found = _read_back(record.parent)
            if found is not None:
                containers.append(found)
        return sandboxes, containers

    async def create_sandbox(self, spec: SandboxSpec) -> Sandbox:
        answer = await self._ask("sandbox", spec=asdict(spec))
        if "error" in answer:
            raise SandboxError(f"failed to create pod sandbox: {answer['error']}")
        return Sandbox(**answer["sandbox"])

    async def remove_sandbox(self, sandbox: str) -> None:
        answer = await self._ask("remove_sandbox", sandbox=sandbox)
        if "error" in answer:
            raise SandboxError(f"failed to remove pod sandbox: {answer['error']}")
        await asyncio.to_thread(shutil.rmtree, self.layout.pod(sandbox) / "containers", ignore_errors=True)

    async def start_container(self, spec: ContainerSpec) -> Container:
        directory = self.layout.container(spec.sandbox, spec.id)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "spec.json").write_bytes(json.dumps(asdict(spec)).encode())
        answer = await self._ask("start", sandbox=spec.sandbox, container=spec.id)
        if "error" in answer:
            raise LaunchFailedError(answer["error"], answer.get("code", 128))
        return _container(answer["container"])

    async def signal(self, container: str, signal: int, *, everyone: bool = False) -> None:
        await self._ask("signal", container=container, signal=signal, everyone=everyone)

    async def update(self, container: str, limits: Limits, labels: dict[str, str]) -> None:
        answer = await self._ask("update", container=container, limits=asdict(limits), labels=labels)
        if "error" in answer:
            raise NodeError(answer["error"])

    async def remove_container(self, container: str) -> None:
        answer = await self._ask("remove_container", container=container)
        if "error" in answer:
            raise NodeError(answer["error"])
        for directory in self.layout.pods.glob(f"*/containers/{container}"):
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    async def exec(self, spec: ExecSpec) -> Process:
        process = KeptProcess(self)
        theirs: list[int] = []
        try:
            if spec.tty:
                master, slave = pty.openpty()
                process.stdout = master
                process.stdin = master if spec.stdin else None
                theirs = [slave]
            else:
                for name, wanted in (("stdin", spec.stdin), ("stdout", spec.stdout), ("stderr", spec.stderr)):
                    if not wanted:
                        theirs.append(os.open(os.devnull, os.O_RDWR))
                        continue
                    reader, writer = os.pipe()
                    theirs.append(reader if name == "stdin" else writer)
                    setattr(process, name, writer if name == "stdin" else reader)
            answer = await self._ask("exec", theirs, container=spec.container, args=list(spec.args), tty=spec.tty)
            if "error" in answer:
                raise LaunchFailedError(answer["error"], answer.get("code", 126))
        except BaseException:
            process.close()
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        process.number = answer["exec"]
        if process.number in self._early:
            process.ended(self._early.pop(process.number))
        else:
            self._executions[process.number] = process
        return process

    async def attach(self, container: str, *, stdin: bool, stdout: bool, stderr: bool) -> Process:
        process = KeptProcess(self)
        process.container = container
        theirs: list[int] = []
        try:
            if stdin:
                reader, process.stdin = os.pipe()
                theirs.append(reader)
            if stdout:
                process.stdout, writer = os.pipe()
                theirs.append(writer)
            if stderr:
                process.stderr, writer = os.pipe()
                theirs.append(writer)
            answer = await self._ask("attach", theirs, container=container, streams=[stdin, stdout, stderr])
            if "error" in answer:
                raise NodeError(answer["error"])
        except BaseException:
            process.close()
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        return process

    async def usage(self, containers: Sequence[str]) -> dict[str, Usage]:
        usages: dict[str, Usage] = {}
        names = list(containers)
        for start in range(0, len(names), 500):
            answer = await self._ask("usage", containers=names[start : start + 500])
            usages |= {name: Usage(**fields) for name, fields in answer["usage"].items()}
        return usages

    async def reopen_log(self, container: str) -> None:
        await self._ask("reopen_log", container=container)

    async def warm(self, python: str) -> None:
        """Have an interpreter's zygote ready."""
        await self._ask("warm", python=python)

    async def dial(self, sandbox: str, port: int) -> socket.socket:
        """Connect to a port of the pod, its localhost included where only that listens.

        Raises:
            OSError: nothing listens there.
        """
        sandboxes, _ = await self.list()
        found = next((known for known in sandboxes if known.id == sandbox), None)
        if found is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "the pod is not running")
        addresses = [found.address] if found.address else ["127.0.0.1"]
        if found.netns:
            addresses.append("127.0.0.1")
        elif found.address:
            from sampan.parts.node.runtime.addresses import hidden_address

            addresses.append(hidden_address(found.address))
        loop = asyncio.get_running_loop()
        failure: OSError | None = None
        for address in addresses:
            # the pod's own localhost can only be reached from its namespace
            apart = found.netns and address == "127.0.0.1"
            connection = await asyncio.to_thread(_socket_in, found.netns) if apart else socket.socket()
            connection.setblocking(False)
            try:
                await loop.sock_connect(connection, (address, door(address, port)))
            except OSError as error:
                connection.close()
                failure = error
                continue
            return connection
        assert failure is not None
        raise failure

    def tell_resize(self, process: KeptProcess, columns: int, rows: int) -> None:
        """Pass a terminal's new size on."""
        if process.number:
            self._request("resize", {"exec": process.number, "columns": columns, "rows": rows})
        elif process.container:
            self._request("resize", {"container": process.container, "columns": columns, "rows": rows})

    def tell_kill(self, process: KeptProcess) -> None:
        """End an exec's process."""
        if process.number and not process.done:
            self._request("kill_exec", {"exec": process.number})


def _socket_in(netns: str) -> socket.socket:
    """A socket in another network namespace. Raises OSError."""
    descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with links.inside(descriptor):
            return socket.socket()
    finally:
        os.close(descriptor)


def _container(fields: dict[str, Any]) -> Container:
    exit_record = fields.get("exit")
    return Container(**{**fields, "exit": ExitRecord(**exit_record) if exit_record else None})


def _read_back(directory: Path) -> Container | None:
    """An ended container that the keeper no longer knows, from its files."""
    try:
        spec = json.loads((directory / "spec.json").read_bytes())
        record = json.loads((directory / "exit.json").read_bytes())
    except (OSError, ValueError):
        return None
    return Container(
        spec["id"],
        spec["sandbox"],
        spec["name"],
        spec["attempt"],
        started_at=record["finished_at"],
        exit=ExitRecord(**record),
        labels=spec["labels"],
    )
