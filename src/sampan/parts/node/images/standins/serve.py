"""How a stand-in serves HTTP: one aiohttp application on one or more ports until SIGTERM."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def serve(application: web.Application, ports: Sequence[int], ready: Callable[[], None] | None = None) -> None:
    """Serve ``application`` on every port until the process is told to end, then finish what is under way."""
    runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=5)
    await runner.setup()
    for port in ports:
        await web.TCPSite(runner, "0.0.0.0", port, backlog=1024, reuse_address=True).start()  # noqa: S104 - the pod's address
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        loop.add_signal_handler(number, stop.set)
    if ready is not None:
        ready()
    await stop.wait()
    await runner.cleanup()


def run(handler: Handler, ports: Sequence[int]) -> None:
    """Serve one handler for every path and method on the ports."""
    application = web.Application(client_max_size=64 << 20)
    application.router.add_route("*", "/{path:.*}", handler)
    asyncio.run(serve(application, ports))
