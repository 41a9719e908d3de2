"""CronJobs under the steered clock, and the schedules themselves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.kube.objects import Object
from sampan.kube.resources import CRON_JOBS, JOBS
from sampan.parts.workloads.cron import Schedule

from .conftest import Cluster, template


def cron_job(schedule: str = "*/10 * * * *", plays: dict[str, str] | None = None, **spec: Any) -> Object:
    run = template({}, restart="Never", plays=plays or {"play/exit": "0"})
    return {
        "metadata": {"name": "bell"},
        "spec": {
            "schedule": schedule,
            "jobTemplate": {"metadata": {"labels": {"from": "bell"}}, "spec": {"template": run}},
            **spec,
        },
    }


async def at(cluster: Cluster, moment: str) -> None:
    """Move to the next time of day, without setting timers off in between (nothing is scheduled yet)."""
    now = cluster.clock.now()
    hour, minute = map(int, moment.split(":"))
    target = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    cluster.clock.jump((target - now).total_seconds() % 86400)
    await cluster.settle()


async def test_jobs_start_on_schedule_and_old_ones_are_trimmed(cluster: Cluster) -> None:
    await at(cluster, "12:01")
    await cluster.create(CRON_JOBS, cron_job())
    await cluster.pass_time(3600)
    jobs = await cluster.list(JOBS)
    hours = sorted(
        one["metadata"]["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"][11:16] for one in jobs
    )
    assert hours == ["12:40", "12:50", "13:00"]
    minutes = (
        int(
            datetime.fromisoformat(
                jobs[0]["metadata"]["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"]
            ).timestamp()
        )
        // 60
    )
    assert jobs[0]["metadata"]["name"] == f"bell-{minutes}"
    assert jobs[0]["metadata"]["labels"]["from"] == "bell"
    status = await cluster.status(CRON_JOBS, "bell")
    assert status["lastScheduleTime"][11:19] == "13:00:00"
    assert "lastSuccessfulTime" in status
    assert "active" not in status
    reasons = await cluster.reasons("bell")
    assert reasons.count("SuccessfulCreate") == reasons.count("SawCompletedJob") == 6


async def test_failed_jobs_have_a_history_of_their_own(cluster: Cluster) -> None:
    await at(cluster, "12:01")
    made = cron_job(plays={"play/exit": "1"}, failedJobsHistoryLimit=2)
    made["spec"]["jobTemplate"]["spec"]["backoffLimit"] = 0
    await cluster.create(CRON_JOBS, made)
    await cluster.pass_time(3600)
    assert len(await cluster.names(JOBS)) == 2


@pytest.mark.parametrize(("policy", "running", "started"), [("Allow", 3, 3), ("Forbid", 1, 1), ("Replace", 1, 3)])
async def test_concurrency_policies(cluster: Cluster, policy: str, running: int, started: int) -> None:
    await at(cluster, "12:01")
    await cluster.create(CRON_JOBS, cron_job(plays={"play/exit": "0", "play/after": "99999"}, concurrencyPolicy=policy))
    await cluster.pass_time(30 * 60)
    assert len(await cluster.names(JOBS)) == running
    assert len((await cluster.status(CRON_JOBS, "bell"))["active"]) == running
    assert (await cluster.reasons("bell")).count("SuccessfulCreate") == started


async def test_a_forbidden_run_is_made_up_for_when_its_predecessor_ends(cluster: Cluster) -> None:
    await at(cluster, "12:01")
    await cluster.create(CRON_JOBS, cron_job(plays={"play/exit": "0", "play/after": "900"}, concurrencyPolicy="Forbid"))
    await cluster.pass_time(25 * 60)  # 12:10 ran until 12:25
    status = await cluster.status(CRON_JOBS, "bell")
    assert status["lastScheduleTime"][11:16] == "12:20"
    assert "JobAlreadyActive" in await cluster.reasons("bell")


async def test_suspension_and_resumption(cluster: Cluster) -> None:
    await at(cluster, "12:01")
    await cluster.create(CRON_JOBS, cron_job(suspend=True, startingDeadlineSeconds=60))
    await cluster.pass_time(3600)
    assert await cluster.names(JOBS) == []
    await cluster.patch(CRON_JOBS, "bell", {"spec": {"suspend": False}})
    await cluster.settle()
    assert len(await cluster.names(JOBS)) <= 1, "what lies before the deadline is not made up for"
    await cluster.pass_time(600)
    assert await cluster.names(JOBS) != []


async def test_of_many_missed_starts_only_the_last_is_made_up_for(cluster: Cluster) -> None:
    await at(cluster, "12:01")
    await cluster.create(CRON_JOBS, cron_job("* * * * *", suspend=True))
    cluster.clock.jump(86400)
    await cluster.patch(CRON_JOBS, "bell", {"spec": {"suspend": False}})
    await cluster.settle()
    assert len(await cluster.names(JOBS)) == 1
    assert "TooManyMissedTimes" in await cluster.reasons("bell")


async def test_a_time_zone_is_honoured(cluster: Cluster) -> None:
    await at(cluster, "00:00")
    await cluster.create(CRON_JOBS, cron_job("30 8 * * *", timeZone="Asia/Shanghai"))
    await cluster.pass_time(3600)
    (job,) = await cluster.list(JOBS)
    stamp = job["metadata"]["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"]
    assert stamp.endswith("T08:30:00+08:00")


async def test_a_job_made_by_hand_does_not_count(cluster: Cluster) -> None:
    await at(cluster, "12:01")
    made = await cluster.create(CRON_JOBS, cron_job(concurrencyPolicy="Forbid"))
    owner = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "name": "bell",
        "uid": made["metadata"]["uid"],
        "controller": True,
    }
    manual = {
        "metadata": {
            "name": "manual",
            "ownerReferences": [owner],
            "annotations": {"cronjob.kubernetes.io/instantiate": "manual"},
        },
        "spec": {"template": template({}, restart="Never")},
    }
    await cluster.create(JOBS, manual)
    await cluster.pass_time(600)
    assert len(await cluster.names(JOBS)) == 2
    assert (await cluster.reasons("bell")).count("UnexpectedJob") == 1


async def test_deleting_it_takes_its_jobs(cluster: Cluster) -> None:
    await at(cluster, "12:01")
    await cluster.create(CRON_JOBS, cron_job())
    await cluster.pass_time(1800)
    await cluster.client.delete(CRON_JOBS, "bell", "default", propagation="Background")
    await cluster.settle()
    assert await cluster.names(JOBS) == []
    assert await cluster.names() == []


# -- schedules by value


def test_a_daily_schedule_skips_the_hour_that_summer_time_takes() -> None:
    schedule = Schedule("30 2 * * *", "Europe/Berlin")
    assert schedule.after(datetime(2026, 3, 28, 12, tzinfo=UTC)) != datetime(2026, 3, 29, 0, 30, tzinfo=UTC)
    assert schedule.after(datetime(2026, 3, 30, 12, tzinfo=UTC)) == datetime(2026, 3, 31, 0, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("macro", "line"), [("@hourly", "0 * * * *"), ("@daily", "0 0 * * *"), ("@weekly", "0 0 * * 0")]
)
def test_macros_are_lines(macro: str, line: str) -> None:
    moment = datetime(2026, 5, 5, 5, 5, 5, tzinfo=UTC)
    assert Schedule(macro).after(moment) == Schedule(line).after(moment)


def test_every_counts_from_the_last_start() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    missed = Schedule("@every 1h30m").missed(start, start + timedelta(hours=4))
    assert missed.latest == start + timedelta(hours=3)


@pytest.mark.parametrize("line", ["@every x", "@every 0s", "61 * * * *", "* * *"])
def test_nonsense_is_refused(line: str) -> None:
    with pytest.raises(Exception, match=r".+"):
        Schedule(line)


@given(
    minute=st.integers(1, 59),
    begin=st.integers(0, 10**6),
    length=st.integers(0, 40_000),
)
def test_the_latest_missed_start_is_what_walking_finds(minute: int, begin: int, length: int) -> None:
    schedule = Schedule(f"*/{minute} * * * *")
    start = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=begin)
    now = start + timedelta(seconds=length)
    found = schedule.missed(start, now)
    last, moment, count = None, start, 0
    while (upcoming := schedule.after(moment)) is not None and upcoming <= now:
        last, moment, count = upcoming, upcoming, count + 1
    assert found.latest == last
    assert found.many == (count > 100)
