"""The gateway's one loop: objects change, what they touch is translated, published, and reported.

The sources keep what they made and look again at what changed (``world.Changes``); what comes out is always the whole
configuration, equal to one made from nothing. Changes that arrive while a publication waits for Envoy are taken together in the
next one. Statuses are written behind the publications, after Envoy has acknowledged what they report.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from sampan.kube.client import resources as core
from sampan.kube.control.controller import ControlContext
from sampan.kube.control.events import EventRecorder
from sampan.kube.control.indexes import SLICES_OF_SERVICE
from sampan.kube.objects import Key, Object, Resource, dig
from sampan.kube.resources import SERVICE_NAME
from sampan.parts.traffic import resources
from sampan.parts.traffic.control.quarantine import Quarantine
from sampan.parts.traffic.control.refusals import overlaid
from sampan.parts.traffic.control.statuses import StatusWriter
from sampan.parts.traffic.envoy.build import Builder
from sampan.parts.traffic.model import Certificate, Listener, Model, Rule
from sampan.parts.traffic.places import Places
from sampan.parts.traffic.references import Backends
from sampan.parts.traffic.sources.gateway_api import GatewaySource, Result, Statuses
from sampan.parts.traffic.sources.ingress import IngressSource
from sampan.parts.traffic.sources.knative import KnativeSource
from sampan.parts.traffic.world import Changes, Known, Objects, World
from sampan.parts.traffic.xds import schema
from sampan.parts.traffic.xds.server import ControlPlane
from sampan.parts.traffic.xds.snapshot import Snapshot

log = logging.getLogger(__name__)

CERTIFICATE_AGE = 3600.0
"""Seconds the platform's own certificate is kept in memory."""

_FIELDS: Mapping[Resource, str] = {
    resources.GATEWAY_CLASSES: "gateway_classes",
    resources.GATEWAYS: "gateways",
    resources.LISTENER_SETS: "listener_sets",
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


SEEN_THROUGH = {resources.KNATIVE_INGRESSES, resources.SERVERLESS_SERVICES, core.SERVICES}
"""Kinds with many objects of which one is looked at now and then: by key, in their informers, which need not hold them decoded."""
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
        internal: tuple[int, int],
        default_certificate: Callable[[], Certificate],
        access_log: Path | None = None,
    ) -> None:
        self._context = context
        self._control_plane = control_plane
        self._told: dict[tuple[str, str], str] = {}
        """Refused versions that are in the log."""
        self._default_certificate = default_certificate
        self._default_known: tuple[float, Certificate] | None = None
        self._recorder = EventRecorder(context.client, context.clock, context.tasks, "ingress-controller")
        self._warned: set[tuple[str, str]] = set()
        self._world = World()
        self._backends = Backends(self._world)
        self._gateways = GatewaySource(places)
        self._ingresses = IngressSource(places.shared, http_port, https_port)
        self._knative = KnativeSource(places.shared, http_port, https_port, internal, context.clock.monotonic)
        self._bare = [
            Listener("platform", "http", places.shared, http_port, "HTTP"),
            Listener("platform", "https", places.shared, https_port, "HTTPS"),
            Listener("platform", "internal", places.shared, internal[0], "HTTP"),
        ]
        self._builder = Builder(gate_socket, access_log=access_log)
        self._quarantine = Quarantine()
        self._sure = False
        """The next publication leaves all suspects out."""
        self._dirty = asyncio.Event()
        self._published = asyncio.Event()
        self.knative_followed = asyncio.Event()
        self._writer = StatusWriter(context, self._current)
        self._unreported: dict[tuple[Resource, Key], Object | None] = {}
        """Statuses that changed and are told once what they report is published."""
        self._refusals: Statuses = {}
        self._waiting: list[asyncio.Future[None]] = []
        self._announcing: dict[Key, asyncio.Future[None]] = {}
        self.generation = 0
        """How many configurations were published."""
        control_plane.on_rejected = self._dirty.set

    async def start(self) -> None:
        """Follow the objects; publishing begins once all are known."""
        informers = self._context.informers
        await self.follow(*(resource for resource in _FIELDS if resource not in KNATIVE))
        slices = informers.informer(core.ENDPOINT_SLICES)
        await slices.wait_synced()
        self._world.slices = lambda service: SLICES_OF_SERVICE(slices, str(service))
        slices.on_change(self._slice_changed)
        self._dirty.set()
        self._context.tasks.keep("publisher", self._run)
        self._context.tasks.keep("statuses", self._writer.run)

    async def follow(self, *followed: Resource) -> None:
        """Translate these kinds too from now on; they must be served already."""
        for resource in followed:
            informer = self._context.informers.informer(resource)
            await informer.wait_synced()
            if resource in SEEN_THROUGH:
                setattr(self._world, _FIELDS[resource], informer)
            informer.on_change(self._follow(resource, _FIELDS[resource]))
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
        early = self._world.early
        if early.get(service, frozenset()) != endpoints:
            if endpoints:
                early[service] = endpoints
            else:
                early.pop(service, None)
            self._world.changed.endpoints.add(service)
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

    def _follow(self, resource: Resource, name: str) -> Callable[[Object | None, Object | None], None]:
        """A listener that keeps one field of the world current."""
        objects: Objects | None = None if resource in SEEN_THROUGH else getattr(self._world, name)

        def changed(old: Object | None, new: Object | None) -> None:
            one = old if new is None else new
            assert one is not None
            key = Key.of(one)
            if objects is None:
                pass  # the informer is looked at itself
            elif new is not None:
                objects[key] = new
            else:
                objects.pop(key, None)
            # our own status writes come back as changes of the same generation
            if not (old is not None and new is not None and _same_wish(old, new)) and self._world.note(name, key):
                self._dirty.set()
            if new is not None:
                self._writer.look(resource, key)  # after that, so that traffic has its turn first

        return changed

    def _current(self, resource: Resource, key: Key) -> Object | None:
        """An object as it is known now."""
        objects: Known = getattr(self._world, _FIELDS[resource])
        return objects.get(key)

    def _slice_changed(self, old: Object | None, new: Object | None) -> None:
        for one in (old, new):
            service = dig(one, "metadata", "labels", SERVICE_NAME)
            if one is not None and service:
                self._world.changed.endpoints.add(Key(one["metadata"]["namespace"], service))
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
        default = await self._default()
        results = self._translate(default)
        for one in results:
            self._unreported |= {entry: one.statuses.get(entry) for entry in one.changed}
        listeners = [listener for one in results for listener in one.listeners]
        listeners += self._idle({(one.address, one.port) for one in listeners}, default)
        model = Model(listeners, self._backends.made)
        if self._sure:
            self._sure = False
        elif self._quarantine.trial():
            self._builder.ports.epoch += 1
        snapshot = self._builder.build(model)
        taken = await self._control_plane.publish(snapshot)
        self.generation += 1
        if self._isolate(taken, snapshot):
            self._dirty.set()
        else:
            self._report(results)

    def _idle(self, taken: set[tuple[str, int]], default: Certificate) -> list[Listener]:
        """Listeners that answer 404 on the platform's own ports as long as nobody serves anything there."""
        for one in self._bare:
            if one.protocol == "HTTPS" and one.certificates != [default]:
                one.certificates = [default]
                one.reshaped()
        return [one for one in self._bare if (one.address, one.port) not in taken]

    def _translate(self, default: Certificate | None) -> tuple[Result, Result, Result]:
        world, backends = self._world, self._backends
        try:
            backends.follow()
            return (
                self._gateways.translate(world, backends),
                self._ingresses.translate(world, backends, default),
                self._knative.translate(world, backends),
            )
        finally:
            world.changed = Changes()

    def _isolate(self, taken: bool, snapshot: Snapshot) -> bool:
        """Set aside the rules because of which Envoy refuses a route configuration; whether to publish again."""
        ports, wanted = self._builder.ports, snapshot.of(schema.ROUTES)
        refused = {
            name: reason
            for (type_url, name), (version, reason) in self._control_plane.rejected().items()
            if type_url == schema.ROUTES and name in wanted and wanted[name].version == version
        }
        if taken:
            ports.trust(refused)
        suspects: dict[int, Rule] = {id(rule): rule for name in refused for rule in ports.suspects(name)}
        if suspects:
            reason = next(iter(refused.values()))
            log.warning("Envoy refuses routes; %d rules may be why: %s", len(suspects), reason)
            # everything else goes out before the search begins
            self._sure = not self._quarantine.waiting and len(suspects) > 1
            self._quarantine.refused(list(suspects.values()), reason)
            ports.epoch += 1
        return bool(suspects) or self._quarantine.waiting

    def _report(self, results: tuple[Result, Result, Result]) -> None:
        """Tell in statuses and events what became of the objects."""
        rejected = self._control_plane.rejected()
        for (type_url, name), (version, reason) in rejected.items():
            if self._told.get((type_url, name)) != version:
                log.error("Envoy refuses %s %s: %s", type_url.rpartition(".")[2], name, reason)
        self._told = {key: version for key, (version, _) in rejected.items()}
        for (resource, key), status in self._unreported.items():
            self._writer.want(resource, key, status)
        self._unreported.clear()
        gateways, ingresses, _ = results
        rules = self._builder.ports.refused()
        before = self._refusals
        self._refusals = overlaid(self._gateways, gateways.statuses, rejected, rules)
        for resource, key in before.keys() | self._refusals.keys():
            entry = (resource, key)
            self._writer.want(resource, key, self._refusals.get(entry) or gateways.statuses.get(entry))
        warnings = list(ingresses.warnings)
        for key, one in self._world.ingresses.items() if rules else ():
            warnings += [(one, "RefusedByEnvoy", reason) for reason in rules.get(f"ingress/{key}", ())]
        self._warn(warnings)

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


def _same_wish(old: Object, new: Object) -> bool:
    """Two states that differ in nothing but status and bookkeeping."""
    if "status" not in new and "status" not in old:
        return False
    metadata = ("labels", "annotations", "generation", "deletionTimestamp")
    return old.get("spec") == new.get("spec") and all(
        old["metadata"].get(name) == new["metadata"].get(name) for name in metadata
    )
