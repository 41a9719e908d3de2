"""A container's environment: variables from the spec, ConfigMaps, Secrets, the pod itself, and Services. Pure."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import ROUND_CEILING, Decimal
from typing import Any

from sampan.kube.objects import Object, dig
from sampan.kube.types import quantity
from sampan.parts.node.errors import ContainerConfigError

_REFERENCE = re.compile(r"\$\$|\$\(([^()]*)\)")
_NAME = re.compile(r"^[-._a-zA-Z][-._a-zA-Z0-9]*$")
_SUBSCRIPT = re.compile(r"^metadata\.(labels|annotations)\['(.*)'\]$")

Find = Callable[[str, str, str], Object | None]
"""``find("configmaps" or "secrets", namespace, name)``."""


def expand(text: str, known: Mapping[str, str]) -> str:
    """``$(NAME)`` of known names, ``$$`` as ``$``; unknown references stay as they are."""

    def one(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return known.get(match[1], match[0])

    return _REFERENCE.sub(one, text)


def field(pod: Object, path: str, host: str, address: str) -> str:
    """A downward API field. Raises ContainerConfigError."""
    if match := _SUBSCRIPT.match(path):
        values: Mapping[str, str] = pod["metadata"].get(match[1]) or {}
        return values.get(match[2], "")
    metadata, spec = pod["metadata"], pod["spec"]
    match path:
        case "metadata.name" | "metadata.namespace" | "metadata.uid":
            return str(metadata[path.partition(".")[2]])
        case "metadata.labels" | "metadata.annotations":
            pairs = metadata.get(path.partition(".")[2]) or {}
            return "\n".join(f"{key}={quoted(str(value))}" for key, value in sorted(pairs.items()))
        case "spec.nodeName" | "spec.serviceAccountName":
            return str(spec.get(path.partition(".")[2]) or "")
        case "status.hostIP" | "status.hostIPs":
            return host
        case "status.podIP" | "status.podIPs":
            return address
    raise ContainerConfigError(f"unsupported fieldPath: {path}")


def quoted(text: str) -> str:
    """As Go's %q writes it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t") + '"'


def resource(container: Object, reference: Object, allocatable: Mapping[str, str]) -> str:
    """A ``resourceFieldRef``: the limit or request in units of its divisor, rounded up. Raises ContainerConfigError."""
    kind, _, name = str(reference["resource"]).partition(".")
    limits = dig(container, "resources", "limits", default={})
    requests = dig(container, "resources", "requests", default={})
    if kind == "limits":
        value = limits.get(name) or allocatable.get(name) or "0"
    elif kind == "requests":
        value = requests.get(name) or limits.get(name) or "0"
    else:
        raise ContainerConfigError(f"unsupported container resource: {reference['resource']}")
    divisor = quantity.parse(reference.get("divisor") or "1") or Decimal(1)
    return str(int((quantity.parse(value) / divisor).to_integral_value(ROUND_CEILING)))


def service_variables(services: Sequence[Object], namespace: str, enabled: bool) -> dict[str, str]:
    """Variables about Services: the API server's always, the namespace's where links are enabled."""
    variables: dict[str, str] = {}
    for service in services:
        metadata, spec = service["metadata"], service["spec"]
        api = metadata["namespace"] == "default" and metadata["name"] == "kubernetes"
        if not api and not (enabled and metadata["namespace"] == namespace):
            continue
        address = spec.get("clusterIP")
        ports = spec.get("ports") or []
        if not address or address == "None" or not ports:
            continue
        prefix = metadata["name"].upper().replace("-", "_")
        variables[f"{prefix}_SERVICE_HOST"] = address
        variables[f"{prefix}_SERVICE_PORT"] = str(ports[0]["port"])
        for port in ports:
            if name := port.get("name"):
                variables[f"{prefix}_SERVICE_PORT_{name.upper().replace('-', '_')}"] = str(port["port"])
        for index, port in enumerate(ports):
            protocol = (port.get("protocol") or "TCP").lower()
            url = f"{protocol}://{address}:{port['port']}"
            if index == 0:
                variables[f"{prefix}_PORT"] = url
            link = f"{prefix}_PORT_{port['port']}_{protocol.upper()}"
            variables[link] = url
            variables[f"{link}_PROTO"] = protocol
            variables[f"{link}_PORT"] = str(port["port"])
            variables[f"{link}_ADDR"] = address
    return variables


def container_environment(
    pod: Object,
    container: Object,
    *,
    base: Mapping[str, str],
    services: Mapping[str, str],
    find: Find,
    host: str,
    address: str,
    allocatable: Mapping[str, str],
) -> tuple[dict[str, str], list[str]]:
    """The whole environment, and the names that ``envFrom`` had to skip.

    Raises:
        ContainerConfigError: a ConfigMap, Secret, key or field that is needed is missing.
    """
    namespace = pod["metadata"]["namespace"]
    values: dict[str, str] = {**base, **services}
    skipped: list[str] = []
    for source in container.get("envFrom") or ():
        prefix = source.get("prefix") or ""
        for name, value in _all_keys(source, namespace, find).items():
            if _NAME.match(prefix + name):
                values[prefix + name] = value
            else:
                skipped.append(prefix + name)
    for variable in container.get("env") or ():
        value_from = variable.get("valueFrom")
        if value_from:
            found = _value_from(pod, container, value_from, namespace, find, host, address, allocatable)
            if found is None:
                continue
            values[variable["name"]] = found
        else:
            values[variable["name"]] = expand(variable.get("value") or "", values)
    return values, skipped


def _decoded(kind: str, source: Object) -> dict[str, str]:
    if kind == "configmaps":
        return {name: str(value) for name, value in (source.get("data") or {}).items()}
    pairs = source.get("data") or {}
    return {name: base64.b64decode(value).decode(errors="replace") for name, value in pairs.items()}


def _all_keys(source: Object, namespace: str, find: Find) -> dict[str, str]:
    for field_name, kind, word in (("configMapRef", "configmaps", "configmap"), ("secretRef", "secrets", "secret")):
        reference = source.get(field_name)
        if reference is None:
            continue
        found = find(kind, namespace, reference["name"])
        if found is not None:
            return _decoded(kind, found)
        if not reference.get("optional"):
            raise ContainerConfigError(f'{word} "{reference["name"]}" not found')
    return {}


def _value_from(
    pod: Object,
    container: Object,
    source: Object,
    namespace: str,
    find: Find,
    host: str,
    address: str,
    allocatable: Mapping[str, str],
) -> str | None:
    if reference := source.get("fieldRef"):
        return field(pod, reference["fieldPath"], host, address)
    if reference := source.get("resourceFieldRef"):
        target = container
        if name := reference.get("containerName"):
            every: list[Any] = [*(pod["spec"].get("containers") or ()), *(pod["spec"].get("initContainers") or ())]
            target = next((one for one in every if one["name"] == name), container)
        return resource(target, reference, allocatable)
    for field_name, kind, word in (
        ("configMapKeyRef", "configmaps", "configmap"),
        ("secretKeyRef", "secrets", "secret"),
    ):
        reference = source.get(field_name)
        if reference is None:
            continue
        found = find(kind, namespace, reference["name"])
        if found is None:
            if reference.get("optional"):
                return None
            raise ContainerConfigError(f'{word} "{reference["name"]}" not found')
        values = _decoded(kind, found)
        if reference["key"] in values:
            return values[reference["key"]]
        if reference.get("optional"):
            return None
        told = "ConfigMap" if kind == "configmaps" else "Secret"
        raise ContainerConfigError(f"couldn't find key {reference['key']} in {told} {namespace}/{reference['name']}")
    return None
