"""agnhost guestbook: the test suite's key-value store of a primary and its replicas, and the front end that asks them.

The primary answers ``/get``, ``/set`` and ``/register`` and passes what is set on to the replicas that registered; the front end
answers ``/guestbook?cmd=get|set&key=&value=`` from the Services ``agnhost-replica`` and ``agnhost-primary``.
"""

from __future__ import annotations

import argparse
import asyncio
import socket

from aiohttp import ClientError, ClientSession, ClientTimeout, web

from sampan.kernel.clock import Clock
from sampan.parts.node.images.standins.serve import serve

RETRY = 0.5
PATIENCE = 10.0


class Guestbook:
    """One of the three roles; each answers all the paths."""

    def __init__(self, backend_port: int) -> None:
        self._backend_port = backend_port
        self._values: dict[str, str] = {}
        self._replicas: list[str] = []

    def application(self) -> web.Application:
        """The routes."""
        application = web.Application()
        application.router.add_get("/get", self._get)
        application.router.add_get("/set", self._set)
        application.router.add_get("/register", self._register)
        application.router.add_get("/guestbook", self._ask)
        return application

    async def _get(self, request: web.Request) -> web.Response:
        return web.json_response({"data": self._values.get(request.query.get("key", ""), "")})

    async def _set(self, request: web.Request) -> web.Response:
        self._values[request.query.get("key", "")] = request.query.get("value", "")
        for replica in self._replicas:
            await fetch(f"http://{replica}/set?{request.query_string}")
        return web.json_response({})

    async def _register(self, request: web.Request) -> web.Response:
        replica = request.query.get("host", "")
        if replica and replica not in self._replicas:
            self._replicas.append(replica)
        for key, value in self._values.items():
            async with ClientSession() as session:
                await session.get(f"http://{replica}/set", params={"key": key, "value": value})
        return web.json_response({})

    async def _ask(self, request: web.Request) -> web.Response:
        command = request.query.get("cmd", "")
        if command not in ("get", "set"):
            return web.Response(status=400, text=f"unsupported command {command!r}\n")
        name = "agnhost-replica" if command == "get" else "agnhost-primary"
        try:
            status, text = await fetch(f"http://{name}:{self._backend_port}/{command}?{request.query_string}")
        except (ClientError, TimeoutError, OSError) as error:
            return web.Response(status=500, text=f"{name} does not answer: {error}\n")
        return web.Response(status=status, text=text, content_type="application/json")

    async def follow(self, primary: str, own_port: int, clock: Clock) -> None:
        """Register with the primary, again and again until it answers."""
        while True:
            try:
                address = await asyncio.to_thread(socket.gethostbyname, socket.gethostname())
                status, _ = await fetch(f"http://{primary}:{self._backend_port}/register?host={address}:{own_port}")
            except (ClientError, TimeoutError, OSError):
                status = 0
            if status == 200:
                return
            await clock.sleep(RETRY)


async def fetch(url: str) -> tuple[int, str]:
    """GET: status and text. Raises ClientError, OSError, TimeoutError."""
    async with ClientSession(timeout=ClientTimeout(total=PATIENCE)) as session, session.get(url) as answer:
        return answer.status, await answer.text()


def guestbook(arguments: list[str]) -> None:
    """``guestbook [--http-port 80] [--backend-port 6379] [--slaveof primary]``."""
    parser = argparse.ArgumentParser(prog="agnhost guestbook", add_help=False, allow_abbrev=False)
    parser.add_argument("--http-port", type=int, default=80)
    parser.add_argument("--backend-port", type=int, default=6379)
    parser.add_argument("--slaveof", "--replicaof", default="")
    options, _ = parser.parse_known_args(arguments)
    book = Guestbook(options.backend_port)

    async def both() -> None:
        async with asyncio.TaskGroup() as tasks:
            if options.slaveof:
                tasks.create_task(book.follow(options.slaveof, options.http_port, Clock()))
            await serve(book.application(), [options.http_port])

    asyncio.run(both())
