"""Services to data paths: each Service's frontends are put wherever they can be taken.

Several paths stand side by side: the kernel's for pods, forwarders for what the host connects to. A path says which frontends
it takes. A frontend that two Services claim (the same external address and port) belongs to the first until it goes.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.indexes import SLICES_OF_SERVICE, service_of
from sampan.kube.control.interface import For, Source, Watches
from sampan.kube.objects import Key, Object
from sampan.kube.resources import ENDPOINT_SLICES, SERVICES
from sampan.parts.network import loopback_address
from sampan.parts.network.datapath.interface import DataPath
from sampan.parts.network.services import Backends, Frontend, frontends

log = logging.getLogger(__name__)

RETRY_SECONDS = 10.0
"""After which a frontend that could not be had is tried again."""

Takes = Callable[[Frontend, Backends], bool]


class Route(NamedTuple):
    """A data path and the frontends it takes."""

    path: DataPath
    takes: Takes


def service_keys(one: Object) -> list[Key]:
    """The Services an EndpointSlice belongs to."""
    return [Key(*key.split("/", 1)) for key in service_of(one)]


class ServiceProxy(Controller):
    """Keeps the data paths in step with Services and EndpointSlices."""

    name = "service-proxy"

    def __init__(self, context: ControlContext, node: str, node_addresses: Sequence[str]) -> None:
        """``node`` is this node's name, or "" to take every endpoint for local."""
        super().__init__(context)
        self.node = node
        self.node_addresses = list(node_addresses)
        self._routes: list[Route] = []
        self._wanted: dict[Key, dict[Frontend, Backends]] = {}
        self._claims: dict[Frontend, list[Key]] = {}
        self._told: dict[Key, str] = {}
        """What could not be listened on, as the last event said it."""

    def sources(self) -> list[Source]:
        return [For(SERVICES), Watches(ENDPOINT_SLICES, service_keys)]

    @property
    def frontends(self) -> Mapping[Frontend, Backends]:
        """What can be connected to now."""
        return {frontend: self._wanted[claims[0]][frontend] for frontend, claims in self._claims.items()}

    async def use(self, path: DataPath, takes: Takes) -> None:
        """Put everything on another path, too, now and from now on."""
        self._routes.append(Route(path, takes))
        for frontend, backends in list(self.frontends.items()):
            if takes(frontend, backends):
                try:
                    await path.put(frontend, backends)
                except OSError:
                    self.queue.add(self._claims[frontend][0])  # its reconcile tells about it

    def wanted(self) -> dict[Frontend, Backends]:
        """What can be connected to by what is known now, for a path that begins with all of it."""
        made: dict[Frontend, Backends] = {}
        for service in self.informer(SERVICES).objects():
            for frontend, backends in self._frontends(Key.of(service), service).items():
                made.setdefault(frontend, backends)
        return {**made, **self.frontends}

    def _frontends(self, key: Key, service: Object) -> dict[Frontend, Backends]:
        slices = SLICES_OF_SERVICE(self.informer(ENDPOINT_SLICES), str(key))
        return frontends(service, self._seen(key, slices), self.node, self.node_addresses)

    def leave(self, path: DataPath) -> None:
        """No longer put anything there."""
        self._routes = [route for route in self._routes if route.path is not path]

    def again(self) -> None:
        """Look at every Service again (the node's name or addresses changed)."""
        for service in self.informer(SERVICES).objects():
            self.queue.add(Key.of(service))

    async def reconcile(self, key: Key) -> float | None:
        service = self.informer(SERVICES).get(key)
        new: dict[Frontend, Backends] = {}
        if service is not None:
            new = self._frontends(key, service)
        old = self._wanted.get(key, {})
        for frontend in old.keys() - new.keys():
            self._claims[frontend].remove(key)
            if not self._claims[frontend]:
                del self._claims[frontend]
        for frontend in new:
            claims = self._claims.setdefault(frontend, [])
            if key not in claims:
                claims.append(key)
        if new:
            self._wanted[key] = new
        else:
            self._wanted.pop(key, None)
        failures = [why for frontend in {**old, **new} for why in await self._put(frontend)]
        told = self._told.pop(key, "")
        if failures and service is not None:
            # tried again and again, said once
            self._told[key] = "; ".join(dict.fromkeys(failures))
            if self._told[key] != told:
                self.recorder.event(service, "Warning", "FailedToListen", self._told[key])
        return RETRY_SECONDS if failures else None

    def _seen(self, key: Key, slices: Sequence[Object]) -> Sequence[Object]:
        """A Service's EndpointSlices as they are meant for this machine."""
        return slices

    async def _put(self, frontend: Frontend) -> list[str]:
        claims = self._claims.get(frontend)
        backends = self._wanted[claims[0]][frontend] if claims else None
        failures = []
        for route in list(self._routes):
            try:
                if backends is not None and route.takes(frontend, backends):
                    await route.path.put(frontend, backends)
                else:
                    await route.path.drop(frontend)
            except OSError as error:
                ours = backends is not None and backends.reach == "cluster"
                failures.append(explained(frontend, error, in_range=ours))
        return failures


def explained(frontend: Frontend, error: OSError, *, in_range: bool = False) -> str:
    """Why a frontend is not listened on, in words for an event. ``in_range``: it is of the platform's range of Services."""
    where = f"{frontend.address}:{frontend.port}/{frontend.protocol}"
    if error.errno == errno.EADDRINUSE and in_range:
        return (
            f"cannot listen for {where} at {loopback_address(frontend.address)}: it is in use on this machine, by another "
            "platform it seems: give one of them a range of its own (kubernetes.service_range)"
        )
    if error.errno == errno.EADDRINUSE:
        return f"cannot listen on {where}: the port is in use on this machine"
    if error.errno == errno.EACCES:
        return (
            f"cannot listen on {where}: ports below net.ipv4.ip_unprivileged_port_start need rights; use its node port"
        )
    return f"cannot serve {where}: {error.strerror or error}"
