"""What the gateway should do, before it becomes Envoy's configuration.

Sources (Gateway API, Ingress, Knative) read Kubernetes objects and give *listeners* with *hosts* with *rules* that forward to
*backends*; ``envoy.build`` turns those into xDS. All of it is plain values, so a source is tested by comparing models and the
builder by comparing configuration.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal, NamedTuple

_versions = itertools.count(1)
"""No two states of any host or listener have the same number."""


class PathMatch(NamedTuple):
    """How a path is matched. ``Prefix`` is by path element: ``/a`` matches ``/a`` and ``/a/b``, not ``/ab``."""

    type: Literal["Exact", "Prefix", "Regex"]
    value: str


EVERYTHING = PathMatch("Prefix", "/")


class NameMatch(NamedTuple):
    """A header or query parameter."""

    name: str
    type: Literal["Exact", "Regex", "Present"]
    value: str = ""


@dataclass(frozen=True, slots=True)
class Match:
    """Conditions that must all hold."""

    path: PathMatch = EVERYTHING
    method: str = ""
    headers: tuple[NameMatch, ...] = ()
    query: tuple[NameMatch, ...] = ()
    share: tuple[int, int] | None = None
    """Only this part (numerator, denominator) of the requests. Rules of one request draw once: with shares of 20 and 50 percent
    in a row, the second rule gets 30."""

    def precedence(self) -> tuple[int, int, int, int, int]:
        """Sort key: the more specific match first, in the Gateway API's order."""
        kind = {"Exact": 0, "Regex": 1, "Prefix": 2}[self.path.type]
        return (kind, -len(self.path.value), 0 if self.method else 1, -len(self.headers), -len(self.query))


@dataclass(frozen=True, slots=True)
class HeaderEdit:
    """Changes to headers: set replaces, add appends."""

    set: tuple[tuple[str, str], ...] = ()
    add: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.set or self.add or self.remove)


@dataclass(frozen=True, slots=True)
class Target:
    """A share of a rule's traffic. ``cluster`` "" answers 500: the reference is invalid."""

    cluster: str
    weight: int = 1
    request: HeaderEdit = HeaderEdit()
    response: HeaderEdit = HeaderEdit()
    host: str = ""
    """Rewrite the Host header for this target."""
    gate: str = ""
    """Ask the gate under this path before the request goes on."""


@dataclass(frozen=True, slots=True)
class PathRewrite:
    """A new path: the whole of it, or in place of the matched prefix."""

    type: Literal["Full", "Prefix"]
    value: str


@dataclass(frozen=True, slots=True)
class Retry:
    """When and how often a request is tried again."""

    attempts: int
    codes: tuple[int, ...] = ()
    backoff: float | None = None
    """Seconds before the first retry."""
    on: tuple[str, ...] = ("connect-failure", "refused-stream", "reset-before-request")


@dataclass(frozen=True, slots=True)
class Mirror:
    """A copy of the traffic whose answers are dropped."""

    cluster: str
    numerator: int = 100
    denominator: int = 100


@dataclass(frozen=True, slots=True)
class Cors:
    """Cross-origin rules."""

    origins: tuple[str, ...]
    """Exact origins, or with ``*`` as a wildcard."""
    methods: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    expose: tuple[str, ...] = ()
    max_age: int = 5
    credentials: bool = False


class Session(NamedTuple):
    """Requests of one session go to one endpoint, as long as it is there; the client carries the session."""

    name: str
    """Of the cookie or header."""
    kind: Literal["Cookie", "Header"] = "Cookie"
    lifetime: float | None = None
    """Seconds after which a cookie's session ends; None: with the client."""


@dataclass(frozen=True, slots=True)
class Forward:
    """Send to backends by weight."""

    targets: tuple[Target, ...]
    timeout: float | None = None
    """Seconds for the whole response; None: unlimited."""
    try_timeout: float | None = None
    """Seconds until the response to one try begins."""
    idle_timeout: float | None = None
    """Seconds without a byte in either direction."""
    silence_timeout: float | None = None
    """Seconds without a byte from the backend."""
    longest: float | None = None
    """Seconds a request may last from its first byte on, whatever it does."""
    forwarded: bool = False
    """Add ``Forwarded`` (RFC 7239) to requests that have none."""
    rewrite: PathRewrite | None = None
    host: str = ""
    retry: Retry | None = None
    mirrors: tuple[Mirror, ...] = ()
    hash_source_ip: bool = False
    """Keep a client on one backend (ClientIP affinity)."""
    session: Session | None = None


@dataclass(frozen=True, slots=True)
class Redirect:
    """Answer with a redirection."""

    status: int = 302
    scheme: str = ""
    host: str = ""
    port: int | None = None
    path: PathRewrite | None = None


@dataclass(frozen=True, slots=True)
class Respond:
    """Answer at once."""

    status: int
    body: str = ""


Action = Forward | Redirect | Respond


@dataclass(frozen=True, slots=True)
class Rule:
    """One match and what is done with it."""

    match: Match
    action: Action
    request: HeaderEdit = HeaderEdit()
    response: HeaderEdit = HeaderEdit()
    cors: Cors | None = None
    order: tuple[Any, ...] = ()
    """Breaks ties of `Match.precedence`: age, name, position."""
    name: str = ""
    """``kind/namespace/name`` of the object it comes from, for access logs."""
    wire: Wire = field(default_factory=lambda: Wire(), compare=False, repr=False)
    rank: tuple[Any, ...] = field(default=(), compare=False, repr=False)
    """Sort key: the match's precedence, then ``order``."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", (*self.match.precedence(), self.order))


@dataclass(slots=True)
class Wire:
    """What became of a rule on its way to Envoy; lives as long as the rule does not change."""

    encoded: bytes | None = None
    """Its wire form, made by ``envoy.routes`` once."""
    standing: Literal["new", "trusted", "waiting", "refused"] = "new"
    """Whether Envoy has taken it, or refused something it was part of (see ``envoy.quarantine``)."""
    reason: str = ""
    """Why it is refused."""


rank = attrgetter("rank")
"""Sort key of rules: by precedence."""


@dataclass(slots=True)
class Host:
    """The rules of one host name (``*.example.com`` and ``*`` are patterns)."""

    domain: str
    rules: list[Rule] = field(default_factory=list)
    version: int = field(default_factory=lambda: next(_versions), compare=False)
    """Changes with the rules; the number of this state alone."""
    _sorted: bool = field(default=False, compare=False)

    def add(self, rules: Iterable[Rule]) -> None:
        """Rules in any order."""
        self.rules.extend(rules)
        self.version, self._sorted = next(_versions), False

    def remove(self, rules: Iterable[Rule]) -> None:
        """Take these very rules away."""
        gone = set(map(id, rules))
        self.rules = [rule for rule in self.rules if id(rule) not in gone]
        self.version = next(_versions)

    def ordered(self) -> list[Rule]:
        """The rules by precedence."""
        if not self._sorted:
            self.rules.sort(key=rank)
            self._sorted = True
        return self.rules


class Certificate(NamedTuple):
    """A server certificate; its key never leaves the process but to Envoy."""

    name: str
    chain: bytes
    key: bytes


@dataclass(slots=True)
class Listener:
    """One host pattern on one port: what a Gateway listener, or the whole of Ingress, asks for."""

    owner: str
    """``gateway/namespace/name`` or ``ingress``."""
    name: str
    address: str
    """IP address to listen on."""
    port: int
    protocol: Literal["HTTP", "HTTPS", "TLS", "TCP", "UDP"]
    hostname: str = ""
    """``""`` matches every host."""
    hosts: dict[str, Host] = field(default_factory=dict)
    certificates: list[Certificate] = field(default_factory=list)
    passthrough: bool = False
    targets: dict[str, tuple[Target, ...]] = field(default_factory=dict)
    """For TLS (by server name), TCP and UDP (under ``""``): where connections go."""
    client_ca: bytes | None = None
    """Ask for client certificates signed by this authority."""
    client_required: bool = True
    """False: a missing or invalid client certificate is let through."""
    shape: int = field(default_factory=lambda: next(_versions), compare=False)
    """Changes with the set of hosts; the number of this state alone."""

    def host(self, domain: str) -> Host:
        """The host entry of a domain, made on first use."""
        name = domain or "*"
        if name not in self.hosts:
            self.hosts[name] = Host(name)
            self.shape = next(_versions)
        return self.hosts[name]

    def reshaped(self) -> None:
        """To be called when anything but the rules of hosts was changed after the listener was built into configuration."""
        self.shape = next(_versions)

    def drop_empty(self, domain: str) -> None:
        """Forget a host without rules."""
        name = domain or "*"
        if name in self.hosts and not self.hosts[name].rules:
            del self.hosts[name]
            self.shape = next(_versions)


class Endpoint(NamedTuple):
    """One backend address."""

    address: str
    port: int
    weight: int = 1
    healthy: bool = True
    """False: only used when nothing else is left (a terminating pod that still serves)."""


@dataclass(frozen=True, slots=True)
class UpstreamTls:
    """TLS towards a backend."""

    server_name: str
    authority: bytes | None
    """PEM bundle; None: the system's."""
    names: tuple[tuple[str, str], ...] = ()
    """(type, value) of accepted subject alternative names beyond ``server_name``."""


@dataclass(frozen=True, slots=True)
class Backend:
    """A cluster: a Service port, or something a source names."""

    name: str
    endpoints: tuple[Endpoint, ...] = ()
    protocol: Literal["http1", "h2c", "auto", "tcp"] = "http1"
    tls: UpstreamTls | None = None
    broken: bool = False
    """Its TLS policy is invalid: refuse rather than send plaintext."""
    affinity: bool = False


@dataclass(slots=True)
class Model:
    """The whole gateway."""

    listeners: list[Listener] = field(default_factory=list)
    backends: dict[str, Backend] = field(default_factory=dict)


def matches_host(pattern: str, host: str) -> bool:
    """A host (or narrower pattern) falls under a pattern; ``""`` and ``*`` match all, ``*.x`` one label or more."""
    if pattern in ("", "*"):
        return True
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and host != pattern[1:]
    return pattern == host


def specificity(pattern: str) -> tuple[int, int]:
    """Sort key of host patterns: exact above wildcard above all; the longer the more specific."""
    if pattern in ("", "*"):
        return (0, 0)
    return (1 if pattern.startswith("*.") else 2, len(pattern))


def intersect(left: str, right: str) -> str | None:
    """The narrower of two host patterns where one contains the other; None where they are disjoint."""
    if matches_host(left, right):
        return right
    if matches_host(right, left):
        return left
    return None


def edit_of(source: Mapping[str, Any]) -> HeaderEdit:
    """A Gateway API header modifier (``set``, ``add`` of name and value; ``remove``)."""

    def pairs(entries: Sequence[Mapping[str, str]] | None) -> tuple[tuple[str, str], ...]:
        return tuple((entry["name"], entry.get("value", "")) for entry in entries or ())

    return HeaderEdit(pairs(source.get("set")), pairs(source.get("add")), tuple(source.get("remove") or ()))
