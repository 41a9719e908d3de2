"""The agent's end of a process that the keeper runs for it: an exec or an attach."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sampan.parts.node.runtime.process import ProcessRuntime


class KeptProcess:
    """The agent's end of an exec (or attach)."""

    def __init__(self, runtime: ProcessRuntime) -> None:
        self._runtime = runtime
        self.number = 0
        self.container = ""
        self.stdin: int | None = None
        self.stdout: int | None = None
        self.stderr: int | None = None
        self._exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def done(self) -> bool:
        return self._exit.done()

    async def wait(self) -> int:
        """The exit code; never for an attach."""
        return await asyncio.shield(self._exit)

    def ended(self, code: int) -> None:
        """The process ended."""
        if not self._exit.done():
            self._exit.set_result(code)

    def resize(self, columns: int, rows: int) -> None:
        self._runtime.tell_resize(self, columns, rows)

    def kill(self) -> None:
        self._runtime.tell_kill(self)

    def close(self) -> None:
        for descriptor in {self.stdin, self.stdout, self.stderr} - {None}:
            assert descriptor is not None
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.stdin = self.stdout = self.stderr = None
