"""What pods refer to: ConfigMaps, Secrets, claims and volumes, found by name.

On the platform's own node the process's informers hold all of them anyway (`InformedSources`). A node that joined may read
only what its pods name, one object at a time (`ReferencedSources`): each is watched for as long as a pod names it, as the
kubelet does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from sampan.kernel.clock import Clock
from sampan.kube.client import Client
from sampan.kube.control.controller import ControlContext
from sampan.kube.control.informer import SharedInformer
from sampan.kube.control.interface import Informer, Informers
from sampan.kube.control.reflector import Reflector
from sampan.kube.objects import Key, Object, Resource, dig
from sampan.kube.resources import CONFIG_MAPS, PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, SECRETS

log = logging.getLogger(__name__)

RESOURCES: dict[str, Resource] = {
    one.plural: one for one in (CONFIG_MAPS, SECRETS, PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES)
}
SYNC_SECONDS = 5.0
"""How long a pod waits for what it names to be read; after that it is told that it is missing, and tries again later."""

Listener = Callable[[Object | None, Object | None], None]


class Sources(Protocol):
    """Finds what pods refer to, by plural and key."""

    async def start(self) -> None:
        """Return when `get` answers truly for what is followed."""
        ...

    def get(self, plural: str, key: Key) -> Object | None:
        """The object, as far as it is followed."""
        ...

    def on_change(self, plural: str, listener: Listener) -> None:
        """Call ``listener(old, new)`` after each change."""
        ...

    async def follow(self, pod: Object) -> None:
        """Return when what the pod refers to can be found; call it again when the pod's spec has changed."""
        ...

    def forget(self, uid: str) -> None:
        """A pod is gone."""
        ...


class InformedSources:
    """Everything, by the process's informers."""

    def __init__(self, informers: Informers) -> None:
        self._informers = informers
        self._stores: dict[str, Informer] = {}

    async def start(self) -> None:
        """See `Sources`."""
        self._stores = {plural: self._informers.informer(resource) for plural, resource in RESOURCES.items()}
        for store in self._stores.values():
            await store.wait_synced()

    def get(self, plural: str, key: Key) -> Object | None:
        """See `Sources`."""
        return self._stores[plural].get(key)

    def on_change(self, plural: str, listener: Listener) -> None:
        """See `Sources`."""
        self._stores[plural].on_change(listener)

    async def follow(self, pod: Object) -> None:
        """See `Sources`; all is followed."""

    def forget(self, uid: str) -> None:
        """See `Sources`; nothing is kept for a pod."""


class Reference(NamedTuple):
    """An object that a pod names."""

    plural: str
    key: Key


def references(pod: Object) -> Iterator[Reference]:
    """Every ConfigMap, Secret and claim a pod's volumes, environment and image pulls name."""
    space, spec = pod["metadata"]["namespace"], pod["spec"]

    def named(plural: str, name: str | None) -> Iterator[Reference]:
        if name:
            yield Reference(plural, Key(space, name))

    for pull in spec.get("imagePullSecrets") or ():
        yield from named("secrets", pull.get("name"))
    for volume in spec.get("volumes") or ():
        yield from named("persistentvolumeclaims", dig(volume, "persistentVolumeClaim", "claimName"))
        if "ephemeral" in volume:
            yield from named("persistentvolumeclaims", f"{pod['metadata']['name']}-{volume['name']}")
        for source in (volume, *(dig(volume, "projected", "sources", default=()))):
            yield from named("configmaps", dig(source, "configMap", "name"))
            secret = source.get("secret") or {}
            yield from named("secrets", secret.get("secretName") or secret.get("name"))
    for kind in ("containers", "initContainers", "ephemeralContainers"):
        for container in spec.get(kind) or ():
            for origin in container.get("envFrom") or ():
                yield from named("configmaps", dig(origin, "configMapRef", "name"))
                yield from named("secrets", dig(origin, "secretRef", "name"))
            for variable in container.get("env") or ():
                yield from named("configmaps", dig(variable, "valueFrom", "configMapKeyRef", "name"))
                yield from named("secrets", dig(variable, "valueFrom", "secretKeyRef", "name"))


class ReferencedSources:
    """What this node's pods name, each object watched by itself."""

    def __init__(self, context: ControlContext) -> None:
        self._client, self._clock, self._tasks = context.client, context.clock, context.tasks
        self._watched: dict[Reference, _Watched] = {}
        self._by_pod: dict[str, set[Reference]] = {}
        self._listeners: dict[str, list[Listener]] = {plural: [] for plural in RESOURCES}

    async def start(self) -> None:
        """See `Sources`; there is nothing to follow yet."""

    def get(self, plural: str, key: Key) -> Object | None:
        """See `Sources`."""
        watched = self._watched.get(Reference(plural, key))
        return None if watched is None else watched.informer.get(key)

    def on_change(self, plural: str, listener: Listener) -> None:
        """See `Sources`."""
        self._listeners[plural].append(listener)
        for reference, watched in self._watched.items():
            if reference.plural == plural:
                watched.informer.on_change(listener)

    async def follow(self, pod: Object) -> None:
        """See `Sources`."""
        uid = pod["metadata"]["uid"]
        held = self._by_pod.setdefault(uid, set())
        wanted = set(references(pod))
        await self._read(uid, wanted - held)
        volumes = set()
        for reference in wanted:
            if reference.plural == "persistentvolumeclaims":
                claim = self.get(reference.plural, reference.key)
                if name := dig(claim, "spec", "volumeName"):
                    volumes.add(Reference("persistentvolumes", Key("", name)))
        await self._read(uid, volumes - held)

    async def _read(self, uid: str, wanted: set[Reference]) -> None:
        for reference in wanted:
            watched = self._watched.get(reference)
            if watched is None:
                watched = self._watched[reference] = _Watched(reference, self._client, self._clock)
                watched.task = self._tasks.keep(f"watch/{reference.plural}/{reference.key}", watched.reflector.run)
                if reference.plural == "persistentvolumeclaims":
                    watched.informer.on_change(self._claimed)
                for listener in self._listeners[reference.plural]:
                    watched.informer.on_change(listener)
            watched.pods.add(uid)
            self._by_pod.setdefault(uid, set()).add(reference)
        try:
            async with self._clock.timeout(SYNC_SECONDS):
                for reference in wanted:
                    await self._watched[reference].informer.wait_synced()
        except (TimeoutError, KeyError) as error:
            log.warning("not everything a pod names could be read in time: %r", error)

    def _claimed(self, _old: Object | None, claim: Object | None) -> None:
        """A claim got its volume: the pods that wait for it need that, too."""
        if claim is None or not (name := dig(claim, "spec", "volumeName")):
            return
        watched = self._watched.get(Reference("persistentvolumeclaims", Key.of(claim)))
        for uid in watched.pods if watched is not None else ():
            volume = Reference("persistentvolumes", Key("", name))
            if volume not in self._by_pod.get(uid, ()):
                self._tasks.start(f"watch/{name}", self._read(uid, {volume}))

    def forget(self, uid: str) -> None:
        """See `Sources`."""
        for reference in self._by_pod.pop(uid, set()):
            watched = self._watched[reference]
            watched.pods.discard(uid)
            if not watched.pods:
                del self._watched[reference]
                if watched.task is not None:
                    watched.task.cancel()


class _Watched:
    """One object under watch, and the pods that name it."""

    def __init__(self, reference: Reference, client: Client, clock: Clock) -> None:
        resource = RESOURCES[reference.plural]
        self.pods: set[str] = set()
        self.task: asyncio.Task[None] | None = None
        self.informer = SharedInformer(resource)
        self.reflector = Reflector(
            client,
            clock,
            resource,
            self.informer,
            namespace=reference.key.namespace or None,
            field_selector=f"metadata.name={reference.key.name}",
        )
