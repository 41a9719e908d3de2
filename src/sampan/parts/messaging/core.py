"""The broker put together: store, delivery, held messages and clients, wired and with one life. Fronts stand on this."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from sampan.kernel.clock import Clock, Timer
from sampan.kernel.tasks import Tasks
from sampan.parts.messaging.access import Access, Policy, User
from sampan.parts.messaging.broker import Broker, Limits
from sampan.parts.messaging.clients import Client, Clients
from sampan.parts.messaging.consumption import Consumption
from sampan.parts.messaging.held import HeldMessages
from sampan.parts.messaging.lite import LiteTopics
from sampan.parts.messaging.record import Message
from sampan.parts.messaging.store import Half, Store

RETENTION_INTERVAL = 60.0
"""Seconds between looks for segments to delete."""


class Retention(msgspec.Struct, frozen=True):
    """How long messages are kept, consumed or not."""

    hours: float = 72.0
    max_bytes: int = 1 << 40


class Core:
    """A whole broker without a protocol."""

    def __init__(
        self,
        directory: Path,
        clock: Clock,
        tasks: Tasks,
        *,
        limits: Limits | None = None,
        retention: Retention | None = None,
        segment_bytes: int = 256 << 20,
        sync: bool = True,
        reserve_bytes: int = 0,
        name: str = "sampan",
    ) -> None:
        self.clock = clock
        self.tasks = tasks
        self._retention = retention or Retention()
        self.store = Store(directory, clock, tasks, segment_bytes=segment_bytes, sync=sync, reserve_bytes=reserve_bytes)
        self.broker = Broker(self.store, clock, limits or Limits(), name=name)
        self.lite = LiteTopics(self.broker, clock)
        self.consumption = Consumption(self.broker, self.lite, clock, tasks)
        self.held = HeldMessages(self.broker, clock, tasks)
        self.clients = Clients(clock)
        self.access = Access()
        self.replayed = 0
        self._retaining: Timer | None = None

    async def start(self) -> None:
        """Recover and begin to work.

        Raises:
            StorageError: the files are damaged.
        """
        self.replayed = await asyncio.to_thread(self.store.open)
        for (kind, _), data in self.store.definitions.items():
            if kind == "user":
                self.access.set_user(msgspec.convert(data, User))
            elif kind == "policy":
                policy = msgspec.convert(data, Policy)
                self.access.policies[policy.user] = policy
        self.store.on_messages = self.consumption.wake
        self.store.on_timers = self.held.watch
        self.consumption.alive = self.lite.alive = self.clients.alive
        self.clients.on_gone = self._gone
        self.held.ask = self._ask
        self.lite.on_revoked = self._revoke
        self.store.start()
        self.lite.start()
        self.consumption.start()
        self.held.start()
        self.clients.start()
        self._retaining = self.clock.call_later(RETENTION_INTERVAL, self._retain)

    async def stop(self) -> None:
        """Write everything out and close; no timer of this core fires afterwards."""
        if self._retaining is not None:
            self._retaining.cancel()
        self.clients.stop()
        self.held.stop()
        self.consumption.stop()
        self.lite.stop()
        await self.store.stop()

    def set_user(self, user: User) -> None:
        """Add or replace a user, durably."""
        self.access.set_user(user)
        self.store.define("user", user.name, msgspec.to_builtins(user))

    def remove_user(self, name: str) -> None:
        """Delete a user and its policy, durably."""
        self.access.remove_user(name)
        self.store.define("user", name, None)
        self.store.define("policy", name, None)

    def set_policy(self, policy: Policy) -> None:
        """Set a user's policy, durably."""
        self.access.policies[policy.user] = policy
        self.store.define("policy", policy.user, msgspec.to_builtins(policy))

    def remove_policy(self, user: str) -> None:
        """Delete a user's policy, durably."""
        self.access.policies.pop(user, None)
        self.store.define("policy", user, None)

    def _gone(self, client: Client) -> None:
        self.consumption.release(client.id, client.group)
        if self.clients.get(client.id) is None:
            self.lite.forget(client.id)

    def _revoke(self, client_id: str, lite: str) -> None:
        client = self.clients.get(client_id)
        if client is not None and client.revoke is not None:
            client.revoke(lite)

    def _ask(self, half: Half, message: Message) -> bool:
        return any(
            producer.ask is not None and producer.ask(message, half.id)
            for producer in self.clients.producers(half.topic)
        )

    def _retain(self) -> None:
        older_than_ms = self.clock.time_ms() - int(self._retention.hours * 3_600_000)
        self.store.retain(older_than_ms=older_than_ms, max_bytes=self._retention.max_bytes)
        self._retaining = self.clock.call_later(RETENTION_INTERVAL, self._retain)
