"""networking.k8s.io/v1 and discovery.k8s.io/v1: Ingress, IngressClass, NetworkPolicy, EndpointSlice."""

from __future__ import annotations

import ipaddress
from datetime import datetime
from typing import Any

from sampan.kube.objects import Object, dig
from sampan.kube.types import names, selectors
from sampan.kube.types.groups import cells
from sampan.kube.types.groups.container_validation import PROTOCOLS, validate_port_reference
from sampan.kube.types.groups.declare import declare, status
from sampan.kube.types.problems import Problems
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

    def check(self, obj: Object, problems: Problems) -> None:
        spec = obj.get("spec") or {}
        if not spec.get("rules") and spec.get("defaultBackend") is None:
            problems.invalid("spec", spec.get("rules") or [], "either `defaultBackend` or `rules` must be specified")
        if spec.get("defaultBackend") is not None:
            _check_backend(spec["defaultBackend"], "spec.defaultBackend", problems)
        if name := spec.get("ingressClassName"):
            problems.invalid_all("spec.ingressClassName", name, names.dns_subdomain(name))
        for index, tls in enumerate(spec.get("tls") or ()):
            for place, host in enumerate(tls.get("hosts") or ()):
                problems.invalid_all(f"spec.tls[{index}].hosts[{place}]", host, _host(host))
        for index, rule in enumerate(spec.get("rules") or ()):
            here, host = f"spec.rules[{index}]", rule.get("host") or ""
            if host:
                if _is_address(host):
                    problems.invalid(f"{here}.host", host, "must be a DNS name, not an IP address")
                else:
                    problems.invalid_all(f"{here}.host", host, _host(host))
            paths = dig(rule, "http", "paths", default=())
            if rule.get("http") is not None and not paths:
                problems.required(f"{here}.http.paths")
            for place, path in enumerate(paths):
                _check_path(path, f"{here}.http.paths[{place}]", problems)

    def warnings(self, obj: Object) -> list[str]:
        if "kubernetes.io/ingress.class" not in (obj["metadata"].get("annotations") or {}):
            return []
        return ["annotation \"kubernetes.io/ingress.class\" is deprecated, please use 'spec.ingressClassName' instead"]


def _host(host: str) -> list[str]:
    return names.wildcard_subdomain(host) if "*" in host else names.dns_subdomain(host)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _check_path(path: Object, here: str, problems: Problems) -> None:
    kind, value = path.get("pathType"), path.get("path") or ""
    if kind is None:
        problems.required(f"{here}.pathType", "pathType must be specified")
    elif kind not in ("Exact", "ImplementationSpecific", "Prefix"):
        problems.unsupported(f"{here}.pathType", kind, ("Exact", "ImplementationSpecific", "Prefix"))
    if (kind in ("Exact", "Prefix") and not value.startswith("/")) or (
        kind == "ImplementationSpecific" and value and not value.startswith("/")
    ):
        problems.invalid(f"{here}.path", value, "must be an absolute path")
    if kind in ("Exact", "Prefix"):
        for bad in ("//", "/./", "/../", "%2f", "%2F"):
            if bad in value:
                problems.invalid(f"{here}.path", value, f"must not contain '{bad}'")
    _check_backend(path.get("backend") or {}, f"{here}.backend", problems)


def _check_backend(backend: Object, here: str, problems: Problems) -> None:
    service, resource = backend.get("service"), backend.get("resource")
    if service is not None and resource is not None:
        problems.invalid(here, "", "cannot set both resource and service backends")
    elif resource is not None:
        for field in ("kind", "name"):
            if not resource.get(field):
                problems.required(f"{here}.resource.{field}")
    elif service is None:
        problems.required(here, "resource or service backend is required")
    else:
        name, port = service.get("name") or "", service.get("port") or {}
        if not name:
            problems.required(f"{here}.service.name")
        else:
            problems.invalid_all(f"{here}.service.name", name, names.dns_label_1035(name))
        if port.get("name") and port.get("number"):
            problems.invalid(here, "", "cannot set both port name & port number")
        elif port.get("name"):
            problems.invalid_all(f"{here}.service.port.name", port["name"], names.port_name(port["name"]))
        elif port.get("number"):
            number = port["number"]
            problems.invalid_all(f"{here}.service.port.number", number, names.port_number(number))
        else:
            problems.required(here, "port name or number is required")


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

    def check(self, obj: Object, problems: Problems) -> None:
        spec = obj.get("spec") or {}
        controller = spec.get("controller") or ""
        if not controller:
            problems.required("spec.controller")
        elif "/" not in controller:
            why = 'must be a domain-prefixed path (such as "acme.io/foo")'
            problems.invalid("spec.controller", controller, why)
        parameters = spec.get("parameters")
        if parameters is not None:
            problems.one_of("spec.parameters.scope", parameters.get("scope"), ("Cluster", "Namespace"))
            for field in ("kind", "name"):
                if not parameters.get(field):
                    problems.required(f"spec.parameters.{field}")

    def check_update(self, new: Object, old: Object, problems: Problems) -> None:
        fresh, stored = dig(new, "spec", "controller"), dig(old, "spec", "controller")
        problems.immutable("spec.controller", fresh, stored)


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

    def check(self, obj: Object, problems: Problems) -> None:
        spec = obj.get("spec") or {}
        selectors.validate_object(spec.get("podSelector"), "spec.podSelector", problems)
        for direction, side in (("ingress", "from"), ("egress", "to")):
            for index, rule in enumerate(spec.get(direction) or ()):
                here = f"spec.{direction}[{index}]"
                for place, port in enumerate(rule.get("ports") or ()):
                    problems.one_of(f"{here}.ports[{place}].protocol", port.get("protocol"), PROTOCOLS)
                    if port.get("port") is not None:
                        validate_port_reference(port["port"], f"{here}.ports[{place}].port", problems)
                for place, peer in enumerate(rule.get(side) or ()):
                    _check_peer(peer, f"{here}.{side}[{place}]", problems)
        for index, kind in enumerate(spec.get("policyTypes") or ()):
            if kind not in ("Ingress", "Egress"):
                problems.unsupported(f"spec.policyTypes[{index}]", kind, ("Egress", "Ingress"))


def _check_peer(peer: Object, path: str, problems: Problems) -> None:
    block = peer.get("ipBlock")
    if not any(peer.get(field) is not None for field in ("podSelector", "namespaceSelector", "ipBlock")):
        problems.required(path, "must specify a peer")
    if block is not None and (peer.get("podSelector") is not None or peer.get("namespaceSelector") is not None):
        problems.forbidden(path, "may not specify both ipBlock and another peer")
    for field in ("podSelector", "namespaceSelector"):
        selectors.validate_object(peer.get(field), f"{path}.{field}", problems)
    if block is None:
        return
    network = _network(block.get("cidr") or "", f"{path}.ipBlock.cidr", problems)
    for index, hole in enumerate(block.get("except") or ()):
        inner = _network(hole, f"{path}.ipBlock.except[{index}]", problems)
        inside = network is not None and inner is not None and inner.version == network.version
        if network is not None and inner is not None and not (inside and _within(inner, network)):
            why = "must be a strict subset of `cidr`"
            problems.invalid(f"{path}.ipBlock.except[{index}]", hole, why)


_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _within(inner: _Network, outer: _Network) -> bool:
    return inner.prefixlen > outer.prefixlen and inner.network_address in outer


def _network(text: str, path: str, problems: Problems) -> _Network | None:
    try:
        if "/" in text:
            return ipaddress.ip_network(text, strict=False)
    except ValueError:
        pass
    problems.invalid(path, text, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)")
    return None


MOST_ENDPOINTS = 1000


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

    def check(self, obj: Object, problems: Problems) -> None:
        problems.one_of("addressType", obj.get("addressType"), ("FQDN", "IPv4", "IPv6"))
        endpoints = obj.get("endpoints") or ()
        if len(endpoints) > MOST_ENDPOINTS:
            problems.too_many("endpoints", len(endpoints), MOST_ENDPOINTS)
        for index, endpoint in enumerate(endpoints):
            here, addresses = f"endpoints[{index}].addresses", endpoint.get("addresses") or ()
            if not addresses:
                problems.required(here, "must contain at least 1 address")
            for place, address in enumerate(addresses):
                family = obj.get("addressType")
                if family not in ("IPv4", "IPv6"):
                    continue
                if not _is_address(address):
                    why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
                    problems.invalid(f"{here}[{place}]", address, why)
                elif (":" in address) != (family == "IPv6"):
                    problems.invalid(f"{here}[{place}]", address, f"must be a valid {family} address")
        seen: set[str] = set()
        for index, port in enumerate(obj.get("ports") or ()):
            name = port.get("name") or ""
            if name in seen:
                problems.duplicate(f"ports[{index}].name", name)
            seen.add(name)

    def check_update(self, new: Object, old: Object, problems: Problems) -> None:
        problems.immutable("addressType", new.get("addressType"), old.get("addressType"))


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
