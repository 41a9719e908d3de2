"""Delivery: durations, rhythm and end of the attempts; schedules of PingSources."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from sampan.parts.eventing import schedule
from sampan.parts.eventing.delivery import Delivery, DurationError, Outcome, seconds


@pytest.mark.parametrize(
    ("text", "value"), [("PT0.2S", 0.2), ("PT1M", 60), ("P1DT2H", 93_600), ("P1W", 604_800), ("PT1H30M5S", 5405)]
)
def test_a_duration_is_read(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "P", "PT", "1s", "PT1X", "P1S", "-PT1S", "PT"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(DurationError):
        seconds(text)


def waits(delivery: Delivery, outcome: Outcome) -> list[float]:
    found: list[float] = []
    while (wait := delivery.wait(len(found), outcome)) is not None:
        found.append(wait)
    return found


def test_attempts_keep_their_rhythm_and_end() -> None:
    spec = {"retry": 4, "backoffDelay": "PT0.2S", "backoffPolicy": "exponential"}
    failed = Outcome(500)
    assert waits(Delivery.of(spec), failed) == [0.2, 0.4, 0.8, 1.6]
    assert waits(Delivery.of({**spec, "backoffPolicy": "linear"}), failed) == pytest.approx([0, 0.2, 0.4, 0.6])
    assert waits(Delivery.of({"retry": 2}), failed) == [0, 0]
    assert waits(Delivery.of(None), failed) == []


@pytest.mark.parametrize(
    ("status", "retried"),
    [
        *((status, True) for status in (0, 500, 503, 404, 408, 409, 429)),
        *((status, False) for status in (200, 202, 301, 400, 401, 413)),
    ],
)
def test_only_what_may_go_away_is_tried_again(status: int, retried: bool) -> None:
    assert (Delivery(retry=1).wait(0, Outcome(status)) is not None) is retried


def test_retry_after_counts_up_to_its_limit_and_only_where_asked() -> None:
    busy = Outcome(429, retry_after=100.0)
    assert Delivery(retry=1).wait(0, busy) == 0
    assert Delivery(retry=1, retry_after_max=30).wait(0, busy) == 30
    assert Delivery(retry=1, retry_after_max=300).wait(0, busy) == 100
    assert Delivery(retry=1, delay=200, retry_after_max=300).wait(0, busy) == 200


@pytest.mark.parametrize(
    ("line", "after", "following"),
    [
        ("*/5 * * * *", "2026-01-01T10:02:00", "2026-01-01T10:05:00"),
        ("*/5 * * * *", "2026-01-01T10:05:00", "2026-01-01T10:10:00"),
        ("*/10 * * * * *", "2026-01-01T10:02:00", "2026-01-01T10:02:10"),
        ("5,40 * * * * *", "2026-01-01T10:02:40", "2026-01-01T10:03:05"),
        ("30 0 0 * * *", "2026-01-01T10:02:40", "2026-01-02T00:00:30"),
        ("@hourly", "2026-01-01T10:02:00", "2026-01-01T11:00:00"),
        ("0 9 * * MON-FRI", "2026-01-02T10:00:00", "2026-01-05T09:00:00"),
    ],
)
def test_a_schedule_comes_when_it_says(line: str, after: str, following: str) -> None:
    zone = ZoneInfo("Asia/Shanghai")
    found = schedule.parse(line).following(datetime.fromisoformat(after).replace(tzinfo=zone))
    assert found == datetime.fromisoformat(following).replace(tzinfo=zone)


@pytest.mark.parametrize("line", ["", "* * * *", "@every 5s", "@never", "61 * * * * *", "x * * * * *", "99 * * * *"])
def test_what_is_no_schedule_is_refused(line: str) -> None:
    with pytest.raises(schedule.ScheduleError):
        schedule.parse(line)
