"""NamespaceLifecycle: nothing is created where there is no namespace or where one is being torn down."""

from __future__ import annotations

from sampan.kube.access.interface import AdmissionRequest
from sampan.kube.access.plugins.plugin import Plugin
from sampan.kube.access.refusal import refused
from sampan.kube.resources import NAMESPACES
from sampan.kube.status import ApiError, not_found

IMMORTAL = frozenset({"default", "kube-system", "kube-public"})


class NamespaceLifecycle(Plugin):
    """Refuses creates in absent or terminating namespaces and the deletion of the platform's own."""

    operations = ("CREATE", "DELETE")
    subresources = None

    async def admit(self, request: AdmissionRequest) -> None:
        resource = request.type.resource
        if resource.plural == "namespaces" and not resource.group:
            if request.operation == "DELETE" and request.name in IMMORTAL and not request.subresource:
                raise refused(request, "this namespace may not be deleted")
            return
        if request.operation != "CREATE" or not request.namespace:
            return
        namespace = self.cache.get(NAMESPACES, "", request.namespace)
        if namespace is None:
            raise not_found(NAMESPACES, request.namespace)
        # Upstream lets subresources (evictions, bindings, tokens) through while the namespace goes down.
        if request.subresource:
            return
        if (
            namespace["metadata"].get("deletionTimestamp")
            or (namespace.get("status") or {}).get("phase") == "Terminating"
        ):
            raise terminating(request)


def terminating(request: AdmissionRequest) -> ApiError:
    """403 with the cause by which controllers recognise that it is not worth retrying."""
    namespace = request.namespace
    error = refused(request, f"unable to create new content in namespace {namespace} because it is being terminated")
    error.details["causes"] = [
        {
            "reason": "NamespaceTerminating",
            "message": f"namespace {namespace} is being terminated",
            "field": "metadata.namespace",
        }
    ]
    return error
