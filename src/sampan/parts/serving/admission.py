"""Serving's admission: Knative's defaulting and validation, as a plugin of the API server."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sampan.kube.access.interface import AdmissionRequest
from sampan.kube.client import Client
from sampan.kube.client.resources import CONFIG_MAPS, PODS
from sampan.kube.objects import Object, dig
from sampan.kube.status import ApiError
from sampan.parts.serving import decoding, defaults, keys, validation
from sampan.parts.serving.configmaps import Config
from sampan.parts.serving.control.revision import sample_pod
from sampan.parts.serving.findings import denied
from sampan.parts.serving.resources import SERVING, SYSTEM_NAMESPACE

Validate = Callable[[Object, Object | None, Config], None]

_VALIDATORS: Mapping[str, Validate] = {
    "services": validation.service,
    "configurations": validation.configuration,
    "routes": validation.route,
    "revisions": validation.revision,
    "domainmappings": validation.domain_mapping,
}


class ServingAdmission:
    """Defaults and validates the kinds of ``serving.knative.dev``."""

    def __init__(self, config: Config, client: Client) -> None:
        self._config = config
        self._client = client

    async def admit(self, request: AdmissionRequest) -> None:
        obj = request.object
        if obj is None or not _concerns(request):
            return
        if request.old_object is None or obj.get("spec") != request.old_object.get("spec"):
            decoding.read(request.type.resource.plural, obj)
        settings, user = self._config.defaults(), request.user.name
        secure = self._config.feature(defaults.SECURE_PODS)
        match request.type.resource.plural:
            case "services":
                defaults.default_service(obj, request.old_object, user, settings, secure)
            case "configurations":
                defaults.default_configuration(obj, request.old_object, user, settings, secure)
            case "routes":
                defaults.default_route(obj, request.old_object, user)
            case "revisions" if request.old_object is None:
                defaults.default_revision_spec(obj.setdefault("spec", {}), settings, create=True, secure=secure)

    async def validate(self, request: AdmissionRequest) -> None:
        if _is_our_config_map(request):
            validation.config_map(request.object or {})
            return
        validate = _VALIDATORS.get(request.type.resource.plural)
        if validate is None or request.object is None or not _concerns(request):
            return
        if request.object["metadata"].get("deletionTimestamp"):
            return
        validate(request.object, request.old_object, self._config)
        if request.dry_run and request.type.resource.plural in ("services", "configurations"):
            await self._try(request.object, request.namespace)

    async def _try(self, obj: Object, namespace: str) -> None:
        """Who only asks what would happen is told, too, what Kubernetes would say of the pods."""
        if obj["kind"] == "Configuration" and dig(obj, "metadata", "labels", keys.SERVICE):
            return
        pod = sample_pod(dig(obj, "spec", "template", "spec", default={}), namespace)
        try:
            await self._client.create(PODS, pod, namespace, dry_run=True)
        except ApiError as error:
            text = f"validation callback failed: dry run failed with {error.message}: spec.template"
            raise denied(text) from error


def _is_our_config_map(request: AdmissionRequest) -> bool:
    return (
        request.type.resource == CONFIG_MAPS
        and request.namespace == SYSTEM_NAMESPACE
        and request.operation in ("CREATE", "UPDATE")
    )


def _concerns(request: AdmissionRequest) -> bool:
    return (
        request.type.resource.group == SERVING and request.operation in ("CREATE", "UPDATE") and not request.subresource
    )
