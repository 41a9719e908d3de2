"""What every netlink family has in common: attributes, each a length, a kind and a value padded to four bytes."""

from __future__ import annotations

import struct

_KIND = 0x3FFF
"""Without the bits for nested values and for byte order."""


def attributes(data: bytes) -> dict[int, bytes]:
    """The netlink attributes in some bytes, by kind."""
    values: dict[int, bytes] = {}
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            break
        values[kind & _KIND] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return values
