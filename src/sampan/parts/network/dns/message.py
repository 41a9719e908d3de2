"""DNS messages as bytes: queries are read strictly, replies are written with compressed names and cut to size.

Only what a name server for a cluster needs: one question a query, EDNS(0), and the record types a cluster has. Names are text
in lower case without the final dot ("" is the root); the question goes back to the asker byte by byte as it came, so
resolvers that vary the case of letters against spoofing recognise their answer.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from sampan.kernel.errors import SampanError

A: Final = 1
NS: Final = 2
CNAME: Final = 5
SOA: Final = 6
PTR: Final = 12
TXT: Final = 16
AAAA: Final = 28
SRV: Final = 33
OPT: Final = 41
ANY: Final = 255
INTERNET: Final = 1

TYPE_NAMES: Final = {A: "A", NS: "NS", CNAME: "CNAME", SOA: "SOA", PTR: "PTR", TXT: "TXT", AAAA: "AAAA", SRV: "SRV"}

NO_ERROR: Final = 0
FORMAT_ERROR: Final = 1
SERVER_FAILURE: Final = 2
NO_SUCH_NAME: Final = 3
NOT_IMPLEMENTED: Final = 4
REFUSED: Final = 5
BAD_VERSION: Final = 16

RCODE_NAMES: Final = {
    NO_ERROR: "NOERROR",
    FORMAT_ERROR: "FORMERR",
    SERVER_FAILURE: "SERVFAIL",
    NO_SUCH_NAME: "NXDOMAIN",
    NOT_IMPLEMENTED: "NOTIMP",
    REFUSED: "REFUSED",
    BAD_VERSION: "BADVERS",
}

PLAIN_SIZE: Final = 512
"""Bytes of a UDP reply to a client that says nothing of its buffer."""
UDP_SIZE: Final = 1232
"""Bytes of a UDP message that pass every path unfragmented; ours are never longer, and it is what we announce."""
TCP_SIZE: Final = 65535

_HEADER = struct.Struct(">6H")
_FIXED = struct.Struct(">HHIH")
_RESPONSE, _AUTHORITATIVE, _TRUNCATED, _RECURSION_WANTED, _RECURSION_THERE = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080


class MessageError(SampanError):
    """Bytes that are no message we can take; ``code`` is the RCODE to answer, None where no answer may be sent."""

    def __init__(self, text: str, code: int | None = FORMAT_ERROR) -> None:
        super().__init__(text)
        self.code = code


class Target(NamedTuple):
    """The data of an SRV record."""

    priority: int
    weight: int
    port: int
    host: str


class Authority(NamedTuple):
    """The data of an SOA record; times in seconds."""

    server: str
    mailbox: str
    serial: int
    refresh: int
    retry: int
    expire: int
    minimum: int


Data = bytes | str | Target | Authority
"""A record's data: the address or text as bytes on the wire, a name, or a structure of names and numbers."""


class Record(NamedTuple):
    """One resource record of class IN."""

    name: str
    type: int
    ttl: int
    data: Data


class Query(NamedTuple):
    """One question and what its asker can take."""

    id: int
    opcode: int
    recursion: bool
    name: str
    type: int
    cls: int
    question: bytes
    """The question section as it came."""
    size: int | None
    """The asker's UDP buffer in bytes (EDNS), or None without EDNS."""
    version: int = 0


class Reply(NamedTuple):
    """An answer, not yet on the wire."""

    code: int
    answers: Sequence[Record] = ()
    authority: Sequence[Record] = ()
    additional: Sequence[Record] = ()
    authoritative: bool = True


def _name(message: bytes, at: int) -> tuple[str, int]:
    """The name at an offset, and where what follows it begins."""
    labels: list[str] = []
    end = -1
    length = 0
    while True:
        if at >= len(message):
            raise MessageError("a name runs past the end of the message")
        size = message[at]
        if size >= 0xC0:
            if at + 1 >= len(message):
                raise MessageError("a name's pointer is cut off")
            target = (size & 0x3F) << 8 | message[at + 1]
            if end < 0:
                end = at + 2
            if target >= at:  # pointers only go back, so that they cannot go round
                raise MessageError("a name's pointer does not point back")
            at = target
            continue
        if size > 63:
            raise MessageError("a label of an unknown kind")
        if size == 0:
            return ".".join(labels), end if end >= 0 else at + 1
        label = message[at + 1 : at + 1 + size]
        if len(label) < size:
            raise MessageError("a label is cut off")
        length += size + 1
        if length > 254:
            raise MessageError("a name is longer than 255 bytes")
        # a dot inside a label cannot be told from a separator in text; no name of a cluster has one
        labels.append(label.decode("latin-1").lower().replace(".", "\\046"))
        at += size + 1


def parse_query(message: bytes) -> Query:
    """The query in a message.

    Raises:
        MessageError: it is no query, or one that is broken.
    """
    if len(message) < _HEADER.size:
        raise MessageError("shorter than a header", None)
    identity, flags, questions, answers, authorities, extras = _HEADER.unpack_from(message)
    if flags & _RESPONSE:
        raise MessageError("not a query", None)
    opcode = flags >> 11 & 15
    if opcode != 0:
        return Query(identity, opcode, bool(flags & _RECURSION_WANTED), "", 0, 0, b"", None)
    if questions != 1 or answers or authorities or extras > 4:
        raise MessageError("a query has one question and nothing else")
    name, at = _name(message, _HEADER.size)
    if at + 4 > len(message):
        raise MessageError("the question is cut off")
    kind, cls = struct.unpack_from(">HH", message, at)
    at += 4
    question = message[_HEADER.size : at]
    size, version = None, 0
    for _ in range(extras):
        owner, at = _name(message, at)
        if at + _FIXED.size > len(message):
            raise MessageError("an additional record is cut off")
        extra, value, ttl, length = _FIXED.unpack_from(message, at)
        at += _FIXED.size + length
        if at > len(message):
            raise MessageError("an additional record is cut off")
        if extra == OPT:
            if size is not None or owner:
                raise MessageError("EDNS twice, or not at the root")
            size, version = max(value, PLAIN_SIZE), ttl >> 16 & 0xFF
    return Query(identity, opcode, bool(flags & _RECURSION_WANTED), name, kind, cls, question, size, version)


class _Writer:
    """A message in the making; names are compressed against those already there."""

    def __init__(self, query: Query) -> None:
        self.out = bytearray(_HEADER.size) + query.question
        self.names: dict[str, int] = {}
        at, rest = _HEADER.size, query.name
        while rest:
            self.names[rest] = at
            at += query.question[at - _HEADER.size] + 1
            rest = rest.partition(".")[2]

    def name(self, name: str) -> None:
        rest = name
        while rest:
            known = self.names.get(rest)
            if known is not None:
                self.out += struct.pack(">H", 0xC000 | known)
                return
            if len(self.out) < 0x4000:
                self.names[rest] = len(self.out)
            label, _, rest = rest.partition(".")
            raw = label.replace("\\046", ".").encode("latin-1", "replace")[:63]
            self.out.append(len(raw))
            self.out += raw
        self.out.append(0)

    def record(self, record: Record) -> None:
        self.name(record.name)
        self.out += _FIXED.pack(record.type, INTERNET, record.ttl, 0)
        begin = len(self.out)
        data = record.data
        if isinstance(data, bytes):
            self.out += data
        elif isinstance(data, str):
            self.name(data)
        elif isinstance(data, Target):
            self.out += struct.pack(">3H", data.priority, data.weight, data.port)
            for label in data.host.split("."):  # never compressed in an SRV record (RFC 2782)
                raw = label.encode("latin-1", "replace")[:63]
                self.out.append(len(raw))
                self.out += raw
            self.out.append(0)
        else:
            self.name(data.server)
            self.name(data.mailbox)
            self.out += struct.pack(">5I", *data[2:])
        struct.pack_into(">H", self.out, begin - 2, len(self.out) - begin)

    def rewind(self, length: int) -> None:
        """Drop what was written after ``length``."""
        del self.out[length:]
        self.names = {name: at for name, at in self.names.items() if at < length}


def write_reply(query: Query, reply: Reply, limit: int) -> bytes:
    """The reply's bytes, at most ``limit``: additional records are left out first, then records, with TC set."""
    writer = _Writer(query)
    edns = query.size is not None
    room = limit - (11 if edns else 0)
    counts = [0, 0, 0]
    truncated = False
    for section, records in enumerate((reply.answers, reply.authority, reply.additional)):
        for record in records:
            before = len(writer.out)
            writer.record(record)
            if len(writer.out) > room:
                writer.rewind(before)
                truncated = truncated or section < 2
                break
            counts[section] += 1
        if truncated:
            break
    if edns:
        writer.out += b"\0" + _FIXED.pack(OPT, UDP_SIZE, reply.code >> 4 << 24, 0)
        counts[2] += 1
    flags = _RESPONSE | query.opcode << 11 | _RECURSION_THERE | (reply.code & 15)
    if reply.authoritative:
        flags |= _AUTHORITATIVE
    if truncated:
        flags |= _TRUNCATED
    if query.recursion:
        flags |= _RECURSION_WANTED
    _HEADER.pack_into(writer.out, 0, query.id, flags, 1 if query.question else 0, *counts)
    return bytes(writer.out)


def write_error(message: bytes, code: int) -> bytes:
    """A reply to a message that could not be read: its id and a code."""
    return _HEADER.pack(int.from_bytes(message[:2], "big"), _RESPONSE | code, 0, 0, 0, 0)


def write_query(identity: int, name: str, kind: int) -> bytes:
    """A recursive query of our own, with EDNS."""
    out = bytearray(_HEADER.pack(identity, _RECURSION_WANTED, 1, 0, 0, 1))
    for label in name.split(".") if name else ():
        raw = label.encode("latin-1", "replace")[:63]
        out.append(len(raw))
        out += raw
    out += b"\0" + struct.pack(">HH", kind, INTERNET) + b"\0" + _FIXED.pack(OPT, UDP_SIZE, 0, 0)
    return bytes(out)


def parse_reply(message: bytes) -> tuple[int, list[Record]]:
    """RCODE and the address and CNAME records of a server's answer; other records are skipped.

    Raises:
        MessageError: broken, or no reply.
    """
    if len(message) < _HEADER.size:
        raise MessageError("shorter than a header", None)
    _, flags, questions, answers, _, _ = _HEADER.unpack_from(message)
    if not flags & _RESPONSE:
        raise MessageError("not a reply", None)
    at = _HEADER.size
    for _ in range(questions):
        _, at = _name(message, at)
        at += 4
    records: list[Record] = []
    for _ in range(answers):
        owner, at = _name(message, at)
        if at + _FIXED.size > len(message):
            raise MessageError("a record is cut off")
        kind, cls, ttl, length = _FIXED.unpack_from(message, at)
        at += _FIXED.size
        if at + length > len(message):
            raise MessageError("a record is cut off")
        if cls == INTERNET:
            if kind == CNAME:
                records.append(Record(owner, kind, ttl, _name(message, at)[0]))
            elif (kind, length) in ((A, 4), (AAAA, 16)):
                records.append(Record(owner, kind, ttl, message[at : at + length]))
        at += length
    return flags & 15, records


def is_truncated(message: bytes) -> bool:
    """The TC bit of a message with a whole header."""
    return bool(message[2] & 0x02)
