"""Scheduled replicas of the ``ppa`` class: a time series of the day, chosen by a day pattern, from a ConfigMap.

The ConfigMap's key ``jobs`` holds a list of ``{name, schedule, timeseries}``; ``schedule`` is ``day-of-month month day-of-week`` as in
cron, ``timeseries`` a list of ``{timeSlice: "HH:MM:SS", replicas: N}``. A slice holds from its time until the next one; before the
first of a day the last one of the day before still holds.
"""

from __future__ import annotations

from datetime import datetime, time, timedelta
from typing import Any

from sampan.kernel.errors import SampanError

JOBS = "jobs"
_DAYS = {name: number for number, name in enumerate(("sun", "mon", "tue", "wed", "thu", "fri", "sat"))}
_MONTHS = {
    name: number
    for number, name in enumerate(
        ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), start=1
    )
}


class ScheduleError(SampanError):
    """The ConfigMap does not describe schedules."""


def replicas(data: dict[str, str], now: datetime) -> int | None:
    """The most that any job asks for at ``now``; None when none speaks of today or yesterday.

    Raises:
        ScheduleError: the data cannot be read.
    """
    import yaml  # most platforms have no schedule

    try:
        jobs = yaml.safe_load(data.get(JOBS, "[]")) or []
        wanted = [_of_job(job, now) for job in jobs]
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ScheduleError(f"jobs cannot be read: {error}") from error
    return max((one for one in wanted if one is not None), default=None)


def next_change(data: dict[str, str], now: datetime) -> float:
    """Seconds until a slice of today or midnight is reached; at least one."""
    import yaml  # most platforms have no schedule

    today = [
        datetime.combine(now.date(), _clock(entry["timeSlice"]), now.tzinfo)
        for job in yaml.safe_load(data.get(JOBS, "[]")) or []
        for entry in job.get("timeseries") or ()
    ]
    midnight = datetime.combine(now.date() + timedelta(days=1), time(), now.tzinfo)
    return max(1.0, min((one - now).total_seconds() for one in (*today, midnight) if one > now))


def _of_job(job: dict[str, Any], now: datetime) -> int | None:
    slices = sorted((_clock(entry["timeSlice"]), int(entry["replicas"])) for entry in job["timeseries"])
    if _fits(job["schedule"], now):
        begun = [amount for begin, amount in slices if begin <= now.time()]
        if begun:
            return begun[-1]
    if slices and _fits(job["schedule"], now - timedelta(days=1)):
        begun_today = [begin for begin, _ in slices if begin <= now.time()]
        return None if _fits(job["schedule"], now) and begun_today else slices[-1][1]
    return None


def _clock(text: str) -> time:
    return time.fromisoformat(text)


def _fits(pattern: str, day: datetime) -> bool:
    fields = pattern.split()
    if len(fields) != 3:
        raise ValueError(f"schedule {pattern!r} is not 'day-of-month month day-of-week'")
    of_month = _values(fields[0], 1, 31, {})
    month = _values(fields[1], 1, 12, _MONTHS)
    of_week = {number % 7 for number in _values(fields[2], 0, 7, _DAYS)}
    in_month, in_week = day.day in of_month, day.isoweekday() % 7 in of_week
    # as cron has it: where both days are limited, either suffices
    either = fields[0] not in ("*", "?") and fields[2] not in ("*", "?")
    return day.month in month and ((in_month or in_week) if either else (in_month and in_week))


def _values(field: str, low: int, high: int, names: dict[str, int]) -> set[int]:
    found: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        if span in ("*", "?"):
            first, last = low, high
        else:
            begin, dash, end = span.partition("-")
            first = names[begin.lower()] if begin.lower() in names else int(begin)
            last = (names[end.lower()] if end.lower() in names else int(end)) if dash else (high if step else first)
        if not low <= first <= last <= high:
            raise ValueError(f"{part!r} is not within {low}..{high}")
        found.update(range(first, last + 1, int(step) if step else 1))
    return found
