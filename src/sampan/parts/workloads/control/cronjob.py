"""CronJob: a Job at every tick of a schedule."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from cronsim import CronSimError

from sampan.kube.client.resources import CRON_JOBS, JOBS
from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.interface import For, Owns, Source
from sampan.kube.objects import Key, Object, copy, owner_reference
from sampan.kube.status import ApiError
from sampan.parts.workloads import pods
from sampan.parts.workloads.cron import Schedule
from sampan.parts.workloads.overlay import Overlay

SCHEDULED = "batch.kubernetes.io/cronjob-scheduled-timestamp"


class CronJobController(Controller):
    """CronJobs of batch/v1."""

    name = "cronjob-controller"
    workers = 2

    def __init__(self, context: ControlContext) -> None:
        super().__init__(context)
        self._overlay = Overlay(self.informer(JOBS), self.clock)
        self._unexpected: set[str] = set()
        """Jobs by uid that somebody else made in a cron job's name (``kubectl create job --from``), announced once."""
        self.informer(JOBS).on_change(self._forget)

    def sources(self) -> list[Source]:
        return [For(CRON_JOBS), Owns(JOBS, "CronJob")]

    async def reconcile(self, key: Key) -> float | None:
        cached = self.informer(CRON_JOBS).get(key)
        if cached is None:
            return None
        cron_job: Object = copy(cached)
        uid = cron_job["metadata"]["uid"]
        jobs = self._overlay.correct(uid, self.informer(JOBS).indexed("owner", uid))
        jobs = await self._trim(cron_job, jobs)
        self._follow(cron_job, jobs)
        again = None
        if not cron_job["metadata"].get("deletionTimestamp") and not cron_job["spec"].get("suspend"):
            again = await self._tick(cron_job, jobs)
        status = {name: value for name, value in cron_job["status"].items() if value}
        if status != (cached.get("status") or {}):
            await self.client.update(CRON_JOBS, {**cron_job, "status": status}, subresource="status")
        return again

    def _forget(self, old: Object | None, new: Object | None) -> None:
        if old is not None and new is None:
            self._unexpected.discard(old["metadata"]["uid"])

    # -- what became of the jobs

    def _follow(self, cron_job: Object, jobs: list[Object]) -> None:
        """Bring ``status.active`` and ``lastSuccessfulTime`` in line with the jobs."""
        status = cron_job.setdefault("status", {})
        by_uid = {job["metadata"]["uid"]: job for job in jobs}
        active = []
        for reference in status.get("active") or ():
            job = by_uid.get(reference["uid"])
            if job is None:
                message = f"Active job went missing: {reference['name']}"
                self.recorder.event(cron_job, "Normal", "MissingJob", message)
            elif (outcome := finished(job)) is not None:
                message = f"Saw completed job: {job['metadata']['name']}, condition: {outcome}"
                self.recorder.event(cron_job, "Normal", "SawCompletedJob", message)
            else:
                active.append(reference)
        known = {reference["uid"] for reference in active}
        for uid, job in by_uid.items():
            if uid in known or finished(job) is not None or uid in self._unexpected:
                continue
            if SCHEDULED in (job["metadata"].get("annotations") or {}):
                active.append(reference(job))  # started by us; the status write that would have said so was lost
                continue
            self._unexpected.add(uid)
            message = f"Saw a job that the controller did not create or forgot: {job['metadata']['name']}"
            self.recorder.event(cron_job, "Warning", "UnexpectedJob", message)
        status["active"] = active
        completions = [
            job["status"]["completionTime"]
            for job in jobs
            if finished(job) == "Complete" and (job.get("status") or {}).get("completionTime")
        ]
        if completions:
            status["lastSuccessfulTime"] = max(completions)

    async def _trim(self, cron_job: Object, jobs: list[Object]) -> list[Object]:
        """Delete finished jobs beyond the history limits, oldest first."""
        spec, kept = cron_job["spec"], list(jobs)
        for outcome, limit in (
            ("Complete", spec.get("successfulJobsHistoryLimit", 3)),
            ("Failed", spec.get("failedJobsHistoryLimit", 1)),
        ):
            ended = [job for job in jobs if finished(job) == outcome and not job["metadata"].get("deletionTimestamp")]
            ended.sort(
                key=lambda job: (job.get("status") or {}).get("startTime") or job["metadata"]["creationTimestamp"]
            )
            for job in ended[: max(0, len(ended) - limit)]:
                await self._delete(cron_job, job)
                kept.remove(job)
        return kept

    # -- the next start

    async def _tick(self, cron_job: Object, jobs: list[Object]) -> float | None:
        spec, status, now = cron_job["spec"], cron_job["status"], self.clock.now()
        try:
            schedule = Schedule(spec["schedule"], spec.get("timeZone"))
        except (CronSimError, ValueError, KeyError) as error:
            what = "UnknownTimeZone" if isinstance(error, KeyError) else "UnparseableSchedule"
            message = f"unparseable schedule: {spec['schedule']!r} : {error}"
            if what == "UnknownTimeZone":
                message = f'invalid timeZone: "{spec.get("timeZone")}": {error}'
            self.recorder.event(cron_job, "Warning", what, message)
            return None
        deadline = spec.get("startingDeadlineSeconds")
        earliest = pods.parse_time(status.get("lastScheduleTime") or cron_job["metadata"]["creationTimestamp"])
        if deadline is not None:
            earliest = max(earliest, now - timedelta(seconds=deadline))
        missed = schedule.missed(earliest, now)
        if missed.many:
            message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew"
            self.recorder.event(cron_job, "Warning", "TooManyMissedTimes", message)
        if missed.latest is not None:
            await self._start(cron_job, jobs, missed.latest, now)
        # an @every schedule counts from the last start, not from now
        upcoming = schedule.after(missed.latest or earliest)
        if upcoming is None or upcoming <= now:
            upcoming = schedule.after(now)
        return None if upcoming is None else (upcoming - now).total_seconds() + 0.1

    async def _start(self, cron_job: Object, jobs: list[Object], scheduled: datetime, now: datetime) -> None:
        spec, status, metadata = cron_job["spec"], cron_job["status"], cron_job["metadata"]
        deadline = spec.get("startingDeadlineSeconds")
        if deadline is not None and scheduled + timedelta(seconds=deadline) < now:
            message = f"Missed scheduled time to start a job: {scheduled:%a, %d %b %Y %H:%M:%S %z}"
            self.recorder.event(cron_job, "Warning", "MissSchedule", message)
            return
        name = f"{metadata['name']}-{int(scheduled.timestamp()) // 60}"
        if any(job["metadata"]["name"] == name for job in jobs):
            status["lastScheduleTime"] = pods.format_time(scheduled)
            return
        policy = spec.get("concurrencyPolicy", "Allow")
        if policy == "Forbid" and status["active"]:
            message = "Not starting job because prior execution is running and concurrency policy is Forbid"
            self.recorder.event(cron_job, "Normal", "JobAlreadyActive", message)
            return
        if policy == "Replace":
            for running in list(status["active"]):
                job = next((one for one in jobs if one["metadata"]["uid"] == running["uid"]), None)
                if job is not None:
                    await self._delete(cron_job, job)
                status["active"].remove(running)
        try:
            job = await self.client.create(JOBS, self._job(cron_job, name, scheduled), metadata["namespace"])
        except ApiError as error:
            if error.already_exists:
                job = await self.client.get(JOBS, name, metadata["namespace"])
            else:
                self.recorder.event(cron_job, "Warning", "FailedCreate", f"Error creating job: {error.message}")
                raise
        else:
            self._overlay.created(metadata["uid"], job)
            self.recorder.event(cron_job, "Normal", "SuccessfulCreate", f"Created job {name}")
        status["active"].append(reference(job))
        status["lastScheduleTime"] = pods.format_time(scheduled)

    def _job(self, cron_job: Object, name: str, scheduled: datetime) -> Object:
        template = cron_job["spec"]["jobTemplate"]
        metadata: dict[str, Any] = template.get("metadata") or {}
        stamp = scheduled
        if cron_job["spec"].get("timeZone"):
            stamp = scheduled.astimezone(ZoneInfo(cron_job["spec"]["timeZone"]))
        annotations = {**(metadata.get("annotations") or {}), SCHEDULED: stamp.isoformat().replace("+00:00", "Z")}
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": name,
                "namespace": cron_job["metadata"]["namespace"],
                "labels": dict(metadata.get("labels") or {}),
                "annotations": annotations,
                "ownerReferences": [owner_reference(cron_job)],
            },
            "spec": copy(template.get("spec") or {}),
        }

    async def _delete(self, cron_job: Object, job: Object) -> None:
        metadata = job["metadata"]
        try:
            await self.client.delete(JOBS, metadata["name"], metadata["namespace"], propagation="Background")
        except ApiError as error:
            if not error.not_found:
                self.recorder.event(cron_job, "Warning", "FailedDelete", f"Deleted job: {error.message}")
                raise
        self._overlay.deleted(job)
        self.recorder.event(cron_job, "Normal", "SuccessfulDelete", f"Deleted job {metadata['name']}")


def finished(job: Object) -> str | None:
    """``Complete`` or ``Failed`` once the job has ended."""
    for outcome in ("Complete", "Failed"):
        condition = pods.condition(job, outcome)
        if condition is not None and condition["status"] == "True":
            return outcome
    return None


def reference(job: Object) -> Object:
    """An ObjectReference to a job, as ``status.active`` holds it."""
    metadata = job["metadata"]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": metadata["name"],
        "namespace": metadata["namespace"],
        "uid": metadata["uid"],
        "resourceVersion": metadata["resourceVersion"],
    }
