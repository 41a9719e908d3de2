"""The string formats that CRD schemas may name, each a test of one text. Unknown formats accept everything, as upstream."""

from __future__ import annotations

import binascii
import ipaddress
import re
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from sampan.kube.types.duration import parse_time

_DATE_TIME = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(?:\.\d+)?(?:[Zz]|[+-]\d{2}:?\d{2})")
_DURATION = re.compile(
    r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|ms|s|m|h)(?:(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|ms|s|m|h))*|0"
    r"|\d+\s*(?:ns|nano|us|µs|micro|ms|milli|s|sec|second|m|min|minute|h|hr|hour|d|day|w|week|wk)s?"
)
_UUID = re.compile(r"[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}")
_MAC = re.compile(r"(?:[0-9A-Fa-f]{2}[:-]){5,7}[0-9A-Fa-f]{2}|(?:[0-9A-Fa-f]{4}\.){2,3}[0-9A-Fa-f]{4}")
_EMAIL = re.compile(r"[^@\s<>]+@[^@\s<>]+")
_HOSTNAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9](?:[-A-Za-z0-9]{0,62})(?:\.[A-Za-z0-9][-A-Za-z0-9]{0,62})*\.?")
_HEX_COLOR = re.compile(r"#?(?:[0-9a-fA-F]{3}|[0-9a-fA-F]{6})")
_OBJECT_ID = re.compile(r"[0-9a-fA-F]{24}")


def _time(text: str) -> bool:
    if not _DATE_TIME.fullmatch(text):
        return False
    try:
        parse_time(text.upper())
    except ValueError:
        return False
    return True


def _date(text: str) -> bool:
    return len(text) == 10 and _time(f"{text}T00:00:00Z")


def _base64(text: str) -> bool:
    try:
        binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except (ValueError, UnicodeEncodeError):
        return False
    return True


def _address(version: int) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        try:
            return ipaddress.ip_address(text).version == version
        except ValueError:
            return False

    return check


def _network(text: str) -> bool:
    if "/" not in text:
        return False
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def _uri(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return bool(parts.scheme) or text.startswith("/")


def _uuid(version: str) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        return bool(_UUID.fullmatch(text)) and (not version or text.replace("-", "")[12] == version)

    return check


def _pattern(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda text: bool(pattern.fullmatch(text))


FORMATS: Mapping[str, Callable[[str], bool]] = {
    "date-time": _time,
    "datetime": _time,
    "date": _date,
    "duration": _pattern(_DURATION),
    "byte": _base64,
    "uri": _uri,
    "ipv4": _address(4),
    "ipv6": _address(6),
    "cidr": _network,
    "mac": _pattern(_MAC),
    "uuid": _uuid(""),
    "uuid3": _uuid("3"),
    "uuid4": _uuid("4"),
    "uuid5": _uuid("5"),
    "email": _pattern(_EMAIL),
    "hostname": _pattern(_HOSTNAME),
    "hexcolor": _pattern(_HEX_COLOR),
    "bsonobjectid": _pattern(_OBJECT_ID),
}
"""Tests by format name. ``password`` and names not listed accept any text."""
