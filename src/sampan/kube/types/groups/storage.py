"""Volumes and where they come from: core/v1 PersistentVolume and claim, and storage.k8s.io/v1."""

from __future__ import annotations

from sampan.kube.types.groups.declare import declare, status
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy


class PersistentVolumeStrategy(BuiltinStrategy):
    """PersistentVolumes."""

    namespaced = False
    delete_returns_object = True


class PersistentVolumeClaimStrategy(BuiltinStrategy):
    """PersistentVolumeClaims."""

    delete_returns_object = True


class StorageClassStrategy(BuiltinStrategy):
    """StorageClasses."""

    namespaced = False
    has_status = False
    delete_returns_object = True


class CSIDriverStrategy(BuiltinStrategy):
    """CSIDrivers."""

    namespaced = False
    has_status = False
    delete_returns_object = True


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
