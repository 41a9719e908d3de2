"""What a SinkBinding puts into a pod template: ``K_SINK`` and ``K_CE_OVERRIDES`` in every container. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from sampan.kube.objects import Object, dig

NAMES = ("K_SINK", "K_CE_OVERRIDES")


def template_of(obj: Object) -> Object | None:
    """The pod template of a PodSpecable object, or None."""
    found = dig(obj, "spec", "jobTemplate", "spec", "template") or dig(obj, "spec", "template")
    return found if isinstance(found, dict) else None


def values(sink: str, extensions: Mapping[str, str]) -> dict[str, str]:
    """The variables for a sink."""
    overrides = msgspec.json.encode({"extensions": dict(extensions)}).decode() if extensions else ""
    return {"K_SINK": sink, "K_CE_OVERRIDES": overrides}


def inject(template: Object, wanted: Mapping[str, str]) -> bool:
    """Set the variables in all containers (an empty mapping takes them out); whether anything changed."""
    changed = False
    spec = template.get("spec") or {}
    for container in [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]:
        before: list[dict[str, Any]] = container.get("env") or []
        # an empty value is stored as none, so it is the values that are compared
        present = {one["name"]: one.get("value") or "" for one in before if one.get("name") in NAMES}
        if present == dict(wanted):
            continue
        changed = True
        after = [one for one in before if one.get("name") not in NAMES]
        after += [{"name": name, "value": value} for name, value in wanted.items()]
        if after:
            container["env"] = after
        else:
            container.pop("env", None)
    return changed
