"""The sentences with which access refuses: upstream's texts, in one place."""

from __future__ import annotations

from sampan.kube.access.interface import AdmissionRequest, Attributes
from sampan.kube.objects import Resource
from sampan.kube.status import ApiError, forbidden


def action(attributes: Attributes) -> str:
    """What a user wanted, as upstream writes it: ``User "u" cannot get resource "pods" in API group "" ...``."""
    user = f'User "{attributes.user.name}" cannot {attributes.verb}'
    if attributes.resource is None:
        return f'{user} path "{attributes.path}"'
    resource = attributes.resource.plural
    if attributes.subresource:
        resource += f"/{attributes.subresource}"
    place = f'in the namespace "{attributes.namespace}"' if attributes.namespace else "at the cluster scope"
    return f'{user} resource "{resource}" in API group "{attributes.resource.group}" {place}'


def denied(attributes: Attributes, reason: str = "") -> ApiError:
    """403 for a request that no authorizer allows; ``reason`` is what the authorizers had to say."""
    why = f"{action(attributes)}: {reason}" if reason else action(attributes)
    if attributes.resource is None:
        return ApiError(403, "Forbidden", f"forbidden: {why}")
    return forbidden(attributes.resource, attributes.name, why)


def refused(request: AdmissionRequest, why: str) -> ApiError:
    """403 by an admission plugin, about the object under admission."""
    return forbidden(request.type.resource, name_of(request), why)


def name_of(request: AdmissionRequest) -> str:
    """The object's name, also where only the object knows it."""
    if request.name:
        return request.name
    metadata = (request.object or request.old_object or {}).get("metadata") or {}
    name: str = metadata.get("name") or metadata.get("generateName") or ""
    return name


def about(request: AdmissionRequest, *resources: Resource, subresource: str = "") -> bool:
    """Whether the request writes one of these resources (any version) through the given subresource."""
    if request.subresource != subresource:
        return False
    own = request.type.resource
    return any(own.plural == resource.plural and own.group == resource.group for resource in resources)
