"""Endpoints objects written by hand to EndpointSlices: what reads slices sees Services without a selector, too.

As upstream's endpointslicemirroring-controller: an Endpoints object is mirrored while a Service of its name without a selector
exists; the label ``endpointslice.kubernetes.io/skip-mirror`` and leader election's leases in Endpoints are left out.
"""

from __future__ import annotations

from typing import Any

from sampan.kube.control.controller import Controller
from sampan.kube.control.indexes import SLICES_OF_SERVICE
from sampan.kube.control.interface import For, Owns, Source, Watches
from sampan.kube.objects import Key, Object, owner_reference
from sampan.kube.resources import ENDPOINT_SLICES, ENDPOINTS, SERVICE_NAME, SERVICES
from sampan.kube.status import ApiError

MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
MANAGER = "endpointslicemirroring-controller.k8s.io"
SKIP = "endpointslice.kubernetes.io/skip-mirror"
_LEADER = "control-plane.alpha.kubernetes.io/leader"
_HEADLESS = "service.kubernetes.io/headless"
MAX_ENDPOINTS = 1000
"""Addresses of one subset that are mirrored, as upstream's default."""


def is_mirrored(endpoints: Object, service: Object | None) -> bool:
    """The Endpoints object stands for a Service that nobody else makes slices of."""
    metadata = endpoints["metadata"]
    return (
        service is not None
        and not service["spec"].get("selector")
        and service["spec"].get("type") != "ExternalName"
        and (metadata.get("labels") or {}).get(SKIP) != "true"
        and _LEADER not in (metadata.get("annotations") or {})
        and not metadata.get("deletionTimestamp")
    )


def slices_of(endpoints: Object) -> list[Object]:
    """The slices that mirror an Endpoints object: one a subset and address family."""
    metadata = endpoints["metadata"]
    own = {name: value for name, value in (metadata.get("labels") or {}).items() if name != _HEADLESS}
    made = []
    for index, subset in enumerate(endpoints.get("subsets") or ()):
        for family, colon in (("IPv4", False), ("IPv6", True)):
            found = [
                _endpoint(address, ready=ready)
                for field, ready in (("addresses", True), ("notReadyAddresses", False))
                for address in subset.get(field) or ()
                if (":" in address["ip"]) == colon
            ]
            if not found:
                continue
            suffix = f"mirror-{index}" + ("-v6" if colon else "")
            made.append(
                {
                    "apiVersion": "discovery.k8s.io/v1",
                    "kind": "EndpointSlice",
                    "metadata": {
                        "name": f"{metadata['name']}-{suffix}",
                        "namespace": metadata["namespace"],
                        "labels": {**own, SERVICE_NAME: metadata["name"], MANAGED_BY: MANAGER},
                        "ownerReferences": [owner_reference(endpoints)],
                    },
                    "addressType": family,
                    "endpoints": found[:MAX_ENDPOINTS],
                    "ports": [{"name": "", "protocol": "TCP", **port} for port in subset.get("ports") or ()],
                }
            )
    return made


def _endpoint(address: Object, *, ready: bool) -> dict[str, Any]:
    made: dict[str, Any] = {"addresses": [address["ip"]], "conditions": {"ready": ready}}
    for field in ("hostname", "nodeName", "targetRef"):
        if address.get(field):
            made[field] = address[field]
    return made


class EndpointMirror(Controller):
    """Keeps the mirrors."""

    name = "endpointslicemirroring-controller"

    def sources(self) -> list[Source]:
        return [
            For(ENDPOINTS),
            Watches(SERVICES, lambda service: (Key.of(service),)),
            Owns(ENDPOINT_SLICES, "Endpoints"),
        ]

    async def reconcile(self, key: Key) -> float | None:
        endpoints = self.informer(ENDPOINTS).get(key)
        mirrored = endpoints is not None and is_mirrored(endpoints, self.informer(SERVICES).get(key))
        wanted = {one["metadata"]["name"]: one for one in slices_of(endpoints)} if endpoints and mirrored else {}
        for one in SLICES_OF_SERVICE(self.informer(ENDPOINT_SLICES), str(key)):
            metadata = one["metadata"]
            if (metadata.get("labels") or {}).get(MANAGED_BY) != MANAGER:
                continue
            new = wanted.pop(metadata["name"], None)
            if new is None:
                await self._delete(metadata)
            elif any(one.get(field) != new[field] for field in ("endpoints", "ports")):
                await self.client.update(ENDPOINT_SLICES, {**new, "metadata": {**metadata, **new["metadata"]}})
        for new in wanted.values():
            await self.client.create(ENDPOINT_SLICES, new)
        return None

    async def _delete(self, metadata: Object) -> None:
        try:
            await self.client.delete(ENDPOINT_SLICES, metadata["name"], metadata["namespace"], uid=metadata["uid"])
        except ApiError as error:
            if not error.not_found:
                raise
