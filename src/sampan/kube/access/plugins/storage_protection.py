"""StorageObjectInUseProtection: claims and volumes carry a finalizer that outlasts their use.

The controllers in ``kube.control.storage_protection`` take it off once nothing uses the object.
"""

from __future__ import annotations

from sampan.kube.access.interface import AdmissionRequest
from sampan.kube.access.plugins.plugin import Plugin
from sampan.kube.resources import PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES

FINALIZERS = {
    "persistentvolumeclaims": "kubernetes.io/pvc-protection",
    "persistentvolumes": "kubernetes.io/pv-protection",
}


class StorageProtection(Plugin):
    """Adds the protection finalizer to new claims and volumes."""

    operations = ("CREATE",)
    resources = (PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES)

    async def admit(self, request: AdmissionRequest) -> None:
        assert request.object is not None
        finalizer = FINALIZERS[request.type.resource.plural]
        metadata = request.object["metadata"]
        finalizers = metadata.get("finalizers") or []
        if finalizer not in finalizers:
            metadata["finalizers"] = [*finalizers, finalizer]
