"""How a group module states that it serves a kind: one call of `declare` a kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sampan.kube.objects import Kind, Object, Resource
from sampan.kube.types import schemas
from sampan.kube.types.resource import ResourceType, Subresource
from sampan.kube.types.strategy import BuiltinStrategy

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
CREATE_ONLY = ("create",)
READ_WRITE = ("get", "patch", "update")
CONNECT = ("create", "get")
PROXY = ("create", "delete", "get", "patch", "update")
SCALE = Kind("autoscaling", "v1", "Scale")


def status(kind: str) -> tuple[str, Kind | str, Sequence[str]]:
    """The ``/status`` of a kind."""
    return ("status", kind, READ_WRITE)


def scale() -> tuple[str, Kind | str, Sequence[str]]:
    """The ``/scale`` of a kind."""
    return ("scale", SCALE, READ_WRITE)


def declare(
    group_version: str,
    plural: str,
    kind: str,
    strategy: BuiltinStrategy,
    *,
    short: Sequence[str] = (),
    categories: Sequence[str] = (),
    verbs: Sequence[str] = ALL_VERBS,
    subresources: Sequence[tuple[str, Kind | str, Sequence[str]]] = (),
    storage: Resource | None = None,
    to_storage: Callable[[Object], Object] | None = None,
    from_storage: Callable[[Object], Object] | None = None,
) -> ResourceType:
    """One served kind. A subresource is (name, kind, verbs), its kind a bare name when it is of the same group and version."""
    group, _, version = group_version.rpartition("/")
    definition = schemas.definition_name(group, version, kind)
    strategy.bind(definition, Kind(group, version, kind))
    return ResourceType(
        resource=Resource(group, version, plural),
        kind=kind,
        singular=kind.lower(),
        namespaced=strategy.namespaced,
        strategy=strategy,
        schema=schemas.definition(definition),
        definition=definition,
        list_kind=f"{kind}List",
        short_names=tuple(short),
        categories=tuple(categories),
        verbs=tuple(verbs),
        subresources={
            name: Subresource(name, of if isinstance(of, Kind) else Kind(group, version, of), tuple(allowed))
            for name, of, allowed in subresources
        },
        storage=storage,
        to_storage=to_storage,
        from_storage=from_storage,
        owner="builtin",
    )
