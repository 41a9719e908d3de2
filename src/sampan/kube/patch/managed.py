"""Who owns which field: ``metadata.managedFields``, and server-side apply on top of it.

Every write is recorded. An ordinary write (`record_update`) gives what it changed to its manager's ``Update`` entry and takes
it from everyone else. An apply (`server_side_apply`) states all that a manager wants: its configuration is merged over the
live object by the schema's types, what it stated last time and no longer does is removed unless others own it, and changing
what others own is a conflict unless forced.

An entry is identified by manager, operation, API version and subresource; its time changes only when its fields do. At most
`UPDATE_LIMIT` Update entries are kept, older ones become ``ancient-changes``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from sampan.kube.objects import Object, copy, dig
from sampan.kube.patch.fieldset import FieldSet, difference, intersection, member, paths, union
from sampan.kube.patch.typed import Root, SchemaError, Shape, root, typed_error
from sampan.kube.status import ApiError, bad_request
from sampan.kube.types.resource import ResourceType

UPDATE_LIMIT = 10
"""Update entries of one object at most."""
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
"""Where kubectl's client-side apply remembers its configuration."""
_LAST_APPLIED_LIMIT = 256 * 1024


class _Identity(NamedTuple):
    manager: str
    operation: Literal["Apply", "Update"]
    api_version: str
    subresource: str

    def __str__(self) -> str:
        return f'"{self.manager}"' + (f' with subresource "{self.subresource}"' if self.subresource else "")


@dataclass(frozen=True, slots=True)
class _Entry:
    identity: _Identity
    fields: FieldSet
    time: str

    def as_object(self) -> Object:
        manager, operation, api_version, subresource = self.identity
        entry: Object = {"manager": manager, "operation": operation, "apiVersion": api_version}
        if self.time:
            entry["time"] = self.time
        entry["fieldsType"] = "FieldsV1"
        entry["fieldsV1"] = self.fields
        if subresource:
            entry["subresource"] = subresource
        return entry

    def described(self) -> str:
        """As conflict messages name it."""
        if self.identity.operation == "Apply":
            return str(self.identity)
        at = f" at {self.time}" if self.time else ""
        return f"{self.identity} using {self.identity.api_version}{at}"


_Entries = dict[_Identity, _Entry]


def _read(obj: Mapping[str, Any]) -> _Entries:
    entries: _Entries = {}
    for raw in obj["metadata"].get("managedFields") or ():
        operation: Literal["Apply", "Update"] = "Apply" if raw.get("operation") == "Apply" else "Update"
        identity = _Identity(
            raw.get("manager") or "", operation, raw.get("apiVersion") or "", raw.get("subresource") or ""
        )
        entries[identity] = _Entry(identity, raw.get("fieldsV1") or {}, raw.get("time") or "")
    return entries


def _write(obj: Object, entries: _Entries) -> None:
    kept = [entry for entry in entries.values() if entry.fields]
    if not kept:
        obj["metadata"].pop("managedFields", None)
        return
    if len(kept) > 1:
        kept.sort(key=lambda entry: (entry.identity.operation, entry.time, entry.identity))
    obj["metadata"]["managedFields"] = [entry.as_object() for entry in kept]


def _stamp(now: datetime) -> str:
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _shape(type: ResourceType, subresource: str) -> Root:
    return root(type.schema, custom=type.custom, subresource=subresource, has_status=type.strategy.has_status)


def record_update(
    old: Mapping[str, Any] | None, new: Object, manager: str, subresource: str, now: datetime, type: ResourceType
) -> None:
    """Record an ordinary write: what ``new`` changes of ``old`` (None: a creation) now belongs to ``manager``.

    ``new`` carries the managed fields to start from (the stored ones, on an update) and is changed in place. An object
    stored without managed fields stays without until it is applied.
    """
    shape = _shape(type, subresource)
    identity = _Identity(manager, "Update", type.resource.api_version, subresource)
    if old is None:
        fields = shape.added(new)
        _write(new, {identity: _Entry(identity, fields, _stamp(now))})
        return
    if not new["metadata"].get("managedFields"):
        return
    changed, removed = shape.difference(old, new)
    if not changed and not removed:
        return
    entries = _read(new)
    mine = entries.get(identity)
    touched = union(changed, removed)
    for other, entry in list(entries.items()):
        if other != identity:
            entries[other] = replace(entry, fields=difference(entry.fields, touched))
    before = mine.fields if mine else {}
    after = union(difference(before, removed), changed)
    if after != before:
        entries[identity] = _Entry(identity, after, _stamp(now))
    _write(new, _capped(entries))


def _capped(entries: _Entries) -> _Entries:
    """At most `UPDATE_LIMIT` Update entries: the oldest of a version become one."""
    updates = [entry for entry in entries.values() if entry.identity.operation == "Update" and entry.fields]
    excess = len(updates) - UPDATE_LIMIT
    if excess <= 0:
        return entries
    updates.sort(key=lambda entry: (entry.time, entry.identity))
    entries = dict(entries)
    first: dict[str, _Identity] = {}
    for entry in updates:
        if excess <= 0:
            break
        version = entry.identity.api_version
        if version not in first:
            first[version] = entry.identity
            continue
        bucket = _Identity("ancient-changes", "Update", version, "")
        if bucket not in entries:
            entries[bucket] = replace(entries.pop(first[version]), identity=bucket)
        if entry.identity != bucket:
            whole = union(entries[bucket].fields, entries.pop(entry.identity).fields)
            entries[bucket] = _Entry(bucket, whole, max(entries[bucket].time, entry.time))
            excess -= 1
    return entries


def server_side_apply(
    live: Mapping[str, Any] | None,
    config: Mapping[str, Any],
    manager: str,
    force: bool,
    subresource: str,
    now: datetime,
    type: ResourceType,
) -> tuple[Object, bool]:
    """The object after ``manager`` applied ``config``, with ownership recorded, and whether anything changed.

    ``live`` None creates. The result shares nothing with ``live``; it is not defaulted or validated yet.

    Raises:
        ApiError: 400 a malformed configuration, 409 conflicts with other managers.
    """
    config = _checked(config, type)
    shape = _shape(type, subresource)
    try:
        wanted = shape.owned(config, "")
    except SchemaError as error:
        raise typed_error(config, "patch", error) from None
    identity = _Identity(manager, "Apply", type.resource.api_version, subresource)
    if live is None:
        _write(created := copy(config), {identity: _Entry(identity, wanted, _stamp(now))})
        return created, True
    entries = _read(live)
    if not entries:
        before = _Identity("before-first-apply", "Update", type.resource.api_version, "")
        everything = root(type.schema, custom=type.custom, subresource="", has_status=False)
        entries[before] = _Entry(before, everything.added(live), "")
    new: Object = shape.merge(live, config)
    if uid := config["metadata"].get("uid"):
        new["metadata"]["uid"] = uid
    previous = [entry for entry in entries.values() if _same_applier(entry.identity, identity)]
    last: FieldSet = {}
    for entry in previous:
        last = union(last, entry.fields)
        del entries[entry.identity]
    others: FieldSet = {}
    for entry in entries.values():
        others = union(others, entry.fields)
    _prune(shape, new, last, union(others, wanted))
    changed, removed = shape.difference(live, new)
    waived = _waived(live, shape) if manager == "kubectl" and not force else {}
    conflicts = [(entry, intersection(entry.fields, changed)) for entry in entries.values()]
    if not force and any(difference(fields, waived) for _, fields in conflicts):
        raise _refusal([(entry, difference(fields, waived)) for entry, fields in conflicts])
    touched = union(changed, removed)
    for conflicting, fields in conflicts:
        left = difference(difference(conflicting.fields, fields), removed) if touched else conflicting.fields
        entries[conflicting.identity] = replace(conflicting, fields=left)
    unchanged = [entry for entry in previous if entry.identity == identity and entry.fields == wanted]
    entries[identity] = unchanged[0] if unchanged else _Entry(identity, wanted, _stamp(now))
    _write(new, _capped(entries))
    if manager == "kubectl" and LAST_APPLIED in (dig(live, "metadata", "annotations") or {}):
        _refresh_last_applied(new, config)
    return new, new != live


def _checked(config: Mapping[str, Any], type: ResourceType) -> Object:
    if not isinstance(config, dict):
        raise bad_request("error decoding patch: an apply configuration is an object")
    version = config.get("apiVersion")
    if version != type.resource.api_version:
        raise bad_request(
            f"Incorrect version specified in apply patch. Specified patch version: {version}, "
            f"expected: {type.resource.api_version}"
        )
    if not isinstance(config.get("metadata"), dict):
        raise bad_request("error decoding patch: an apply configuration needs metadata")
    if config["metadata"].get("managedFields"):
        raise bad_request("metadata.managedFields must be nil")
    checked: Object = dict(config) if type.custom else _without_nulls(config)
    checked["metadata"] = {key: value for key, value in checked["metadata"].items() if key != "managedFields"}
    return checked


def _without_nulls(value: Any) -> Any:
    """A built-in kind decodes null as absent."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _same_applier(a: _Identity, b: _Identity) -> bool:
    return a.manager == b.manager and a.operation == b.operation and a.subresource == b.subresource


def _prune(shape: Shape, value: Any, last: FieldSet, owned: FieldSet) -> bool:
    """Remove, in place, what was stated last time and is nobody's now; whether anything went."""
    went = False
    for step, node in last.items():
        if step == ".":
            continue
        held = _held(shape, value, step)
        if held is None:
            continue
        place, item = held
        still = owned.get(step)
        if still is None and step not in shape.lasting and (member(node) or step.startswith("f:")):
            _drop(value, place)
            went = True
        elif node and isinstance(item, dict | list) and _prune(shape.child(step), item, node, still or {}):
            went = True
            if not item and not (still is not None and member(still)):
                _drop(value, place)
    return went


def _drop(value: Any, place: Any) -> None:
    if isinstance(value, dict):
        del value[place]
    else:
        value.pop(next(at for at, item in enumerate(value) if item is place))


def _held(shape: Shape, value: Any, step: str) -> tuple[Any, Any] | None:
    """Where a step leads: the key (of an object) or the item itself (of a list), and what is there."""
    if isinstance(value, dict):
        name = step[2:]
        return (name, value[name]) if step.startswith("f:") and name in value else None
    step_of = getattr(shape, "step", None)
    if isinstance(value, list) and step_of is not None:
        for item in value:
            if step_of(item) == step:
                return item, item
    return None


def _refusal(conflicts: Iterable[tuple[_Entry, FieldSet]]) -> ApiError:
    """The 409 that lists who owns what."""
    listed = [(entry, path) for entry, fields in conflicts for path in paths(fields)]
    listed.sort(key=lambda conflict: (conflict[0].described(), conflict[1]))
    causes = [
        {"reason": "FieldManagerConflict", "message": f"conflict with {entry.described()}", "field": path}
        for entry, path in listed
    ]
    if len(listed) == 1:
        entry, path = listed[0]
        message = f"Apply failed with 1 conflict: conflict with {entry.described()}: {path}"
    else:
        lines: list[str] = []
        for entry, path in listed:
            heading = f"conflicts with {entry.described()}:"
            if heading not in lines:
                lines.append(heading)
            lines.append(f"- {path}")
        message = f"Apply failed with {len(listed)} conflicts: " + "\n".join(lines)
    return ApiError(409, "Conflict", message, details={"causes": causes})


# -- kubectl's migration from client-side apply


def _waived(live: Mapping[str, Any], shape: Root) -> FieldSet:
    """Fields whose live value is the one kubectl's client-side apply recorded: kubectl may take them over."""
    recorded = (dig(live, "metadata", "annotations") or {}).get(LAST_APPLIED)
    if not recorded:
        return {}
    try:
        applied = json.loads(recorded)
        if not isinstance(applied, dict):
            return {}
        fields: FieldSet = shape.owned(applied, "")
    except (ValueError, SchemaError):
        return {}
    applied.setdefault("metadata", {})
    changed, removed = shape.difference(applied, live)
    return difference(fields, union(changed, removed))


def _refresh_last_applied(new: Object, config: Mapping[str, Any]) -> None:
    annotations = new["metadata"].setdefault("annotations", {})
    stated = copy(config)
    stated.get("metadata", {}).get("annotations", {}).pop(LAST_APPLIED, None)
    text = json.dumps(stated, separators=(",", ":"), ensure_ascii=False) + "\n"
    size: int = sum(len(key) + len(value) for key, value in _strings(annotations))
    if size + len(text) > _LAST_APPLIED_LIMIT:
        annotations.pop(LAST_APPLIED, None)
    else:
        annotations[LAST_APPLIED] = text


def _strings(annotations: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    return [(key, value) for key, value in annotations.items() if isinstance(value, str) and key != LAST_APPLIED]
