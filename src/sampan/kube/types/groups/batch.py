"""batch/v1: Job and CronJob."""

from __future__ import annotations

from typing import ClassVar

from sampan.kube.types.groups.declare import declare, status
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy


class JobStrategy(BuiltinStrategy):
    """Jobs."""

    has_generation = True
    default_propagation = "Orphan"
    selectable_paths: ClassVar = {"status.successful": ("status", "succeeded")}


class CronJobStrategy(BuiltinStrategy):
    """CronJobs."""

    has_generation = True


def types() -> list[ResourceType]:
    """The kinds of this module."""
    return [
        declare(
            "batch/v1",
            "cronjobs",
            "CronJob",
            CronJobStrategy(),
            short=("cj",),
            categories=("all",),
            subresources=(status("CronJob"),),
        ),
        declare("batch/v1", "jobs", "Job", JobStrategy(), categories=("all",), subresources=(status("Job"),)),
    ]
