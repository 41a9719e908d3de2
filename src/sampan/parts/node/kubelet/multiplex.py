"""Several named byte streams over one connection, whatever carries them: the face exec, attach and port-forward work with.

`Channels` is one of two: `SpdyChannels` (SPDY streams over a raw connection or inside a WebSocket) or `SocketChannels` (the
WebSocket channel protocols v5, v4 and their base64 forms, where the first byte names the channel).
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from typing import Protocol

from aiohttp import WSMsgType, web

from sampan.parts.node.kubelet.spdy import Closed, Data, Opened, Reset, Session, SpdyError
from sampan.parts.node.kubelet.wire import Wire

STDIN, STDOUT, STDERR, STATUS, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
NAMES = {"stdin": STDIN, "stdout": STDOUT, "stderr": STDERR, "error": STATUS, "resize": RESIZE}
OUT_LIMIT = 256 * 1024

OnInput = Callable[[bytes], Awaitable[None]]
"""Takes what the client sends; it returns when there is room for more, and until then no more is read."""
OnResize = Callable[[int, int], object]


class Channels(Protocol):
    """The client's end of an exec or attach."""

    async def run(self, on_input: OnInput, on_end_of_input: Callable[[], object], on_resize: OnResize) -> None:
        """Pass on what the client sends until it is gone."""
        ...

    async def send(self, channel: int, data: bytes) -> None:
        """Send output, waiting while the client is slow. Raises ConnectionError."""
        ...

    async def finish(self, status: dict[str, object]) -> None:
        """Send the final status and close."""
        ...


class SocketChannels:
    """The channel protocols over a WebSocket."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self._socket = socket
        protocol = socket.ws_protocol or "channel.k8s.io"
        self._text = protocol.startswith(("base64", "v4.base64"))
        self._plain_status = protocol in ("channel.k8s.io", "base64.channel.k8s.io")

    async def run(self, on_input: OnInput, on_end_of_input: Callable[[], object], on_resize: OnResize) -> None:
        async for message in self._socket:
            if message.type is WSMsgType.BINARY:
                data: bytes = message.data
            elif message.type is WSMsgType.TEXT:
                text = str(message.data)
                data = bytes([ord(text[0]) - 48]) + base64.b64decode(text[1:]) if self._text and text else text.encode()
            else:
                break
            if not data:
                continue
            channel, payload = data[0], data[1:]
            if channel == STDIN and payload:
                await on_input(payload)
            elif channel == CLOSE and payload[:1] == bytes([STDIN]):
                on_end_of_input()
            elif channel == RESIZE:
                _resize(payload, on_resize)

    async def send(self, channel: int, data: bytes) -> None:
        if self._text:
            await self._socket.send_str(f"{channel}{base64.b64encode(data).decode()}")
        else:
            await self._socket.send_bytes(bytes([channel]) + data)

    async def finish(self, status: dict[str, object]) -> None:
        if self._plain_status:
            text = "" if status.get("status") == "Success" else str(status.get("message", ""))
            if text:
                await self.send(STATUS, text.encode())
        else:
            await self.send(STATUS, json.dumps(status).encode())
        await self._socket.close(code=1000)


def _resize(payload: bytes, on_resize: OnResize) -> None:
    try:
        size = json.loads(payload)
        on_resize(int(size["Width"]), int(size["Height"]))
    except (ValueError, KeyError, TypeError):
        return  # a client that garbles a window size keeps the old one


class SpdyConnection:
    """A SPDY session over a wire: streams by number, events to a handler."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.session = Session()
        self._lock = asyncio.Lock()
        self._moved = asyncio.Event()

    async def events(self) -> list[Opened | Data | Reset | Closed]:
        """What the next chunk brings; ``Closed`` at the end."""
        data = await self.wire.receive()
        if not data:
            return [Closed()]
        try:
            events = self.session.feed(data)
        except SpdyError:
            return [Closed()]
        self._moved.set()
        await self.flush()
        return list(events)

    async def flush(self) -> None:
        """Send what the session has queued. Raises ConnectionError."""
        async with self._lock:
            while self.session.outgoing:
                data = bytes(self.session.outgoing)
                self.session.outgoing.clear()
                await self.wire.send(data)

    async def send(self, stream: int, data: bytes, *, fin: bool = False) -> None:
        """Send on a stream, waiting while the peer's window is full. Raises ConnectionError."""
        self.session.send(stream, data, fin=fin)
        await self.flush()
        while self.session.backlog(stream) > OUT_LIMIT:
            self._moved.clear()
            await self._moved.wait()


class SpdyChannels:
    """exec and attach over SPDY: the client opens one stream a channel, named by its ``streamtype``."""

    def __init__(self, connection: SpdyConnection, expected: set[str]) -> None:
        self._connection = connection
        self._expected = expected
        self._streams: dict[int, int] = {}
        self._by_channel: dict[int, int] = {}
        self._early: list[Data] = []

    async def open(self) -> None:
        """Wait until the client has opened the streams it announced. Raises ConnectionError."""
        while self._expected:
            for event in await self._connection.events():
                if isinstance(event, Closed):
                    raise ConnectionResetError("the client left before its streams were open")
                if isinstance(event, Opened):
                    self._accept(event)
                elif isinstance(event, Data):
                    self._early.append(event)
                    if sum(len(early.data) for early in self._early) > OUT_LIMIT:
                        raise ConnectionResetError("the client sent input before its streams were open")
            await self._connection.flush()

    def _accept(self, event: Opened) -> None:
        kind = event.headers.get("streamtype", "")
        self._connection.session.reply(event.stream)
        if kind in NAMES:
            self._streams[event.stream] = NAMES[kind]
            self._by_channel[NAMES[kind]] = event.stream
            self._expected.discard(kind)

    async def run(self, on_input: OnInput, on_end_of_input: Callable[[], object], on_resize: OnResize) -> None:
        pending: list[Opened | Data | Reset | Closed] = list(self._early)
        while True:
            for event in pending:
                if isinstance(event, Closed):
                    return
                if isinstance(event, Data):
                    channel = self._streams.get(event.stream)
                    if channel == STDIN:
                        if event.data:
                            await on_input(event.data)
                        if event.fin:
                            on_end_of_input()
                    elif channel == RESIZE and event.data:
                        for line in event.data.splitlines():
                            _resize(line, on_resize)
                elif isinstance(event, Opened):
                    self._accept(event)
                elif self._streams.get(event.stream) == STDIN:
                    on_end_of_input()
            pending = await self._connection.events()

    async def send(self, channel: int, data: bytes) -> None:
        stream = self._by_channel.get(channel)
        if stream is not None:
            await self._connection.send(stream, data)

    async def finish(self, status: dict[str, object]) -> None:
        for channel in (STDOUT, STDERR):
            if (stream := self._by_channel.get(channel)) is not None:
                await self._connection.send(stream, b"", fin=True)
        if (stream := self._by_channel.get(STATUS)) is not None:
            text = json.dumps(status).encode()
            await self._connection.send(stream, text, fin=True)
        await self._connection.flush()
        await self._connection.wire.close()
