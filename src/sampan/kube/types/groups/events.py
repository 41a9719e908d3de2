"""Events: one store, served in the shapes of core/v1 and of events.k8s.io/v1."""

from __future__ import annotations

from typing import ClassVar

from sampan.kube.objects import Object, Resource
from sampan.kube.types.groups.declare import declare
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy

STORED = Resource("", "v1", "events")
_REFERENCE = ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")
_RENAMED = {
    "involvedObject": "regarding",
    "message": "note",
    "firstTimestamp": "deprecatedFirstTimestamp",
    "lastTimestamp": "deprecatedLastTimestamp",
    "count": "deprecatedCount",
    "source": "deprecatedSource",
    "reportingComponent": "reportingController",
}
_RENAMED_BACK = {new: old for old, new in _RENAMED.items()}


class CoreEventStrategy(BuiltinStrategy):
    """Events in the shape of core/v1."""

    has_status = False
    create_on_update = True
    selectable_paths: ClassVar = {
        **{f"involvedObject.{field}": ("involvedObject", field) for field in _REFERENCE},
        "reason": ("reason",),
        "reportingComponent": ("reportingComponent",),
        "source": ("source", "component"),
        "type": ("type",),
    }


class EventStrategy(BuiltinStrategy):
    """Events in the shape of events.k8s.io/v1."""

    has_status = False
    create_on_update = True
    selectable_paths: ClassVar = {
        **{f"regarding.{field}": ("regarding", field) for field in _REFERENCE},
        "reason": ("reason",),
        "reportingController": ("reportingController",),
        "type": ("type",),
    }


def to_core(obj: Object) -> Object:
    """The core/v1 shape of an events.k8s.io/v1 event."""
    return {_RENAMED_BACK.get(key, key): value for key, value in obj.items()} | {"apiVersion": "v1"}


def from_core(obj: Object) -> Object:
    """The events.k8s.io/v1 shape of a core/v1 event."""
    return {_RENAMED.get(key, key): value for key, value in obj.items()} | {"apiVersion": "events.k8s.io/v1"}


def types() -> list[ResourceType]:
    """The kinds of this module."""
    return [
        declare("v1", "events", "Event", CoreEventStrategy(), short=("ev",)),
        declare(
            "events.k8s.io/v1",
            "events",
            "Event",
            EventStrategy(),
            short=("ev",),
            storage=STORED,
            to_storage=to_core,
            from_storage=from_core,
        ),
    ]
