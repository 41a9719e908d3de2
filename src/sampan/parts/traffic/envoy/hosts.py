"""Which rules answer for which host on a port, and the route configurations made of that.

Listeners that share a port share its hosts. A host belongs to the most specific listener pattern over it; hosts of one pattern
are merged, and a narrower one falls through to the rules of the wider ones. Who contributes to which host is planned when
listeners or host names come and go; a changed rule costs its own host's bytes and the joining of the configuration.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from sampan.parts.traffic.envoy.routes import route_configuration, virtual_host
from sampan.parts.traffic.model import Host, Listener, Rule, matches_host, rank, specificity
from sampan.parts.traffic.xds.snapshot import Resource


class Plan:
    """One domain: the hosts whose rules come first, merged, and those it falls through to."""

    __slots__ = ("_bytes", "_seen", "domain", "refused", "sources", "through")

    def __init__(self, domain: str, sources: list[Host], through: Sequence[list[Host]] = ()) -> None:
        self.domain, self.sources, self.through = domain, sources, through
        self._seen: tuple[int, int] = (-1, -1)
        self._bytes = b""
        self.refused: list[Rule] = []
        """Rules that Envoy does not get."""

    def rules(self) -> Iterator[Rule]:
        """All rules in the order in which they are tried."""
        yield from _ordered(self.sources)
        for hosts in self.through:
            yield from _ordered(hosts)

    def encoded(self, epoch: int) -> tuple[bytes, bool]:
        """(the virtual host in its wire form, it is new). ``epoch`` changes when rules are left out or let in again."""
        if len(self.sources) == 1 and not self.through:
            version = self.sources[0].version
        else:
            # versions only grow, and no two are the same: the newest one tells
            version = max(host.version for host in chain(self.sources, *self.through))
        if self._seen == (version, epoch):
            return self._bytes, False
        rules = list(self.rules())
        self._seen, self._bytes = (version, epoch), virtual_host(self.domain, rules)
        self.refused = [rule for rule in rules if rule.wire.standing == "refused"]
        return self._bytes, True


class Configuration:
    """A route configuration: its plans, and what was last made of them."""

    def __init__(self, name: str, plans: list[Plan]) -> None:
        self.name, self.plans = name, plans
        self._parts: tuple[bytes, ...] = ()
        self._resource: Resource | None = None
        self.fresh: set[int] = set()
        """Positions of plans that changed since Envoy last took the configuration."""

    def parts(self, epoch: int) -> tuple[bytes, ...]:
        """The virtual hosts in their wire form; equal ones make equal configurations, whatever their name."""
        found = []
        for position, plan in enumerate(self.plans):
            data, new = plan.encoded(epoch)
            if new:
                self.fresh.add(position)
            found.append(data)
        return tuple(found)

    def resource(self, parts: tuple[bytes, ...]) -> Resource:
        """The configuration of these parts."""
        if self._resource is None or self._parts != parts:
            self._parts, self._resource = parts, Resource.of(self.name, route_configuration(self.name, parts))
        return self._resource

    def trust(self) -> None:
        """Envoy took it."""
        for position in self.fresh:
            for rule in self.plans[position].rules():
                if rule.wire.standing == "new":
                    rule.wire.standing = "trusted"
        self.fresh.clear()

    def suspects(self) -> list[Rule]:
        """Envoy refused it: the rules in it that it had never taken."""
        found = {id(rule): rule for plan in self.plans for rule in plan.rules() if rule.wire.standing == "new"}
        return list(found.values())


def groups(sharing: Sequence[Listener]) -> list[list[Listener]]:
    """Listeners by host pattern, the most specific first; those with one pattern answer together."""
    found: dict[str, list[Listener]] = defaultdict(list)
    for listener in sharing:
        found[listener.hostname].append(listener)
    return [found[pattern] for pattern in sorted(found, key=lambda one: (specificity(one), one), reverse=True)]


def plans(group: Sequence[Listener], sharing: Sequence[Listener]) -> list[Plan]:
    """The hosts of a group, without those a more specific listener of the port answers for, and its bare pattern."""
    kept, pattern = _isolated(group, sharing), group[0].hostname or "*"
    made = _merged(kept)
    if all(host.domain != pattern for host in kept):
        made.append(Plan(pattern, [Host(pattern)]))  # nobody's: nothing falls through to it
    return made


def _isolated(group: Sequence[Listener], sharing: Sequence[Listener]) -> list[Host]:
    pattern = group[0].hostname
    rivals = [one.hostname for one in sharing if specificity(one.hostname) > specificity(pattern)]
    return [
        host
        for listener in group
        for host in listener.hosts.values()
        if not any(matches_host(rival, host.domain) for rival in rivals)
    ]


def _merged(hosts: Iterable[Host]) -> list[Plan]:
    """One entry a domain, the most specific first."""
    by_domain: dict[str, list[Host]] = defaultdict(list)
    for host in hosts:
        by_domain[host.domain].append(host)
    wide = sorted((domain for domain in by_domain if domain.startswith("*")), key=specificity, reverse=True)
    return [
        Plan(
            domain,
            by_domain[domain],
            [by_domain[other] for other in wide if other != domain and matches_host(other, domain)],
        )
        for domain in sorted(by_domain, key=lambda one: (specificity(one), one), reverse=True)
    ]


def _ordered(hosts: list[Host]) -> list[Rule]:
    if len(hosts) == 1:
        return hosts[0].ordered()
    return sorted((rule for host in hosts for rule in host.rules), key=rank)
