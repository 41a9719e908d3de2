"""EndpointSlice and Endpoints: the addresses behind each Service that has a selector."""

from __future__ import annotations

from sampan.kube.client.resources import ENDPOINT_SLICES, ENDPOINTS, NODES, PODS, SERVICES
from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.indexes import BySelector
from sampan.kube.control.interface import For, Owns, Source, Watches
from sampan.kube.objects import Key, Object, dig, owner_reference
from sampan.kube.resources import SERVICE_NAME
from sampan.kube.status import ApiError
from sampan.parts.workloads import endpoints
from sampan.parts.workloads.endpoints import Group
from sampan.parts.workloads.overlay import Overlay

MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
MANAGER = "endpointslice-controller.k8s.io"
ENDPOINTS_MANAGED_BY = "endpoints.kubernetes.io/managed-by"
ENDPOINTS_MANAGER = "endpoint-controller"
HEADLESS = "service.kubernetes.io/headless"
TRIGGER_TIME = "endpoints.kubernetes.io/last-change-trigger-time"
ZONE = "topology.kubernetes.io/zone"
_SELECTING = BySelector(lambda service: {"matchLabels": found} if (found := service["spec"].get("selector")) else None)


class EndpointsController(Controller):
    """Keeps both forms, EndpointSlices and the legacy Endpoints object, in step with the pods."""

    name = "endpointslice-controller"
    workers = 4

    def __init__(self, context: ControlContext) -> None:
        super().__init__(context)
        self._overlay = Overlay(self.informer(ENDPOINT_SLICES), self.clock)

    def sources(self) -> list[Source]:
        return [
            For(SERVICES),
            Watches(ENDPOINTS, _own_endpoints),
            Watches(PODS, self._services_of),
            Owns(ENDPOINT_SLICES, "Service"),
        ]

    def _services_of(self, pod: Object) -> list[Key]:
        labels = pod["metadata"].get("labels")
        if not labels:
            return []
        found = []
        for service in _SELECTING.candidates(self.informer(SERVICES), pod["metadata"]["namespace"], labels):
            selector = service["spec"].get("selector")
            if selector and selector.items() <= labels.items():
                found.append(Key.of(service))
        return found

    async def reconcile(self, key: Key) -> float | None:
        service = self.informer(SERVICES).get(key)
        if service is None:
            await self._forget(key)  # the slices go by their owner references
            return None
        if service["metadata"].get("deletionTimestamp"):
            return None
        selector = service["spec"].get("selector")
        if not selector or service["spec"].get("type") == "ExternalName":
            return None
        backing = self.informer(PODS).objects(key.namespace, selector)
        zones = {
            node["metadata"]["name"]: (node["metadata"].get("labels") or {}).get(ZONE, "")
            for node in self.informer(NODES).objects()
        }
        groups = endpoints.endpoint_groups(service, backing, zones)
        await self._write_slices(service, groups)
        await self._write_endpoints(service, groups)
        return None

    async def _forget(self, key: Key) -> None:
        if self.informer(ENDPOINTS).get(key) is None:
            return
        try:
            await self.client.delete(ENDPOINTS, key.name, key.namespace)
        except ApiError as error:
            if not error.not_found:
                raise

    async def _write_slices(self, service: Object, groups: list[Group]) -> None:
        uid = service["metadata"]["uid"]
        owned = self._overlay.correct(uid, self.informer(ENDPOINT_SLICES).indexed("owner", uid))
        existing = [one for one in owned if dig(one, "metadata", "labels", MANAGED_BY) == MANAGER]
        plan = endpoints.plan_slices(groups, existing)
        for group in plan.create:
            made = self._slice(service, group)
            created = await self.client.create(ENDPOINT_SLICES, made, service["metadata"]["namespace"])
            self._overlay.created(uid, created)
        touched = {one["metadata"]["uid"] for one, _ in plan.update} | {one["metadata"]["uid"] for one in plan.delete}
        for current in existing:
            if current["metadata"]["uid"] not in touched and current["metadata"].get("labels") != self._labels(service):
                plan.update.append((current, Group(current.get("ports") or [], current.get("endpoints") or [])))
        for current, group in plan.update:
            made = self._slice(service, group)
            metadata = {**current["metadata"], "labels": made["metadata"]["labels"]}
            metadata["annotations"] = {**(metadata.get("annotations") or {}), **made["metadata"]["annotations"]}
            await self.client.update(ENDPOINT_SLICES, {**made, "metadata": metadata})
        for current in plan.delete:
            metadata = current["metadata"]
            try:
                await self.client.delete(ENDPOINT_SLICES, metadata["name"], metadata["namespace"], uid=metadata["uid"])
            except ApiError as error:
                if not (error.not_found or error.conflict):
                    raise
            self._overlay.deleted(current)

    def _slice(self, service: Object, group: Group) -> Object:
        metadata = service["metadata"]
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "generateName": f"{metadata['name']}-",
                "namespace": metadata["namespace"],
                "labels": self._labels(service),
                "annotations": {TRIGGER_TIME: self.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ")},
                "ownerReferences": [owner_reference(service)],
            },
            "addressType": "IPv6" if (service["spec"].get("ipFamilies") or ["IPv4"])[0] == "IPv6" else "IPv4",
            "endpoints": group.endpoints,
            "ports": group.ports,
        }

    def _labels(self, service: Object) -> dict[str, str]:
        labels = {**_own_labels(service), SERVICE_NAME: service["metadata"]["name"], MANAGED_BY: MANAGER}
        if service["spec"].get("clusterIP") == "None":
            labels[HEADLESS] = ""
        return labels

    async def _write_endpoints(self, service: Object, groups: list[Group]) -> None:
        metadata = service["metadata"]
        labels = {**_own_labels(service), ENDPOINTS_MANAGED_BY: ENDPOINTS_MANAGER}
        if service["spec"].get("clusterIP") == "None":
            labels[HEADLESS] = ""
        subsets = endpoints.subsets(groups)
        current = self.informer(ENDPOINTS).get(Key.of(service))
        if current is None:
            made: Object = {
                "apiVersion": "v1",
                "kind": "Endpoints",
                "metadata": {"name": metadata["name"], "namespace": metadata["namespace"], "labels": labels},
                "subsets": subsets,
            }
            try:
                await self.client.create(ENDPOINTS, made, metadata["namespace"])
            except ApiError as error:
                if not error.already_exists:
                    raise
                await self.client.update(ENDPOINTS, made)
        elif (current.get("subsets") or []) != subsets or (current["metadata"].get("labels") or {}) != labels:
            changed = {**current, "subsets": subsets, "metadata": {**current["metadata"], "labels": labels}}
            await self.client.update(ENDPOINTS, changed)


def _own_endpoints(obj: Object) -> list[Key]:
    """Ours come back when they are changed, and go when their service went while nobody looked."""
    return [Key.of(obj)] if dig(obj, "metadata", "labels", ENDPOINTS_MANAGED_BY) == ENDPOINTS_MANAGER else []


def _own_labels(service: Object) -> dict[str, str]:
    return dict(service["metadata"].get("labels") or {})
