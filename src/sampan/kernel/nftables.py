"""nf_tables by raw netlink: a table's chains, rules, sets and maps, changed in transactions.

No ``nft`` program and no library is needed for the few expressions used here. A `Batch` collects changes to one table and
`commit` hands them to the kernel, which takes all of them or none: packets see the rules of before or of after.

Rules are lists of expressions over registers. A register is four bytes; a key of several fields lies in consecutive ones, each
field filled up with zeros (`field`). Values lie in memory as in the packet (network order), but for what the kernel computes
itself (`meta`, `ct`, `number`), which is in the machine's order. What the rules do is written where they are used: the node
part tries what the kernel has, the network part has its Services and policies here.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

_NETFILTER: Final = 12
_SUBSYSTEM: Final = 10
_BEGIN, _END = 0x10, 0x11
_REQUEST, _CREATE, _APPEND = 1, 0x400, 0x800
_ERROR = 2
_IPV4: Final = 2
_NEW_TABLE, _GET_TABLE, _DEL_TABLE, _NEW_CHAIN, _DEL_CHAIN, _NEW_RULE, _DEL_RULE = 0, 1, 2, 3, 5, 6, 8
_NEW_SET, _NEW_ELEMENTS, _DEL_ELEMENTS = 9, 12, 14
_NESTED: Final = 0x8000
_ELEMENTS_BYTES: Final = 48_000
"""Bytes of elements a message: the length of an attribute has 16 bits."""
_SEND_BUFFER: Final = 32 << 20
_SO_SNDBUFFORCE: Final = 32

PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = range(5)
RAW, DESTINATION, FILTER, SOURCE = -300, -100, 0, 100
"""Usual priorities: before connections are tracked, where destinations and then sources are translated."""

REGISTERS: Final = 16
VERDICT: Final = 0
_VERDICT_TYPE: Final = 0xFFFFFF00
ACCEPT, DROP, JUMP, GOTO, RETURN = 1, 0, -3, -4, -5

ADDRESS, PROTOCOL, PORT, INTEGER = 7, 12, 13, 4
"""Types of fields, for those who list the table; the kernel does not look at them."""
_SIZES: Final = {ADDRESS: 4, PROTOCOL: 1, PORT: 2, INTEGER: 4}

INTERVAL, MAP, TIMEOUT, DYNAMIC, _CONCATENATED = 4, 8, 0x10, 0x20, 0x80

PROTOCOL_OF_PACKET, INPUT_DEVICE, OUTPUT_DEVICE = 16, 6, 7
"""Keys of `meta`."""
ESTABLISHED, RELATED = 2, 4
"""Bits of `ct_state`."""


def attribute(kind: int, value: bytes) -> bytes:
    """One netlink attribute."""
    length = 4 + len(value)
    return struct.pack("=HH", length, kind) + value + bytes(-length % 4)


def _nested(kind: int, *values: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(values))


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value & 0xFFFFFFFF))


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def field(value: bytes) -> bytes:
    """A value as a field of a key: filled up to whole registers."""
    return value + bytes(-len(value) % 4)


# -- expressions


def _expression(name: str, *data: bytes) -> bytes:
    return _nested(1, _text(1, name), _nested(2, *data))


def _register(number: int) -> int:
    """The kernel's number of the n-th register of four bytes."""
    return 8 + number


def _value(value: bytes) -> bytes:
    return attribute(1, value)


def _verdict(code: int, chain: str = "") -> bytes:
    return _nested(2, _number(1, code), _text(2, chain) if chain else b"")


def meta(key: int, into: int) -> bytes:
    """A fact about the packet."""
    return _expression("meta", _number(2, key), _number(1, _register(into)))


def _payload(base: int, offset: int, length: int, into: int) -> bytes:
    return _expression("payload", _number(1, _register(into)), _number(2, base), _number(3, offset), _number(4, length))


def source_address(into: int) -> bytes:
    """The packet's source address."""
    return _payload(1, 12, 4, into)


def destination_address(into: int) -> bytes:
    """The packet's destination address."""
    return _payload(1, 16, 4, into)


def destination_port(into: int) -> bytes:
    """The packet's destination port, of TCP, UDP or SCTP."""
    return _payload(2, 2, 2, into)


def ct_state(into: int) -> bytes:
    """What the packet is in its connection, as a bit."""
    return _expression("ct", _number(1, _register(into)), _number(2, 0))


def masked(register: int, mask: bytes) -> bytes:
    """register &= mask."""
    return _expression(
        "bitwise",
        _number(1, _register(register)),
        _number(2, _register(register)),
        _number(3, len(mask)),
        _nested(4, _value(mask)),
        _nested(5, _value(bytes(len(mask)))),
    )


def compared(register: int, value: bytes, *, equal: bool = True) -> bytes:
    """Go on in this rule if the register begins with the value (or, not ``equal``, with another)."""
    return _expression("cmp", _number(1, _register(register)), _number(2, 0 if equal else 1), _nested(3, _value(value)))


def within(register: int, address: bytes, prefix: int) -> bytes:
    """Go on if the register's address lies in this network; the register is spoilt."""
    mask = ((1 << 32) - (1 << (32 - prefix))).to_bytes(4, "big")
    return masked(register, mask) + compared(register, address)


def listed(name: str, key: int, *, present: bool = True) -> bytes:
    """Go on if the set has the key that begins at this register (or, not ``present``, if it has it not)."""
    return _expression("lookup", _text(1, name), _number(2, _register(key)), _number(5, 0 if present else 1))


def looked_up(name: str, key: int, into: int) -> bytes:
    """What the map has for a key, into these registers; without an entry the rule ends."""
    return _expression("lookup", _text(1, name), _number(2, _register(key)), _number(3, _register(into)))


def followed(name: str, key: int) -> bytes:
    """Do what the verdict map says for a key; without an entry the rule ends."""
    return _expression("lookup", _text(1, name), _number(2, _register(key)), _number(3, VERDICT))


def random_number(below: int, into: int) -> bytes:
    """A random number, in the machine's order."""
    return _expression("numgen", _number(1, _register(into)), _number(2, below), _number(3, 1), _number(4, 0))


def remembered(name: str, key: int, value: int, seconds: int) -> bytes:
    """Add the registers to a map for some time, or begin its time anew where the key is there already."""
    return _expression(
        "dynset",
        _text(1, name),
        _number(3, 1),
        _number(4, _register(key)),
        _number(5, _register(value)),
        attribute(6, struct.pack(">Q", seconds * 1000)),
    )


def forgotten(name: str, key: int, value: int) -> bytes:
    """Take a key out of a map; the kernel wants to know of a value, too, and does not look at it."""
    return _expression(
        "dynset", _text(1, name), _number(3, 2), _number(4, _register(key)), _number(5, _register(value))
    )


def verdict(code: int, chain: str = "") -> bytes:
    """What becomes of the packet."""
    return _expression("immediate", _number(1, VERDICT), _nested(2, _verdict(code, chain)))


def redirected(address: int, port: int) -> bytes:
    """The connection goes to the address and port in these registers."""
    return _expression(
        "nat", _number(1, 1), _number(2, _IPV4), _number(3, _register(address)), _number(5, _register(port))
    )


def masqueraded() -> bytes:
    """The connection seems to come from this machine."""
    return _expression("masq")


def untracked() -> bytes:
    """The connection is not tracked (in a chain of priority `RAW`)."""
    return _expression("notrack")


def refused_by_reset() -> bytes:
    """A TCP connection is refused."""
    return _expression("reject", _number(1, 1), attribute(2, b"\0"))


def refused_as_unreachable() -> bytes:
    """The sender hears that nobody is at that port (ICMP)."""
    return _expression("reject", _number(1, 0), attribute(2, b"\3"))


# -- transactions


class Element(NamedTuple):
    """An entry of a set or map: fields of keys are filled up to whole registers."""

    key: bytes
    data: bytes = b""
    last: bytes = b""
    """The last key of an interval that begins at ``key``."""
    goto: str = ""
    """In a verdict map: the chain to go on in."""

    def encoded(self, *, with_data: bool = True) -> bytes:
        """As the kernel takes it."""
        parts = [_nested(1, _value(self.key))]
        if self.last:
            parts.append(_nested(10, _value(self.last)))
        if self.goto and with_data:
            parts.append(_nested(2, _verdict(GOTO, self.goto)))
        elif self.data and with_data:
            parts.append(_nested(2, _value(self.data)))
        return _nested(1, *parts)


class Batch:
    """Changes to one table, which take effect together or not at all."""

    def __init__(self, table: str) -> None:
        self.table = table
        self._messages: list[tuple[int, int, bytes]] = []
        self._sets = 0

    def __len__(self) -> int:
        return len(self._messages)

    def _add(self, kind: int, flags: int, *body: bytes) -> None:
        self._messages.append((kind, flags, b"".join(body)))

    def add_table(self) -> None:
        """Make the table, if it is not there."""
        self._add(_NEW_TABLE, _CREATE, _text(1, self.table), _number(2, 0))

    def delete_table(self) -> None:
        """Take the table away with all it has; it must be there."""
        self._add(_DEL_TABLE, 0, _text(1, self.table))

    def add_chain(self, name: str, kind: str = "", hook: int = 0, priority: int = 0) -> None:
        """Make a chain; with a ``kind`` (``filter``, ``nat``) packets come to it by themselves, at this hook."""
        base = b""
        if kind:
            base = _nested(4, _number(1, hook), _number(2, priority)) + _number(5, ACCEPT) + _text(7, kind)
        self._add(_NEW_CHAIN, _CREATE, _text(1, self.table), _text(3, name), base)

    def delete_chain(self, name: str) -> None:
        """Take a chain away to which nothing leads."""
        self._add(_DEL_CHAIN, 0, _text(1, self.table), _text(3, name))

    def add_rule(self, chain: str, *expressions: bytes) -> None:
        """Put a rule at the end of a chain."""
        self._add(_NEW_RULE, _CREATE | _APPEND, _text(1, self.table), _text(2, chain), _nested(4, *expressions))

    def flush(self, chain: str) -> None:
        """Take every rule of a chain away."""
        self._add(_DEL_RULE, 0, _text(1, self.table), _text(2, chain))

    def add_set(self, name: str, fields: Sequence[int], flags: int = 0, data: Sequence[int] | None = None) -> None:
        """Make a set, or with ``data`` a map; ``data=()`` is a map of verdicts."""
        self._sets += 1
        concatenated = flags & INTERVAL and len(fields) > 1
        if data is not None:
            flags |= MAP
        if concatenated:
            flags |= _CONCATENATED
        body = [
            _text(1, self.table),
            _text(2, name),
            _number(10, self._sets),
            _number(3, flags),
            _number(4, _type(fields)),
            _number(5, _length(fields)),
        ]
        if data is not None:
            body += [
                _number(6, _type(data) if data else _VERDICT_TYPE),
                _number(7, _length(data) if data else 0),
            ]
        if concatenated:
            body.append(_nested(9, _nested(2, *(_nested(1, _number(1, _SIZES[one])) for one in fields))))
        self._add(_NEW_SET, _CREATE, *body)

    def add_elements(self, name: str, elements: Iterable[Element]) -> None:
        """Put entries into a set; one that is there already with other data makes the batch fail."""
        self._elements(_NEW_ELEMENTS, _CREATE, name, [one.encoded() for one in elements])

    def delete_elements(self, name: str, elements: Iterable[Element]) -> None:
        """Take entries out, all of which must be there."""
        self._elements(_DEL_ELEMENTS, 0, name, [one.encoded(with_data=False) for one in elements])

    def flush_set(self, name: str) -> None:
        """Take every entry out."""
        self._add(_DEL_ELEMENTS, 0, _text(1, self.table), _text(2, name))

    def _elements(self, kind: int, flags: int, name: str, encoded: list[bytes]) -> None:
        start = size = 0
        for index, one in enumerate(encoded):
            if size + len(one) > _ELEMENTS_BYTES:
                self._add(kind, flags, _text(1, self.table), _text(2, name), _nested(3, *encoded[start:index]))
                start, size = index, 0
            size += len(one)
        if encoded[start:]:
            self._add(kind, flags, _text(1, self.table), _text(2, name), _nested(3, *encoded[start:]))

    def encoded(self) -> bytes:
        """All of it, as the kernel takes it."""
        header = struct.pack(">BBH", 0, 0, _SUBSYSTEM)
        parts = [_message(_BEGIN, 0, 0, header)]
        for index, (kind, flags, body) in enumerate(self._messages):
            parts.append(_message(_SUBSYSTEM << 8 | kind, flags, index + 1, struct.pack(">BBH", _IPV4, 0, 0) + body))
        parts.append(_message(_END, 0, len(self._messages) + 1, header))
        return b"".join(parts)

    def commit(self) -> None:
        """Have the kernel take it.

        Raises:
            OSError: it does not; nothing has changed.
        """
        if not self._messages:
            return
        with _netfilter() as link:
            link.send(self.encoded())
            # the kernel has done everything when `send` comes back, and only tells what failed
            while True:
                try:
                    answer = link.recv(1 << 16, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    return
                code = _failure(answer)
                if code:
                    raise OSError(code, f"nf_tables: {os.strerror(code)}")


def _message(kind: int, flags: int, number: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, _REQUEST | flags, number, 0) + body


def _netfilter() -> socket.socket:
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER)
    try:
        link.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER)
    except OSError:
        link.close()
        raise
    return link


def _failure(answer: bytes) -> int:
    """The first error among messages, 0 where there is none."""
    offset = 0
    while offset + 16 <= len(answer):
        length, kind = struct.unpack_from("=IH", answer, offset)
        if kind == _ERROR:
            code = -int(struct.unpack_from("=i", answer, offset + 16)[0])
            if code:
                return code
        offset += max(16, (length + 3) & ~3)
    return 0


def _type(fields: Sequence[int]) -> int:
    number = 0
    for one in fields:
        number = number << 6 | one
    return number


def _length(fields: Sequence[int]) -> int:
    return sum((_SIZES[one] + 3) & ~3 for one in fields)


def exists(table: str) -> bool:
    """There is such a table. Raises OSError."""
    with _netfilter() as link:
        body = struct.pack(">BBH", _IPV4, 0, 0) + _text(1, table)
        # asked for by its name: a list would miss tables while others change theirs
        link.send(_message(_SUBSYSTEM << 8 | _GET_TABLE, 0, 1, body))
        answer = link.recv(1 << 16)
    code = _failure(answer)
    if code not in (0, errno.ENOENT):
        raise OSError(code, f"nf_tables: {os.strerror(code)}")
    return not code


def remove(table: str) -> None:
    """Take a table away; a missing one is fine. Raises OSError."""
    batch = Batch(table)
    batch.delete_table()
    try:
        batch.commit()
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
