"""StatefulSet: pods with stable names, order and volumes."""

from __future__ import annotations

from sampan.kube.client.resources import PERSISTENT_VOLUME_CLAIMS, PODS, STATEFUL_SETS
from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.indexes import BySelector
from sampan.kube.control.interface import For, Owns, Source, Watches
from sampan.kube.objects import Key, Object, controller_of, copy, dig
from sampan.kube.status import ApiError, conflict
from sampan.kube.types.selectors import matches
from sampan.parts.workloads import ordinals, pods, revisions
from sampan.parts.workloads.claims import claim
from sampan.parts.workloads.overlay import Overlay

POD_NAME_LABEL = "statefulset.kubernetes.io/pod-name"
_SELECTING = BySelector(lambda one: one["spec"].get("selector"))
POD_INDEX_LABEL = "apps.kubernetes.io/pod-index"


class StatefulSetController(Controller):
    """StatefulSets of apps/v1."""

    name = "statefulset-controller"
    workers = 4

    def __init__(self, context: ControlContext) -> None:
        super().__init__(context)
        self._overlay = Overlay(self.informer(PODS), self.clock)

    def sources(self) -> list[Source]:
        return [For(STATEFUL_SETS), Owns(PODS, "StatefulSet"), Watches(PODS, self._orphan_keys)]

    def _orphan_keys(self, pod: Object) -> list[Key]:
        labels = pod["metadata"].get("labels")
        if controller_of(pod) is not None or not labels:
            return []
        candidates = _SELECTING.candidates(self.informer(STATEFUL_SETS), pod["metadata"]["namespace"], labels)
        return [Key.of(one) for one in candidates if matches(one["spec"].get("selector"), labels)]

    async def reconcile(self, key: Key) -> float | None:
        stateful_set = self.informer(STATEFUL_SETS).get(key)
        if stateful_set is None:
            return None
        uid = stateful_set["metadata"]["uid"]
        owned = self._overlay.correct(uid, self.informer(PODS).indexed("owner", uid))
        claimed = await claim(self, PODS, stateful_set, stateful_set["spec"]["selector"], owned)
        by_ordinal = {n: pod for pod in claimed if (n := ordinals.ordinal_of(stateful_set, pod)) is not None}
        history = await revisions.sync(self, stateful_set)
        status = stateful_set.get("status") or {}
        known = {one["metadata"]["name"] for one in history.revisions}
        current: str = status.get("currentRevision") or ""
        if current not in known:
            current = history.update_name
        now, min_ready = self.clock.now(), stateful_set["spec"].get("minReadySeconds") or 0
        failure: ApiError | None = None
        waits = {pod["metadata"]["uid"]: pods.available_in(pod, min_ready, now) for pod in by_ordinal.values()}
        if not stateful_set["metadata"].get("deletionTimestamp"):
            available = {pod_uid: wait == 0.0 for pod_uid, wait in waits.items()}
            step = ordinals.next_step(stateful_set, by_ordinal, current, history.update_name, available)
            for pod in claimed:
                await self._keep_claims(stateful_set, pod, condemned=pod in step.condemned)
            for ordinal, revision in step.create:
                try:
                    by_ordinal[ordinal] = await self._create(stateful_set, ordinal, revision, history)
                except ApiError as error:
                    failure = error
                    break
            for pod in step.delete:
                await self._delete(stateful_set, pod)
        await self._report(stateful_set, by_ordinal, waits, current, history)
        if failure is not None:
            raise failure
        pending = [wait for wait in waits.values() if wait]
        return min(pending) if pending else None

    async def _create(self, stateful_set: Object, ordinal: int, revision: str, history: revisions.History) -> Object:
        stored = next((one for one in history.revisions if one["metadata"]["name"] == revision), None)
        template = revisions.template_of(stored) if stored is not None else stateful_set["spec"]["template"]
        metadata = stateful_set["metadata"]
        name = f"{metadata['name']}-{ordinal}"
        await self._create_claims(stateful_set, name)
        pod = pods.from_template(template, stateful_set, name=name)
        pod["metadata"].setdefault("labels", {}).update(
            {POD_NAME_LABEL: name, POD_INDEX_LABEL: str(ordinal), revisions.HASH_LABEL: revision}
        )
        spec = pod["spec"]
        spec["hostname"] = name
        if stateful_set["spec"].get("serviceName"):
            spec["subdomain"] = stateful_set["spec"]["serviceName"]
        templates = stateful_set["spec"].get("volumeClaimTemplates") or ()
        claimed = {one["metadata"]["name"] for one in templates}
        volumes = [one for one in spec.get("volumes") or () if one["name"] not in claimed]
        volumes += [
            {
                "name": one["metadata"]["name"],
                "persistentVolumeClaim": {"claimName": f"{one['metadata']['name']}-{name}"},
            }
            for one in templates
        ]
        if volumes:
            spec["volumes"] = volumes
        try:
            created = await self.client.create(PODS, pod, metadata["namespace"])
        except ApiError as error:
            if not error.already_exists:
                message = f"create Pod {name} in StatefulSet {metadata['name']} failed error: {error.message}"
                self.recorder.event(stateful_set, "Warning", "FailedCreate", message)
            raise
        self._overlay.created(metadata["uid"], created)
        message = f"create Pod {name} in StatefulSet {metadata['name']} successful"
        self.recorder.event(stateful_set, "Normal", "SuccessfulCreate", message)
        return created

    async def _create_claims(self, stateful_set: Object, pod_name: str) -> None:
        namespace = stateful_set["metadata"]["namespace"]
        informer = self.informer(PERSISTENT_VOLUME_CLAIMS)
        for wanted in ordinals.claims_of(stateful_set, pod_name):
            name = wanted["metadata"]["name"]
            existing = informer.get(Key(namespace, name))
            if existing is not None:
                if not existing["metadata"].get("deletionTimestamp"):
                    continue
                message = f"create Pod {pod_name} in StatefulSet {stateful_set['metadata']['name']} failed error: pvc {name} is being deleted"
                self.recorder.event(stateful_set, "Warning", "FailedCreate", message)
                raise conflict(PERSISTENT_VOLUME_CLAIMS, name, "it is being deleted")
            if dig(stateful_set, "spec", "persistentVolumeClaimRetentionPolicy", "whenDeleted") == "Delete":
                wanted["metadata"]["ownerReferences"] = [_set_reference(stateful_set)]
            try:
                await self.client.create(PERSISTENT_VOLUME_CLAIMS, wanted, namespace)
            except ApiError as error:
                if not error.already_exists:
                    message = f"create Claim {name} Pod {pod_name} failed error: {error.message}"
                    self.recorder.event(stateful_set, "Warning", "FailedCreate", message)
                    raise
                continue
            message = f"create Claim {name} Pod {pod_name} in StatefulSet {stateful_set['metadata']['name']} success"
            self.recorder.event(stateful_set, "Normal", "SuccessfulCreate", message)

    async def _keep_claims(self, stateful_set: Object, pod: Object, *, condemned: bool) -> None:
        """Bring a pod's claims in line with the retention policy, and make those it waits for in vain.

        Under ``whenScaled: Delete`` a condemned pod owns its claims, so they go when it goes; under ``whenDeleted: Delete`` the
        set owns the claims of the others.
        """
        if not stateful_set["spec"].get("volumeClaimTemplates"):
            return
        namespace = stateful_set["metadata"]["namespace"]
        informer = self.informer(PERSISTENT_VOLUME_CLAIMS)
        policy = stateful_set["spec"].get("persistentVolumeClaimRetentionPolicy") or {}
        name = pod["metadata"]["name"]
        if pods.phase(pod) == "Pending" and pods.is_active(pod) and not condemned:
            await self._create_claims(stateful_set, name)
        for wanted in ordinals.claims_of(stateful_set, name):
            existing = informer.get(Key(namespace, wanted["metadata"]["name"]))
            if existing is None:
                continue
            references: list[Object] = existing["metadata"].get("ownerReferences") or []
            if any(one.get("controller") for one in references):
                continue  # somebody else manages this claim
            kept = [
                one
                for one in references
                if one["uid"] != stateful_set["metadata"]["uid"] and (one["kind"], one["name"]) != ("Pod", name)
            ]
            if condemned and policy.get("whenScaled") == "Delete":
                kept.append(_reference("v1", "Pod", pod))
            elif not condemned and policy.get("whenDeleted") == "Delete":
                kept.append(_set_reference(stateful_set))
            if kept != references:
                patch = {"metadata": {"uid": existing["metadata"]["uid"], "ownerReferences": kept or None}}
                await self.client.patch(PERSISTENT_VOLUME_CLAIMS, existing["metadata"]["name"], patch, namespace)

    async def _delete(self, stateful_set: Object, pod: Object) -> None:
        metadata = pod["metadata"]
        if pods.is_finished(pod):
            reason = f"Recreating{'Failed' if pods.phase(pod) == 'Failed' else 'Terminated'}Pod"
            message = (
                f"StatefulSet {Key.of(stateful_set)} is recreating {pods.phase(pod).lower()} Pod {metadata['name']}"
            )
            self.recorder.event(stateful_set, "Warning", reason, message)
        try:
            await self.client.delete(PODS, metadata["name"], metadata["namespace"], uid=metadata["uid"])
        except ApiError as error:
            if not (error.not_found or error.conflict):
                raise
            return  # somebody was quicker
        message = f"delete Pod {metadata['name']} in StatefulSet {stateful_set['metadata']['name']} successful"
        self.recorder.event(stateful_set, "Normal", "SuccessfulDelete", message)

    async def _report(
        self,
        stateful_set: Object,
        by_ordinal: dict[int, Object],
        waits: dict[str, float | None],
        current: str,
        history: revisions.History,
    ) -> None:
        update = history.update_name
        live = [pod for pod in by_ordinal.values() if not pods.is_terminating(pod)]
        counters = {
            "replicas": len(by_ordinal),
            "readyReplicas": sum(_is_up(pod) for pod in by_ordinal.values()),
            "availableReplicas": sum(
                _is_up(pod) and waits.get(pod["metadata"]["uid"]) == 0.0 for pod in by_ordinal.values()
            ),
            "currentReplicas": sum(revisions.of(pod) == current for pod in live),
            "updatedReplicas": sum(revisions.of(pod) == update for pod in live),
        }
        wanted = int(stateful_set["spec"].get("replicas", 1))
        done = counters["updatedReplicas"] == counters["replicas"] == counters["readyReplicas"] == wanted
        if done and dig(stateful_set, "spec", "updateStrategy", "type") != "OnDelete":
            current = update
            counters["currentReplicas"] = counters["updatedReplicas"]
        status: Object = {
            name: count for name, count in counters.items() if count or name in ("replicas", "availableReplicas")
        }
        status["observedGeneration"] = stateful_set["metadata"].get("generation", 0)
        status["currentRevision"] = current
        status["updateRevision"] = update
        status["collisionCount"] = history.collisions
        if dig(stateful_set, "status", "conditions"):
            status["conditions"] = copy(stateful_set["status"]["conditions"])
        if status != (stateful_set.get("status") or {}):
            await self.client.update(STATEFUL_SETS, {**stateful_set, "status": status}, subresource="status")


def _is_up(pod: Object) -> bool:
    return pods.phase(pod) == "Running" and pods.is_ready(pod)


def _set_reference(stateful_set: Object) -> Object:
    return _reference("apps/v1", "StatefulSet", stateful_set)


def _reference(api_version: str, kind: str, owner: Object) -> Object:
    metadata = owner["metadata"]
    return {"apiVersion": api_version, "kind": kind, "name": metadata["name"], "uid": metadata["uid"]}
