"""Deployment: declarative rollouts over ReplicaSets.

Each reconcile finds the deployment's replica sets, names the one whose template equals the deployment's the *new* one
(making it if need be), takes one step of the rollout (``rollout``), and reports. The replica sets' own status changes bring
it back for the next step.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sampan.kube.client.resources import DEPLOYMENTS, PODS, REPLICA_SETS
from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.interface import For, Owns, Source, Watches
from sampan.kube.objects import Key, Object, controller_of, copy, dig, owner_reference
from sampan.kube.status import ApiError
from sampan.kube.types.selectors import matches
from sampan.parts.workloads import pods, rollout, statuses
from sampan.parts.workloads.claims import claim
from sampan.parts.workloads.overlay import Overlay
from sampan.parts.workloads.rollout import DESIRED, MAXIMUM, REVISION, Scale, replicas

HASH_LABEL = "pod-template-hash"
REVISION_HISTORY = "deployment.kubernetes.io/revision-history"
NOT_COPIED = frozenset(
    {"kubectl.kubernetes.io/last-applied-configuration", REVISION, REVISION_HISTORY, DESIRED, MAXIMUM}
)
"""Deployment annotations a replica set does not inherit."""


class DeploymentController(Controller):
    """Deployments of apps/v1."""

    name = "deployment-controller"
    workers = 4

    def __init__(self, context: ControlContext) -> None:
        super().__init__(context)
        self._overlay = Overlay(self.informer(REPLICA_SETS), self.clock)

    def sources(self) -> list[Source]:
        return [
            For(DEPLOYMENTS),
            Owns(REPLICA_SETS, "Deployment"),
            Watches(REPLICA_SETS, self._orphan_keys),
            Watches(PODS, self._recreate_keys),
        ]

    def _orphan_keys(self, replica_set: Object) -> list[Key]:
        labels = replica_set["metadata"].get("labels")
        if controller_of(replica_set) is not None or not labels:
            return []
        candidates = self.informer(DEPLOYMENTS).objects(replica_set["metadata"]["namespace"])
        return [Key.of(one) for one in candidates if matches(one["spec"].get("selector"), labels)]

    def _recreate_keys(self, pod: Object) -> list[Key]:
        """A Recreate rollout waits for the last old pod to go, which no replica set reports."""
        owner = controller_of(pod)
        if owner is None or owner["kind"] != "ReplicaSet":
            return []
        namespace = pod["metadata"]["namespace"]
        replica_set = self.informer(REPLICA_SETS).get(Key(namespace, owner["name"]))
        deployment_reference = controller_of(replica_set) if replica_set is not None else None
        if deployment_reference is None:
            return []
        deployment = self.informer(DEPLOYMENTS).get(Key(namespace, deployment_reference["name"]))
        if deployment is None or dig(deployment, "spec", "strategy", "type") != "Recreate":
            return []
        return [Key.of(deployment)]

    async def reconcile(self, key: Key) -> float | None:
        cached = self.informer(DEPLOYMENTS).get(key)
        if cached is None:
            return None
        deployment: Object = copy(cached)
        if not deployment["spec"].get("selector"):
            self.recorder.event(
                deployment,
                "Warning",
                "SelectingAll",
                "This deployment is selecting all pods. A non-empty selector is required.",
            )
            return None
        uid = deployment["metadata"]["uid"]
        owned = self._overlay.correct(uid, self.informer(REPLICA_SETS).indexed("owner", uid))
        sets: list[Object] = copy(await claim(self, REPLICA_SETS, deployment, deployment["spec"]["selector"], owned))
        new = find_new(deployment, sets)
        old = [one for one in sets if one is not new]
        if deployment["metadata"].get("deletionTimestamp"):
            return await self._report(deployment, new, sets)
        self._note_pause(deployment)
        if deployment["spec"].get("paused") or is_scaling(deployment, sets):
            if new is not None:
                await self._refresh_new(deployment, new, old)
            for scale in rollout.scale_proportionally(deployment, new, old):
                await self._scale(deployment, scale)
            if deployment["spec"].get("paused"):
                await self._clean_up(deployment, old)
            return await self._report(deployment, new, sets)
        if dig(deployment, "spec", "strategy", "type") == "Recreate":
            return await self._recreate(deployment, new, old)
        return await self._roll(deployment, new, old)

    # -- strategies

    async def _roll(self, deployment: Object, new: Object | None, old: list[Object]) -> float | None:
        new = await self._ensure_new(deployment, new, old)
        if new is None:
            return await self._report(deployment, None, old)
        steps = rollout.scale_new(deployment, new, old) or rollout.scale_old(deployment, new, old)
        for scale in steps:
            await self._scale(deployment, scale)
        if not steps and is_complete(deployment, self._counters(deployment, new, [*old, new])):
            await self._clean_up(deployment, old)
        return await self._report(deployment, new, [*old, new])

    async def _recreate(self, deployment: Object, new: Object | None, old: list[Object]) -> float | None:
        scaled = False
        for one in old:
            if replicas(one) > 0:
                await self._scale(deployment, Scale(one, 0))
                scaled = True
        if scaled or self._old_pods_running(old):
            return await self._report(deployment, new, [*old, *([new] if new is not None else [])])
        new = await self._ensure_new(deployment, new, old)
        if new is None:
            return await self._report(deployment, None, old)
        if replicas(new) != replicas(deployment):
            await self._scale(deployment, Scale(new, replicas(deployment)))
        elif is_complete(deployment, self._counters(deployment, new, [*old, new])):
            await self._clean_up(deployment, old)
        return await self._report(deployment, new, [*old, new])

    def _old_pods_running(self, old: list[Object]) -> bool:
        informer = self.informer(PODS)
        return any(
            not pods.is_finished(pod) for one in old for pod in informer.indexed("owner", one["metadata"]["uid"])
        )

    # -- replica sets

    async def _ensure_new(self, deployment: Object, new: Object | None, old: list[Object]) -> Object | None:
        """The new replica set, made or brought up to date; None when it could not be made yet."""
        if new is not None:
            await self._refresh_new(deployment, new, old)
            if pods.condition(deployment, "Progressing") is None and deployment["spec"].get("progressDeadlineSeconds"):
                message = f'Found new replica set "{new["metadata"]["name"]}"'
                self._progress(deployment, "True", "FoundNewReplicaSet", message)
            return new
        status = deployment.setdefault("status", {})
        digest = pods.template_hash(deployment["spec"]["template"], status.get("collisionCount"))
        replica_set = self._make_new(deployment, old, digest)
        name, namespace = replica_set["metadata"]["name"], deployment["metadata"]["namespace"]
        try:
            created = await self.client.create(REPLICA_SETS, replica_set, namespace)
        except ApiError as error:
            if error.already_exists:
                existing = await self.client.get(REPLICA_SETS, name, namespace)
                owner = controller_of(existing)
                if (
                    owner is not None
                    and owner["uid"] == deployment["metadata"]["uid"]
                    and same_template(deployment, existing)
                ):
                    return existing
                status["collisionCount"] = status.get("collisionCount", 0) + 1
                await self._write_status(deployment, status)
                return None
            message = f'Failed to create new replica set "{name}": {error.message}'
            self._progress(deployment, "False", "ReplicaSetCreateError", message)
            await self._write_status(deployment, status)
            self.recorder.event(deployment, "Warning", "ReplicaSetCreateError", message)
            raise
        self._overlay.created(deployment["metadata"]["uid"], created)
        if replicas(created):
            message = f"Scaled up replica set {name} from 0 to {replicas(created)}"
            self.recorder.event(deployment, "Normal", "ScalingReplicaSet", message)
        if deployment["spec"].get("progressDeadlineSeconds"):
            self._progress(deployment, "True", "NewReplicaSetCreated", f'Created new replica set "{name}"')
        await self._set_revision(deployment, created["metadata"]["annotations"][REVISION])
        return created

    def _make_new(self, deployment: Object, old: list[Object], digest: str) -> Object:
        spec, metadata = deployment["spec"], deployment["metadata"]
        template: Object = copy(spec["template"])
        template.setdefault("metadata", {}).setdefault("labels", {})[HASH_LABEL] = digest
        selector: Object = copy(spec["selector"])
        selector.setdefault("matchLabels", {})[HASH_LABEL] = digest
        made: Object = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {
                "name": f"{metadata['name']}-{digest}",
                "namespace": metadata["namespace"],
                "labels": copy(template["metadata"]["labels"]),
                "ownerReferences": [owner_reference(deployment)],
                "annotations": self._annotations(deployment, {}, next_revision(old)) | _sizes(deployment),
            },
            "spec": {
                "replicas": rollout.new_replicas(deployment, old, None),
                "selector": selector,
                "template": template,
            },
        }
        if spec.get("minReadySeconds"):
            made["spec"]["minReadySeconds"] = spec["minReadySeconds"]
        return made

    def _annotations(self, deployment: Object, current: dict[str, str], revision: str) -> dict[str, str]:
        wanted = dict(current)
        for name, value in (deployment["metadata"].get("annotations") or {}).items():
            if name not in NOT_COPIED:
                wanted[name] = value
        previous = current.get(REVISION)
        if previous is None or not previous.isdecimal() or int(previous) < int(revision):
            wanted[REVISION] = revision
            if previous is not None:
                history = [entry for entry in (current.get(REVISION_HISTORY) or "").split(",") if entry]
                wanted[REVISION_HISTORY] = ",".join([*history, previous])
        return wanted

    async def _refresh_new(self, deployment: Object, new: Object, old: list[Object]) -> None:
        metadata = new["metadata"]
        current = metadata.get("annotations") or {}
        annotations = self._annotations(deployment, current, next_revision(old))
        min_ready = deployment["spec"].get("minReadySeconds") or 0
        if annotations != current or (new["spec"].get("minReadySeconds") or 0) != min_ready:
            changed = {name: value for name, value in annotations.items() if current.get(name) != value}
            patch = {
                "metadata": {"uid": metadata["uid"], "annotations": changed},
                "spec": {"minReadySeconds": min_ready},
            }
            new.update(await self.client.patch(REPLICA_SETS, metadata["name"], patch, metadata["namespace"]))
        await self._set_revision(deployment, annotations[REVISION])

    async def _set_revision(self, deployment: Object, revision: str) -> None:
        metadata = deployment["metadata"]
        if (metadata.get("annotations") or {}).get(REVISION) == revision:
            return
        patch = {"metadata": {"annotations": {REVISION: revision}}}
        patched = await self.client.patch(DEPLOYMENTS, metadata["name"], patch, metadata["namespace"])
        deployment["metadata"] = patched["metadata"]

    async def _scale(self, deployment: Object, scale: Scale) -> None:
        replica_set, count = scale
        before = replicas(replica_set)
        metadata = replica_set["metadata"]
        annotations = dict(metadata.get("annotations") or {})
        wanted = _sizes(deployment)
        if count == before and wanted.items() <= annotations.items():
            return
        patch = {"metadata": {"uid": metadata["uid"], "annotations": wanted}, "spec": {"replicas": count}}
        replica_set.update(await self.client.patch(REPLICA_SETS, metadata["name"], patch, metadata["namespace"]))
        if count != before:
            direction = "up" if count > before else "down"
            message = f"Scaled {direction} replica set {metadata['name']} from {before} to {count}"
            self.recorder.event(deployment, "Normal", "ScalingReplicaSet", message)

    async def _clean_up(self, deployment: Object, old: list[Object]) -> None:
        limit = deployment["spec"].get("revisionHistoryLimit", 10)
        idle = [
            one
            for one in old
            if not one["metadata"].get("deletionTimestamp")
            and replicas(one) == 0
            and not dig(one, "status", "replicas", default=0)
            and one["metadata"].get("generation", 0) <= dig(one, "status", "observedGeneration", default=0)
        ]
        idle.sort(key=revision_of)
        for one in idle[: max(0, len(idle) - limit)]:
            try:
                await self.client.delete(REPLICA_SETS, one["metadata"]["name"], one["metadata"]["namespace"])
            except ApiError as error:
                if not error.not_found:
                    raise

    # -- status

    def _note_pause(self, deployment: Object) -> None:
        if not deployment["spec"].get("progressDeadlineSeconds"):
            return
        current = pods.condition(deployment, "Progressing")
        reason = current.get("reason") if current is not None else None
        if reason == "ProgressDeadlineExceeded":
            return
        if deployment["spec"].get("paused") and reason != "DeploymentPaused":
            self._progress(deployment, "Unknown", "DeploymentPaused", "Deployment is paused")
        elif not deployment["spec"].get("paused") and reason == "DeploymentPaused":
            self._progress(deployment, "Unknown", "DeploymentResumed", "Deployment is resumed")

    def _progress(self, deployment: Object, status: str, reason: str, message: str) -> None:
        conditions = deployment.setdefault("status", {}).setdefault("conditions", [])
        pods.set_condition(conditions, "Progressing", status, reason, message, self.clock.now(), updates=True)

    def _counters(self, deployment: Object, new: Object | None, sets: list[Object]) -> dict[str, int]:
        def total(field: str, among: list[Object]) -> int:
            return sum(int(dig(one, "status", field, default=0)) for one in among)

        ready = total("availableReplicas", sets)
        return {
            "replicas": total("replicas", sets),
            "updatedReplicas": total("replicas", [new] if new is not None else []),
            "readyReplicas": total("readyReplicas", sets),
            "availableReplicas": ready,
            "unavailableReplicas": max(0, sum(replicas(one) for one in sets) - ready),
        }

    async def _report(self, deployment: Object, new: Object | None, sets: list[Object]) -> float | None:
        now = self.clock.now()
        counters = self._counters(deployment, new, sets)
        old_status = deployment.setdefault("status", {})
        conditions = old_status.setdefault("conditions", [])
        if counters["availableReplicas"] >= replicas(deployment) - rollout.bounds(deployment).unavailable:
            available = ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
        else:
            available = ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
        pods.set_condition(conditions, "Available", *available, now, updates=True)
        again = self._report_progress(deployment, new, counters)
        failing = next(
            (one for one in sets if (pods.condition(one, "ReplicaFailure") or {}).get("status") == "True"), None
        )
        failure = pods.condition(failing, "ReplicaFailure") if failing is not None else None
        if failure is not None:
            pods.set_condition(
                conditions,
                "ReplicaFailure",
                failure["status"],
                failure["reason"],
                failure["message"],
                now,
                updates=True,
            )
        else:
            conditions[:] = [one for one in conditions if one["type"] != "ReplicaFailure"]
        status: Object = {"observedGeneration": deployment["metadata"].get("generation", 0)}
        status |= {name: count for name, count in counters.items() if count}
        status["conditions"] = conditions
        if old_status.get("collisionCount"):
            status["collisionCount"] = old_status["collisionCount"]
        await self._write_status(deployment, status)
        return again

    def _report_progress(self, deployment: Object, new: Object | None, counters: dict[str, int]) -> float | None:
        """Set the Progressing condition; returns seconds until the progress deadline passes, where one runs."""
        deadline = deployment["spec"].get("progressDeadlineSeconds")
        if not deadline or deployment["spec"].get("paused"):
            return None
        current = pods.condition(deployment, "Progressing")
        settled = current is not None and current.get("reason") == "NewReplicaSetAvailable"
        if counters["replicas"] == counters["updatedReplicas"] and settled and is_complete(deployment, counters):
            return None
        subject = (
            f'ReplicaSet "{new["metadata"]["name"]}"'
            if new is not None
            else f'Deployment "{deployment["metadata"]["name"]}"'
        )
        if is_complete(deployment, counters):
            self._progress(deployment, "True", "NewReplicaSetAvailable", f"{subject} has successfully progressed.")
            return None
        if settled and counters["replicas"] == counters["updatedReplicas"]:
            return None  # a finished rollout that lost pods since is not progressing anew
        if progressed(deployment.get("status") or {}, counters):
            self._progress(deployment, "True", "ReplicaSetUpdated", f"{subject} is progressing.")
            conditions = deployment["status"]["conditions"]
            next(one for one in conditions if one["type"] == "Progressing")["lastUpdateTime"] = pods.format_time(
                self.clock.now()
            )
            return float(deadline)
        if current is None or current.get("reason") in ("ProgressDeadlineExceeded", "DeploymentPaused"):
            return None
        due = pods.parse_time(current["lastUpdateTime"]) + timedelta(seconds=deadline)
        remaining = (due - self.clock.now()).total_seconds()
        if remaining > 0:
            return remaining + 1
        self._progress(deployment, "False", "ProgressDeadlineExceeded", f"{subject} has timed out progressing.")
        return None

    async def _write_status(self, deployment: Object, status: Object) -> None:
        cached = self.informer(DEPLOYMENTS).get(Key.of(deployment))
        if cached is None or cached["metadata"]["uid"] != deployment["metadata"]["uid"]:
            return
        await statuses.write(self.client, DEPLOYMENTS, cached, status)
        deployment["status"] = status


def _sizes(deployment: Object) -> dict[str, str]:
    """The annotations that tell for which size of the deployment a replica set was scaled."""
    wanted = replicas(deployment)
    return {DESIRED: str(wanted), MAXIMUM: str(wanted + rollout.bounds(deployment).surge)}


def same_template(deployment: Object, replica_set: Object) -> bool:
    """The replica set's template is the deployment's, apart from the hash label."""
    template = replica_set["spec"]["template"]
    labels = {k: v for k, v in (dig(template, "metadata", "labels", default={})).items() if k != HASH_LABEL}
    wanted = deployment["spec"]["template"]
    return _plain(template, labels) == _plain(wanted, dig(wanted, "metadata", "labels", default={}))


def _plain(template: Object, labels: dict[str, str]) -> tuple[Any, Any, Any]:
    metadata = {
        name: value
        for name, value in (template.get("metadata") or {}).items()
        if name not in ("labels", "creationTimestamp") and value
    }
    return labels, metadata, template.get("spec")


def find_new(deployment: Object, sets: list[Object]) -> Object | None:
    """The replica set with the deployment's template; the oldest, should there be several."""
    same = [one for one in sets if same_template(deployment, one)]
    return min(
        same, key=lambda one: (one["metadata"].get("creationTimestamp") or "", one["metadata"]["name"]), default=None
    )


def is_scaling(deployment: Object, sets: list[Object]) -> bool:
    """Only ``spec.replicas`` changed: some active replica set was last sized for another count."""
    for one in sets:
        recorded = (one["metadata"].get("annotations") or {}).get(DESIRED)
        if replicas(one) > 0 and recorded is not None and recorded != str(replicas(deployment)):
            return True
    return False


def revision_of(replica_set: Object) -> int:
    """The replica set's revision number, 0 where it has none."""
    text = (replica_set["metadata"].get("annotations") or {}).get(REVISION, "0")
    return int(text) if text.isdecimal() else 0


def next_revision(old: list[Object]) -> str:
    """One more than any old replica set's revision."""
    return str(max((revision_of(one) for one in old), default=0) + 1)


def is_complete(deployment: Object, counters: dict[str, int]) -> bool:
    """Every pod is of the new template and available, and no other is left."""
    wanted = replicas(deployment)
    return counters["updatedReplicas"] == counters["replicas"] == counters["availableReplicas"] == wanted


def progressed(old_status: Object, counters: dict[str, int]) -> bool:
    """Something moved forward since the last report."""

    def before(field: str) -> int:
        return int(old_status.get(field) or 0)

    return (
        counters["updatedReplicas"] > before("updatedReplicas")
        or counters["replicas"] - counters["updatedReplicas"] < before("replicas") - before("updatedReplicas")
        or counters["readyReplicas"] > before("readyReplicas")
        or counters["availableReplicas"] > before("availableReplicas")
    )
