"""core/v1 except pods, services, nodes, volumes and events: namespaces, configuration, quotas, controllers, templates."""

from __future__ import annotations

from typing import ClassVar

from sampan.kube.objects import Kind
from sampan.kube.types import names
from sampan.kube.types.groups.declare import declare, scale, status
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy


class NamespaceStrategy(BuiltinStrategy):
    """Namespaces."""

    namespaced = False
    name_rule = staticmethod(names.dns_label)
    selectable_paths: ClassVar = {"status.phase": ("status", "phase")}


class ConfigMapStrategy(BuiltinStrategy):
    """ConfigMaps."""

    has_status = False


class SecretStrategy(BuiltinStrategy):
    """Secrets."""

    has_status = False
    selectable_paths: ClassVar = {"type": ("type",)}


class ServiceAccountStrategy(BuiltinStrategy):
    """ServiceAccounts."""

    has_status = False
    delete_returns_object = True


class LimitRangeStrategy(BuiltinStrategy):
    """LimitRanges."""

    has_status = False
    create_on_update = True


class ResourceQuotaStrategy(BuiltinStrategy):
    """ResourceQuotas."""

    delete_returns_object = True


class ReplicationControllerStrategy(BuiltinStrategy):
    """ReplicationControllers."""

    has_generation = True
    default_propagation = "Orphan"
    selectable_paths: ClassVar = {"status.replicas": ("status", "replicas")}


class PodTemplateStrategy(BuiltinStrategy):
    """PodTemplates."""

    has_generation = True
    has_status = False
    delete_returns_object = True


class BindingStrategy(BuiltinStrategy):
    """Bindings: only ever posted."""

    has_status = False


class ComponentStatusStrategy(BuiltinStrategy):
    """ComponentStatuses: read only, kept for old clients."""

    namespaced = False
    has_status = False


def types() -> list[ResourceType]:
    """The kinds of this module."""
    return [
        declare("v1", "bindings", "Binding", BindingStrategy(), verbs=("create",)),
        declare(
            "v1",
            "componentstatuses",
            "ComponentStatus",
            ComponentStatusStrategy(),
            short=("cs",),
            verbs=("get", "list"),
        ),
        declare("v1", "configmaps", "ConfigMap", ConfigMapStrategy(), short=("cm",)),
        declare("v1", "limitranges", "LimitRange", LimitRangeStrategy(), short=("limits",)),
        declare(
            "v1",
            "namespaces",
            "Namespace",
            NamespaceStrategy(),
            short=("ns",),
            verbs=("create", "delete", "get", "list", "patch", "update", "watch"),
            subresources=(("finalize", "Namespace", ("update",)), status("Namespace")),
        ),
        declare("v1", "podtemplates", "PodTemplate", PodTemplateStrategy()),
        declare(
            "v1",
            "replicationcontrollers",
            "ReplicationController",
            ReplicationControllerStrategy(),
            short=("rc",),
            categories=("all",),
            subresources=(scale(), status("ReplicationController")),
        ),
        declare(
            "v1",
            "resourcequotas",
            "ResourceQuota",
            ResourceQuotaStrategy(),
            short=("quota",),
            subresources=(status("ResourceQuota"),),
        ),
        declare("v1", "secrets", "Secret", SecretStrategy()),
        declare(
            "v1",
            "serviceaccounts",
            "ServiceAccount",
            ServiceAccountStrategy(),
            short=("sa",),
            subresources=(("token", Kind("authentication.k8s.io", "v1", "TokenRequest"), ("create",)),),
        ),
    ]
