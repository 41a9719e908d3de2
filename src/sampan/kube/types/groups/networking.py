"""networking.k8s.io/v1 and discovery.k8s.io/v1: Ingress, IngressClass, NetworkPolicy, EndpointSlice."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sampan.kube.objects import Object, dig
from sampan.kube.types.groups import cells
from sampan.kube.types.groups.declare import declare, status
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy, columns


class IngressStrategy(BuiltinStrategy):
    """Ingresses."""

    columns = columns("Class", "Hosts", "Address", "Ports")
    has_generation = True

    def default(self, obj: Object) -> None:
        obj.setdefault("spec", {})

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {"loadBalancer": {}}

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec = obj.get("spec") or {}
        hosts = [rule["host"] for rule in spec.get("rules") or () if rule.get("host")]
        ingress = dig(obj, "status", "loadBalancer", "ingress", default=())
        addresses = sorted({entry.get("ip") or entry.get("hostname") or "" for entry in ingress} - {""})
        return [
            obj["metadata"]["name"],
            spec.get("ingressClassName") or cells.NONE,
            cells.listed(hosts, "*"),
            ",".join(addresses),
            "80, 443" if spec.get("tls") else "80",
            cells.age(obj, now),
        ]


class IngressClassStrategy(BuiltinStrategy):
    """IngressClasses."""

    columns = columns("Controller", "Parameters")
    namespaced = False
    has_generation = True
    has_status = False

    def default(self, obj: Object) -> None:
        parameters = (obj.setdefault("spec", {})).get("parameters")
        if parameters is not None:
            parameters.setdefault("scope", "Cluster")

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec = obj.get("spec") or {}
        parameters = spec.get("parameters")
        shown = cells.NONE
        if parameters:
            group = f".{parameters['apiGroup']}" if parameters.get("apiGroup") else ""
            shown = f"{parameters.get('kind')}{group}/{parameters.get('name')}"
        return [obj["metadata"]["name"], spec.get("controller") or "", shown, cells.age(obj, now)]


class NetworkPolicyStrategy(BuiltinStrategy):
    """NetworkPolicies."""

    columns = columns("Pod-Selector")
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

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [obj["metadata"]["name"], cells.selector(dig(obj, "spec", "podSelector")), cells.age(obj, now)]


class EndpointSliceStrategy(BuiltinStrategy):
    """EndpointSlices."""

    columns = columns("AddressType", "Ports", "Endpoints")
    has_generation = True
    has_status = False

    def default(self, obj: Object) -> None:
        for port in obj.get("ports") or ():
            port.setdefault("name", "")
            port.setdefault("protocol", "TCP")

    def row(self, obj: Object, now: datetime) -> list[Any]:
        ports = [str(port.get("port", "*")) for port in obj.get("ports") or ()]
        addresses = [a for endpoint in obj.get("endpoints") or () for a in endpoint.get("addresses") or ()]
        return [
            obj["metadata"]["name"],
            obj.get("addressType") or "",
            cells.listed(ports, cells.UNSET),
            cells.listed(addresses, cells.UNSET),
            cells.age(obj, now),
        ]


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
