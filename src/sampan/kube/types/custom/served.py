"""One served type for each served version of a definition."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from sampan.kube.objects import Kind, Object, Resource, copy
from sampan.kube.types.custom.openapi import definition_name, served_schema
from sampan.kube.types.custom.strategy import CustomStrategy
from sampan.kube.types.resource import Conversion, ResourceType, ScalePaths, Subresource

_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
_READ_WRITE = ("get", "patch", "update")
_SCALE = Kind("autoscaling", "v1", "Scale")
_VERSION = re.compile(r"v([1-9]\d*)(?:(alpha|beta)([1-9]\d*))?")

Converter = Callable[[Object, str], Object]
"""Gives an object in another API version, from what a `Conversion` has prepared."""


def version_rank(name: str) -> tuple[Any, ...]:
    """Sort key of version preference: GA before beta before alpha, higher before lower, anything else last by name."""
    match = _VERSION.fullmatch(name)
    if match is None:
        return (1, name)
    stage = {None: 0, "beta": 1, "alpha": 2}[match[2]]
    return (0, stage, -int(match[1]), -int(match[3] or 0))


def storage_version(definition: Object) -> str:
    """The version objects are stored in."""
    found: str = next(version["name"] for version in definition["spec"]["versions"] if version.get("storage"))
    return found


def _keys(path: str | None) -> tuple[str, ...]:
    return tuple(step for step in (path or "").split(".") if step)


def resource_types(
    definition: Object,
    *,
    conversion: Conversion | None = None,
    convert: Converter | None = None,
    creatable: bool = True,
) -> list[ResourceType]:
    """The types of all served versions, preferred version first. The definition must be valid and stay unchanged.

    ``conversion`` and ``convert`` are the two halves of a webhook's conversion (see ``conversion``); without them only
    ``apiVersion`` differs between versions. ``creatable`` false: the definition is going, instances may only go too.
    """
    spec = definition["spec"]
    accepted = {**spec["names"], **((definition.get("status") or {}).get("acceptedNames") or {})}
    group, plural, kind = spec["group"], accepted["plural"], accepted["kind"]
    storage = Resource(group, storage_version(definition), plural)
    strategies = {version["name"]: CustomStrategy(definition, version) for version in spec["versions"]}
    types = []
    for version in sorted(spec["versions"], key=lambda one: version_rank(one["name"])):
        if not version.get("served"):
            continue
        name = version["name"]
        resource = Resource(group, name, plural)
        types.append(
            ResourceType(
                resource=resource,
                kind=kind,
                singular=accepted.get("singular") or kind.lower(),
                namespaced=spec.get("scope") == "Namespaced",
                strategy=strategies[name],
                schema=served_schema(definition, version),
                definition=definition_name(group, name, kind),
                list_kind=accepted.get("listKind") or f"{kind}List",
                short_names=tuple(accepted.get("shortNames") or ()),
                categories=tuple(accepted.get("categories") or ()),
                verbs=_VERBS if creatable else tuple(verb for verb in _VERBS if verb != "create"),
                subresources=_subresources(version, Kind(group, name, kind)),
                scale=_scale(version),
                custom=True,
                storage=storage,
                to_storage=(
                    None
                    if name == storage.version
                    else _stored(strategies[storage.version], storage.api_version, convert)
                ),
                from_storage=_served(resource.api_version, convert) if convert else None,
                conversion=conversion,
                schema_revision=int(definition["metadata"].get("resourceVersion") or 0),
                owner=definition["metadata"]["name"],
            )
        )
    return types


def _served(api_version: str, convert: Converter) -> Callable[[Object], Object]:
    return lambda obj: convert(obj, api_version)


def _stored(strategy: CustomStrategy, api_version: str, convert: Converter | None) -> Callable[[Object], Object]:
    """To the storage version, in the shape of its own schema."""

    def to_storage(obj: Object) -> Object:
        form: Object = convert(obj, api_version) if convert else {**copy(obj), "apiVersion": api_version}
        strategy.prune(form)
        strategy.default(form)
        return form

    return to_storage


def _subresources(version: Mapping[str, Any], kind: Kind) -> dict[str, Subresource]:
    given = version.get("subresources") or {}
    found = {}
    if "status" in given:
        found["status"] = Subresource("status", kind, _READ_WRITE)
    if "scale" in given:
        found["scale"] = Subresource("scale", _SCALE, _READ_WRITE)
    return found


def _scale(version: Mapping[str, Any]) -> ScalePaths:
    scale = (version.get("subresources") or {}).get("scale")
    if not scale:
        return ScalePaths()
    return ScalePaths(
        _keys(scale["specReplicasPath"]), _keys(scale["statusReplicasPath"]), _keys(scale.get("labelSelectorPath"))
    )
