"""ControllerRevisions: the template history of StatefulSets and DaemonSets.

A revision stores the template as the patch upstream stores (``kubectl rollout undo`` applies it as it is). The current
template either equals a stored revision, which then becomes the newest again, or gets a new one.
"""

from __future__ import annotations

from dataclasses import dataclass

from sampan.kube.client.resources import CONTROLLER_REVISIONS, PODS
from sampan.kube.control.controller import Controller
from sampan.kube.objects import Object, copy, owner_reference
from sampan.kube.status import ApiError
from sampan.parts.workloads import pods

HASH_LABEL = "controller-revision-hash"


@dataclass(frozen=True, slots=True)
class History:
    """The revisions of an owner."""

    revisions: list[Object]
    """Oldest first."""
    update: str
    """The label value of the revision that equals the current template."""
    update_name: str
    """Its object name."""
    collisions: int = 0


def of(pod: Object) -> str:
    """The revision hash a pod carries."""
    return str((pod["metadata"].get("labels") or {}).get(HASH_LABEL, ""))


def data(owner: Object) -> Object:
    """What a revision stores of its owner: the template, as a strategic merge patch that replaces."""
    template = copy(owner["spec"]["template"])
    template["$patch"] = "replace"
    return {"spec": {"template": template}}


def template_of(revision: Object) -> Object:
    """The pod template a revision stores."""
    template: Object = copy(revision["data"]["spec"]["template"])
    template.pop("$patch", None)
    return template


async def sync(controller: Controller, owner: Object) -> History:
    """Bring the stored history in line with the owner's template and trim it to ``revisionHistoryLimit``."""
    informer = controller.informer(CONTROLLER_REVISIONS)
    metadata = owner["metadata"]
    owned = sorted(
        informer.indexed("owner", metadata["uid"]), key=lambda one: (one["revision"], one["metadata"]["name"])
    )
    wanted = data(owner)
    latest = owned[-1]["revision"] if owned else 0
    equal = [one for one in owned if one["data"] == wanted]
    collisions = (owner.get("status") or {}).get("collisionCount") or 0
    if equal:
        current = equal[-1]
        if current["revision"] != latest:
            renewed = {**current, "revision": latest + 1}
            current = await controller.client.update(CONTROLLER_REVISIONS, renewed)
        others = [one for one in owned if one["metadata"]["uid"] != current["metadata"]["uid"]]
    else:
        current, collisions = await _create(controller, owner, wanted, latest + 1, collisions)
        others = [one for one in owned if one["metadata"]["uid"] != current["metadata"]["uid"]]
    if not metadata.get("deletionTimestamp"):
        others = await _trim(controller, owner, others)
    labels = current["metadata"].get("labels") or {}
    digest = labels.get(HASH_LABEL) or current["metadata"]["name"].rpartition("-")[2]
    return History([*others, current], digest, current["metadata"]["name"], collisions)


async def _create(
    controller: Controller, owner: Object, wanted: Object, number: int, collisions: int
) -> tuple[Object, int]:
    metadata = owner["metadata"]
    while True:
        digest = pods.template_hash(owner["spec"]["template"], collisions or None)
        name = f"{metadata['name']}-{digest}"
        # a StatefulSet labels its pods with the revision's name, a DaemonSet with the bare hash
        label = name if owner["kind"] == "StatefulSet" else digest
        labels = {**(owner["spec"]["template"].get("metadata") or {}).get("labels", {}), HASH_LABEL: label}
        revision: Object = {
            "apiVersion": "apps/v1",
            "kind": "ControllerRevision",
            "metadata": {
                "name": name,
                "namespace": metadata["namespace"],
                "labels": labels,
                "annotations": dict(metadata.get("annotations") or {}),
                "ownerReferences": [owner_reference(owner)],
            },
            "data": wanted,
            "revision": number,
        }
        try:
            return await controller.client.create(CONTROLLER_REVISIONS, revision, metadata["namespace"]), collisions
        except ApiError as error:
            if not error.already_exists:
                raise
        existing = await controller.client.get(CONTROLLER_REVISIONS, name, metadata["namespace"])
        if existing.get("data") == wanted:
            return existing, collisions
        collisions += 1


async def _trim(controller: Controller, owner: Object, others: list[Object]) -> list[Object]:
    """Delete the oldest revisions beyond the limit that no pod runs."""
    limit = owner["spec"].get("revisionHistoryLimit", 10)
    live = {of(pod) for pod in controller.informer(PODS).indexed("owner", owner["metadata"]["uid"])}
    status = owner.get("status") or {}
    live |= {status.get("currentRevision", ""), status.get("updateRevision", "")}
    idle = [one for one in others if not {one["metadata"]["name"], of(one)} & live]
    doomed = {one["metadata"]["uid"] for one in idle[: max(0, len(idle) - limit)]}
    for one in others:
        if one["metadata"]["uid"] in doomed:
            try:
                metadata = one["metadata"]
                await controller.client.delete(CONTROLLER_REVISIONS, metadata["name"], metadata["namespace"])
            except ApiError as error:
                if not error.not_found:
                    raise
    return [one for one in others if one["metadata"]["uid"] not in doomed]
