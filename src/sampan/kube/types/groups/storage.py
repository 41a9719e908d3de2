"""Volumes and where they come from: core/v1 PersistentVolume and claim, and storage.k8s.io/v1."""

from __future__ import annotations

from sampan.kube.objects import Object
from sampan.kube.types.groups.declare import declare, status
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy


class PersistentVolumeStrategy(BuiltinStrategy):
    """PersistentVolumes."""

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


class PersistentVolumeClaimStrategy(BuiltinStrategy):
    """PersistentVolumeClaims."""

    delete_returns_object = True

    def default(self, obj: Object) -> None:
        default_claim(obj)

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {"phase": "Pending"}


def default_claim(claim: Object) -> None:
    """A claim, also one in a template."""
    claim.setdefault("spec", {}).setdefault("volumeMode", "Filesystem")
    source = claim["spec"].get("dataSource")
    if source is not None and "dataSourceRef" not in claim["spec"]:
        claim["spec"]["dataSourceRef"] = dict(source)


class StorageClassStrategy(BuiltinStrategy):
    """StorageClasses."""

    namespaced = False
    has_status = False
    delete_returns_object = True

    def default(self, obj: Object) -> None:
        obj.setdefault("reclaimPolicy", "Delete")
        obj.setdefault("volumeBindingMode", "Immediate")


class CSIDriverStrategy(BuiltinStrategy):
    """CSIDrivers."""

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


class CSINodeStrategy(BuiltinStrategy):
    """CSINodes."""

    namespaced = False
    has_status = False
    delete_returns_object = True


class CSIStorageCapacityStrategy(BuiltinStrategy):
    """CSIStorageCapacities."""

    has_status = False


class VolumeAttachmentStrategy(BuiltinStrategy):
    """VolumeAttachments."""

    namespaced = False
    delete_returns_object = True


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
