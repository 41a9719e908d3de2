"""What a controller is written against.

A `Controller` names what it watches and reconciles one key at a time; everything around it (shared informers, the
deduplicating rate-limited queue, retries, metrics) is machinery. Reconcile is idempotent and level-triggered: it looks at
what is, through informer caches and the client, not at what just happened.

    class Replicas(Controller):
        name = "replicaset"

        def sources(self) -> list[Source]:
            return [For(REPLICA_SETS), Owns(PODS, "ReplicaSet")]

        async def reconcile(self, key: Key) -> float | None:
            replica_set = self.informer(REPLICA_SETS).get(key)
            ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from sampan.kube.objects import Key, Object, Resource

Index = Callable[[Object], Iterable[str]]
"""Index values of an object; an informer answers `Informer.indexed` from them."""


class Informer(Protocol):
    """A cache of one resource, kept current by list and watch and shared by all controllers of a process.

    Objects it returns are shared: ``copy`` before changing one.
    """

    def get(self, key: Key) -> Object | None:
        """The cached object."""
        ...

    def objects(self, namespace: str | None = None, labels: Mapping[str, str] | None = None) -> list[Object]:
        """Cached objects of a namespace (None: all) that carry these labels."""
        ...

    def select(self, namespace: str | None, selector: Mapping[str, Any] | None) -> list[Object]:
        """Cached objects matching a LabelSelector (``matchLabels``, ``matchExpressions``); None matches nothing."""
        ...

    def indexed(self, index: str, value: str) -> list[Object]:
        """Cached objects with this value under a named index (``owner``: uid of the controller owner, always there)."""
        ...

    def add_index(self, name: str, index: Index) -> None:
        """Add an index; a no-op when the name exists."""
        ...

    def on_change(self, listener: Callable[[Object | None, Object | None], None]) -> None:
        """Call ``listener(old, new)`` after each change; None stands for absent. Called for what is cached already."""
        ...

    @property
    def synced(self) -> bool:
        """The first list has arrived."""
        ...

    async def wait_synced(self) -> None: ...


class Informers(Protocol):
    """The process's shared informers, one a resource (and selector)."""

    def informer(
        self, resource: Resource, *, label_selector: str | None = None, field_selector: str | None = None
    ) -> Informer:
        """The shared informer, started on first use."""
        ...


@dataclass(frozen=True)
class For:
    """Reconcile each object of this resource under its own key."""

    resource: Resource
    field_selector: str | None = None
    """Only objects that match: for the few among many that a controller is about."""


@dataclass(frozen=True)
class Owns:
    """Reconcile the controller owner (of kind ``owner_kind``) of each changed object."""

    resource: Resource
    owner_kind: str
    namespaced: bool = True
    """The owner lives in the object's namespace; False: it is cluster-scoped."""
    field_selector: str | None = None
    """As for `For`."""


@dataclass(frozen=True)
class Watches:
    """Reconcile the keys that ``keys(object)`` gives for each changed object (old and new state)."""

    resource: Resource
    keys: Callable[[Object], Iterable[Key]]
    field_selector: str | None = None
    """As for `For`."""


Source = For | Owns | Watches


class Recorder(Protocol):
    """Writes Events, aggregating repeats as upstream's recorder does; never fails the caller."""

    def event(
        self, about: Object, type: Literal["Normal", "Warning"], reason: str, message: str, *, action: str = ""
    ) -> None: ...


class Startable(Protocol):
    """A controller, or a loop that is started like one."""

    async def start(self) -> None:
        """Return when its caches are filled and it works."""
        ...


class Queue(Protocol):
    """Keys to reconcile: deduplicated, one worker a key at a time, exponential per-key backoff."""

    def add(self, key: Key) -> None: ...

    def add_after(self, key: Key, seconds: float) -> None: ...
