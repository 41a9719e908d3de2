"""What a writer of pods should hear about though it is allowed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_MOVED_LABELS = {
    "beta.kubernetes.io/os": "kubernetes.io/os",
    "beta.kubernetes.io/arch": "kubernetes.io/arch",
    "failure-domain.beta.kubernetes.io/zone": "topology.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region": "topology.kubernetes.io/region",
    "beta.kubernetes.io/instance-type": "node.kubernetes.io/instance-type",
}


def pod_warnings(spec: Mapping[str, Any], path: str) -> list[str]:
    """Warnings of a pod spec that stands at ``path``."""
    found = [
        f'{path}.nodeSelector[{old}]: deprecated since v1.14; use "{new}" instead'
        for old, new in _MOVED_LABELS.items()
        if old in (spec.get("nodeSelector") or {})
    ]
    for field in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(field) or ()):
            here = f"{path}.{field}[{index}]"
            found += _hidden_variables(container, here)
            found += _repeated_ports(container, here)
    return found


def _hidden_variables(container: Mapping[str, Any], path: str) -> Iterator[str]:
    seen: dict[str, Any] = {}
    for index, variable in enumerate(container.get("env") or ()):
        name = variable.get("name") or ""
        # A later value may build on the earlier one: that is what the repetition is for.
        if name in seen and f"$({name})" not in (variable.get("value") or ""):
            yield f'{path}.env[{index}]: hides previous definition of "{name}", which may be dropped when using apply'
        seen[name] = variable


def _repeated_ports(container: Mapping[str, Any], path: str) -> Iterator[str]:
    seen: dict[tuple[Any, Any, Any, Any], int] = {}
    for index, port in enumerate(container.get("ports") or ()):
        key = (port.get("containerPort"), port.get("protocol"), port.get("hostIP"), port.get("hostPort"))
        if key in seen:
            yield f"{path}.ports[{index}]: duplicate port definition with {path}.ports[{seen[key]}]"
        seen.setdefault(key, index)
