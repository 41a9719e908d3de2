"""One delta xDS stream as a state machine over values: requests in, responses out, no I/O.

The stream knows what its Envoy has subscribed to and holds. ``request`` answers a DeltaDiscoveryRequest from the current
snapshot; ``update`` gives the responses that bring the Envoy from what it was sent to a newer snapshot. Acknowledgements
are per response: ``pending`` names what is still on its way, ``rejected`` what Envoy refused and why.

While something of a type is on its way, newer states of that type wait: an Envoy that hangs is owed one difference to the
newest state however many were published meanwhile, and gets it in the order of make-before-break once it answers again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sampan.parts.traffic.xds import schema
from sampan.parts.traffic.xds.snapshot import REFERRED, REFERRING, TYPES, Resource, Snapshot


class Request(NamedTuple):
    """What of a DeltaDiscoveryRequest matters."""

    type_url: str
    subscribe: Sequence[str] = ()
    unsubscribe: Sequence[str] = ()
    initial_versions: Mapping[str, str] = {}
    nonce: str = ""
    error: str | None = None
    """Set on a NACK: Envoy's reason."""


class Response(NamedTuple):
    """One DeltaDiscoveryResponse to send."""

    type_url: str
    nonce: str
    resources: Sequence[Resource]
    removed: Sequence[str]


@dataclass(slots=True)
class _Sent:
    type_url: str
    versions: dict[str, str]
    removed: tuple[str, ...]
    before: dict[str, str]
    """What the Envoy held of these resources: what it goes on with if it refuses."""


@dataclass(slots=True)
class _Subscription:
    wildcard: bool = False
    names: set[str] = field(default_factory=set)
    held: dict[str, str] = field(default_factory=dict)
    """Version last sent of each resource the Envoy holds."""
    early: dict[str, str] = field(default_factory=dict)
    """Nonces of what was sent before it was asked for."""
    settled: Mapping[str, Resource] | None = None
    """What was found to be held in full: there is nothing to look for as long as it is this very mapping."""

    def wants(self, name: str) -> bool:
        return self.wildcard or name in self.names


class Stream:
    """The server's side of one delta stream."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._subscriptions: dict[str, _Subscription] = {}
        self._pending: dict[str, _Sent] = {}
        self._late: dict[str, bool] = {}
        """Types with newer states that wait for an answer, and whether removals are due there."""
        self._nonces = itertools.count(1)
        self.rejected: dict[tuple[str, str], tuple[str, str]] = {}
        """(type, name) to (rejected version, reason), as long as that version is what is wanted."""

    @property
    def pending(self) -> frozenset[str]:
        """Nonces not answered yet."""
        return frozenset(self._pending)

    @property
    def settled(self) -> bool:
        """Nothing is on its way, and nothing waits to be sent."""
        return not self._pending and not self._late

    def request(self, request: Request) -> list[Response]:
        """Take a request; the responses it calls for."""
        return [*self._requested(request), *self._catch_up()]

    def _requested(self, request: Request) -> list[Response]:
        first = request.type_url not in self._subscriptions
        subscription = self._subscriptions.setdefault(request.type_url, _Subscription())
        if first or request.error is not None or request.subscribe or request.unsubscribe:
            subscription.settled = None
        if first:
            subscription.held.update(request.initial_versions)
            subscription.names.update(request.initial_versions)
            if not request.subscribe:
                subscription.wildcard = True
        again: list[Response] = []
        if request.nonce:
            again += self._answer(request)
        asked = set(request.subscribe)
        # what was sent ahead and is still on its way will find its subscription there; if it is not, Envoy did not take it
        ahead = {name for name in asked & subscription.early.keys() if subscription.early.pop(name) in self._pending}
        if "*" in asked:
            subscription.wildcard = True
            asked.discard("*")
        subscription.names |= asked
        asked -= ahead
        for name in request.unsubscribe:
            if name == "*":
                subscription.wildcard = False
            subscription.names.discard(name)
            subscription.held.pop(name, None)
            subscription.early.pop(name, None)
        for name in asked:
            subscription.held.pop(name, None)  # asking for a name already sent asks for it again
        current = self._snapshot.of(request.type_url)
        due = self._changes(request.type_url, current, asked if not first else None)
        if asked or first:
            unknown = [name for name in asked if name not in current]
            if due or unknown or (first and subscription.wildcard):
                again += self._apart(request.type_url, due, unknown)
        return again

    def update(self, snapshot: Snapshot, types: Iterable[str] = TYPES, *, removals: bool) -> list[Response]:
        """Move to a snapshot: its changes in these types, and what it no longer has when ``removals``."""
        self._snapshot = snapshot
        self.rejected = {key: why for key, why in self.rejected.items() if _wanted(snapshot, key) == why[0]}
        responses = []
        busy = {one.type_url for one in self._pending.values()}
        if not busy.isdisjoint(REFERRED):
            busy.update(REFERRING)
        for type_url in types:
            if type_url not in self._subscriptions:
                continue
            if self._late or type_url in busy:
                self._late[type_url] = removals or self._late.get(type_url, False)
            else:
                responses += self._difference(type_url, removals=removals)
        return responses

    def _difference(self, type_url: str, *, removals: bool) -> list[Response]:
        """What brings the Envoy to the newest state of a type."""
        subscription, current = self._subscriptions[type_url], self._snapshot.of(type_url)
        if subscription.settled is current:
            return []
        due = self._changes(type_url, current, None)
        gone = [name for name in subscription.held if name not in current]
        if not due and not (gone and removals):
            if not gone:
                subscription.settled = current
            return []
        endpoints = self._ahead(due) if type_url == schema.CLUSTER else []
        return [*self._apart(type_url, due, gone if removals else []), *endpoints]

    def _ahead(self, clusters: Sequence[Resource]) -> list[Response]:
        """The endpoints of clusters that are new to the Envoy. It would ask for them on reading of the clusters; they follow on
        the same stream, so it has subscribed when it comes to them, and a round trip is saved."""
        subscription, current = self._subscriptions.get(schema.ENDPOINTS), self._snapshot.of(schema.ENDPOINTS)
        if subscription is None:
            return []
        names = [one.name for one in clusters if one.name in current and not subscription.wants(one.name)]
        if not names:
            return []
        response = self._send(schema.ENDPOINTS, [current[name] for name in names], [])
        subscription.early |= dict.fromkeys(names, response.nonce)
        return [response]

    def _catch_up(self) -> list[Response]:
        """What waited for answers and may go now: what others refer to, then what refers to it, then the removals."""
        if not self._late:
            return []
        for group in (REFERRED, REFERRING):
            busy = {one.type_url for one in self._pending.values()}
            waiting = [type_url for type_url in group if type_url in self._late and type_url not in busy]
            sent = [one for type_url in waiting for one in self._difference(type_url, removals=False)]
            if sent or not busy.isdisjoint(group):
                return sent
        if self._pending:
            return []
        late, self._late = self._late, {}
        types = [type_url for type_url in (*reversed(REFERRING), *REFERRED) if late.get(type_url)]
        return [one for type_url in types for one in self._difference(type_url, removals=True)]

    def _changes(self, type_url: str, current: Mapping[str, Resource], among: set[str] | None) -> list[Resource]:
        """Resources the Envoy wants and does not hold in this version, without the versions it refused."""
        subscription = self._subscriptions[type_url]
        candidates: Iterable[Resource]
        if among is not None:
            candidates = [current[name] for name in sorted(among) if name in current]
        elif subscription.wildcard:
            candidates = current.values()
        else:
            candidates = [current[name] for name in subscription.names if name in current]
        return [
            one
            for one in candidates
            if subscription.held.get(one.name) != one.version
            and self.rejected.get((type_url, one.name), ("", ""))[0] != one.version
        ]

    def _apart(self, type_url: str, resources: Sequence[Resource], removed: Sequence[str]) -> list[Response]:
        """Responses with these resources: one, but for secrets. Envoy remembers a secret it refused, and acknowledges it when
        it comes again: only the first refusal tells, so no secret may share a response with another."""
        if type_url != schema.SECRET or len(resources) + bool(removed) < 2:
            return [self._send(type_url, resources, removed)]
        gone = [self._send(type_url, [], removed)] if removed else []
        return [*gone, *(self._send(type_url, [one], []) for one in resources)]

    def _send(self, type_url: str, resources: Sequence[Resource], removed: Sequence[str]) -> Response:
        nonce = str(next(self._nonces))
        subscription = self._subscriptions[type_url]
        subscription.settled = None
        before = {one.name: subscription.held[one.name] for one in resources if one.name in subscription.held}
        for one in resources:
            if type_url == schema.CLUSTER and one.name in subscription.held:
                self._forget_endpoints(one.name)
            subscription.held[one.name] = one.version
        for name in removed:
            subscription.held.pop(name, None)
        versions = {one.name: one.version for one in resources}
        self._pending[nonce] = _Sent(type_url, versions, tuple(removed), before)
        return Response(type_url, nonce, resources, removed)

    def _forget_endpoints(self, cluster: str) -> None:
        """A cluster that is replaced warms until its endpoints arrive again, and Envoy does not ask for them again."""
        endpoints = self._subscriptions.get(schema.ENDPOINTS)
        if endpoints is not None:
            endpoints.held.pop(cluster, None)
            endpoints.settled = None

    def _answer(self, request: Request) -> list[Response]:
        """An ACK or NACK. A refused response with several resources is repeated one by one to find the bad ones."""
        sent = self._pending.pop(request.nonce, None)
        if sent is None:
            return []
        if request.error is None:
            for name in (*sent.versions, *sent.removed):
                key = (sent.type_url, name)
                # what is still wanted in the refused version may have been on its way out before it was wanted again
                if key in self.rejected and _wanted(self._snapshot, key) != self.rejected[key][0]:
                    del self.rejected[key]
            return []
        if not sent.versions:
            return []
        held, current = self._subscriptions[sent.type_url].held, self._snapshot.of(sent.type_url)
        for name, version in sent.versions.items():
            if held.get(name) == version:  # nothing newer is on its way
                held.pop(name)
                if name in sent.before:
                    held[name] = sent.before[name]
        for name in sent.removed:
            held.setdefault(name, "")  # it may have been removed or not: whatever is wanted is said again
        again: list[Response] = []
        if len(sent.versions) == 1:
            ((name, version),) = sent.versions.items()
            self.rejected[sent.type_url, name] = (version, request.error)
        else:
            again += [
                self._send(sent.type_url, [current[name]], [])
                for name, version in sent.versions.items()
                if name in current and current[name].version == version
            ]
        gone = [name for name in sent.removed if name not in current]
        if gone:
            again.append(self._send(sent.type_url, [], gone))
        if sent.type_url == schema.CLUSTER and schema.ENDPOINTS in self._subscriptions:
            due = self._changes(schema.ENDPOINTS, self._snapshot.of(schema.ENDPOINTS), None)
            if due:
                again.append(self._send(schema.ENDPOINTS, due, []))
        return again


def _wanted(snapshot: Snapshot, key: tuple[str, str]) -> str | None:
    found = snapshot.of(key[0]).get(key[1])
    return found.version if found is not None else None
