"""Writing an object's status once, and only where it differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sampan.kube.control.conditions import ConditionSet
from sampan.kube.control.controller import Controller
from sampan.kube.objects import Object, Resource, copy
from sampan.kube.status import ApiError


async def write_status(
    controller: Controller, resource: Resource, obj: Object, conditions: ConditionSet, fields: Mapping[str, Any]
) -> None:
    """Store conditions and fields (None: not there) of an object as of its present generation; records a change of Ready."""
    before = obj.get("status") or {}
    status: Object = {
        "observedGeneration": obj["metadata"].get("generation", 1),
        "conditions": conditions.conditions(),
        **{name: value for name, value in fields.items() if value is not None},
    }
    if "annotations" in before and "annotations" not in status:
        status["annotations"] = before["annotations"]
    if status == before:
        return
    changed: Object = {**copy({key: value for key, value in obj.items() if key != "status"}), "status": status}
    try:
        await controller.client.update(resource, changed, subresource="status")
    except ApiError as error:
        if not error.not_found:
            raise
        return
    was = next((one["status"] for one in before.get("conditions") or () if one["type"] == "Ready"), "")
    ready = conditions.ready
    if was != "True" and ready[0] == "True":
        controller.recorder.event(
            obj, "Normal", f"{obj['kind']}Ready", f"{obj['kind']} {obj['metadata']['name']} is ready"
        )
    elif was != "False" and ready[0] == "False":
        controller.recorder.event(obj, "Warning", ready[1] or "NotReady", ready[2] or "not ready")


def address(url: str) -> dict[str, Any]:
    """The status fields of an Addressable."""
    return {"address": {"name": "http", "url": url}, "addresses": [{"name": "http", "url": url}]}
