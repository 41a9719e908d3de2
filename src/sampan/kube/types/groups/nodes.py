"""core/v1 Node and node.k8s.io/v1 RuntimeClass."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

from sampan.kube.objects import Object, dig
from sampan.kube.types import names
from sampan.kube.types.groups import cells
from sampan.kube.types.groups.declare import PROXY, declare, status
from sampan.kube.types.groups.pod_validation import EFFECTS
from sampan.kube.types.problems import Problems
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy, columns


class NodeStrategy(BuiltinStrategy):
    """Nodes."""

    columns = columns(
        "Status",
        "Roles",
        "Version",
        wide=("Internal-IP", "External-IP", "OS-Image", "Kernel-Version", "Container-Runtime"),
        age_at=3,
    )
    namespaced = False
    selectable_paths: ClassVar = {"spec.unschedulable": ("spec", "unschedulable")}

    def fields(self, obj: Object) -> Mapping[str, str]:
        return {**super().fields(obj), "spec.unschedulable": "true" if dig(obj, "spec", "unschedulable") else "false"}

    def default(self, obj: Object) -> None:
        obj.setdefault("spec", {})
        status = obj.get("status")
        if status and "allocatable" not in status and status.get("capacity"):
            status["allocatable"] = dict(status["capacity"])

    def prepare_create(self, obj: Object) -> None:
        # Node agents register with their status.
        obj.setdefault("status", {})

    def row(self, obj: Object, now: datetime) -> list[Any]:
        ready = cells.condition(obj, "Ready").get("status")
        state = {"True": "Ready", "False": "NotReady"}.get(str(ready), "NotReady" if ready else "Unknown")
        if dig(obj, "spec", "unschedulable"):
            state += ",SchedulingDisabled"
        info = dig(obj, "status", "nodeInfo", default={})
        addresses = dig(obj, "status", "addresses", default=())
        return [
            obj["metadata"]["name"],
            state,
            ",".join(_roles(obj)) or cells.NONE,
            cells.age(obj, now),
            info.get("kubeletVersion") or "",
            *(
                next((entry.get("address") for entry in addresses if entry.get("type") == kind), cells.NONE)
                for kind in ("InternalIP", "ExternalIP")
            ),
            *(info.get(field) or "<unknown>" for field in ("osImage", "kernelVersion", "containerRuntimeVersion")),
        ]

    def check(self, obj: Object, problems: Problems) -> None:
        seen: set[tuple[Any, Any]] = set()
        for index, taint in enumerate(dig(obj, "spec", "taints", default=())):
            here, key, effect = f"spec.taints[{index}]", taint.get("key") or "", taint.get("effect")
            problems.invalid_all(f"{here}.key", key, names.qualified_name(key))
            problems.invalid_all(f"{here}.value", taint.get("value") or "", names.label_value(taint.get("value") or ""))
            problems.one_of(f"{here}.effect", effect, EFFECTS)
            if (key, effect) in seen:
                problems.duplicate(here, {"key": key, "effect": str(effect)})
            seen.add((key, effect))

    def check_update(self, new: Object, old: Object, problems: Problems) -> None:
        stored = dig(old, "spec", "podCIDRs", default=[])
        first = dig(old, "spec", "podCIDR", default="")
        changed = dig(new, "spec", "podCIDRs", default=[]) != stored or dig(new, "spec", "podCIDR", default="") != first
        if (stored or first) and changed:
            problems.forbidden("spec.podCIDRs", 'node updates may not change podCIDR except from "" to valid')


def _roles(node: Object) -> list[str]:
    prefix = "node-role.kubernetes.io/"
    labels = node["metadata"].get("labels") or {}
    roles = {key.removeprefix(prefix) for key in labels if key.startswith(prefix) and key != prefix}
    if role := labels.get("kubernetes.io/role"):
        roles.add(role)
    return sorted(roles)


class RuntimeClassStrategy(BuiltinStrategy):
    """RuntimeClasses."""

    columns = columns("Handler")
    namespaced = False
    has_status = False

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [obj["metadata"]["name"], obj.get("handler") or "", cells.age(obj, now)]

    def check(self, obj: Object, problems: Problems) -> None:
        handler = obj.get("handler") or ""
        problems.invalid_all("handler", handler, names.dns_label(handler))

    def check_update(self, new: Object, old: Object, problems: Problems) -> None:
        problems.immutable("handler", new.get("handler"), old.get("handler"))


def types() -> list[ResourceType]:
    """The kinds of this module."""
    return [
        declare(
            "v1",
            "nodes",
            "Node",
            NodeStrategy(),
            short=("no",),
            subresources=(("proxy", "NodeProxyOptions", PROXY), status("Node")),
        ),
        declare("node.k8s.io/v1", "runtimeclasses", "RuntimeClass", RuntimeClassStrategy()),
    ]
