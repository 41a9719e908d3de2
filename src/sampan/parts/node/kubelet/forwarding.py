"""Port-forward: each forwarded connection is a pair of streams (data and error) joined with a connection to the pod."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable

from aiohttp import WSMsgType, web

from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.parts.node.kubelet.multiplex import SpdyConnection
from sampan.parts.node.kubelet.spdy import Closed, Data, Opened

Dial = Callable[[int], Awaitable[socket.socket]]
QUEUE_LIMIT = 64
INTAKE_LIMIT = 1024 * 1024
"""Bytes that may wait for a program that does not read them; then the client waits, with all it forwards."""


class _Intake:
    """What came from the client for one connection, until the program takes it."""

    def __init__(self) -> None:
        self._waiting: deque[bytes | None] = deque()
        self._size = 0
        self._moved = asyncio.Event()
        self._closed = False

    async def put(self, data: bytes | None) -> None:
        """Add bytes, or the end (None); waits while there is too much."""
        if self._closed:
            return
        self._waiting.append(data)
        self._size += len(data or b"")
        self._moved.set()
        while self._size > INTAKE_LIMIT and not self._closed:
            self._moved.clear()
            await self._moved.wait()

    async def get(self) -> bytes | None:
        """The next bytes; None at the end."""
        while not self._waiting:
            self._moved.clear()
            await self._moved.wait()
        data = self._waiting.popleft()
        self._size -= len(data or b"")
        self._moved.set()
        return data

    def close(self) -> None:
        """Nobody takes any more: what comes is dropped."""
        self._closed = True
        self._waiting.clear()
        self._moved.set()


class _Forward:
    """One forwarded connection over SPDY."""

    def __init__(self, error: int) -> None:
        self.error = error
        self.data = 0
        self.port = 0
        self.incoming = _Intake()


async def forward_spdy(connection: SpdyConnection, dial: Dial, clock: Clock) -> None:
    """Serve a session until the client leaves."""
    requests: dict[str, _Forward] = {}
    by_stream: dict[int, _Forward] = {}
    async with Tasks(clock, "port-forward") as tasks:
        while True:
            for event in await connection.events():
                if isinstance(event, Closed):
                    return
                if isinstance(event, Opened):
                    connection.session.reply(event.stream)
                    headers = event.headers
                    # clients older than the request id pair streams by order; the port stands in for it
                    identity = headers.get("requestid") or headers.get("port", "")
                    if headers.get("streamtype") == "error":
                        requests[identity] = _Forward(event.stream)
                    elif headers.get("streamtype") == "data":
                        forward = requests.pop(identity, None) or _Forward(0)
                        forward.data = event.stream
                        forward.port = int(headers.get("port", "0") or 0)
                        by_stream[event.stream] = forward
                        tasks.start(f"stream-{event.stream}", _join(connection, forward, dial, by_stream))
                elif isinstance(event, Data):
                    forward_ = by_stream.get(event.stream)
                    if forward_ is not None:
                        if event.data:
                            await forward_.incoming.put(event.data)
                        if event.fin:
                            await forward_.incoming.put(None)
                elif event.stream in by_stream:
                    await by_stream[event.stream].incoming.put(None)
            await connection.flush()


async def _join(connection: SpdyConnection, forward: _Forward, dial: Dial, by_stream: dict[int, _Forward]) -> None:
    message = ""
    try:
        try:
            target = await dial(forward.port)
        except OSError as error:
            words = getattr(error, "strerror", None) or str(error)
            message = f"failed to connect to localhost:{forward.port} inside the pod: {words}"
            return
        reader, writer = await asyncio.open_connection(sock=target)

        async def upwards() -> None:
            while (data := await forward.incoming.get()) is not None:
                writer.write(data)
                await writer.drain()
            with contextlib.suppress(OSError):
                writer.write_eof()

        async with asyncio.TaskGroup() as group:
            up = group.create_task(upwards())
            try:
                while data := await reader.read(32 * 1024):
                    await connection.send(forward.data, data)
            finally:
                up.cancel()
                writer.close()
    except (ConnectionError, ExceptionGroup):
        return  # either end left: the other learns it from the FIN below
    finally:
        forward.incoming.close()
        by_stream.pop(forward.data, None)
        with contextlib.suppress(ConnectionError):
            if forward.error:
                await connection.send(forward.error, message.encode(), fin=True)
            await connection.send(forward.data, b"", fin=True)


async def forward_channels(websocket: web.WebSocketResponse, ports: list[int], dial: Dial) -> None:
    """The older protocol: channel 2i carries port i's data, 2i+1 its errors; one connection a port."""
    queues: list[asyncio.Queue[bytes | None]] = [asyncio.Queue(QUEUE_LIMIT) for _ in ports]
    for index, port in enumerate(ports):
        for channel in (2 * index, 2 * index + 1):
            await websocket.send_bytes(bytes([channel]) + struct.pack("<H", port))

    async def one(index: int, port: int) -> None:
        try:
            target = await dial(port)
        except OSError as error:
            words = getattr(error, "strerror", None) or str(error)
            await websocket.send_bytes(bytes([2 * index + 1]) + f"failed to connect to port {port}: {words}".encode())
            return
        reader, writer = await asyncio.open_connection(sock=target)

        async def upwards() -> None:
            while (data := await queues[index].get()) is not None:
                writer.write(data)
                await writer.drain()
            with contextlib.suppress(OSError):
                writer.write_eof()

        async with asyncio.TaskGroup() as group:
            up = group.create_task(upwards())
            try:
                while data := await reader.read(32 * 1024):
                    await websocket.send_bytes(bytes([2 * index]) + data)
            finally:
                up.cancel()
                writer.close()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(index, port)) for index, port in enumerate(ports)]

        async def close_when_done() -> None:
            await asyncio.wait(tasks)
            await websocket.close()

        tasks_end = group.create_task(close_when_done())
        async for message in websocket:
            if message.type is not WSMsgType.BINARY or not message.data:
                continue
            channel = message.data[0]
            if channel % 2 == 0 and channel // 2 < len(queues):
                await queues[channel // 2].put(message.data[1:])
        for task in (*tasks, tasks_end):
            task.cancel()
