"""Events go to names in the cluster that are served with the platform's certificates."""

from __future__ import annotations

from pathlib import Path

import aiohttp
from aiohttp import web

from sampan.kernel.certificates import Authority
from sampan.kernel.clock import Clock
from sampan.parts.eventing.transport import Transport


async def test_a_sink_with_a_certificate_of_the_platforms_authority_is_trusted_and_no_other(tmp_path: Path) -> None:
    async def take(request: web.Request) -> web.Response:
        return web.Response(status=202, text=await request.text())

    application = web.Application()
    application.router.add_post("/", take)
    runner = web.AppRunner(application)
    await runner.setup()
    authority, stranger = Authority(tmp_path / "ours"), Authority(tmp_path / "other")
    for one in (authority, stranger):
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=one.server_context(["localhost"])).start()
    transport = Transport(aiohttp.ThreadedResolver(), Clock(), lambda: authority.certificate_pem)
    (_, port), (_, other) = runner.addresses
    try:
        answer = await transport.post(f"https://localhost:{port}/", {}, b"event", timeout=10)
        assert (answer.outcome.status, answer.body) == (202, b"event")
        refused = await transport.post(f"https://localhost:{other}/", {}, b"event", timeout=10)
        assert refused.outcome.status == 0
    finally:
        await transport.close()
        await runner.cleanup()
