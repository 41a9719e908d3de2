"""The autoscalers of all revisions: samples in, decisions out.

Samples come from two places and add up: Envoy's load reports (requests under way at each pod, requests finished) and the
gate (requests waiting while a revision is cold or full). A revision whose pods are ready but idle counts as reporting zero, as
scraping its pods would; one without pods and without waiting requests reports nothing, and gets no decision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sampan.kernel.clock import Clock
from sampan.kube.objects import Key
from sampan.parts.serving.autoscaling.kpa import Autoscaler, Decision, Sample
from sampan.parts.serving.autoscaling.settings import RevisionSettings
from sampan.parts.serving.autoscaling.window import Window

TICK = 2.0
"""Seconds between evaluations."""


@dataclass(slots=True)
class _Windows:
    stable: Window
    panic: Window

    @staticmethod
    def of(settings: RevisionSettings) -> _Windows:
        return _Windows(Window(settings.window), Window(settings.panic_window))

    def add(self, now: float, value: float) -> None:
        self.stable.add(now, value)
        self.panic.add(now, value)


@dataclass(slots=True)
class _Entry:
    settings: RevisionSettings
    autoscaler: Autoscaler
    concurrency: _Windows
    rate: _Windows
    decision: Decision
    evaluated: float = float("-inf")
    last_traffic: float = float("-inf")
    sampled: float = field(default=float("-inf"))


class Scaler:
    """Deciders by revision."""

    def __init__(self, clock: Clock, poke: Callable[[Key], None]) -> None:
        """``poke(key)`` asks for an evaluation at once."""
        self._clock = clock
        self._poke = poke
        self._entries: dict[Key, _Entry] = {}

    def ensure(self, key: Key, settings: RevisionSettings, ready: int) -> None:
        """Have a decider with these settings; changed windows start over, panic state is kept."""
        entry = self._entries.get(key)
        if entry is not None and entry.settings == settings:
            return
        if entry is not None and (entry.settings.window, entry.settings.panic_window) == (
            settings.window,
            settings.panic_window,
        ):
            entry.settings = entry.autoscaler.settings = settings
            return
        autoscaler = Autoscaler.create(settings, ready, self._clock.monotonic())
        windows = _Windows.of(settings), _Windows.of(settings)
        self._entries[key] = _Entry(settings, autoscaler, *windows, autoscaler.initial())

    def forget(self, key: Key) -> None:
        """The revision is gone."""
        self._entries.pop(key, None)

    def served(self, key: Key, in_progress: float, finished: int, seconds: float) -> None:
        """A load report: requests under way at pods and requests begun over the last ``seconds``."""
        entry = self._entries.get(key)
        if entry is None:
            return
        now = self._clock.monotonic()
        entry.concurrency.add(now, in_progress * seconds)
        entry.rate.add(now, finished)
        entry.sampled = now
        if in_progress or finished:
            entry.last_traffic = now

    def waiting(self, key: Key, count: float, seconds: float) -> None:
        """Requests that waited at the gate over the last ``seconds``."""
        entry = self._entries.get(key)
        if entry is None:
            return
        now = self._clock.monotonic()
        entry.concurrency.add(now, count * seconds)
        entry.sampled = now
        if count:
            entry.last_traffic = now

    def first(self, key: Key) -> None:
        """A request came to a revision without pods: count it as one for a second, and evaluate at once."""
        entry = self._entries.get(key)
        if entry is None:
            return
        now = self._clock.monotonic()
        entry.concurrency.add(now, 1.0)
        entry.rate.add(now, 1)
        entry.sampled = entry.last_traffic = now
        entry.evaluated = float("-inf")
        self._poke(key)

    def idle_since(self, key: Key) -> float:
        """Monotonic time of the last sign of traffic; minus infinity before any."""
        entry = self._entries.get(key)
        return entry.last_traffic if entry is not None else float("-inf")

    def decide(self, key: Key, ready: int, *, reachable: bool) -> Decision:
        """The decision in force, evaluated anew when its time has come."""
        entry = self._entries[key]
        now = self._clock.monotonic()
        if now - entry.evaluated < TICK:
            return entry.decision
        entry.evaluated = now
        windows = entry.rate if entry.settings.metric == "rps" else entry.concurrency
        if ready:
            windows.add(now, 0.0)
        sample = None
        if windows.stable.is_empty(now):
            if entry.last_traffic == float("-inf"):
                return entry.decision  # there never was data: what stood before stays
            sample = Sample(0.0, 0.0)  # a whole window without a pod or a request: nothing is wanted
        else:
            weighted = entry.settings.weighted
            sample = Sample(
                windows.stable.average(now, weighted=weighted), windows.panic.average(now, weighted=weighted)
            )
        entry.decision = entry.autoscaler.decide(sample, ready, now, reachable=reachable)
        return entry.decision
