"""What a StatefulSet does next, as a pure function.

A StatefulSet's pods have identities: ordinal, name, volumes. An identity is held by one pod at a time, so a pod is replaced by
deleting it and creating its successor only once it is gone. ``next_step`` looks at the pods there are and gives the actions
possible now; the controller carries them out and is called again when a pod changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sampan.kube.objects import Object, dig
from sampan.parts.workloads import pods, revisions
from sampan.parts.workloads.rollout import share


@dataclass(slots=True)
class Step:
    """Actions possible now."""

    create: list[tuple[int, str]] = field(default_factory=list)
    """(ordinal, revision name) of pods to create."""
    delete: list[Object] = field(default_factory=list)
    condemned: list[Object] = field(default_factory=list)
    """Pods beyond the wanted ordinals, whether deleted now or later."""


def start_ordinal(stateful_set: Object) -> int:
    """``spec.ordinals.start``."""
    return int(dig(stateful_set, "spec", "ordinals", "start", default=0))


def ordinal_of(stateful_set: Object, pod: Object) -> int | None:
    """The ordinal in a pod's name, None where the name is not of this set."""
    prefix, _, digits = pod["metadata"]["name"].rpartition("-")
    if prefix != stateful_set["metadata"]["name"] or not digits.isdecimal() or digits != str(int(digits)):
        return None
    return int(digits)


def is_healthy(pod: Object) -> bool:
    """Running, ready and staying."""
    return pods.phase(pod) == "Running" and pods.is_ready(pod) and not pods.is_terminating(pod)


def partition(stateful_set: Object) -> int:
    """Ordinals (from the start) below which pods keep the current revision."""
    if dig(stateful_set, "spec", "updateStrategy", "type", default="RollingUpdate") != "RollingUpdate":
        return 0
    return int(dig(stateful_set, "spec", "updateStrategy", "rollingUpdate", "partition", default=0))


def next_step(
    stateful_set: Object, by_ordinal: Mapping[int, Object], current: str, update: str, available: Mapping[str, bool]
) -> Step:
    """The next actions; ``available`` says, by pod uid, whether a ready pod has been ready for minReadySeconds."""
    spec = stateful_set["spec"]
    start, wanted = start_ordinal(stateful_set), int(spec.get("replicas", 1))
    monotonic = spec.get("podManagementPolicy", "OrderedReady") == "OrderedReady"
    boundary = start + partition(stateful_set)
    on_delete = dig(spec, "updateStrategy", "type") == "OnDelete"
    step = Step(
        condemned=[pod for n, pod in sorted(by_ordinal.items(), reverse=True) if not start <= n < start + wanted]
    )
    settled = True
    for ordinal in range(start, start + wanted):
        pod = by_ordinal.get(ordinal)
        if pod is None:
            # a pod missing from the middle of an OnDelete set comes back as the update revision, as upstream does
            step.create.append((ordinal, current if ordinal < boundary else update))
        elif pods.is_finished(pod) and not pods.is_terminating(pod):
            step.delete.append(pod)
        elif is_healthy(pod) and available.get(pod["metadata"]["uid"], True):
            continue
        settled = False
        if monotonic:
            return step
    settled = _scale_down(step, by_ordinal, settled=settled, monotonic=monotonic) and settled
    if (monotonic and not settled) or on_delete or step.create or step.condemned:
        return step
    _replace_outdated(stateful_set, by_ordinal, range(boundary, start + wanted), update, available, step)
    return step


def _scale_down(step: Step, by_ordinal: Mapping[int, Object], *, settled: bool, monotonic: bool) -> bool:
    """Delete condemned pods, from the highest ordinal; returns whether none is left."""
    for pod in step.condemned:
        if pods.is_terminating(pod):
            if monotonic:
                return False
            continue
        # the lowest unhealthy pod may itself be the one to go; otherwise order is kept while something is unhealthy
        if monotonic and not settled and is_healthy(pod):
            return False
        step.delete.append(pod)
        if monotonic:
            return False
    return not step.condemned


def _replace_outdated(
    stateful_set: Object,
    by_ordinal: Mapping[int, Object],
    ordinals: range,
    update: str,
    available: Mapping[str, bool],
    step: Step,
) -> None:
    wanted = int(stateful_set["spec"].get("replicas", 1))
    limit = share(
        dig(stateful_set, "spec", "updateStrategy", "rollingUpdate", "maxUnavailable", default=1), wanted, up=True
    )
    unavailable = sum(
        not is_healthy(pod) or not available.get(pod["metadata"]["uid"], True) for pod in by_ordinal.values()
    )
    outdated = [
        pod
        for ordinal in reversed(ordinals)
        if (pod := by_ordinal.get(ordinal)) is not None
        and revisions.of(pod) != update
        and not pods.is_terminating(pod)
        and pod not in step.delete
    ]
    # what serves nobody costs nothing to replace, and would otherwise use up the budget for good
    broken = [pod for pod in outdated if not is_healthy(pod) or not available.get(pod["metadata"]["uid"], True)]
    serving = [pod for pod in outdated if pod not in broken]
    step.delete += [*broken, *serving[: max(0, max(1, limit) - unavailable)]]


def claims_of(stateful_set: Object, pod_name: str) -> list[Object]:
    """The PersistentVolumeClaims a pod of the set uses, ready to create."""
    made = []
    for template in stateful_set["spec"].get("volumeClaimTemplates") or ():
        metadata = template["metadata"]
        labels = {**(metadata.get("labels") or {}), **dig(stateful_set, "spec", "selector", "matchLabels", default={})}
        claim: Object = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {
                "name": f"{metadata['name']}-{pod_name}",
                "namespace": stateful_set["metadata"]["namespace"],
                "labels": labels,
            },
            "spec": dict(template["spec"]),
        }
        if metadata.get("annotations"):
            claim["metadata"]["annotations"] = dict(metadata["annotations"])
        made.append(claim)
    return made
