"""Input for a process that does not read it: the client waits, the node's memory does not fill."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any, cast

from sampan.parts.node.kubelet.forwarding import INTAKE_LIMIT, _Intake
from sampan.parts.node.kubelet.sessions import FEED_LIMIT, _Feed


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_input_waits_for_a_process_that_does_not_read_and_arrives_whole_once_it_does() -> None:
    reading, writing = os.pipe()
    feed = _Feed(cast(Any, SimpleNamespace(stdin=writing, stdout=None)))
    sent = os.urandom(4 * FEED_LIMIT)
    loop = asyncio.get_running_loop()
    writer = loop.create_task(feed.write(sent))
    await settle()
    assert not writer.done()
    feed.end()
    received = bytearray()
    while block := await asyncio.to_thread(os.read, reading, 1 << 20):
        received += block
    await writer
    assert bytes(received) == sent
    os.close(reading)


async def test_input_nobody_can_read_is_dropped() -> None:
    feed = _Feed(cast(Any, SimpleNamespace(stdin=None, stdout=None)))
    for _ in range(4):
        await feed.write(bytes(FEED_LIMIT))
    reading, writing = os.pipe()
    gone = _Feed(cast(Any, SimpleNamespace(stdin=writing, stdout=None)))
    os.close(reading)
    await gone.write(bytes(4 * FEED_LIMIT))
    os.close(writing)


async def test_an_intake_makes_its_client_wait_until_there_is_room_or_nobody_takes_any_more() -> None:
    intake = _Intake()
    loop = asyncio.get_running_loop()
    first = loop.create_task(intake.put(bytes(INTAKE_LIMIT + 1)))
    await settle()
    assert not first.done()
    assert len(await intake.get() or b"") == INTAKE_LIMIT + 1
    await first
    second = loop.create_task(intake.put(bytes(INTAKE_LIMIT + 1)))
    await settle()
    assert not second.done()
    intake.close()
    await second
    await intake.put(b"dropped")

    ended = _Intake()
    taking = loop.create_task(ended.get())
    await settle()
    await ended.put(None)
    assert await taking is None
