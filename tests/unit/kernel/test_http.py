"""Long answers, piece by piece."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp.abc import AbstractStreamWriter

from sampan.kernel.clock import Clock
from sampan.kernel.http import PIECE, TAKE_DEADLINE, Pieces

BODY = bytes(range(256)) * 1_000


class Writer(AbstractStreamWriter):
    """A connection that notes what it is given, and stops taking after ``takes`` pieces."""

    def __init__(self, takes: int = 1_000) -> None:
        self.takes = takes
        self.taken: list[bytes] = []

    async def write(self, chunk: Any) -> None:
        if len(self.taken) == self.takes:
            await asyncio.Event().wait()
        self.taken.append(bytes(chunk))

    async def write_eof(self, chunk: bytes = b"") -> None:
        raise NotImplementedError

    async def drain(self) -> None:
        raise NotImplementedError

    def enable_compression(self, encoding: str = "deflate", strategy: int | None = None) -> None:
        raise NotImplementedError

    def enable_chunking(self) -> None:
        raise NotImplementedError

    async def write_headers(self, status_line: str, headers: Any) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("length", [None, 10, PIECE, PIECE + 1, len(BODY), len(BODY) + 5])
async def test_a_long_body_goes_out_in_pieces(length: int | None) -> None:
    writer, body = Writer(), Pieces(BODY, Clock())
    assert body.size == len(BODY)
    await body.write_with_length(writer, length)
    assert b"".join(writer.taken) == BODY[:length]
    assert max(map(len, writer.taken)) <= PIECE


async def test_what_was_written_is_no_longer_held() -> None:
    body = Pieces(BODY, Clock())
    await body.write(Writer())
    assert not body._value.getbuffer().nbytes


async def test_a_client_that_takes_nothing_is_cut_off() -> None:
    clock = Clock()
    clock.freeze()
    writer = Writer(takes=2)
    writing = asyncio.create_task(Pieces(BODY, clock).write(writer))
    await asyncio.sleep(0)
    clock.jump(TAKE_DEADLINE - 1)
    await asyncio.sleep(0)
    assert not writing.done() and len(writer.taken) == 2
    clock.jump(2)
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(writing, 5)
