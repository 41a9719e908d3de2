"""core/v1 except pods, services, nodes, volumes and events: namespaces, configuration, quotas, controllers, templates."""

from __future__ import annotations

import base64
import json
from datetime import datetime
from typing import Any, ClassVar

from sampan.kube.objects import Kind, Object, dig
from sampan.kube.types import names, quantity
from sampan.kube.types.groups import cells
from sampan.kube.types.groups.declare import declare, scale, status
from sampan.kube.types.groups.pod_defaults import default_template
from sampan.kube.types.groups.pod_validation import validate_template
from sampan.kube.types.groups.pod_warnings import pod_warnings
from sampan.kube.types.problems import Problems
from sampan.kube.types.resource import Column, ResourceType
from sampan.kube.types.strategy import CREATED_AT, NAME, BuiltinStrategy, columns

DATA_LIMIT = 1024 * 1024
"""Bytes of all values of a ConfigMap or Secret."""
_REQUIRED_KEYS = {
    "kubernetes.io/dockerconfigjson": (".dockerconfigjson",),
    "kubernetes.io/dockercfg": (".dockercfg",),
    "kubernetes.io/ssh-auth": ("ssh-privatekey",),
    "kubernetes.io/tls": ("tls.crt", "tls.key"),
}
_DOCKER_TYPES = {".dockerconfigjson": "kubernetes.io/dockerconfigjson", ".dockercfg": "kubernetes.io/dockercfg"}


def _is_json(value: str) -> bool:
    try:
        json.loads(base64.b64decode(value))
    except ValueError:
        return False
    return True


class NamespaceStrategy(BuiltinStrategy):
    """Namespaces."""

    columns = columns("Status")
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

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [obj["metadata"]["name"], dig(obj, "status", "phase", default=""), cells.age(obj, now)]


class ConfigMapStrategy(BuiltinStrategy):
    """ConfigMaps."""

    columns = columns("Data:integer")
    has_status = False

    def row(self, obj: Object, now: datetime) -> list[Any]:
        entries = len(obj.get("data") or ()) + len(obj.get("binaryData") or ())
        return [obj["metadata"]["name"], entries, cells.age(obj, now)]

    def check(self, obj: Object, problems: Problems) -> None:
        size = 0
        for field in ("data", "binaryData"):
            for key, value in (obj.get(field) or {}).items():
                problems.invalid_all(f"{field}[{key}]", key, names.config_key(key))
                size += len(value.encode()) if field == "data" else len(value) * 3 // 4
                if field == "binaryData" and key in (obj.get("data") or {}):
                    problems.invalid(f"data[{key}]", key, "duplicate of key present in binaryData")
        if size > DATA_LIMIT:
            problems.too_long("", DATA_LIMIT)

    def check_update(self, new: Object, old: Object, problems: Problems) -> None:
        if old.get("immutable"):
            if not new.get("immutable"):
                problems.forbidden("immutable", "field is immutable when `immutable` is set")
            for field in ("data", "binaryData"):
                if (new.get(field) or {}) != (old.get(field) or {}):
                    problems.forbidden(field, "field is immutable when `immutable` is set")


class SecretStrategy(BuiltinStrategy):
    """Secrets."""

    columns = columns("Type", "Data:integer")
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

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [obj["metadata"]["name"], obj.get("type") or "", len(obj.get("data") or ()), cells.age(obj, now)]

    def check(self, obj: Object, problems: Problems) -> None:
        data, kind = obj.get("data") or {}, obj.get("type")
        for key in data:
            problems.invalid_all(f"data[{key}]", key, names.config_key(key))
        if sum(len(value) * 3 // 4 for value in data.values()) > DATA_LIMIT:
            problems.too_long("data", DATA_LIMIT)
        for key in _REQUIRED_KEYS.get(kind or "", ()):
            if key not in data:
                problems.required(f"data[{key}]")
        annotations = obj["metadata"].get("annotations") or {}
        if kind == "kubernetes.io/service-account-token" and not annotations.get("kubernetes.io/service-account.name"):
            problems.required("metadata.annotations[kubernetes.io/service-account.name]")
        if kind == "kubernetes.io/basic-auth" and "username" not in data and "password" not in data:
            problems.required("data[username]")
            problems.required("data[password]")
        for key in (".dockerconfigjson", ".dockercfg"):
            if kind == _DOCKER_TYPES[key] and key in data and not _is_json(data[key]):
                problems.invalid(f"data[{key}]", "<secret contents redacted>", "invalid character in JSON")

    def check_update(self, new: Object, old: Object, problems: Problems) -> None:
        problems.immutable("type", new.get("type"), old.get("type"))
        if old.get("immutable"):
            if not new.get("immutable"):
                problems.forbidden("immutable", "field is immutable when `immutable` is set")
            if (new.get("data") or {}) != (old.get("data") or {}):
                problems.forbidden("data", "field is immutable when `immutable` is set")


class ServiceAccountStrategy(BuiltinStrategy):
    """ServiceAccounts."""

    columns = columns("Secrets:integer")
    has_status = False
    delete_returns_object = True

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [obj["metadata"]["name"], len(obj.get("secrets") or ()), cells.age(obj, now)]


class LimitRangeStrategy(BuiltinStrategy):
    """LimitRanges."""

    columns = (NAME, CREATED_AT)
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

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [obj["metadata"]["name"], cells.created(obj)]

    def check(self, obj: Object, problems: Problems) -> None:
        seen: set[str] = set()
        for index, item in enumerate(dig(obj, "spec", "limits", default=())):
            here, kind = f"spec.limits[{index}]", item.get("type") or ""
            if not kind:
                problems.required(f"{here}.type")
            if kind in seen:
                problems.duplicate(f"{here}.type", kind)
            seen.add(kind)
            least, most = item.get("min") or {}, item.get("max") or {}
            for name, amount in least.items():
                if name in most and quantity.compare(amount, most[name]) > 0:
                    why = f"min value {amount} is greater than max value {most[name]}"
                    problems.invalid(f"{here}.min[{name}]", amount, why)
            for name, amount in (item.get("defaultRequest") or {}).items():
                limit = (item.get("default") or {}).get(name)
                if limit is not None and quantity.compare(amount, limit) > 0:
                    why = f"default request value {amount} is greater than default limit value {limit}"
                    problems.invalid(f"{here}.defaultRequest[{name}]", amount, why)


class ResourceQuotaStrategy(BuiltinStrategy):
    """ResourceQuotas."""

    columns = columns("Request", "Limit", age_at=1)
    delete_returns_object = True

    def row(self, obj: Object, now: datetime) -> list[Any]:
        hard, used = dig(obj, "status", "hard", default={}), dig(obj, "status", "used", default={})
        texts = {name: f"{name}: {used.get(name, '0')}/{amount}" for name, amount in sorted(hard.items())}
        return [
            obj["metadata"]["name"],
            cells.age(obj, now),
            ", ".join(text for name, text in texts.items() if not name.startswith("limits.")),
            ", ".join(text for name, text in texts.items() if name.startswith("limits.")),
        ]

    def check(self, obj: Object, problems: Problems) -> None:
        for name, amount in dig(obj, "spec", "hard", default={}).items():
            problems.invalid_all(f"spec.hard[{name}]", name, names.qualified_name(name))
            if quantity.parse(amount) < 0:
                problems.invalid(f"spec.hard[{name}]", amount, "must be greater than or equal to 0")

    def check_update(self, new: Object, old: Object, problems: Problems) -> None:
        fresh, stored = dig(new, "spec", "scopes", default=[]), dig(old, "spec", "scopes", default=[])
        if sorted(fresh) != sorted(stored):
            problems.invalid("spec.scopes", fresh, "field is immutable")


class ReplicationControllerStrategy(BuiltinStrategy):
    """ReplicationControllers."""

    columns = columns("Desired:integer", "Current:integer", "Ready:integer", wide=("Containers", "Images", "Selector"))
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

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec, status = obj.get("spec") or {}, obj.get("status") or {}
        return [
            obj["metadata"]["name"],
            spec.get("replicas") or 0,
            status.get("replicas") or 0,
            status.get("readyReplicas") or 0,
            cells.age(obj, now),
            *cells.containers(spec.get("template")),
            cells.labels(spec.get("selector")),
        ]

    def check(self, obj: Object, problems: Problems) -> None:
        spec = obj.get("spec") or {}
        for field in ("replicas", "minReadySeconds"):
            problems.at_least(f"spec.{field}", spec.get(field))
        selector, template = spec.get("selector") or {}, spec.get("template")
        if not selector:
            problems.required("spec.selector")
        if template is None:
            problems.required("spec.template")
            return
        labels = (template.get("metadata") or {}).get("labels") or {}
        if any(labels.get(key) != value for key, value in selector.items()):
            problems.invalid("spec.template.metadata.labels", labels, "`selector` does not match template `labels`")
        validate_template(template, "spec.template", problems)
        policy = (template.get("spec") or {}).get("restartPolicy")
        if policy != "Always":
            problems.unsupported("spec.template.spec.restartPolicy", policy or "", ("Always",))

    def warnings(self, obj: Object) -> list[str]:
        return pod_warnings(dig(obj, "spec", "template", "spec", default={}), "spec.template.spec")


class PodTemplateStrategy(BuiltinStrategy):
    """PodTemplates."""

    columns = (NAME, Column("Containers"), Column("Images"), Column("Pod Labels"))
    has_generation = True
    has_status = False
    delete_returns_object = True

    def default(self, obj: Object) -> None:
        default_template(obj.setdefault("template", {}))

    def row(self, obj: Object, now: datetime) -> list[Any]:
        template = obj.get("template") or {}
        return [
            obj["metadata"]["name"],
            *cells.containers(template),
            cells.labels(dig(template, "metadata", "labels", default={})),
        ]


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
