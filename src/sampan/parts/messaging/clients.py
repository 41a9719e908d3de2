"""Who is connected: producers and consumers by client id, what they declared, and how to reach them.

Fronts register clients here, so that the core can ask a live producer about a transaction and knows whether the client of a
renewed lease still exists, whatever protocol it speaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from sampan.kernel.clock import Clock, Timer
from sampan.parts.messaging.record import Message

Role = Literal["producer", "consumer"]

EXPIRY = 120.0
"""Seconds without a sign of life after which a client is forgotten."""
ABSENCE = 5.0
"""Seconds without a connection and a call after which a client's leases are no longer renewed."""
SCAN_INTERVAL = 5.0

AskTransaction = Callable[[Message, str], bool]
"""Sends a transaction check ``(message, transaction id)``; False when the connection is gone."""


@dataclass
class Client:
    """One client."""

    id: str
    role: Role
    protocol: str
    language: str = ""
    version: str = ""
    mode: str = ""
    """``push``, ``simple``, ``pull``, ``lite`` for consumers."""
    group: str = ""
    topics: frozenset[str] = frozenset()
    """Topics a producer declared."""
    subscriptions: dict[str, str] = field(default_factory=dict)
    """Filter expression by topic."""
    seen: float = 0.0
    connected: bool = False
    ask: AskTransaction | None = None
    notify: Callable[[], object] | None = None
    """Sends the client its settings again."""
    revoke: Callable[[str], object] | None = None
    """Tells the client that it no longer has a lite topic."""


class Clients:
    """The connected clients."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._clients: dict[str, Client] = {}
        self._producers: dict[str, dict[str, Client]] = {}
        self._timer: Timer | None = None
        self.on_gone: Callable[[Client], object] = lambda client: None
        """Called when a consumer's leases should end."""
        self.inconsistent: dict[str, str] = {}
        """Groups whose members subscribe to different things, and how they differ."""

    def start(self) -> None:
        """Begin to look for clients that went away."""
        self._timer = self._clock.call_later(SCAN_INTERVAL, self._scan)

    def stop(self) -> None:
        """Stop looking."""
        if self._timer is not None:
            self._timer.cancel()

    def register(self, client: Client) -> None:
        """Add or replace a client."""
        previous = self._clients.get(client.id)
        if previous is not None:
            self._forget_topics(previous)
        client.seen = self._clock.monotonic()
        self._clients[client.id] = client
        for topic in client.topics:
            self._producers.setdefault(topic, {})[client.id] = client
        if client.role == "consumer":
            self._check_consistency(client.group)

    def get(self, client_id: str) -> Client | None:
        return self._clients.get(client_id)

    def seen(self, client_id: str) -> Client | None:
        """Note a sign of life; the client if it is known."""
        client = self._clients.get(client_id)
        if client is not None:
            client.seen = self._clock.monotonic()
        return client

    def remove(self, client_id: str) -> Client | None:
        """The client said goodbye, or was gone for too long."""
        client = self._clients.pop(client_id, None)
        if client is not None:
            self._forget_topics(client)
            if client.role == "consumer":
                self._check_consistency(client.group)
                self.on_gone(client)
        return client

    def alive(self, client_id: str) -> bool:
        """Whether a client is connected, or was a moment ago."""
        client = self._clients.get(client_id)
        return client is not None and (client.connected or self._clock.monotonic() - client.seen < ABSENCE)

    def producers(self, topic: str) -> list[Client]:
        """Live producers that declared a topic, the most recently seen first."""
        found = [client for client in self._producers.get(topic, {}).values() if client.connected]
        return sorted(found, key=lambda client: -client.seen)

    def consumers(self, group: str) -> list[Client]:
        """The members of a group."""
        return [client for client in self._clients.values() if client.role == "consumer" and client.group == group]

    def __iter__(self) -> Iterator[Client]:
        return iter(list(self._clients.values()))

    def _forget_topics(self, client: Client) -> None:
        for topic in client.topics:
            producers = self._producers.get(topic)
            if producers is not None:
                producers.pop(client.id, None)
                if not producers:
                    del self._producers[topic]

    def _check_consistency(self, group: str) -> None:
        distinct: dict[tuple[tuple[str, str], ...], str] = {}
        for client in self.consumers(group):
            distinct.setdefault(tuple(sorted(client.subscriptions.items())), client.id)
        if len(distinct) > 1:
            self.inconsistent[group] = "; ".join(
                f"{client} subscribes to {', '.join(f'{topic} ({expression})' for topic, expression in subscribed)}"
                for subscribed, client in distinct.items()
            )
        else:
            self.inconsistent.pop(group, None)

    def _scan(self) -> None:
        now = self._clock.monotonic()
        for client in list(self._clients.values()):
            silent = now - client.seen
            if silent >= EXPIRY and not client.connected:
                self.remove(client.id)
            elif silent >= ABSENCE and not client.connected and client.role == "consumer":
                self.on_gone(client)
        self._timer = self._clock.call_later(SCAN_INTERVAL, self._scan)
