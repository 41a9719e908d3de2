"""PROXY headers: whom they name, and which are refused."""

from __future__ import annotations

import struct

import pytest

from sampan.kernel.sniff import PROXY_V2, Peer, ProxyHeaderError, parse_v1, parse_v2


@pytest.mark.parametrize(
    ("line", "peer"),
    [
        (b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n", Peer("192.0.2.1", 56324)),
        (b"PROXY TCP6 2001:db8::1 2001:db8::2 1 443\r\n", Peer("2001:db8::1", 1)),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None),
    ],
)
def test_version_1_names_the_client(line: bytes, peer: Peer | None) -> None:
    assert parse_v1(line) == peer


@pytest.mark.parametrize(
    "line",
    [
        *(b"PROXY\r\n", b"PROXY TCP4 192.0.2.1\r\n", b"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n"),
        *(
            b"PROXY TCP4 a b 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 99999 2\r\n",
            b"PROXY TCP4 \xff 192.0.2.2 1 2\r\n",
        ),
    ],
)
def test_a_malformed_version_1_is_refused(line: bytes) -> None:
    with pytest.raises(ProxyHeaderError):
        parse_v1(line)


def head(command: int, family: int, size: int, version: int = 2) -> bytes:
    return PROXY_V2 + bytes((version << 4 | command, family)) + struct.pack(">H", size)


def test_version_2_names_the_client() -> None:
    body = bytes((192, 0, 2, 1)) + bytes(4) + struct.pack(">HH", 7000, 443) + b"extensions"
    assert parse_v2(head(1, 0x11, len(body)), body) == Peer("192.0.2.1", 7000)
    body = b"\x20\x01\x0d\xb8" + bytes(11) + b"\x01" + bytes(16) + struct.pack(">HH", 5, 443)
    assert parse_v2(head(1, 0x21, len(body)), body) == Peer("2001:db8::1", 5)
    mapped = bytes(10) + b"\xff\xff" + bytes((192, 0, 2, 9)) + bytes(16) + struct.pack(">HH", 5, 443)
    assert parse_v2(head(1, 0x21, len(mapped)), mapped) == Peer("192.0.2.9", 5)


def test_health_checks_and_other_families_name_nobody() -> None:
    assert parse_v2(head(0, 0x11, 12), bytes(12)) is None
    assert parse_v2(head(1, 0x31, 216), bytes(216)) is None


@pytest.mark.parametrize(("first", "body"), [(head(1, 0x11, 4), bytes(4)), (head(1, 0x11, 12, 1), bytes(12))])
def test_a_malformed_version_2_is_refused(first: bytes, body: bytes) -> None:
    with pytest.raises(ProxyHeaderError):
        parse_v2(first, body)
