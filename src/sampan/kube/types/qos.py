"""A pod's quality of service class, from what its containers ask for and are limited to."""

from __future__ import annotations

from sampan.kube.objects import Object, dig


def qos_class(spec: Object) -> str:
    """Guaranteed, Burstable or BestEffort."""
    any_set, all_equal = False, True
    for container in [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]:
        requests = dig(container, "resources", "requests", default={})
        limits = dig(container, "resources", "limits", default={})
        any_set = any_set or bool(requests) or bool(limits)
        for name in ("cpu", "memory"):
            if name not in limits or requests.get(name, limits[name]) != limits[name]:
                all_equal = False
    if not any_set:
        return "BestEffort"
    return "Guaranteed" if all_equal else "Burstable"
