"""Job: run pods to completion and count each exactly once.

Every pod carries the finalizer ``batch.kubernetes.io/job-tracking``, so a finished pod cannot vanish uncounted. Counting takes
two status writes: its uid enters ``status.uncountedTerminatedPods``, its finalizer is removed, then the uid becomes a count. A
crash in between repeats a step and never counts twice.
"""

from __future__ import annotations

import asyncio
from typing import Any

from sampan.kube.client.resources import JOBS, PODS
from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.interface import For, Owns, Source, Watches
from sampan.kube.objects import Key, Object, controller_of, copy, dig
from sampan.kube.status import ApiError
from sampan.parts.workloads import completion, pods
from sampan.parts.workloads.claims import claim
from sampan.parts.workloads.completion import TRACKING, Outcome, Tally
from sampan.parts.workloads.overlay import Overlay

TRACKED = "tracked-job"
"""The index of pods that carry the finalizer, by the key of the job that is to count them."""
OURS = "kubernetes.io/job-controller"
"""``spec.managedBy`` of the jobs this controller runs."""
BATCH = 500
"""Pods created, deleted or counted in one round at most."""


class JobController(Controller):
    """Jobs of batch/v1."""

    name = "job-controller"
    workers = 4

    def __init__(self, context: ControlContext) -> None:
        super().__init__(context)
        self._overlay = Overlay(self.informer(PODS), self.clock)
        self.informer(PODS).add_index(TRACKED, lambda pod: map(str, self._abandoned(pod)))

    def sources(self) -> list[Source]:
        return [For(JOBS), Owns(PODS, "Job"), Watches(PODS, self._abandoned)]

    def _abandoned(self, pod: Object) -> list[Key]:
        """Pods that carry the finalizer but have lost their job are released under the job's key."""
        owner = controller_of(pod)
        if TRACKING in (pod["metadata"].get("finalizers") or ()) and (owner is None or owner["kind"] == "Job"):
            name = owner["name"] if owner is not None else pod["metadata"]["name"]
            return [Key(pod["metadata"]["namespace"], name)]
        return []

    async def reconcile(self, key: Key) -> float | None:
        cached = self.informer(JOBS).get(key)
        await self._release_abandoned(key, cached)
        if cached is None:
            return None
        if not _is_ours(cached):
            return None
        job: Object = copy(cached)
        uid = job["metadata"]["uid"]
        owned = self._overlay.correct(uid, self.informer(PODS).indexed("owner", uid))
        mine = await claim(self, PODS, job, job["spec"]["selector"], owned)
        if _ended(job):
            await self._untrack([pod for pod in mine if TRACKING in _finalizers(pod)])
            return None
        return await self._progress(job, cached, mine)

    async def _progress(self, job: Object, cached: Object, mine: list[Object]) -> float | None:
        status = job.setdefault("status", {})
        now = self.clock.now()
        suspended = bool(job["spec"].get("suspend"))
        if not status.get("startTime") and not suspended:
            status["startTime"] = pods.format_time(now)
        tally = await self._count(job, cached, mine)
        active = [pod for pod in mine if pods.is_active(pod)]
        terminating = [pod for pod in mine if pods.is_terminating(pod) and not pods.is_finished(pod)]
        ending = _target(job) or completion.outcome(job, tally, active, now)
        failure: ApiError | None = None
        again: float | None = None
        if ending is not None:
            self._announce(job, ending)
            if active:
                terminating += active  # the job has ended when they have; their own end brings us back
                await self._delete(job, active)
                active = []
            elif not terminating:
                self._finish(job, ending)
        elif suspended:
            await self._dismiss(job, active)
            terminating += active
            active = []
            self._suspend(job, True)
        else:
            self._suspend(job, False)
            if not job["metadata"].get("deletionTimestamp"):
                active, again, failure = await self._manage(job, tally, mine, active, terminating)
        status["terminating"] = len(terminating)
        await self._write(job, cached, tally, active)
        if failure is not None:
            raise failure
        deadline = job["spec"].get("activeDeadlineSeconds")
        if ending is None and deadline is not None and status.get("startTime"):
            left = deadline - (now - pods.parse_time(status["startTime"])).total_seconds()
            again = left if again is None else min(again, left)
        return again

    # -- counting

    async def _count(self, job: Object, cached: Object, mine: list[Object]) -> Tally:
        """Count newly finished pods, in the two steps the module describes."""
        status = job["status"]
        await self._settle(job, mine)
        uncounted = status.setdefault("uncountedTerminatedPods", {})
        only_failed = job["spec"].get("podReplacementPolicy") == "Failed"
        tracked = [pod for pod in mine if TRACKING in _finalizers(pod)][:BATCH]
        succeeded = [pod for pod in tracked if pods.phase(pod) == "Succeeded"]
        failed = [
            pod
            for pod in tracked
            if pods.phase(pod) == "Failed"
            or (pods.is_terminating(pod) and pods.phase(pod) != "Succeeded" and not only_failed)
        ]
        tally = self._tally(job, mine)
        newly_failed = []
        for pod in failed:
            verdict = completion.judge_failure(job, pod)
            index = completion.index_of(pod)
            if verdict.action == "FailJob" and not tally.fail_job:
                tally.fail_job = verdict.message
            if verdict.action == "Ignore":
                continue
            newly_failed.append(pod["metadata"]["uid"])
            limit = job["spec"].get("backoffLimitPerIndex")
            exhausted = verdict.action == "FailIndex" or (
                limit is not None and completion.failures_before(pod) + 1 > limit
            )
            decided = _target(job) is not None  # the pods that end now end because of that
            if limit is not None and index is not None and exhausted and not decided:
                tally.failed_indexes.add(index)
        newly_succeeded = []
        for pod in succeeded:
            index = completion.index_of(pod)
            if completion.is_indexed(job):
                if index is None or index in tally.completed_indexes or index >= (job["spec"].get("completions") or 0):
                    continue
                tally.completed_indexes.add(index)
            else:
                newly_succeeded.append(pod["metadata"]["uid"])
        finished = [*succeeded, *failed]
        if finished:
            if newly_succeeded:
                uncounted["succeeded"] = _joined(uncounted.get("succeeded"), newly_succeeded)
            if newly_failed:
                uncounted["failed"] = _joined(uncounted.get("failed"), newly_failed)
            self._note_indexes(job, tally)
            if tally.fail_job:
                pods.set_condition(
                    status.setdefault("conditions", []),
                    "FailureTarget",
                    "True",
                    "PodFailurePolicy",
                    tally.fail_job,
                    self.clock.now(),
                )
            await self._store(job)
            await self._untrack(finished)
            await self._settle(job, [pod for pod in mine if pod not in finished])
        tally.succeeded, tally.failed = status.get("succeeded") or 0, status.get("failed") or 0
        if completion.is_indexed(job):
            tally.succeeded = status["succeeded"] = len(tally.completed_indexes)
        return tally

    async def _settle(self, job: Object, mine: list[Object]) -> None:
        """Turn uncounted uids whose pods no longer carry the finalizer into counts."""
        status = job["status"]
        uncounted = status.get("uncountedTerminatedPods") or {}
        tracked = {pod["metadata"]["uid"] for pod in mine if TRACKING in _finalizers(pod)}
        left: dict[str, list[str]] = {}
        for field in ("succeeded", "failed"):
            uids = uncounted.get(field) or []
            settled = [uid for uid in uids if uid not in tracked]
            if settled:
                status[field] = (status.get(field) or 0) + len(settled)
            if len(settled) < len(uids):
                left[field] = [uid for uid in uids if uid in tracked]
        status["uncountedTerminatedPods"] = left

    def _tally(self, job: Object, mine: list[Object]) -> Tally:
        status = job["status"]
        target = pods.condition(job, "FailureTarget")
        fail_job = target["message"] if target is not None and target["reason"] == "PodFailurePolicy" else ""
        return Tally(
            completed_indexes=completion.parse_indexes(status.get("completedIndexes")),
            failed_indexes=completion.parse_indexes(status.get("failedIndexes")),
            index_failures=completion.index_failures(job, mine),
            fail_job=fail_job,
        )

    def _note_indexes(self, job: Object, tally: Tally) -> None:
        if completion.is_indexed(job):
            job["status"]["completedIndexes"] = completion.format_indexes(tally.completed_indexes)
            job["status"]["succeeded"] = len(tally.completed_indexes)
        if job["spec"].get("backoffLimitPerIndex") is not None:
            job["status"]["failedIndexes"] = completion.format_indexes(tally.failed_indexes)

    async def _untrack(self, finished: list[Object]) -> None:
        async def untrack(pod: Object) -> None:
            metadata = pod["metadata"]
            kept = [one for one in _finalizers(pod) if one != TRACKING]
            patch = {"metadata": {"uid": metadata["uid"], "finalizers": kept or None}}
            try:
                await self.client.patch(PODS, metadata["name"], patch, metadata["namespace"])
            except ApiError as error:
                if not (error.not_found or error.conflict):
                    raise

        await asyncio.gather(*(untrack(pod) for pod in finished))

    async def _release_abandoned(self, key: Key, job: Object | None) -> None:
        """Let go pods whose job is gone, also when another one has taken its name since."""
        uid = job["metadata"]["uid"] if job is not None else ""
        orphans = [
            pod
            for pod in self.informer(PODS).indexed(TRACKED, str(key))
            if (controller_of(pod) or {}).get("uid") != uid
        ]
        if job is not None:
            # pods without a controller may be this job's to adopt
            orphans = [pod for pod in orphans if controller_of(pod) is not None]
        await self._untrack(orphans)

    # -- pods

    async def _manage(
        self, job: Object, tally: Tally, mine: list[Object], active: list[Object], terminating: list[Object]
    ) -> tuple[list[Object], float | None, ApiError | None]:
        wanted = completion.wanted_active(job, tally, len(active))
        if len(active) > wanted:
            now = self.clock.now()
            victims = sorted(active, key=lambda pod: pods.deletion_rank(pod, now))[: len(active) - wanted]
            gone = await self._dismiss(job, victims)
            return [pod for pod in active if pod["metadata"]["uid"] not in gone], None, None
        missing = min(wanted - len(active), BATCH)
        if job["spec"].get("podReplacementPolicy") == "Failed":
            missing -= len(terminating)
        if missing <= 0:
            return active, None, None
        now, again = self.clock.now(), None
        indexes: list[int | None] = [None] * missing
        per_index = job["spec"].get("backoffLimitPerIndex") is not None
        if not per_index and (wait := completion.backoff_left(mine, now)) > 0:
            return active, wait, None
        if completion.is_indexed(job):
            occupied = {index for pod in active if (index := completion.index_of(pod)) is not None}
            if job["spec"].get("podReplacementPolicy") == "Failed":
                occupied |= {index for pod in terminating if (index := completion.index_of(pod)) is not None}
            if per_index:
                held = completion.indexes_held_back(mine, now)
                occupied |= held.keys()
                again = min(held.values(), default=None)
            indexes = list(completion.free_indexes(job, tally, occupied, missing))
        results = await asyncio.gather(*(self._create(job, tally, index) for index in indexes))
        made = [result for result in results if not isinstance(result, ApiError)]
        errors = [result for result in results if isinstance(result, ApiError)]
        return [*active, *made], again, errors[0] if errors else None

    async def _create(self, job: Object, tally: Tally, index: int | None) -> Object | ApiError:
        metadata = job["metadata"]
        pod = pods.from_template(job["spec"]["template"], job)
        pod["metadata"]["finalizers"] = [TRACKING]
        if index is not None:
            _mark_index(job, pod, index, tally)
        try:
            created = await self.client.create(PODS, pod, metadata["namespace"])
        except ApiError as error:
            self.recorder.event(job, "Warning", "FailedCreate", f"Error creating: {error.message}")
            return error
        self._overlay.created(metadata["uid"], created)
        self.recorder.event(job, "Normal", "SuccessfulCreate", f"Created pod: {created['metadata']['name']}")
        return created

    async def _dismiss(self, job: Object, victims: list[Object]) -> set[str]:
        """Delete pods that the job no longer wants and that are not to count as failures."""
        victims = victims[:BATCH]
        await self._untrack(victims)
        return await self._delete(job, victims)

    async def _delete(self, job: Object, victims: list[Object]) -> set[str]:
        async def delete(pod: Object) -> str:
            metadata = pod["metadata"]
            try:
                await self.client.delete(PODS, metadata["name"], metadata["namespace"], uid=metadata["uid"])
            except ApiError as error:
                if not (error.not_found or error.conflict):
                    self.recorder.event(job, "Warning", "FailedDelete", f"Error deleting: {error.message}")
                    raise
            else:
                self.recorder.event(job, "Normal", "SuccessfulDelete", f"Deleted pod: {metadata['name']}")
            uid: str = metadata["uid"]
            return uid

        return set(await asyncio.gather(*(delete(pod) for pod in victims[:BATCH])))

    # -- conditions

    def _suspend(self, job: Object, suspended: bool) -> None:
        conditions = job["status"].setdefault("conditions", [])
        current = pods.condition(job, "Suspended")
        now = self.clock.now()
        if suspended and (current is None or current["status"] != "True"):
            pods.set_condition(conditions, "Suspended", "True", "JobSuspended", "Job suspended", now)
            job["status"].pop("startTime", None)
            self.recorder.event(job, "Normal", "Suspended", "Job suspended")
        elif not suspended and current is not None and current["status"] == "True":
            pods.set_condition(conditions, "Suspended", "False", "JobResumed", "Job resumed", now)
            job["status"]["startTime"] = pods.format_time(now)
            self.recorder.event(job, "Normal", "Resumed", "Job resumed")

    def _announce(self, job: Object, ending: Outcome) -> None:
        """FailureTarget or SuccessCriteriaMet: the decision stands, pods are still ending."""
        kind = "FailureTarget" if ending.type == "Failed" else "SuccessCriteriaMet"
        conditions = job["status"].setdefault("conditions", [])
        pods.set_condition(conditions, kind, "True", ending.reason, ending.message, self.clock.now())

    def _finish(self, job: Object, ending: Outcome) -> None:
        now, status = self.clock.now(), job["status"]
        pods.set_condition(status["conditions"], ending.type, "True", ending.reason, ending.message, now)
        if ending.type == "Complete":
            status["completionTime"] = pods.format_time(now)
            self.recorder.event(job, "Normal", "Completed", "Job completed")
        else:
            self.recorder.event(job, "Warning", ending.reason, ending.message)

    async def _write(self, job: Object, cached: Object, tally: Tally, active: list[Object]) -> None:
        status = job["status"]
        self._note_indexes(job, tally)
        status["active"] = len(active)
        status["ready"] = sum(pods.is_ready(pod) for pod in active)
        await self._store(job, cached.get("status"))

    async def _store(self, job: Object, before: Object | None = None) -> None:
        status = job["status"]  # changed in place: a reconcile under way holds on to it
        for name in [name for name, value in status.items() if not value and name not in ("ready", "terminating")]:
            del status[name]
        status.setdefault("uncountedTerminatedPods", {})
        if status == before:
            return
        written = await self.client.update(JOBS, job, subresource="status")
        job["metadata"] = written["metadata"]


def _is_ours(job: Object) -> bool:
    return bool(dig(job, "spec", "managedBy", default=OURS) == OURS)


def _ended(job: Object) -> bool:
    return any((pods.condition(job, kind) or {}).get("status") == "True" for kind in ("Complete", "Failed"))


def _target(job: Object) -> Outcome | None:
    """The decision an earlier reconcile took."""
    for kind, final in (("FailureTarget", "Failed"), ("SuccessCriteriaMet", "Complete")):
        condition = pods.condition(job, kind)
        if condition is not None and condition["status"] == "True":
            return Outcome(final, condition["reason"], condition["message"])
    return None


def _joined(noted: list[str] | None, new: list[str]) -> list[str]:
    """Without repeats: a pod may have been noted by a write whose answer was lost."""
    return list(dict.fromkeys([*(noted or ()), *new]))


def _finalizers(pod: Object) -> list[str]:
    return pod["metadata"].get("finalizers") or []


def _mark_index(job: Object, pod: Object, index: int, tally: Tally) -> None:
    """Give an indexed pod its index: annotation, label, environment, host name and name prefix."""
    metadata, spec = pod["metadata"], pod["spec"]
    name = job["metadata"]["name"]
    metadata["generateName"] = f"{name}-{index}-"
    metadata.setdefault("annotations", {})[completion.INDEX] = str(index)
    metadata.setdefault("labels", {})[completion.INDEX] = str(index)
    if job["spec"].get("backoffLimitPerIndex") is not None:
        metadata["annotations"][completion.INDEX_FAILURES] = str(tally.index_failures.get(index, 0))
    spec["hostname"] = f"{name}-{index}"
    source: dict[str, Any] = {"fieldRef": {"fieldPath": f"metadata.labels['{completion.INDEX}']"}}
    variable = {"name": "JOB_COMPLETION_INDEX", "valueFrom": source}
    for container in [*(spec.get("initContainers") or ()), *spec["containers"]]:
        environment = container.setdefault("env", [])
        if not any(one["name"] == "JOB_COMPLETION_INDEX" for one in environment):
            environment.append(copy(variable))
