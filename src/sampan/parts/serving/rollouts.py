"""Gradual rollout: how traffic of a "latest revision" target moves to a new revision over time, as pure functions.

The state is upstream's JSON in an annotation of the internal Ingress: per configuration and tag a list of revisions, oldest
first, with their percentages and the parameters of the running step. Times are nanoseconds since the epoch.
"""

from __future__ import annotations

import math

import msgspec

SECOND = 1_000_000_000


class RevisionShare(msgspec.Struct, rename="camel", omit_defaults=True):
    """One revision's part of a target."""

    revision_name: str
    percent: int


class StepParams(msgspec.Struct, omit_defaults=True):
    """The running rollout's rhythm."""

    start: int = msgspec.field(default=0, name="starttime")
    """When the first step was configured; 0: no rollout is running."""
    next_step: int = msgspec.field(default=0, name="nextStepTime")
    step_duration: int = msgspec.field(default=0, name="stepDuration")
    step_size: int = msgspec.field(default=0, name="stepSize")


class ConfigurationRollout(msgspec.Struct, rename="camel", omit_defaults=True):
    """One target's rollout."""

    configuration_name: str
    tag: str = ""
    percent: int = 0
    revisions: list[RevisionShare] = msgspec.field(default_factory=list)
    step_params: StepParams = msgspec.field(default_factory=StepParams)

    @property
    def running(self) -> bool:
        return len(self.revisions) > 1


class Rollout(msgspec.Struct, omit_defaults=True):
    """All of a route's rollouts."""

    configurations: list[ConfigurationRollout] = msgspec.field(default_factory=list)

    @staticmethod
    def parse(text: str | None) -> Rollout:
        """From the annotation; nothing or nonsense is an empty state."""
        if not text:
            return Rollout()
        try:
            return msgspec.json.decode(text.encode(), type=Rollout)
        except msgspec.MsgspecError:
            return Rollout()

    def text(self) -> str:
        return msgspec.json.encode(self).decode()

    @property
    def running(self) -> bool:
        return any(one.running for one in self.configurations)

    @property
    def next_step(self) -> int | None:
        """When the earliest running step is due, None without one."""
        times = [one.step_params.next_step for one in self.configurations if one.running and one.step_params.next_step]
        return min(times, default=None)


def advance(previous: Rollout, wanted: Rollout, now: int, *, gradual: bool) -> Rollout:
    """The next state: ``wanted`` has each target with its newest revision only; ``previous`` is what is in force."""
    known = {(one.configuration_name, one.tag): one for one in previous.configurations}
    made = []
    for target in wanted.configurations:
        before = known.get((target.configuration_name, target.tag))
        if before is None or not before.revisions or not gradual or target.percent <= 1:
            made.append(target)
        else:
            made.append(_step(before, target, now))
    return Rollout(made)


def _step(before: ConfigurationRollout, target: ConfigurationRollout, now: int) -> ConfigurationRollout:
    newest = target.revisions[-1].revision_name
    revisions = [RevisionShare(one.revision_name, one.percent) for one in before.revisions]
    params = before.step_params
    _adjust(revisions, target.percent - sum(one.percent for one in revisions))
    if revisions[-1].revision_name != newest:
        donor = next((one for one in reversed(revisions) if one.percent > 0), None)
        if donor is None:
            return target
        donor.percent -= 1
        revisions = [one for one in revisions if one.percent > 0] + [RevisionShare(newest, 1)]
        params = StepParams(start=now)
    elif len(revisions) > 1 and params.next_step and now >= params.next_step:
        _shift(revisions, params.step_size)
        params = StepParams(
            params.start, params.next_step + params.step_duration, params.step_duration, params.step_size
        )
    revisions = [one for one in revisions if one.percent > 0]
    if len(revisions) <= 1:
        params = StepParams()
    return ConfigurationRollout(target.configuration_name, target.tag, target.percent, revisions, params)


def _adjust(revisions: list[RevisionShare], difference: int) -> None:
    """A changed target: more goes to the newest, less is taken from the oldest."""
    if difference > 0:
        revisions[-1].percent += difference
        return
    for one in revisions:
        taken = min(one.percent, -difference)
        one.percent -= taken
        difference += taken


def _shift(revisions: list[RevisionShare], size: int) -> None:
    """Move ``size`` percent to the newest, draining the next newest first."""
    left = size
    for one in reversed(revisions[:-1]):
        taken = min(one.percent, left)
        one.percent -= taken
        revisions[-1].percent += taken
        left -= taken


def observe(rollout: Rollout, now: int, duration: float) -> Rollout:
    """The first step is in force: derive the rhythm from how long it took and the wanted duration in seconds."""
    for one in rollout.configurations:
        params = one.step_params
        if not one.running or not params.start or params.step_duration:
            continue
        least = max(1, math.ceil((now - params.start) / SECOND))
        remaining = max(1, duration - least)
        steps = max(1, min(math.floor(remaining / least), one.percent - 1))
        size = round((one.percent - 1) / steps)
        length = int(remaining / steps * SECOND)
        one.step_params = StepParams(params.start, now + length, length, max(1, size))
    return rollout
