"""The Knative Pod Autoscaler's decision, exactly as upstream computes it.

`Autoscaler.decide` takes window averages and the number of ready pods and gives the wanted number of pods and the *excess
burst capacity*, which tells whether requests must pass the activator. Its state is panic mode and the delay window of
scale-downs; time is a parameter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from sampan.parts.serving.autoscaling.settings import RevisionSettings


class Sample(NamedTuple):
    """Averages of the scaling metric over both windows, all pods together."""

    stable: float
    panic: float


class Decision(NamedTuple):
    """What the autoscaler wants."""

    pods: int
    """-1: no decision, there is no data."""
    excess_burst_capacity: int
    panicking: bool = False


@dataclass(slots=True)
class Autoscaler:
    """The decider of one revision."""

    settings: RevisionSettings
    panic_since: float | None = None
    max_panic_pods: int = 0
    _wants: list[tuple[float, int]] = field(default_factory=list)
    """(when, wanted) within the scale-down delay."""

    @staticmethod
    def create(settings: RevisionSettings, ready: int, now: float) -> Autoscaler:
        """A fresh decider. One that finds pods running starts in panic, so that a restart never scales down blindly."""
        if ready > 1:
            return Autoscaler(settings, panic_since=now, max_panic_pods=ready)
        return Autoscaler(settings)

    def initial(self) -> Decision:
        """What stands before the first decision."""
        settings = self.settings
        return Decision(-1, math.floor(settings.initial_scale * settings.total - settings.target_burst_capacity))

    def decide(self, sample: Sample | None, ready: int, now: float, *, reachable: bool = True) -> Decision:
        """One evaluation; ``sample`` None means no data at all."""
        if sample is None:
            return Decision(-1, 0)
        settings = self.settings
        counted = max(1, ready)
        up = math.ceil(settings.max_scale_up_rate * counted)
        down = math.floor(counted / settings.max_scale_down_rate) if reachable else 0
        raw_stable = math.ceil(sample.stable / settings.target)
        raw_panic = math.ceil(sample.panic / settings.target)
        stable = min(max(raw_stable, down), up)
        panic = min(max(raw_panic, down), up)
        if settings.activation_scale > 1:
            if raw_stable > 0:
                stable = max(stable, settings.activation_scale)
            if raw_panic > 0:
                panic = max(panic, settings.activation_scale)
        self._update_panic(raw_panic / counted >= settings.panic_threshold, now)
        wanted = stable
        if self.panic_since is not None:
            self.max_panic_pods = max(self.max_panic_pods, stable, panic)
            wanted = self.max_panic_pods
        if reachable and settings.scale_down_delay > 0:
            wanted = self._delayed(wanted, now)
        return Decision(wanted, self._excess_burst_capacity(ready, sample.panic), self.panic_since is not None)

    def _update_panic(self, over: bool, now: float) -> None:
        if over:
            self.panic_since = now
        elif self.panic_since is not None and self.panic_since + self.settings.window < now:
            self.panic_since = None
            self.max_panic_pods = 0

    def _delayed(self, wanted: int, now: float) -> int:
        """The most that was wanted within the scale-down delay."""
        self._wants = [one for one in self._wants if one[0] > now - self.settings.scale_down_delay and one[1] > wanted]
        self._wants.append((now, wanted))
        return self._wants[0][1]

    def _excess_burst_capacity(self, ready: int, panic: float) -> int:
        burst = self.settings.target_burst_capacity
        if burst == 0:
            return 0
        if burst < 0:
            return -1
        return math.floor(ready * self.settings.total - burst - panic)


def within_bounds(wanted: int, settings: RevisionSettings, *, reachable: bool, initialized: bool) -> int:
    """The wanted number between the revision's bounds; ``initialized``: it has reached its initial scale once."""
    low = settings.min_scale if reachable else 0
    if reachable and not initialized:
        low = max(low, settings.initial_scale)
    wanted = max(wanted, low)
    return min(wanted, settings.max_scale) if settings.max_scale else wanted


def activators(ready: int, settings: RevisionSettings, activator_capacity: float) -> int:
    """How many activators a revision's traffic should pass, at least two."""
    if settings.target_burst_capacity == 0:
        return 2
    if settings.target_burst_capacity < 0:
        return max(2, math.ceil(ready * settings.total / activator_capacity))
    return max(2, math.ceil((ready * settings.total + settings.target_burst_capacity) / activator_capacity))
