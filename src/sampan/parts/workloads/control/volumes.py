"""PersistentVolumes and claims: binding, local provisioning, reclaiming.

A claim is bound to the smallest volume that satisfies it, or, where its storage class names our provisioner, to a folder made
for it under the platform's data directory. ``WaitForFirstConsumer`` claims wait for the scheduler to write which node was
chosen. Who deletes a claim or volume in use waits for the protection finalizers, which ``kube.control.storage_protection`` takes
off; this module only looks at what is left. A claim that asks for more than it has grows with its folder, which has no size.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sampan.kube.client.resources import PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, STORAGE_CLASSES
from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.interface import For, Source, Watches
from sampan.kube.objects import Key, Object, copy, dig
from sampan.kube.status import ApiError
from sampan.kube.types.selectors import matches
from sampan.parts.workloads import pods
from sampan.parts.workloads.scheduling.nodes import amounts

PROVISIONER = "sampan.dev/local"
"""The ``provisioner`` of storage classes whose volumes are folders of the platform."""
BIND_COMPLETED = "pv.kubernetes.io/bind-completed"
BOUND_BY_CONTROLLER = "pv.kubernetes.io/bound-by-controller"
PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
STORAGE_PROVISIONER = "volume.kubernetes.io/storage-provisioner"
SELECTED_NODE = "volume.kubernetes.io/selected-node"


class ClaimController(Controller):
    """Binds PersistentVolumeClaims and provisions for them."""

    name = "persistentvolume-binder"

    def __init__(self, context: ControlContext, directory: Path) -> None:
        super().__init__(context)
        self._directory = directory

    def sources(self) -> list[Source]:
        return [
            For(PERSISTENT_VOLUME_CLAIMS),
            Watches(PERSISTENT_VOLUMES, self._claims_for),
            Watches(STORAGE_CLASSES, self._pending),
        ]

    def _claims_for(self, volume: Object) -> list[Key]:
        reference = dig(volume, "spec", "claimRef")
        if reference is not None:
            return [Key(reference["namespace"], reference["name"])]
        return self._pending(volume)

    def _pending(self, _: Object) -> list[Key]:
        claims = self.informer(PERSISTENT_VOLUME_CLAIMS).objects()
        return [Key.of(one) for one in claims if dig(one, "status", "phase") != "Bound"]

    async def reconcile(self, key: Key) -> float | None:
        claim = self.informer(PERSISTENT_VOLUME_CLAIMS).get(key)
        if claim is None or claim["metadata"].get("deletionTimestamp"):
            return None
        if claim["spec"].get("volumeName"):
            await self._complete(claim)
        elif not self._waits_for_consumer(claim):
            volume = self._best_volume(claim)
            if volume is not None:
                await self._bind(claim, volume)
            else:
                await self._provision(claim)
        return None

    def _storage_class(self, claim: Object) -> Object | None:
        name = claim["spec"].get("storageClassName")
        return self.informer(STORAGE_CLASSES).get(Key("", name)) if name else None

    def _waits_for_consumer(self, claim: Object) -> bool:
        storage_class = self._storage_class(claim)
        if storage_class is None or storage_class.get("volumeBindingMode") != "WaitForFirstConsumer":
            return False
        if SELECTED_NODE in (claim["metadata"].get("annotations") or {}):
            return False
        self.recorder.event(
            claim, "Normal", "WaitForFirstConsumer", "waiting for first consumer to be created before binding"
        )
        return True

    def _best_volume(self, claim: Object) -> Object | None:
        """The volume already pre-bound to the claim, or the smallest free one that satisfies it."""
        identity = Key.of(claim)
        fitting = []
        for volume in self.informer(PERSISTENT_VOLUMES).objects():
            reference = volume["spec"].get("claimRef")
            if reference is not None:
                if Key(reference["namespace"], reference["name"]) == identity and reference.get("uid", "") in (
                    "",
                    claim["metadata"]["uid"],
                ):
                    return volume
                continue
            if dig(volume, "status", "phase") in (None, "Pending", "Available") and satisfies(volume, claim):
                fitting.append(volume)
        return min(fitting, key=lambda one: (_storage(one["spec"]["capacity"]), one["metadata"]["name"]), default=None)

    async def _bind(self, claim: Object, volume: Object) -> None:
        bound: Object = copy(volume)
        reference = bound["spec"].get("claimRef") or {}
        if reference.get("uid") != claim["metadata"]["uid"]:
            bound["spec"]["claimRef"] = _claim_reference(claim)
            bound["metadata"].setdefault("annotations", {})[BOUND_BY_CONTROLLER] = "yes"
            bound = await self.client.update(PERSISTENT_VOLUMES, bound)
        await self._attach(claim, bound)

    async def _attach(self, claim: Object, volume: Object) -> None:
        changed: Object = copy(claim)
        changed["spec"]["volumeName"] = volume["metadata"]["name"]
        annotations = changed["metadata"].setdefault("annotations", {})
        annotations |= {BIND_COMPLETED: "yes", BOUND_BY_CONTROLLER: "yes"}
        changed = await self.client.update(PERSISTENT_VOLUME_CLAIMS, changed)
        await self._report_bound(changed, volume)

    async def _complete(self, claim: Object) -> None:
        """The claim names its volume: see that the volume agrees, and report."""
        volume = self.informer(PERSISTENT_VOLUMES).get(Key("", claim["spec"]["volumeName"]))
        if volume is None:
            if dig(claim, "status", "phase") == "Bound":
                message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!"
                self.recorder.event(claim, "Warning", "ClaimLost", message)
                await self._phase(claim, {"phase": "Lost"})
            return
        reference = volume["spec"].get("claimRef")
        if reference is None or not reference.get("uid"):
            await self._bind(claim, volume)
        elif reference["uid"] == claim["metadata"]["uid"]:
            await self._report_bound(claim, await self._grow(claim, volume))
        else:
            message = "Bound claim has lost reference to PersistentVolume: volume is bound to another claim"
            self.recorder.event(claim, "Warning", "ClaimMisbound", message)

    async def _grow(self, claim: Object, volume: Object) -> Object:
        """Give a volume of ours the size its claim has come to ask for."""
        wanted = claim["spec"]["resources"]["requests"]
        ours = (volume["metadata"].get("annotations") or {}).get(PROVISIONED_BY) == PROVISIONER
        if not ours or _storage(wanted) <= _storage(volume["spec"]["capacity"]):
            return volume
        patch = {"spec": {"capacity": {"storage": wanted["storage"]}}}
        grown = await self.client.patch(PERSISTENT_VOLUMES, volume["metadata"]["name"], patch)
        self.recorder.event(
            claim, "Normal", "VolumeResizeSuccessful", f"Resize volume {grown['metadata']['name']} succeeded"
        )
        return grown

    async def _report_bound(self, claim: Object, volume: Object) -> None:
        capacity = {"storage": volume["spec"]["capacity"]["storage"]}
        wanted: Object = {"phase": "Bound", "accessModes": volume["spec"]["accessModes"], "capacity": capacity}
        await self._phase(claim, wanted)

    async def _phase(self, claim: Object, status: Object) -> None:
        current = claim.get("status") or {}
        if not status.items() <= current.items():
            changed = {**claim, "status": {**current, **status}}
            await self.client.update(PERSISTENT_VOLUME_CLAIMS, changed, subresource="status")

    async def _provision(self, claim: Object) -> None:
        name = claim["spec"].get("storageClassName")
        storage_class = self._storage_class(claim)
        if storage_class is None:
            if name:
                message = f'storageclass.storage.k8s.io "{name}" not found'
                self.recorder.event(claim, "Warning", "ProvisioningFailed", message)
            else:
                message = "no persistent volumes available for this claim and no storage class is set"
                self.recorder.event(claim, "Normal", "FailedBinding", message)
            return
        if storage_class["provisioner"] != PROVISIONER:
            message = (
                f"Waiting for a volume to be created either by the external provisioner '{storage_class['provisioner']}' "
                "or manually by the system administrator. If volume creation is delayed, please verify that the "
                "provisioner is running and correctly registered."
            )
            self.recorder.event(claim, "Normal", "ExternalProvisioning", message)
            return
        volume_name = f"pvc-{claim['metadata']['uid']}"
        folder = self._directory / volume_name
        await asyncio.to_thread(folder.mkdir, mode=0o777, parents=True, exist_ok=True)
        await asyncio.to_thread(
            folder.chmod, 0o777
        )  # any user a pod runs as may write, as with upstream's local volumes
        volume = self._volume(claim, storage_class, volume_name, folder)
        try:
            created = await self.client.create(PERSISTENT_VOLUMES, volume)
        except ApiError as error:
            if not error.already_exists:
                raise
            created = await self.client.get(PERSISTENT_VOLUMES, volume_name)
        message = f"Successfully provisioned volume {volume_name}"
        self.recorder.event(claim, "Normal", "ProvisioningSucceeded", message)
        await self._attach(claim, created)

    def _volume(self, claim: Object, storage_class: Object, name: str, folder: Path) -> Object:
        spec: Object = {
            "capacity": {"storage": claim["spec"]["resources"]["requests"]["storage"]},
            "accessModes": claim["spec"]["accessModes"],
            "persistentVolumeReclaimPolicy": storage_class.get("reclaimPolicy", "Delete"),
            "storageClassName": storage_class["metadata"]["name"],
            "volumeMode": claim["spec"].get("volumeMode", "Filesystem"),
            "claimRef": _claim_reference(claim),
            "local": {"path": str(folder)},
        }
        node = (claim["metadata"].get("annotations") or {}).get(SELECTED_NODE)
        expression: Object = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
        if not node:
            expression = {"key": "kubernetes.io/hostname", "operator": "Exists"}
        spec["nodeAffinity"] = {"required": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}}
        annotations = {PROVISIONED_BY: PROVISIONER}
        metadata: Object = {"name": name, "annotations": annotations}
        return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": metadata, "spec": spec}


class VolumeController(Controller):
    """Phases of PersistentVolumes, and what becomes of them when their claim goes."""

    name = "persistentvolume-reclaimer"

    def __init__(self, context: ControlContext, directory: Path) -> None:
        super().__init__(context)
        self._directory = directory

    def sources(self) -> list[Source]:
        return [For(PERSISTENT_VOLUMES), Watches(PERSISTENT_VOLUME_CLAIMS, self._volume_of)]

    def _volume_of(self, claim: Object) -> list[Key]:
        name = claim["spec"].get("volumeName") or f"pvc-{claim['metadata']['uid']}"
        return [Key("", name)]

    async def reconcile(self, key: Key) -> float | None:
        volume = self.informer(PERSISTENT_VOLUMES).get(key)
        if volume is None:
            return None
        reference = volume["spec"].get("claimRef")
        claim = None
        if reference is not None:
            claim = self.informer(PERSISTENT_VOLUME_CLAIMS).get(Key(reference["namespace"], reference["name"]))
            if claim is not None and reference.get("uid") and claim["metadata"]["uid"] != reference["uid"]:
                claim = None
        if reference is None or not reference.get("uid"):
            await self._phase(volume, "Available")
        elif claim is not None:
            if claim["spec"].get("volumeName") == key.name:
                await self._phase(volume, "Bound")
        elif await self._claim_is_gone(reference):
            await self._reclaim(volume)
        return None

    async def _claim_is_gone(self, reference: Mapping[str, Any]) -> bool:
        """Asked of the API and not of the cache: data is about to be deleted."""
        try:
            live = await self.client.get(PERSISTENT_VOLUME_CLAIMS, reference["name"], reference["namespace"])
        except ApiError as error:
            if error.not_found:
                return True
            raise
        return bool(live["metadata"]["uid"] != reference["uid"])

    async def _reclaim(self, volume: Object) -> None:
        await self._phase(volume, "Released")
        policy = volume["spec"].get("persistentVolumeReclaimPolicy", "Retain")
        ours = (volume["metadata"].get("annotations") or {}).get(PROVISIONED_BY) == PROVISIONER
        if policy != "Delete" or not ours:
            return
        folder = self._directory / volume["metadata"]["name"]
        if folder.parent == self._directory and folder.name.startswith("pvc-"):
            try:
                await asyncio.to_thread(shutil.rmtree, folder)
            except FileNotFoundError:
                pass
            except OSError as error:
                self.recorder.event(volume, "Warning", "VolumeFailedDelete", str(error))
                await self._phase(volume, "Failed", str(error))
                return
        try:
            await self.client.delete(PERSISTENT_VOLUMES, volume["metadata"]["name"], uid=volume["metadata"]["uid"])
        except ApiError as error:
            if not (error.not_found or error.conflict):
                raise

    async def _phase(self, volume: Object, phase: str, message: str = "") -> None:
        current = volume.get("status") or {}
        if current.get("phase") == phase and (current.get("message") or "") == message:
            return
        status: Object = {**current, "phase": phase}
        if current.get("phase") != phase:
            status["lastPhaseTransitionTime"] = pods.format_time(self.clock.now())
        status.pop("message", None)
        if message:
            status["message"] = message
        volume.update(await self.client.update(PERSISTENT_VOLUMES, {**volume, "status": status}, subresource="status"))


def satisfies(volume: Object, claim: Object) -> bool:
    """A free volume meets a claim: size, modes, class, selector."""
    spec, wanted = volume["spec"], claim["spec"]
    if volume["metadata"].get("deletionTimestamp"):
        return False
    if (spec.get("storageClassName") or "") != (wanted.get("storageClassName") or ""):
        return False
    if spec.get("volumeMode", "Filesystem") != wanted.get("volumeMode", "Filesystem"):
        return False
    if not set(wanted.get("accessModes") or ()) <= set(spec.get("accessModes") or ()):
        return False
    if wanted.get("selector") is not None and not matches(wanted["selector"], volume["metadata"].get("labels") or {}):
        return False
    return _storage(spec["capacity"]) >= _storage(wanted["resources"]["requests"])


def _storage(quantities: Mapping[str, Any]) -> int:
    return amounts({"storage": quantities.get("storage", "0")})["storage"]


def _claim_reference(claim: Object) -> Object:
    metadata = claim["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "resourceVersion": metadata["resourceVersion"],
    }
