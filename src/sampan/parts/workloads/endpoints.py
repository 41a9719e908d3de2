"""Which addresses stand behind a Service, as pure functions.

``endpoint_groups`` turns a Service and its pods into groups of endpoints that share resolved ports (a named target port may
differ from pod to pod); ``plan_slices`` fits the groups into the EndpointSlices that exist, moving as little as possible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from sampan.kube.objects import Object, dig
from sampan.parts.workloads import pods

MAX_ENDPOINTS = 100
"""Endpoints in one slice."""


@dataclass(slots=True)
class Group:
    """Endpoints with the same ports."""

    ports: list[Object]
    endpoints: list[Object] = field(default_factory=list)


@dataclass(slots=True)
class SlicePlan:
    """What to do with the slices of one Service."""

    create: list[Group] = field(default_factory=list)
    update: list[tuple[Object, Group]] = field(default_factory=list)
    delete: list[Object] = field(default_factory=list)


def endpoint_groups(service: Object, backing: Sequence[Object], zones: Mapping[str, str]) -> list[Group]:
    """The service's endpoints; ``zones`` gives the zone of each node. At least one group, which may be empty."""
    groups: dict[bytes, Group] = {}
    for pod in sorted(backing, key=lambda one: one["metadata"]["name"]):
        if pods.is_finished(pod) or not dig(pod, "status", "podIP"):
            continue
        ports = resolve_ports(service, pod)
        if not ports and service["spec"].get("ports"):
            continue
        group = groups.setdefault(ports_key(ports), Group(ports))
        group.endpoints.append(endpoint(service, pod, zones))
    return list(groups.values()) or [Group([])]


def resolve_ports(service: Object, pod: Object) -> list[Object]:
    """EndpointSlice ports for one pod; a named target port the pod lacks is left out."""
    resolved = []
    for port in service["spec"].get("ports") or ():
        number = _target(port, pod)
        if number is None:
            continue
        entry: Object = {"name": port.get("name") or "", "protocol": port.get("protocol") or "TCP", "port": number}
        if port.get("appProtocol"):
            entry["appProtocol"] = port["appProtocol"]
        resolved.append(entry)
    return resolved


def _target(port: Mapping[str, Any], pod: Object) -> int | None:
    target = port.get("targetPort") or port["port"]
    if isinstance(target, int):
        return target
    sidecars = [one for one in pod["spec"].get("initContainers") or () if one.get("restartPolicy") == "Always"]
    for container in [*pod["spec"]["containers"], *sidecars]:
        for candidate in container.get("ports") or ():
            same_protocol = (candidate.get("protocol") or "TCP") == (port.get("protocol") or "TCP")
            if candidate.get("name") == target and same_protocol:
                number: int = candidate["containerPort"]
                return number
    return None


def endpoint(service: Object, pod: Object, zones: Mapping[str, str]) -> Object:
    """One EndpointSlice endpoint."""
    terminating, serving = pods.is_terminating(pod), pods.is_ready(pod)
    publish = bool(service["spec"].get("publishNotReadyAddresses"))
    node = pod["spec"].get("nodeName")
    made: Object = {
        "addresses": [pod["status"]["podIP"]],
        "conditions": {
            "ready": publish or (serving and not terminating),
            "serving": serving,
            "terminating": terminating,
        },
        "targetRef": _reference(pod),
    }
    if node:
        made["nodeName"] = node
        if zones.get(node):
            made["zone"] = zones[node]
    hostname = pod["spec"].get("hostname")
    if hostname and pod["spec"].get("subdomain") == service["metadata"]["name"]:
        made["hostname"] = hostname
    return made


def _reference(pod: Object) -> Object:
    metadata = pod["metadata"]
    return {"kind": "Pod", "namespace": metadata["namespace"], "name": metadata["name"], "uid": metadata["uid"]}


def ports_key(ports: Sequence[Object]) -> bytes:
    """The ports as a dictionary key."""
    return msgspec.json.encode(list(ports), order="deterministic")


def plan_slices(groups: Sequence[Group], existing: Sequence[Object]) -> SlicePlan:
    """Fit the groups into the existing slices."""
    plan = SlicePlan()
    by_ports: dict[bytes, list[Object]] = {}
    for one in existing:
        by_ports.setdefault(ports_key(one.get("ports") or []), []).append(one)
    for group in groups:
        candidates = by_ports.pop(ports_key(group.ports), [])
        _fit(group, candidates, plan)
    leftovers = [one for some in by_ports.values() for one in some]
    # an emptied service keeps its slice object; upstream likewise repurposes before it creates
    while plan.create and leftovers:
        plan.update.append((leftovers.pop(), plan.create.pop()))
    plan.delete += leftovers
    return plan


def _fit(group: Group, candidates: Sequence[Object], plan: SlicePlan) -> None:
    wanted = {_identity(one): one for one in group.endpoints}
    filled: list[tuple[Object, list[Object]]] = []
    for candidate in candidates:
        kept = [wanted.pop(_identity(one)) for one in candidate.get("endpoints") or () if _identity(one) in wanted]
        filled.append((candidate, kept))
    rest = list(wanted.values())
    for _, kept in sorted(filled, key=lambda pair: -len(pair[1])):
        room = MAX_ENDPOINTS - len(kept)
        kept += rest[:room]
        rest = rest[room:]
    in_use = [pair for pair in filled if pair[1]]
    if not in_use and not rest and filled:
        in_use = filled[:1]
    plan.delete += [candidate for candidate, kept in filled if all(candidate is not used for used, _ in in_use)]
    for candidate, kept in in_use:
        if kept != (candidate.get("endpoints") or []):
            plan.update.append((candidate, Group(group.ports, kept)))
    for start in range(0, len(rest), MAX_ENDPOINTS):
        plan.create.append(Group(group.ports, rest[start : start + MAX_ENDPOINTS]))
    if not in_use and not rest:
        plan.create.append(Group(group.ports))


def _identity(one: Mapping[str, Any]) -> tuple[str, str]:
    return (dig(one, "targetRef", "uid", default=""), one["addresses"][0])


def subsets(groups: Sequence[Group]) -> list[Object]:
    """The legacy Endpoints form of the same groups."""
    made = []
    for group in groups:
        ready, not_ready = [], []
        for one in group.endpoints:
            address = {"ip": one["addresses"][0], "targetRef": one["targetRef"]}
            if one.get("nodeName"):
                address["nodeName"] = one["nodeName"]
            if one.get("hostname"):
                address["hostname"] = one["hostname"]
            if one["conditions"]["ready"]:
                ready.append(address)
            elif not one["conditions"]["terminating"]:
                not_ready.append(address)
        if not ready and not not_ready:
            continue
        subset: Object = {}
        if ready:
            subset["addresses"] = ready
        if not_ready:
            subset["notReadyAddresses"] = not_ready
        ports = [{name: value for name, value in port.items() if value != ""} for port in group.ports]
        if ports:
            subset["ports"] = ports
        made.append(subset)
    return made
