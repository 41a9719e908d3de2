"""Names that are not the cluster's: asked of the machine's own resolvers.

A question goes to the first server over UDP from a socket of its own (so that source port and id together are hard to guess),
to the next one when that stays silent, and over TCP when the asker came that way. Answers go back as they came. Nothing is
cached: the machine's resolver does that.
"""

from __future__ import annotations

import asyncio
import secrets
import struct
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

from sampan.kernel.clock import Clock
from sampan.kernel.errors import SampanError

TRY_SECONDS = 2.0
"""Time one server has to answer."""
ROUNDS = 2
"""How often all servers are tried."""
LIMIT = 1000
"""Questions under way at most; more are refused at once."""


class UpstreamError(SampanError):
    """No resolver answered."""


def host_resolvers(path: Path = Path("/etc/resolv.conf")) -> list[tuple[str, int]]:
    """The machine's own name servers."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                found.append((str(ip_address(words[1].partition("%")[0])), 53))
            except ValueError:
                continue
    return found


class _Exchange(asyncio.DatagramProtocol):
    """One question on one socket; only an answer with its id and its question counts."""

    def __init__(self, expected: bytes, question: bytes, answer: asyncio.Future[bytes]) -> None:
        self._expected, self._question, self._answer = expected, question, answer

    def datagram_received(self, data: bytes, addr: object) -> None:
        same = data[12 : 12 + len(self._question)].lower() == self._question.lower()
        if data[:2] == self._expected and same and not self._answer.done():
            self._answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self._answer.done():
            self._answer.set_exception(exc)


class Upstream:
    """The resolvers questions are forwarded to."""

    def __init__(self, clock: Clock, servers: Sequence[tuple[str, int]]) -> None:
        self._clock = clock
        self.servers = list(servers)
        self.under_way = 0

    async def ask(self, message: bytes, question: bytes, *, tcp: bool = False) -> bytes:
        """The answer to a query's bytes, with the query's own id; ``question`` is its question section.

        Raises:
            UpstreamError: there is no server, none answered, or too many questions are under way.
        """
        if self.under_way >= LIMIT:
            raise UpstreamError("too many questions are under way")
        self.under_way += 1
        try:
            for _ in range(ROUNDS):
                for server in self.servers:
                    try:
                        async with self._clock.patience(TRY_SECONDS):
                            identity = secrets.token_bytes(2)
                            asked = identity + message[2:]
                            got = await (self._tcp if tcp else self._udp)(server, asked, question)
                            return message[:2] + got[2:]
                    except (OSError, TimeoutError, asyncio.IncompleteReadError):
                        continue
        finally:
            self.under_way -= 1
        raise UpstreamError("no resolver answered" if self.servers else "the machine has no resolver")

    async def _udp(self, server: tuple[str, int], message: bytes, question: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: _Exchange(message[:2], question, answer), remote_addr=server
        )
        try:
            transport.sendto(message)
            return await answer
        finally:
            transport.close()

    async def _tcp(self, server: tuple[str, int], message: bytes, question: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(*server, limit=1 << 17)
        try:
            writer.write(struct.pack(">H", len(message)) + message)
            (length,) = struct.unpack(">H", await reader.readexactly(2))
            data = await reader.readexactly(length)
        finally:
            writer.close()
        if len(data) < 12 or data[:2] != message[:2]:
            raise OSError("an answer to another question")
        return data
