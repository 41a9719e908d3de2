"""Answers for the cluster's own names (schema 1.1.0), as a function of what there is. Pure.

======================================  =========================================================================
name                                    answer
======================================  =========================================================================
``<service>.<namespace>.svc.<domain>``  its address; headless: those of all ready endpoints; ExternalName: an alias
``<endpoint>.<service>...``             one endpoint, by hostname or by its address with dashes
``_<port>._<protocol>.<service>...``    SRV: port and target, one an endpoint where headless
``<a-b-c-d>.<namespace>.pod.<domain>``  the address in the name
``dns-version.<domain>``                TXT ``1.1.0``
reverse names                           the Service or endpoint that has the address
======================================  =========================================================================

A name that exists without records of the type asked for gives an empty answer, a name that does not exist NXDOMAIN, both with
the zone's SOA; musl takes a name for missing if either of its A and AAAA queries says so, so both agree here by construction.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from sampan.parts.network.dns import message as dns
from sampan.parts.network.dns.message import Authority, Record, Reply, Target
from sampan.parts.network.records import ServiceRecords

VERSION = "1.1.0"
"""Of the schema, as ``dns-version`` says."""


LONGEST_CHAIN = 8
"""Aliases of aliases that are followed."""


class Directory(Protocol):
    """What there is in the cluster."""

    def has_namespace(self, name: str) -> bool: ...

    def service(self, namespace: str, name: str) -> ServiceRecords | None: ...

    def names_of(self, address: str) -> Sequence[str]:
        """Names below the ``svc`` zone (``web.default``, ``db-0.db.default``) of what has this address."""
        ...


class Answer(NamedTuple):
    """An answer that may go on: ``follow`` is a name outside whose addresses the asker wants too."""

    reply: Reply
    follow: str = ""


class Zone:
    """The cluster's zone over a `Directory`."""

    def __init__(self, directory: Directory, domain: str = "cluster.local", ttl: int = 5, server: str = "") -> None:
        """``ttl`` in seconds; ``server`` is the name server's own address, where it has one."""
        self.domain = domain
        self._directory = directory
        self._ttl = ttl
        self._suffix = f".{domain}"
        self._server = ipaddress.IPv4Address(server).packed if server else b""
        authority = Authority(f"ns.dns.{domain}", f"hostmaster.{domain}", 1, 7200, 1800, 86400, ttl)
        self._soa = (Record(domain, dns.SOA, ttl, authority),)

    def answer(self, name: str, kind: int) -> Answer | None:
        """The answer to a question, or None for a name that is not the cluster's."""
        if name == self.domain or name.endswith(self._suffix):
            return self._within(name, kind)
        if name.endswith((".in-addr.arpa", ".ip6.arpa")):
            return self._reverse(name, kind)
        return None

    # -- shapes of answers

    def _missing(self) -> Answer:
        return Answer(Reply(dns.NO_SUCH_NAME, authority=self._soa))

    def _empty(self) -> Answer:
        return Answer(Reply(dns.NO_ERROR, authority=self._soa))

    def _found(self, records: Iterable[Record], additional: Iterable[Record] = ()) -> Answer:
        answers = tuple(records)
        return Answer(Reply(dns.NO_ERROR, answers, additional=tuple(additional))) if answers else self._empty()

    def _addresses(self, name: str, kind: int, addresses: Iterable[bytes]) -> Iterable[Record]:
        for address in addresses:
            type = dns.A if len(address) == 4 else dns.AAAA
            if kind in (type, dns.ANY):
                yield Record(name, type, self._ttl, address)

    # -- names below the domain

    def _within(self, name: str, kind: int) -> Answer:
        labels = name[: -len(self._suffix)].split(".") if name != self.domain else []
        match labels:
            case []:
                return self._apex(kind)
            case ["dns-version"]:
                text = bytes([len(VERSION)]) + VERSION.encode()
                return self._found([Record(name, dns.TXT, self._ttl, text)] if kind in (dns.TXT, dns.ANY) else ())
            case ["ns", "dns"]:
                return self._found(self._addresses(name, kind, [self._server] if self._server else ()))
            case ["svc"] | ["pod"] | ["dns"]:
                return self._empty()
            case [namespace, "svc" | "pod"]:
                return self._empty() if self._directory.has_namespace(namespace) else self._missing()
            case [address, namespace, "pod"]:
                return self._pod(name, kind, address, namespace)
            case [*rest, service, namespace, "svc"]:
                return self._service(name, kind, rest, service, namespace)
            case _:
                return self._missing()

    def _apex(self, kind: int) -> Answer:
        if kind == dns.SOA:
            return self._found(self._soa)
        if kind == dns.NS:
            server = f"ns.dns.{self.domain}"
            glue = self._addresses(server, dns.A, [self._server] if self._server else ())
            return self._found([Record(self.domain, dns.NS, self._ttl, server)], glue)
        return self._empty()

    def _pod(self, name: str, kind: int, dashed: str, namespace: str) -> Answer:
        if not self._directory.has_namespace(namespace):
            return self._missing()
        try:
            four = dashed.count("-") == 3 and "--" not in dashed
            address = ipaddress.ip_address(dashed.replace("-", "." if four else ":"))
        except ValueError:
            return self._missing()
        return self._found(self._addresses(name, kind, [address.packed]))

    def _service(self, name: str, kind: int, rest: Sequence[str], service: str, namespace: str) -> Answer:
        found = self._directory.service(namespace, service)
        if found is None:
            return self._missing()
        base = f"{service}.{namespace}.svc.{self.domain}"
        if found.alias:
            return self._alias(name, kind, found.alias) if not rest else self._missing()
        match rest:
            case []:
                if kind == dns.SRV:
                    return self._targets(name, base, found, "", "")
                return self._found(self._addresses(name, kind, found.addresses))
            case [port, protocol] if port.startswith("_") and protocol.startswith("_"):
                if not any(one.name == port[1:] and one.protocol == protocol[1:] for one in found.ports):
                    return self._missing()
                if kind not in (dns.SRV, dns.ANY):
                    return self._empty()
                return self._targets(name, base, found, port[1:], protocol[1:])
            case [protocol] if protocol in ("_tcp", "_udp", "_sctp"):
                return self._empty()
            case [endpoint]:
                addresses = found.endpoints.get(endpoint)
                if addresses is None:
                    return self._missing()
                if kind == dns.SRV:
                    return self._targets(name, base, found, "", "", endpoint)
                return self._found(self._addresses(name, kind, addresses))
            case _:
                return self._missing()

    def _alias(self, name: str, kind: int, alias: str) -> Answer:
        chain = [Record(name, dns.CNAME, self._ttl, alias)]
        if kind not in (dns.A, dns.AAAA):
            return self._found(chain)
        seen = {name}
        while onward := self._alias_of(alias):
            seen.add(alias)
            if onward in seen or len(chain) == LONGEST_CHAIN:
                return Answer(Reply(dns.SERVER_FAILURE))
            chain.append(Record(alias, dns.CNAME, self._ttl, onward))
            alias = onward
        own = self.answer(alias, kind)
        if own is None:
            return Answer(Reply(dns.NO_ERROR, chain), alias)
        return Answer(own.reply._replace(answers=(*chain, *own.reply.answers)), own.follow)

    def _alias_of(self, name: str) -> str:
        """What an ExternalName Service of this name points at, else ""."""
        if not name.endswith(f".svc{self._suffix}"):
            return ""
        match name[: -len(self._suffix)].split("."):
            case [service, namespace, "svc"]:
                found = self._directory.service(namespace, service)
                return found.alias if found is not None else ""
            case _:
                return ""

    def _targets(
        self, name: str, base: str, found: ServiceRecords, port: str, protocol: str, endpoint: str = ""
    ) -> Answer:
        records: list[Record] = []
        hosts: dict[str, tuple[bytes, ...]] = {}
        for one in found.ports:
            if port and (one.name, one.protocol) != (port, protocol):
                continue
            if endpoint and one.host != endpoint:
                continue
            host = f"{one.host}.{base}" if one.host else base
            hosts[host] = found.endpoints[one.host] if one.host else found.addresses
            records.append(Record(name, dns.SRV, self._ttl, Target(0, 100, one.number, host)))
        additional = [
            record for host, addresses in hosts.items() for record in self._addresses(host, dns.ANY, addresses)
        ]
        return self._found(records, additional)

    # -- reverse names

    def _reverse(self, name: str, kind: int) -> Answer | None:
        address = reversed_address(name)
        names = self._directory.names_of(address) if address else ()
        if not names:
            return None
        if kind not in (dns.PTR, dns.ANY):
            return self._empty()
        return self._found(Record(name, dns.PTR, self._ttl, f"{one}.svc.{self.domain}") for one in names)


def reversed_address(name: str) -> str:
    """The address in a reverse name, or "" where there is none."""
    labels = name.split(".")
    try:
        if name.endswith(".in-addr.arpa") and len(labels) == 6:
            return str(ipaddress.IPv4Address(".".join(reversed(labels[:4]))))
        if name.endswith(".ip6.arpa") and len(labels) == 34:
            return str(ipaddress.IPv6Address(int("".join(reversed(labels[:32])), 16)))
    except ValueError:
        return ""
    return ""
