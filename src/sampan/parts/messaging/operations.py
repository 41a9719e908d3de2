"""What an operator asks of the broker: definitions, peeking, lag, resets, dead letters, users, and a message's whole path.

Plain methods over plain data, so that the CLI, the console and the admin plane of old clients say the same. The path of a
message is read from the log itself, which holds every lease and acknowledgement; nothing is recorded on the side for it.
"""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Any

import msgspec

from sampan.parts.messaging import record, validation
from sampan.parts.messaging.access import Entry, Policy, User
from sampan.parts.messaging.consumption import Consumption
from sampan.parts.messaging.core import Core
from sampan.parts.messaging.errors import MessagingError, Reason
from sampan.parts.messaging.record import Message
from sampan.parts.messaging.storage import frames
from sampan.parts.messaging.storage.log import Kind
from sampan.parts.messaging.topology import (
    DLQ_PREFIX,
    LITE_PREFIX,
    Backoff,
    GroupConfig,
    Topic,
    TopicConfig,
    split_lite,
)

PEEK_LIMIT = 1000
PATH_BYTES = 2 << 30
"""How much log is searched for what happened to a message after it was stored."""


class Operations:
    """Everything an operator may ask. Methods raise `MessagingError`."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._broker = core.broker
        self._store = core.store

    @property
    def _consumption(self) -> Consumption:
        return self._core.consumption

    # -- topics and groups

    async def topics(self) -> list[dict[str, Any]]:
        """Every topic with its totals."""
        named = [(name, topic) for name, topic in self._store.topics.items() if not name.startswith(LITE_PREFIX)]
        return [self._topic_row(topic) for _, topic in sorted(named)]

    async def create_topic(
        self,
        name: str,
        type: str = "MIXED",
        queues: int = 0,
        permission: int = 6,
        attributes: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Create or change a topic."""
        config = msgspec.convert(
            {
                "name": name,
                "type": type,
                "queues": queues or self._broker.limits.default_queues,
                "permission": permission,
                "attributes": attributes or {},
            },
            TopicConfig,
        )
        future = _Outcome()
        topic = self._broker.create_topic(config, future)
        await future.wait()
        return self._topic_row(topic)

    async def delete_topic(self, name: str) -> dict[str, Any]:
        """Delete a topic and its messages."""
        future = _Outcome()
        self._broker.delete_topic(name, future)
        await future.wait()
        return {"deleted": name}

    async def groups(self) -> list[dict[str, Any]]:
        """Every consumer group with its total lag."""
        rows = []
        for name, config in sorted(self._store.groups.items()):
            lag = self._broker.lag(name)
            rows.append(
                {
                    "group": name,
                    "orderly": config.orderly,
                    "max_retries": config.max_retries,
                    "consume": config.consume,
                    "topics": sorted({row["topic"] for row in lag}),
                    "members": len(self._core.clients.consumers(name)),
                    "lag": sum(row["lag"] for row in lag),
                    "inconsistent": self._core.clients.inconsistent.get(name, ""),
                }
            )
        return rows

    async def create_group(
        self,
        name: str,
        orderly: bool | None = None,
        max_retries: int = 16,
        consume: bool = True,
        backoff: dict[str, Any] | None = None,
        attributes: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Create or change a consumer group."""
        future = _Outcome()
        delays = msgspec.convert(backoff, Backoff) if backoff is not None else Backoff()
        config = GroupConfig(
            name,
            orderly=orderly,
            max_retries=max_retries,
            consume=consume,
            backoff=delays,
            attributes=attributes or {},
        )
        self._broker.create_group(config, future)
        await future.wait()
        return {"group": name}

    async def delete_group(self, name: str) -> dict[str, Any]:
        """Delete a consumer group and its progress."""
        future = _Outcome()
        self._broker.delete_group(name, future)
        await future.wait()
        return {"deleted": name}

    async def clients(self) -> list[dict[str, Any]]:
        """Who is connected."""
        return [
            {
                "id": client.id,
                "role": client.role,
                "mode": client.mode,
                "language": client.language,
                "version": client.version,
                "group": client.group,
                "topics": sorted(client.topics or client.subscriptions),
                "connected": client.connected,
            }
            for client in self._core.clients
        ]

    def _topic_row(self, topic: Topic) -> dict[str, Any]:
        lites = self._core.lite.lites(topic.name) if topic.config.type == "LITE" else []
        row = {"lite_topics": len(lites)} if topic.config.type == "LITE" else {}
        return {
            **row,
            "topic": topic.name,
            "type": topic.config.type,
            "queues": topic.config.queues,
            "permission": topic.config.permission,
            "messages": sum(queue.maximum - queue.minimum for one in (topic, *lites) for queue in one.queues),
            "offsets": [[queue.minimum, queue.maximum] for queue in topic.queues],
        }

    # -- messages

    async def send(
        self,
        topic: str,
        body: str,
        tag: str = "",
        keys: list[str] | None = None,
        group: str = "",
        delay_seconds: float = 0,
        properties: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Send one message."""
        from sampan.parts.messaging.client import message_id

        clock, limits = self._broker.clock, self._broker.limits
        target = self._broker.topic(topic, create=True)
        values = dict(properties or {})
        values["UNIQ_KEY"] = message_id(clock)
        for name, value in (("TAGS", tag), ("KEYS", " ".join(keys or ())), (record.SHARDING_KEY, group)):
            if value:
                values[name] = value
        message = Message(topic, body.encode(), values, born_ms=clock.time_ms())
        validation.check_body(message.body, limits)
        validation.check_properties(properties or {}, len(tag) + sum(map(len, keys or ())), limits)
        validation.check_keys(keys or ())
        if tag:
            validation.check_tag(tag)
        if group:
            validation.check_group(group, limits)
        future = _Outcome()
        self._broker.check_type(target, "DELAY" if delay_seconds else "FIFO" if group else "NORMAL")
        if delay_seconds > 0:
            due_ms = clock.time_ms() + int(delay_seconds * 1000)
            values[record.DELIVER_MS] = str(due_ms)
            self._broker.hold(message, target, due_ms, future)
        else:
            self._broker.send(message, target, record.encode_properties(values), future)
        await future.wait()
        return {"id": message.id, "topic": topic, "queue": message.queue_id, "offset": message.queue_offset}

    async def peek(self, topic: str, count: int = 10, queue: int = -1) -> list[dict[str, Any]]:
        """The newest messages of a topic (or of one queue), oldest first, without consuming them."""
        found = self._broker.topic(topic)
        lites = self._core.lite.lites(topic) if found.config.type == "LITE" and queue < 0 else []
        queues = found.readable() if queue < 0 else [found.queues[queue]] if queue < len(found.queues) else []
        count = max(1, min(count, PEEK_LIMIT))
        messages: list[Message] = []
        for one in [*queues, *(lite.queues[0] for lite in lites)]:
            offset = max(one.minimum, one.maximum - count)
            while offset < one.maximum:
                entries = self._store.entries(one, offset, one.maximum - offset)
                if not entries:
                    break
                for entry in entries:
                    messages.append(record.decode(await self._store.read(entry.position, entry.size)))
                offset = entries[-1].offset + 1
        messages.sort(key=lambda message: (message.store_ms, message.position))
        return [_view(message) for message in messages[-count:]]

    async def lag(self, group: str) -> list[dict[str, Any]]:
        """A group's position in every queue."""
        self._broker.group(group, create=False)
        return self._broker.lag(group)

    async def reset(self, group: str, topic: str, to: str | int = "latest", queue: int = -1) -> list[dict[str, Any]]:
        """Let a group read from ``earliest``, ``latest``, a time (ms since the epoch), or (with ``queue``) ``@offset``."""
        found = self._broker.topic(topic)
        rows = []
        for one in found.readable() if queue < 0 else [found.queues[queue]]:
            if to == "earliest":
                offset = one.minimum
            elif to == "latest":
                offset = one.maximum
            elif isinstance(to, str) and to.startswith("@") and to[1:].isdecimal():
                offset = int(to[1:])
            else:
                try:
                    time_ms = int(to)
                except ValueError:
                    raise MessagingError(
                        Reason.BAD_REQUEST, "reset to earliest, latest, a time in ms since the epoch, or @offset"
                    ) from None
                offset = await self._broker.offset_at(found, one.id, time_ms)
            future = _Outcome()
            self._consumption.reset(group, found, one.id, offset, future)
            await future.wait()
            rows.append({"topic": topic, "queue": one.id, "offset": offset})
        return rows

    # -- dead letters

    async def dead_letters(self, group: str, count: int = 100) -> list[dict[str, Any]]:
        """A group's dead letters, oldest first."""
        self._broker.group(group, create=False)
        if DLQ_PREFIX + group not in self._store.topics:
            return []
        return await self.peek(DLQ_PREFIX + group, count)

    async def replay(self, group: str, ids: list[str] | None = None) -> dict[str, Any]:
        """Send a group's dead letters (all, or these original ids) to their topics again. They also stay where they are."""
        self._broker.group(group, create=False)
        replayed, missing = [], set(ids or ())
        dlq = self._store.topics.get(DLQ_PREFIX + group)
        for one in dlq.queues if dlq is not None else ():
            offset = one.minimum
            while offset < one.maximum:
                entries = self._store.entries(one, offset, 64)
                if not entries:
                    break
                for entry in entries:
                    message = record.decode(await self._store.read(entry.position, entry.size))
                    if ids is not None and message.id not in ids:
                        continue
                    target = self._store.topics.get(message.properties.pop(record.DLQ_TOPIC, ""))
                    lite = message.properties.get(record.LITE_TOPIC)
                    if target is not None and lite is not None and target.config.type == "LITE":
                        target = self._core.lite.topic(target, lite, create=True)
                    message.properties.pop(record.DLQ_ID, None)
                    if target is None:
                        continue
                    message.topic, message.reconsume = target.name, 0
                    future = _Outcome()
                    self._broker.send(message, target, record.encode_properties(message.properties), future)
                    await future.wait()
                    replayed.append(message.id)
                    missing.discard(message.id)
                offset = entries[-1].offset + 1
        return {"replayed": replayed, "missing": sorted(missing)}

    # -- paths

    async def trace(self, key: str, topic: str = "") -> list[dict[str, Any]]:
        """Every message with this id or key, and what happened to it, in order."""
        paths = []
        for message in await self._store.find(key, topic=topic or None):
            events: list[dict[str, Any]] = [{"event": "born", "at_ms": message.born_ms, "host": message.born_host[0]}]
            held = await self._held_state(message)
            if held is not None:
                events.append(held)
            else:
                events.append({"event": "stored", "at_ms": message.store_ms, "queue": message.queue_id})
                start = message.position
                stop = min(self._store.log.durable, start + PATH_BYTES)
                events += await asyncio.to_thread(self._events, message, start, stop)
                if stop < self._store.log.durable:
                    events.append({"event": "truncated", "at_ms": 0, "searched_bytes": PATH_BYTES})
            paths.append({**_view(message), "events": events})
        return paths

    async def _held_state(self, message: Message) -> dict[str, Any] | None:
        """What became of a stored record that is not an ordinary message."""
        due = message.properties.get(record.OUT_MS)
        if message.sys_flag & record.TRANSACTION_MASK == record.PREPARED:
            state = "open" if message.id in self._store.halves else "ended"
            return {"event": "half message", "at_ms": message.store_ms, "state": state}
        if due is None or message.prepared:
            return None
        waiting = message.position in self._store.releasing or self._store.timers.holds(int(due), message.position)
        return {
            "event": "delayed",
            "at_ms": message.store_ms,
            "until_ms": int(due),
            "state": "waiting" if waiting else "released or recalled",
        }

    def _events(self, message: Message, start: int, stop: int) -> list[dict[str, Any]]:
        """Leases and their ends after a position. For threads."""
        events: list[dict[str, Any]] = []
        where = message.topic, message.queue_id, message.queue_offset
        for _, kind, payload in self._store.log.scan(start - 12, stop):
            if kind == Kind.LEASE:
                lease = frames.decode(frames.Lease, payload)
                for item in lease.messages:
                    if (lease.topic, lease.queue, item.offset) == where and item.attempt:
                        events.append(
                            {
                                "event": "delivered",
                                "at_ms": lease.at_ms,
                                "group": lease.group,
                                "client": lease.client,
                                "attempt": item.attempt,
                                "until_ms": lease.visible_ms,
                            }
                        )
            elif kind == Kind.ACK:
                ack = frames.decode(frames.Ack, payload)
                if ack.topic == where[0] and where[1:] in ack.messages:
                    event = "dead letter" if ack.reason == "dead" else ack.reason or "acknowledged"
                    events.append({"event": event, "at_ms": ack.at_ms, "group": ack.group})
            elif kind == Kind.CHANGE:
                change = frames.decode(frames.Change, payload)
                if (change.topic, change.queue, change.offset) == where:
                    events.append(
                        {
                            "event": "invisible until",
                            "at_ms": change.at_ms,
                            "group": change.group,
                            "until_ms": change.visible_ms,
                        }
                    )
        return events

    # -- access control

    async def users(self) -> list[dict[str, Any]]:
        """Every user, without secrets."""
        return [
            {"name": user.name, "super": user.super, "enabled": user.enabled}
            for _, user in sorted(self._core.access.users.items())
        ]

    async def set_user(self, name: str, secret: str, super: bool = False, enabled: bool = True) -> dict[str, Any]:
        """Create or change a user."""
        if not name or "/" in name or "," in name or len(secret) < 8:
            raise MessagingError(
                Reason.BAD_REQUEST, "a user has a name without / and , and a secret of 8 characters or more"
            )
        self._core.set_user(User(name, secret, super, enabled))
        return {"user": name}

    async def delete_user(self, name: str) -> dict[str, Any]:
        """Delete a user and its policy."""
        if name not in self._core.access.users:
            raise MessagingError(Reason.NOT_FOUND, f"there is no user {name}")
        self._core.remove_user(name)
        return {"deleted": name}

    async def policies(self) -> list[dict[str, Any]]:
        """Every policy."""
        return [msgspec.to_builtins(policy) for _, policy in sorted(self._core.access.policies.items())]

    async def set_policy(self, user: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
        """Set a user's policy."""
        if user not in self._core.access.users:
            raise MessagingError(Reason.NOT_FOUND, f"there is no user {user}")
        rules = tuple(msgspec.convert(entry, Entry) for entry in entries)
        for rule in rules:
            if rule.resource != "*" and not rule.resource.startswith(("Topic:", "Group:")):
                raise MessagingError(
                    Reason.BAD_REQUEST, f"{rule.resource} is no resource; name Topic:NAME, Group:NAME or *"
                )
            for source in rule.sources:
                try:
                    ipaddress.ip_network(source, strict=False)
                except ValueError:
                    raise MessagingError(Reason.BAD_REQUEST, f"{source} is no address or network") from None
        self._core.set_policy(Policy(user, rules))
        return {"user": user}

    async def delete_policy(self, user: str) -> dict[str, Any]:
        """Delete a user's policy: the user may do nothing any more, unless it is a super user."""
        if user not in self._core.access.policies:
            raise MessagingError(Reason.NOT_FOUND, f"user {user} has no policy")
        self._core.remove_policy(user)
        return {"deleted": user}


class _Outcome:
    """A ``done`` one can await."""

    def __init__(self) -> None:
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __call__(self, error: MessagingError | None) -> None:
        if self._future.done():
            return
        if error is None:
            self._future.set_result(None)
        else:
            self._future.set_exception(error)

    async def wait(self) -> None:
        await self._future


def _view(message: Message) -> dict[str, Any]:
    user = {name: value for name, value in message.properties.items() if name not in record.RESERVED}
    return {
        "id": message.id,
        "topic": split_lite(message.topic)[0],
        "lite_topic": split_lite(message.topic)[1],
        "queue": message.queue_id,
        "offset": message.queue_offset,
        "tag": message.tag or "",
        "keys": message.keys,
        "group": message.group,
        "born_ms": message.born_ms,
        "stored_ms": message.store_ms,
        "properties": user,
        "origin_topic": message.properties.get(record.DLQ_TOPIC, ""),
        "origin_id": message.properties.get(record.DLQ_ID, ""),
        "body": message.body.decode("utf-8", "replace") if not message.sys_flag & record.COMPRESSED else "",
        "size": len(message.body),
    }
