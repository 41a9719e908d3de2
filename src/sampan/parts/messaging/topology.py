"""Topics and consumer groups: their definitions, their names' rules, and the queues of each topic.

Definitions are what users declare (and what the log journals as JSON); a `Topic` adds what is known of its queues: the next
offset, what is visible and what still exists. Queue numbers are the broker-wide small integers the index uses; they are given
once and never reused, so a deleted and recreated topic starts with empty queues.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from sampan.parts.messaging.errors import MessagingError, Reason
from sampan.parts.messaging.record import java_hash, jump_hash

MessageType = Literal["NORMAL", "FIFO", "DELAY", "TRANSACTION", "LITE", "PRIORITY"]
TopicType = Literal["UNSPECIFIED", "NORMAL", "FIFO", "DELAY", "TRANSACTION", "LITE", "PRIORITY", "MIXED"]

NAME_LIMIT = 127
GROUP_LIMIT = 120
MAX_QUEUES = 1024
RETRY_PREFIX = "%RETRY%"
DLQ_PREFIX = "%DLQ%"
LITE_PREFIX = "%LMQ%$"
HALF_TOPIC = "RMQ_SYS_TRANS_HALF_TOPIC"
CHECK_LIMIT_TOPIC = "TRANS_CHECK_MAX_TIME_TOPIC"
TRACE_TOPIC = "RMQ_SYS_TRACE_TOPIC"
DEFAULT_TOPIC = "TBW102"
SYSTEM_TOPICS = frozenset(
    {
        DEFAULT_TOPIC,
        HALF_TOPIC,
        CHECK_LIMIT_TOPIC,
        "RMQ_SYS_TRANS_OP_HALF_TOPIC",
        "SCHEDULE_TOPIC_XXXX",
        "BenchmarkTest",
        "OFFSET_MOVED_EVENT",
        "SELF_TEST_TOPIC",
        "rmq_sys_wheel_timer",
        "rmq_sys_REVIVE_LOG",
    }
    - {"BenchmarkTest"}
)
"""Topics no client may use by name."""
_NAME = re.compile(r"[%|a-zA-Z0-9_-]+")

READABLE, WRITABLE = 4, 2

RETRY_DELAYS_MS = tuple(
    seconds * 1000
    for seconds in (1, 5, 10, 30, 60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 1200, 1800, 3600, 7200)
)
"""The customised back-off of a group that says nothing: the eighteen delay levels."""


class TopicConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a topic is declared to be."""

    name: str
    type: TopicType = "MIXED"
    queues: int = 8
    read_queues: int | None = None
    """Queues consumers see; None: as many as ``queues``."""
    permission: int = READABLE | WRITABLE
    attributes: dict[str, str] = {}

    @property
    def readable(self) -> int:
        """How many queues consumers see."""
        return (self.queues if self.read_queues is None else self.read_queues) if self.permission & READABLE else 0

    @property
    def writable(self) -> int:
        """How many queues producers see."""
        return self.queues if self.permission & WRITABLE else 0

    @property
    def accepts(self) -> tuple[MessageType, ...]:
        """The message types a producer may send; empty: unknown."""
        if self.type == "MIXED":
            return ("NORMAL", "FIFO", "DELAY", "TRANSACTION")
        return () if self.type == "UNSPECIFIED" else (self.type,)


class Backoff(msgspec.Struct, frozen=True):
    """How long a message waits before it is delivered again: a list of delays, or (empty list) exponential."""

    delays_ms: tuple[int, ...] = RETRY_DELAYS_MS
    initial_ms: int = 5_000
    max_ms: int = 7_200_000
    multiplier: float = 2.0

    def after(self, attempt: int) -> int:
        """Milliseconds to wait after the given attempt (1 is the first)."""
        if self.delays_ms:
            return self.delays_ms[min(attempt, len(self.delays_ms)) - 1]
        return int(min(self.max_ms, self.initial_ms * self.multiplier ** (attempt - 1)))


class GroupConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a consumer group is declared to be."""

    name: str
    orderly: bool | None = None
    """Messages of a message group one at a time, in order; None: when every topic it subscribes to is a FIFO topic."""
    max_retries: int = 16
    backoff: Backoff = Backoff()
    consume: bool = True
    broadcast: bool = True
    attributes: dict[str, str] = {}

    @property
    def max_attempts(self) -> int:
        return self.max_retries + 1


class Queue:
    """One queue of a topic."""

    __slots__ = ("id", "maximum", "minimum", "next", "number")

    def __init__(self, identifier: int, number: int) -> None:
        self.id = identifier
        self.number = number
        self.next = 0
        """The offset the next message will get."""
        self.maximum = 0
        """One past the newest visible offset."""
        self.minimum = 0
        """The oldest offset that still exists."""


class Topic:
    """A topic and its queues."""

    __slots__ = ("_turn", "config", "encoded", "label", "queues")

    def __init__(self, config: TopicConfig) -> None:
        self.config = config
        self.queues: list[Queue] = []
        self.encoded = config.name.encode()
        self.label = split_lite(config.name)[0]
        """What metrics count it under."""
        self._turn = 0

    @property
    def name(self) -> str:
        return self.config.name

    def place(self, group: str = "", priority: int | None = None) -> Queue:
        """The queue for a message: by its message group, by its priority in a PRIORITY topic, or in turn.

        Raises:
            MessagingError: FORBIDDEN, nothing is writable.
        """
        count = self.config.writable
        if count <= 0:
            raise MessagingError(Reason.FORBIDDEN, f"topic {self.name} is not writable")
        if priority is not None and self.config.type == "PRIORITY":
            return self.queues[min(priority, count - 1)]
        if group:
            return self.queues[jump_hash(java_hash(group), count)]
        self._turn += 1
        return self.queues[self._turn % count]

    def readable(self) -> list[Queue]:
        """The queues consumers see."""
        return self.queues[: self.config.readable]


def split_lite(name: str) -> tuple[str, str]:
    """``(parent, lite topic)`` of a lite topic's name in the broker; the lite topic is empty for other topics."""
    if not name.startswith(LITE_PREFIX):
        return name, ""
    parent, _, lite = name.removeprefix(LITE_PREFIX).rpartition("$")
    return parent, lite


def check_topic(name: str, *, system: bool = False) -> None:
    """Refuse a name no client may use.

    Raises:
        MessagingError: ILLEGAL_TOPIC.
    """
    if not name.strip():
        raise MessagingError(Reason.ILLEGAL_TOPIC, "the topic name is blank")
    if len(name) > NAME_LIMIT:
        raise MessagingError(Reason.ILLEGAL_TOPIC, f"the topic name is longer than {NAME_LIMIT} characters")
    if not _NAME.fullmatch(name):
        raise MessagingError(
            Reason.ILLEGAL_TOPIC, f"the topic name {name!r} has characters other than a-z A-Z 0-9 % | _ -"
        )
    if not system and name in SYSTEM_TOPICS:
        raise MessagingError(Reason.ILLEGAL_TOPIC, f"{name} is a system topic")


def check_group(name: str) -> None:
    """Refuse a name no group may have.

    Raises:
        MessagingError: ILLEGAL_GROUP.
    """
    if not name.strip():
        raise MessagingError(Reason.ILLEGAL_GROUP, "the consumer group name is blank")
    if len(name) > GROUP_LIMIT:
        raise MessagingError(Reason.ILLEGAL_GROUP, f"the consumer group name is longer than {GROUP_LIMIT} characters")
    if not _NAME.fullmatch(name):
        raise MessagingError(
            Reason.ILLEGAL_GROUP, f"the consumer group name {name!r} has characters other than a-z A-Z 0-9 % | _ -"
        )
