"""The server's side of one HTTP/2 connection (RFC 9113), sans I/O: bytes in, events out, frames collected for writing.

`Connection.receive` takes what came from the client and returns what happened: requests, pieces of their bodies, streams given
up. Answers are queued with `Connection.respond` or with `send` and `finish`; `Connection.take` returns the bytes to write. Flow
control works in both directions: what the client's windows have no room for waits here (`Connection.waiting` says how much),
and the client gets room for as much as was taken from it.

Made for many short calls in an interpreter. Header blocks of answers are constants that use no compression state. A request's
header block that left the decompression state alone is decoded once: clients send the same few blocks again and again.
Responses are a handful of byte strings that are joined once a write.

What a client does wrong ends the stream or, where the protocol says so, the connection; what it may make the server keep is
bounded: the size of a header block, the number of streams, and the number of streams it gives up.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Any

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

REQUEST, BODY, RESET = range(3)
Event = tuple[int, "Stream", Any, bool]
"""``(REQUEST, stream, headers, ended)``, ``(BODY, stream, bytes, ended)`` or ``(RESET, stream, None, True)``."""

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITIZED = 0x1, 0x1, 0x4, 0x8, 0x20

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR = 5, 6, 7, 8, 9
ENHANCE_YOUR_CALM = 11

INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 4, 5
DEFAULT_WINDOW = 65_535
LARGEST_WINDOW = (1 << 31) - 1
FRAME_SIZE = 1 << 14
"""The largest frame we take: the protocol's default."""
STREAM_WINDOW = 1 << 20
CONNECTION_WINDOW = 16 << 20
HEADER_BLOCK = 64 << 10
"""The largest header block, compressed or not."""
CACHED_BLOCKS = 128
RESETS = 10_000
"""Streams a client may give up before most of its streams must come to an end by themselves."""

_FRAME = struct.Struct(">HBBBI")
_WORD = struct.Struct(">I")
_SETTING = struct.Struct(">HI")


class _Broken(Exception):
    """The client broke the protocol; the connection ends."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Stream:
    """One request and its answer. ``owner`` is for whoever drives the connection."""

    __slots__ = ("allowance", "credit", "ended", "id", "owner", "pending", "tail", "taken")

    def __init__(self, identifier: int, credit: int) -> None:
        self.id = identifier
        self.credit = credit
        """Bytes the client has room for."""
        self.allowance = STREAM_WINDOW
        """Bytes the client may still send."""
        self.taken = 0
        """Bytes received since the client was last given room."""
        self.ended = False
        """The client has sent everything."""
        self.pending: deque[memoryview] | None = None
        self.tail: bytes | None = None
        """The trailers that follow what is pending."""
        self.owner: Any = None


class Connection:
    """One connection. After `closed` is true, write what `take` has and hang up."""

    def __init__(self, *, max_streams: int = 4096) -> None:
        self.streams: dict[int, Stream] = {}
        self.closed = False
        self.waiting = 0
        """Bytes of answers the client has no room for yet."""
        self._max_streams = max_streams
        self._decoder = hpack.Decoder(max_header_list_size=HEADER_BLOCK)
        self._blocks: dict[bytes, dict[str, str]] = {}
        self._buffer = b""
        self._greeted = False
        self._last = 0
        self._credit = DEFAULT_WINDOW
        self._initial = DEFAULT_WINDOW
        self._frame_size = FRAME_SIZE
        self._allowance = CONNECTION_WINDOW
        self._taken = 0
        self._block: tuple[int, int, bytearray] | None = None
        """``(stream, flags, bytes so far)`` of a header block that continues."""
        self._blocked: dict[int, Stream] = {}
        """Streams that wait for room on the whole connection."""
        self._resets = 0
        self._going = False
        settings = _SETTING.pack(3, max_streams) + _SETTING.pack(INITIAL_WINDOW_SIZE, STREAM_WINDOW)
        settings += _SETTING.pack(6, HEADER_BLOCK)
        self._out: list[bytes | memoryview] = [
            _frame(SETTINGS, 0, 0, settings),
            _frame(WINDOW_UPDATE, 0, 0, _WORD.pack(CONNECTION_WINDOW - DEFAULT_WINDOW)),
        ]

    # -- what comes in

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes of the client; what a broken protocol ends is reported as streams that were reset."""
        events: list[Event] = []
        if self.closed:
            return events
        buffer = self._buffer + data if self._buffer else data
        at = 0
        try:
            if not self._greeted:
                if len(buffer) < len(PREFACE):
                    if not PREFACE.startswith(buffer):
                        raise _Broken(PROTOCOL_ERROR, "this is not HTTP/2")
                    self._buffer = buffer
                    return events
                if not buffer.startswith(PREFACE):
                    raise _Broken(PROTOCOL_ERROR, "this is not HTTP/2")
                self._greeted = True
                at = len(PREFACE)
            end = len(buffer)
            while end - at >= 9:
                high, low, kind, flags, stream = _FRAME.unpack_from(buffer, at)
                size = high << 8 | low
                if size > FRAME_SIZE:
                    raise _Broken(FRAME_SIZE_ERROR, "a frame is too large")
                stop = at + 9 + size
                if stop > end:
                    break
                self._take_frame(kind, flags, stream & 0x7FFFFFFF, buffer[at + 9 : stop], events)
                at = stop
            self._buffer = buffer[at:]
        except _Broken as error:
            self._break(error.code, str(error), events)
        if self._taken > CONNECTION_WINDOW // 4:
            self._out.append(_frame(WINDOW_UPDATE, 0, 0, _WORD.pack(self._taken)))
            self._allowance += self._taken
            self._taken = 0
        return events

    def _take_frame(self, kind: int, flags: int, number: int, payload: bytes, events: list[Event]) -> None:
        if self._block is not None and (kind != CONTINUATION or number != self._block[0]):
            raise _Broken(PROTOCOL_ERROR, "a header block is interrupted")
        if kind == DATA:
            self._take_data(flags, number, payload, events)
        elif kind == HEADERS:
            self._take_headers(flags, number, payload, events)
        elif kind == WINDOW_UPDATE:
            self._take_window_update(number, payload, events)
        elif kind == SETTINGS:
            self._take_settings(flags, number, payload)
        elif kind == PING:
            if number or len(payload) != 8:
                raise _Broken(FRAME_SIZE_ERROR if not number else PROTOCOL_ERROR, "a ping is malformed")
            if not flags & ACK:
                self._out.append(_frame(PING, ACK, 0, payload))
        elif kind == RST_STREAM:
            if len(payload) != 4 or not number:
                raise _Broken(FRAME_SIZE_ERROR if number else PROTOCOL_ERROR, "a reset is malformed")
            if number > self._last:
                raise _Broken(PROTOCOL_ERROR, "a stream that was never opened is reset")
            stream = self.streams.get(number)
            if stream is not None:
                self._forget(stream)
                events.append((RESET, stream, None, True))
                self._resets += 1
                if self._resets > RESETS and self._resets > self._last // 4:
                    raise _Broken(ENHANCE_YOUR_CALM, "too many streams are opened and given up")
        elif kind == CONTINUATION:
            if self._block is None:
                raise _Broken(PROTOCOL_ERROR, "nothing is to be continued")
            self._block[2].extend(payload)
            if len(self._block[2]) > HEADER_BLOCK:
                raise _Broken(ENHANCE_YOUR_CALM, "a header block is too large")
            if flags & END_HEADERS:
                number, begun, block = self._block
                self._block = None
                self._open(number, begun, bytes(block), events)
        elif kind == PUSH_PROMISE:
            raise _Broken(PROTOCOL_ERROR, "clients do not push")
        elif kind == PRIORITY and len(payload) != 5:
            raise _Broken(FRAME_SIZE_ERROR, "a priority is malformed")
        elif kind == GOAWAY and number:
            raise _Broken(PROTOCOL_ERROR, "a farewell is malformed")

    def _take_data(self, flags: int, number: int, payload: bytes, events: list[Event]) -> None:
        size = len(payload)
        self._allowance -= size
        self._taken += size
        if self._allowance < 0:
            raise _Broken(FLOW_CONTROL_ERROR, "more data came than there was room for")
        if not number or number > self._last:
            raise _Broken(PROTOCOL_ERROR, "data came for a stream that is not open")
        stream = self.streams.get(number)
        if flags & PADDED:
            payload = _unpadded(payload)
        if stream is None:
            return  # it was answered or reset while this was under way
        if stream.ended:
            self._refuse(number, STREAM_CLOSED, events)
            return
        stream.allowance -= size
        if stream.allowance < 0:
            self._refuse(number, FLOW_CONTROL_ERROR, events)
            return
        stream.ended = bool(flags & END_STREAM)
        stream.taken += size
        events.append((BODY, stream, payload, stream.ended))

    def _take_headers(self, flags: int, number: int, payload: bytes, events: list[Event]) -> None:
        if not number & 1:
            raise _Broken(PROTOCOL_ERROR, "a client's streams have odd numbers")
        if flags & PADDED:
            payload = _unpadded(payload)
        if flags & PRIORITIZED:
            if len(payload) < 5:
                raise _Broken(FRAME_SIZE_ERROR, "a header frame is cut short")
            payload = payload[5:]
        if flags & END_HEADERS:
            self._open(number, flags, payload, events)
        else:
            self._block = number, flags, bytearray(payload)

    def _open(self, number: int, flags: int, block: bytes, events: list[Event]) -> None:
        headers = self._decode(block)
        if number <= self._last:
            stream = self.streams.get(number)
            if stream is None:
                return  # trailers of a stream that was answered or reset meanwhile
            if stream.ended or not flags & END_STREAM:
                self._refuse(number, PROTOCOL_ERROR, events)
                return
            stream.ended = True
            events.append((BODY, stream, b"", True))
            return
        self._last = number
        if self._going or len(self.streams) >= self._max_streams:
            self._reset(number, REFUSED_STREAM)
        elif ":method" not in headers or ":path" not in headers:
            self._reset(number, PROTOCOL_ERROR)
        else:
            stream = self.streams[number] = Stream(number, self._initial)
            stream.ended = bool(flags & END_STREAM)
            events.append((REQUEST, stream, headers, stream.ended))

    def _decode(self, block: bytes) -> dict[str, str]:
        found = self._blocks.get(block)
        if found is not None:
            return found
        table = self._decoder.header_table
        entries = table.dynamic_entries
        before = (len(entries), entries[0] if entries else None, table.maxsize)
        try:
            pairs = self._decoder.decode(block, raw=True)
            headers = {
                str(name, "ascii"): str(value, "ascii", "replace")
                for name, value in pairs
                if not bytes(name).endswith(b"-bin")
            }
        except (hpack.HPACKError, UnicodeDecodeError) as error:
            raise _Broken(COMPRESSION_ERROR, f"a header block cannot be decoded: {error}") from None
        first = entries[0] if entries else None
        if (len(entries), table.maxsize) != (before[0], before[2]) or first is not before[1]:
            self._blocks.clear()  # what a block means depends on the state, which has changed
        elif len(self._blocks) < CACHED_BLOCKS:
            self._blocks[block] = headers
        return headers

    def _take_window_update(self, number: int, payload: bytes, events: list[Event]) -> None:
        if len(payload) != 4:
            raise _Broken(FRAME_SIZE_ERROR, "a window update is malformed")
        more = _WORD.unpack(payload)[0] & LARGEST_WINDOW
        if not number:
            self._credit += more
            if not more or self._credit > LARGEST_WINDOW:
                raise _Broken(FLOW_CONTROL_ERROR if more else PROTOCOL_ERROR, "a window update is out of range")
            blocked, self._blocked = self._blocked, {}
            for stream in blocked.values():
                self._drain(stream)
            return
        found = self.streams.get(number)
        if found is None:
            if number > self._last:
                raise _Broken(PROTOCOL_ERROR, "a window update came for a stream that is not open")
            return
        found.credit += more
        if not more or found.credit > LARGEST_WINDOW:
            self._refuse(number, FLOW_CONTROL_ERROR if more else PROTOCOL_ERROR, events)
            return
        self._drain(found)

    def _take_settings(self, flags: int, number: int, payload: bytes) -> None:
        if number or len(payload) % 6 or (flags & ACK and payload):
            raise _Broken(PROTOCOL_ERROR if number else FRAME_SIZE_ERROR, "settings are malformed")
        if flags & ACK:
            return
        for name, value in _SETTING.iter_unpack(payload):
            if name == INITIAL_WINDOW_SIZE:
                if value > LARGEST_WINDOW:
                    raise _Broken(FLOW_CONTROL_ERROR, "the initial window is out of range")
                change, self._initial = value - self._initial, value
                for stream in list(self.streams.values()):
                    stream.credit += change
                    if stream.credit > LARGEST_WINDOW:
                        raise _Broken(FLOW_CONTROL_ERROR, "a window is out of range")
                    self._drain(stream)
            elif name == MAX_FRAME_SIZE:
                if not FRAME_SIZE <= value < 1 << 24:
                    raise _Broken(PROTOCOL_ERROR, "the frame size is out of range")
                self._frame_size = min(value, 1 << 18)
        self._out.append(_frame(SETTINGS, ACK, 0, b""))

    def _break(self, code: int, message: str, events: list[Event]) -> None:
        self.closed = True
        self._buffer = b""
        if not self._greeted and code == PROTOCOL_ERROR:
            self._out = []  # whoever does not speak the protocol would not read a farewell in it
        else:
            self._out.append(_frame(GOAWAY, 0, 0, _WORD.pack(self._last) + _WORD.pack(code) + message.encode()))
        for stream in list(self.streams.values()):
            self._forget(stream)
            events.append((RESET, stream, None, True))

    def _refuse(self, number: int, code: int, events: list[Event]) -> None:
        """A stream's own error: it ends, the connection goes on."""
        stream = self.streams.get(number)
        if stream is not None:
            self._forget(stream)
            events.append((RESET, stream, None, True))
        self._reset(number, code)

    # -- what goes out

    def respond(self, stream: Stream, head: bytes, data: bytes, tail: bytes) -> None:
        """A whole answer at once: header block, body, trailers."""
        size = len(data)
        if size > stream.credit or size > self._credit or size > self._frame_size or stream.id not in self.streams:
            self.begin(stream, head)
            self.send(stream, data)
            self.finish(stream, tail)
            return
        number = stream.id
        self._credit -= size
        self._out += (
            _FRAME.pack(0, len(head), HEADERS, END_HEADERS, number),
            head,
            _FRAME.pack(size >> 8, size & 255, DATA, 0, number),
            data,
            _FRAME.pack(0, len(tail), HEADERS, END_HEADERS | END_STREAM, number),
            tail,
        )
        del self.streams[number]
        if not stream.ended:
            self._reset(number, NO_ERROR)

    def begin(self, stream: Stream, head: bytes) -> None:
        """The header block of an answer."""
        if stream.id in self.streams:
            self._out.append(_frame(HEADERS, END_HEADERS, stream.id, head))

    def send(self, stream: Stream, data: bytes) -> None:
        """A piece of an answer's body; what the client has no room for waits."""
        if stream.id not in self.streams or not data:
            return
        if stream.pending is None and len(data) <= stream.credit and len(data) <= self._credit:
            self._write(stream, data)
            return
        if stream.pending is None:
            stream.pending = deque()
        stream.pending.append(memoryview(data))
        self.waiting += len(data)
        self._drain(stream)

    def finish(self, stream: Stream, tail: bytes) -> None:
        """End an answer with trailers (or, before `begin`, with a header block alone)."""
        if stream.id not in self.streams:
            return
        if stream.pending is not None:
            stream.tail = tail
            return
        self._out.append(_frame(HEADERS, END_HEADERS | END_STREAM, stream.id, tail))
        del self.streams[stream.id]
        if not stream.ended:
            self._reset(stream.id, NO_ERROR)

    def give_room(self, stream: Stream) -> None:
        """Let the client send as much again as was taken from the stream; call it when that was dealt with."""
        if stream.taken > STREAM_WINDOW // 4 and not stream.ended and stream.id in self.streams:
            self._out.append(_frame(WINDOW_UPDATE, 0, stream.id, _WORD.pack(stream.taken)))
            stream.allowance += stream.taken
            stream.taken = 0

    def reset(self, stream: Stream, code: int) -> None:
        """Give a stream up."""
        if stream.id in self.streams:
            self._forget(stream)
            self._reset(stream.id, code)

    def go_away(self) -> None:
        """Take no new streams; those open go on."""
        if not self._going and not self.closed:
            self._going = True
            self._out.append(_frame(GOAWAY, 0, 0, _WORD.pack(self._last) + _WORD.pack(NO_ERROR)))

    def take(self) -> bytes:
        """What is to be written now."""
        if not self._out:
            return b""
        data = b"".join(self._out)
        self._out.clear()
        return data

    def _write(self, stream: Stream, data: bytes | memoryview) -> None:
        size = len(data)
        stream.credit -= size
        self._credit -= size
        if size <= self._frame_size:
            self._out += (_FRAME.pack(size >> 8, size & 255, DATA, 0, stream.id), data)
            return
        view = memoryview(data)
        for at in range(0, size, self._frame_size):
            piece = view[at : at + self._frame_size]
            self._out += (_FRAME.pack(len(piece) >> 8, len(piece) & 255, DATA, 0, stream.id), piece)

    def _drain(self, stream: Stream) -> None:
        pending = stream.pending
        while pending:
            room = min(stream.credit, self._credit)
            if room <= 0:
                if self._credit <= 0:
                    self._blocked[stream.id] = stream
                return
            data = pending.popleft()
            if len(data) > room:
                pending.appendleft(data[room:])
                data = data[:room]
            self.waiting -= len(data)
            self._write(stream, data)
        if pending is not None:
            stream.pending = None
            if stream.tail is not None:
                self.finish(stream, stream.tail)

    def _forget(self, stream: Stream) -> None:
        self.streams.pop(stream.id, None)
        self._blocked.pop(stream.id, None)
        if stream.pending is not None:
            self.waiting -= sum(map(len, stream.pending))
            stream.pending = None

    def _reset(self, number: int, code: int) -> None:
        self._out.append(_frame(RST_STREAM, 0, number, _WORD.pack(code)))


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    size = len(payload)
    return _FRAME.pack(size >> 8, size & 255, kind, flags, stream) + payload


def _unpadded(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise _Broken(PROTOCOL_ERROR, "the padding is longer than the frame")
    return payload[1 : len(payload) - payload[0]]
