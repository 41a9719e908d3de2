"""Kubernetes' own time is the platform's: hours of schedules pass while a test blinks."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

import sampan.testing
from sampan.kube.client.http import HttpClient
from sampan.kube.objects import Object, Resource

CRON_JOBS = Resource("batch", "v1", "cronjobs")
JOBS = Resource("batch", "v1", "jobs")

HOURLY: Object = {
    "kind": "CronJob",
    "metadata": {"name": "bell", "namespace": "default"},
    "spec": {
        "schedule": "0 * * * *",
        "jobTemplate": {
            "spec": {
                "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "ring", "image": "busybox"}]}}
            }
        },
    },
}


@pytest.mark.sampan(only=["workloads"], clock="frozen")
async def test_an_hourly_cron_job_starts_a_job_for_each_hour_that_autojump_passes(
    kube: HttpClient, clock: sampan.testing.SteeredClock
) -> None:
    clock.jump(5400 - clock.time() % 3600)  # half past: three full hours lie ahead, none of them at the limit
    begin = clock.time()
    await kube.create(CRON_JOBS, HOURLY)
    with clock.autojump(limit=3 * 3600 + 60):
        while clock.time() < begin + 3 * 3600:
            await asyncio.sleep(0.05)  # a client that keeps asking would keep the platform busy, and its clock still
    jobs = (await kube.list(JOBS, "default")).items
    created = sorted(item["metadata"]["creationTimestamp"] for item in jobs)
    hours = [datetime.fromtimestamp(begin + 1800 + 3600 * passed, UTC) for passed in range(3)]
    assert [moment[:16] for moment in created] == [f"{hour:%Y-%m-%dT%H:%M}" for hour in hours]
