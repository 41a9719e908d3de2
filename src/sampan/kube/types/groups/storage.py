"""Volumes and where they come from: core/v1 PersistentVolume and claim, and storage.k8s.io/v1."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sampan.kube.objects import Object, dig
from sampan.kube.types.groups import cells
from sampan.kube.types.groups.declare import declare, status
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy, columns

DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"


class PersistentVolumeStrategy(BuiltinStrategy):
    """PersistentVolumes."""

    columns = columns(
        "Capacity",
        "Access Modes",
        "Reclaim Policy",
        "Status",
        "Claim",
        "StorageClass",
        "VolumeAttributesClass",
        "Reason",
        wide=("VolumeMode",),
    )
    namespaced = False
    delete_returns_object = True

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        if not spec.get("persistentVolumeReclaimPolicy"):
            spec["persistentVolumeReclaimPolicy"] = "Retain"
        spec.setdefault("volumeMode", "Filesystem")
        if "hostPath" in spec:
            spec["hostPath"].setdefault("type", "")

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {"phase": "Pending"}

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec, status = obj.get("spec") or {}, obj.get("status") or {}
        claim = spec.get("claimRef") or {}
        return [
            obj["metadata"]["name"],
            dig(spec, "capacity", "storage", default=""),
            _access_modes(spec.get("accessModes")),
            spec.get("persistentVolumeReclaimPolicy") or "",
            _phase(obj),
            f"{claim.get('namespace')}/{claim.get('name')}" if claim else "",
            spec.get("storageClassName") or "",
            spec.get("volumeAttributesClassName") or cells.UNSET,
            status.get("reason") or "",
            cells.age(obj, now),
            spec.get("volumeMode") or cells.UNSET,
        ]


class PersistentVolumeClaimStrategy(BuiltinStrategy):
    """PersistentVolumeClaims."""

    columns = columns(
        "Status",
        "Volume",
        "Capacity",
        "Access Modes",
        "StorageClass",
        "VolumeAttributesClass",
        wide=("VolumeMode",),
    )
    delete_returns_object = True

    def default(self, obj: Object) -> None:
        default_claim(obj)

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {"phase": "Pending"}

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec, status = obj.get("spec") or {}, obj.get("status") or {}
        volume = spec.get("volumeName") or ""
        annotation = (obj["metadata"].get("annotations") or {}).get("volume.beta.kubernetes.io/storage-class")
        return [
            obj["metadata"]["name"],
            _phase(obj),
            volume,
            dig(status, "capacity", "storage", default="") if volume else "",
            _access_modes(status.get("accessModes")) if volume else "",
            annotation or spec.get("storageClassName") or "",
            spec.get("volumeAttributesClassName") or cells.UNSET,
            cells.age(obj, now),
            spec.get("volumeMode") or cells.UNSET,
        ]


_MODES = {
    "ReadWriteOnce": "RWO",
    "ReadOnlyMany": "ROX",
    "ReadWriteMany": "RWX",
    "ReadWriteOncePod": "RWOP",
}


def _access_modes(modes: Sequence[str] | None) -> str:
    return ",".join(short for mode, short in _MODES.items() if mode in (modes or ()))


def _phase(obj: Object) -> str:
    return "Terminating" if obj["metadata"].get("deletionTimestamp") else dig(obj, "status", "phase", default="")


def default_claim(claim: Object) -> None:
    """A claim, also one in a template."""
    claim.setdefault("spec", {}).setdefault("volumeMode", "Filesystem")
    source = claim["spec"].get("dataSource")
    if source is not None and "dataSourceRef" not in claim["spec"]:
        claim["spec"]["dataSourceRef"] = dict(source)


class StorageClassStrategy(BuiltinStrategy):
    """StorageClasses."""

    columns = columns("Provisioner", "ReclaimPolicy", "VolumeBindingMode", "AllowVolumeExpansion:boolean")
    namespaced = False
    has_status = False
    delete_returns_object = True

    def default(self, obj: Object) -> None:
        obj.setdefault("reclaimPolicy", "Delete")
        obj.setdefault("volumeBindingMode", "Immediate")

    def row(self, obj: Object, now: datetime) -> list[Any]:
        name = obj["metadata"]["name"]
        if (obj["metadata"].get("annotations") or {}).get(DEFAULT_CLASS) == "true":
            name += " (default)"
        return [
            name,
            obj.get("provisioner") or "",
            obj.get("reclaimPolicy") or "Delete",
            obj.get("volumeBindingMode") or "Immediate",
            bool(obj.get("allowVolumeExpansion")),
            cells.age(obj, now),
        ]


class CSIDriverStrategy(BuiltinStrategy):
    """CSIDrivers."""

    columns = columns(
        "AttachRequired:boolean",
        "PodInfoOnMount:boolean",
        "StorageCapacity:boolean",
        "TokenRequests",
        "RequiresRepublish:boolean",
        "Modes",
    )
    namespaced = False
    has_status = False
    delete_returns_object = True

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        for name, value in (
            ("attachRequired", True),
            ("podInfoOnMount", False),
            ("storageCapacity", False),
            ("fsGroupPolicy", "ReadWriteOnceWithFSType"),
            ("requiresRepublish", False),
            ("seLinuxMount", False),
        ):
            spec.setdefault(name, value)
        if not spec.get("volumeLifecycleModes"):
            spec["volumeLifecycleModes"] = ["Persistent"]

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec = obj.get("spec") or {}
        audiences = ",".join(request.get("audience") or "" for request in spec.get("tokenRequests") or ())
        return [
            obj["metadata"]["name"],
            bool(spec.get("attachRequired", True)),
            bool(spec.get("podInfoOnMount")),
            bool(spec.get("storageCapacity")),
            audiences or cells.UNSET,
            bool(spec.get("requiresRepublish")),
            ",".join(spec.get("volumeLifecycleModes") or ()) or cells.NONE,
            cells.age(obj, now),
        ]


class CSINodeStrategy(BuiltinStrategy):
    """CSINodes."""

    columns = columns("Drivers:integer")
    namespaced = False
    has_status = False
    delete_returns_object = True

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [obj["metadata"]["name"], len(dig(obj, "spec", "drivers", default=())), cells.age(obj, now)]


class CSIStorageCapacityStrategy(BuiltinStrategy):
    """CSIStorageCapacities."""

    columns = columns("StorageClassName", "Capacity")
    has_status = False

    def row(self, obj: Object, now: datetime) -> list[Any]:
        capacity = obj.get("capacity") or cells.UNSET
        return [obj["metadata"]["name"], obj.get("storageClassName") or "", capacity, cells.age(obj, now)]


class VolumeAttachmentStrategy(BuiltinStrategy):
    """VolumeAttachments."""

    columns = columns("Attacher", "PV", "Node", "Attached:boolean")
    namespaced = False
    delete_returns_object = True

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec = obj.get("spec") or {}
        return [
            obj["metadata"]["name"],
            spec.get("attacher") or "",
            dig(spec, "source", "persistentVolumeName", default=""),
            spec.get("nodeName") or "",
            bool(dig(obj, "status", "attached")),
            cells.age(obj, now),
        ]


def types() -> list[ResourceType]:
    """The kinds of this module."""
    return [
        declare(
            "v1",
            "persistentvolumes",
            "PersistentVolume",
            PersistentVolumeStrategy(),
            short=("pv",),
            subresources=(status("PersistentVolume"),),
        ),
        declare(
            "v1",
            "persistentvolumeclaims",
            "PersistentVolumeClaim",
            PersistentVolumeClaimStrategy(),
            short=("pvc",),
            subresources=(status("PersistentVolumeClaim"),),
        ),
        declare("storage.k8s.io/v1", "csidrivers", "CSIDriver", CSIDriverStrategy()),
        declare("storage.k8s.io/v1", "csinodes", "CSINode", CSINodeStrategy()),
        declare("storage.k8s.io/v1", "csistoragecapacities", "CSIStorageCapacity", CSIStorageCapacityStrategy()),
        declare("storage.k8s.io/v1", "storageclasses", "StorageClass", StorageClassStrategy(), short=("sc",)),
        declare(
            "storage.k8s.io/v1",
            "volumeattachments",
            "VolumeAttachment",
            VolumeAttachmentStrategy(),
            subresources=(status("VolumeAttachment"),),
        ),
    ]
