"""Strategic merge patch: a merge patch that knows from the schema which lists merge item by item.

The schema's ``x-kubernetes-patch-strategy`` (``merge``, ``replace``, ``retainKeys``, joined by commas) and
``x-kubernetes-patch-merge-key`` say how a field merges. Directives inside the patch refine it: ``$patch: replace|delete``
in a map or in an item of a merging list, ``$deleteFromPrimitiveList/<field>``, ``$setElementOrder/<field>`` and
``$retainKeys``. Items that a patch names come first in a merged list unless the live list puts an item before them, which
is why a container added by ``kubectl patch`` ends up in front.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from sampan.kube.objects import copy
from sampan.kube.status import ApiError, bad_request
from sampan.kube.types.resource import Schema

Resolve: TypeAlias = Callable[[Schema], Schema]
"""The schema a ``$ref`` (plain, or alone in ``allOf``) stands for; any other schema as it is."""

_DELETE = "$deleteFromPrimitiveList/"
_ORDER = "$setElementOrder/"
_NO_SCHEMA: Schema = {}


class _Field(NamedTuple):
    schema: Schema
    strategies: tuple[str, ...]
    merge_key: str


def apply(doc: Mapping[str, Any], patch: Mapping[str, Any], schema: Schema | None, resolve: Resolve) -> dict[str, Any]:
    """The document after the patch; shares nothing mutable with either argument.

    Raises:
        ApiError: 400 for a malformed patch, 422 for a patch the document's lists cannot take.
    """
    if not isinstance(patch, dict):
        raise bad_request("error decoding patch: a strategic merge patch is an object")
    return _Merge(resolve).maps(copy(doc), copy(patch), schema or _NO_SCHEMA)


class _Merge:
    """One application; its methods own (and change) what they are given."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve

    def _field(self, schema: Schema, name: str) -> _Field:
        resolved = self._resolve(schema)
        node = (resolved.get("properties") or {}).get(name)
        if node is None:
            extra = resolved.get("additionalProperties")
            node = extra if isinstance(extra, dict) else _NO_SCHEMA
        strategy = node.get("x-kubernetes-patch-strategy") or ""
        return _Field(node, tuple(strategy.split(",")), node.get("x-kubernetes-patch-merge-key") or "")

    def _items(self, schema: Schema) -> Schema:
        items = self._resolve(schema).get("items")
        return items if isinstance(items, dict) else _NO_SCHEMA

    def maps(self, doc: dict[str, Any], patch: dict[str, Any], schema: Schema) -> dict[str, Any]:
        """Merge a patch into a map."""
        directive = patch.pop("$patch", None)
        if directive == "replace":
            replaced: dict[str, Any] = _without_directives(patch)
            return replaced
        if directive == "delete":
            return {}
        if directive not in (None, "merge"):
            raise bad_request(f'Unknown patch type found: "{directive}"')
        self._retain_keys(doc, patch)
        for key in [key for key in patch if key.startswith(_ORDER)]:
            self._ordered(doc, patch, key, schema)
        for key, change in patch.items():
            if key.startswith(_DELETE):
                name = key[len(_DELETE) :]
                if not isinstance(change, list) or any(isinstance(item, dict | list) for item in change):
                    raise bad_request(f"invalid patch format of primitive list: {key}")
                if isinstance(doc.get(name), list):
                    doc[name] = [item for item in doc[name] if item not in change]
            elif change is None:
                doc.pop(key, None)
            elif key not in doc:
                doc[key] = _without_directives(change)
            else:
                doc[key] = self._value(doc[key], change, self._field(schema, key))
        return doc

    def _value(self, live: Any, change: Any, field: _Field) -> Any:
        if isinstance(change, dict) and isinstance(live, dict):
            if "replace" in field.strategies:
                return _without_directives(change)
            return self.maps(live, change, field.schema)
        if isinstance(change, list) and isinstance(live, list) and "merge" in field.strategies:
            return self._lists(live, change, field)
        return _without_directives(change)

    @staticmethod
    def _retain_keys(doc: dict[str, Any], patch: dict[str, Any]) -> None:
        if "$retainKeys" not in patch:
            return
        kept = patch.pop("$retainKeys")
        if not isinstance(kept, list) or any(
            key not in kept for key, change in patch.items() if change is not None and not key.startswith("$")
        ):
            raise bad_request("invalid patch format of retainKeys")
        for key in [key for key in doc if key not in kept]:
            del doc[key]

    def _ordered(self, doc: dict[str, Any], patch: dict[str, Any], directive: str, schema: Schema) -> None:
        """Merge the list a ``$setElementOrder`` is about, and put it into that order."""
        name = directive[len(_ORDER) :]
        order = patch.pop(directive)
        if not isinstance(order, list):
            raise bad_request("invalid patch format of setElementOrder list")
        field = self._field(schema, name)
        key = field.merge_key if any(isinstance(item, dict) for item in order) else ""
        wanted = [_identity(item, key) for item in order]
        change = patch.get(name)
        if change is not None:
            self._check_order(change, key, wanted)
        if name in patch and change is None:
            return
        live = doc.get(name)
        if not isinstance(live, list):
            if change is None:
                return
            merged = _without_directives(patch.pop(name))
        elif change is None:
            merged = live
        else:
            merged = self._lists(list(live), patch.pop(name), field)
        before = [_identity(item, key) for item in live] if isinstance(live, list) else []
        doc[name] = _arranged(merged, key, wanted, before)

    @staticmethod
    def _check_order(change: Any, key: str, wanted: Sequence[Any]) -> None:
        if not isinstance(change, list):
            raise bad_request("invalid patch format of setElementOrder list")
        place = -1
        for item in change:
            if isinstance(item, dict) and "$patch" in item:
                continue
            identity = _identity(item, key)
            if identity not in wanted:
                raise bad_request(
                    f"The order in patch list doesn't match $setElementOrder list: {identity!r} is not in it"
                )
            if wanted.index(identity) < place:
                raise bad_request("The order in patch list doesn't match $setElementOrder list")
            place = wanted.index(identity)

    def _lists(self, live: list[Any], change: list[Any], field: _Field) -> list[Any]:
        """Merge a list whose strategy is ``merge``."""
        if not live and not change:
            return []
        if not any(isinstance(item, dict) for item in [*live, *change]):
            merged: list[Any] = []
            for item in [*live, *change]:
                if isinstance(item, list):
                    raise ApiError(422, "Invalid", "lists of lists are not supported")
                if item not in merged:
                    merged.append(item)
            return _arranged(merged, "", change, live)
        key = field.merge_key
        if not key:
            raise bad_request("cannot merge lists without merge key")
        before = [_identity(item, key) for item in live]
        plain: list[dict[str, Any]] = []
        replace = False
        for item in change:
            directive = item.pop("$patch", None) if isinstance(item, dict) else None
            if directive is None:
                plain.append(item)
            elif directive == "delete":
                gone = _identity(item, key)
                live = [other for other in live if _identity(other, key) != gone]
            elif directive == "replace":
                replace = True
            elif directive == "merge":
                raise bad_request("merging lists cannot yet be specified in the patch")
            else:
                raise bad_request(f'Unknown patch type found: "{directive}"')
        if replace:
            return [_without_directives(item) for item in plain]
        items = self._items(field.schema)
        for item in plain:
            identity = _identity(item, key)
            for place, other in enumerate(live):
                if _identity(other, key) == identity:
                    live[place] = self.maps(other, item, items)
                    break
            else:
                live.append(_without_directives(item))
        return _arranged(live, key, [_identity(item, key) for item in plain], before)


def _identity(item: Any, key: str) -> Any:
    """What tells an item of a merging list from the others: its merge key's value, or itself."""
    if not key:
        return item
    if not isinstance(item, dict) or item.get(key) is None:
        raise bad_request(f"map: {item!r} does not contain declared merge key: {key}")
    return item[key]


def _arranged(merged: list[Any], key: str, wanted: Sequence[Any], before: Sequence[Any]) -> list[Any]:
    """Named items in the patch's order, woven with the others by the live list's order; named items win ties."""
    named: list[tuple[Any, Any]] = []
    others: list[tuple[Any, Any]] = []
    for item in merged:
        identity = _identity(item, key)
        (named if identity in wanted else others).append((identity, item))
    named.sort(key=lambda pair: wanted.index(pair[0]))
    result: list[Any] = []
    left = 0
    for identity, item in named:
        if identity in before:
            place = before.index(identity)
            while left < len(others) and others[left][0] in before and before.index(others[left][0]) < place:
                result.append(others[left][1])
                left += 1
        result.append(item)
    result.extend(item for _, item in others[left:])
    return result


def _without_directives(value: Any) -> Any:
    """What a patch value leaves where nothing was: no nulls, no directives, no items that only direct."""
    if isinstance(value, dict):
        if value.get("$patch") == "delete":
            return {}
        return {
            key: _without_directives(item)
            for key, item in value.items()
            if item is not None and not (key in ("$patch", "$retainKeys") or key.startswith((_DELETE, _ORDER)))
        }
    if isinstance(value, list):
        return [
            _without_directives(item)
            for item in value
            if not (isinstance(item, dict) and isinstance(item.get("$patch"), str))
        ]
    return value
