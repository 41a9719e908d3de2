"""A sandbox's first process, forked before there is a pod for it.

Two forks of the keeper are most of the time that a sandbox takes. So one process is always ahead: it has its namespaces but the
mount namespace, which must show what is mounted when the pod comes, and waits to be told which sandbox it is. Where there is none,
or the pod asks for other namespaces, the sandbox is forked as it comes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from sampan.kernel.clock import Clock
from sampan.parts.node.runtime import launch, syscalls, tiers
from sampan.parts.node.runtime.interface import Memory, SandboxSpec

REST = 0.3
"""Seconds after a sandbox was made until the next process is forked: the pod's containers need the processor more."""
PATIENCE = 5.0
"""Seconds a waiting process may take to become its sandbox."""
LONGEST = 1 << 16
DESCRIPTORS = 1 << 20
"""Above any number of an open file."""


@dataclass(slots=True, eq=False)
class Blank:
    """A process that waits for its sandbox."""

    pid: int
    channel: socket.socket

    def become(self, spec: SandboxSpec, devices: str, groups: Sequence[str]) -> bool:
        """Make it the first process of a sandbox, in these cgroups; False where it is gone, and another way must be gone.

        Raises:
            OSError: the sandbox cannot be made.
        """
        message = json.dumps({"spec": asdict(spec), "devices": devices}).encode()
        if len(message) > LONGEST:
            return self._give_up()
        try:
            for path in groups:
                Path(path).write_text(str(self.pid))
            self.channel.send(message)
            answer = self.channel.recv(LONGEST)
        except OSError:
            return self._give_up()
        if not answer:
            return self._give_up()
        self.channel.close()
        if error := json.loads(answer).get("error"):
            raise OSError(error)
        return True

    def _give_up(self) -> bool:
        self.channel.close()
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return False


class Blanks:
    """The process that is ahead."""

    def __init__(self) -> None:
        self._machine = Clock()
        self._blank: Blank | None = None
        self._due: float | None = None
        """When the next is to be forked."""
        self._flags = 0
        """CLONE_NEW* flags of what it is to have as a sandbox."""

    def start(self, isolation: tiers.Isolation, flags: int, pause: tuple[str, ...], *, privileged: bool) -> None:
        """Have one from now on, with the namespaces that most pods have; ``pause`` is the program of a sandbox's first process."""
        self._isolation, self._pause, self._privileged = isolation, pause, privileged
        if isolation != "none":
            self._flags = flags
            self._due = self._machine.monotonic()

    def take(self, flags: int) -> Blank | None:
        """The one there is, if it has these namespaces; the next comes later."""
        return self._let_go() if flags == self._flags else None

    def _let_go(self) -> Blank | None:
        blank, self._blank = self._blank, None
        if self._flags:
            self._due = self._machine.monotonic() + REST
        return blank

    def wait(self, timeout: float | None) -> float | None:
        """How long the keeper may wait for something to do, at most ``timeout``, before `look_ahead` is called."""
        if self._due is None:
            return timeout
        left = max(0.0, self._due - self._machine.monotonic())
        return left if timeout is None else min(left, timeout)

    def look_ahead(self) -> None:
        """Fork the next one when it is due."""
        if self._due is None or self._machine.monotonic() < self._due:
            return
        self._due = None
        try:
            self._blank = self._fork()
        except OSError:
            self._blank = None  # sandboxes are forked as they come, and say what the matter is

    def reaped(self, pid: int) -> None:
        """A process has ended, and its number may be another's soon; if it was the one there is, another is to come."""
        if self._blank is not None and self._blank.pid == pid:
            self._blank.channel.close()
            self._let_go()

    def end(self) -> None:
        """Let go of the one there is: it ends."""
        self._due = None
        if self._blank is not None:
            self._blank.channel.close()
            self._blank = None

    def _fork(self) -> Blank:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        uid, gid = os.getuid(), os.getgid()
        child = os.fork()
        if child == 0:
            try:
                # it stays while containers come and go: nothing of theirs, nor the keeper's lock, may stay open with it
                kept = theirs.fileno()
                os.closerange(3, kept)
                os.closerange(kept + 1, DESCRIPTORS)
                ours.detach()
                signal.set_wakeup_fd(-1)
                launch.reset_signals()
                os.setsid()
                syscalls.unshare(self._flags & ~syscalls.CLONE_NEWNS)
                if self._isolation == "user":
                    tiers.map_users(uid, gid)
                pid = os.fork()
                if pid:
                    theirs.send(json.dumps({"pid": pid}).encode())
                    os._exit(0)
                self._wait(theirs)
            except BaseException as error:
                theirs.send(json.dumps({"error": str(error)}).encode())
            os._exit(1)
        theirs.close()
        ours.settimeout(PATIENCE)
        try:
            told = json.loads(ours.recv(LONGEST) or b"{}")
        except OSError:
            os.kill(child, signal.SIGKILL)  # not reaped yet: the number is still its own
            ours.close()
            raise
        finally:
            os.waitpid(child, 0)
        if "pid" not in told:
            ours.close()
            raise OSError(told.get("error", "the process ended at once"))
        return Blank(told["pid"], ours)

    def _wait(self, channel: socket.socket) -> NoReturn:
        """In the process: become a sandbox's first, or end with the keeper. Raises OSError."""
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        message = channel.recv(LONGEST)
        if not message:
            os._exit(0)
        request = json.loads(message)
        fields = request["spec"]
        fields["memory"] = tuple(Memory(**memory) for memory in fields["memory"])
        syscalls.unshare(syscalls.CLONE_NEWNS)
        launch.become_sandbox(SandboxSpec(**fields), request["devices"], privileged=self._privileged)
        os.chdir("/")
        channel.send(b"{}")
        os.execv(self._pause[0], ["pause", *self._pause[1:]])
