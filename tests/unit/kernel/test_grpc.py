"""A client's stream as its handler sees it, without a connection."""

from __future__ import annotations

import gzip
from types import SimpleNamespace
from typing import Any

import pytest

from sampan.kernel import grpc, http2
from sampan.kernel.grpc import GrpcError


class Client:
    """Feeds a stream, and counts the room it is given."""

    def __init__(self, limit: int = 1 << 20, encoding: str = "") -> None:
        self.room = 0
        state = SimpleNamespace(give_room=self._given)
        connection: Any = SimpleNamespace(http2=state, flush_soon=lambda: None)
        self.incoming = grpc._Incoming(connection, http2.Stream(1, 0), limit, {"grpc-encoding": encoding})

    def _given(self, stream: http2.Stream) -> None:
        self.room += 1


def framed(payload: bytes, *, compressed: bool = False) -> bytes:
    data = gzip.compress(payload) if compressed else payload
    return bytes([compressed]) + len(data).to_bytes(4, "big") + data


async def test_a_client_gets_no_room_for_more_while_its_messages_wait() -> None:
    client = Client()
    for _ in range(100):
        client.incoming.feed(framed(b"x" * 1000) + framed(b"y")[:3], False)
        client.incoming.feed(framed(b"y")[3:], False)
        client.incoming.feed(framed(b"z")[:5], False)  # and one that has just begun
        client.incoming.feed(framed(b"z")[5:], False)
    assert client.room == 0
    assert [await anext(client.incoming) for _ in range(3)] == [b"x" * 1000, b"y", b"z"]
    assert client.room == 3


async def test_a_message_in_pieces_gets_room() -> None:
    client = Client()
    whole = framed(b"x" * 1000)
    for at in range(0, len(whole), 100):
        client.incoming.feed(whole[at : at + 100], False)
    assert client.room == len(whole) // 100
    assert await anext(client.incoming) == b"x" * 1000


async def test_compressed_messages_wait_compressed() -> None:
    client = Client(encoding="gzip")
    small = framed(bytes(1 << 20), compressed=True)
    for _ in range(50):
        client.incoming.feed(small, False)
    assert sum(len(one) for one in client.incoming._messages if isinstance(one, bytes)) == 50 * len(small)
    assert await anext(client.incoming) == bytes(1 << 20)


async def test_a_message_that_becomes_too_large_is_refused_when_it_is_taken() -> None:
    client = Client(limit=1000, encoding="gzip")
    client.incoming.feed(framed(bytes(100_000), compressed=True), False)
    with pytest.raises(GrpcError, match="larger than 1000 bytes"):
        await anext(client.incoming)
