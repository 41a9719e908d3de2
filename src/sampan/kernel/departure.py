"""Noticing that a peer has gone while nothing is read from it.

A stream that is held back (the other end does not take what arrives) reads nothing, so it does not see the end of the
connection either. The kernel knows: its state of the connection says that the peer closed or reset it, and its keepalive probes
find out when the peer's machine or process is no more. `while_there` looks at that now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator

from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks

LOOK = 5.0
"""Seconds between two looks."""
IDLE, BETWEEN, PROBES = 30, 10, 3
"""Seconds of silence before the kernel probes a peer, between two probes, and how many go unanswered before it gives up."""
_CLOSED, _PEER_CLOSED = 7, 8
"""The kernel's TCP_CLOSE and TCP_CLOSE_WAIT."""


def probe(transport: asyncio.BaseTransport) -> None:
    """Have the kernel probe the peer of a TCP connection when it is silent."""
    connection: socket.socket | None = transport.get_extra_info("socket")
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    with contextlib.suppress(OSError):  # it has ended already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", IDLE), ("TCP_KEEPINTVL", BETWEEN), ("TCP_KEEPCNT", PROBES)):
            if hasattr(socket, option):  # not on every system
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def state(transport: asyncio.BaseTransport) -> int:
    """The kernel's state of a TCP connection; 0 where it has none or does not tell (Linux does)."""
    connection: socket.socket | None = transport.get_extra_info("socket")
    if not hasattr(socket, "TCP_INFO"):
        return 0
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.fileno() < 0:
        return 0
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


async def until_left(transport: asyncio.BaseTransport, clock: Clock) -> None:
    """Return once the peer has gone: it reset the connection, or closed it a while ago and what it sent is still not read."""
    probe(transport)
    before = 0
    while True:
        await clock.sleep(LOOK)
        now = state(transport)
        if now == _CLOSED or (now == before == _PEER_CLOSED):
            return
        before = now


@contextlib.asynccontextmanager
async def while_there(transport: asyncio.BaseTransport | None, clock: Clock) -> AsyncIterator[None]:
    """Run the body only while the peer is there; then it is cancelled. ``clock`` is the machine's.

    Raises:
        ConnectionResetError: the peer has gone.
    """
    body, gone = asyncio.current_task(), False
    assert body is not None

    async def watch() -> None:
        nonlocal gone
        if transport is None:
            return
        await until_left(transport, clock)
        gone = True
        body.cancel()

    async with Tasks(clock, "departure") as tasks:
        tasks.start("watch", watch())
        try:
            yield
        except asyncio.CancelledError:
            if gone and body.uncancel() == 0:
                raise ConnectionResetError("the peer has gone") from None
            raise


def reset(transport: asyncio.WriteTransport) -> None:
    """End a connection at once, so that the peer learns of it although it takes no more data."""
    connection: socket.socket | None = transport.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
