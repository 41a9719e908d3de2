"""PersistentVolumeClaimResize: a claim grows only where its storage class lets it."""

from __future__ import annotations

from decimal import Decimal

from sampan.kube.access.interface import AdmissionRequest
from sampan.kube.access.plugins.plugin import Plugin
from sampan.kube.access.refusal import refused
from sampan.kube.objects import Object, dig
from sampan.kube.resources import PERSISTENT_VOLUME_CLAIMS, STORAGE_CLASSES
from sampan.kube.types import quantity


class ClaimResize(Plugin):
    """Refuses to enlarge a claim that is not dynamically provisioned by an expandable class."""

    operations = ("UPDATE",)
    resources = (PERSISTENT_VOLUME_CLAIMS,)

    async def validate(self, request: AdmissionRequest) -> None:
        assert request.object is not None
        assert request.old_object is not None
        if _size(request.object) <= _size(request.old_object):
            return
        if dig(request.old_object, "status", "phase") != "Bound":
            raise refused(request, "only bound persistent volume claims can be expanded")
        name = dig(request.object, "spec", "storageClassName", default="")
        found = self.cache.get(STORAGE_CLASSES, "", name) if name else None
        if found is None or not found.get("allowVolumeExpansion"):
            raise refused(
                request,
                "only dynamically provisioned pvc can be resized and "
                "the storageclass that provisions the pvc must support resize",
            )


def _size(claim: Object) -> Decimal:
    return quantity.parse(dig(claim, "spec", "resources", "requests", "storage", default="0"))
