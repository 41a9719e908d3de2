"""The admin socket: how the ``sampan`` command speaks to a running platform.

HTTP on a Unix socket in the data directory that only its owner can open (so also for curl)::

    GET  /status              the platform's state, parts and addresses
    POST /clock               {"jump": seconds} or {"rate": factor} (0 freezes); answers with the clock
    GET  /clock
    POST /stop                end the platform; answers at once
    GET  /metrics[?part=...]  Prometheus text of the core process, or of a part's own process
    GET  /traces[?id=...&limit=...]  the latest traces as a list, or whole where a beginning of their id is given

`ask` is the client side, in plain sockets so that a command need not load an HTTP library.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from sampan.kernel import steering
from sampan.kernel.errors import SampanError

if TYPE_CHECKING:
    from aiohttp import web

    from sampan.kernel.clock import Clock
    from sampan.kernel.folder import DataDirectory
    from sampan.kernel.http import HttpServer
    from sampan.kernel.traces import Traces

SOCKET = "admin.sock"
PATH_LIMIT = 100
"""Bytes in a Unix socket's path that every system takes."""


class NotRunningError(SampanError):
    """No platform answers on this data directory."""


class Steering(msgspec.Struct, forbid_unknown_fields=True):
    """What ``POST /clock`` takes."""

    jump: float | None = None
    """Seconds to jump; backward jumps move the wall reading only."""
    rate: float | None = None
    """How fast to run; 0 freezes."""


class Administered(Protocol):
    """What the admin socket needs of a platform."""

    directory: DataDirectory
    clock: Clock

    async def status(self) -> msgspec.Struct:
        """What ``GET /status`` answers."""
        ...

    traces: Traces

    async def metrics_text(self, part: str | None = None) -> str:
        """Prometheus text of the core, or of a part's own process."""
        ...

    def ask_to_stop(self) -> None:
        """Begin an orderly end."""
        ...


class AdminServer:
    """Serves the admin socket of one platform."""

    def __init__(self, platform: Administered) -> None:
        self._platform = platform
        self._server: HttpServer | None = None
        self._path = platform.directory.run / SOCKET

    async def start(self) -> None:
        """Begin to serve; a socket left by a killed platform is replaced."""
        from sampan.kernel.clock import Clock
        from sampan.kernel.http import HttpServer

        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        with _reachable(self._path) as path:
            listener.bind(path)
        self._path.chmod(0o600)
        listener.listen()
        listener.setblocking(False)
        self._server = HttpServer(self._answer, listener, Clock())
        await self._server.start()

    async def stop(self) -> None:
        """Serve no more."""
        if self._server is not None:
            await self._server.drain(1.0)
            await self._server.stop()
        self._path.unlink(missing_ok=True)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        from aiohttp import web

        from sampan.kernel.http import read_body

        platform = self._platform
        try:
            match request.method, request.path:
                case "GET", "/status":
                    return _json(await platform.status())
                case "GET", "/clock":
                    return _json(steering.describe(platform.clock))
                case "POST", "/clock":
                    self._steer(msgspec.json.decode(await read_body(request, platform.clock), type=Steering))
                    return _json(steering.describe(platform.clock))
                case "POST", "/stop":
                    platform.ask_to_stop()
                    return _json({"stopping": True})
                case "GET", "/metrics":
                    text = await platform.metrics_text(request.query.get("part"))
                    return web.Response(text=text, content_type="text/plain")
                case "GET", "/traces":
                    from sampan.kernel.traces import summary

                    traces = platform.traces
                    if (prefix := request.query.get("id")) is not None:
                        return _json(await traces.whole(traces.find(prefix)))
                    recent = await traces.whole(traces.recent(int(request.query.get("limit", "20"))))
                    return _json([summary(one) for one in recent])
        except (SampanError, msgspec.MsgspecError, ValueError) as error:
            return _json({"error": str(error)}, 400)
        return _json({"error": f"{request.method} {request.path} is not served here"}, 404)

    def _steer(self, steering: Steering) -> None:
        clock = self._platform.clock
        if steering.rate is not None:
            if not 0 <= steering.rate <= 1e6:
                raise SampanError("a clock's rate is between 0 (frozen) and 1000000")
            clock.run(steering.rate)
        if steering.jump is not None:
            clock.jump(steering.jump)


def ask(run: Path, method: str, path: str, body: Any = None, *, wait: float = 30.0) -> Any:
    """One request to the admin socket in ``run``; JSON is decoded, other text is returned as it is.

    Raises:
        NotRunningError: nobody answers there.
        SampanError: the platform refused; its message.
    """
    content = b"" if body is None else msgspec.json.encode(body)
    head = f"{method} {path} HTTP/1.1\r\nHost: sampan\r\nConnection: close\r\nContent-Length: {len(content)}\r\n\r\n"
    answer = bytearray()
    try:
        with socket.socket(socket.AF_UNIX) as line, _reachable(run / SOCKET) as place:
            line.settimeout(wait)
            line.connect(place)
            line.sendall(head.encode() + content)
            while block := line.recv(65536):
                answer += block
    except OSError as error:
        raise NotRunningError(f"no platform answers on {run.parent}: {error.strerror or error}") from None
    header, _, payload = bytes(answer).partition(b"\r\n\r\n")
    status = header.split(b" ", 2)
    if len(status) < 2:
        raise NotRunningError(f"the platform on {run.parent} ended while it was asked")
    if b"application/json" not in header.lower():
        return payload.decode()
    decoded = msgspec.json.decode(payload)
    if status[1] != b"200":
        raise SampanError(str(decoded.get("error", decoded)))
    return decoded


@contextlib.contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """A name for a socket's path that is short enough: its own, or one through an open descriptor of its folder."""
    if len(os.fsencode(path)) <= PATH_LIMIT:
        yield str(path)
        return
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


def _json(value: Any, status: int = 200) -> web.Response:
    from aiohttp import web

    return web.Response(body=msgspec.json.encode(value, enc_hook=str), status=status, content_type="application/json")
