"""networking.k8s.io/v1 and discovery.k8s.io/v1: Ingress, IngressClass, NetworkPolicy, EndpointSlice."""

from __future__ import annotations

from sampan.kube.types.groups.declare import declare, status
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy


class IngressStrategy(BuiltinStrategy):
    """Ingresses."""

    has_generation = True


class IngressClassStrategy(BuiltinStrategy):
    """IngressClasses."""

    namespaced = False
    has_generation = True
    has_status = False


class NetworkPolicyStrategy(BuiltinStrategy):
    """NetworkPolicies."""

    has_generation = True
    has_status = False


class EndpointSliceStrategy(BuiltinStrategy):
    """EndpointSlices."""

    has_generation = True
    has_status = False


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
