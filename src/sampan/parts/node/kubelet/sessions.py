"""exec and attach: one process's streams joined with a client's channels."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque

from sampan.parts.node.kubelet.multiplex import STDERR, STDOUT, Channels
from sampan.parts.node.runtime.interface import Process

READ_SIZE = 32 * 1024
FEED_LIMIT = 1024 * 1024
"""Bytes of input that may wait for a process that does not read them; then the client waits."""


class _Pipe:
    """Reads a descriptor as the loop finds it readable."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        os.set_blocking(descriptor, False)

    async def read(self) -> bytes:
        """The next bytes; empty at the end."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                return os.read(self._descriptor, READ_SIZE)
            except BlockingIOError:
                pass
            except OSError:
                return b""  # a terminal's last writer has gone
            readable = loop.create_future()
            loop.add_reader(self._descriptor, _resolve, readable)
            try:
                await readable
            finally:
                loop.remove_reader(self._descriptor)


class _Feed:
    """Writes to a descriptor as the process reads."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._waiting: deque[memoryview] = deque()
        self._size = 0
        self._room = asyncio.Event()
        self._ended = False
        if process.stdin is not None:
            os.set_blocking(process.stdin, False)

    async def write(self, data: bytes) -> None:
        if self._process.stdin is None:
            return  # nobody reads it
        self._waiting.append(memoryview(data))
        self._size += len(data)
        self._push()
        while self._size > FEED_LIMIT:
            self._room.clear()
            await self._room.wait()

    def end(self) -> None:
        self._ended = True
        self._push()

    def _push(self) -> None:
        descriptor = self._process.stdin
        if descriptor is None:
            return
        loop = asyncio.get_running_loop()
        while self._waiting:
            try:
                written = os.write(descriptor, self._waiting[0])
            except BlockingIOError:
                loop.add_writer(descriptor, self._push)
                return
            except OSError:
                self._waiting.clear()
                self._size = 0
                break
            self._size -= written
            if self._size <= FEED_LIMIT:
                self._room.set()
            if written < len(self._waiting[0]):
                self._waiting[0] = self._waiting[0][written:]
            else:
                self._waiting.popleft()
        self._room.set()
        loop.remove_writer(descriptor)
        if self._ended and self._process.stdin is not None and self._process.stdin != self._process.stdout:
            os.close(descriptor)
            self._process.stdin = None

    def detach(self) -> None:
        """The process's descriptors are about to be closed."""
        if self._process.stdin is not None:
            asyncio.get_running_loop().remove_writer(self._process.stdin)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def join(process: Process, channels: Channels, *, attached: bool) -> None:
    """Pass bytes both ways until the process ends (exec), its output ends (attach), or the client leaves."""
    feed = _Feed(process)

    def resize(columns: int, rows: int) -> None:
        process.resize(columns, rows)

    async def output(descriptor: int | None, channel: int) -> None:
        if descriptor is None:
            return
        pipe = _Pipe(descriptor)
        while data := await pipe.read():
            await channels.send(channel, data)

    async def client() -> None:
        await channels.run(feed.write, feed.end, resize)

    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        incoming = group.create_task(client())
        streams = [group.create_task(output(process.stdout, STDOUT)), group.create_task(output(process.stderr, STDERR))]
        done = loop.create_future()
        incoming.add_done_callback(lambda _: None if done.done() else done.set_result("client"))

        async def ended() -> None:
            code = 0
            if not attached:
                code = await process.wait()
            for stream in streams:
                with contextlib.suppress(ConnectionError):
                    await stream
            if not done.done():
                done.set_result(code)

        ending = group.create_task(ended())
        try:
            outcome = await done
            if outcome != "client":
                await channels.finish(exit_status(int(outcome)))
        finally:
            for task in (incoming, ending, *streams):
                task.cancel()
            feed.detach()
            process.kill()


def exit_status(code: int) -> dict[str, object]:
    """The Status that tells a command's end."""
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    return {
        "metadata": {},
        "status": "Failure",
        "reason": "NonZeroExitCode",
        "message": f"command terminated with exit code {code}",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }


def failure(message: str) -> dict[str, object]:
    """The Status of a command that never ran."""
    return {"metadata": {}, "status": "Failure", "reason": "InternalError", "message": message, "code": 500}
