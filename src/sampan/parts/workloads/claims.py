"""Adopting and releasing objects: how a controller's set of dependents follows its selector.

A claim is a patch guarded by the uid of the object, so it can never hit a namesake created in between. Before it adopts, a
controller's owner must be alive under the same uid; the API server's garbage collector relies on that.
"""

from __future__ import annotations

from collections.abc import Iterable

from sampan.kube.control.controller import Controller
from sampan.kube.control.interface import Informer
from sampan.kube.objects import Object, Resource, controller_of, owner_reference
from sampan.kube.status import ApiError
from sampan.kube.types.selectors import matches

ORPHANS = "without-controller"
"""The index of objects without a controller, by namespace: among thousands of owned pods there are few."""


def _without_controller(obj: Object) -> list[str]:
    return [obj["metadata"].get("namespace") or ""] if controller_of(obj) is None else []


async def claim(
    controller: Controller,
    resource: Resource,
    owner: Object,
    selector: Object,
    owned: Iterable[Object],
) -> list[Object]:
    """The dependents of ``owner``: ``owned`` that match (the rest is released), and matching orphans, adopted."""
    informer: Informer = controller.informer(resource)
    uid = owner["metadata"]["uid"]
    claimed = []
    for dependent in owned:
        if matches(selector, dependent["metadata"].get("labels") or {}):
            claimed.append(dependent)
        elif not dependent["metadata"].get("deletionTimestamp"):
            await _release(controller, resource, dependent, uid)
    if owner["metadata"].get("deletionTimestamp"):
        return claimed
    informer.add_index(ORPHANS, _without_controller)
    for orphan in informer.indexed(ORPHANS, owner["metadata"]["namespace"]):
        free = not orphan["metadata"].get("deletionTimestamp")
        if free and matches(selector, orphan["metadata"].get("labels") or {}):
            adopted = await _adopt(controller, resource, orphan, owner)
            if adopted is not None:
                claimed.append(adopted)
    return claimed


async def _adopt(controller: Controller, resource: Resource, orphan: Object, owner: Object) -> Object | None:
    metadata = orphan["metadata"]
    references = [*(metadata.get("ownerReferences") or ()), owner_reference(owner)]
    patch = {"metadata": {"uid": metadata["uid"], "ownerReferences": references}}
    try:
        return await controller.client.patch(resource, metadata["name"], patch, metadata["namespace"])
    except ApiError as error:
        if error.not_found or error.conflict or error.reason == "Invalid":
            return None  # gone, or somebody else adopted it; the next event brings us back
        raise


async def _release(controller: Controller, resource: Resource, dependent: Object, owner_uid: str) -> None:
    metadata = dependent["metadata"]
    references = [ref for ref in metadata.get("ownerReferences") or () if ref["uid"] != owner_uid]
    patch = {"metadata": {"uid": metadata["uid"], "ownerReferences": references or None}}
    try:
        await controller.client.patch(resource, metadata["name"], patch, metadata["namespace"])
    except ApiError as error:
        if not (error.not_found or error.conflict):
            raise
