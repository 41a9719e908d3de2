"""The Service ``kube-system/kube-dns``: the name server's well-known address, with this process as its endpoint."""

from __future__ import annotations

from sampan.kube.client.interface import Client
from sampan.kube.objects import Object, Resource
from sampan.kube.resources import ENDPOINT_SLICES, ENDPOINTS, SERVICE_NAME, SERVICES
from sampan.kube.status import ApiError

NAMESPACE = "kube-system"
NAME = "kube-dns"
MANAGER = "sampan-network"
_LABELS = {
    "k8s-app": "kube-dns",
    "kubernetes.io/cluster-service": "true",
    "kubernetes.io/name": "CoreDNS",
}


async def announce(client: Client, address: str, host: str, udp: int, tcp: int) -> None:
    """Make the Service at ``address`` and its endpoint ``host`` with the ports it listens on.

    Raises:
        ApiError: the address belongs to another Service, or the API cannot be reached.
    """
    named = {"name": NAME, "namespace": NAMESPACE}
    ports = [
        {"name": "dns", "protocol": "UDP", "port": udp},
        {"name": "dns-tcp", "protocol": "TCP", "port": tcp},
    ]
    service: Object = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {**named, "labels": _LABELS},
        "spec": {
            "clusterIP": address,
            "ports": [
                {"name": one["name"], "protocol": one["protocol"], "port": 53, "targetPort": 53} for one in ports
            ],
        },
    }
    try:
        await client.create(SERVICES, service)
    except ApiError as error:
        if not error.already_exists:
            raise
    endpoints: Object = {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {**named, "labels": {**_LABELS, "endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": host}], "ports": ports}],
    }
    one: Object = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**named, "labels": {**_LABELS, SERVICE_NAME: NAME}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [host], "conditions": {"ready": True, "serving": True, "terminating": False}}],
        "ports": ports,
    }
    await _put(client, ENDPOINTS, endpoints)
    await _put(client, ENDPOINT_SLICES, one)


async def _put(client: Client, resource: Resource, obj: Object) -> None:
    try:
        await client.create(resource, obj)
    except ApiError as error:
        if not error.already_exists:
            raise
        await client.update(resource, obj)
