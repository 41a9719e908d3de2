"""Lite topics: many small topics under one topic of type LITE, and who in which group subscribes to which.

A lite topic is a topic of one queue whose name in the broker is made of its parent's and its own, so that storage, offsets,
leases, retries and dead letters are those of every topic. It comes to be with its first message and is consumed in order. What
is different is receiving: a consumer asks for its group's share of the *parent*, and gets what is there in the lite topics it
subscribed to itself. So that a call need not look through thousands of them, each group keeps the names of those that may have
something (`LiteTopics.pending`): a message, an acknowledgement or the end of a lease puts a name there, finding nothing takes
it away.

Subscriptions are the clients' own state: they send them whole every thirty seconds, and nothing is stored. In a group with the
attribute ``lite.sub.model`` set to ``Exclusive`` a lite topic belongs to the client that subscribed last; the one before is
told. A parent with the attribute ``lite.topic.expiration`` (minutes) loses lite topics nobody wrote to for that long.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from sampan.kernel.clock import Clock, Timer
from sampan.parts.messaging.broker import Broker
from sampan.parts.messaging.errors import MessagingError, Reason
from sampan.parts.messaging.topology import LITE_PREFIX, Topic, TopicConfig, split_lite

NAME_LIMIT = 64
SUBSCRIPTION_QUOTA = 2_000
"""Lite topics one client may subscribe to."""
EXPIRATION, MODEL = "lite.topic.expiration", "lite.sub.model"
"""The attributes of parents and groups."""
SCAN_INTERVAL = 60.0
FORGET = 120.0
"""Seconds after which the subscriptions of a client are dropped that neither is connected nor has sent them again."""
_NAME = re.compile(r"[a-zA-Z0-9_-]+")

Action = Literal["add", "remove", "set", "clear"]


@dataclass
class Subscription:
    """What one client reads of one parent, for one group."""

    client: str
    group: str
    parent: str
    names: dict[str, None] = field(default_factory=dict)
    version: int = 0
    seen: float = 0.0
    """Monotonic seconds at which the client last told them."""


class LiteTopics:
    """Lite topics and their subscribers."""

    def __init__(self, broker: Broker, clock: Clock) -> None:
        self._broker = broker
        self._clock = clock
        self._subscriptions: dict[str, Subscription] = {}
        self._groups: dict[str, dict[str, dict[str, None]]] = {}
        """Client ids by group, by lite topic."""
        self.pending: dict[str, dict[str, None]] = {}
        """Lite topics that may have something, by group."""
        self._written: dict[str, int] = {}
        self._timer: Timer | None = None
        self.on_revoked: Callable[[str, str], object] = lambda client, lite: None
        """Called with a client and a lite topic it no longer has."""
        self.alive: Callable[[str], bool] = lambda client: False
        """Whether a client is connected."""

    def start(self) -> None:
        """Begin to look for lite topics nobody writes to."""
        now_ms = self._clock.time_ms()
        self._written = {name: now_ms for name in self._broker.store.topics if name.startswith(LITE_PREFIX)}
        self._timer = self._clock.call_later(SCAN_INTERVAL, self._scan)

    def stop(self) -> None:
        """Stop looking."""
        if self._timer is not None:
            self._timer.cancel()

    # -- topics

    def topic(self, parent: Topic, lite: str, *, create: bool = False) -> Topic:
        """A lite topic, made when missing and ``create``.

        Raises:
            MessagingError: ILLEGAL_LITE_TOPIC, the name, or the parent is not of type LITE; LITE_TOPIC_QUOTA; TOPIC_NOT_FOUND.
        """
        if parent.config.type != "LITE":
            raise MessagingError(Reason.ILLEGAL_LITE_TOPIC, f"topic {parent.name} is not of type LITE")
        check_lite(lite)
        name = lite_name(parent.name, lite)
        found = self._broker.store.topics.get(name)
        if found is not None:
            return found
        if not create:
            raise MessagingError(Reason.TOPIC_NOT_FOUND, f"topic {parent.name} has no lite topic {lite}")
        if len(self._broker.store.topics) >= self._broker.limits.max_topics:
            raise MessagingError(Reason.LITE_TOPIC_QUOTA, f"there are {self._broker.limits.max_topics} topics already")
        self._written[name] = self._clock.time_ms()
        return self._broker.store.define_topic(TopicConfig(name, "LITE", 1))

    def lites(self, parent: str) -> list[Topic]:
        """The lite topics of a parent."""
        prefix = lite_name(parent, "")
        return [topic for name, topic in self._broker.store.topics.items() if name.startswith(prefix)]

    def _scan(self) -> None:
        now, now_ms = self._clock.monotonic(), self._clock.time_ms()
        for one in list(self._subscriptions.values()):
            if now - one.seen >= FORGET and not self.alive(one.client):
                self.forget(one.client)  # of one that never opened a conversation nobody says that it is gone
        for name, written_ms in list(self._written.items()):
            parent, lite = split_lite(name)
            topic = self._broker.store.topics.get(parent)
            if topic is None or name not in self._broker.store.topics:
                self.drop(name)
                continue
            try:
                minutes = float(topic.config.attributes.get(EXPIRATION, "-1"))
            except ValueError:
                continue
            if 0 <= minutes * 60_000 <= now_ms - written_ms:
                for client in [client for clients in self._groups.get(name, {}).values() for client in clients]:
                    self._leave(self._subscriptions[client], lite)
                    self.on_revoked(client, lite)
                self.drop(name)
        self._timer = self._clock.call_later(SCAN_INTERVAL, self._scan)

    def drop(self, name: str) -> None:
        """Delete a lite topic."""
        self._written.pop(name, None)
        if name in self._broker.store.topics:
            self._broker.store.delete_topic(name)

    # -- subscriptions

    def subscribe(
        self, client: str, group: str, parent: Topic, action: Action, lites: Iterable[str], version: int = 0
    ) -> None:
        """Change what a client reads.

        Raises:
            MessagingError: ILLEGAL_LITE_TOPIC, LITE_SUBSCRIPTION_QUOTA.
        """
        if parent.config.type != "LITE":
            raise MessagingError(Reason.ILLEGAL_LITE_TOPIC, f"topic {parent.name} is not of type LITE")
        names = dict.fromkeys(lites)
        for lite in names:
            check_lite(lite)
        current = self._subscriptions.get(client)
        if current is not None and (current.group, current.parent) != (group, parent.name):
            self.forget(client)
            current = None
        if current is not None and version and version < current.version:
            return  # overtaken by a later one
        if action == "clear":
            self.forget(client)
            return
        if current is None:
            current = self._subscriptions[client] = Subscription(client, group, parent.name)
        current.version, current.seen = version or current.version, self._clock.monotonic()
        if action == "remove":
            for lite in names:
                self._leave(current, lite)
            return
        kept = names if action == "set" else {**current.names, **names}
        if len(kept) > SUBSCRIPTION_QUOTA:
            raise MessagingError(
                Reason.LITE_SUBSCRIPTION_QUOTA, f"a client subscribes to {SUBSCRIPTION_QUOTA} lite topics at most"
            )
        for lite in [lite for lite in current.names if lite not in kept]:
            self._leave(current, lite)
        for lite in names:
            self._join(current, lite)

    def forget(self, client: str) -> None:
        """A client is gone."""
        found = self._subscriptions.get(client)
        if found is not None:
            for lite in list(found.names):
                self._leave(found, lite)
            del self._subscriptions[client]

    def _join(self, subscription: Subscription, lite: str) -> None:
        name = lite_name(subscription.parent, lite)
        members = self._groups.setdefault(name, {}).setdefault(subscription.group, {})
        config = self._broker.store.groups.get(subscription.group)
        if config is not None and config.attributes.get(MODEL, "").lower() == "exclusive":
            for other in [other for other in members if other != subscription.client]:
                self._leave(self._subscriptions[other], lite)
                self.on_revoked(other, lite)
            members = self._groups.setdefault(name, {}).setdefault(subscription.group, {})
        subscription.names[lite] = None
        members[subscription.client] = None
        self.mark(subscription.group, name)

    def _leave(self, subscription: Subscription, lite: str) -> None:
        subscription.names.pop(lite, None)
        name = lite_name(subscription.parent, lite)
        groups = self._groups.get(name, {})
        members = groups.get(subscription.group, {})
        members.pop(subscription.client, None)
        if not members:
            self.unmark(subscription.group, name)
            groups.pop(subscription.group, None)
            if not groups:
                self._groups.pop(name, None)

    # -- what may have something

    def written(self, name: str) -> list[str]:
        """A message came: the groups that read it."""
        self._written[name] = self._clock.time_ms()
        groups = list(self._groups.get(name, ()))
        for group in groups:
            self.mark(group, name)
        return groups

    def mark(self, group: str, name: str) -> None:
        """Something may be there for a group in a lite topic."""
        self.pending.setdefault(group, {})[name] = None

    def unmark(self, group: str, name: str) -> None:
        """Nothing is there, until something happens."""
        pending = self.pending.get(group)
        if pending is not None:
            pending.pop(name, None)
            if not pending:
                del self.pending[group]

    def candidates(self, client: str, group: str, parent: str) -> list[Topic]:
        """The lite topics a client subscribed to that may have something, the longest waiting first."""
        subscription = self._subscriptions.get(client)
        if subscription is None or (subscription.group, subscription.parent) != (group, parent):
            return []
        found = []
        for name in list(self.pending.get(group, ())):
            if split_lite(name)[0] == parent and split_lite(name)[1] in subscription.names:
                topic = self._broker.store.topics.get(name)
                if topic is not None:
                    found.append(topic)
                else:
                    self.unmark(group, name)  # its first message will be what happens to it
        return found


def lite_name(parent: str, lite: str) -> str:
    """The name in the broker, which no client can use: it has a character no topic may have."""
    return f"{LITE_PREFIX}{parent}${lite}"


def check_lite(lite: str) -> None:
    """Refuse a name no lite topic may have.

    Raises:
        MessagingError: ILLEGAL_LITE_TOPIC.
    """
    if not 1 <= len(lite) <= NAME_LIMIT or not _NAME.fullmatch(lite):
        raise MessagingError(
            Reason.ILLEGAL_LITE_TOPIC, f"a lite topic's name has 1 to {NAME_LIMIT} characters of a-z A-Z 0-9 _ -"
        )
