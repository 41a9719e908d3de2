"""The gateway's one loop: objects change, the whole configuration is translated, published and reported.

Translation is pure and cheap (unchanged rules and backends keep their wire form), so there is one way to be right: always
from everything. Changes that arrive while a publication waits for Envoy are taken together in the next one. A status is
written after Envoy has acknowledged what it reports.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from sampan.kube.client import resources as core
from sampan.kube.control.controller import ControlContext
from sampan.kube.control.events import EventRecorder
from sampan.kube.objects import Key, Object, Resource, copy, dig
from sampan.kube.status import ApiError
from sampan.parts.traffic import resources
from sampan.parts.traffic.envoy.build import Builder
from sampan.parts.traffic.model import Certificate, Model
from sampan.parts.traffic.places import Places
from sampan.parts.traffic.references import Backends, Recipe
from sampan.parts.traffic.sources import ingress, knative
from sampan.parts.traffic.sources.gateway_api import GatewaySource, Statuses
from sampan.parts.traffic.world import World
from sampan.parts.traffic.xds import schema
from sampan.parts.traffic.xds.server import ControlPlane

log = logging.getLogger(__name__)

CERTIFICATE_AGE = 3600.0
"""Seconds the platform's own certificate is kept in memory."""
SERVICE_NAME = "kubernetes.io/service-name"

_FIELDS: Mapping[Resource, str] = {
    resources.GATEWAY_CLASSES: "gateway_classes",
    resources.GATEWAYS: "gateways",
    resources.HTTP_ROUTES: "http_routes",
    resources.GRPC_ROUTES: "grpc_routes",
    resources.TLS_ROUTES: "tls_routes",
    resources.TCP_ROUTES: "tcp_routes",
    resources.UDP_ROUTES: "udp_routes",
    resources.REFERENCE_GRANTS: "reference_grants",
    resources.BACKEND_TLS_POLICIES: "backend_tls_policies",
    resources.KNATIVE_INGRESSES: "knative_ingresses",
    resources.SERVERLESS_SERVICES: "serverless_services",
    core.INGRESSES: "ingresses",
    core.INGRESS_CLASSES: "ingress_classes",
    core.SERVICES: "services",
    core.SECRETS: "secrets",
    core.CONFIG_MAPS: "config_maps",
    core.NAMESPACES: "namespaces",
}


KNATIVE = (resources.KNATIVE_INGRESSES, resources.SERVERLESS_SERVICES)
"""Followed once the serving part serves them."""


class Publisher:
    """Follows the objects and keeps Envoy and the statuses in step with them."""

    def __init__(
        self,
        context: ControlContext,
        control_plane: ControlPlane,
        places: Places,
        http_port: int,
        https_port: int,
        gate_socket: Path,
        internal_port: int,
        default_certificate: Callable[[], Certificate],
        access_log: bool = True,
    ) -> None:
        self._context = context
        self._control_plane = control_plane
        self._places = places
        self._address = places.shared
        self._told: dict[tuple[str, str], str] = {}
        """Refused versions that are in the log."""
        self._ports = (http_port, https_port)
        self._internal_port = internal_port
        self._default_certificate = default_certificate
        self._default_known: tuple[float, Certificate] | None = None
        self._recorder = EventRecorder(context.client, context.clock, context.tasks, "ingress-controller")
        self._warned: set[tuple[str, str]] = set()
        self._world = World()
        self._recipes: dict[str, Recipe] = {}
        self._compared: dict[tuple[Resource, Key], tuple[Object, Object]] = {}
        """Statuses found to stand as wanted, with the objects they stand in."""
        self._gateways = GatewaySource(places)
        self._builder = Builder(gate_socket, access_log=access_log)
        self._dirty = asyncio.Event()
        self._published = asyncio.Event()
        self.knative_followed = asyncio.Event()
        self._unreported = asyncio.Event()
        self._statuses: Statuses = {}
        self._waiting: list[asyncio.Future[None]] = []
        self._announcing: dict[Key, asyncio.Future[None]] = {}
        self.generation = 0
        """How many configurations were published."""

    async def start(self) -> None:
        """Follow the objects; publishing begins once all are known."""
        informers = self._context.informers
        await self.follow(*(resource for resource in _FIELDS if resource not in KNATIVE))
        slices = informers.informer(core.ENDPOINT_SLICES)
        await slices.wait_synced()
        slices.on_change(self._slice_changed)
        self._dirty.set()
        self._context.tasks.keep("publisher", self._run)
        self._context.tasks.keep("statuses", self._report)

    async def follow(self, *followed: Resource) -> None:
        """Translate these kinds too from now on; they must be served already."""
        for resource in followed:
            informer = self._context.informers.informer(resource)
            await informer.wait_synced()
            informer.on_change(self._follow(_FIELDS[resource]))
        if resources.KNATIVE_INGRESSES in followed:
            await self.complete()
            self.knative_followed.set()

    async def complete(self) -> None:
        """Return when everything known now is published."""
        await self._next()

    def _next(self) -> asyncio.Future[None]:
        """The next publication, which has everything known now."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._dirty.set()
        return done

    async def announce(self, service: Key, endpoints: frozenset[tuple[str, int]]) -> None:
        """Send traffic of a Service to these addresses besides those of its EndpointSlices; on return Envoy knows them."""
        early: dict[Key, frozenset[tuple[str, int]]] = self._world.early  # type: ignore[assignment]
        if early.get(service, frozenset()) != endpoints:
            if endpoints:
                early[service] = endpoints
            else:
                early.pop(service, None)
            self._announcing[service] = self._next()
        # the same may have been announced a moment ago and still be on its way to Envoy
        pending = self._announcing.get(service)
        if pending is not None:
            await asyncio.shield(pending)
            if self._announcing.get(service) is pending:
                del self._announcing[service]

    async def published(self) -> None:
        """Return once the first configuration is out."""
        await self._published.wait()

    def _follow(self, name: str) -> Callable[[Object | None, Object | None], None]:
        """A listener that keeps one field of the world current."""
        objects: dict[Key, Object] = getattr(self._world, name)

        def changed(old: Object | None, new: Object | None) -> None:
            if new is not None:
                objects[Key.of(new)] = new
                # our own status writes come back as changes of the same generation
                if old is not None and _same_wish(old, new):
                    return
            elif old is not None:
                objects.pop(Key.of(old), None)
            if not name.endswith("_routes"):
                self._world.version += 1
            self._dirty.set()

        return changed

    def _slice_changed(self, old: Object | None, new: Object | None) -> None:
        slices: dict[Key, list[Object]] = self._world.slices  # type: ignore[assignment]
        for one in (old, new):
            service = dig(one, "metadata", "labels", SERVICE_NAME)
            if one is None or not service:
                continue
            key, uid = Key(one["metadata"]["namespace"], service), one["metadata"]["uid"]
            kept = [other for other in slices.get(key, ()) if other["metadata"]["uid"] != uid]
            if one is new:
                kept.append(one)
            if kept:
                slices[key] = kept
            else:
                slices.pop(key, None)
        self._dirty.set()

    async def _run(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            waiting, self._waiting = self._waiting, []
            try:
                await self._publish()
            finally:
                for done in waiting:
                    if not done.done():
                        done.set_result(None)
            self._published.set()

    async def _publish(self) -> None:
        backends = Backends(self._world, self._recipes)
        gateways = self._gateways.translate(self._world, backends)
        default = await self._default() if self._world.ingresses else None
        ingresses = ingress.translate(self._world, backends, self._address, *self._ports, default)
        services = knative.translate(self._world, backends, self._address, *self._ports, self._internal_port)
        model = Model([*gateways.listeners, *ingresses.listeners, *services.listeners], backends.made)
        await self._control_plane.publish(self._builder.build(model))
        self.generation += 1
        statuses = {**gateways.statuses, **ingresses.statuses, **services.statuses}
        self._report_rejections(statuses)
        self._statuses = statuses
        self._unreported.set()
        self._warn(ingresses.warnings)

    async def _default(self) -> Certificate:
        """The default certificate, read again now and then because it is renewed."""
        now = self._context.clock.monotonic()
        if self._default_known is None or now - self._default_known[0] > CERTIFICATE_AGE:
            self._default_known = (now, await asyncio.to_thread(self._default_certificate))
        return self._default_known[1]

    def _warn(self, warnings: list[tuple[Object, str, str]]) -> None:
        """An event for each problem that was not there before."""
        now = {(one["metadata"]["uid"], message) for one, _, message in warnings}
        for one, reason, message in warnings:
            if (one["metadata"]["uid"], message) not in self._warned:
                self._recorder.event(one, "Warning", reason, message)
        self._warned = now

    async def _report(self) -> None:
        """Write statuses behind the publications: traffic never waits for them."""
        while True:
            await self._unreported.wait()
            self._unreported.clear()
            await self._write(self._statuses)

    def _report_rejections(self, statuses: Statuses) -> None:
        """What passed our own checks and Envoy still refuses is told where it belongs: on the Gateway."""
        rejected = self._control_plane.rejected()
        for (type_url, name), (version, reason) in rejected.items():
            if self._told.get((type_url, name)) != version:
                log.error("Envoy refuses %s %s: %s", type_url.rpartition(".")[2], name, reason)
        self._told = {key: version for key, (version, _) in rejected.items()}
        for (type_url, name), (_, reason) in rejected.items():
            if type_url in (schema.LISTENER, schema.ROUTES):
                for (resource, key), status in statuses.items():
                    if resource == resources.GATEWAYS:
                        spec = self._world.gateways[key]["spec"]
                        refuse(status, spec, self._places, name, reason)

    async def _write(self, statuses: Statuses) -> None:
        self._compared = {entry: known for entry, known in self._compared.items() if entry in statuses}
        for (resource, key), status in statuses.items():
            current: Object | None = getattr(self._world, _FIELDS[resource]).get(key)
            if current is None:
                continue
            before = self._compared.get((resource, key))
            if before is not None and before[0] is status and before[1] is current:
                continue
            wanted = self._with_times(status, current.get("status") or {})
            if wanted == {name: dig(current, "status", name) for name in wanted}:
                self._compared[resource, key] = (status, current)
                continue
            try:
                await self._context.client.patch(
                    resource, key.name, {"status": wanted}, key.namespace or None, subresource="status"
                )
            except ApiError as error:
                if not (error.not_found or error.conflict):
                    log.warning("status of %s %s: %s", resource, key, error.message)

    def _with_times(self, wanted: Object, current: Object) -> Object:
        """The wanted status with ``lastTransitionTime`` kept where a condition's status did not change."""
        dated: Object = copy(wanted)
        stamp = self._context.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        _date(dated.get("conditions"), current.get("conditions"), stamp)
        for listener in dated.get("listeners") or ():
            known = (one for one in current.get("listeners") or () if one["name"] == listener["name"])
            before: Object = next(known, {})
            _date(listener["conditions"], before.get("conditions"), stamp)
        for field, reference in (("parents", "parentRef"), ("ancestors", "ancestorRef")):
            for entry in dated.get(field) or ():
                same = (
                    one
                    for one in current.get(field) or ()
                    if (one[reference], one["controllerName"]) == (entry[reference], entry["controllerName"])
                )
                earlier: Object = next(same, {})
                _date(entry["conditions"], earlier.get("conditions"), stamp)
        return dated


def refuse(status: Object, spec: Object, places: Places, name: str, reason: str) -> None:
    """Tell in a Gateway's status that Envoy refuses the listener (or its routes) of this name, if it is the Gateway's."""
    address = status["addresses"][0]["value"]
    place = name.removeprefix("udp/").partition("/")[0]
    ports = {one["name"]: places.own(address, one["port"]).port for one in spec["listeners"]}
    hit = [one for one in status["listeners"] if f"{address}:{ports.get(one['name'])}" == place]
    changes = {"Programmed": {"status": "False", "reason": "Invalid", "message": reason}}
    if "bind" in reason:
        changes["Accepted"] = {"status": "False", "reason": "PortUnavailable", "message": reason}
    for listener in hit:
        for condition in listener["conditions"]:
            condition |= changes.get(condition["type"], {})
    if hit and len(hit) == len(status["listeners"]):
        for condition in status["conditions"]:
            if condition["type"] == "Programmed":
                condition |= changes["Programmed"]


def _same_wish(old: Object, new: Object) -> bool:
    """Two states that differ in nothing but status and bookkeeping."""
    if "status" not in new and "status" not in old:
        return False
    metadata = ("labels", "annotations", "generation", "deletionTimestamp")
    return old.get("spec") == new.get("spec") and all(
        old["metadata"].get(name) == new["metadata"].get(name) for name in metadata
    )


def _date(conditions: list[Object] | None, before: list[Object] | None, stamp: str) -> None:
    known = {one["type"]: one for one in before or ()}
    for condition in conditions or ():
        old = known.get(condition["type"])
        unchanged = old is not None and old["status"] == condition["status"]
        condition.setdefault(
            "lastTransitionTime", old["lastTransitionTime"] if old is not None and unchanged else stamp
        )
