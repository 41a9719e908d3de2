"""What extends the API: apiextensions.k8s.io/v1, apiregistration.k8s.io/v1, and the stored-only flowcontrol group."""

from __future__ import annotations

from sampan.kube.objects import Object
from sampan.kube.types import names
from sampan.kube.types.groups.declare import declare, status
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy


class CustomResourceDefinitionStrategy(BuiltinStrategy):
    """CustomResourceDefinitions."""

    namespaced = False
    has_generation = True

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        given = spec.setdefault("names", {})
        if kind := given.get("kind"):
            if not given.get("singular"):
                given["singular"] = kind.lower()
            if not given.get("listKind"):
                given["listKind"] = f"{kind}List"
        conversion = spec.setdefault("conversion", {})
        if not conversion.get("strategy"):
            conversion["strategy"] = "None"
        service = ((conversion.get("webhook") or {}).get("clientConfig") or {}).get("service")
        if service is not None:
            service.setdefault("port", 443)
        if spec.get("preserveUnknownFields") is False:
            del spec["preserveUnknownFields"]

    def prepare_create(self, obj: Object) -> None:
        stored = [version["name"] for version in obj["spec"].get("versions") or () if version.get("storage")]
        obj["status"] = {"storedVersions": stored[:1]}


class APIServiceStrategy(BuiltinStrategy):
    """APIServices."""

    namespaced = False
    name_rule = staticmethod(names.path_segment)

    def default(self, obj: Object) -> None:
        service = (obj.setdefault("spec", {})).get("service")
        if service is not None:
            service.setdefault("port", 443)

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {}


class FlowSchemaStrategy(BuiltinStrategy):
    """FlowSchemas: kept for tools that list them; this server has no request queues."""

    namespaced = False
    has_generation = True

    def default(self, obj: Object) -> None:
        obj.setdefault("spec", {}).setdefault("matchingPrecedence", 1000)


class PriorityLevelStrategy(BuiltinStrategy):
    """PriorityLevelConfigurations: kept like FlowSchemas."""

    namespaced = False
    has_generation = True


def types() -> list[ResourceType]:
    """The kinds of this module."""
    api = ("api-extensions",)
    flow_control = "flowcontrol.apiserver.k8s.io/v1"
    return [
        declare(
            "apiextensions.k8s.io/v1",
            "customresourcedefinitions",
            "CustomResourceDefinition",
            CustomResourceDefinitionStrategy(),
            short=("crd", "crds"),
            categories=api,
            subresources=(status("CustomResourceDefinition"),),
        ),
        declare(
            "apiregistration.k8s.io/v1",
            "apiservices",
            "APIService",
            APIServiceStrategy(),
            categories=api,
            subresources=(status("APIService"),),
        ),
        declare(flow_control, "flowschemas", "FlowSchema", FlowSchemaStrategy(), subresources=(status("FlowSchema"),)),
        declare(
            flow_control,
            "prioritylevelconfigurations",
            "PriorityLevelConfiguration",
            PriorityLevelStrategy(),
            subresources=(status("PriorityLevelConfiguration"),),
        ),
    ]
