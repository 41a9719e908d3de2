"""The gRPC server with grpc's own client, and with clients that misbehave."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from grpc import aio

from sampan.kernel.certificates import Authority
from sampan.kernel.clock import Clock
from sampan.kernel.grpc import IDLE, Call, GrpcError, GrpcServer, Method
from sampan.kernel.tasks import Tasks


@dataclass
class Served:
    """A server with a few methods, and what they saw."""

    server: GrpcServer
    clock: Clock
    port: int
    calls: list[Call] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@asynccontextmanager
async def serving(tls: Callable[[], ssl.SSLContext] | None = None, **options: Any) -> AsyncIterator[Served]:
    clock = Clock()

    def echo(payload: bytes, call: Call) -> None:
        served.calls.append(call)
        call.respond(payload)

    def never(payload: bytes, call: Call) -> None:
        served.calls.append(call)
        call.on_cancel = lambda: served.cancelled.append(call.method.path)

    def refuse(payload: bytes, call: Call) -> None:
        raise GrpcError(grpc.StatusCode.NOT_FOUND.value[0], "nothing there: 100 % sure, née")

    def broken(payload: bytes, call: Call) -> None:
        raise RuntimeError("a bug")

    def count(payload: bytes, call: Call) -> None:
        served.calls.append(call)
        for number in range(int(payload)):
            call.send(b"x" * 100_000 if call.metadata.get("large") else str(number).encode())
        call.end()

    async def mirror(payloads: AsyncIterator[bytes], call: Call) -> AsyncIterator[bytes]:
        served.calls.append(call)
        try:
            async for payload in payloads:
                yield payload[::-1]
        finally:
            served.cancelled.append(call.method.path)

    methods = [
        *(Method("/t/Echo", "unary", echo), Method("/t/Never", "unary", never), Method("/t/Refuse", "unary", refuse)),
        *(Method("/t/Broken", "unary", broken), Method("/t/Count", "stream", count)),
        Method("/t/Mirror", "bidirectional", bidirectional=mirror),
    ]
    async with Tasks(clock, "grpc") as tasks:
        listener = socket.create_server(("127.0.0.1", 0))
        server = GrpcServer(methods, clock=clock, tasks=tasks, tls=tls, **options)
        served = Served(server, clock, listener.getsockname()[1])
        await server.start(listener)
        try:
            yield served
        finally:
            await server.stop()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(40):
        while not true():
            await asyncio.sleep(0.01)


async def test_every_kind_of_call() -> None:
    async with serving() as served, aio.insecure_channel(served.address) as channel:
        assert await channel.unary_unary("/t/Echo", None, None)(b"hello", metadata=[("x", "y")]) == b"hello"
        assert served.calls[0].metadata["x"] == "y"
        assert served.calls[0].peer.host == "127.0.0.1"
        assert [m async for m in channel.unary_stream("/t/Count", None, None)(b"3")] == [b"0", b"1", b"2"]
        assert [m async for m in channel.unary_stream("/t/Count", None, None)(b"0")] == []
        conversation = channel.stream_stream("/t/Mirror", None, None)(None)
        for word in (b"abc", b"", b"x" * 3_000_000 + b"y"):
            await conversation.write(word)
            assert await conversation.read() == word[::-1]
        await conversation.done_writing()
        assert await conversation.read() is aio.EOF  # type: ignore[attr-defined]
        assert await conversation.code() == grpc.StatusCode.OK


async def test_a_call_that_the_server_aborts_ends_for_its_handler_too() -> None:
    async with serving() as served, aio.insecure_channel(served.address) as channel:
        conversation = channel.stream_stream("/t/Mirror", None, None)(None)
        await conversation.write(b"ab")
        assert await conversation.read() == b"ba"
        served.calls[0].abort(grpc.StatusCode.UNAVAILABLE.value[0], "said nothing for long")
        assert await conversation.code() == grpc.StatusCode.UNAVAILABLE
        await until(lambda: served.cancelled == ["/t/Mirror"])


async def test_large_messages_go_both_ways() -> None:
    options = [("grpc.max_receive_message_length", -1)]
    async with serving() as served, aio.insecure_channel(served.address, options=options) as channel:
        body = bytes(range(256)) * 100_000
        assert await channel.unary_unary("/t/Echo", None, None)(body) == body
        received = [m async for m in channel.unary_stream("/t/Count", None, None)(b"100", metadata=[("large", "1")])]
        assert len(received) == 100
        assert served.server.unfinished == 0


async def test_errors_have_their_status() -> None:
    async with serving(max_message=1000) as served, aio.insecure_channel(served.address) as channel:

        async def code(path: str, payload: bytes = b"", **options: Any) -> tuple[grpc.StatusCode, str | None]:
            with pytest.raises(aio.AioRpcError) as caught:
                await channel.unary_unary(path, None, None)(payload, **options)
            return caught.value.code(), caught.value.details()

        assert await code("/t/Refuse") == (grpc.StatusCode.NOT_FOUND, "nothing there: 100 % sure, née")
        assert (await code("/t/Broken"))[0] == grpc.StatusCode.INTERNAL
        assert (await code("/t/Nothing"))[0] == grpc.StatusCode.UNIMPLEMENTED
        assert (await code("/t/Echo", bytes(70_000)))[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await code("/t/Never", timeout=0.05))[0] == grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: served.cancelled == ["/t/Never"])
        assert served.calls[-1].deadline == pytest.approx(0.05, abs=0.01)
        assert served.server.unfinished == 0


async def test_compressed_requests_are_understood() -> None:
    async with serving() as served, aio.insecure_channel(served.address) as channel:
        call = channel.unary_unary("/t/Echo", None, None)
        body = b"again and again " * 1000
        assert await call(body, compression=grpc.Compression.Gzip) == body
        with pytest.raises(aio.AioRpcError) as caught:
            await call(body, compression=grpc.Compression.Deflate)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_tls_and_plaintext_share_the_port(tmp_path: Path) -> None:
    authority = Authority(tmp_path)

    def context() -> ssl.SSLContext:
        return authority.server_context(["localhost", "127.0.0.1"], leaf="test")

    async with serving(tls=context) as served:
        credentials = grpc.ssl_channel_credentials(authority.certificate_pem)
        async with aio.secure_channel(f"localhost:{served.port}", credentials) as secure:
            assert await secure.unary_unary("/t/Echo", None, None)(b"secret" * 50_000) == b"secret" * 50_000
        async with aio.insecure_channel(served.address) as plain:
            assert await plain.unary_unary("/t/Echo", None, None)(b"plain") == b"plain"


class Raw:
    """A connection of the h2 library, which does only what it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.h2.initiate_connection()

    def call(self, path: str, payload: bytes, **headers: str) -> int:
        number = self.h2.get_next_available_stream_id()
        pairs = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x")]
        self.h2.send_headers(number, [*pairs, ("content-type", "application/grpc"), *headers.items()])
        self.h2.send_data(number, b"\0" + struct.pack(">I", len(payload)) + payload, end_stream=True)
        self.writer.write(self.h2.data_to_send())
        return number

    async def status(self, number: int) -> dict[str, str]:
        """The only header block of a call that failed."""
        while data := await self.reader.read(65536):
            for event in self.h2.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived) and event.stream_id == number:
                    return {str(name, "ascii"): str(value, "ascii") for name, value in event.headers}
            self.writer.write(self.h2.data_to_send())
        raise ConnectionError("the server hung up")

    async def answer(self, number: int) -> bytes:
        body = b""
        while data := await self.reader.read(65536):
            for event in self.h2.receive_data(data):
                if isinstance(event, h2.events.DataReceived):
                    body += event.data
                if isinstance(event, h2.events.StreamEnded) and event.stream_id == number:
                    return body[5:]
            self.writer.write(self.h2.data_to_send())
        raise ConnectionError("the server hung up")


@asynccontextmanager
async def raw(served: Served, first: bytes = b"", source: str = "127.0.0.1") -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port, local_addr=(source, 0))
    writer.write(first)
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()


async def test_the_client_is_known_by_its_own_address_or_its_proxys_word() -> None:
    async with serving(proxy_protocol=True) as served:
        async with raw(served, source="127.0.0.9") as client:
            assert await client.answer(client.call("/t/Echo", b"direct")) == b"direct"
        async with raw(served, b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n") as client:
            assert await client.answer(client.call("/t/Echo", b"v1")) == b"v1"
        version_2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes((192, 0, 2, 2, 0, 0, 0, 0)) + struct.pack(">HH", 9, 9)
        async with raw(served, version_2) as client:
            assert await client.answer(client.call("/t/Echo", b"v2")) == b"v2"
        async with raw(served, b"PROXY nonsense\r\n") as client:
            with pytest.raises((ConnectionError, OSError)):
                await client.answer(client.call("/t/Echo", b"malformed"))
        assert [call.peer.host for call in served.calls] == ["127.0.0.9", "192.0.2.1", "192.0.2.2"]


async def test_a_proxys_word_is_not_taken_unasked() -> None:
    async with serving() as served, raw(served, b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n") as client:
        with pytest.raises((ConnectionError, OSError)):
            await client.answer(client.call("/t/Echo", b"x"))
        assert not served.calls


async def test_a_client_that_does_not_read_gets_no_more_calls() -> None:
    async with serving() as served, raw(served) as client:
        client.call("/t/Count", b"200", large="1")
        await until(lambda: bool(served.calls) and served.calls[0].congested)
        numbers = [client.call("/t/Count", b"200", large="1") for _ in range(20)]
        refused = await client.status(numbers[-1])
        assert refused["grpc-status"] == str(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])
        assert len(served.calls) == 1


async def test_a_client_that_reads_nothing_at_all_is_not_read_from() -> None:
    async with serving() as served, raw(served) as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.h2.increment_flow_control_window((1 << 31) - 1 - 65_535)
        client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1 << 30})
        client.call("/t/Count", b"100", large="1")
        await until(lambda: bool(served.calls) and served.calls[0].congested)
        for _ in range(50):
            client.call("/t/Count", b"100", large="1")
        await asyncio.sleep(0.2)
        assert len(served.calls) <= 2
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]


async def test_a_connection_without_calls_is_closed_after_a_while() -> None:
    async with serving() as served, raw(served) as client, raw(served) as busy:
        await client.answer(client.call("/t/Echo", b"x"))
        busy.call("/t/Never", b"")
        await until(lambda: len(served.calls) == 2)
        for _ in range(8):
            served.clock.jump(IDLE / 4)
            await asyncio.sleep(0.01)
        with pytest.raises(ConnectionError):
            await client.answer(99)
        assert served.server.connections == 1


async def test_stopping_answers_what_is_under_way_and_ends_the_rest() -> None:
    async with serving() as served, aio.insecure_channel(served.address) as channel:
        waiting = channel.stream_stream("/t/Mirror", None, None)(None)
        await waiting.write(b"a")
        assert await waiting.read() == b"a"
        slow = asyncio.ensure_future(channel.unary_unary("/t/Never", None, None)(b""))
        await until(lambda: len(served.calls) == 2)
        stopping = asyncio.ensure_future(served.server.stop(grace=5))
        await asyncio.sleep(0.05)
        assert not stopping.done()
        served.calls[1].respond(b"just in time")
        assert await slow == b"just in time"
        await stopping
        assert await waiting.code() == grpc.StatusCode.UNAVAILABLE
        await until(lambda: served.cancelled == ["/t/Mirror"])
