"""Slow, broken and greedy HTTP clients cost a connection, never the server."""

from __future__ import annotations

import asyncio
import socket

import pytest
from aiohttp import ClientSession, web

from sampan.kernel.clock import Clock
from sampan.kernel.http import (
    LINE_LIMIT,
    TAKE_DEADLINE,
    BodyTooLargeError,
    HttpServer,
    Pieces,
    SlowClientError,
    read_body,
)


def listening() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    return listener


async def echo(request: web.BaseRequest) -> web.StreamResponse:
    clock: Clock = CLOCKS[request.url.port or 0]
    try:
        return web.Response(body=await read_body(request, clock, limit=10, deadline=30))
    except BodyTooLargeError as error:
        return web.Response(status=413, text=str(error))
    except SlowClientError as error:
        return web.Response(status=408, text=str(error))


CLOCKS: dict[int, Clock] = {}


async def serving(handler: object = echo) -> tuple[HttpServer, int, Clock]:
    clock = Clock()
    clock.freeze()
    listener = listening()
    port: int = listener.getsockname()[1]
    CLOCKS[port] = clock
    server = HttpServer(handler, listener, clock, head_deadline=15)  # type: ignore[arg-type]
    await server.start()
    return server, port, clock


async def test_a_client_that_never_finishes_its_head_is_cut_off() -> None:
    server, port, clock = await serving()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    await writer.drain()
    while not server.connections:
        await asyncio.sleep(0)
    clock.jump(16)
    assert await reader.read() == b""
    writer.close()
    await server.stop()


async def test_a_client_that_never_finishes_its_body_is_answered_408() -> None:
    server, port, clock = await serving()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Length: 9\r\n\r\nhalf" % port)
    while clock.next_timer() is None or clock.next_timer() < clock.monotonic() + 20:  # type: ignore[operator]
        await asyncio.sleep(0.001)
    clock.jump(31)
    assert b" 408 " in await reader.readline()
    writer.close()
    await server.stop()


async def test_a_request_line_may_be_as_long_as_a_script_given_to_exec() -> None:
    server, port, _ = await serving()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for size, status in ((200_000, b"200"), (2 * LINE_LIMIT, b"431")):
        writer.write(b"GET /?command=%s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % (b"x" * size, port))
        assert (await reader.readline()).split()[1] == status
        while (await reader.readline()).strip():
            pass
    writer.close()
    await server.stop()


async def test_what_is_no_http_is_answered_as_by_go_and_is_no_error_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    server, port, _ = await serving()
    for nonsense in (
        b"hello there\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"GET / HTTP/9.9\r\n\r\n",
        b"G\x00T / HTTP/1.1\r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(nonsense)
        writer.write_eof()
        answer = await reader.read()
        if answer:  # one that is not even a line is only hung up on
            assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n") and answer.endswith(b"\r\n\r\n400 Bad Request")
        writer.close()
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    await server.stop()


async def test_a_body_over_the_limit_is_refused_announced_or_not() -> None:
    server, port, _ = await serving()
    url = f"http://127.0.0.1:{port}/"

    async def endless() -> object:
        for _ in range(50):
            yield b"x"

    async with ClientSession() as session:
        async with session.post(url, data=b"x" * 11) as answer:
            assert answer.status == 413
        async with session.post(url, data=endless()) as answer:
            assert answer.status == 413
        async with session.post(url, data=b"fits") as answer:
            assert await answer.read() == b"fits"
    await server.stop()


async def test_draining_lets_the_request_under_way_finish() -> None:
    begun, finish = asyncio.Event(), asyncio.Event()

    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        begun.set()
        await finish.wait()
        return web.Response(text="finished")

    server, port, _ = await serving(slow)
    async with ClientSession() as session:
        asking = asyncio.get_running_loop().create_task(session.get(f"http://127.0.0.1:{port}/"))
        await begun.wait()
        draining = asyncio.get_running_loop().create_task(server.drain(10))
        await asyncio.sleep(0.01)
        assert not draining.done()
        finish.set()
        answer = await asking
        assert await answer.text() == "finished"
        await draining
    await server.stop()


async def test_a_client_that_takes_nothing_of_a_long_answer_costs_no_connection() -> None:
    async def long(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=Pieces(bytes(64 << 20), CLOCKS[port]))

    server, port, clock = await serving(long)
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(30):
        while not server.connections:
            await asyncio.sleep(0.01)
        while server.connections:
            clock.jump(TAKE_DEADLINE)
            await asyncio.sleep(0.01)
    client.close()
    await server.stop()
