"""A file system that is really full: messages are refused with the right code, nothing acknowledged is lost, it recovers."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sampan.parts.messaging import MessagingClient, MessagingClientError
from sampan.parts.messaging.topology import TopicConfig
from tests.clients.messaging_harness import broker


async def mount(*arguments: str) -> bool:
    process = await asyncio.create_subprocess_exec(*arguments, stderr=asyncio.subprocess.DEVNULL)
    return await process.wait() == 0


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Path]:
    """A file system of 4 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("mounting a small file system needs root")
    if not await mount("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)):
        pytest.skip("this machine does not let us mount a file system")
    yield path
    await mount("umount", "-l", str(path))


async def test_a_full_file_system_refuses_serves_on_and_recovers(small: Path) -> None:
    acknowledged: set[bytes] = set()
    number = 0

    async def send(client: MessagingClient) -> int:
        nonlocal number
        number += 1
        body = b"%08d" % number + bytes(50_000)
        try:
            await client.send("t", body)
        except MessagingClientError as error:
            return error.code
        acknowledged.add(body)
        return 20000

    async with broker(small / "mq", segment_bytes=1 << 20) as running, MessagingClient(running.address) as client:
        running.core.broker.create_topic(TopicConfig("t", queues=2))
        codes: set[int] = set()
        while 50001 not in codes:
            codes |= set(await asyncio.gather(*[send(client) for _ in range(8)]))
            assert number < 200
        assert codes <= {20000, 50001}
        assert len(acknowledged) > 40
        assert running.core.store.disk_full
        received = await client.receive("early", "t", batch=4)
        assert {message.body for message in received} <= acknowledged
        assert await mount("mount", "-o", "remount,size=64m", str(small))
        assert await send(client) == 20000
        assert not running.core.store.disk_full
    async with broker(small / "mq", segment_bytes=1 << 20) as running, MessagingClient(running.address) as client:
        found: set[bytes] = set()
        while not acknowledged <= found:
            messages = await client.receive("all", "t", wait=5)
            assert messages, f"{len(acknowledged - found)} lost"
            found |= {message.body for message in messages}
            await client.acknowledge(*messages)
