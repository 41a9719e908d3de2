"""The broker's core, whatever protocol its clients speak: definitions, sending, queries. Receiving is in `consumption`, held
messages in `held`.

Methods on the hot paths take a ``done`` callback instead of being coroutines: one task a message would cost more than the
message. ``done`` is called on the loop, after the frame is on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from sampan.kernel.clock import Clock
from sampan.parts.messaging import record
from sampan.parts.messaging.errors import MessagingError, Reason
from sampan.parts.messaging.record import Message
from sampan.parts.messaging.statistics import Histogram, Statistics
from sampan.parts.messaging.storage.log import Kind
from sampan.parts.messaging.store import Done, Store
from sampan.parts.messaging.topology import (
    DLQ_PREFIX,
    LITE_PREFIX,
    RETRY_PREFIX,
    GroupConfig,
    MessageType,
    Topic,
    TopicConfig,
    TopicType,
    check_group,
    check_topic,
)


class Limits(msgspec.Struct, frozen=True):
    """What a client may ask for; the defaults are the reference's. Times in milliseconds, sizes in bytes."""

    max_body_bytes: int = 4 << 20
    max_properties_bytes: int = 16 << 10
    max_properties: int = 128
    max_message_group_bytes: int = 64
    max_delay_ms: int = 259_200_000
    max_recovery_ms: int = 3_600_000
    max_batch: int = 32
    min_invisible_ms: int = 10_000
    max_invisible_ms: int = 43_200_000
    max_renew_ms: int = 10_800_000
    min_polling_ms: int = 5_000
    max_polling_ms: int = 20_000
    max_polls: int = 10_000
    """Parked receive calls in all."""
    max_in_flight: int = 20_000
    """Messages one group may hold of one queue without being done with them."""
    max_unwritten: int = 64 << 20
    """Bytes of messages that may wait for the disk; more are refused until it catches up."""
    max_topics: int = 100_000
    max_groups: int = 100_000
    validate_type: bool = True
    auto_create_topics: bool = True
    auto_create_groups: bool = True
    default_queues: int = 8
    recall: bool = True
    transaction_timeout_ms: int = 6_000
    transaction_check_interval_ms: int = 30_000
    transaction_max_checks: int = 15


class Broker:
    """Definitions, sending and queries over a `Store`."""

    def __init__(self, store: Store, clock: Clock, limits: Limits, *, name: str = "sampan") -> None:
        self.store = store
        self.clock = clock
        self.limits = limits
        self.name = name
        self.store_host: tuple[str, int] = ("127.0.0.1", 8081)
        """The address in offset ids; the part sets what it listens on."""
        self.statistics = Statistics()
        self.on_definition: list[Callable[[str, str], object]] = []
        """Called with ``(kind, name)`` after a topic or group was created, changed or deleted."""

    # -- definitions

    def topic(self, name: str, *, create: bool = False) -> Topic:
        """A topic by name, made as a MIXED topic where ``create`` and the settings allow it.

        Raises:
            MessagingError: ILLEGAL_TOPIC, TOPIC_NOT_FOUND.
        """
        topic = self.store.topics.get(name)
        if topic is not None and not name.startswith(LITE_PREFIX):
            return topic
        check_topic(name)  # a lite topic's inner name is no client's to use either
        if not create or not self.limits.auto_create_topics or name.startswith((RETRY_PREFIX, DLQ_PREFIX)):
            raise MessagingError(
                Reason.TOPIC_NOT_FOUND, f"topic {name} does not exist; create it or turn on auto-creation"
            )
        return self.create_topic(TopicConfig(name, queues=self.limits.default_queues))

    def create_topic(self, config: TopicConfig, done: Done | None = None) -> Topic:
        """Create or change a topic.

        Raises:
            MessagingError: ILLEGAL_TOPIC, BAD_REQUEST (queue counts), TOO_MANY_REQUESTS (too many topics).
        """
        check_topic(config.name, system=True)
        if not 1 <= config.queues <= 1024 or not 1 <= (config.read_queues or 1) <= 1024:
            raise MessagingError(Reason.BAD_REQUEST, f"topic {config.name}: a topic has 1 to 1024 queues")
        if config.name not in self.store.topics and len(self.store.topics) >= self.limits.max_topics:
            raise MessagingError(Reason.TOO_MANY_REQUESTS, f"there are {self.limits.max_topics} topics already")
        topic = self.store.define_topic(config, self._timed(self.statistics.topic_creation, done))
        self._defined("topic", config.name)
        return topic

    def delete_topic(self, name: str, done: Done | None = None) -> None:
        """Delete a topic.

        Raises:
            MessagingError: TOPIC_NOT_FOUND.
        """
        if name not in self.store.topics:
            raise MessagingError(Reason.TOPIC_NOT_FOUND, f"topic {name} does not exist")
        if self.store.topics[name].config.type == "LITE":
            prefix = f"{LITE_PREFIX}{name}$"
            for lite in [lite for lite in self.store.topics if lite.startswith(prefix)]:
                self.store.delete_topic(lite)
        self.store.delete_topic(name, done)
        self._defined("topic", name)

    def group(self, name: str, *, create: bool = True) -> GroupConfig:
        """A consumer group's definition, made with the defaults where ``create`` and the settings allow it.

        Raises:
            MessagingError: ILLEGAL_GROUP, GROUP_NOT_FOUND.
        """
        config = self.store.groups.get(name)
        if config is not None:
            return config
        check_group(name)
        if not create or not self.limits.auto_create_groups:
            raise MessagingError(Reason.GROUP_NOT_FOUND, f"consumer group {name} does not exist")
        config = GroupConfig(name)
        self.create_group(config)
        return config

    def create_group(self, config: GroupConfig, done: Done | None = None) -> None:
        """Create or change a consumer group.

        Raises:
            MessagingError: ILLEGAL_GROUP, BAD_REQUEST, TOO_MANY_REQUESTS (too many groups).
        """
        check_group(config.name)
        if config.max_retries < 0:
            raise MessagingError(Reason.BAD_REQUEST, f"group {config.name}: retries cannot be negative")
        if config.name not in self.store.groups and len(self.store.groups) >= self.limits.max_groups:
            raise MessagingError(
                Reason.TOO_MANY_REQUESTS, f"there are {self.limits.max_groups} consumer groups already"
            )
        self.store.define_group(config, self._timed(self.statistics.group_creation, done))
        self._defined("group", config.name)

    def delete_group(self, name: str, done: Done | None = None) -> None:
        """Delete a consumer group.

        Raises:
            MessagingError: GROUP_NOT_FOUND.
        """
        if name not in self.store.groups:
            raise MessagingError(Reason.GROUP_NOT_FOUND, f"consumer group {name} does not exist")
        self.store.delete_group(name, done)
        self._defined("group", name)

    def system_topic(self, name: str, *, queues: int = 1, type: TopicType = "UNSPECIFIED") -> Topic:
        """A topic of the broker's own (dead letters, retries), made when missing."""
        topic = self.store.topics.get(name)
        return topic or self.create_topic(TopicConfig(name, type, queues))

    def is_ordered(self, group: str, topic: str) -> bool:
        """Whether a group consumes a topic in order: as it says, or when it says nothing and the topic is FIFO or lite."""
        config = self.store.groups.get(group)
        if config is not None and config.orderly is not None:
            return config.orderly
        found = self.store.topics.get(topic)
        return found is not None and found.config.type in ("FIFO", "LITE")

    def _timed(self, histogram: Histogram, done: Done | None) -> Done:
        """``done`` that also counts how long it took."""
        began = self.clock.monotonic()

        def timed(error: MessagingError | None) -> None:
            histogram.observe((self.clock.monotonic() - began) * 1000)
            if done is not None:
                done(error)

        return timed

    def _defined(self, kind: str, name: str) -> None:
        for listener in self.on_definition:
            listener(kind, name)

    # -- sending

    def check_type(self, topic: Topic, type: MessageType) -> None:
        """Refuse a message type the topic does not accept.

        Raises:
            MessagingError: TYPE_MISMATCH.
        """
        accepts = topic.config.accepts
        if self.limits.validate_type and accepts and type not in accepts:
            raise MessagingError(
                Reason.TYPE_MISMATCH,
                f"topic {topic.name} takes {', '.join(accepts)} messages, not {type}; change its type or use another topic",
            )

    def send(self, message: Message, topic: Topic, properties: bytes, done: Done) -> None:
        """Store a message for immediate delivery; ``done`` when it is on disk. Fills in offset, position and times.

        Raises:
            MessagingError: FORBIDDEN, the topic is not writable; TOO_MANY_REQUESTS, the disk is far behind.
        """
        self._check_room()
        priority = message.properties.get(record.PRIORITY)
        queue = topic.place(
            message.properties.get(record.SHARDING_KEY, ""), int(priority) if priority is not None else None
        )
        message.store_host = self.store_host
        self.store.put(message, topic, queue, properties, done)
        self.statistics.sent(topic.label, len(message.body))

    def hold(self, message: Message, topic: Topic, due_ms: int, done: Done) -> None:
        """Store a message to be delivered at ``due_ms``.

        Raises:
            MessagingError: FORBIDDEN; ILLEGAL_DELIVERY_TIME, further ahead than allowed; TOO_MANY_REQUESTS.
        """
        self._check_room()
        if due_ms > self.clock.time_ms() + self.limits.max_delay_ms:
            raise MessagingError(
                Reason.ILLEGAL_DELIVERY_TIME,
                f"the delivery time is more than {self.limits.max_delay_ms // 1000} seconds ahead",
            )
        queue = topic.place(message.properties.get(record.SHARDING_KEY, ""))
        message.properties[record.OUT_MS] = str(due_ms)
        message.store_host = self.store_host
        properties = record.encode_properties(message.properties)
        self.store.put(message, topic, queue, properties, done, kind=Kind.TIMER, due_ms=due_ms)
        self.statistics.timers_in[topic.label] += 1
        self.statistics.sent(topic.label, len(message.body))

    def prepare(self, message: Message, topic: Topic, done: Done) -> None:
        """Store a transactional message, invisible until its transaction is committed.

        Raises:
            MessagingError: FORBIDDEN, the topic is not writable; TOO_MANY_REQUESTS, the disk is far behind.
        """
        self._check_room()
        immunity = message.properties.get(record.CHECK_IMMUNITY)
        wait_ms = int(immunity) * 1000 if immunity else self.limits.transaction_timeout_ms
        queue = topic.place(message.properties.get(record.SHARDING_KEY, ""))
        message.sys_flag |= record.PREPARED
        due_ms = self.clock.time_ms() + wait_ms
        message.properties[record.OUT_MS] = str(due_ms)
        message.store_host = self.store_host
        self.store.put(
            message,
            topic,
            queue,
            record.encode_properties(message.properties),
            done,
            kind=Kind.HALF,
            due_ms=due_ms,
        )
        self.statistics.sent(topic.label, len(message.body))

    def _check_room(self) -> None:
        """What producers make the broker hold is bounded, however slow the disk is."""
        log = self.store.log
        if log.end - log.durable > self.limits.max_unwritten:
            raise MessagingError(
                Reason.TOO_MANY_REQUESTS, "the disk does not keep up with the senders; try again later"
            )

    # -- queries

    async def offset_at(self, topic: Topic, queue_id: int, time_ms: int) -> int:
        """The offset of the first message of a queue stored at or after a time."""
        queue = topic.queues[queue_id]
        low, high = queue.minimum, queue.maximum
        while low < high:
            middle = (low + high) // 2
            entry = self.store.entries(queue, middle, 1)
            if not entry:
                low = middle + 1
                continue
            stored_ms = record.store_ms_of(await self.store.read(entry[0].position, entry[0].size))
            if stored_ms < time_ms:
                low = middle + 1
            else:
                high = middle
        return low

    def lag(self, group: str) -> list[dict[str, Any]]:
        """A group's position in every queue of the topics it has read."""
        rows: list[dict[str, Any]] = []
        for topic_name, progress in sorted(self.store.topics_of.get(group, {}).items()):
            topic = self.store.topics.get(topic_name)
            if topic is None:
                continue
            for queue in topic.readable():
                found = progress.queues.get(queue.id)
                committed = found.committed if found is not None else queue.minimum
                following = found.next if found is not None else queue.minimum
                held = len(found.held) if found is not None else 0
                rows.append(
                    {
                        "topic": topic_name,
                        "queue": queue.id,
                        "minimum": queue.minimum,
                        "maximum": queue.maximum,
                        "committed": committed,
                        "next": following,
                        "held": held,
                        "lag": queue.maximum - following + held,
                    }
                )
        return rows
