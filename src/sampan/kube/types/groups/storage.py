"""Volumes and where they come from: core/v1 PersistentVolume and claim, and storage.k8s.io/v1."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sampan.kube.objects import Object, dig
from sampan.kube.types import names, quantity
from sampan.kube.types.groups import cells
from sampan.kube.types.groups.container_validation import validate_resources
from sampan.kube.types.groups.declare import declare, status
from sampan.kube.types.problems import Problems
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

    def check(self, obj: Object, problems: Problems) -> None:
        spec = obj.get("spec") or {}
        _check_modes(spec, "spec", problems)
        capacity = spec.get("capacity") or {}
        if not capacity:
            problems.required("spec.capacity")
        elif set(capacity) != {"storage"}:
            problems.unsupported("spec.capacity", sorted(capacity), ("storage",))
        elif quantity.parse(capacity["storage"]) <= 0:
            problems.invalid("spec.capacity[storage]", capacity["storage"], "must be greater than zero")
        policies = ("Delete", "Recycle", "Retain")
        problems.one_of("spec.persistentVolumeReclaimPolicy", spec.get("persistentVolumeReclaimPolicy"), policies)
        sources = [name for name in _VOLUME_SOURCES if spec.get(name) is not None]
        if not sources:
            problems.required("spec", "must specify a volume type")
        for extra in sources[1:]:
            problems.forbidden(f"spec.{extra}", "may not specify more than 1 volume type")

    def check_update(self, new: Object, old: Object, problems: Problems) -> None:
        fresh, stored = new.get("spec") or {}, old.get("spec") or {}
        for name in _VOLUME_SOURCES:
            if fresh.get(name) != stored.get(name) and name != "csi":
                problems.forbidden(
                    "spec.persistentvolumesource", "spec.persistentvolumesource is immutable after creation"
                )
                break
        problems.immutable("spec.volumeMode", fresh.get("volumeMode"), stored.get("volumeMode"))


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

    def check(self, obj: Object, problems: Problems) -> None:
        validate_claim_spec(obj.get("spec") or {}, "spec", problems)

    def check_update(self, new: Object, old: Object, problems: Problems) -> None:
        fresh, stored = dict(new.get("spec") or {}), dict(old.get("spec") or {})
        asked, had = (dig(s, "resources", "requests", "storage", default="0") for s in (fresh, stored))
        if quantity.compare(asked, had) < 0:
            problems.forbidden("spec.resources.requests.storage", "field can not be less than status.capacity")
        # A claim is bound by setting its volume once; its class by the default-class admission.
        for field in ("volumeName", "storageClassName"):
            if stored.get(field) is None or (field == "volumeName" and not stored[field]):
                fresh.pop(field, None)
                stored.pop(field, None)
        for spec in (fresh, stored):
            spec.pop("resources", None)
            spec.pop("volumeAttributesClassName", None)
        if fresh != stored:
            problems.forbidden(
                "spec",
                "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
            )


_VOLUME_SOURCES = (
    "awsElasticBlockStore", "azureDisk", "azureFile", "cephfs", "cinder", "csi", "fc", "flexVolume", "flocker",
    "gcePersistentDisk", "glusterfs", "hostPath", "iscsi", "local", "nfs", "photonPersistentDisk", "portworxVolume",
    "quobyte", "rbd", "scaleIO", "storageos", "vsphereVolume",
)  # fmt: skip


def _check_modes(spec: Object, path: str, problems: Problems) -> None:
    modes = spec.get("accessModes") or ()
    if not modes:
        problems.required(f"{path}.accessModes", "at least 1 access mode is required")
    for mode in modes:
        if mode not in _MODES:
            problems.unsupported(f"{path}.accessModes", mode, tuple(_MODES))
    if "ReadWriteOncePod" in modes and len(modes) > 1:
        problems.forbidden(f"{path}.accessModes", "may not use ReadWriteOncePod with other access modes")
    problems.one_of(f"{path}.volumeMode", spec.get("volumeMode"), ("Block", "Filesystem"), required=False)


def validate_claim_spec(spec: Object, path: str, problems: Problems) -> None:
    """Everything below ``spec`` of a claim."""
    _check_modes(spec, path, problems)
    resources = spec.get("resources") or {}
    amount = (resources.get("requests") or {}).get("storage")
    if amount is None:
        problems.required(f"{path}.resources[storage]")
    elif quantity.parse(amount) <= 0:
        problems.invalid(f"{path}.resources[storage]", amount, "must be greater than zero")
    validate_resources(resources, f"{path}.resources", problems)
    if name := spec.get("storageClassName"):
        problems.invalid_all(f"{path}.storageClassName", name, names.dns_subdomain(name))


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

    def check(self, obj: Object, problems: Problems) -> None:
        provisioner = obj.get("provisioner") or ""
        if not provisioner:
            problems.required("provisioner")
        else:
            problems.invalid_all("provisioner", provisioner, names.qualified_name(provisioner.lower()))
        problems.one_of("reclaimPolicy", obj.get("reclaimPolicy"), ("Delete", "Retain"))
        modes = ("Immediate", "WaitForFirstConsumer")
        problems.one_of("volumeBindingMode", obj.get("volumeBindingMode"), modes)

    def check_update(self, new: Object, old: Object, problems: Problems) -> None:
        if (new.get("parameters") or {}) != (old.get("parameters") or {}):
            problems.forbidden("parameters", "updates to parameters are forbidden.")
        if new.get("provisioner") != old.get("provisioner"):
            problems.forbidden("provisioner", "updates to provisioner are forbidden.")
        if new.get("reclaimPolicy") != old.get("reclaimPolicy"):
            problems.forbidden("reclaimPolicy", "updates to reclaimPolicy are forbidden.")
        problems.immutable("volumeBindingMode", new.get("volumeBindingMode"), old.get("volumeBindingMode"))


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
