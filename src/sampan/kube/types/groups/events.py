"""Events: one store, served in the shapes of core/v1 and of events.k8s.io/v1."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sampan.kube.objects import Object, Resource, dig
from sampan.kube.types import names
from sampan.kube.types.groups import cells
from sampan.kube.types.groups.declare import declare
from sampan.kube.types.problems import Problems
from sampan.kube.types.resource import Column, ResourceType
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


WORD_LIMIT = 128
NOTE_LIMIT = 1024
_CLUSTER_NAMESPACES = ("", "default", "kube-system")
"""Where events about objects outside any namespace may stand."""


def _check_namespace(event: Object, reference: str, problems: Problems) -> None:
    about = (event.get(reference) or {}).get("namespace") or ""
    namespace = event["metadata"].get("namespace") or ""
    if (about and about != namespace) or (not about and namespace not in _CLUSTER_NAMESPACES):
        problems.invalid(f"{reference}.namespace", about, "does not match event.namespace")


EVENT_COLUMNS = (
    Column("Last Seen"),
    Column("Type"),
    Column("Reason"),
    Column("Object"),
    Column("Subobject", priority=1),
    Column("Source", priority=1),
    Column("Message"),
    Column("First Seen", priority=1),
    Column("Count", priority=1),
    Column("Name", priority=1),
)


def _row(event: Object, now: datetime) -> list[Any]:
    """The cells of an event in its core shape."""
    first, last = event.get("firstTimestamp") or event.get("eventTime"), event.get("lastTimestamp")
    count = event.get("count")
    series = event.get("series") or {}
    if series:
        last, count = series.get("lastObservedTime") or last, series.get("count") or count
    about = event.get("involvedObject") or {}
    subject = f"{(about.get('kind') or '').lower()}/{about.get('name') or ''}" if about.get("name") else "-"
    component = dig(event, "source", "component", default=event.get("reportingComponent") or "")
    host = dig(event, "source", "host", default=event.get("reportingInstance") or "")
    return [
        cells.since(last or first, now, "<unknown>"),
        event.get("type") or "",
        event.get("reason") or "",
        subject,
        about.get("fieldPath") or "",
        f"{component}, {host}" if component and host else component,
        (event.get("message") or "").strip(),
        cells.since(first, now, "<unknown>"),
        str(count or 1),
        event["metadata"]["name"],
    ]


class CoreEventStrategy(BuiltinStrategy):
    """Events in the shape of core/v1."""

    columns = EVENT_COLUMNS
    has_status = False
    create_on_update = True
    selectable_paths: ClassVar = {
        **{f"involvedObject.{field}": ("involvedObject", field) for field in _REFERENCE},
        "reason": ("reason",),
        "reportingComponent": ("reportingComponent",),
        "source": ("source", "component"),
        "type": ("type",),
    }

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return _row(obj, now)

    def check(self, obj: Object, problems: Problems) -> None:
        _check_namespace(obj, "involvedObject", problems)


class EventStrategy(BuiltinStrategy):
    """Events in the shape of events.k8s.io/v1."""

    columns = EVENT_COLUMNS
    has_status = False
    create_on_update = True
    selectable_paths: ClassVar = {
        **{f"regarding.{field}": ("regarding", field) for field in _REFERENCE},
        "reason": ("reason",),
        "reportingController": ("reportingController",),
        "type": ("type",),
    }

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return _row(to_core(obj), now)

    def check(self, obj: Object, problems: Problems) -> None:
        _check_namespace(obj, "regarding", problems)
        if not obj.get("eventTime"):
            problems.required("eventTime")
        if obj.get("type") not in ("Normal", "Warning"):
            problems.invalid("type", obj.get("type") or "", "has invalid value: ")
        controller = obj.get("reportingController") or ""
        if not controller:
            problems.required("reportingController")
        else:
            problems.invalid_all("reportingController", controller, names.qualified_name(controller))
        for field in ("reportingInstance", "action", "reason"):
            value = obj.get(field) or ""
            if not value:
                problems.required(field)
            elif len(value) > WORD_LIMIT:
                problems.invalid(field, value, f"can have at most {WORD_LIMIT} characters")
        if len(obj.get("note") or "") > NOTE_LIMIT:
            problems.invalid("note", obj["note"], "can have at most 1024 characters")


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
