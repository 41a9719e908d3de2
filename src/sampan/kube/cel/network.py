"""URLs, IP addresses and CIDR blocks as values."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from sampan.kube.cel.errors import CelError
from sampan.kube.cel.functions import Library

library = Library()
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Url:
    text: str
    scheme: str
    host: str
    """With the port, without user information."""
    path: str
    query: str
    cel_type = "kubernetes.URL"


@dataclass(frozen=True, slots=True)
class Ip:
    address: _Address
    cel_type = "net.IP"


@dataclass(frozen=True, slots=True)
class Cidr:
    address: _Address
    network: _Network
    cel_type = "net.CIDR"


_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:")
_BAD_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})")
_HOST = re.compile(r"""(?:\[[0-9a-fA-F:.]+(?:%25[^\]]*)?\]|[^\[\]%\x00-\x20#/?@\\^`{|}]*)(?::\d*)?""")
_USER = re.compile(r"[-a-zA-Z0-9._:~!$&'()*+,;=%@]*")


def _url(text: str) -> Url:
    """An absolute URL, or an absolute path, as Go's ``url.ParseRequestURI`` takes them (``#`` begins no fragment)."""

    def refuse(why: str) -> CelError:
        return CelError(f'URL parse error during conversion from string: parse "{text}": {why}')

    if any(char < " " or char == "\x7f" for char in text):
        raise refuse("net/url: invalid control character in URL")
    if text.startswith(":"):
        raise refuse("missing protocol scheme")
    found = _SCHEME.match(text)
    scheme, rest = (found.group()[:-1].lower(), text[found.end() :]) if found else ("", text)
    rest, _, query = rest.partition("?")
    if not rest.startswith("/"):
        if not scheme:
            raise refuse("empty url" if not text else "invalid URI for request")
        return Url(text, scheme, "", "", query)
    host = ""
    if rest.startswith("//"):
        authority, slash, path = rest[2:].partition("/")
        rest = slash + path
        user, at, host = authority.rpartition("@")
        if at and not _USER.fullmatch(user):
            raise refuse("net/url: invalid userinfo")
        if not _HOST.fullmatch(host):
            raise refuse("invalid character in host name")
    if bad := _BAD_ESCAPE.search(rest):
        raise refuse(f'invalid URL escape "{rest[bad.start() : bad.start() + 3]}"')
    return Url(text, scheme, host, rest, query)


library("url(string) -> kubernetes.URL")(_url)


@library("isURL(string) -> bool")
def is_url(text: str) -> bool:
    return _valid(_url, text)


def _valid(parse: Any, text: str) -> bool:
    try:
        parse(text)
    except CelError:
        return False
    return True


@library("<kubernetes.URL>.getScheme() -> string")
def get_scheme(url: Url) -> str:
    return url.scheme


@library("<kubernetes.URL>.getHost() -> string")
def get_host(url: Url) -> str:
    return url.host


@library("<kubernetes.URL>.getHostname() -> string")
def get_hostname(url: Url) -> str:
    if url.host.startswith("["):
        return url.host[1 : url.host.index("]")]
    return url.host.partition(":")[0]


@library("<kubernetes.URL>.getPort() -> string")
def get_port(url: Url) -> str:
    return url.host.rpartition("]")[2].partition(":")[2]


@library("<kubernetes.URL>.getEscapedPath() -> string")
def get_escaped_path(url: Url) -> str:
    return url.path


@library("<kubernetes.URL>.getQuery() -> map(string, list(string))")
def get_query(url: Url) -> dict[str, list[str]]:
    return parse_qs(url.query, keep_blank_values=True)


@library("string(kubernetes.URL) -> string")
def url_text(url: Url) -> str:
    return url.text


def _ip(text: str) -> Ip:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise CelError(f'IP Address "{text}" parse error during conversion from string: unable to parse IP') from None
    if isinstance(address, ipaddress.IPv6Address) and (address.scope_id or address.ipv4_mapped):
        raise CelError(f'IP Address "{text}" with zone value or IPv4-mapped IPv6 address is not allowed')
    return Ip(address)


library("ip(string) -> net.IP")(_ip)


@library("isIP(string) -> bool")
def is_ip(text: str) -> bool:
    return _valid(_ip, text)


@library("ip.isCanonical(string) -> bool")
def is_canonical(text: str) -> bool:
    return str(_ip(text).address) == text


@library("<net.IP>.family() -> int")
def family(ip: Ip) -> int:
    return ip.address.version


@library("<net.IP>.isUnspecified() -> bool")
def is_unspecified(ip: Ip) -> bool:
    return ip.address.is_unspecified


@library("<net.IP>.isLoopback() -> bool")
def is_loopback(ip: Ip) -> bool:
    return ip.address.is_loopback


@library("<net.IP>.isLinkLocalMulticast() -> bool")
def is_link_local_multicast(ip: Ip) -> bool:
    text = "224.0.0.0/24" if ip.address.version == 4 else "ff02::/16"
    return ip.address in ipaddress.ip_network(text)


@library("<net.IP>.isLinkLocalUnicast() -> bool")
def is_link_local_unicast(ip: Ip) -> bool:
    return ip.address.is_link_local


@library("<net.IP>.isGlobalUnicast() -> bool")
def is_global_unicast(ip: Ip) -> bool:
    address = ip.address
    broadcast = str(address) == "255.255.255.255"
    return not (
        address.is_unspecified or address.is_loopback or address.is_multicast or address.is_link_local or broadcast
    )


@library("string(net.IP) -> string")
def ip_text(ip: Ip) -> str:
    return str(ip.address)


def _cidr(text: str) -> Cidr:
    address, slash, length = text.partition("/")
    try:
        if not slash or not length.isascii() or not length.isdecimal():
            raise ValueError
        parsed = _ip(address).address
        return Cidr(parsed, ipaddress.ip_network(text, strict=False))
    except (ValueError, CelError):
        raise CelError(
            f'network address parse error during conversion from string: invalid CIDR address: "{text}"'
        ) from None


library("cidr(string) -> net.CIDR")(_cidr)


@library("isCIDR(string) -> bool")
def is_cidr(text: str) -> bool:
    return _valid(_cidr, text)


@library("<net.CIDR>.containsIP(net.IP) -> bool", "<net.CIDR>.containsIP(string) -> bool")
def contains_ip(cidr: Cidr, ip: Any) -> bool:
    return (_ip(ip) if isinstance(ip, str) else ip).address in cidr.network


@library("<net.CIDR>.containsCIDR(net.CIDR) -> bool", "<net.CIDR>.containsCIDR(string) -> bool")
def contains_cidr(cidr: Cidr, other: Any) -> bool:
    inner = (_cidr(other) if isinstance(other, str) else other).network
    if inner.version != cidr.network.version:
        return False
    outer = cidr.network
    return inner.network_address in outer and inner.prefixlen >= outer.prefixlen


@library("<net.CIDR>.ip() -> net.IP")
def cidr_ip(cidr: Cidr) -> Ip:
    return Ip(cidr.address)


@library("<net.CIDR>.masked() -> net.CIDR")
def masked(cidr: Cidr) -> Cidr:
    return Cidr(cidr.network.network_address, cidr.network)


@library("<net.CIDR>.prefixLength() -> int")
def prefix_length(cidr: Cidr) -> int:
    return cidr.network.prefixlen


@library("string(net.CIDR) -> string")
def cidr_text(cidr: Cidr) -> str:
    return f"{cidr.address}/{cidr.network.prefixlen}"
