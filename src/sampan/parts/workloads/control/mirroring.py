"""EndpointSlice mirroring: hand-written Endpoints of a Service without a selector, in the form everybody reads.

Who puts an outside database behind a Service writes an Endpoints object of its name; proxies and DNS follow EndpointSlices. Left
alone are Endpoints that say so by a label, those that only hold a leader's lease, and those of Services with a selector.
"""

from __future__ import annotations

import ipaddress

from sampan.kube.client.resources import ENDPOINT_SLICES, ENDPOINTS, SERVICES
from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.interface import For, Owns, Source, Watches
from sampan.kube.objects import Key, Object, owner_reference
from sampan.kube.resources import SERVICE_NAME
from sampan.kube.status import ApiError
from sampan.parts.workloads import endpoints
from sampan.parts.workloads.control.endpoints import MANAGED_BY
from sampan.parts.workloads.endpoints import Group
from sampan.parts.workloads.overlay import Overlay

MANAGER = "endpointslicemirroring-controller.k8s.io"
SKIP = "endpointslice.kubernetes.io/skip-mirror"
LEADER = "control-plane.alpha.kubernetes.io/leader"


class MirroringController(Controller):
    """EndpointSlices after Endpoints that people wrote."""

    name = "endpointslice-mirroring-controller"

    def __init__(self, context: ControlContext) -> None:
        super().__init__(context)
        self._overlay = Overlay(self.informer(ENDPOINT_SLICES), self.clock)

    def sources(self) -> list[Source]:
        return [
            For(ENDPOINTS),
            Watches(SERVICES, lambda service: [Key.of(service)]),
            Owns(ENDPOINT_SLICES, "Endpoints"),
        ]

    async def reconcile(self, key: Key) -> float | None:
        written = self.informer(ENDPOINTS).get(key)
        if written is None or written["metadata"].get("deletionTimestamp"):
            return None  # owner references take the slices away
        uid = written["metadata"]["uid"]
        existing = self._overlay.correct(uid, self.informer(ENDPOINT_SLICES).indexed("owner", uid))
        groups = groups_of(written) if self._wanted(written) else {}
        for family in sorted({"IPv4", "IPv6", *groups} if existing else groups):
            mine = [one for one in existing if one["addressType"] == family]
            wanted = groups.get(family, [])
            plan = endpoints.plan_slices(wanted, mine)
            for group in plan.create:
                made = self._slice(written, family, group)
                self._overlay.created(uid, await self.client.create(ENDPOINT_SLICES, made, key.namespace))
            for current, group in plan.update:
                changed = {**self._slice(written, family, group), "metadata": current["metadata"]}
                await self.client.update(ENDPOINT_SLICES, changed)
            for current in plan.delete:
                await self._delete(current)
        return None

    def _wanted(self, written: Object) -> bool:
        metadata = written["metadata"]
        if (metadata.get("labels") or {}).get(SKIP) == "true" or LEADER in (metadata.get("annotations") or {}):
            return False
        service = self.informer(SERVICES).get(Key.of(written))
        return service is not None and not service["spec"].get("selector")

    def _slice(self, written: Object, family: str, group: Group) -> Object:
        metadata = written["metadata"]
        labels = {**(metadata.get("labels") or {}), SERVICE_NAME: metadata["name"], MANAGED_BY: MANAGER}
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "generateName": f"{metadata['name']}-",
                "namespace": metadata["namespace"],
                "labels": labels,
                "ownerReferences": [owner_reference(written)],
            },
            "addressType": family,
            "endpoints": group.endpoints,
            "ports": group.ports,
        }

    async def _delete(self, current: Object) -> None:
        metadata = current["metadata"]
        try:
            await self.client.delete(ENDPOINT_SLICES, metadata["name"], metadata["namespace"], uid=metadata["uid"])
        except ApiError as error:
            if not (error.not_found or error.conflict):
                raise
        self._overlay.deleted(current)


def groups_of(written: Object) -> dict[str, list[Group]]:
    """The subsets of an Endpoints object by address family and ports."""
    found: dict[str, dict[bytes, Group]] = {}
    for subset in written.get("subsets") or ():
        ports = [{"name": "", "protocol": "TCP", **port} for port in subset.get("ports") or ()]
        for field, ready in (("addresses", True), ("notReadyAddresses", False)):
            for address in subset.get(field) or ():
                family = f"IPv{ipaddress.ip_address(address['ip']).version}"
                group = found.setdefault(family, {}).setdefault(endpoints.ports_key(ports), Group(ports))
                one: Object = {"addresses": [address["ip"]], "conditions": {"ready": ready}}
                one |= {name: address[name] for name in ("hostname", "nodeName", "targetRef") if name in address}
                group.endpoints.append(one)
    return {family: list(groups.values()) for family, groups in found.items()}
