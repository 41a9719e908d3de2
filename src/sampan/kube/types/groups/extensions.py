"""What extends the API: apiextensions.k8s.io/v1, apiregistration.k8s.io/v1, and the stored-only flowcontrol group."""

from __future__ import annotations

from sampan.kube.types import names
from sampan.kube.types.groups.declare import declare, status
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy


class CustomResourceDefinitionStrategy(BuiltinStrategy):
    """CustomResourceDefinitions."""

    namespaced = False
    has_generation = True


class APIServiceStrategy(BuiltinStrategy):
    """APIServices."""

    namespaced = False
    name_rule = staticmethod(names.path_segment)


class FlowSchemaStrategy(BuiltinStrategy):
    """FlowSchemas: kept for tools that list them; this server has no request queues."""

    namespaced = False
    has_generation = True


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
