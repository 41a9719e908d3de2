"""The HorizontalPodAutoscaler's arithmetic (v2), as pure functions: metrics to a proposal, behaviour to a decision."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

TOLERANCE = 0.1
"""A usage ratio this close to 1 changes nothing."""
DOWNSCALE_WINDOW = 300.0
"""Seconds over which the highest recent proposal holds a scale-down back, unless the behaviour says otherwise."""

DEFAULT_UP: Mapping[str, Any] = {
    "stabilizationWindowSeconds": 0,
    "selectPolicy": "Max",
    "policies": [
        {"type": "Percent", "value": 100, "periodSeconds": 15},
        {"type": "Pods", "value": 4, "periodSeconds": 15},
    ],
}
DEFAULT_DOWN: Mapping[str, Any] = {
    "stabilizationWindowSeconds": DOWNSCALE_WINDOW,
    "selectPolicy": "Max",
    "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}],
}


class Sample(NamedTuple):
    """One pod as a metric sees it."""

    ready: bool
    value: int | None
    """The pod's usage; None: no sample."""


class Proposal(NamedTuple):
    """What one metric wants."""

    replicas: int
    value: float
    """Average usage over the pods that reported."""


def propose(
    current: int, target_average: float, samples: Sequence[Sample], *, ignores_unready: bool = True
) -> Proposal | None:
    """Replicas so that the average usage meets the target; None when no pod reported.

    Unready and unreported pods count as using nothing when scaling up and as using the target when scaling down, so that
    they only ever dampen the change.
    """
    ready = [one for one in samples if one.value is not None and (one.ready or not ignores_unready)]
    if not ready:
        return None
    total = sum(one.value or 0 for one in ready)
    average = total / len(ready)
    ratio = average / target_average
    missing = sum(one.value is None for one in samples)
    unready = sum(one.value is not None and not one.ready for one in samples) if ignores_unready else 0
    if not missing and not (unready and ratio > 1):
        if abs(1 - ratio) <= TOLERANCE:
            return Proposal(current, average)
        return Proposal(math.ceil(ratio * len(ready)), average)
    counted = len(ready) + missing
    if ratio < 1:
        total += int(missing * target_average)
    elif ratio > 1:
        counted += unready
    dampened = (total / counted) / target_average
    if abs(1 - dampened) <= TOLERANCE or (ratio < 1) != (dampened < 1):
        return Proposal(current, average)
    wanted = math.ceil(dampened * counted)
    if (dampened < 1 and wanted > current) or (dampened > 1 and wanted < current):
        return Proposal(current, average)
    return Proposal(wanted, average)


def propose_total(current: int, target_average: float, total: float) -> Proposal:
    """Replicas so that a metric's total, shared by all, meets an AverageValue target."""
    ratio = total / (target_average * max(1, current))
    if current and abs(1 - ratio) <= TOLERANCE:
        return Proposal(current, total / current)
    return Proposal(math.ceil(total / target_average), total / max(1, current))


def propose_value(current: int, ready: int, target: float, value: float) -> Proposal:
    """Replicas so that a metric's value meets a Value target, in proportion to the ready pods."""
    ratio = value / target
    if abs(1 - ratio) <= TOLERANCE:
        return Proposal(current, value)
    return Proposal(math.ceil(ratio * ready), value)


class Change(NamedTuple):
    """A past scaling event."""

    when: float
    replicas: int
    """By how many replicas (positive either way)."""


@dataclass(slots=True)
class Memory:
    """What an autoscaler remembers of its target."""

    proposals: list[tuple[float, int]] = field(default_factory=list)
    ups: list[Change] = field(default_factory=list)
    downs: list[Change] = field(default_factory=list)


class Decision(NamedTuple):
    """The replica count to set and what limited it, in the words of the conditions."""

    replicas: int
    able_reason: str
    able_message: str
    limited: bool
    limited_reason: str
    limited_message: str


def decide(spec: Mapping[str, Any], current: int, proposed: int, memory: Memory, now: float) -> Decision:
    """Apply stabilisation, rate policies and bounds; ``now`` is a monotonic reading. Updates ``memory``'s proposals."""
    behaviour = spec.get("behavior") or {}
    up = {**DEFAULT_UP, **_set(behaviour.get("scaleUp"))}
    down = {**DEFAULT_DOWN, **_set(behaviour.get("scaleDown"))}
    steady = _stabilise(up, down, current, proposed, memory, now)
    reason, message = "ReadyForNewScale", "recommended size matches current size"
    if steady < proposed:
        reason, message = (
            "ScaleUpStabilized",
            "recent recommendations were lower than current one, applying the lowest recent recommendation",
        )
    elif steady > proposed:
        reason, message = (
            "ScaleDownStabilized",
            "recent recommendations were higher than current one, applying the highest recent recommendation",
        )
    low, high = int(spec.get("minReplicas", 1)), int(spec["maxReplicas"])
    limited, why, text = False, "DesiredWithinRange", "the desired count is within the acceptable range"
    target = steady
    if target > current:
        rate = _up_limit(up, current, memory.ups, memory.downs, now)
        if target > max(rate, current):
            target, limited = max(rate, current), True
            why, text = "ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate"
    elif target < current:
        rate = _down_limit(down, current, memory.ups, memory.downs, now)
        if target < min(rate, current):
            target, limited = min(rate, current), True
            why, text = "ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate"
    if target > high:
        target, limited = high, True
        why, text = "TooManyReplicas", "the desired replica count is more than the maximum replica count"
    elif target < low:
        target, limited = low, True
        why, text = "TooFewReplicas", "the desired replica count is less than the minimum replica count"
    return Decision(target, reason, message, limited, why, text)


def _set(rules: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (rules or {}).items() if value is not None}


def _stabilise(
    up: Mapping[str, Any], down: Mapping[str, Any], current: int, proposed: int, memory: Memory, now: float
) -> int:
    horizon = max(up["stabilizationWindowSeconds"], down["stabilizationWindowSeconds"])
    memory.proposals = [one for one in memory.proposals if one[0] >= now - horizon]
    lowest = min([proposed, *(r for when, r in memory.proposals if when >= now - up["stabilizationWindowSeconds"])])
    highest = max([proposed, *(r for when, r in memory.proposals if when >= now - down["stabilizationWindowSeconds"])])
    memory.proposals.append((now, proposed))
    steady = current
    if steady < lowest:
        steady = lowest
    if steady > highest:
        steady = highest
    return steady


def _recent(changes: Sequence[Change], period: float, now: float) -> int:
    return sum(change.replicas for change in changes if change.when > now - period)


def _up_limit(
    rules: Mapping[str, Any], current: int, ups: Sequence[Change], downs: Sequence[Change], now: float
) -> int:
    if rules["selectPolicy"] == "Disabled":
        return current
    limits = []
    for policy in rules["policies"]:
        period = policy["periodSeconds"]
        start = current - _recent(ups, period, now) + _recent(downs, period, now)
        if policy["type"] == "Pods":
            limits.append(start + policy["value"])
        else:
            limits.append(math.ceil(start * (1 + policy["value"] / 100)))
    return int(min(limits) if rules["selectPolicy"] == "Min" else max(limits))


def _down_limit(
    rules: Mapping[str, Any], current: int, ups: Sequence[Change], downs: Sequence[Change], now: float
) -> int:
    if rules["selectPolicy"] == "Disabled":
        return current
    limits = []
    for policy in rules["policies"]:
        period = policy["periodSeconds"]
        start = current - _recent(ups, period, now) + _recent(downs, period, now)
        if policy["type"] == "Pods":
            limits.append(start - policy["value"])
        else:
            limits.append(int(start * (1 - policy["value"] / 100)))
    return int(max(limits) if rules["selectPolicy"] == "Min" else min(limits))
