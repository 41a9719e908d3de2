"""core/v1 except pods, services, nodes, volumes and events: namespaces, configuration, quotas, controllers, templates."""

from __future__ import annotations

import base64
from typing import ClassVar

from sampan.kube.objects import Kind, Object
from sampan.kube.types import names
from sampan.kube.types.groups.declare import declare, scale, status
from sampan.kube.types.groups.pod_defaults import default_template
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy


class NamespaceStrategy(BuiltinStrategy):
    """Namespaces."""

    namespaced = False
    name_rule = staticmethod(names.dns_label)
    selectable_paths: ClassVar = {"status.phase": ("status", "phase")}

    def default(self, obj: Object) -> None:
        metadata = obj["metadata"]
        if name := metadata.get("name"):
            metadata.setdefault("labels", {})["kubernetes.io/metadata.name"] = name
        obj.setdefault("spec", {})

    def prepare_create(self, obj: Object) -> None:
        finalizers = obj["spec"].setdefault("finalizers", [])
        if "kubernetes" not in finalizers:
            finalizers.append("kubernetes")
        obj["status"] = {"phase": "Active"}

    def prepare_update(self, new: Object, old: Object) -> None:
        super().prepare_update(new, old)
        # Only the finalize subresource takes finalizers off.
        if "finalizers" in (old.get("spec") or {}):
            new["spec"]["finalizers"] = old["spec"]["finalizers"]
        else:
            new["spec"].pop("finalizers", None)


class ConfigMapStrategy(BuiltinStrategy):
    """ConfigMaps."""

    has_status = False


class SecretStrategy(BuiltinStrategy):
    """Secrets."""

    has_status = False
    selectable_paths: ClassVar = {"type": ("type",)}

    def default(self, obj: Object) -> None:
        if not obj.get("type"):
            obj["type"] = "Opaque"
        text = obj.pop("stringData", None)
        if text:
            data = obj.setdefault("data", {})
            for key, value in text.items():
                data[key] = base64.b64encode(value.encode()).decode("ascii")


class ServiceAccountStrategy(BuiltinStrategy):
    """ServiceAccounts."""

    has_status = False
    delete_returns_object = True


class LimitRangeStrategy(BuiltinStrategy):
    """LimitRanges."""

    has_status = False
    create_on_update = True

    def default(self, obj: Object) -> None:
        for item in (obj.get("spec") or {}).get("limits") or ():
            if item.get("type") != "Container":
                continue
            most, defaults = item.get("max") or {}, item.get("default") or {}
            requests, least = item.get("defaultRequest") or {}, item.get("min") or {}
            defaults = {**most, **defaults}
            requests = {**least, **defaults, **requests}
            if defaults:
                item["default"] = defaults
            if requests:
                item["defaultRequest"] = requests


class ResourceQuotaStrategy(BuiltinStrategy):
    """ResourceQuotas."""

    delete_returns_object = True


class ReplicationControllerStrategy(BuiltinStrategy):
    """ReplicationControllers."""

    has_generation = True
    default_propagation = "Orphan"
    selectable_paths: ClassVar = {"status.replicas": ("status", "replicas")}

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        spec.setdefault("replicas", 1)
        template = spec.get("template")
        if template is None:
            return
        default_template(template)
        labels = template["metadata"].get("labels")
        if labels:
            if not spec.get("selector"):
                spec["selector"] = dict(labels)
            if not obj["metadata"].get("labels"):
                obj["metadata"]["labels"] = dict(labels)

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {"replicas": 0}


class PodTemplateStrategy(BuiltinStrategy):
    """PodTemplates."""

    has_generation = True
    has_status = False
    delete_returns_object = True

    def default(self, obj: Object) -> None:
        default_template(obj.setdefault("template", {}))


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
