"""core/v1 Service and Endpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar

from sampan.kube.objects import Object
from sampan.kube.types import names
from sampan.kube.types.groups import cells
from sampan.kube.types.groups.container_validation import PROTOCOLS, validate_port_reference
from sampan.kube.types.groups.declare import PROXY, declare, status
from sampan.kube.types.groups.pod_validation import validate_address
from sampan.kube.types.metadata import validate_labels
from sampan.kube.types.problems import Problems
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

    def check(self, obj: Object, problems: Problems) -> None:
        spec = obj.get("spec") or {}
        kind, ports = spec.get("type"), spec.get("ports") or ()
        problems.one_of("spec.type", kind, ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort"))
        problems.one_of("spec.sessionAffinity", spec.get("sessionAffinity"), ("ClientIP", "None"))
        headless = spec.get("clusterIP") == "None"
        if kind == "ExternalName":
            name = spec.get("externalName") or ""
            if not name:
                problems.required("spec.externalName")
            else:
                problems.invalid_all("spec.externalName", name, names.dns_subdomain(name.removesuffix(".")))
            if spec.get("clusterIP") not in (None, ""):
                problems.forbidden("spec.clusterIP", "may not be set when `type` is 'ExternalName'")
        elif not ports and not headless:
            problems.required("spec.ports")
        if headless and kind in ("NodePort", "LoadBalancer"):
            why = f"may not be set to 'None' for {kind} services"
            problems.invalid("spec.clusterIPs[0]", "None", why)
        elif spec.get("clusterIP") and not headless:
            validate_address(spec["clusterIP"], "spec.clusterIPs[0]", problems)
        if kind != "ExternalName" and (spec.get("selector") or not headless):
            _validate_families(spec, problems)
        validate_labels(spec.get("selector") or {}, "spec.selector", problems)
        _validate_service_ports(ports, kind or "", problems)
        for index, address in enumerate(spec.get("externalIPs") or ()):
            validate_address(address, f"spec.externalIPs[{index}]", problems)
        timeout = ((spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}).get("timeoutSeconds")
        if timeout is not None and not 0 < timeout <= 86400:
            here = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
            problems.invalid(here, timeout, "must be greater than 0 and less than 86400")
        if kind in ("NodePort", "LoadBalancer"):
            problems.one_of("spec.externalTrafficPolicy", spec.get("externalTrafficPolicy"), ("Cluster", "Local"))
        if kind != "ExternalName":
            problems.one_of("spec.internalTrafficPolicy", spec.get("internalTrafficPolicy"), ("Cluster", "Local"))

    def check_update(self, new: Object, old: Object, problems: Problems) -> None:
        fresh, stored = new.get("spec") or {}, old.get("spec") or {}
        before = stored.get("clusterIP")
        if (
            before
            and "ExternalName" not in (fresh.get("type"), stored.get("type"))
            and fresh.get("clusterIP") != before
        ):
            problems.invalid("spec.clusterIPs[0]", fresh.get("clusterIPs") or [], "may not change once set")


def _validate_families(spec: Mapping[str, Any], problems: Problems) -> None:
    """A cluster has one family of addresses; a headless Service without a selector may name any, its endpoints are its own."""
    address = spec.get("clusterIP") or ""
    own = _family("" if address == "None" else address)
    for index, family in enumerate(spec.get("ipFamilies") or ()):
        if family != own:
            problems.invalid(f"spec.ipFamilies[{index}]", family, "not configured on this cluster")
    policy = spec.get("ipFamilyPolicy")
    if policy == "RequireDualStack":
        problems.invalid("spec.ipFamilyPolicy", policy, "this cluster is not configured for dual-stack services")
    else:
        problems.one_of("spec.ipFamilyPolicy", policy, ("SingleStack", "PreferDualStack"))


def _validate_service_ports(ports: Sequence[Object], kind: str, problems: Problems) -> None:
    seen: set[str] = set()
    numbers: set[tuple[Any, Any]] = set()
    node_ports: set[tuple[Any, Any]] = set()
    for index, port in enumerate(ports):
        here, name = f"spec.ports[{index}]", port.get("name") or ""
        if not name and len(ports) > 1:
            problems.required(f"{here}.name")
        elif name:
            problems.invalid_all(f"{here}.name", name, names.dns_label(name))
            if name in seen:
                problems.duplicate(f"{here}.name", name)
            seen.add(name)
        number, protocol = port.get("port") or 0, port.get("protocol")
        problems.invalid_all(f"{here}.port", number, names.port_number(number))
        problems.one_of(f"{here}.protocol", protocol, PROTOCOLS)
        if port.get("targetPort") is not None:
            validate_port_reference(port["targetPort"], f"{here}.targetPort", problems)
        if (number, protocol) in numbers:
            problems.duplicate(here, {"port": str(number), "protocol": str(protocol)})
        numbers.add((number, protocol))
        node_port = port.get("nodePort")
        if not node_port:
            continue
        if kind not in ("NodePort", "LoadBalancer"):
            problems.forbidden(f"{here}.nodePort", f"may not be used when `type` is '{kind}'")
        elif (node_port, protocol) in node_ports:
            problems.duplicate(f"{here}.nodePort", node_port)
        node_ports.add((node_port, protocol))


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

    def check(self, obj: Object, problems: Problems) -> None:
        for index, subset in enumerate(obj.get("subsets") or ()):
            here, ports = f"subsets[{index}]", subset.get("ports") or ()
            if not subset.get("addresses") and not subset.get("notReadyAddresses"):
                problems.required(here, "must specify `addresses` or `notReadyAddresses`")
            for field in ("addresses", "notReadyAddresses"):
                for place, address in enumerate(subset.get(field) or ()):
                    validate_address(address.get("ip") or "", f"{here}.{field}[{place}].ip", problems)
            for place, port in enumerate(ports):
                if len(ports) > 1 and not port.get("name"):
                    problems.required(f"{here}.ports[{place}].name")
                number = port.get("port") or 0
                problems.invalid_all(f"{here}.ports[{place}].port", number, names.port_number(number))
                problems.one_of(f"{here}.ports[{place}].protocol", port.get("protocol"), PROTOCOLS)


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
