"""A gateway under test: backends that tell what they received, and objects put through the real API."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSMsgType, web

from sampan.kube.client import resources as core
from sampan.kube.client.http import HttpClient
from sampan.kube.objects import Object, Resource
from sampan.kube.status import ApiError
from sampan.parts.traffic import resources
from sampan.testing import Platform

DEADLINE = 40.0
"""Seconds anything may take to come about before a test fails."""

GATEWAY_API = "gateway.networking.k8s.io/v1"
KINDS: dict[str, Resource] = {
    "Gateway": resources.GATEWAYS,
    "GatewayClass": resources.GATEWAY_CLASSES,
    "ListenerSet": resources.LISTENER_SETS,
    "HTTPRoute": resources.HTTP_ROUTES,
    "GRPCRoute": resources.GRPC_ROUTES,
    "TLSRoute": resources.TLS_ROUTES,
    "TCPRoute": resources.TCP_ROUTES,
    "UDPRoute": resources.UDP_ROUTES,
    "ReferenceGrant": resources.REFERENCE_GRANTS,
    "BackendTLSPolicy": resources.BACKEND_TLS_POLICIES,
    "Ingress": core.INGRESSES,
    "IngressClass": core.INGRESS_CLASSES,
    "Service": core.SERVICES,
    "EndpointSlice": core.ENDPOINT_SLICES,
    "Secret": core.SECRETS,
    "ConfigMap": core.CONFIG_MAPS,
    "Namespace": core.NAMESPACES,
}


@dataclass
class Answer:
    """What the gateway answered."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def seen(self) -> dict[str, Any]:
        """The request as the backend saw it."""
        decoded: dict[str, Any] = json.loads(self.body)
        return decoded

    @property
    def backend(self) -> str:
        """The backend's name, or the status where none answered."""
        return str(self.seen["service"]) if self.status == 200 else str(self.status)


class Backends:
    """Echo servers on a loop and thread of their own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._ports: dict[str, int] = {}
        self._runners: list[web.AppRunner] = []
        self.received: dict[str, list[str]] = {}
        """Paths each backend has received."""

    def port(self, name: str, tls: ssl.SSLContext | None = None) -> int:
        """The port of the echo server that calls itself ``name``, started on first use."""
        if name not in self._ports:
            self._ports[name] = self.run(self._start(name, tls))
        return self._ports[name]

    def run(self, work: Any) -> Any:
        """Run a coroutine on the backends' loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE)

    async def _start(self, name: str, tls: ssl.SSLContext | None) -> int:
        paths = self.received.setdefault(name, [])

        async def echo(request: web.Request) -> web.StreamResponse:
            paths.append(request.path_qs)
            if request.headers.get("Upgrade", "").lower() == "websocket":
                return await _websocket(request)
            if request.path.endswith("/events"):
                return await _events(request)
            if "delay" in request.query:
                await asyncio.sleep(float(request.query["delay"]))
            body = await request.read()
            seen = {
                "service": name,
                "path": request.path_qs,
                "host": request.host,
                "method": request.method,
                "version": f"{request.version.major}.{request.version.minor}",
                "headers": {key.lower(): value for key, value in request.headers.items()},
                "names": [key.decode() for key, _ in request.raw_headers],
                "length": len(body),
            }
            status = int(request.query.get("status", 200))
            return web.json_response(seen, status=status, headers={"X-Backend": name, "X-Drop": "me"})

        application = web.Application(client_max_size=1 << 30)
        application.router.add_route("*", "/{tail:.*}", echo)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        self._runners.append(runner)
        assert site._server is not None
        port: int = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        return port

    def close(self) -> None:
        """Stop everything."""

        async def stop() -> None:
            await asyncio.gather(*(runner.cleanup() for runner in self._runners))

        self.run(stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _websocket(request: web.Request) -> web.StreamResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(f"echo {message.data}")
    return socket


async def _events(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for number in range(3):
        await response.write(f"data: {number}\n\n".encode())
        await asyncio.sleep(0.05)
    return response


@dataclass
class Bench:
    """A platform with a gateway, its backends and a client, used from a blocking test."""

    platform: Platform
    backends: Backends
    client: HttpClient = field(init=False)

    def __post_init__(self) -> None:
        async def make() -> HttpClient:
            client = self.platform.client()
            await client.__aenter__()
            return client

        self.client = self.backends.run(make())

    def close(self) -> None:
        self.backends.run(self.client.__aexit__(None, None, None))

    # -- objects

    def apply(self, *objects: Object) -> None:
        """Create objects, or replace their spec."""
        for one in objects:
            self.backends.run(self._apply(one))

    async def _apply(self, obj: Object) -> None:
        resource = KINDS[obj["kind"]]
        namespace = obj["metadata"].get("namespace")
        try:
            await self.client.create(resource, obj, namespace)
        except ApiError as error:
            if not error.already_exists:
                raise
            changed = {key: value for key, value in obj.items() if key not in ("apiVersion", "kind", "metadata")}
            await self.client.patch(resource, obj["metadata"]["name"], changed, namespace)

    def delete(self, kind: str, name: str, namespace: str | None = None) -> None:
        self.backends.run(self.client.delete(KINDS[kind], name, namespace))

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object:
        found: Object = self.backends.run(self.client.get(KINDS[kind], name, namespace))
        return found

    def namespace(self, name: str, labels: Mapping[str, str] | None = None) -> str:
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": dict(labels or {})}})
        return name

    def service(
        self,
        namespace: str,
        name: str,
        *,
        port: int = 8080,
        target: int | None = None,
        app_protocol: str | None = None,
        protocol: str = "TCP",
    ) -> None:
        """A Service whose only endpoint is the echo server of that name (or ``target``; 0: no endpoint)."""
        if target is None:
            target = self.backends.port(name)
        entry: Object = {"name": "main", "port": port, "protocol": protocol}
        if app_protocol:
            entry["appProtocol"] = app_protocol
        self.apply(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name, "namespace": namespace},
                "spec": {"ports": [entry]},
            },
            endpoint_slice(namespace, name, [("127.0.0.1", target)] if target else [], protocol=protocol),
        )

    def gateway(self, namespace: str, name: str, *listeners: Object) -> str:
        """Apply a Gateway, wait until it is programmed, and give its address."""
        self.apply(gateway(namespace, name, *listeners))
        status = self.settled("Gateway", name, namespace)
        return str(status["addresses"][0]["value"])

    def route(self, route: Object) -> Object:
        """Apply a route and wait until its status tells of this generation."""
        self.apply(route)
        return self.settled(route["kind"], route["metadata"]["name"], route["metadata"]["namespace"])

    def settled(self, kind: str, name: str, namespace: str | None) -> Object:
        """The status once all its conditions are of the current generation."""

        def look() -> Object | None:
            obj = self.get(kind, name, namespace)
            found = conditions(obj.get("status") or {})
            generation = obj["metadata"]["generation"]
            ours = [one for one in found if one.get("reason") != "Pending"]
            if ours and len(ours) == len(found) and all(one["observedGeneration"] == generation for one in ours):
                status: Object = obj["status"]
                return status
            return None

        settled: Object = eventually(look)
        return settled

    # -- requests

    def ask(
        self,
        address: str,
        host: str = "example.com",
        path: str = "/",
        *,
        port: int = 80,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout: float = 10.0,
    ) -> Answer:
        """One HTTP/1.1 request on a fresh connection."""
        connection = http.client.HTTPConnection(address, port, timeout=timeout)
        try:
            connection.request(method, path, body, {"Host": host, **(headers or {})})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def ask_tls(self, address: str, name: str, host: str | None = None, path: str = "/", *, port: int = 443) -> Answer:
        """One HTTPS request with a server name, trusting anybody."""
        import socket

        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection((address, port), timeout=10) as raw,
            context.wrap_socket(raw, server_hostname=name or None) as secured,
        ):
            connection = http.client.HTTPConnection(address)
            connection.sock = secured
            connection.request("GET", path, headers={"Host": host or name})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())

    def until(self, look: Callable[[], Any]) -> Any:
        """`eventually`, for tests that change something without a status to wait on."""
        return eventually(look)


def eventually(look: Callable[[], Any]) -> Any:
    """What ``look()`` gives once it is true; connection errors count as not yet."""
    limit = time.monotonic() + DEADLINE
    last: object = None
    while time.monotonic() < limit:
        try:
            if found := look():
                return found
            last = found
        except (OSError, http.client.HTTPException, ApiError) as error:
            last = error
        time.sleep(0.01)
    raise AssertionError(f"it did not come about: {last!r}")


def conditions(status: Object) -> list[Object]:
    """All conditions of a status, wherever they stand."""
    found = list(status.get("conditions") or ())
    for field_name in ("listeners", "parents", "ancestors"):
        for entry in status.get(field_name) or ():
            found += entry.get("conditions") or ()
    return found


def reasons(entry: Object) -> dict[str, str]:
    """``{type: "True Reason"}`` of the conditions of a status entry."""
    return {one["type"]: f"{one['status']} {one['reason']}" for one in entry["conditions"]}


def endpoint_slice(
    namespace: str, service: str, endpoints: list[tuple[str, int]], *, protocol: str = "TCP", suffix: str = "manual"
) -> Object:
    """An EndpointSlice as an operator without a selector writes it."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{service}-{suffix}",
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "ports": [{"name": "main", "port": endpoints[0][1] if endpoints else 1, "protocol": protocol}],
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}} for address, _ in endpoints],
    }


def gateway(namespace: str, name: str, *listeners: Object) -> Object:
    return {
        "apiVersion": GATEWAY_API,
        "kind": "Gateway",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"gatewayClassName": "sampan", "listeners": list(listeners) or [http_listener()]},
    }


def http_listener(name: str = "http", hostname: str = "", *, port: int = 80, **more: Any) -> Object:
    listener: Object = {"name": name, "port": port, "protocol": "HTTP", **more}
    if hostname:
        listener["hostname"] = hostname
    return listener


def route(
    namespace: str, name: str, parent: str, rules: list[Object] | None = None, *hostnames: str, **more: Any
) -> Object:
    """An HTTPRoute attached to a Gateway of its namespace."""
    spec: Object = {"parentRefs": [{"name": parent}], **more}
    if rules is not None:
        spec["rules"] = rules
    if hostnames:
        spec["hostnames"] = list(hostnames)
    return {
        "apiVersion": GATEWAY_API,
        "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def to(*names: str, port: int = 8080) -> list[Object]:
    """backendRefs to Services of these names."""
    return [{"name": name, "port": port} for name in names]


@contextmanager
def bench(**settings: Any) -> Iterator[Bench]:
    """A platform with only the gateway, for the length of a block."""
    with contextlib.ExitStack() as stack:
        backends = Backends()
        stack.callback(backends.close)
        platform = stack.enter_context(Platform(only=["traffic"], settings={"traffic.drain_seconds": 0.0, **settings}))
        made = Bench(platform, backends)
        stack.callback(made.close)
        yield made
