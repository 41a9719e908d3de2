"""batch/v1: Job and CronJob."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

from sampan.kube.objects import Object, dig
from sampan.kube.types import duration
from sampan.kube.types.groups import cells
from sampan.kube.types.groups.declare import declare, status
from sampan.kube.types.groups.pod_defaults import default_template
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy, columns

CONTROLLER_UID = "batch.kubernetes.io/controller-uid"
JOB_NAME = "batch.kubernetes.io/job-name"


class JobStrategy(BuiltinStrategy):
    """Jobs."""

    columns = columns("Status", "Completions", "Duration", wide=("Containers", "Images", "Selector"))
    has_generation = True
    default_propagation = "Orphan"
    selectable_paths: ClassVar = {"status.successful": ("status", "succeeded")}

    def fields(self, obj: Object) -> Mapping[str, str]:
        return {**super().fields(obj), "status.successful": str(dig(obj, "status", "succeeded", default=0))}

    def default(self, obj: Object) -> None:
        default_job_spec(obj.setdefault("spec", {}))
        labels = dig(obj, "spec", "template", "metadata", "labels")
        if labels and not obj["metadata"].get("labels"):
            obj["metadata"]["labels"] = dict(labels)

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {}
        spec = obj["spec"]
        if spec.get("manualSelector"):
            return
        uid, name = obj["metadata"].get("uid", ""), obj["metadata"].get("name", "")
        labels = spec.setdefault("template", {}).setdefault("metadata", {}).setdefault("labels", {})
        for key, value in ((CONTROLLER_UID, uid), ("controller-uid", uid), (JOB_NAME, name), ("job-name", name)):
            labels.setdefault(key, value)
        spec.setdefault("selector", {}).setdefault("matchLabels", {}).setdefault(CONTROLLER_UID, uid)
        if not obj["metadata"].get("labels"):
            obj["metadata"]["labels"] = dict(labels)

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec, status = obj.get("spec") or {}, obj.get("status") or {}
        done, wanted, width = status.get("succeeded") or 0, spec.get("completions"), spec.get("parallelism") or 0
        completions = f"{done}/{1 if wanted is None else wanted}"
        if wanted is None and width > 1:
            completions += f" of {width}"
        took = ""
        if started := status.get("startTime"):
            ended = duration.parse_time(status["completionTime"]) if status.get("completionTime") else now
            took = duration.human(ended - duration.parse_time(started))
        return [
            obj["metadata"]["name"],
            _job_state(obj),
            completions,
            took,
            cells.age(obj, now),
            *cells.containers(spec.get("template")),
            cells.selector(spec.get("selector")),
        ]


class CronJobStrategy(BuiltinStrategy):
    """CronJobs."""

    columns = columns(
        "Schedule",
        "Timezone",
        "Suspend:boolean",
        "Active:integer",
        "Last Schedule",
        wide=("Containers", "Images", "Selector"),
    )
    has_generation = True

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        if not spec.get("concurrencyPolicy"):
            spec["concurrencyPolicy"] = "Allow"
        spec.setdefault("suspend", False)
        spec.setdefault("successfulJobsHistoryLimit", 3)
        spec.setdefault("failedJobsHistoryLimit", 1)
        # The Job in the template gets a Job's defaults when it is created; here only its pods do, as upstream has it.
        template = dig(spec, "jobTemplate", "spec", "template")
        if template is not None:
            default_template(template)

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {}

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec, status = obj.get("spec") or {}, obj.get("status") or {}
        job = dig(spec, "jobTemplate", "spec", default={})
        return [
            obj["metadata"]["name"],
            spec.get("schedule") or "",
            spec.get("timeZone") or cells.NONE,
            cells.flag(spec.get("suspend")),
            len(status.get("active") or ()),
            cells.since(status.get("lastScheduleTime"), now),
            cells.age(obj, now),
            *cells.containers(job.get("template")),
            cells.selector(job.get("selector")),
        ]


def _job_state(job: Object) -> str:
    if cells.is_true(job, "Complete"):
        return "Complete"
    if cells.is_true(job, "Failed"):
        return "Failed"
    if job["metadata"].get("deletionTimestamp"):
        return "Terminating"
    if cells.is_true(job, "Suspended"):
        return "Suspended"
    return "FailureTarget" if cells.is_true(job, "FailureTarget") else "Running"


def default_job_spec(spec: Object) -> None:
    """Everything below ``spec`` of a Job."""
    if "completions" not in spec and "parallelism" not in spec:
        spec["completions"] = spec["parallelism"] = 1
    spec.setdefault("parallelism", 1)
    spec.setdefault("completionMode", "NonIndexed")
    if "backoffLimit" not in spec:
        per_index = spec.get("backoffLimitPerIndex") is not None
        spec["backoffLimit"] = 2**31 - 1 if per_index else 6
    spec.setdefault("suspend", False)
    policy = spec.get("podFailurePolicy")
    spec.setdefault("podReplacementPolicy", "Failed" if policy is not None else "TerminatingOrFailed")
    for rule in (policy or {}).get("rules") or ():
        for condition in rule.get("onPodConditions") or ():
            condition.setdefault("status", "True")
    if "template" in spec:
        default_template(spec["template"])


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
