"""The name server's front: UDP datagrams and TCP streams in, answers out.

Names of the cluster are answered on the spot from memory. Others, and what an ExternalName points at outside, are asked of
the machine's resolvers in a task of their own. Nothing a client sends can fail the server: what cannot be read gets FORMERR or
silence, connections and their idle time are bounded.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from time import perf_counter
from typing import Any, cast

from prometheus_client import CollectorRegistry

from sampan.kernel.clock import Clock, Timer
from sampan.kernel.tasks import Tasks
from sampan.kernel.telemetry import counter, histogram
from sampan.parts.network.dns import message as dns
from sampan.parts.network.dns.message import MessageError, Query, Reply
from sampan.parts.network.dns.upstream import Upstream, UpstreamError
from sampan.parts.network.dns.zone import Answer, Zone

log = logging.getLogger(__name__)

CONNECTIONS = 256
"""TCP connections open at most; further ones are closed at once."""
IDLE_SECONDS = 10.0
"""Time a TCP connection may be silent."""

Send = Callable[[bytes], object]


class DnsMetrics:
    """Counts under CoreDNS's names."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = counter(
            registry, "coredns_dns_requests_total", "DNS requests by protocol and type.", ("proto", "type")
        )
        self.responses = counter(
            registry, "coredns_dns_responses_total", "Responses by protocol and status code.", ("proto", "rcode")
        )
        self.seconds = histogram(
            registry,
            "coredns_dns_request_duration_seconds",
            "Time of a request that was answered from memory.",
            ("zone",),
            (0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.128, 1, 8),
        )
        self.forwarded = counter(
            registry, "coredns_forward_requests_total", "Requests made to the machine's resolvers.", ("proto",)
        )


class NameServer:
    """Answers queries; `serve` on sockets, or `take` a message directly."""

    def __init__(self, zone: Zone, upstream: Upstream, clock: Clock, tasks: Tasks, registry: CollectorRegistry) -> None:
        self._zone = zone
        self._upstream = upstream
        self._clock = clock
        self._tasks = tasks
        self._metrics = DnsMetrics(registry)
        self._transports: list[Any] = []
        self._connections: set[_Connection] = set()
        self.answered = 0

    async def serve(self, udp: socket.socket, tcp: socket.socket) -> None:
        """Serve on two bound sockets."""
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), sock=udp)
        self._transports.append(transport)
        self._transports.append(await loop.create_server(lambda: _Connection(self, self._clock), sock=tcp))

    def close(self) -> None:
        """Stop serving."""
        for transport in self._transports:
            transport.close()
        for connection in list(self._connections):
            connection.drop()

    def joins(self, connection: _Connection) -> bool:
        """A TCP connection opens; False where there are too many."""
        if len(self._connections) >= CONNECTIONS:
            return False
        self._connections.add(connection)
        return True

    def leaves(self, connection: _Connection) -> None:
        """A TCP connection is gone."""
        self._connections.discard(connection)

    def take(self, message: bytes, send: Send, *, tcp: bool = False) -> None:
        """Answer one message by ``send(bytes)``, now or later."""
        began = perf_counter()
        proto = "tcp" if tcp else "udp"
        try:
            query = dns.parse_query(message)
        except MessageError as error:
            if error.code is not None:
                self._count(proto, error.code)
                send(dns.write_error(message, error.code))
            return
        self._metrics.requests.labels(proto, dns.TYPE_NAMES.get(query.type, "other")).inc()
        limit = dns.TCP_SIZE if tcp else min(query.size or dns.PLAIN_SIZE, dns.UDP_SIZE)
        answer = self._decide(query)
        if answer is None:
            self._later(query, self._forward(message, query, send, tcp), send, limit)
        elif answer.follow:
            self._later(query, self._follow(query, answer, send, limit, proto), send, limit)
        else:
            self._finish(query, answer.reply, send, limit, proto)
            self._metrics.seconds.labels(self._zone.domain).observe(perf_counter() - began)

    def _decide(self, query: Query) -> Answer | None:
        if query.opcode != 0:
            return Answer(Reply(dns.NOT_IMPLEMENTED, authoritative=False))
        if query.version != 0:
            return Answer(Reply(dns.BAD_VERSION, authoritative=False))
        if query.cls != dns.INTERNET:
            return Answer(Reply(dns.REFUSED, authoritative=False))
        answer = self._zone.answer(query.name, query.type)
        if answer is None and (not self._upstream.servers or not query.recursion):
            # a machine without resolvers is off line: nothing outside has a name
            code = dns.REFUSED if self._upstream.servers else dns.NO_SUCH_NAME
            return Answer(Reply(code, authoritative=False))
        if answer is not None and answer.follow and not self._upstream.servers:
            return Answer(answer.reply)
        return answer

    def _count(self, proto: str, code: int) -> None:
        self.answered += 1
        self._metrics.responses.labels(proto, dns.RCODE_NAMES.get(code, str(code))).inc()

    def _finish(self, query: Query, reply: Reply, send: Send, limit: int, proto: str) -> None:
        self._count(proto, reply.code)
        send(dns.write_reply(query, reply, limit))

    def _later(self, query: Query, work: Any, send: Send, limit: int) -> None:
        try:
            self._tasks.start("dns/forward", work)
        except RuntimeError:  # the platform is going down
            send(dns.write_reply(query, Reply(dns.SERVER_FAILURE, authoritative=False), limit))

    async def _forward(self, message: bytes, query: Query, send: Send, tcp: bool) -> None:
        proto = "tcp" if tcp else "udp"
        self._metrics.forwarded.labels(proto).inc()
        try:
            answer = await self._upstream.ask(message, query.question, tcp=tcp)
        except UpstreamError as error:
            log.debug("%s: %s", query.name, error)
            self._finish(query, Reply(dns.SERVER_FAILURE, authoritative=False), send, dns.PLAIN_SIZE, proto)
            return
        self._count(proto, answer[3] & 15)
        send(answer)

    async def _follow(self, query: Query, answer: Answer, send: Send, limit: int, proto: str) -> None:
        """Add what the alias points at outside; a resolver's failure leaves the alias alone."""
        reply = answer.reply
        asked = dns.write_query(0, answer.follow, query.type)
        question = asked[12 : len(asked) - 11]
        self._metrics.forwarded.labels("udp").inc()
        try:
            got = await self._upstream.ask(asked, question)
            if dns.is_truncated(got):
                got = await self._upstream.ask(asked, question, tcp=True)
            code, records = dns.parse_reply(got)
            if code in (dns.NO_ERROR, dns.NO_SUCH_NAME):
                reply = reply._replace(code=code, answers=(*reply.answers, *records), authoritative=False)
        except (UpstreamError, MessageError) as error:
            log.debug("%s: %s", answer.follow, error)
            reply = reply._replace(code=dns.SERVER_FAILURE)
        self._finish(query, reply, send, limit, proto)


class _Datagrams(asyncio.DatagramProtocol):
    """UDP: a message a datagram."""

    def __init__(self, server: NameServer) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # asyncio's own datagram transport does not derive from DatagramTransport
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._server.take(data, lambda answer: self._send(answer, addr))

    def _send(self, answer: bytes, addr: Any) -> None:
        if not self._transport.is_closing():
            self._transport.sendto(answer, addr)


class _Connection(asyncio.Protocol):
    """TCP: messages with their length in two bytes before them."""

    def __init__(self, server: NameServer, clock: Clock) -> None:
        self._server = server
        self._clock = clock
        self._buffer = bytearray()
        self._timer: Timer | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._server.joins(self):
            self._rest()
        else:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.leaves(self)
        if self._timer is not None:
            self._timer.cancel()

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._clock.call_later(IDLE_SECONDS, self.drop)

    def drop(self) -> None:
        """End the connection at once."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._rest()
        self._buffer += data
        while len(self._buffer) >= 2:
            length = int.from_bytes(self._buffer[:2], "big")
            if len(self._buffer) < 2 + length:
                return
            message = bytes(self._buffer[2 : 2 + length])
            del self._buffer[: 2 + length]
            self._server.take(message, self._send, tcp=True)

    def _send(self, answer: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(len(answer).to_bytes(2, "big") + answer)
