"""Job bookkeeping as pure functions: indexes, backoff, failure and success policies, and what to do next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sampan.kube.objects import Object
from sampan.parts.workloads import pods

INDEX = "batch.kubernetes.io/job-completion-index"
INDEX_FAILURES = "batch.kubernetes.io/job-index-failure-count"
TRACKING = "batch.kubernetes.io/job-tracking"
FIRST_BACKOFF = 10.0
LAST_BACKOFF = 600.0
"""Seconds before a failed pod is replaced; doubles with each failure."""


def is_indexed(job: Mapping[str, Any]) -> bool:
    """``completionMode: Indexed``."""
    return bool(job["spec"].get("completionMode") == "Indexed")


def index_of(pod: Mapping[str, Any]) -> int | None:
    """A pod's completion index, None where it has none."""
    text = (pod["metadata"].get("annotations") or {}).get(INDEX)
    return int(text) if text is not None and text.isdecimal() else None


def parse_indexes(text: str | None) -> set[int]:
    """``1,3-5`` as a set."""
    found: set[int] = set()
    for part in (text or "").split(","):
        first, _, last = part.partition("-")
        if first:
            found.update(range(int(first), int(last or first) + 1))
    return found


def format_indexes(indexes: Iterable[int]) -> str:
    """A set of indexes as ``1,3-5``; runs of two are written ``1,2``."""
    parts: list[str] = []
    run: list[int] = []
    for index in [*sorted(indexes), None]:
        if run and (index is None or index != run[-1] + 1):
            parts += [f"{run[0]}-{run[-1]}"] if len(run) > 2 else [str(one) for one in run]
            run = []
        if index is not None:
            run.append(index)
    return ",".join(parts)


def backoff(failures: int) -> float:
    """Seconds to wait after this many failures in a row."""
    return 0.0 if failures <= 0 else min(FIRST_BACKOFF * 2.0 ** (failures - 1), LAST_BACKOFF)


def failures_before(pod: Mapping[str, Any]) -> int:
    """How often a pod's index had failed when the pod was made."""
    text = (pod["metadata"].get("annotations") or {}).get(INDEX_FAILURES, "0")
    return int(text) if text.isdecimal() else 0


def index_failures(job: Mapping[str, Any], owned: Iterable[Object]) -> dict[int, int]:
    """Failures of each index under ``backoffLimitPerIndex``, by the pods there are; ignored ones do not count."""
    found: dict[int, int] = {}
    if job["spec"].get("backoffLimitPerIndex") is None:
        return found
    for pod in owned:
        index = index_of(pod)
        if index is not None:
            failed = pods.phase(pod) == "Failed" and judge_failure(job, pod).action != "Ignore"
            found[index] = max(found.get(index, 0), failures_before(pod) + failed)
    return found


def backoff_left(owned: Iterable[Object], now: datetime) -> float:
    """Seconds until failed pods may be replaced: the failures since the last success count."""
    ended = sorted(
        ((when, pods.phase(pod)) for pod in owned if pods.is_finished(pod) and (when := ended_at(pod))), reverse=True
    )
    failures, latest = 0, None
    for when, phase in ended:
        if phase != "Failed":
            break
        failures += 1
        latest = latest or when
    return 0.0 if latest is None else max(0.0, backoff(failures) - (now - latest).total_seconds())


def indexes_held_back(owned: Iterable[Object], now: datetime) -> dict[int, float]:
    """Indexes whose failed pod may not be replaced yet, with the seconds left."""
    by_index: dict[int, list[Object]] = {}
    for pod in owned:
        index = index_of(pod)
        if index is not None:
            by_index.setdefault(index, []).append(pod)
    return {index: left for index, some in by_index.items() if (left := backoff_left(some, now)) > 0}


def ended_at(pod: Mapping[str, Any]) -> datetime | None:
    """When the pod's last container ended (or its deletion was asked for)."""
    stamps = [
        terminated["finishedAt"]
        for status in (pod.get("status") or {}).get("containerStatuses") or ()
        if (terminated := (status.get("state") or {}).get("terminated")) and terminated.get("finishedAt")
    ]
    stamp = max(stamps, default=None) or pod["metadata"].get("deletionTimestamp")
    return pods.parse_time(stamp) if stamp else None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a pod failure policy says of one failed pod."""

    action: str
    """FailJob, FailIndex, Ignore or Count."""
    message: str = ""


def judge_failure(job: Mapping[str, Any], pod: Mapping[str, Any]) -> Verdict:
    """The first rule of ``podFailurePolicy`` that matches; Count where none does."""
    rules = (job["spec"].get("podFailurePolicy") or {}).get("rules") or ()
    for position, rule in enumerate(rules):
        if rule.get("onExitCodes"):
            hit = _exit_code_match(rule["onExitCodes"], pod)
            if hit is not None:
                container, code = hit
                text = f"Container {container} for pod {_key(pod)} failed with exit code {code} matching {rule['action']} rule at index {position}"
                return Verdict(rule["action"], text)
        for pattern in rule.get("onPodConditions") or ():
            found = pods.condition(pod, pattern["type"])
            if found is not None and found["status"] == pattern.get("status", "True"):
                text = f"Pod {_key(pod)} has condition {pattern['type']} matching {rule['action']} rule at index {position}"
                return Verdict(rule["action"], text)
    return Verdict("Count")


def _exit_code_match(requirement: Mapping[str, Any], pod: Mapping[str, Any]) -> tuple[str, int] | None:
    status = pod.get("status") or {}
    for one in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        if requirement.get("containerName") and requirement["containerName"] != one["name"]:
            continue
        code = ((one.get("state") or {}).get("terminated") or {}).get("exitCode")
        if not code:
            continue
        listed = code in requirement["values"]
        if listed == (requirement["operator"] == "In"):
            return one["name"], code
    return None


def _key(pod: Mapping[str, Any]) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"


@dataclass(slots=True)
class Tally:
    """Finished pods of a job, counted exactly once each."""

    succeeded: int = 0
    failed: int = 0
    completed_indexes: set[int] = field(default_factory=set)
    failed_indexes: set[int] = field(default_factory=set)
    index_failures: dict[int, int] = field(default_factory=dict)
    """Failures of each index under ``backoffLimitPerIndex``."""
    fail_job: str = ""
    """Why a FailJob rule ends the job."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ends."""

    type: str
    """Complete or Failed."""
    reason: str
    message: str


def outcome(job: Mapping[str, Any], tally: Tally, active: Sequence[Object], now: datetime) -> Outcome | None:
    """How the job has ended, or None while it goes on. Failure outranks success, as upstream decides it."""
    spec, status = job["spec"], job.get("status") or {}
    if tally.fail_job:
        return Outcome("Failed", "PodFailurePolicy", tally.fail_job)
    per_index = spec.get("backoffLimitPerIndex") is not None
    if not per_index and (tally.failed > spec.get("backoffLimit", 6) or _restarts_exceed(job, active)):
        return Outcome("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
    if per_index and spec.get("backoffLimit") is not None and tally.failed > spec["backoffLimit"]:
        return Outcome("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
    deadline, started = spec.get("activeDeadlineSeconds"), status.get("startTime")
    if deadline is not None and started and (now - pods.parse_time(started)).total_seconds() >= deadline:
        return Outcome("Failed", "DeadlineExceeded", "Job was active longer than specified deadline")
    if per_index:
        limit = spec.get("maxFailedIndexes")
        if limit is not None and len(tally.failed_indexes) > limit:
            return Outcome(
                "Failed", "MaxFailedIndexesExceeded", "Job has exceeded the specified maximal number of failed indexes"
            )
        if tally.failed_indexes and len(tally.failed_indexes | tally.completed_indexes) >= spec["completions"]:
            return Outcome("Failed", "FailedIndexes", "Job has failed indexes")
    met = _success_policy(job, tally)
    if met is not None:
        return met
    completions = spec.get("completions")
    if completions is None:
        if tally.succeeded > 0 and not active:
            return Outcome("Complete", "CompletionsReached", "Reached expected number of succeeded pods")
    elif tally.succeeded >= completions:
        return Outcome("Complete", "CompletionsReached", "Reached expected number of succeeded pods")
    return None


def _restarts_exceed(job: Mapping[str, Any], active: Sequence[Object]) -> bool:
    """Restarts in place count against the limit under restartPolicy OnFailure."""
    if job["spec"]["template"]["spec"].get("restartPolicy") != "OnFailure":
        return False
    total = sum(
        status.get("restartCount") or 0
        for pod in active
        if pods.phase(pod) in ("Running", "Pending")
        for kind in ("containerStatuses", "initContainerStatuses")
        for status in (pod.get("status") or {}).get(kind) or ()
    )
    limit = job["spec"].get("backoffLimit", 6)
    return total > 0 if limit == 0 else total >= limit


def _success_policy(job: Mapping[str, Any], tally: Tally) -> Outcome | None:
    for position, rule in enumerate((job["spec"].get("successPolicy") or {}).get("rules") or ()):
        among = parse_indexes(rule["succeededIndexes"]) if rule.get("succeededIndexes") else None
        done = tally.completed_indexes if among is None else tally.completed_indexes & among
        needed = rule.get("succeededCount")
        if (needed is not None and len(done) >= needed) or (needed is None and among is not None and done == among):
            return Outcome("Complete", "SuccessPolicy", f"Matched rules at index {position}")
    return None


def wanted_active(job: Mapping[str, Any], tally: Tally, active: int) -> int:
    """How many pods should be active now."""
    spec = job["spec"]
    parallelism = spec.get("parallelism", 1)
    completions = spec.get("completions")
    if completions is None:
        return active if tally.succeeded > 0 else int(parallelism)
    left = completions - tally.succeeded - len(tally.failed_indexes)
    return int(max(0, min(parallelism, left)))


def free_indexes(job: Mapping[str, Any], tally: Tally, occupied: Iterable[int], count: int) -> list[int]:
    """The lowest indexes that still need a pod."""
    taken = tally.completed_indexes | tally.failed_indexes | set(occupied)
    found: list[int] = []
    for index in range(job["spec"]["completions"]):
        if len(found) == count:
            break
        if index not in taken:
            found.append(index)
    return found
