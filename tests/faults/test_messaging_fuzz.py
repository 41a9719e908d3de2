"""Bytes nobody should send: the broker answers or hangs up, and serves everybody else as before."""

from __future__ import annotations

import asyncio
import os
import random
import struct
from pathlib import Path

import psutil
from grpc import aio

from sampan.parts.messaging import MessagingClient
from sampan.parts.messaging.fronts.grpc.service import SERVICE
from tests.clients.messaging_harness import broker

METHODS = [
    "SendMessage",
    "ReceiveMessage",
    "AckMessage",
    "ChangeInvisibleDuration",
    "QueryRoute",
    "Heartbeat",
    "QueryAssignment",
    "EndTransaction",
    "ForwardMessageToDeadLetterQueue",
    "RecallMessage",
    "NotifyClientTermination",
    "UpdateOffset",
    "GetOffset",
    "QueryOffset",
]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


async def rubbish(port: int, data: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        await writer.drain()
        async with asyncio.timeout(0.2):
            await reader.read(4096)
    except (OSError, TimeoutError):
        pass
    finally:
        writer.close()


async def test_fuzzed_bytes_and_requests_do_no_harm(tmp_path: Path) -> None:
    choose = random.Random(5)
    async with broker(tmp_path) as running:
        async with MessagingClient(running.address) as client:
            await client.send("t", b"before")
            before = psutil.Process(os.getpid()).memory_info().rss
            for _ in range(40):
                frame = struct.pack(">I", choose.randrange(1 << 24))[1:] + choose.randbytes(6 + choose.randrange(200))
                await asyncio.gather(
                    rubbish(running.port, choose.randbytes(choose.randrange(1, 2000))),
                    rubbish(running.port, b"\x16" + choose.randbytes(300)),
                    rubbish(running.port, PREFACE + frame),
                )
            async with aio.insecure_channel(running.address) as channel:

                async def call(name: str, payload: bytes) -> None:
                    metadata = [("x-mq-client-id", "fuzz")]
                    try:
                        if name == "ReceiveMessage":
                            async for _ in channel.unary_stream(SERVICE + name, None, None)(
                                payload, metadata=metadata, timeout=0.2
                            ):
                                pass
                        else:
                            await channel.unary_unary(SERVICE + name, None, None)(payload, metadata=metadata, timeout=2)
                    except aio.AioRpcError:
                        pass

                for _ in range(30):
                    await asyncio.gather(*[call(name, choose.randbytes(choose.randrange(60))) for name in METHODS])
            await client.send("t", b"after")
            assert sorted(m.body for m in await client.receive("g", "t")) == [b"after", b"before"]
            assert psutil.Process(os.getpid()).memory_info().rss - before < 60 << 20
        assert running.core.consumption.parked == 0
