"""The SPDY codec by playbook and by property: what a client sends, what the server's side makes of it."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.parts.node.kubelet.spdy import DICTIONARY, INITIAL_WINDOW, Closed, Data, Opened, Reset, Session, SpdyError


class Client:
    """The other side, as simple as it can be."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(zdict=DICTIONARY)

    def open(self, stream: int, fin: bool = False, **headers: str) -> bytes:
        block = struct.pack(">I", len(headers))
        for name, value in headers.items():
            block += struct.pack(">I", len(name)) + name.encode() + struct.pack(">I", len(value)) + value.encode()
        packed = self._deflate.compress(block) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        return control(1, struct.pack(">IIBB", stream, 0, 0, 0) + packed, 1 if fin else 0)


def control(kind: int, body: bytes, flags: int = 0) -> bytes:
    return struct.pack(">II", 0x80030000 | kind, flags << 24 | len(body)) + body


def data(stream: int, body: bytes, fin: bool = False) -> bytes:
    return struct.pack(">II", stream, (1 if fin else 0) << 24 | len(body)) + body


def sent(session: Session) -> list[tuple[int | str, int, bytes]]:
    """What the session sends: (kind or "data", flags, body), emptied."""
    out, buffer = [], bytes(session.outgoing)
    session.outgoing.clear()
    while buffer:
        first, second = struct.unpack_from(">II", buffer)
        length = second & 0xFFFFFF
        kind: int | str = first & 0xFFFF if first & 0x80000000 else "data"
        out.append((kind, second >> 24, buffer[8 : 8 + length]))
        buffer = buffer[8 + length :]
    return out


def test_a_forwarded_connection_from_open_to_end() -> None:
    client, session = Client(), Session()
    events = session.feed(
        client.open(1, True, streamtype="error", port="80", requestid="0")
        + client.open(3, False, streamtype="data", port="80", requestid="0")
        + data(3, b"GET /")
    )
    assert events == [
        Opened(1, {"streamtype": "error", "port": "80", "requestid": "0"}, True),
        Opened(3, {"streamtype": "data", "port": "80", "requestid": "0"}, False),
        Data(3, b"GET /", False),
    ]
    assert [frame[0] for frame in sent(session)] == [9, 9]
    session.reply(1)
    session.send(3, b"HTTP/1.1 200", fin=True)
    session.send(1, b"", fin=True)
    assert sent(session)[1:] == [("data", 1, b"HTTP/1.1 200"), ("data", 1, b"")]
    assert session.feed(data(3, b"", True)) == [Data(3, b"", True)]
    assert not session.is_open(3)


def test_sending_waits_for_the_window() -> None:
    client, session = Client(), Session()
    session.feed(client.open(1))
    session.send(1, b"x" * (INITIAL_WINDOW + 10), fin=True)
    assert sum(len(body) for _, _, body in sent(session)) == INITIAL_WINDOW
    assert session.backlog(1) == 10
    session.feed(control(9, struct.pack(">II", 1, 100)))
    assert sent(session) == [("data", 1, b"x" * 10)]


def test_pings_of_the_client_are_answered_and_a_reset_and_goodbye_are_told() -> None:
    client, session = Client(), Session()
    assert session.feed(control(6, struct.pack(">I", 7))) == []
    assert sent(session) == [(6, 0, struct.pack(">I", 7))]
    session.feed(client.open(1))
    assert session.feed(control(3, struct.pack(">II", 1, 5)) + control(7, bytes(8))) == [Reset(1), Closed()]


@given(st.lists(st.binary(max_size=300), max_size=8), st.integers(1, 50))
def test_frames_may_be_cut_anywhere(bodies: list[bytes], step: int) -> None:
    client, session = Client(), Session()
    stream = client.open(1, False, streamtype="stdin") + b"".join(data(1, body) for body in bodies)
    events = [event for at in range(0, len(stream), step) for event in session.feed(stream[at : at + step])]
    assert isinstance(events[0], Opened)
    assert [event.data for event in events[1:] if isinstance(event, Data)] == bodies


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_ignored_but_never_breaks_the_session_otherwise(garbage: bytes) -> None:
    session = Session()
    try:
        session.feed(garbage)
    except SpdyError:
        return
    assert len(session.outgoing) <= 64 * 16


def test_limits_hold() -> None:
    with pytest.raises(SpdyError, match="frame of"):
        Session().feed(struct.pack(">II", 1, 0xFFFFFF))
    with pytest.raises(SpdyError, match="version"):
        Session().feed(struct.pack(">II", 0x80020001, 0))
    bomb = zlib.compressobj(zdict=DICTIONARY)
    block = bomb.compress(bytes(10 << 20)) + bomb.flush(zlib.Z_SYNC_FLUSH)
    with pytest.raises(SpdyError, match="header block too large"):
        Session().feed(control(1, struct.pack(">IIBB", 1, 0, 0, 0) + block))
