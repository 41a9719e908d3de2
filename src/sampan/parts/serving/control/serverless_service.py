"""ServerlessService: a revision's Services and the addresses behind them.

The private Service selects the revision's pods; the public one has no selector, and its EndpointSlice is written here. In
``Proxy`` mode requests pass the gate on their way (the traffic part sees to that by the mode); the addresses are the pods' in
both modes.
"""

from __future__ import annotations

from sampan.kube.client.resources import ENDPOINT_SLICES, SERVICES
from sampan.kube.control.conditions import ConditionSet
from sampan.kube.control.controller import Controller
from sampan.kube.control.indexes import SLICES_OF_SERVICE
from sampan.kube.control.interface import For, Owns, Source, Watches
from sampan.kube.control.owned import NotOwnedError, ensure
from sampan.kube.objects import Key, Object, copy, dig
from sampan.kube.resources import SERVICE_NAME
from sampan.parts.serving import keys, names
from sampan.parts.serving.control.revision import user_port
from sampan.parts.serving.resources import REVISIONS, SERVERLESS_SERVICES

MANAGED_BY = "endpointslice.kubernetes.io/managed-by"

ADDITIONS_LATER = 0.05
"""Seconds until further ready addresses are copied, out of the way of a request that waits."""


class ServerlessServiceController(Controller):
    """ServerlessServices of networking.internal.knative.dev."""

    name = "serverlessservice-controller"
    workers = 4

    def sources(self) -> list[Source]:
        return [
            For(SERVERLESS_SERVICES),
            Owns(SERVICES, "ServerlessService"),
            Watches(ENDPOINT_SLICES, self._of_private),
        ]

    def _of_private(self, one: Object) -> list[Key]:
        name = dig(one, "metadata", "labels", keys.SERVERLESS_SERVICE)
        if not name:
            return []
        key = Key(one["metadata"]["namespace"], name)
        if self._only_adds(key, one):
            # the gate has told Envoy already
            self.queue.add_after(key, ADDITIONS_LATER)
            return []
        return [key]

    def _only_adds(self, key: Key, private: Object) -> bool:
        public = self.informer(ENDPOINT_SLICES).get(Key(key.namespace, names.child(key.name, "-public")))
        return public is not None and _ready(public) <= _ready(private)

    async def reconcile(self, key: Key) -> float | None:
        sks = self.informer(SERVERLESS_SERVICES).get(key)
        if sks is None or sks["metadata"].get("deletionTimestamp"):
            return None
        revision = self.informer(REVISIONS).get(key)
        if revision is None:
            return None
        now = self.clock.now()
        conditions = ConditionSet(sks, ("EndpointsPopulated",), now, informational=("ActivatorEndpointsPopulated",))
        try:
            await ensure(self, SERVICES, sks, self._service(sks, revision, public=False))
            public = await ensure(self, SERVICES, sks, self._service(sks, revision, public=True))
        except NotOwnedError as error:
            conditions.false("EndpointsPopulated", "NotOwned", str(error))
        else:
            ready = await self._write_endpoints(sks, public)
            if sks["spec"]["mode"] == "Serve" and not ready:
                conditions.unknown(
                    "EndpointsPopulated", "NoHealthyBackends", "ServerlessService has no healthy backends."
                )
            else:
                conditions.true("EndpointsPopulated")
            conditions.true("ActivatorEndpointsPopulated")
        status: Object = {
            "serviceName": key.name,
            "privateServiceName": names.private_service(key.name),
            "conditions": conditions.conditions(),
            "observedGeneration": sks["metadata"].get("generation"),
        }
        if status != (sks.get("status") or {}):
            await self.client.update(SERVERLESS_SERVICES, {**sks, "status": status}, subresource="status")
        return None

    def _service(self, sks: Object, revision: Object, *, public: bool) -> Object:
        metadata = sks["metadata"]
        h2c = sks["spec"].get("protocolType") == "h2c"
        port: Object = {
            "name": "http2" if h2c else "http",
            "port": 80,
            "targetPort": user_port(revision),
            "protocol": "TCP",
            "appProtocol": "kubernetes.io/h2c" if h2c else "http",
        }
        name = metadata["name"] if public else names.private_service(metadata["name"])
        labels = {
            **(metadata.get("labels") or {}),
            keys.SERVICE_TYPE: "Public" if public else "Private",
            keys.SERVERLESS_SERVICE: metadata["name"],
        }
        spec: Object = {"type": "ClusterIP", "ports": [port]}
        if not public:
            spec["selector"] = {keys.REVISION_UID: revision["metadata"]["uid"]}
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": metadata["namespace"], "labels": labels},
            "spec": spec,
        }

    async def _write_endpoints(self, sks: Object, public: Object) -> int:
        """Copy the private Service's addresses to the public one; how many are ready."""
        key = Key.of(sks)
        endpoints: list[Object] = []
        ports: list[Object] = []
        private = f"{key.namespace}/{names.private_service(key.name)}"
        for one in SLICES_OF_SERVICE(self.informer(ENDPOINT_SLICES), private):
            endpoints += copy(one.get("endpoints") or [])
            ports = one.get("ports") or ports
        labels = {SERVICE_NAME: key.name, MANAGED_BY: "serverlessservice-controller.knative.dev", "app": key.name}
        wanted: Object = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": names.child(key.name, "-public"), "namespace": key.namespace, "labels": labels},
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": copy(ports),
        }
        current = self.informer(ENDPOINT_SLICES).get(Key(key.namespace, wanted["metadata"]["name"]))
        if current is None:
            await ensure(self, ENDPOINT_SLICES, public, wanted)
        elif (current.get("endpoints") or []) != endpoints or (current.get("ports") or []) != ports:
            await self.client.update(ENDPOINT_SLICES, {**current, "endpoints": endpoints, "ports": copy(ports)})
        return sum(bool(dig(one, "conditions", "ready")) for one in endpoints)


def _ready(endpoint_slice: Object) -> set[str]:
    """The slice's addresses that take requests."""
    endpoints = endpoint_slice.get("endpoints") or ()
    return {address for one in endpoints if dig(one, "conditions", "ready") for address in one["addresses"]}
