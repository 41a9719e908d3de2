"""Counters the broker keeps as plain integers, because a metric object a message would cost more than the message."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict

MESSAGE_SIZES = (1 << 10, 4 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20)
"""Bounds of the buckets of message sizes, in bytes: the reference's."""
RPC_LATENCIES = (1.0, 3.0, 5.0, 7.0, 10.0, 100.0, 200.0, 400.0, 600.0, 800.0, 1_000.0, 3_000.0, 5_000.0, 30_000.0)
"""Bounds of the buckets of calls' latencies, in milliseconds."""
CREATION_LATENCIES = (10.0, 100.0, 1_000.0, 3_000.0, 5_000.0)
"""The same for creating topics and groups."""
DELAY_LATENCIES = (1.0, 10.0, 100.0, 1_000.0, 3_000.0, 5_000.0, 10_000.0)
"""How much later than wished a delayed message is delivered, in milliseconds."""
FINISH_LATENCIES = (100.0, 1_000.0, 5_000.0, 10_000.0, 60_000.0, 600_000.0, 3_600_000.0)
"""How long a transaction stays open, in milliseconds."""


class Histogram:
    """How often values fell between bounds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts as Prometheus wants them."""
        sums, seen = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            seen += count
            sums.append((bound, float(seen)))
        return sums


class Statistics:
    """Totals since the start. Pairs are ``[messages, bytes]``."""

    def __init__(self) -> None:
        self.messages_in: dict[str, list[int]] = {}
        """By topic."""
        self.sizes: dict[str, Histogram] = {}
        """Sizes of the bodies stored, by topic."""
        self.messages_out: dict[tuple[str, str], list[int]] = {}
        """By (topic, group)."""
        self.dead: dict[tuple[str, str], int] = defaultdict(int)
        """Messages sent to dead letter queues, by (topic, group)."""
        self.redelivered = 0
        """Deliveries that were not a message's first."""
        self.committed: dict[str, int] = defaultdict(int)
        self.rolled_back: dict[str, int] = defaultdict(int)
        self.finished: dict[str, Histogram] = {}
        """How long committed transactions were open, by topic."""
        self.timers_in: dict[str, int] = defaultdict(int)
        self.timers_out: dict[str, int] = defaultdict(int)
        """Delayed messages taken and released, by topic."""
        self.delays: dict[str, Histogram] = {}
        """How late delayed messages were, by topic."""
        self.refused: dict[str, int] = defaultdict(int)
        """Requests refused, by reason."""
        self.calls: dict[tuple[str, int], Histogram] = {}
        """Calls' latencies by (method, status code of the API)."""
        self.topic_creation = Histogram(CREATION_LATENCIES)
        self.group_creation = Histogram(CREATION_LATENCIES)

    def sent(self, topic: str, size: int) -> None:
        """One message was accepted."""
        pair = self.messages_in.get(topic)
        if pair is None:
            pair = self.messages_in[topic] = [0, 0]
            self.sizes[topic] = Histogram(MESSAGE_SIZES)
        pair[0] += 1
        pair[1] += size
        self.sizes[topic].observe(size)

    def delivered(self, topic: str, group: str, count: int, size: int) -> None:
        """Messages were handed to a consumer."""
        pair = self.messages_out.get((topic, group))
        if pair is None:
            pair = self.messages_out[topic, group] = [0, 0]
        pair[0] += count
        pair[1] += size

    def called(self, method: str, code: int, ms: float) -> None:
        """A call was answered."""
        found = self.calls.get((method, code))
        if found is None:
            found = self.calls[method, code] = Histogram(RPC_LATENCIES)
        found.observe(ms)

    def released(self, topic: str, late_ms: float) -> None:
        """A delayed message was delivered."""
        self.timers_out[topic] += 1
        if topic not in self.delays:
            self.delays[topic] = Histogram(DELAY_LATENCIES)
        self.delays[topic].observe(max(0.0, late_ms))

    def finish(self, topic: str, open_ms: float) -> None:
        """A transaction was committed."""
        self.committed[topic] += 1
        if topic not in self.finished:
            self.finished[topic] = Histogram(FINISH_LATENCIES)
        self.finished[topic].observe(max(0.0, open_ms))
