"""Which requests a webhook or an admission policy is about: rules, selectors and equivalent versions.

`matched` answers with the resource type in whose version the matcher wants to see the objects: usually the request's own,
under ``matchPolicy: Equivalent`` maybe another served version of the same stored kind, and None when it is not concerned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sampan.kube.access.interface import APISERVER, AdmissionRequest, ObjectCache
from sampan.kube.access.reviews import user_info
from sampan.kube.objects import Kind, Object, copy
from sampan.kube.resources import NAMESPACES
from sampan.kube.types.resource import ResourceType, TypeRegistry
from sampan.kube.types.selectors import matches

_CONFIGURATIONS = frozenset(
    {
        "mutatingwebhookconfigurations",
        "validatingwebhookconfigurations",
        "validatingadmissionpolicies",
        "validatingadmissionpolicybindings",
        "mutatingadmissionpolicies",
        "mutatingadmissionpolicybindings",
    }
)


def exempt(request: AdmissionRequest) -> bool:
    """Whether webhooks and policies are not asked at all.

    Configurations of admission itself are never shown to it, for a broken one must remain removable; nor is what the API
    server writes for itself.
    """
    if request.user == APISERVER:
        return True
    resource = request.type.resource
    return resource.group == "admissionregistration.k8s.io" and resource.plural in _CONFIGURATIONS


def matched(
    request: AdmissionRequest, types: TypeRegistry, rules: Iterable[Mapping[str, Any]], *, equivalent: bool
) -> ResourceType | None:
    """The type by which one of the rules names the request's resource, or None."""
    rules = list(rules)
    if any(_names(rule, request, request.type) for rule in rules):
        return request.type
    if equivalent:
        for other in _equivalents(request.type, types):
            if any(_names(rule, request, other) for rule in rules):
                return other
    return None


def _equivalents(own: ResourceType, types: TypeRegistry) -> Iterator[ResourceType]:
    for other in types.all():
        if other.stored_as == own.stored_as and other.resource != own.resource:
            yield other


def _names(rule: Mapping[str, Any], request: AdmissionRequest, type: ResourceType) -> bool:
    operations = rule.get("operations") or ()
    if request.operation not in operations and "*" not in operations:
        return False
    scope = rule.get("scope") or "*"
    # A Namespace is cluster-scoped although requests about it stand "in" it.
    if scope != "*" and (scope == "Namespaced") != type.namespaced:
        return False
    groups, versions = rule.get("apiGroups") or (), rule.get("apiVersions") or ()
    resource = type.resource
    if resource.group not in groups and "*" not in groups:
        return False
    if resource.version not in versions and "*" not in versions:
        return False
    names = rule.get("resourceNames") or ()
    if names and request.name not in names:
        return False
    return any(_is(pattern, resource.plural, request.subresource) for pattern in rule.get("resources") or ())


def _is(pattern: str, plural: str, subresource: str) -> bool:
    """``pods``, ``pods/log``, ``pods/*``, ``*/scale``, ``*`` (no subresources) and ``*/*``."""
    wanted, slash, wanted_sub = pattern.partition("/")
    if wanted not in ("*", plural):
        return False
    if not slash:
        return not subresource
    return wanted_sub in ("*", subresource)


def selected(
    request: AdmissionRequest,
    cache: ObjectCache,
    namespace_selector: Mapping[str, Any] | None,
    object_selector: Mapping[str, Any] | None,
) -> bool:
    """Whether the namespace's and the object's labels are selected; an absent selector selects all."""
    if object_selector and not any(
        matches(object_selector, ((obj or {}).get("metadata") or {}).get("labels"))
        for obj in (request.object, request.old_object)
        if obj is not None
    ):
        return False
    if not namespace_selector:
        return True
    labels = _namespace_labels(request, cache)
    return labels is None or matches(namespace_selector, labels)


def _namespace_labels(request: AdmissionRequest, cache: ObjectCache) -> Mapping[str, str] | None:
    """Labels for the namespace selector; None for what lives in no namespace."""
    resource = request.type.resource
    if resource.plural == "namespaces" and not resource.group:
        obj = request.object if request.object is not None and not request.subresource else request.old_object
        obj = obj or cache.get(NAMESPACES, "", request.name) or {}
    elif request.namespace:
        obj = cache.get(NAMESPACES, "", request.namespace) or {}
    else:
        return None
    labels: Mapping[str, str] = (obj.get("metadata") or {}).get("labels") or {}
    return labels


async def converted(obj: Object | None, own: ResourceType, other: ResourceType) -> Object | None:
    """An object of one version in another version of the same kind; the object itself when nothing differs.

    Raises:
        ApiError: 500, the kind's conversion webhook fails.
    """
    if obj is None or own.resource == other.resource:
        return obj
    changed: Object = copy(obj)
    stored = own.stored_as.api_version
    if own.conversion is not None:
        await own.conversion.prepare([changed], stored)
    if own.to_storage is not None:
        changed = own.to_storage(changed)
    changed["apiVersion"] = stored
    if other.conversion is not None:
        await other.conversion.prepare([changed], other.resource.api_version)
    if other.from_storage is not None:
        changed = other.from_storage(changed)
    changed["apiVersion"], changed["kind"] = other.resource.api_version, other.kind
    return changed


def kind_of(request: AdmissionRequest, type: ResourceType) -> Kind:
    """The kind of what the request carries: the resource's own, or its subresource's."""
    if request.subresource and (subresource := type.subresources.get(request.subresource)) is not None:
        return subresource.kind
    return type.gvk


def described(request: AdmissionRequest, type: ResourceType, uid: str) -> Object:
    """The request as AdmissionReview and CEL's ``request`` show it, without the objects."""
    kind, own = kind_of(request, type), kind_of(request, request.type)
    made: Object = {
        "uid": uid,
        "kind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "resource": _resource(type),
        "requestKind": {"group": own.group, "version": own.version, "kind": own.kind},
        "requestResource": _resource(request.type),
        "operation": request.operation,
        "userInfo": user_info(request.user),
        "dryRun": request.dry_run,
        "options": {**_OPTIONS.get(request.operation, {}), **request.options} or None,
    }
    if request.name:
        made["name"] = request.name
    if request.namespace:
        made["namespace"] = request.namespace
    if request.subresource:
        made["subResource"] = made["requestSubResource"] = request.subresource
    return made


_OPTIONS = {
    "CREATE": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
    "UPDATE": {"kind": "UpdateOptions", "apiVersion": "meta.k8s.io/v1"},
    "DELETE": {"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"},
}


def _resource(type: ResourceType) -> Object:
    resource = type.resource
    return {"group": resource.group, "version": resource.version, "resource": resource.plural}
