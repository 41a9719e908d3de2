"""Where a Service can be reached from the API server itself: the address of one of its ready endpoints.

Webhooks, conversion webhooks and aggregated APIs name a Service, and the API server is not a pod: it goes to an endpoint
directly, so it needs no cluster address and no DNS.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from typing import Any

from sampan.kernel.addresses import door
from sampan.kernel.errors import SampanError
from sampan.kube.access.interface import ObjectCache
from sampan.kube.objects import dig
from sampan.kube.resources import ENDPOINT_SLICES, ENDPOINTS, SERVICE_NAME, SERVICES

Resolver = Callable[[str, str, int], Awaitable[tuple[str, int]]]
"""(namespace, service, port) → (host, port); raises `ServiceError` where there is none."""


class ServiceError(SampanError):
    """A Service does not exist, has no such port, or nothing ready behind it."""


class ServiceEndpoints:
    """Resolves Services over the object cache, taking turns among the ready endpoints."""

    def __init__(self, cache: ObjectCache) -> None:
        self._cache = cache
        self._turns = count()

    async def resolve(self, namespace: str, name: str, port: int) -> tuple[str, int]:
        """An address for ``port`` of a Service.

        Raises:
            ServiceError: there is none.
        """
        service = self._cache.get(SERVICES, namespace, name)
        if service is None:
            raise ServiceError(f'service "{name}" not found')
        spec = service.get("spec") or {}
        if spec.get("type") == "ExternalName":
            return spec.get("externalName") or "", port
        wanted = next((each for each in spec.get("ports") or () if each.get("port") == port), None)
        if wanted is None:
            raise ServiceError(f'no service port {port} found for service "{name}"')
        found = self._slices(namespace, name, wanted) or self._legacy(namespace, name, wanted)
        if not found:
            raise ServiceError(f'no endpoints available for service "{name}"')
        address, number = found[next(self._turns) % len(found)]
        return address, door(address, number)

    def _slices(self, namespace: str, name: str, port: Mapping[str, Any]) -> list[tuple[str, int]]:
        found = []
        for each in self._cache.objects(ENDPOINT_SLICES, namespace):
            if dig(each, "metadata", "labels", SERVICE_NAME) != name:
                continue
            number = _number(each.get("ports") or (), port)
            if number is None:
                continue
            for endpoint in each.get("endpoints") or ():
                if dig(endpoint, "conditions", "ready", default=True):
                    found += [(address, number) for address in (endpoint.get("addresses") or ())[:1]]
        return found

    def _legacy(self, namespace: str, name: str, port: Mapping[str, Any]) -> list[tuple[str, int]]:
        """From an Endpoints object, as hand-made ones for things outside of the platform are."""
        found = []
        endpoints = self._cache.get(ENDPOINTS, namespace, name) or {}
        for subset in endpoints.get("subsets") or ():
            number = _number(subset.get("ports") or (), port)
            if number is not None:
                found += [(address["ip"], number) for address in subset.get("addresses") or ()]
        return found


def _number(ports: Any, wanted: Mapping[str, Any]) -> int | None:
    """The endpoint port for a service port: the one of the same name."""
    name = wanted.get("name") or ""
    number: int | None = next((each.get("port") for each in ports if (each.get("name") or "") == name), None)
    return number
