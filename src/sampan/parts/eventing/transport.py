"""Sending events over HTTP, and finding the way to cluster-local names from outside the pods.

The core process has no cluster DNS. `ServiceResolver` answers ``name.namespace.svc.cluster.local`` from the Service and its
EndpointSlices (following ExternalName, as Knative's routes use it), so that every Addressable is reached the way a pod would
reach it. `Transport.post` makes one attempt and says how it went; when to try again is ``delivery``'s business.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult

from sampan.kernel.addresses import door
from sampan.kernel.clock import Clock
from sampan.kube.client.resources import ENDPOINT_SLICES, SERVICES
from sampan.kube.control.indexes import SLICES_OF_SERVICE
from sampan.kube.control.interface import Informers
from sampan.kube.objects import Key, Object, dig
from sampan.parts.eventing.delivery import Outcome
from sampan.parts.eventing.resources import CLUSTER_DOMAIN

RESPONSE_LIMIT = 4 * 1024 * 1024
"""Bytes of a response that may be a reply event."""
EXTERNAL_NAMES = 5
"""ExternalName Services followed in a row."""


class Answer(msgspec.Struct):
    """An attempt's outcome, and the response's headers and body."""

    outcome: Outcome
    headers: Mapping[str, str] = {}
    body: bytes = b""


class ServiceResolver(AbstractResolver):
    """Cluster-local names from kube, everything else from the system."""

    def __init__(self, informers: Informers) -> None:
        self._services = informers.informer(SERVICES)
        self._slices = informers.informer(ENDPOINT_SLICES)
        self._turn = itertools.count()
        self._system = aiohttp.ThreadedResolver()

    async def wait_synced(self) -> None:
        """Return once the caches are filled."""
        await self._services.wait_synced()
        await self._slices.wait_synced()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Addresses of a name; those of a Service carry the port of its endpoints."""
        for _ in range(EXTERNAL_NAMES):
            key = service_key(host)
            if key is None:
                return await self._system.resolve(host, port, family)
            service = self._services.get(key)
            if service is None:
                raise OSError(None, f"there is no Service {key}")
            if dig(service, "spec", "type") == "ExternalName":
                host = service["spec"].get("externalName") or ""
                continue
            found = self._endpoints(key, service, port)
            if not found:
                raise OSError(None, f"Service {key} has no ready endpoint on port {port}")
            first = next(self._turn) % len(found)
            return [
                {"hostname": host, "host": address, "port": number, "family": family, "proto": 0, "flags": 0}
                for address, number in found[first:] + found[:first]
            ]
        raise OSError(None, f"too many ExternalName Services in a row at {host}")

    def _endpoints(self, key: Key, service: Object, port: int) -> list[tuple[str, int]]:
        ports = dig(service, "spec", "ports", default=[])
        name = next((one.get("name") or "" for one in ports if one["port"] == port), None)
        if name is None:
            return []
        found: list[tuple[str, int]] = []
        for one in SLICES_OF_SERVICE(self._slices, str(key)):
            number = next((p.get("port") for p in one.get("ports") or () if (p.get("name") or "") == name), None)
            if number is None:
                continue
            for endpoint in one.get("endpoints") or ():
                if dig(endpoint, "conditions", "ready", default=True):
                    found += [(address, door(address, int(number))) for address in endpoint["addresses"]]
        return sorted(set(found))

    async def close(self) -> None:
        await self._system.close()


def service_key(host: str) -> Key | None:
    """The Service that a cluster-local name stands for, or None."""
    host = host.rstrip(".")
    for suffix in (f".{CLUSTER_DOMAIN}", ".svc"):
        if host.endswith(suffix):
            parts = host[: -len(suffix)].split(".")
            return Key(parts[1], parts[0]) if len(parts) == 2 else None
    return None


class Transport:
    """One HTTP client for all deliveries."""

    def __init__(self, resolver: AbstractResolver, clock: Clock, authority: Callable[[], bytes]) -> None:
        """``authority``: whom to trust besides the system's authorities (PEM): the one of names in the cluster."""
        self._resolver = resolver
        self._clock = clock
        self._authority = authority
        self._trust: ssl.SSLContext | None = None
        self._opened: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close all connections."""
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    def _session(self) -> aiohttp.ClientSession:
        if self._opened is None:
            tracing = aiohttp.TraceConfig()
            tracing.on_connection_reuseconn.append(_reused)
            self._opened = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(resolver=self._resolver, use_dns_cache=False, limit=0, limit_per_host=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None, sock_read=None),
                auto_decompress=True,
                cookie_jar=aiohttp.DummyCookieJar(),
                trace_configs=[tracing],
                headers={"User-Agent": "sampan-eventing"},
            )
        return self._opened

    def _trusted(self) -> ssl.SSLContext:
        made = ssl.create_default_context()
        made.load_verify_locations(cadata=self._authority().decode())
        return made

    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes, *, timeout: float | None = None, method: str = "POST"
    ) -> Answer:
        """Make one attempt, of at most ``timeout`` seconds."""
        try:
            async with self._clock.patience(timeout):
                return await self._post(url, headers, body, method)
        except TimeoutError:
            return Answer(Outcome(0, f"no response within {timeout:g} s" if timeout else "timed out"))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Answer(Outcome(0, str(error) or type(error).__name__))

    async def _post(self, url: str, headers: Mapping[str, str], body: bytes, method: str) -> Answer:
        if url.startswith("https:") and self._trust is None:
            self._trust = await asyncio.to_thread(self._trusted)
        trust = self._trust or True
        while True:
            reused: dict[str, bool] = {}
            try:
                async with self._session().request(
                    method, url, data=body, headers=headers, allow_redirects=False, trace_request_ctx=reused, ssl=trust
                ) as response:
                    content = await _read(response)
                    outcome = Outcome(response.status, "", content, _retry_after(response.headers, self._clock))
                    return Answer(outcome, response.headers, content)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                # an idle connection that the other side was closing says nothing about the subscriber: not an attempt
                if not reused:
                    raise


async def _reused(session: object, context: Any, parameters: object) -> None:
    context.trace_request_ctx["reused"] = True


async def _read(response: aiohttp.ClientResponse) -> bytes:
    blocks, size = [], 0
    async for block in response.content.iter_any():
        size += len(block)
        if size > RESPONSE_LIMIT:
            raise ValueError(f"the response is larger than {RESPONSE_LIMIT} bytes")
        blocks.append(block)
    return b"".join(blocks)


def _retry_after(headers: Mapping[str, str], clock: Clock) -> float | None:
    given = headers.get("Retry-After")
    if given is None:
        return None
    if given.isdecimal():
        return float(given)
    try:
        return max(0.0, parsedate_to_datetime(given).timestamp() - clock.time())
    except ValueError:
        return None
