"""The kubelet API's front: routes, who may call, and the choice of streaming protocol.

Callers present a client certificate of the platform's authority in the group ``system:masters`` (the API server does), or ask
for ``/healthz`` only. Paths and parameters are the kubelet's own, so third-party agents and the API server's connector work.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from sampan.kernel.clock import Clock
from sampan.kernel.departure import while_there
from sampan.kernel.http import FIELD_LIMIT, LINE_LIMIT
from sampan.kube.objects import Object
from sampan.kube.types.duration import parse_time
from sampan.parts.node.errors import NodeError
from sampan.parts.node.kubelet import logs
from sampan.parts.node.kubelet.forwarding import forward_channels, forward_spdy
from sampan.parts.node.kubelet.multiplex import Channels, SocketChannels, SpdyChannels, SpdyConnection
from sampan.parts.node.kubelet.sessions import failure, join
from sampan.parts.node.kubelet.stats import Statistics
from sampan.parts.node.kubelet.wire import RawWire, Upgraded, WebSocketWire
from sampan.parts.node.runtime.interface import ExecSpec, Process

if TYPE_CHECKING:
    from sampan.parts.node.agent.agent import Agent
    from sampan.parts.node.agent.state import ContainerState
    from sampan.parts.node.agent.worker import PodWorker

log = logging.getLogger(__name__)

CHANNEL_PROTOCOLS = (
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "base64.channel.k8s.io",
    "channel.k8s.io",
)
SPDY_PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
PORT_FORWARD = "portforward.k8s.io"
TUNNEL = f"SPDY/3.1+{PORT_FORWARD}"
MESSAGE_LIMIT = 64 * 1024 * 1024
"""Bytes in one WebSocket message: some clients send a whole file as one."""
LONGEST_SINCE = 20 * 365 * 86400
"""Seconds a log may be asked to look back; nothing here is older."""
OPEN = frozenset({"/healthz"})
MASTERS = "system:masters"


class KubeletServer:
    """Serves the kubelet API of one agent."""

    def __init__(self, agent: Agent, metrics: CollectorRegistry) -> None:
        self._agent = agent
        self._metrics = metrics
        self.statistics = Statistics(agent)
        self._runner: web.AppRunner | None = None

    async def start(self, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Serve on a bound socket."""
        application = web.Application(middlewares=[self._authorize])
        add = application.router.add_route
        add("GET", "/healthz", self._healthz)
        add("GET", "/pods", self._pods)
        add("GET", "/runningpods/", self._pods)
        add("GET", "/containerLogs/{namespace}/{pod}/{container}", self._logs)
        for method in ("GET", "POST"):
            add(method, "/exec/{namespace}/{pod}/{container}", self._exec)
            add(method, "/attach/{namespace}/{pod}/{container}", self._attach)
            add(method, "/portForward/{namespace}/{pod}", self._port_forward)
        add("GET", "/stats/summary", self._summary)
        add("GET", "/metrics/resource", self._resource)
        add("GET", "/metrics/cadvisor", self._cadvisor)
        add("GET", "/metrics", self._own_metrics)
        self._runner = web.AppRunner(
            application,
            access_log=None,
            handle_signals=False,
            shutdown_timeout=0.1,
            max_line_size=LINE_LIMIT,
            max_field_size=FIELD_LIMIT,
        )
        await self._runner.setup()
        await web.SockSite(self._runner, listener, ssl_context=tls).start()

    async def stop(self) -> None:
        """Close every connection."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @web.middleware
    async def _authorize(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.path not in OPEN:
            tls = request.transport.get_extra_info("ssl_object") if request.transport else None
            certificate = tls.getpeercert() if tls is not None else None
            if not certificate:
                return web.Response(status=401, text="Unauthorized")
            groups = [
                value for part in certificate.get("subject", ()) for key, value in part if key == "organizationName"
            ]
            if MASTERS not in groups:
                return web.Response(status=403, text=f"Forbidden (path={request.path})")
        response: web.StreamResponse = await handler(request)
        return response

    # -- small answers

    async def _healthz(self, _: web.Request) -> web.Response:
        if not self._agent.runtime_up:
            return web.Response(status=500, text="the container runtime is down")
        return web.Response(text="ok")

    async def _pods(self, _: web.Request) -> web.Response:
        items = []
        for worker in self._agent.workers.values():
            items.append({**worker.pod, "status": worker.status or worker.pod.get("status") or {}})
        return web.json_response({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})

    async def _summary(self, _: web.Request) -> web.Response:
        return web.json_response(await self.statistics.summary())

    async def _resource(self, _: web.Request) -> web.Response:
        return web.Response(text=await self.statistics.resource_text())

    async def _cadvisor(self, _: web.Request) -> web.Response:
        return web.Response(text=await self.statistics.cadvisor_text())

    async def _own_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._metrics), content_type="text/plain")

    # -- finding

    def _worker(self, request: web.Request) -> PodWorker:
        namespace, name = request.match_info["namespace"], request.match_info["pod"]
        for worker in self._agent.workers.values():
            metadata = worker.pod["metadata"]
            if metadata["namespace"] == namespace and metadata["name"] == name:
                return worker
        raise web.HTTPNotFound(text=f'pod "{name}" not found')

    def _container(self, request: web.Request) -> tuple[PodWorker, ContainerState]:
        worker = self._worker(request)
        name = request.match_info["container"]
        state = worker.state.containers.get(name)
        if state is None:
            raise web.HTTPNotFound(text=f"container {name} not found in pod {request.match_info['pod']}")
        return worker, state

    def _running(self, request: web.Request) -> tuple[PodWorker, ContainerState]:
        worker, state = self._container(request)
        if not state.running:
            raise web.HTTPInternalServerError(
                text=f'unable to upgrade connection: container not found ("{state.name}")'
            )
        return worker, state

    # -- logs

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        worker, state = self._container(request)
        query = request.query

        def number(name: str) -> int | None:
            return int(query[name][:20]) if query.get(name, "").isdecimal() else None

        try:
            since = parse_time(query["sinceTime"]) if query.get("sinceTime") else None
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"sinceTime: {error}") from None
        if (seconds := number("sinceSeconds")) is not None:
            since = self._agent.clock.now() - timedelta(seconds=min(seconds, LONGEST_SINCE))
        previous = query.get("previous") == "true"
        attempt = state.restarts - (1 if previous else 0)
        if previous and state.restarts < 1:
            raise web.HTTPBadRequest(
                text=f'previous terminated container "{state.name}" in pod "{request.match_info["pod"]}" not found'
            )
        options = logs.LogOptions(
            follow=query.get("follow") == "true" and not previous,
            timestamps=query.get("timestamps") == "true",
            tail=number("tailLines"),
            limit=number("limitBytes"),
            since=since,
            stream=query.get("stream") or "All",
        )
        path = self._agent.layout.log(worker.uid, state.name, attempt)
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        identity = state.id

        def running() -> bool:
            return state.running and state.id == identity

        with contextlib.suppress(ConnectionError):
            async for text in logs.read(path, options, self._agent.clock, running):
                await response.write(text)
            await response.write_eof()
        return response

    # -- exec, attach

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        _worker, state = self._running(request)
        query = request.query
        spec = ExecSpec(
            state.id,
            tuple(query.getall("command", [])),
            tty=_flag(query.get("tty")),
            stdin=_flag(query.get("input")),
            stdout=_flag(query.get("output")),
            stderr=_flag(query.get("error")) and not _flag(query.get("tty")),
        )
        if not spec.args:
            raise web.HTTPBadRequest(text="you must specify at least 1 command")
        return await self._stream(request, lambda: self._agent.runtime.exec(spec), attached=False)

    async def _attach(self, request: web.Request) -> web.StreamResponse:
        worker, state = self._running(request)
        query = request.query
        spec: Object = worker.spec_of(state.name)
        tty = bool(spec.get("tty"))
        stdin = _flag(query.get("input")) and bool(spec.get("stdin"))
        stdout = _flag(query.get("output"))
        stderr = _flag(query.get("error")) and not tty

        async def attach() -> Process:
            return await self._agent.runtime.attach(state.id, stdin=stdin, stdout=stdout, stderr=stderr)

        return await self._stream(request, attach, attached=True)

    async def _stream(self, request: web.Request, begin: Any, *, attached: bool) -> web.StreamResponse:
        """Upgrade in the protocol the client speaks, start the process, and join the two."""
        if _upgrade(request) == "websocket":
            websocket = web.WebSocketResponse(protocols=CHANNEL_PROTOCOLS, compress=False, max_msg_size=MESSAGE_LIMIT)
            await websocket.prepare(request)
            await self._joined(request.transport, SocketChannels(websocket), begin, attached)
            return websocket
        if _upgrade(request) == "spdy/3.1":
            wire, expected = self._take_spdy(request, SPDY_PROTOCOLS), {"error"}
            for parameter, name in (("input", "stdin"), ("output", "stdout"), ("error", "stderr")):
                if _flag(request.query.get(parameter)):
                    expected.add(name)
            if _flag(request.query.get("tty")):
                expected.discard("stderr")
                expected.add("resize")
            channels = SpdyChannels(SpdyConnection(wire), expected)
            try:
                async with self._agent.clock.patience(30.0):
                    await channels.open()
                await self._joined(request.transport, channels, begin, attached)
            except (ConnectionError, TimeoutError):
                log.debug("a client left before its streams were open")
            finally:
                await wire.close()
            return Upgraded()
        raise web.HTTPBadRequest(text="you must upgrade the connection to use this endpoint")

    async def _joined(
        self, transport: asyncio.Transport | None, channels: Channels, begin: Any, attached: bool
    ) -> None:
        try:
            process: Process = await begin()
        except NodeError as error:
            with contextlib.suppress(ConnectionError):
                await channels.finish(failure(f"error executing command in container: {error}"))
            return
        try:
            async with while_there(transport, Clock()):
                await join(process, channels, attached=attached)
        except* (ConnectionError, OSError):
            log.debug("a client left its stream")
        finally:
            process.close()

    def _take_spdy(self, request: web.Request, offered: tuple[str, ...]) -> RawWire:
        asked = [
            word.strip()
            for value in request.headers.getall("X-Stream-Protocol-Version", [])
            for word in value.split(",")
        ]
        chosen = next((protocol for protocol in offered if protocol in asked), None)
        if chosen is None:
            raise web.HTTPForbidden(text=f"unable to upgrade: no protocol of {', '.join(asked) or 'none'} is supported")
        head = (
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
            f"X-Stream-Protocol-Version: {chosen}\r\n\r\n"
        )
        return RawWire.take(request, head)

    # -- port-forward

    async def _port_forward(self, request: web.Request) -> web.StreamResponse:
        worker = self._worker(request)
        runtime, uid = self._agent.runtime, worker.uid

        async def dial(port: int) -> socket.socket:
            return await runtime.dial(uid, port)

        clock = self._agent.clock
        if _upgrade(request) == "websocket":
            websocket = web.WebSocketResponse(
                protocols=(TUNNEL, *CHANNEL_PROTOCOLS), compress=False, max_msg_size=MESSAGE_LIMIT
            )
            await websocket.prepare(request)
            with contextlib.suppress(ConnectionError):
                async with while_there(request.transport, Clock()):
                    if websocket.ws_protocol == TUNNEL:
                        await forward_spdy(SpdyConnection(WebSocketWire(websocket)), dial, clock)
                    else:
                        ports = [int(port) for value in request.query.getall("port", []) for port in value.split(",")]
                        try:
                            await forward_channels(websocket, ports, dial)
                        except* ConnectionError:
                            log.debug("a client left its forwarding")
            return websocket
        if _upgrade(request) == "spdy/3.1":
            wire = self._take_spdy(request, (PORT_FORWARD,))
            try:
                with contextlib.suppress(ConnectionError):
                    async with while_there(request.transport, Clock()):
                        await forward_spdy(SpdyConnection(wire), dial, clock)
            finally:
                await wire.close()
            return Upgraded()
        raise web.HTTPBadRequest(text="you must upgrade the connection to use this endpoint")


def _flag(value: str | None) -> bool:
    return value is not None and value.lower() not in ("", "0", "false")


def _upgrade(request: web.Request) -> str:
    return request.headers.get("Upgrade", "").lower()
