"""The node's answers to load balancers' health checks (``healthCheckNodePort``).

A Service of ``externalTrafficPolicy: Local`` has a port of its own on the node, which says how many of its ready endpoints are
here: 200 where there are some, 503 where a load balancer had better send clients elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.indexes import SLICES_OF_SERVICE
from sampan.kube.control.interface import For, Source, Watches
from sampan.kube.objects import Key
from sampan.kube.resources import ENDPOINT_SLICES, SERVICES
from sampan.parts.network.control.proxy import RETRY_SECONDS, service_keys
from sampan.parts.network.services import Health, health_of

REQUEST_LIMIT = 8192
"""Bytes of a request at most."""
REQUEST_SECONDS = 5.0


class HealthChecks(Controller):
    """Listens where Services have a health check port, and answers from the caches."""

    name = "service-health"

    def __init__(self, context: ControlContext, host: str, node: Callable[[], str]) -> None:
        """``host`` is where node ports are; ``node`` gives this node's name once it is known."""
        super().__init__(context)
        self._host = host
        self._node = node
        self._servers: dict[Key, tuple[int, asyncio.Server]] = {}

    def sources(self) -> list[Source]:
        return [For(SERVICES), Watches(ENDPOINT_SLICES, service_keys)]

    def close(self) -> None:
        """Stop listening."""
        for _, server in self._servers.values():
            server.close()
        self._servers.clear()

    def _health(self, key: Key) -> Health | None:
        service = self.informer(SERVICES).get(key)
        if service is None:
            return None
        return health_of(service, SLICES_OF_SERVICE(self.informer(ENDPOINT_SLICES), str(key)), self._node())

    async def reconcile(self, key: Key) -> float | None:
        health, there = self._health(key), self._servers.get(key)
        if there is not None and (health is None or there[0] != health.port):
            there[1].close()
            del self._servers[key]
        if health is None or key in self._servers:
            return None
        try:
            server = await asyncio.start_server(
                lambda reader, writer: self._serve(key, reader, writer), self._host, health.port, limit=REQUEST_LIMIT
            )
        except OSError as error:
            service = self.informer(SERVICES).get(key)
            if service is not None:
                why = f"no health checks on {self._host}:{health.port}: {error.strerror or error}"
                self.recorder.event(service, "Warning", "FailedToStartServiceHealthcheck", why)
            return RETRY_SECONDS
        self._servers[key] = (health.port, server)
        return None

    async def _serve(self, key: Key, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request a connection, whatever its path."""
        try:
            async with self.clock.timeout(REQUEST_SECONDS):
                await reader.readuntil(b"\r\n\r\n")
            status, body = answer(self._health(key))
            head = (
                f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            writer.write(head.encode() + body)
            await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return
        finally:
            writer.close()


def answer(health: Health | None) -> tuple[str, bytes]:
    """Status line and body, as kube-proxy words them."""
    if health is None:
        return "503 Service Unavailable", b"{}"
    told = {
        "service": {"namespace": health.namespace, "name": health.name},
        "localEndpoints": health.local,
        "serviceProxyHealthy": True,
    }
    return ("200 OK" if health.local else "503 Service Unavailable"), msgspec.json.encode(told)
