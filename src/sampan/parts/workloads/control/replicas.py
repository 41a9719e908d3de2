"""ReplicaSet and ReplicationController: keep a number of identical pods alive.

Pods that match the selector and have no controller are adopted; owned pods that no longer match are released. Creation goes
in doubling batches, so that a template no pod can be made from costs one failed request a round and not hundreds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar

from sampan.kube.client.resources import PODS, REPLICA_SETS, REPLICATION_CONTROLLERS
from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.indexes import BySelector
from sampan.kube.control.interface import For, Owns, Source, Watches
from sampan.kube.objects import Key, Object, Resource, controller_of, copy
from sampan.kube.status import ApiError
from sampan.kube.types.selectors import matches
from sampan.parts.workloads import pods, statuses
from sampan.parts.workloads.claims import claim
from sampan.parts.workloads.overlay import Overlay

BURST = 500
"""Pods created or deleted in one round at most, as upstream."""


class ReplicaController(Controller):
    """What ReplicaSet and ReplicationController share."""

    workers = 4
    resource: ClassVar[Resource]
    kind: ClassVar[str]

    def __init__(self, context: ControlContext) -> None:
        super().__init__(context)
        self._overlay = Overlay(self.informer(PODS), self.clock)
        self._selecting = BySelector(self.selector)

    def sources(self) -> list[Source]:
        return [For(self.resource), Owns(PODS, self.kind), Watches(PODS, self._orphan_keys)]

    def selector(self, owner: Mapping[str, Any]) -> Mapping[str, Any]:
        """The owner's pod selector as a LabelSelector."""
        selector: Mapping[str, Any] = owner["spec"].get("selector") or {}
        return selector

    def _orphan_keys(self, pod: Object) -> list[Key]:
        if controller_of(pod) is not None or not pod["metadata"].get("labels"):
            return []
        namespace = pod["metadata"]["namespace"]
        owners = self._selecting.candidates(self.informer(self.resource), namespace, pod["metadata"]["labels"])
        return [Key.of(owner) for owner in owners if matches(self.selector(owner), pod["metadata"]["labels"])]

    async def reconcile(self, key: Key) -> float | None:
        owner = self.informer(self.resource).get(key)
        if owner is None:
            return None
        owned = await self._claim(owner)
        active = [pod for pod in owned if pods.is_active(pod)]
        failure: ApiError | None = None
        if not owner["metadata"].get("deletionTimestamp"):
            missing = owner["spec"].get("replicas", 1) - len(active)
            if missing > 0:
                made, failure = await self._create(owner, min(missing, BURST))
                active += made
            elif missing < 0:
                gone = await self._delete(owner, active, min(-missing, BURST))
                active = [pod for pod in active if pod["metadata"]["uid"] not in gone]
        return await self._report(owner, active, owned, failure)

    async def _claim(self, owner: Object) -> list[Object]:
        """The pods this owner controls; finished orphans are not worth adopting, so they are left alone."""
        uid = owner["metadata"]["uid"]
        owned = self._overlay.correct(uid, self.informer(PODS).indexed("owner", uid))
        return await claim(self, PODS, owner, dict(self.selector(owner)), owned)

    async def _create(self, owner: Object, count: int) -> tuple[list[Object], ApiError | None]:
        made: list[Object] = []
        batch = 1
        while count > 0:
            batch = min(batch, count)
            results = await asyncio.gather(*(self._create_one(owner) for _ in range(batch)))
            made += [result for result in results if not isinstance(result, ApiError)]
            errors = [result for result in results if isinstance(result, ApiError)]
            if errors:
                return made, errors[0]
            count -= batch
            batch *= 2
        return made, None

    async def _create_one(self, owner: Object) -> Object | ApiError:
        pod = pods.from_template(owner["spec"]["template"], owner)
        try:
            created = await self.client.create(PODS, pod, owner["metadata"]["namespace"])
        except ApiError as error:
            if error.namespace_terminating:
                return error
            self.recorder.event(owner, "Warning", "FailedCreate", f"Error creating: {error.message}")
            return error
        self._overlay.created(owner["metadata"]["uid"], created)
        self.recorder.event(owner, "Normal", "SuccessfulCreate", f"Created pod: {created['metadata']['name']}")
        return created

    async def _delete(self, owner: Object, active: list[Object], count: int) -> set[str]:
        now = self.clock.now()
        victims = sorted(active, key=lambda pod: pods.deletion_rank(pod, now))[:count]

        async def delete(pod: Object) -> str | None:
            metadata = pod["metadata"]
            try:
                await self.client.delete(PODS, metadata["name"], metadata["namespace"], uid=metadata["uid"])
            except ApiError as error:
                if not (error.not_found or error.conflict):
                    message = f"Error deleting: {error.message}"
                    self.recorder.event(owner, "Warning", "FailedDelete", message)
                    raise
            else:
                self.recorder.event(owner, "Normal", "SuccessfulDelete", f"Deleted pod: {metadata['name']}")
            self._overlay.deleted(pod)
            uid: str = metadata["uid"]
            return uid

        return {uid for uid in await asyncio.gather(*(delete(pod) for pod in victims)) if uid}

    async def _report(
        self, owner: Object, active: list[Object], owned: list[Object], failure: ApiError | None
    ) -> float | None:
        now = self.clock.now()
        min_ready = owner["spec"].get("minReadySeconds") or 0
        waits = [pods.available_in(pod, min_ready, now) for pod in active]
        template_labels = (owner["spec"]["template"].get("metadata") or {}).get("labels") or {}
        old = owner.get("status") or {}
        counters = {
            "replicas": len(active),
            "fullyLabeledReplicas": sum(
                template_labels.items() <= (pod["metadata"].get("labels") or {}).items() for pod in active
            ),
            "readyReplicas": sum(wait is not None for wait in waits),
            "availableReplicas": sum(wait == 0.0 for wait in waits),
        }
        status: Object = {name: count for name, count in counters.items() if count or name == "replicas"}
        status["observedGeneration"] = owner["metadata"].get("generation", 0)
        conditions = [copy(condition) for condition in old.get("conditions") or ()]
        if failure is not None:
            # the message of the first failure stays: each try names another pod, and would write the status anew
            if pods.condition(owner, "ReplicaFailure") is None:
                pods.set_condition(conditions, "ReplicaFailure", "True", "FailedCreate", failure.message, now)
        else:
            conditions = [condition for condition in conditions if condition["type"] != "ReplicaFailure"]
        if conditions:
            status["conditions"] = conditions
        if status != {name: value for name, value in old.items() if name in status or value}:
            await statuses.write(self.client, self.resource, owner, status)
        if failure is not None:
            raise failure
        pending = [wait for wait in waits if wait]
        return min(pending) if pending else None


class ReplicaSetController(ReplicaController):
    """ReplicaSets of apps/v1."""

    name = "replicaset-controller"
    resource = REPLICA_SETS
    kind = "ReplicaSet"


class ReplicationControllerController(ReplicaController):
    """ReplicationControllers of the core group; their selector is a plain map."""

    name = "replication-controller"
    resource = REPLICATION_CONTROLLERS
    kind = "ReplicationController"

    def selector(self, owner: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"matchLabels": owner["spec"].get("selector") or {}}
