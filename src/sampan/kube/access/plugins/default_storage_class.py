"""DefaultStorageClass: a claim that names no storage class gets the default one."""

from __future__ import annotations

from sampan.kube.access.interface import AdmissionRequest
from sampan.kube.access.plugins.plugin import Plugin
from sampan.kube.objects import Object
from sampan.kube.resources import PERSISTENT_VOLUME_CLAIMS, STORAGE_CLASSES

ANNOTATIONS = ("storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class")
LEGACY = "volume.beta.kubernetes.io/storage-class"


def newest_default(classes: list[Object], annotations: tuple[str, ...]) -> Object | None:
    """The class marked as default; of several the youngest, then the first by name."""
    marked = [
        each
        for each in classes
        if any((each["metadata"].get("annotations") or {}).get(annotation) == "true" for annotation in annotations)
    ]
    marked.sort(key=lambda each: str(each["metadata"]["name"]))
    marked.sort(key=lambda each: str(each["metadata"].get("creationTimestamp") or ""), reverse=True)
    return marked[0] if marked else None


class DefaultStorageClass(Plugin):
    """Fills ``storageClassName`` of new claims; an empty name is a choice and stays."""

    operations = ("CREATE",)
    resources = (PERSISTENT_VOLUME_CLAIMS,)

    async def admit(self, request: AdmissionRequest) -> None:
        assert request.object is not None
        spec = request.object.setdefault("spec", {})
        annotations = request.object["metadata"].get("annotations") or {}
        if spec.get("storageClassName") is not None or LEGACY in annotations:
            return
        default = newest_default(self.cache.objects(STORAGE_CLASSES), ANNOTATIONS)
        if default is not None:
            spec["storageClassName"] = default["metadata"]["name"]
