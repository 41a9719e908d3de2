"""What the core process and a child process say to each other: JSON lines over a socket pair.

The child learns what to run (`Begin`), when its needs are ready (`Go`), each steering of the clock (`Steer`), each address
anybody bound (`Bound`) and when to end (`Stop`). It answers with its own addresses, `Ready` or `Failed`, and what it is
asked for (`Ask`/`Answer`). When the line breaks, the other side is gone: the child ends, the core restarts the child.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import Any, Literal

import msgspec

from sampan.kernel.clock import Timeline

log = logging.getLogger(__name__)

LINE_LIMIT = 16 * 1024 * 1024
"""Bytes in one message at most."""


class Begin(msgspec.Struct, tag="begin", kw_only=True):
    """The first message to a child: everything it needs to build its part."""

    part: str
    """``module:Class`` of the part."""
    settings: dict[str, Any]
    root: str
    timeline: Timeline
    remotes: list[str]
    """``module:function`` of what the parts it needs provide in other processes."""
    addresses: dict[str, tuple[str, int]]
    remembered: dict[str, tuple[str, int]]
    auto_ports: bool
    log_level: str
    terminal: bool


class Go(msgspec.Struct, tag="go"):
    """Everything the part needs is ready: start."""


class Steer(msgspec.Struct, tag="steer"):
    """The platform's clock follows another timeline."""

    timeline: Timeline


class Bound(msgspec.Struct, tag="bound"):
    """A listening address, either way."""

    name: str
    host: str
    port: int


class Stop(msgspec.Struct, tag="stop"):
    """Drain within so many seconds, then end."""

    drain_seconds: float


class Ask(msgspec.Struct, tag="ask"):
    """A question to the child."""

    number: int
    about: Literal["facts", "metrics"]


class Answer(msgspec.Struct, tag="answer"):
    """The answer to an `Ask`."""

    number: int
    body: Any


class Ready(msgspec.Struct, tag="ready"):
    """The child's part does its job."""


class Failed(msgspec.Struct, tag="failed"):
    """The child's part failed; the process ends after this."""

    error: str


Message = Begin | Go | Steer | Bound | Stop | Ask | Answer | Ready | Failed

_encoder = msgspec.json.Encoder(enc_hook=str)
_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


class Channel:
    """One end of the line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.broken = False
        """What came over it made no sense; the peer may still be alive."""

    @staticmethod
    async def over(end: socket.socket) -> Channel:
        """A channel over one end of a socket pair."""
        end.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=end, limit=LINE_LIMIT)
        return Channel(reader, writer)

    def send(self, message: Message) -> None:
        """Queue a message; one to a peer that is gone is dropped, `receive` tells of that."""
        if not self._writer.is_closing():
            self._writer.write(_encoder.encode(message) + b"\n")

    async def flush(self) -> None:
        """Wait until what was sent has left this process."""
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()

    async def receive(self) -> Message | None:
        """The next message; None when the peer is gone, or speaks nonsense (then the line is of no more use)."""
        try:
            line = await self._reader.readline()
            return _decoder.decode(line) if line.endswith(b"\n") else None
        except ConnectionError:
            return None
        except (ValueError, msgspec.MsgspecError) as error:
            self.broken = True
            log.error("the line to the other process broke: %s", error)
            return None

    def close(self) -> None:
        self._writer.close()
