"""Cron schedules with time zones: when a CronJob's next and missed starts are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from cronsim import CronSim

MANY = 100
"""Missed starts after which upstream's controller warns (or, without a deadline, gives up)."""


class Missed(NamedTuple):
    """Starts that lie between the last one and now."""

    latest: datetime | None
    """The most recent of them, None when there is none."""
    many: bool
    """More than `MANY` were missed."""


class Schedule:
    """A parsed cron line; raises ``cronsim.CronSimError`` or ``ZoneInfoNotFoundError`` for what it cannot read."""

    def __init__(self, line: str, time_zone: str | None = None) -> None:
        self._zone = ZoneInfo(time_zone) if time_zone else UTC
        self._every: timedelta | None = None
        self._line = line
        if line.startswith("@every "):
            self._every = _duration(line.removeprefix("@every ").strip())
        else:
            self._line = _MACROS.get(line, line)
            CronSim(self._line, datetime(2026, 1, 1, tzinfo=self._zone))

    def after(self, moment: datetime) -> datetime | None:
        """The first start later than ``moment``, in UTC; None for a date that never comes."""
        if self._every is not None:
            return moment.replace(microsecond=0) + self._every
        try:
            upcoming: datetime = next(CronSim(self._line, moment.astimezone(self._zone)))
        except StopIteration:
            return None
        return upcoming.astimezone(UTC)

    def missed(self, earliest: datetime, now: datetime) -> Missed:
        """The latest start in ``(earliest, now]``."""
        latest, moment, count = None, earliest, 0
        while (upcoming := self.after(moment)) is not None and upcoming <= now:
            latest, moment, count = upcoming, upcoming, count + 1
            if count > MANY:
                return Missed(self._latest_before(now, upcoming), many=True)
        return Missed(latest, many=False)

    def _latest_before(self, now: datetime, known: datetime) -> datetime:
        """Skip ahead from a known start to the last one not after ``now`` without visiting each."""
        window = timedelta(minutes=1)
        while now - window > known:
            candidate = self.after(now - window)
            if candidate is not None and candidate <= now:
                latest = candidate
                while (upcoming := self.after(latest)) is not None and upcoming <= now:
                    latest = upcoming
                return latest
            window *= 2
        latest = known
        while (upcoming := self.after(latest)) is not None and upcoming <= now:
            latest = upcoming
        return latest


_MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_UNITS = {"h": 3600, "m": 60, "s": 1}


def _duration(text: str) -> timedelta:
    """A Go duration of whole hours, minutes and seconds."""
    seconds, number = 0, ""
    for character in text:
        if character.isdecimal():
            number += character
        elif character in _UNITS and number:
            seconds += int(number) * _UNITS[character]
            number = ""
        else:
            raise ValueError(f"cannot read the duration {text!r}")
    if number or seconds <= 0:
        raise ValueError(f"cannot read the duration {text!r}")
    return timedelta(seconds=seconds)
