"""Counters the broker keeps as plain integers, because a metric object a message would cost more than the message."""

from __future__ import annotations

from collections import defaultdict


class Statistics:
    """Totals since the start. Pairs are ``[messages, bytes]``."""

    def __init__(self) -> None:
        self.messages_in: dict[str, list[int]] = {}
        """By topic."""
        self.messages_out: dict[tuple[str, str], list[int]] = {}
        """By (topic, group)."""
        self.dead: dict[tuple[str, str], int] = defaultdict(int)
        """Messages sent to dead letter queues, by (topic, group)."""
        self.committed: dict[str, int] = defaultdict(int)
        self.rolled_back: dict[str, int] = defaultdict(int)
        self.timers_in = 0
        self.timers_out = 0
        self.refused: dict[str, int] = defaultdict(int)
        """Requests refused, by reason."""

    def sent(self, topic: str, size: int) -> None:
        """One message was accepted."""
        pair = self.messages_in.get(topic)
        if pair is None:
            pair = self.messages_in[topic] = [0, 0]
        pair[0] += 1
        pair[1] += size

    def delivered(self, topic: str, group: str, count: int, size: int) -> None:
        """Messages were handed to a consumer."""
        pair = self.messages_out.get((topic, group))
        if pair is None:
            pair = self.messages_out[topic, group] = [0, 0]
        pair[0] += count
        pair[1] += size
