"""Creating and updating what an object owns, with no write where nothing differs."""

from __future__ import annotations

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
) -> Object:
    """The owned object as it should be: created, or updated where spec, labels or annotations differ.

    ``keep`` names spec fields that somebody else sets; annotations that are not in ``wanted`` stay.

    Raises:
        NotOwnedError: an object of that name has another controller.
    """
    metadata = wanted["metadata"]
    metadata["ownerReferences"] = [owner_reference(owner)]
    key = Key.of(wanted)
    current = controller.informer(resource).get(key)
    if current is None:
        try:
            return await controller.client.create(resource, wanted, key.namespace)
        except ApiError as error:
            if not error.already_exists:
                raise
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
    if "spec" in wanted and not _covers(current.get("spec"), spec):
        changed["spec"] = spec
    for field in ("labels", "annotations"):
        merged = {**(current["metadata"].get(field) or {}), **(metadata.get(field) or {})}
        if merged:
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
