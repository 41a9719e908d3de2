"""Cron schedules as PingSource takes them: five fields, or six with seconds first, and descriptors such as ``@hourly``. No I/O."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from sampan.parts.eventing.errors import EventingError

DESCRIPTORS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


class ScheduleError(EventingError):
    """A text is no schedule."""


class Schedule:
    """A parsed schedule."""

    def __init__(self, minutes: str, seconds: frozenset[int]) -> None:
        self._minutes = minutes
        self._seconds = sorted(seconds)

    def following(self, after: datetime) -> datetime:
        """The first time strictly after ``after``, in its zone.

        Raises:
            ScheduleError: there is none (a 30th of February).
        """
        # the minute of `after` itself may have further seconds, so the search begins a minute early
        start = after.replace(second=0, microsecond=0) - timedelta(minutes=1)
        try:
            for minute in CronSim(self._minutes, start):
                for second in self._seconds:
                    when = minute.replace(second=second)
                    if when > after:
                        return when
        except CronSimError as error:
            raise ScheduleError(str(error)) from None
        raise ScheduleError("the schedule never comes")


def parse(line: str) -> Schedule:
    """A schedule.

    Raises:
        ScheduleError: it is none.
    """
    given = line.strip()
    if given.startswith("@"):
        if given not in DESCRIPTORS:
            raise ScheduleError(f"unknown descriptor {given}; there are {', '.join(DESCRIPTORS)}")
        given = DESCRIPTORS[given]
    fields = given.split()
    if len(fields) not in (5, 6):
        raise ScheduleError(f"expected 5 or 6 fields, found {len(fields)}: {line}")
    seconds = _seconds(fields[0]) if len(fields) == 6 else frozenset({0})
    minutes = " ".join("*" if field == "?" else field for field in fields[-5:])
    try:
        CronSim(minutes, datetime(2024, 1, 1, tzinfo=ZoneInfo("UTC")))
    except CronSimError as error:
        raise ScheduleError(f"{error}: {line}") from None
    return Schedule(minutes, seconds)


def _seconds(field: str) -> frozenset[int]:
    """The seconds field: numbers, ranges and steps below 60."""
    found: set[int] = set()
    for item in field.split(","):
        span, _, step = item.partition("/")
        low, dash, high = span.partition("-")
        try:
            first = 0 if span in ("*", "?") else int(low)
            last = 59 if span in ("*", "?") or (step and not dash) else int(high) if dash else first
            width = int(step) if step else 1
        except ValueError:
            raise ScheduleError(f"the seconds {field!r} are not numbers, ranges or steps") from None
        if not 0 <= first <= last <= 59 or width < 1:
            raise ScheduleError(f"the seconds {field!r} are not within 0 to 59")
        found.update(range(first, last + 1, width))
    return frozenset(found)
