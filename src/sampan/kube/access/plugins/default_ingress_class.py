"""DefaultIngressClass: an Ingress that names no class gets the default one."""

from __future__ import annotations

from sampan.kube.access.interface import AdmissionRequest
from sampan.kube.access.plugins.default_storage_class import newest_default
from sampan.kube.access.plugins.plugin import Plugin
from sampan.kube.resources import INGRESS_CLASSES, INGRESSES

ANNOTATION = "ingressclass.kubernetes.io/is-default-class"
LEGACY = "kubernetes.io/ingress.class"


class DefaultIngressClass(Plugin):
    """Fills ``ingressClassName`` of new Ingresses."""

    operations = ("CREATE",)
    resources = (INGRESSES,)

    async def admit(self, request: AdmissionRequest) -> None:
        assert request.object is not None
        spec = request.object.setdefault("spec", {})
        if spec.get("ingressClassName") is not None or LEGACY in (request.object["metadata"].get("annotations") or {}):
            return
        default = newest_default(self.cache.objects(INGRESS_CLASSES), (ANNOTATION,))
        if default is not None:
            spec["ingressClassName"] = default["metadata"]["name"]
