"""The objects that every cluster has before anyone uses it.

Each is created when it is missing; what exists is left as it is, except the addresses of the API server's own Service. RBAC's
default roles come from ``access``; the ServiceAccount and the root certificate of a namespace from controllers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from sampan.kube.access.interface import APISERVER
from sampan.kube.objects import Object, Resource, dig
from sampan.kube.resources import (
    CONFIG_MAPS,
    ENDPOINT_SLICES,
    ENDPOINTS,
    NAMESPACES,
    PRIORITY_CLASSES,
    SERVICE_NAME,
    SERVICES,
    STORAGE_CLASSES,
)
from sampan.kube.server.call import Call
from sampan.kube.server.options import WriteOptions
from sampan.kube.server.verbs import Api
from sampan.kube.status import ApiError
from sampan.kube.store.interface import Change

NAMESPACE_NAMES = ("default", "kube-system", "kube-public", "kube-node-lease")
DNS_INDEX = 10
"""Place of the DNS Service's address in the service range, by convention."""
MANAGER = "kube-apiserver"


def _objects(api: Api, port: int, authority: str) -> Iterator[tuple[Resource, Object]]:
    for name, value, meant_for in (
        ("system-cluster-critical", 2_000_000_000, "pods the cluster cannot do without, on whatever node"),
        ("system-node-critical", 2_000_001_000, "pods their node cannot do without"),
    ):
        yield PRIORITY_CLASSES, {"metadata": {"name": name}, "value": value, "description": f"For {meant_for}."}
    annotations = {"storageclass.kubernetes.io/is-default-class": "true"}
    yield (
        STORAGE_CLASSES,
        {
            "metadata": {"name": "standard", "annotations": annotations},
            "provisioner": "sampan.dev/local",
            "volumeBindingMode": "WaitForFirstConsumer",
            "reclaimPolicy": "Delete",
            "allowVolumeExpansion": True,
        },
    )
    if authority:
        data = {
            "client-ca-file": authority,
            "requestheader-client-ca-file": authority,
            "requestheader-allowed-names": '["front-proxy-client"]',
            "requestheader-extra-headers-prefix": '["X-Remote-Extra-"]',
            "requestheader-group-headers": '["X-Remote-Group"]',
            "requestheader-username-headers": '["X-Remote-User"]',
        }
        named = {"name": "extension-apiserver-authentication", "namespace": "kube-system"}
        yield CONFIG_MAPS, {"metadata": named, "data": data}
    labels = {"component": "apiserver", "provider": "kubernetes"}
    yield (
        SERVICES,
        {
            "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
            "spec": {
                "type": "ClusterIP",
                "clusterIP": api.allocator.address(1),
                "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}],
            },
        },
    )


def _addresses(address: str, port: int) -> Iterator[tuple[Resource, Object]]:
    named = {"name": "kubernetes", "namespace": "default"}
    ports = [{"name": "https", "port": port, "protocol": "TCP"}]
    mirrored = {"endpointslice.kubernetes.io/skip-mirror": "true"}
    yield (
        ENDPOINTS,
        {"metadata": {**named, "labels": mirrored}, "subsets": [{"addresses": [{"ip": address}], "ports": ports}]},
    )
    yield (
        ENDPOINT_SLICES,
        {
            "metadata": {**named, "labels": {SERVICE_NAME: "kubernetes"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
            "ports": ports,
        },
    )


async def boot(api: Api, address: str, port: int, authority: str = "") -> None:
    """Make what is missing.

    ``address`` and ``port`` are where the API server listens, as pods reach it; ``authority`` is the PEM certificate by which
    aggregated API servers know it and its users.

    Raises:
        ApiError: the store refuses a write.
    """
    await asyncio.gather(*(_ensure(api, NAMESPACES, {"metadata": {"name": name}}) for name in NAMESPACE_NAMES))
    await asyncio.gather(
        *(_ensure(api, resource, obj) for resource, obj in _objects(api, port, authority)),
        *(_ensure(api, resource, obj, current=True) for resource, obj in _addresses(address, port)),
    )
    service = await _ensure(api, SERVICES, {"metadata": {"name": "kubernetes", "namespace": "default"}})
    if dig(service, "spec", "ports", 0, "targetPort") != port:
        service["spec"]["ports"][0]["targetPort"] = port
        service["metadata"].pop("resourceVersion")
        await api.update(_call(api, SERVICES, service), service)


async def keep(api: Api, address: str, port: int) -> None:
    """Make the API server's own Service and its endpoints again whenever somebody deletes them; runs until cancelled.

    Raises:
        ApiError: the store refuses a write.
    """
    gone = asyncio.Event()

    def changed(change: Change) -> None:
        if change.deleted:
            gone.set()

    resources = (SERVICES, ENDPOINTS, ENDPOINT_SLICES)
    keys = [api.type_of(resource).key("default", "kubernetes") for resource in resources]
    unsubscribe = [api.store.subscribe(key, changed) for key in keys]
    try:
        while True:
            await gone.wait()
            gone.clear()
            await boot(api, address, port)
    finally:
        for stop in unsubscribe:
            stop()


def _call(api: Api, resource: Resource, obj: Object) -> Call:
    metadata = obj["metadata"]
    options = WriteOptions(manager=MANAGER)
    return Call(APISERVER, api.type_of(resource), metadata.get("namespace", ""), metadata["name"], options=options)


async def _ensure(api: Api, resource: Resource, wanted: Object, *, current: bool = False) -> Object:
    """The object, created when missing; ``current``: also brought to what is wanted."""
    call = _call(api, resource, wanted)
    try:
        found = await api.get_object(call)
    except ApiError as error:
        if not error.not_found:
            raise
        call.name = ""
        return (await api.create(call, wanted)).object
    if current:
        return (await api.update(call, wanted)).object
    return found
