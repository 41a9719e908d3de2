"""The cluster as the name server asks about it: informers with a few indexes, and records worked out when first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from sampan.kube.control.indexes import SLICES_OF_SERVICE, service_of
from sampan.kube.control.interface import Informers
from sampan.kube.objects import Key, Object
from sampan.kube.resources import ENDPOINT_SLICES, NAMESPACES, SERVICES
from sampan.parts.network.records import ServiceRecords, endpoint_name, is_ready, service_records

_BY_ADDRESS = "network/address"


def _cluster_addresses(service: Object) -> Iterable[str]:
    spec = service["spec"]
    given = spec.get("clusterIPs") or [spec.get("clusterIP") or ""]
    return [address for address in given if address not in ("", "None")]


def _endpoint_addresses(one: Object) -> Iterable[str]:
    return [
        address
        for endpoint in one.get("endpoints") or ()
        if is_ready(endpoint)
        for address in endpoint.get("addresses") or ()
    ]


class ClusterDirectory:
    """A `dns.zone.Directory` over the process's informers."""

    def __init__(self, informers: Informers, shown: Callable[[str], str] = lambda address: address) -> None:
        """``shown`` maps a cluster address to the one clients are told."""
        self._shown = shown
        self._namespaces = informers.informer(NAMESPACES)
        self._services = informers.informer(SERVICES)
        self._slices = informers.informer(ENDPOINT_SLICES)
        self._services.add_index(_BY_ADDRESS, self._shown_addresses)
        self._slices.add_index(_BY_ADDRESS, _endpoint_addresses)
        self._known: dict[str, ServiceRecords] = {}
        self._services.on_change(self._service_changed)
        self._slices.on_change(self._slice_changed)

    def _shown_addresses(self, service: Object) -> Iterable[str]:
        # both, for what is shown may change after the index was made
        return {one for address in _cluster_addresses(service) for one in (address, self._shown(address))}

    def forget(self) -> None:
        """Cluster addresses are shown differently from now on."""
        self._known.clear()

    async def wait_synced(self) -> None:
        """Return when the caches are filled."""
        for informer in (self._namespaces, self._services, self._slices):
            await informer.wait_synced()

    def _service_changed(self, old: Object | None, new: Object | None) -> None:
        for one in (old, new):
            if one is not None:
                self._known.pop(str(Key.of(one)), None)

    def _slice_changed(self, old: Object | None, new: Object | None) -> None:
        for one in (old, new):
            if one is not None:
                for key in service_of(one):
                    self._known.pop(key, None)

    # -- what the zone asks

    def has_namespace(self, name: str) -> bool:
        """The namespace exists."""
        return self._namespaces.get(Key("", name)) is not None

    def service(self, namespace: str, name: str) -> ServiceRecords | None:
        """The records of a Service, or None where it does not exist."""
        key = f"{namespace}/{name}"
        found = self._known.get(key)
        if found is None:
            service = self._services.get(Key(namespace, name))
            if service is None:
                return None
            found = self._known[key] = service_records(service, SLICES_OF_SERVICE(self._slices, key), self._shown)
        return found

    def names_of(self, address: str) -> Sequence[str]:
        """Services with this cluster address, else endpoints of headless Services with it."""
        services = self._services.indexed(_BY_ADDRESS, address)
        if services:
            return [f"{one['metadata']['name']}.{one['metadata']['namespace']}" for one in services]
        names: dict[str, None] = {}
        for one in self._slices.indexed(_BY_ADDRESS, address):
            for key in service_of(one):
                namespace, _, name = key.partition("/")
                service = self._services.get(Key(namespace, name))
                if service is None or service["spec"].get("clusterIP") != "None":
                    continue
                for endpoint in one["endpoints"]:
                    if address in endpoint["addresses"]:
                        names[f"{endpoint_name(endpoint, address)}.{name}.{namespace}"] = None
        return list(names)
