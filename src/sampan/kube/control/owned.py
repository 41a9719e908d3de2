"""Creating and updating what an object owns, with no write where nothing differs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sampan.kernel.errors import SampanError
from sampan.kube.control.controller import Controller
from sampan.kube.objects import Key, Object, Resource, controller_of, copy, owner_reference
from sampan.kube.status import ApiError


class NotOwnedError(SampanError):
    """An object of the wanted name belongs to somebody else."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f'There is an existing {kind} "{name}" that we do not own.')


async def ensure(
    controller: Controller,
    resource: Resource,
    owner: Object,
    wanted: Object,
    *,
    keep: tuple[str, ...] = (),
    create_only: bool = False,
    exact: Collection[str] | None = None,
) -> Object:
    """The owned object as it should be: created, or updated where spec, labels or annotations differ.

    ``keep`` names spec fields that somebody else sets. What ``wanted`` does not mention stays: fields that the server defaulted,
    labels and annotations of others. Not so with ``exact``: then spec, labels and annotations become what is wanted, and only
    labels and annotations named by it stay.

    Raises:
        NotOwnedError: an object of that name has another controller.
    """
    metadata = wanted["metadata"]
    metadata["ownerReferences"] = [owner_reference(owner)]
    key = Key.of(wanted)
    current = controller.informer(resource).get(key)
    if current is None:
        try:
            made = await controller.client.create(resource, wanted, key.namespace)
        except ApiError as error:
            if not error.already_exists:
                raise
        else:
            controller.recorder.event(owner, "Normal", "Created", f'Created {wanted["kind"]} "{key.name}"')
            return made
        current = await controller.client.get(resource, key.name, key.namespace)
    reference = controller_of(current)
    if reference is None or reference["uid"] != owner["metadata"]["uid"]:
        raise NotOwnedError(wanted["kind"], key.name)
    if create_only:
        return current
    changed: Object = copy(current)
    spec: dict[str, Any] = copy(wanted.get("spec") or {})
    for field in keep:
        if field in (current.get("spec") or {}):
            spec[field] = current["spec"][field]
    same = spec == current.get("spec") if exact is not None else _covers(current.get("spec"), spec)
    if "spec" in wanted and not same:
        changed["spec"] = spec
    for field in ("labels", "annotations"):
        before = current["metadata"].get(field) or {}
        kept = before if exact is None else {name: value for name, value in before.items() if name in exact}
        merged = {**kept, **(metadata.get(field) or {})}
        if merged != before:
            changed["metadata"][field] = merged
    if changed == current:
        return current
    return await controller.client.update(resource, changed)


def _covers(current: Any, wanted: Any) -> bool:
    """The stored value says what is wanted; defaults the server added do not count as a difference."""
    if isinstance(wanted, dict):
        return isinstance(current, dict) and all(_covers(current.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(current, list) and len(current) == len(wanted) and all(map(_covers, current, wanted))
    return bool(current == wanted)
