"""Table cells that several kinds share: selectors, container lists, dates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sampan.kube.objects import Object, dig
from sampan.kube.types import duration, selectors

NONE = "<none>"
UNSET = "<unset>"
MOST_LISTED = 3
"""How many of a list a cell shows before ``+ N more...``."""


def labels(values: Mapping[str, str] | None) -> str:
    """``a=b,c=d``."""
    return ",".join(f"{key}={value}" for key, value in sorted((values or {}).items())) or NONE


def selector(value: Mapping[str, Any] | None) -> str:
    """A LabelSelector object as a query string."""
    return str(selectors.of_object(value or {})) or NONE


def containers(template: Mapping[str, Any] | None) -> tuple[str, str]:
    """Names and images of a template's containers."""
    found = dig(template or {}, "spec", "containers", default=())
    return ",".join(c.get("name", "") for c in found), ",".join(c.get("image", "") for c in found)


def age(obj: Object, now: datetime) -> str:
    """How old an object is."""
    return duration.age(obj["metadata"].get("creationTimestamp"), now)


def created(obj: Object) -> str:
    """When an object was created."""
    return str(obj["metadata"].get("creationTimestamp") or duration.UNKNOWN)


def since(moment: str | None, now: datetime, missing: str = NONE) -> str:
    """How long ago a time was."""
    return duration.age(moment, now) if moment else missing


def listed(items: Sequence[str], empty: str = NONE) -> str:
    """The first few of a list."""
    if len(items) > MOST_LISTED:
        return f"{','.join(items[:MOST_LISTED])} + {len(items) - MOST_LISTED} more..."
    return ",".join(items) or empty


def flag(value: bool | None) -> str:
    """``True``, ``False`` or ``<unset>``."""
    return UNSET if value is None else str(bool(value))


def condition(obj: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """A condition of ``status``, empty where there is none."""
    found: Iterable[Mapping[str, Any]] = dig(obj, "status", "conditions", default=())
    return next((entry for entry in found if entry.get("type") == kind), {})


def is_true(obj: Mapping[str, Any], kind: str) -> bool:
    """Whether a condition holds."""
    return condition(obj, kind).get("status") == "True"
