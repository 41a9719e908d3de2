"""The data path in user space: a listening socket a frontend, and bytes carried to an endpoint.

It works on every machine and needs no rights, at the price of a copy each way. It serves node ports and load balancers on the
host in every tier, and Services where the kernel's path cannot be had. A frontend without endpoints is not listened on, so
clients see a refused connection, as they do elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import struct
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from typing import Any, cast

from sampan.kernel.addresses import door
from sampan.kernel.clock import Clock, Timer
from sampan.kernel.tasks import Tasks
from sampan.parts.network.services import Backends, Frontend

log = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
"""Time an endpoint has to accept a connection, before another is tried."""
UDP_IDLE_SECONDS = 60.0
"""Silence after which a UDP client's socket to its endpoint is closed."""
UDP_CLIENTS = 1024
"""UDP clients of one frontend at a time; the longest silent one makes room."""
AFFINE_CLIENTS = 4096
"""Clients whose endpoint is remembered."""


class Chooser:
    """Chooses an endpoint for each client of a frontend."""

    def __init__(self, clock: Clock, backends: Backends) -> None:
        self.use(backends)
        self._clock = clock
        self._clients: OrderedDict[str, tuple[tuple[str, int], float]] = OrderedDict()

    def use(self, backends: Backends) -> None:
        """Choose among these from now on."""
        self.backends = backends
        self._sources = [ip_network(one) for one in backends.sources]

    def admits(self, client: str) -> bool:
        """The client is where it must be to be served."""
        return not self._sources or any(ip_address(client) in one for one in self._sources)

    def choose(self, client: str) -> tuple[str, int] | None:
        """An endpoint, or None where there is none."""
        endpoints, affinity = self.backends.endpoints, self.backends.affinity
        if not endpoints:
            return None
        now = self._clock.monotonic()
        if affinity and client in self._clients:
            endpoint, since = self._clients[client]
            if endpoint in endpoints and now - since <= affinity:
                self._clients[client] = (endpoint, now)
                self._clients.move_to_end(client)
                return endpoint
        endpoint = secrets.choice(endpoints)
        if affinity:
            self._clients[client] = (endpoint, now)
            self._clients.move_to_end(client)
            while len(self._clients) > AFFINE_CLIENTS:
                self._clients.popitem(last=False)
        return endpoint


class ForwardPath:
    """Forwarders for a set of frontends; ``place`` maps a frontend to where it is listened on."""

    def __init__(
        self,
        clock: Clock,
        tasks: Tasks,
        place: Callable[[Frontend], tuple[str, int]] = lambda frontend: (frontend.address, frontend.port),
    ) -> None:
        self._clock = clock
        self._tasks = tasks
        self._place = place
        self._forwarders: dict[Frontend, _TcpForwarder | _UdpForwarder] = {}
        self._turn = asyncio.Lock()

    @property
    def size(self) -> int:
        """Frontends listened on."""
        return len(self._forwarders)

    async def put(self, frontend: Frontend, backends: Backends) -> None:
        """See `DataPath`."""
        if not backends.endpoints:
            await self.drop(frontend)
            return
        async with self._turn:  # two that put the same frontend would listen twice
            forwarder = self._forwarders.get(frontend)
            if forwarder is not None:
                forwarder.chooser.use(backends)
                return
            kind = _TcpForwarder if frontend.protocol == "TCP" else _UdpForwarder
            made = kind(self._clock, self._tasks, Chooser(self._clock, backends))
            host, port = self._place(frontend)
            await made.listen(host, door(host, port))
            self._forwarders[frontend] = made

    async def drop(self, frontend: Frontend) -> None:
        """See `DataPath`."""
        async with self._turn:
            forwarder = self._forwarders.pop(frontend, None)
            if forwarder is not None:
                forwarder.close()

    def close(self) -> None:
        """Stop listening everywhere."""
        for forwarder in self._forwarders.values():
            forwarder.close()
        self._forwarders.clear()


class _TcpForwarder:
    def __init__(self, clock: Clock, tasks: Tasks, chooser: Chooser) -> None:
        self.chooser = chooser
        self._clock = clock
        self._tasks = tasks
        self._server: asyncio.Server | None = None

    async def listen(self, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Side(self._opened), host, port, backlog=1024)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    def _opened(self, client: _Side) -> None:
        if not self.chooser.admits(client.peer):
            asyncio.get_running_loop().call_soon(client.abort)  # its transport is only being made
            return
        try:
            self._tasks.start("forward", self._connect(client))
        except RuntimeError:  # the platform is going down
            client.abort()

    async def _connect(self, client: _Side) -> None:
        """Find the client an endpoint; one that does not answer is passed over, each at most once."""
        loop = asyncio.get_running_loop()
        tried: set[tuple[str, int]] = set()
        for _ in range(len(self.chooser.backends.endpoints)):
            endpoint = self.chooser.choose(client.peer)
            if endpoint is None or endpoint in tried:
                left = [one for one in self.chooser.backends.endpoints if one not in tried]
                if not left:
                    break
                endpoint = secrets.choice(left)
            tried.add(endpoint)
            try:
                async with self._clock.patience(CONNECT_SECONDS):
                    _, server = await loop.create_connection(lambda: _Side(None), endpoint[0], door(*endpoint))
            except (OSError, TimeoutError) as error:
                log.debug("endpoint %s:%d: %s", *endpoint, error)
                continue
            client.join(server)
            return
        client.abort()


class _Side(asyncio.Protocol):
    """One end of a forwarded connection; what arrives here leaves at the other end, no faster than that end takes it."""

    def __init__(self, opened: Callable[[_Side], None] | None) -> None:
        self._opened = opened
        self._other: _Side | None = None
        self._ended = self._lost = False
        self._early: list[bytes] = []
        self.peer = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._opened is not None:
            self.peer = transport.get_extra_info("peername")[0]
            self._transport.pause_reading()  # until there is somewhere to take it
            self._opened(self)

    def join(self, other: _Side) -> None:
        """Carry bytes between the two from now on."""
        self._other, other._other = other, self
        if self._lost:
            other.abort()
            return
        if self._early:
            other._transport.write(b"".join(self._early))
            self._early.clear()
        if self._ended:
            other._transport.write_eof()
        self._transport.resume_reading()

    def abort(self) -> None:
        """Reset the connection; closing alone would look like a server that said nothing."""
        held = self._transport.get_extra_info("socket")
        if held is not None and held.fileno() >= 0:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._other is not None:
            self._other._transport.write(data)
        else:  # uvloop may read once although it was told to pause
            self._early.append(data)
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """This direction is done; the connection is when both are."""
        self._ended = True
        other = self._other
        if other is not None and not other._lost:
            if other._ended:
                other._transport.close()
                return False
            other._transport.write_eof()
        return True

    def pause_writing(self) -> None:
        if self._other is not None and not self._other._lost:
            self._other._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._other is not None and not self._other._lost:
            self._other._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if self._other is not None and not self._other._lost:
            if exc is None:
                self._other._transport.close()
            else:
                self._other.abort()


class _UdpForwarder(asyncio.DatagramProtocol):
    def __init__(self, clock: Clock, tasks: Tasks, chooser: Chooser) -> None:
        self.chooser = chooser
        self._clock = clock
        self._tasks = tasks
        self._clients: OrderedDict[Any, _UdpClient] = OrderedDict()
        self._transport: asyncio.DatagramTransport | None = None

    async def listen(self, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(
            lambda: self, local_addr=(host, port), family=socket.AF_INET
        )

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
        for client in list(self._clients.values()):
            client.close()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        client = self._clients.get(addr)
        if client is None or client.endpoint not in self.chooser.backends.endpoints:
            if client is not None:
                client.close()
            endpoint = self.chooser.choose(addr[0]) if self.chooser.admits(addr[0]) else None
            if endpoint is None:
                return
            client = self._clients[addr] = _UdpClient(self, addr, endpoint, self._clock)
            try:
                self._tasks.start("forward/udp", client.open())
            except RuntimeError:  # the platform is going down
                return
            while len(self._clients) > UDP_CLIENTS:
                next(iter(self._clients.values())).close()
        self._clients.move_to_end(addr)
        client.send(data)

    def answer(self, data: bytes, addr: Any) -> None:
        """A datagram from an endpoint for a client."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(data, addr)

    def forget(self, addr: Any, client: _UdpClient) -> None:
        """A client's socket is closed."""
        if self._clients.get(addr) is client:
            del self._clients[addr]


class _UdpClient(asyncio.DatagramProtocol):
    """The socket to the endpoint on behalf of one client."""

    def __init__(self, forwarder: _UdpForwarder, addr: Any, endpoint: tuple[str, int], clock: Clock) -> None:
        self._forwarder, self._addr, self.endpoint, self._clock = forwarder, addr, endpoint, clock
        self._transport: asyncio.DatagramTransport | None = None
        self._waiting: list[bytes] = []
        self._closed = False
        self._timer: Timer | None = None

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            self._transport, _ = await loop.create_datagram_endpoint(
                lambda: self, remote_addr=(self.endpoint[0], door(*self.endpoint))
            )
        except OSError as error:
            log.debug("endpoint %s:%d: %s", *self.endpoint, error)
            self.close()
            return
        if self._closed:
            self._transport.close()
        for data in self._waiting:
            self._transport.sendto(data)
        self._waiting.clear()

    def send(self, data: bytes) -> None:
        self._rest()
        if self._transport is not None:
            self._transport.sendto(data)
        elif len(self._waiting) < 16:
            self._waiting.append(data)

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._clock.call_later(UDP_IDLE_SECONDS, self.close)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._rest()
        self._forwarder.answer(data, self._addr)

    def close(self) -> None:
        """Forget the client."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.close()
        self._forwarder.forget(self._addr, self)
