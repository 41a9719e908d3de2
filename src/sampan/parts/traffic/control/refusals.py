"""What Envoy refuses though it passed our checks, told in the statuses of the objects it comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sampan.kube.objects import Key, Object, Resource, copy, dig
from sampan.parts.traffic import resources
from sampan.parts.traffic.sources.gateway_api import GatewaySource, Statuses
from sampan.parts.traffic.xds import schema

ROUTE_RESOURCES = {"httproute": ("HTTPRoute", resources.HTTP_ROUTES), "grpcroute": ("GRPCRoute", resources.GRPC_ROUTES)}

Rejected = Mapping[tuple[str, str], tuple[str, str]]
"""(type, name) to (version, reason)."""


def overlaid(
    source: GatewaySource, statuses: Statuses, rejected: Rejected, rules: Mapping[str, Iterable[str]]
) -> Statuses:
    """The statuses that change because of refusals, in their new form. ``rules``: reasons by ``kind/namespace/name``."""
    changed: Statuses = {}

    def status(entry: tuple[Resource, Key]) -> Object:
        if entry not in changed:
            changed[entry] = copy(statuses[entry])
        return changed[entry]

    for name, reasons in rules.items():
        word, _, rest = name.partition("/")
        namespace, _, own = rest.partition("/")
        if word in ROUTE_RESOURCES:
            kind, resource = ROUTE_RESOURCES[word]
            if (entry := (resource, Key(namespace, own))) in statuses:
                _refuse_rules(status(entry), "; ".join(reasons), whole=source.serves_nothing_of(kind, entry[1]))
    for (type_url, name), (_, reason) in rejected.items():
        if type_url == schema.CLUSTER:
            for entry in source.routes_to(name):
                _set(status(entry)["parents"], "ResolvedRefs", "BackendNotFound", f"backend {name}: {reason}")
        elif type_url == schema.SECRET:
            for entry, listener in source.listeners_with(name.partition("/")[2]):
                refuse(status(entry), listener, reason, certificate=True)
        elif type_url in (schema.LISTENER, schema.ROUTES):
            for entry, listener in source.listeners_at(name):
                refuse(status(entry), listener, reason)
    return changed


def refuse(status: Object, listener: str, reason: str, *, certificate: bool = False) -> None:
    """Tell in the status of a Gateway or ListenerSet that Envoy refuses a listener, its routes or its ``certificate``."""
    hit = [one for one in status["listeners"] if one["name"] == listener]
    if certificate:
        _set(hit, "ResolvedRefs", "InvalidCertificateRef", reason)
    elif "bind" in reason:
        _set(hit, "Accepted", "PortUnavailable", reason)
    _set(hit, "Programmed", "Invalid", reason)
    programmed = (dig(one, "conditions", default=[]) for one in status["listeners"])
    if not any(one["type"] == "Programmed" and one["status"] == "True" for found in programmed for one in found):
        _set([status], "Programmed", "Invalid", reason)


def _refuse_rules(status: Object, reason: str, *, whole: bool) -> None:
    """A route of which Envoy refuses some rules, or every one."""
    for parent in status["parents"]:
        if whole:
            _set([parent], "Accepted", "UnsupportedValue", reason)
            continue
        generation = parent["conditions"][0]["observedGeneration"]
        parent["conditions"] = [one for one in parent["conditions"] if one["type"] != "PartiallyInvalid"]
        parent["conditions"].append(
            {
                "type": "PartiallyInvalid",
                "status": "True",
                "reason": "UnsupportedValue",
                "message": f"Dropped Rule: {reason}",
                "observedGeneration": generation,
            }
        )


def _set(entries: Iterable[Object], kind: str, reason: str, message: str) -> None:
    for entry in entries:
        for condition in entry["conditions"]:
            if condition["type"] == kind:
                condition |= {"status": "False", "reason": reason, "message": message}
