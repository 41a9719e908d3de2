"""batch/v1: Job and CronJob."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

from sampan.kube.objects import Object, dig
from sampan.kube.status import FieldError
from sampan.kube.types import duration, selectors
from sampan.kube.types.groups import cells
from sampan.kube.types.groups.declare import declare, status
from sampan.kube.types.groups.pod_defaults import default_template
from sampan.kube.types.groups.pod_validation import validate_template
from sampan.kube.types.groups.pod_warnings import pod_warnings
from sampan.kube.types.problems import Problems
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

    def check(self, obj: Object, problems: Problems) -> None:
        spec = obj.get("spec") or {}
        validate_job_spec(spec, "spec", problems)
        if spec.get("selector") is None:
            problems.required("spec.selector")
        elif not selectors.matches(spec["selector"], dig(spec, "template", "metadata", "labels", default={})):
            labels = dig(spec, "template", "metadata", "labels", default={})
            problems.invalid("spec.template.metadata.labels", labels, "`selector` does not match template `labels`")

    def check_update(self, new: Object, old: Object, problems: Problems) -> None:
        fresh, stored = new.get("spec") or {}, old.get("spec") or {}
        if fresh.get("completions") != stored.get("completions"):
            elastic = stored.get("completionMode") == "Indexed" and fresh.get("completions") == fresh.get("parallelism")
            if not elastic:
                problems.invalid("spec.completions", fresh.get("completions"), "field is immutable")
        for field in (
            "selector",
            "completionMode",
            "podFailurePolicy",
            "backoffLimitPerIndex",
            "managedBy",
            "successPolicy",
        ):
            problems.immutable(f"spec.{field}", fresh.get(field), stored.get(field))
        untouched = stored.get("suspend") and not dig(old, "status", "startTime")
        if not untouched:
            problems.immutable("spec.template", fresh.get("template"), stored.get("template"))

    def warnings(self, obj: Object) -> list[str]:
        return pod_warnings(dig(obj, "spec", "template", "spec", default={}), "spec.template.spec")


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

    def check(self, obj: Object, problems: Problems) -> None:
        spec, name = obj.get("spec") or {}, obj["metadata"].get("name") or ""
        if len(name) > CRON_JOB_NAME_LIMIT:
            problems.invalid("metadata.name", name, f"must be no more than {CRON_JOB_NAME_LIMIT} characters")
        schedule = spec.get("schedule") or ""
        if not schedule:
            problems.required("spec.schedule")
        else:
            _validate_schedule(schedule, spec.get("timeZone"), problems)
        zone = spec.get("timeZone")
        if zone is not None:
            _validate_zone(zone, problems)
        problems.one_of("spec.concurrencyPolicy", spec.get("concurrencyPolicy"), ("Allow", "Forbid", "Replace"))
        for field in ("startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"):
            problems.at_least(f"spec.{field}", spec.get(field))
        job = dig(spec, "jobTemplate", "spec", default={})
        if job.get("manualSelector"):
            problems.unsupported("spec.jobTemplate.spec.manualSelector", True, ("nil", "false"))
        validate_job_spec(job, "spec.jobTemplate.spec", problems)

    def warnings(self, obj: Object) -> list[str]:
        template = dig(obj, "spec", "jobTemplate", "spec", "template", "spec", default={})
        return pod_warnings(template, "spec.jobTemplate.spec.template.spec")


CRON_JOB_NAME_LIMIT = 52


def validate_job_spec(spec: Object, path: str, problems: Problems) -> None:
    """Everything below ``spec`` of a Job but its selector."""
    for field in (
        "parallelism",
        "completions",
        "backoffLimit",
        "activeDeadlineSeconds",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ):
        problems.at_least(f"{path}.{field}", spec.get(field))
    mode = spec.get("completionMode")
    problems.one_of(f"{path}.completionMode", mode, ("NonIndexed", "Indexed"), required=False)
    if mode == "Indexed" and spec.get("completions") is None:
        problems.required(f"{path}.completions", "when completion mode is Indexed")
    if spec.get("backoffLimitPerIndex") is not None and mode != "Indexed":
        why = "requires indexed completion mode"
        problems.invalid(f"{path}.backoffLimitPerIndex", spec["backoffLimitPerIndex"], why)
    template = spec.get("template") or {}
    validate_template(template, f"{path}.template", problems)
    policy = dig(template, "spec", "restartPolicy")
    if policy in ("Always", None):
        why = 'Required value: valid values: "OnFailure", "Never"'
        problems.append(FieldError(f"{path}.template.spec.restartPolicy", "FieldValueRequired", why))
    failure = spec.get("podFailurePolicy")
    if failure is not None and policy != "Never":
        why = 'only "Never" is supported when podFailurePolicy is specified'
        problems.invalid(f"{path}.template.spec.restartPolicy", policy, why)
    for index, rule in enumerate((failure or {}).get("rules") or ()):
        actions = ("FailJob", "FailIndex", "Ignore", "Count")
        problems.one_of(f"{path}.podFailurePolicy.rules[{index}].action", rule.get("action"), actions)


def _validate_schedule(schedule: str, zone: str | None, problems: Problems) -> None:
    if "TZ" in schedule:
        if zone is not None:
            why = "cannot use both timeZone field and TZ or CRON_TZ in schedule"
            problems.invalid("spec.schedule", schedule, why)
        else:
            why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead"
            problems.invalid("spec.schedule", schedule, why)
        return
    if schedule in _MACROS or schedule.startswith("@every "):
        return
    fields = schedule.split()
    if len(fields) != 5:
        why = f"expected exactly 5 fields, found {len(fields)}: [{schedule}]"
        problems.invalid("spec.schedule", schedule, why)
        return
    from cronsim import CronSim, CronSimError

    try:
        # Any time will do: only the fields are looked at.
        CronSim(schedule.replace("?", "*"), datetime(2024, 1, 1, tzinfo=UTC))
    except CronSimError as problem:
        problems.invalid("spec.schedule", schedule, str(problem))


def _validate_zone(zone: str, problems: Problems) -> None:
    if not zone:
        problems.invalid("spec.timeZone", zone, "timeZone must be nil or non-empty string")
        return
    if zone.lower() == "local":
        problems.invalid(
            "spec.timeZone",
            zone,
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
        )
        return
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        problems.invalid("spec.timeZone", zone, f"unknown time zone {zone}")


_MACROS = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")


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
    default_template(spec.setdefault("template", {}))


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
