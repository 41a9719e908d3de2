"""How a Deployment moves from one ReplicaSet to the next, as arithmetic.

Pure functions from a deployment and its replica sets to the next replica counts; ``control/deployment.py`` carries them out
one step a reconcile and comes back when the replica sets report. The arithmetic is upstream's: surge rounds up, unavailable
rounds down, and when both come to zero one pod may be unavailable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sampan.kube.objects import Object

DESIRED = "deployment.kubernetes.io/desired-replicas"
MAXIMUM = "deployment.kubernetes.io/max-replicas"
REVISION = "deployment.kubernetes.io/revision"


class Scale(NamedTuple):
    """Give this replica set that many replicas."""

    replica_set: Object
    replicas: int


class Bounds(NamedTuple):
    """What a rolling update may do."""

    surge: int
    unavailable: int


def share(value: int | str | None, total: int, *, up: bool) -> int:
    """An IntOrString of pods: a count, or a percentage of ``total`` rounded up or down."""
    if value is None:
        return 0
    if isinstance(value, int):
        return value
    exact = int(value.rstrip("%")) * total / 100
    return math.ceil(exact) if up else math.floor(exact)


def bounds(deployment: Mapping[str, Any]) -> Bounds:
    """maxSurge and maxUnavailable in pods; (0, 0) unless the strategy is RollingUpdate."""
    spec = deployment["spec"]
    strategy = spec.get("strategy") or {}
    wanted = replicas(deployment)
    if strategy.get("type", "RollingUpdate") != "RollingUpdate":
        return Bounds(0, 0)
    rolling = strategy.get("rollingUpdate") or {}
    surge = share(rolling.get("maxSurge", "25%"), wanted, up=True)
    unavailable = share(rolling.get("maxUnavailable", "25%"), wanted, up=False)
    if surge == 0 and unavailable == 0:
        unavailable = 1
    return Bounds(surge, min(unavailable, wanted) if wanted else unavailable)


def replicas(obj: Mapping[str, Any]) -> int:
    """``spec.replicas``, 1 where it is absent."""
    value = obj["spec"].get("replicas")
    return 1 if value is None else int(value)


def available(replica_set: Mapping[str, Any]) -> int:
    """Available pods one can count on: ``status.availableReplicas``, but no more than the set is to have.

    Right after it was scaled down, a set's status still counts pods that are about to go.
    """
    return min(int((replica_set.get("status") or {}).get("availableReplicas") or 0), replicas(replica_set))


def new_replicas(deployment: Mapping[str, Any], sets: Sequence[Object], new: Object | None) -> int:
    """How many replicas the new replica set may have now (at its creation: ``new`` None)."""
    wanted = replicas(deployment)
    current = replicas(new) if new is not None else 0
    if (deployment["spec"].get("strategy") or {}).get("type") == "Recreate":
        return wanted
    room = wanted + bounds(deployment).surge - sum(replicas(one) for one in sets)
    if room <= 0:
        return current
    return current + min(room, wanted - current)


def scale_new(deployment: Mapping[str, Any], new: Object, old: Sequence[Object]) -> list[Scale]:
    """The rolling update's next step for the new replica set."""
    wanted, current = replicas(deployment), replicas(new)
    if current == wanted:
        return []
    target = wanted if current > wanted else new_replicas(deployment, [*old, new], new)
    return [Scale(new, target)] if target != current else []


def scale_old(deployment: Mapping[str, Any], new: Object, old: Sequence[Object]) -> list[Scale]:
    """The rolling update's next step for the old ones: first the pods that are not available anyway, then as many more as
    availability allows, oldest set first.
    """
    total = sum(replicas(one) for one in old) + replicas(new)
    minimum = replicas(deployment) - bounds(deployment).unavailable
    budget = total - minimum - (replicas(new) - available(new))
    if budget <= 0 or not any(replicas(one) for one in old):
        return []
    oldest_first = sorted(old, key=lambda one: one["metadata"].get("creationTimestamp") or "")
    counts = {one["metadata"]["uid"]: replicas(one) for one in oldest_first}
    for one in oldest_first:
        unhealthy = min(budget, counts[one["metadata"]["uid"]] - available(one))
        if unhealthy > 0:
            counts[one["metadata"]["uid"]] -= unhealthy
            budget -= unhealthy
    surplus = sum(available(one) for one in old) + available(new) - minimum
    for one in oldest_first:
        down = min(counts[one["metadata"]["uid"]], surplus)
        if down > 0:
            counts[one["metadata"]["uid"]] -= down
            surplus -= down
    return [
        Scale(one, counts[one["metadata"]["uid"]])
        for one in oldest_first
        if counts[one["metadata"]["uid"]] != replicas(one)
    ]


def scale_proportionally(deployment: Mapping[str, Any], new: Object | None, old: Sequence[Object]) -> list[Scale]:
    """What a changed ``spec.replicas`` means in the middle of a rollout (or while paused)."""
    wanted = replicas(deployment)
    everyone = [*old, *([new] if new is not None else [])]
    active = [one for one in everyone if replicas(one) > 0]
    if len(active) <= 1:
        only = active[0] if active else new or max(old, key=_created, default=None)
        return [Scale(only, wanted)] if only is not None else []  # of the right size already, it still takes note of it
    if new is not None and _saturated(deployment, new):
        return [Scale(one, 0) for one in old if replicas(one) > 0]
    if (deployment["spec"].get("strategy") or {}).get("type") == "Recreate":
        return []
    allowed = wanted + bounds(deployment).surge if wanted > 0 else 0
    change = allowed - sum(replicas(one) for one in active)
    # growing favours the largest and newest set, shrinking takes from the largest and oldest
    active.sort(key=_created, reverse=change > 0)
    active.sort(key=replicas, reverse=True)
    added, counts = 0, []
    for one in active:
        part = 0
        if change:
            fraction = _fraction(deployment, one)
            part = min(fraction, change - added) if change > 0 else max(fraction, change - added)
        counts.append(replicas(one) + part)
        added += part
    if change and counts:
        counts[0] = max(0, counts[0] + change - added)
    return [Scale(one, count) for one, count in zip(active, counts, strict=True)]


def _created(obj: Mapping[str, Any]) -> str:
    stamp: str = obj["metadata"].get("creationTimestamp") or ""
    return stamp


def _saturated(deployment: Mapping[str, Any], replica_set: Mapping[str, Any]) -> bool:
    annotations = replica_set["metadata"].get("annotations") or {}
    wanted = replicas(deployment)
    recorded = annotations.get(DESIRED)
    return replicas(replica_set) == wanted and recorded == str(wanted) and available(replica_set) == wanted


def _fraction(deployment: Mapping[str, Any], replica_set: Mapping[str, Any]) -> int:
    wanted, current = replicas(deployment), replicas(replica_set)
    if wanted == 0:
        return -current
    annotations = replica_set["metadata"].get("annotations") or {}
    maximum = wanted + bounds(deployment).surge
    recorded = annotations.get(MAXIMUM)
    base = int(recorded) if recorded and recorded.isdecimal() else (deployment.get("status") or {}).get("replicas") or 0
    if not base:
        return 0
    return round(current * maximum / base) - current
