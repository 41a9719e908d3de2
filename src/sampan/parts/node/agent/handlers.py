"""Probe and hook handlers: exec, httpGet, tcpSocket, grpc, sleep. Each tells success and what to say about failure."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from sampan.kernel.addresses import door
from sampan.kernel.clock import Clock
from sampan.kube.objects import Object
from sampan.parts.node.errors import NodeError
from sampan.parts.node.runtime.interface import ExecSpec, Runtime

OUTPUT_LIMIT = 10 * 1024


class Outcome(NamedTuple):
    """What a handler found."""

    ok: bool
    message: str = ""


class Handlers:
    """Runs handlers against one node's containers."""

    def __init__(self, runtime: Runtime, clock: Clock) -> None:
        self._runtime = runtime
        self._clock = clock

    async def run(self, handler: Object, container: str, spec: Object, address: str, timeout: float) -> Outcome:
        """Run one handler; an overrun is a failure."""
        try:
            # a hook that sleeps does so on the platform's time
            bound = self._clock.timeout if "sleep" in handler else self._clock.patience
            async with bound(timeout):
                return await self._run(handler, container, spec, address)
        except TimeoutError:
            return Outcome(False, self._late(handler, address, timeout))
        except (OSError, NodeError, ValueError, EOFError) as error:
            return Outcome(False, self._words(handler, spec, address, error))

    async def _run(self, handler: Object, container: str, spec: Object, address: str) -> Outcome:
        if "exec" in handler:
            return await self._exec(handler["exec"].get("command") or [], container)
        if "httpGet" in handler:
            return await self._http(handler["httpGet"], spec, address)
        if "tcpSocket" in handler:
            target = handler["tcpSocket"]
            host, port = target.get("host") or address, port_of(target["port"], spec)
            _, writer = await asyncio.open_connection(host, door(host, port))
            writer.close()
            return Outcome(True)
        if "grpc" in handler:
            return await self._grpc(handler["grpc"], address)
        if "sleep" in handler:
            await self._clock.sleep(float(handler["sleep"].get("seconds") or 0))
        return Outcome(True)

    async def _exec(self, command: list[str], container: str) -> Outcome:
        process = await self._runtime.exec(ExecSpec(container, tuple(command)))
        output = bytearray()
        loop = asyncio.get_running_loop()
        open_streams = set()
        done = asyncio.Event()

        def read(descriptor: int) -> None:
            try:
                data = os.read(descriptor, 65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if len(output) < OUTPUT_LIMIT:
                output.extend(data)
            if not data:
                loop.remove_reader(descriptor)
                open_streams.discard(descriptor)
                if not open_streams:
                    done.set()

        try:
            for descriptor in (process.stdout, process.stderr):
                if descriptor is not None:
                    os.set_blocking(descriptor, False)
                    open_streams.add(descriptor)
                    loop.add_reader(descriptor, read, descriptor)
            code = await process.wait()
            with contextlib.suppress(TimeoutError):
                # a child of the command may keep its output open: what came by now is enough
                async with self._clock.patience(0.2):
                    await done.wait()
        finally:
            for descriptor in open_streams:
                loop.remove_reader(descriptor)
            process.kill()
            process.close()
        text = bytes(output[:OUTPUT_LIMIT]).decode(errors="replace")
        return Outcome(code == 0, text)

    async def _http(self, target: Object, spec: Object, address: str) -> Outcome:
        scheme = (target.get("scheme") or "HTTP").lower()
        host = target.get("host") or address
        port = port_of(target["port"], spec)
        path = target.get("path") or "/"
        if not path.startswith("/"):
            path = f"/{path}"
        headers = {"User-Agent": "kube-probe/1.34", "Accept": "*/*", "Connection": "close"}
        for header in target.get("httpHeaders") or ():
            headers[header["name"]] = header["value"]
        headers.setdefault("Host", f"{host}:{port}")
        url = f"{scheme}://{host}:{port}{path}"
        for _ in range(10):
            status, location, body = await http_get(scheme, host, port, path, headers)
            if status in (301, 302, 303, 307, 308) and location:
                parts = urlsplit(location)
                if parts.hostname and parts.hostname != host:
                    return Outcome(True, "Probe terminated redirects")
                path = parts.path + (f"?{parts.query}" if parts.query else "") or "/"
                continue
            if 200 <= status < 400:
                return Outcome(True, body)
            return Outcome(False, f"HTTP probe failed with statuscode: {status}")
        return Outcome(False, f'Get "{url}": stopped after 10 redirects')

    async def _grpc(self, target: Object, address: str) -> Outcome:
        import grpc

        service = (target.get("service") or "").encode()
        request = b"\x0a" + bytes([len(service)]) + service if service else b""
        async with grpc.aio.insecure_channel(f"{address}:{door(address, target['port'])}") as channel:
            check = channel.unary_unary("/grpc.health.v1.Health/Check", bytes, bytes)
            try:
                answer: bytes = await check(request)
            except grpc.RpcError as error:
                return Outcome(False, f"service unhealthy: {error}")
        # HealthCheckResponse.status is field 1; SERVING is 1
        return Outcome(answer == b"\x08\x01", 'service unhealthy (responded with "NOT_SERVING")')

    def _late(self, handler: Object, address: str, timeout: float) -> str:
        if "exec" in handler:
            return f'command timed out: "{" ".join(handler["exec"].get("command") or [])}" timed out after {timeout:g}s'
        if "httpGet" in handler:
            path = handler["httpGet"].get("path") or "/"
            return (
                f'Get "http://{address}:{handler["httpGet"]["port"]}{path}": context deadline exceeded '
                "(Client.Timeout exceeded while awaiting headers)"
            )
        if "tcpSocket" in handler:
            return f"dial tcp {address}:{handler['tcpSocket']['port']}: i/o timeout"
        return "context deadline exceeded"

    def _words(self, handler: Object, spec: Object, address: str, error: Exception) -> str:
        words = getattr(error, "strerror", None) or str(error)
        if isinstance(error, ConnectionRefusedError):
            words = "connect: connection refused"
        for kind in ("httpGet", "tcpSocket"):
            if kind in handler:
                port = port_of(handler[kind]["port"], spec)
                dial = f"dial tcp {address}:{port}: {words}"
                return (
                    f'Get "http://{address}:{port}{handler[kind].get("path") or "/"}": {dial}'
                    if kind == "httpGet"
                    else dial
                )
        return words


def port_of(port: Any, spec: Object) -> int:
    """A numeric port, or the container's port of that name. Raises ValueError."""
    if isinstance(port, int) or str(port).isdecimal():
        return int(port)
    for declared in spec.get("ports") or ():
        if declared.get("name") == port:
            return int(declared["containerPort"])
    raise ValueError(f"unable to find named port {port!r}")


async def http_get(scheme: str, host: str, port: int, path: str, headers: Mapping[str, str]) -> tuple[int, str, str]:
    """One GET over a connection of its own: status, Location, start of the body. Raises OSError, ValueError."""
    context = None
    if scheme == "https":
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(host, door(host, port), ssl=context, limit=64 * 1024)
    try:
        lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *rest = head.split("\r\n")
        words = first.split(" ", 2)
        if len(words) < 2 or not words[1].isdecimal():
            raise ValueError(f"malformed HTTP response {first!r}")
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        body = b""
        length = fields.get("content-length", "")
        if length.isdecimal() and int(length):
            body = await reader.read(min(int(length), OUTPUT_LIMIT))
        return int(words[1]), fields.get("location", ""), body.decode(errors="replace")
    finally:
        writer.close()
