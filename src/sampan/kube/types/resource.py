"""What the server knows of one served resource: its names, schema and behaviour.

A `ResourceType` is data plus a `Strategy`; built-in kinds and custom resources differ only in where the strategy comes from.
The `TypeRegistry` is the live table of everything served; discovery, OpenAPI and the client-facing verbs all read it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

from sampan.kube.objects import Kind, Object, Resource
from sampan.kube.status import FieldError

Schema = Mapping[str, Any]
"""An OpenAPI v3 schema node as served: ``properties``, ``items``, ``$ref`` (``#/components/schemas/...``), ``x-kubernetes-*``."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a Table."""

    name: str
    type: str = "string"
    description: str = ""
    format: str = ""
    priority: int = 0
    """Above 0: only with ``-o wide``."""


@dataclass(frozen=True, slots=True)
class Subresource:
    """One subresource as discovery lists it; the server implements it by name."""

    name: str
    kind: Kind
    verbs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ScalePaths:
    """Where the ``scale`` subresource of a kind reads and writes, as paths of keys into the object."""

    spec_replicas: tuple[str, ...] = ("spec", "replicas")
    status_replicas: tuple[str, ...] = ("status", "replicas")
    selector: tuple[str, ...] = ("spec", "selector")
    """A LabelSelector, or a selector already in its string form; empty: the kind has none."""


class Conversion(Protocol):
    """Conversion by a webhook, done ahead of need: what `prepare` has fetched, ``from_storage`` and ``to_storage`` then answer
    from memory."""

    async def prepare(self, objects: Sequence[Object], api_version: str) -> None:
        """Have these objects converted to an API version; those that are in it already cost nothing.

        Raises:
            ApiError: 500, the webhook cannot be reached or refuses.
        """
        ...

    async def spread(self, stored: Object) -> None:
        """Have an object of the storage version converted to every served version, before it is stored.

        Raises:
            ApiError: as `prepare`.
        """
        ...


Computed = Callable[[str], Awaitable[list[Object]]]
"""``await computed(namespace)``: the objects of a computed resource, of all namespaces for ""."""


class Strategy:
    """The behaviour of a kind: what upstream calls its create, update and delete strategy.

    Methods change objects in place where they say so and report problems as field errors; they do no I/O and read no clock
    but the ``now`` they are given. The base class is right for a plain kind without rules of its own.
    """

    has_generation: bool = False
    """``metadata.generation`` counts changes outside metadata and status."""
    has_status: bool = True
    """The kind has a status subresource: main-path writes keep the stored status."""
    create_on_update: bool = False
    """PUT of a missing object creates it."""
    unconditional_update: bool = True
    """PUT without a resourceVersion is allowed."""
    delete_returns_object: bool = False
    """DELETE answers with the object instead of a Status."""
    default_propagation: Literal["Background", "Orphan"] = "Background"
    selectable: frozenset[str] = frozenset({"metadata.name", "metadata.namespace"})
    """Field selector labels beyond which the answer is 400."""
    columns: Sequence[Column] = (
        Column("Name", format="name"),
        Column("Age"),
    )

    def default(self, obj: Object) -> None:
        """Fill upstream's defaults, in place; also run after admission and on objects read from an older version."""

    def prune(self, obj: Object) -> list[str]:
        """Drop fields the schema does not know and nulls, in place; returns the unknown fields' paths (``spec.x``).

        Values are brought into canonical form on the way (quantities).

        Raises:
            ApiError: 400, a value has the wrong type.
        """
        return []

    def prune_change(self, obj: Object, old: Object) -> list[str]:
        """`prune` for an object that replaces another, which has been through it: what did not change may be left out."""
        return self.prune(obj)

    def default_change(self, obj: Object, old: Object) -> None:
        """`default` for an object that replaces another, which has been through it."""
        self.default(obj)

    def stored(self, obj: Object, old: Object | None, revision: int) -> None:
        """An object has passed `validate` (or `validate_change` or `validate_status_update` against ``old``) and was stored."""

    def prepare_create(self, obj: Object) -> None:
        """Drop what a client may not set at creation (its status), in place."""

    def prepare_update(self, new: Object, old: Object) -> None:
        """Carry over what a main-path update may not change, in place."""

    def validate(self, obj: Object) -> list[FieldError]:
        """Problems of an object on its own."""
        return []

    def validate_update(self, new: Object, old: Object) -> list[FieldError]:
        """Problems of the change; `validate` has already run on ``new``."""
        return []

    def validate_change(self, new: Object, old: Object) -> list[FieldError]:
        """All problems of an object that replaces another. Custom kinds override it: what did not change is not judged
        again, and rules may compare with the old object."""
        return [*self.validate(new), *self.validate_update(new, old)]

    def validate_status_update(self, new: Object, old: Object) -> list[FieldError]:
        """Problems of a change through the status subresource."""
        return []

    def deletion_grace(self, obj: Object, requested: int | None) -> int:
        """Seconds between DELETE and removal; 0 removes at once."""
        return 0

    def fields(self, obj: Object) -> Mapping[str, str]:
        """Values of the selectable fields (name and namespace included)."""
        metadata = obj["metadata"]
        return {"metadata.name": metadata["name"], "metadata.namespace": metadata.get("namespace", "")}

    def row(self, obj: Object, now: datetime) -> list[Any]:
        """The Table cells, one a column."""
        return [obj["metadata"]["name"], ""]

    def row_conditions(self, obj: Object) -> list[Object]:
        """Table row conditions (``Completed`` for finished pods)."""
        return []

    def warnings(self, obj: Object) -> list[str]:
        """Deprecation and similar warnings for the writer."""
        return []


@dataclass(frozen=True, slots=True, eq=False)
class ResourceType:
    """One resource in one served version; compared and hashed by identity, so that caches may be keyed by it."""

    resource: Resource
    kind: str
    singular: str
    namespaced: bool
    strategy: Strategy
    schema: Schema | None = None
    """The kind's schema in the group-version's OpenAPI document; None: unknown fields are kept."""
    definition: str = ""
    """Its OpenAPI definition name, e.g. ``io.k8s.api.apps.v1.Deployment``."""
    list_kind: str = ""
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
    subresources: Mapping[str, Subresource] = field(default_factory=dict)
    scale: ScalePaths = ScalePaths()
    """Used when ``subresources`` has ``scale``."""
    custom: bool = False
    """Defined by a CustomResourceDefinition: no strategic merge patch, updates need a resourceVersion."""
    storage: Resource | None = None
    """The resource (group, version, plural) this kind is stored as; None: itself."""
    to_storage: Callable[[Object], Object] | None = None
    """Converts to the storage version; None: only apiVersion and kind differ, or nothing does."""
    from_storage: Callable[[Object], Object] | None = None
    conversion: Conversion | None = None
    """Set where versions are converted by a webhook: await its ``prepare`` before what may call the two functions above."""
    schema_revision: int = 0
    """Custom kinds: the store's revision when this schema came into force. Objects last written before it are converted,
    pruned and defaulted again as they are read."""
    computed: Computed | None = None
    """Its objects are made when they are read and never stored (resource metrics): only ``get`` and ``list`` are served."""
    owner: str = ""
    """What serves it: ``builtin``, or the CRD's name."""

    @property
    def gvk(self) -> Kind:
        return Kind(self.resource.group, self.resource.version, self.kind)

    @property
    def stored_as(self) -> Resource:
        return self.storage or self.resource

    def prefix(self, namespace: str | None = None) -> str:
        """Store key prefix of the collection (of one namespace)."""
        stored = self.stored_as
        base = f"/registry/{stored.group or 'core'}/{stored.plural}/"
        return f"{base}{namespace}/" if namespace else base

    def key(self, namespace: str | None, name: str) -> str:
        """Store key of an object."""
        return self.prefix(namespace if self.namespaced else None) + name


class TypeRegistry:
    """Everything served right now. Changing it bumps ``generation`` and calls the listeners (discovery, OpenAPI caches)."""

    def __init__(self, types: Iterable[ResourceType] = ()) -> None:
        self._by_resource: dict[Resource, ResourceType] = {}
        self._by_kind: dict[Kind, ResourceType] = {}
        self._listeners: list[Callable[[], None]] = []
        self.generation = 0
        self.add(types)

    def add(self, types: Iterable[ResourceType]) -> None:
        """Serve these from now on, replacing equal resources."""
        for kind in types:
            self._by_resource[kind.resource] = kind
            self._by_kind[kind.gvk] = kind
        self._changed()

    def remove(self, resources: Iterable[Resource]) -> None:
        """No longer serve these."""
        for resource in resources:
            gone = self._by_resource.pop(resource, None)
            if gone is not None and self._by_kind.get(gone.gvk) is gone:
                del self._by_kind[gone.gvk]
        self._changed()

    def find(self, resource: Resource) -> ResourceType | None:
        return self._by_resource.get(resource)

    def find_kind(self, kind: Kind) -> ResourceType | None:
        return self._by_kind.get(kind)

    def all(self) -> list[ResourceType]:
        """Every type, in registration order (built-ins first)."""
        return list(self._by_resource.values())

    def on_change(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def _changed(self) -> None:
        self.generation += 1
        for listener in self._listeners:
            listener()
