"""Scheduled replicas: which job speaks at an instant, and until when."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from sampan.parts.serving.autoscaling.schedule import ScheduleError, next_change, replicas

JOBS = """
- name: workdays
  schedule: "* * MON-FRI"
  timeseries:
  - {timeSlice: "08:00:00", replicas: 10}
  - {timeSlice: "20:00:00", replicas: 2}
- name: first-of-month
  schedule: "1 * *"
  timeseries:
  - {timeSlice: "00:00:00", replicas: 30}
  - {timeSlice: "06:00:00", replicas: 0}
"""


@pytest.mark.parametrize(
    ("instant", "wanted"),
    [
        ("2026-11-23T09:00:00", 10),  # a Monday
        ("2026-11-23T07:59:59", None),  # Sunday has no slice that could still hold
        ("2026-11-24T07:59:59", 2),  # Monday's last
        ("2026-11-24T21:00:00", 2),
        ("2026-11-28T10:00:00", 2),  # Saturday: Friday's last
        ("2026-11-29T10:00:00", None),  # Sunday
        ("2026-12-01T05:00:00", 30),  # a Tuesday and a first: the most
        ("2026-12-01T08:00:00", 10),
    ],
)
def test_the_slice_that_has_begun_last_holds(instant: str, wanted: int | None) -> None:
    assert replicas({"jobs": JOBS}, datetime.fromisoformat(instant).replace(tzinfo=UTC)) == wanted


def test_it_is_looked_at_again_when_a_slice_begins() -> None:
    assert next_change({"jobs": JOBS}, datetime(2026, 11, 23, 7, 0, tzinfo=UTC)) == 3600
    assert next_change({"jobs": JOBS}, datetime(2026, 11, 23, 23, 0, tzinfo=UTC)) == 3600


@pytest.mark.parametrize(
    "text", ["[{", "- {name: x}", "- {schedule: '* *', timeseries: []}", "- {schedule: '40 * *', timeseries: []}"]
)
def test_what_describes_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(ScheduleError):
        replicas({"jobs": text}, datetime(2026, 11, 23, tzinfo=UTC))
