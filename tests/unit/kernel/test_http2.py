"""The HTTP/2 state machine against the h2 library as its client, and against bytes no client should send."""

from __future__ import annotations

import struct

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampan.kernel import http2
from sampan.kernel.http2 import BODY, REQUEST, RESET, Connection, Stream

HEAD = b"\x88"
TAIL = b"\x00\x04done\x03yes"
REQUEST_HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/service/Method"),
    (":authority", "here"),
    ("content-type", "application/grpc"),
    ("x-mq-client-id", "me"),
]


class Client:
    """The h2 library's client, wired to a server connection."""

    def __init__(self, **options: int) -> None:
        self.server = Connection(**options)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.seen: list[h2.events.Event] = []
        self.events: list[http2.Event] = []

    def exchange(self) -> None:
        """Bytes back and forth until both sides are quiet."""
        while True:
            sent = self.h2.data_to_send()
            if sent:
                self.events += self.server.receive(sent)
            answered = self.server.take()
            if answered:
                self.seen += self.h2.receive_data(answered)
            if not sent and not answered:
                return

    def request(self, body: bytes = b"hello", *, end: bool = True) -> int:
        number = self.h2.get_next_available_stream_id()
        self.h2.send_headers(number, REQUEST_HEADERS)
        if body or end:
            self.h2.send_data(number, body, end_stream=end)
        self.exchange()
        return number

    def stream(self) -> Stream:
        return next(event[1] for event in reversed(self.events) if event[0] == REQUEST)

    def body(self, number: int) -> bytes:
        return b"".join(e.data for e in self.seen if isinstance(e, h2.events.DataReceived) and e.stream_id == number)

    def saw(self, kind: type, number: int | None = None) -> bool:
        return any(isinstance(e, kind) and number in (None, getattr(e, "stream_id", None)) for e in self.seen)


def test_a_request_and_its_answer() -> None:
    client = Client()
    number = client.request(b"hello")
    (kind, stream, headers, ended), (body_kind, _, body, body_ended) = client.events
    assert (kind, ended, body_kind, body, body_ended) == (REQUEST, False, BODY, b"hello", True)
    assert headers[":path"] == "/service/Method"
    assert headers["x-mq-client-id"] == "me"
    client.server.respond(stream, HEAD, b"answer", TAIL)
    client.exchange()
    assert client.body(number) == b"answer"
    assert client.saw(h2.events.TrailersReceived, number)
    assert client.saw(h2.events.StreamEnded, number)
    assert not client.server.streams


def test_header_blocks_that_leave_the_state_alone_are_decoded_once() -> None:
    client = Client()
    for _ in range(5):
        client.request()
    assert len({id(event[2]) for event in client.events if event[0] == REQUEST}) <= 3
    client.h2.send_headers(
        client.h2.get_next_available_stream_id(), [*REQUEST_HEADERS, ("x-mq-request-id", "another")], end_stream=True
    )
    client.exchange()
    client.request()
    found = [event[2] for event in client.events if event[0] == REQUEST]
    assert found[-2]["x-mq-request-id"] == "another"
    assert "x-mq-request-id" not in found[-1]


def test_an_answer_waits_for_the_client_to_make_room() -> None:
    client = Client()
    number = client.request()
    body = bytes(range(256)) * 1024
    client.server.respond(client.stream(), HEAD, body, TAIL)
    client.exchange()
    got = client.body(number)
    assert len(got) == 65_535
    assert client.server.waiting == len(body) - 65_535
    while not client.saw(h2.events.StreamEnded, number):
        client.h2.increment_flow_control_window(40_000)
        client.h2.increment_flow_control_window(40_000, number)
        client.exchange()
    assert client.body(number) == body
    assert client.server.waiting == 0


def test_a_stream_given_up_leaves_nothing_waiting() -> None:
    client = Client()
    number = client.request()
    client.server.begin(client.stream(), HEAD)
    client.server.send(client.stream(), bytes(200_000))
    client.exchange()
    assert client.server.waiting > 0
    client.h2.reset_stream(number)
    client.exchange()
    assert client.events[-1][0] == RESET
    assert client.server.waiting == 0
    client.server.send(client.stream(), b"too late")
    client.server.finish(client.stream(), TAIL)
    assert client.server.take() == b""


def test_a_smaller_initial_window_reaches_open_streams() -> None:
    client = Client()
    number = client.request()
    client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 10})
    client.exchange()
    client.server.begin(client.stream(), HEAD)
    client.server.send(client.stream(), bytes(100))
    client.exchange()
    assert len(client.body(number)) == 10


def test_a_body_larger_than_the_window_gets_room_as_it_is_taken() -> None:
    client = Client()
    number = client.request(b"", end=False)
    sent = 0
    while sent < 5 << 20:
        size = min(client.h2.local_flow_control_window(number), client.h2.max_outbound_frame_size, (5 << 20) - sent)
        assert size > 0
        client.h2.send_data(number, bytes(size), end_stream=sent + size == 5 << 20)
        sent += size
        before = len(client.events)
        client.exchange()
        assert len(client.events) > before
        client.server.give_room(client.stream())
        client.exchange()
    assert sum(len(event[2]) for event in client.events if event[0] == BODY) == 5 << 20


def test_streams_beyond_the_limit_are_refused() -> None:
    client = Client(max_streams=2)
    client.h2.remote_settings.max_concurrent_streams = 10
    client.request(b"", end=False)
    client.request(b"", end=False)
    client.exchange()
    number = client.h2.get_next_available_stream_id()
    block = client.h2.encoder.encode(REQUEST_HEADERS)
    client.events += client.server.receive(frame(http2.HEADERS, 5, number, block))
    assert frame(http2.RST_STREAM, 0, number, struct.pack(">I", http2.REFUSED_STREAM)) in client.server.take()
    assert not client.server.closed
    assert len(client.server.streams) == 2


def test_after_a_farewell_open_streams_end_and_new_ones_are_refused() -> None:
    client = Client()
    number = client.request()
    stream = client.stream()
    client.server.go_away()
    block = client.h2.encoder.encode(REQUEST_HEADERS)
    assert client.server.receive(frame(http2.HEADERS, 5, number + 2, block)) == []
    client.server.respond(stream, HEAD, b"answer", TAIL)
    answered = client.server.take()
    assert frame(http2.GOAWAY, 0, 0, struct.pack(">II", number, 0)) in answered
    assert frame(http2.RST_STREAM, 0, number + 2, struct.pack(">I", http2.REFUSED_STREAM)) in answered
    assert frame(http2.DATA, 0, number, b"answer") in answered


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (frame(http2.DATA, 0, 1, b"x"), http2.PROTOCOL_ERROR),
        (frame(http2.HEADERS, 4, 2, b"\x82"), http2.PROTOCOL_ERROR),
        (frame(http2.HEADERS, 4, 1, b"\xff\xff\xff\xff\xff"), http2.COMPRESSION_ERROR),
        (frame(http2.HEADERS, 0, 1, b"\x82") + frame(http2.PING, 0, 0, bytes(8)), http2.PROTOCOL_ERROR),
        (frame(http2.CONTINUATION, 4, 1, b"\x82"), http2.PROTOCOL_ERROR),
        (frame(http2.HEADERS, 0, 1, b"") + frame(9, 0, 1, bytes(16_000)) * 5, http2.ENHANCE_YOUR_CALM),
        (frame(http2.HEADERS, 12, 1, b"\x05abc"), http2.PROTOCOL_ERROR),
        (frame(http2.PING, 0, 0, b"short"), http2.FRAME_SIZE_ERROR),
        (frame(http2.PING, 0, 1, bytes(8)), http2.PROTOCOL_ERROR),
        (frame(http2.SETTINGS, 0, 0, b"odd"), http2.FRAME_SIZE_ERROR),
        (frame(http2.SETTINGS, 0, 0, struct.pack(">HI", 4, 1 << 31)), http2.FLOW_CONTROL_ERROR),
        (frame(http2.SETTINGS, 0, 0, struct.pack(">HI", 5, 1)), http2.PROTOCOL_ERROR),
        (frame(http2.WINDOW_UPDATE, 0, 0, bytes(4)), http2.PROTOCOL_ERROR),
        (frame(http2.WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"), http2.FLOW_CONTROL_ERROR),
        (frame(http2.WINDOW_UPDATE, 0, 5, b"\0\0\0\1"), http2.PROTOCOL_ERROR),
        (frame(http2.RST_STREAM, 0, 5, bytes(4)), http2.PROTOCOL_ERROR),
        (frame(http2.PUSH_PROMISE, 4, 1, bytes(4)), http2.PROTOCOL_ERROR),
        (frame(http2.DATA, 0, 1, bytes(16_385)), http2.FRAME_SIZE_ERROR),
    ],
)
def test_what_breaks_the_protocol_ends_the_connection(wrong: bytes, code: int) -> None:
    server = Connection()
    server.receive(http2.PREFACE)
    server.take()
    server.receive(wrong)
    assert server.closed
    farewell = server.take()
    at = farewell.rindex(frame(http2.GOAWAY, 0, 0, b"")[3:9])
    assert struct.unpack_from(">II", farewell, at + 6)[1] == code
    assert server.receive(b"anything") == []


def test_a_client_of_another_protocol_is_hung_up_on() -> None:
    server = Connection()
    assert server.receive(b"GET / HTTP/1.1\r\n") == []
    assert server.closed
    assert server.take() == b""


def test_opening_and_giving_up_streams_without_end_ends_the_connection() -> None:
    client = Client()
    block = frame(http2.HEADERS, 5, 1, client.h2.encoder.encode(REQUEST_HEADERS))
    client.exchange()
    number = 1
    while not client.server.closed:
        opened = block[:5] + struct.pack(">I", number) + block[9:]
        client.server.receive(opened + frame(http2.RST_STREAM, 0, number, struct.pack(">I", 8)))
        client.server.take()
        number += 2
        block = frame(http2.HEADERS, 5, 1, client.h2.encoder.encode(REQUEST_HEADERS))
        assert number < 50_000
    assert not client.server.streams


@given(st.lists(st.integers(1, 400), max_size=30), st.binary(max_size=400))
@settings(max_examples=60)
def test_how_the_bytes_are_cut_makes_no_difference(cuts: list[int], body: bytes) -> None:
    whole = Client()
    whole.h2.send_headers(1, REQUEST_HEADERS)
    whole.h2.send_data(1, body, end_stream=True)
    sent = whole.h2.data_to_send()
    pieces = Connection()
    events: list[http2.Event] = []
    at = 0
    for cut in [*cuts, len(sent)]:
        events += pieces.receive(sent[at : at + cut])
        at += cut
    assert [event[0] for event in events][:1] == [REQUEST]
    assert b"".join(event[2] for event in events if event[0] == BODY) == body
    assert events[-1][3]


FRAMES = st.tuples(
    st.integers(0, 11),
    st.integers(0, 255),
    st.integers(0, 9),
    st.binary(max_size=40) | st.just(b"\x82\x84\x87\x41\x01a"),
)


@given(st.lists(FRAMES, max_size=25), st.binary(max_size=30))
@settings(max_examples=300)
def test_no_frames_whatever_raise_or_pile_up(frames: list[tuple[int, int, int, bytes]], rest: bytes) -> None:
    server = Connection(max_streams=3)
    data = http2.PREFACE + b"".join(frame(*one) for one in frames) + rest
    for event in server.receive(data):
        if event[0] == BODY and event[3]:
            server.respond(event[1], HEAD, b"x" * 100_000, TAIL)
    assert len(server.streams) <= 3
    server.take()
    assert server.waiting <= 300_000
    if server.closed:
        assert not server.streams
        assert server.waiting == 0
