"""SPDY/3.1, the server's side, as kubectl speaks it: frames in, events out, no I/O.

Control frame: 1 bit 1, 15 bits version 3, 16 bits type, 8 bits flags, 24 bits length. Data frame: 1 bit 0, 31 bits stream,
8 bits flags (1 = FIN), 24 bits length. Header blocks of one direction share one zlib stream with a preset dictionary. Feed
received bytes to `Session.feed`, which returns events and queues replies (SYN_REPLY is the caller's decision); take what is to
be sent from `Session.outgoing`. Windows are refilled as data is fed, and sending beyond the peer's window is queued a stream.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

_WORDS = [
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
]
_TAIL = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 "
    "Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not "
    "Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec "
    "00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,"
    "application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,"
    "utf-,*,enq=0."
)
DICTIONARY = b"".join(struct.pack(">I", len(word)) + word.encode() for word in _WORDS) + _TAIL.encode()

SYN_STREAM, SYN_REPLY, RST_STREAM, SETTINGS, PING, GOAWAY, HEADERS, WINDOW_UPDATE = 1, 2, 3, 4, 6, 7, 8, 9
FIN = 1
CANCEL = 5
INITIAL_WINDOW = 64 * 1024
FRAME_LIMIT = 1 << 20
HEADER_LIMIT = 64 * 1024
STREAM_LIMIT = 2000
"""Open streams a session may have."""


class SpdyError(Exception):
    """The peer does not speak SPDY/3.1; the session is over."""


@dataclass(frozen=True)
class Opened:
    """The peer opened a stream."""

    stream: int
    headers: dict[str, str]
    fin: bool


@dataclass(frozen=True)
class Data:
    """Bytes on a stream; ``fin``: the peer sends no more on it."""

    stream: int
    data: bytes
    fin: bool


@dataclass(frozen=True)
class Reset:
    """The peer gave a stream up."""

    stream: int


@dataclass(frozen=True)
class Closed:
    """The peer ends the session."""


Event = Opened | Data | Reset | Closed


@dataclass
class _Stream:
    window: int = INITIAL_WINDOW
    waiting: bytearray = field(default_factory=bytearray)
    fin_waiting: bool = False
    local_closed: bool = False
    remote_closed: bool = False


class Session:
    """One session."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._deflate = zlib.compressobj(zdict=DICTIONARY)
        self._streams: dict[int, _Stream] = {}
        self._initial_window = INITIAL_WINDOW
        self.outgoing = bytearray()
        """Bytes to send to the peer."""

    # -- receiving

    def feed(self, data: bytes) -> list[Event]:
        """What received bytes mean. Raises SpdyError."""
        self._buffer += data
        events: list[Event] = []
        while len(self._buffer) >= 8:
            first, second = struct.unpack_from(">II", self._buffer)
            flags, length = second >> 24, second & 0xFFFFFF
            if length > FRAME_LIMIT:
                raise SpdyError(f"a frame of {length} bytes")
            if len(self._buffer) < 8 + length:
                break
            body = bytes(self._buffer[8 : 8 + length])
            del self._buffer[: 8 + length]
            if first & 0x80000000:
                if first >> 16 & 0x7FFF != 3:
                    raise SpdyError("not SPDY version 3")
                self._control(first & 0xFFFF, flags, body, events)
            else:
                self._data(first, flags, body, events)
        return events

    def _data(self, number: int, flags: int, body: bytes, events: list[Event]) -> None:
        stream = self._streams.get(number)
        if body:
            self._update_window(0, len(body))
        if stream is None:
            return
        fin = bool(flags & FIN)
        if body and not fin:
            self._update_window(number, len(body))
        if fin:
            stream.remote_closed = True
        events.append(Data(number, body, fin))
        self._drop_if_done(number)

    def _control(self, kind: int, flags: int, body: bytes, events: list[Event]) -> None:
        try:
            if kind == SYN_STREAM:
                number = struct.unpack_from(">I", body)[0] & 0x7FFFFFFF
                headers = self._headers(body[10:])
                if number in self._streams or len(self._streams) >= STREAM_LIMIT:
                    raise SpdyError("a stream too many")
                self._streams[number] = _Stream(self._initial_window, remote_closed=bool(flags & FIN))
                events.append(Opened(number, headers, bool(flags & FIN)))
            elif kind == RST_STREAM:
                number = struct.unpack_from(">I", body)[0] & 0x7FFFFFFF
                if self._streams.pop(number, None) is not None:
                    events.append(Reset(number))
            elif kind == SETTINGS:
                self._settings(body)
            elif kind == PING:
                if struct.unpack(">I", body)[0] % 2:  # the client's are odd: give them back
                    self._frame(PING, 0, body)
            elif kind == GOAWAY:
                events.append(Closed())
            elif kind in (HEADERS, SYN_REPLY):
                self._headers(body[4:])  # keeps the shared zlib stream in step
            elif kind == WINDOW_UPDATE:
                number, delta = struct.unpack(">II", body)
                stream = self._streams.get(number & 0x7FFFFFFF)
                if stream is not None:
                    stream.window += delta & 0x7FFFFFFF
                    self._flush(number & 0x7FFFFFFF, stream)
        except struct.error as error:
            raise SpdyError(f"a short frame of type {kind}") from error

    def _settings(self, body: bytes) -> None:
        count = struct.unpack_from(">I", body)[0]
        for index in range(min(count, 64)):
            identity, value = struct.unpack_from(">II", body, 4 + 8 * index)
            if identity & 0xFFFFFF == 7:
                for stream in self._streams.values():
                    stream.window += value - self._initial_window
                self._initial_window = value

    def _headers(self, block: bytes) -> dict[str, str]:
        try:
            plain = self._inflate.decompress(block, HEADER_LIMIT)
            if self._inflate.unconsumed_tail:
                raise SpdyError("a header block too large")
            count = struct.unpack_from(">I", plain)[0]
            headers, at = {}, 4
            for _ in range(count):
                words = []
                for _ in range(2):
                    length = struct.unpack_from(">I", plain, at)[0]
                    words.append(plain[at + 4 : at + 4 + length].decode("latin-1"))
                    at += 4 + length
                headers[words[0].lower()] = words[1]
        except (zlib.error, struct.error) as error:
            raise SpdyError(f"a bad header block: {error}") from error
        return headers

    # -- sending

    def reply(self, stream: int) -> None:
        """Accept a stream."""
        block = self._deflate.compress(struct.pack(">I", 0)) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        self._frame(SYN_REPLY, 0, struct.pack(">I", stream) + block)

    def send(self, number: int, data: bytes, *, fin: bool = False) -> None:
        """Queue bytes on a stream, within the peer's window; ``fin`` ends our side of it."""
        stream = self._streams.get(number)
        if stream is None or stream.local_closed:
            return
        stream.waiting += data
        stream.fin_waiting = stream.fin_waiting or fin
        self._flush(number, stream)

    def backlog(self, number: int) -> int:
        """Bytes of a stream that wait for the peer's window."""
        stream = self._streams.get(number)
        return len(stream.waiting) if stream is not None else 0

    def reset(self, number: int, status: int = CANCEL) -> None:
        """Give a stream up."""
        if self._streams.pop(number, None) is not None:
            self._frame(RST_STREAM, 0, struct.pack(">II", number, status))

    def is_open(self, number: int) -> bool:
        """The stream can still be written."""
        stream = self._streams.get(number)
        return stream is not None and not stream.local_closed

    def _flush(self, number: int, stream: _Stream) -> None:
        while stream.waiting and stream.window > 0:
            size = min(len(stream.waiting), stream.window, 32 * 1024)
            part = bytes(stream.waiting[:size])
            del stream.waiting[:size]
            stream.window -= size
            last = stream.fin_waiting and not stream.waiting
            self.outgoing += struct.pack(">II", number, (FIN if last else 0) << 24 | size) + part
            if last:
                stream.local_closed = True
        if stream.fin_waiting and not stream.waiting and not stream.local_closed:
            self.outgoing += struct.pack(">II", number, FIN << 24)
            stream.local_closed = True
        self._drop_if_done(number)

    def _drop_if_done(self, number: int) -> None:
        stream = self._streams.get(number)
        if stream is not None and stream.local_closed and stream.remote_closed:
            del self._streams[number]

    def _update_window(self, number: int, size: int) -> None:
        self._frame(WINDOW_UPDATE, 0, struct.pack(">II", number, size))

    def _frame(self, kind: int, flags: int, body: bytes) -> None:
        self.outgoing += struct.pack(">II", 0x80030000 | kind, flags << 24 | len(body)) + body
