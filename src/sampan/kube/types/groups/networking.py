"""networking.k8s.io/v1 and discovery.k8s.io/v1: Ingress, IngressClass, NetworkPolicy, EndpointSlice."""

from __future__ import annotations

from sampan.kube.objects import Object
from sampan.kube.types.groups.declare import declare, status
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy


class IngressStrategy(BuiltinStrategy):
    """Ingresses."""

    has_generation = True

    def default(self, obj: Object) -> None:
        obj.setdefault("spec", {})

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {"loadBalancer": {}}


class IngressClassStrategy(BuiltinStrategy):
    """IngressClasses."""

    namespaced = False
    has_generation = True
    has_status = False

    def default(self, obj: Object) -> None:
        parameters = (obj.setdefault("spec", {})).get("parameters")
        if parameters is not None:
            parameters.setdefault("scope", "Cluster")


class NetworkPolicyStrategy(BuiltinStrategy):
    """NetworkPolicies."""

    has_generation = True
    has_status = False

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        spec.setdefault("podSelector", {})
        for rule in [*(spec.get("ingress") or ()), *(spec.get("egress") or ())]:
            for port in rule.get("ports") or ():
                port.setdefault("protocol", "TCP")
        if not spec.get("policyTypes"):
            spec["policyTypes"] = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]


class EndpointSliceStrategy(BuiltinStrategy):
    """EndpointSlices."""

    has_generation = True
    has_status = False

    def default(self, obj: Object) -> None:
        for port in obj.get("ports") or ():
            port.setdefault("name", "")
            port.setdefault("protocol", "TCP")


def types() -> list[ResourceType]:
    """The kinds of this module."""
    return [
        declare("networking.k8s.io/v1", "ingressclasses", "IngressClass", IngressClassStrategy()),
        declare(
            "networking.k8s.io/v1",
            "ingresses",
            "Ingress",
            IngressStrategy(),
            short=("ing",),
            subresources=(status("Ingress"),),
        ),
        declare("networking.k8s.io/v1", "networkpolicies", "NetworkPolicy", NetworkPolicyStrategy(), short=("netpol",)),
        declare("discovery.k8s.io/v1", "endpointslices", "EndpointSlice", EndpointSliceStrategy()),
    ]
