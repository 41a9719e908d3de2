"""Reads nf_tables batches back, by the kernel's own numbers (linux/netfilter/nf_tables.h), and keeps what they say like a kernel."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

KINDS = {
    0: "table",
    2: "-table",
    3: "chain",
    5: "-chain",
    6: "rule",
    8: "-rule",
    9: "set",
    12: "elements",
    14: "-elements",
}


class Message(NamedTuple):
    kind: str
    flags: int
    family: int
    fields: dict[int, bytes]


def attributes(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while data:
        length, kind = struct.unpack_from("=HH", data)
        assert 4 <= length <= len(data)
        assert not any(data[length : (length + 3) & ~3]), "padding is zero"
        found.append((kind & 0x3FFF, data[4:length]))
        data = data[(length + 3) & ~3 :]
    return found


def fields(data: bytes) -> dict[int, bytes]:
    return dict(attributes(data))


def number(data: bytes) -> int:
    return int(struct.unpack(">I", data)[0])


def text(data: bytes) -> str:
    assert data.endswith(b"\0")
    return data[:-1].decode()


def messages(batch: bytes) -> list[Message]:
    """All of a batch, whose frame is checked."""
    kinds: list[int] = []
    found: list[Message] = []
    while batch:
        length, kind, flags, sequence, _ = struct.unpack_from("=IHHII", batch)
        family, version, resource = struct.unpack_from(">BBH", batch, 16)
        assert version == 0
        assert flags & 1, "a request"
        assert sequence == len(kinds), "each change can be told by its number"
        kinds.append(kind)
        if kind in (0x10, 0x11):
            assert (family, resource, length) == (0, 10, 20)
        else:
            assert kind >> 8 == 10
            found.append(Message(KINDS[kind & 0xFF], flags & ~1, family, fields(batch[20:length])))
        batch = batch[(length + 3) & ~3 :]
    assert (kinds[0], kinds[-1]) == (0x10, 0x11)
    return found


def expressions(rule: Message) -> list[tuple[str, dict[int, bytes]]]:
    """The expressions of a rule by name."""
    found = []
    for kind, one in attributes(rule.fields[4]):
        assert kind == 1
        parts = fields(one)
        found.append((text(parts[1]), fields(parts[2])))
    return found


def elements(message: Message) -> Iterator[tuple[bytes, bytes, bytes | str | None]]:
    """First key, last key, and data (or the chain to go to)."""
    for kind, one in attributes(message.fields[3]):
        assert kind == 1
        parts = fields(one)
        data: bytes | str | None = None
        if 2 in parts:
            value = fields(parts[2])
            if 1 in value:
                data = value[1]
            else:
                verdict = fields(value[2])
                assert number(verdict[1]) == 2**32 - 4, "goto"
                data = text(verdict[2])
        yield fields(parts[1])[1], fields(parts[10])[1] if 10 in parts else b"", data


class Kernel:
    """Tables, chains and sets as batches made them; what the kernel refuses is an error here, too."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[str, Any]] = {}

    def take(self, batch: bytes) -> None:
        for one in messages(batch):
            name = text(one.fields[1])
            if one.kind == "table":
                self.tables.setdefault(name, {"chains": {}, "sets": {}})
                continue
            if one.kind == "-table":
                del self.tables[name]
                continue
            chains, sets = self.tables[name]["chains"], self.tables[name]["sets"]
            if one.kind == "chain":
                chains.setdefault(text(one.fields[3]), [])
            elif one.kind == "-chain":
                assert not chains.pop(text(one.fields[3]))
            elif one.kind == "rule":
                chains[text(one.fields[2])].append(expressions(one))
            elif one.kind == "-rule":
                chains[text(one.fields[2])].clear()
            elif one.kind == "set":
                sets.setdefault(text(one.fields[2]), {"key": number(one.fields[5]), "elements": {}})
            else:
                self._elements(one, chains, sets[text(one.fields[2])])

    def _elements(self, one: Message, chains: dict[str, Any], into: dict[str, Any]) -> None:
        for first, last, data in elements(one):
            assert len(first) == into["key"]
            assert len(last) in (0, into["key"])
            if isinstance(data, str):
                assert data in chains, f"no chain {data}"
            held = into["elements"]
            if one.kind == "-elements":
                assert data is None
                del held[first + last]
            else:
                assert first + last not in held, "it is there already"
                held[first + last] = data
