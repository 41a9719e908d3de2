"""core/v1 Service and Endpoints."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sampan.kube.objects import Object
from sampan.kube.types import names
from sampan.kube.types.groups import cells
from sampan.kube.types.groups.declare import PROXY, declare, status
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy, columns


class ServiceStrategy(BuiltinStrategy):
    """Services."""

    columns = columns("Type", "Cluster-IP", "External-IP", "Port(s)", wide=("Selector",))
    name_rule = staticmethod(names.dns_label_1035)
    delete_returns_object = True
    create_on_update = True
    selectable_paths: ClassVar = {"spec.clusterIP": ("spec", "clusterIP"), "spec.type": ("spec", "type")}

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        if not spec.get("sessionAffinity"):
            spec["sessionAffinity"] = "None"
        if spec["sessionAffinity"] == "None":
            spec.pop("sessionAffinityConfig", None)
        elif spec["sessionAffinity"] == "ClientIP":
            spec.setdefault("sessionAffinityConfig", {}).setdefault("clientIP", {}).setdefault("timeoutSeconds", 10800)
        if not spec.get("type"):
            spec["type"] = "ClusterIP"
        for port in spec.get("ports") or ():
            port.setdefault("protocol", "TCP")
            if port.get("targetPort") in (None, 0, ""):
                port["targetPort"] = port.get("port")
        kind = spec["type"]
        if kind in ("NodePort", "LoadBalancer") or spec.get("externalIPs"):
            spec.setdefault("externalTrafficPolicy", "Cluster")
        if kind == "LoadBalancer":
            spec.setdefault("allocateLoadBalancerNodePorts", True)
        if kind != "ExternalName":
            spec.setdefault("internalTrafficPolicy", "Cluster")
            spec.setdefault("ipFamilyPolicy", "SingleStack")
            if not spec.get("ipFamilies"):
                spec["ipFamilies"] = [_family(spec.get("clusterIP") or "")]

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {"loadBalancer": {}}

    def prepare_update(self, new: Object, old: Object) -> None:
        super().prepare_update(new, old)
        # What a client leaves out of a replacement keeps its allocated value, unless the type no longer has it.
        fresh, stored = new["spec"], old["spec"]
        if fresh["type"] != "ExternalName" and stored.get("type") != "ExternalName":
            for field in ("clusterIP", "clusterIPs"):
                if not fresh.get(field) and stored.get(field):
                    fresh[field] = stored[field]
        if fresh["type"] in ("NodePort", "LoadBalancer") and stored.get("type") in ("NodePort", "LoadBalancer"):
            taken = {port.get("nodePort") for port in fresh.get("ports") or ()}
            known = {_port_key(port): port.get("nodePort") for port in stored.get("ports") or ()}
            for port in fresh.get("ports") or ():
                allocated = known.get(_port_key(port))
                if not port.get("nodePort") and allocated and allocated not in taken:
                    port["nodePort"] = allocated

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec = obj.get("spec") or {}
        ports = [
            f"{port.get('port')}{':' + str(port['nodePort']) if port.get('nodePort') else ''}/{port.get('protocol')}"
            for port in spec.get("ports") or ()
        ]
        return [
            obj["metadata"]["name"],
            spec.get("type") or "",
            next(iter(spec.get("clusterIPs") or ()), spec.get("clusterIP")) or cells.NONE,
            _external_address(obj),
            ",".join(ports) or cells.NONE,
            cells.age(obj, now),
            cells.labels(spec.get("selector")),
        ]


def _external_address(service: Object) -> str:
    spec = service.get("spec") or {}
    if spec.get("type") == "ExternalName":
        return spec.get("externalName") or ""
    addresses = list(spec.get("externalIPs") or ())
    if spec.get("type") != "LoadBalancer":
        return ",".join(addresses) or cells.NONE
    ingress = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    given = sorted({entry.get("ip") or entry.get("hostname") or "" for entry in ingress} - {""})
    return ",".join([*given, *addresses]) or "<pending>"


def _family(address: str) -> str:
    return "IPv6" if ":" in address else "IPv4"


def _port_key(port: Object) -> tuple[str, int]:
    return port.get("protocol") or "TCP", port.get("port") or 0


class EndpointsStrategy(BuiltinStrategy):
    """Endpoints."""

    columns = columns("Endpoints")
    has_status = False
    create_on_update = True

    def default(self, obj: Object) -> None:
        for subset in obj.get("subsets") or ():
            for port in subset.get("ports") or ():
                port.setdefault("protocol", "TCP")

    def row(self, obj: Object, now: datetime) -> list[Any]:
        found: list[str] = []
        for subset in obj.get("subsets") or ():
            for address in subset.get("addresses") or ():
                host = address.get("ip") or ""
                host = f"[{host}]" if ":" in host else host
                ports = subset.get("ports") or ()
                found += [f"{host}:{port.get('port')}" for port in ports] if ports else [host]
        return [obj["metadata"]["name"], cells.listed(found), cells.age(obj, now)]


def types() -> list[ResourceType]:
    """The kinds of this module."""
    return [
        declare("v1", "endpoints", "Endpoints", EndpointsStrategy(), short=("ep",)),
        declare(
            "v1",
            "services",
            "Service",
            ServiceStrategy(),
            short=("svc",),
            categories=("all",),
            subresources=(("proxy", "ServiceProxyOptions", PROXY), status("Service")),
        ),
    ]
