"""Generate ``src/sampan/kube/types/schemas.bin``: the OpenAPI definitions of the built-in kinds.

Run by hand when the served Kubernetes level changes (needs the ``build`` extra)::

    python tools/build_schemas.py

Source: the JSON schemas that the package ``kubernetes-validate`` carries for one Kubernetes minor version. They are brought
back to the form an API server serves: references point to ``#/components/schemas``, a reference with siblings stands in
``allOf``, ``null`` is no type, quantities are strings and int-or-string is marked as such. Prose is left out. Server defaults
that are part of the schema (they take part in list keys of server-side apply) are added.

Only what a served kind reaches is kept. Layout of the file: zlib of a JSON object from definition name to definition.
"""

from __future__ import annotations

import importlib.resources
import json
import sys
import zlib
from pathlib import Path
from typing import Any

VERSION = "v1.32.0-local"
TARGET = Path(__file__).parent.parent / "src/sampan/kube/types/schemas.bin"

SERVED = {
    "", "admissionregistration.k8s.io", "apiextensions.k8s.io", "apiregistration.k8s.io", "apps", "authentication.k8s.io",
    "authorization.k8s.io", "autoscaling", "batch", "certificates.k8s.io", "coordination.k8s.io", "discovery.k8s.io",
    "events.k8s.io", "flowcontrol.apiserver.k8s.io", "networking.k8s.io", "node.k8s.io", "policy",
    "rbac.authorization.k8s.io", "scheduling.k8s.io", "storage.k8s.io",
}  # fmt: skip
STABLE = {"v1", "v2"}

DEFAULTS: dict[str, dict[str, Any]] = {
    "io.k8s.api.core.v1.ContainerPort": {"protocol": "TCP"},
    "io.k8s.api.core.v1.ServicePort": {"protocol": "TCP"},
    "io.k8s.api.core.v1.AzureDiskVolumeSource": {
        "cachingMode": "ReadWrite",
        "fsType": "ext4",
        "kind": "Shared",
        "readOnly": False,
    },
    "io.k8s.api.core.v1.ISCSIVolumeSource": {"iscsiInterface": "default"},
    "io.k8s.api.core.v1.ISCSIPersistentVolumeSource": {"iscsiInterface": "default"},
    "io.k8s.api.core.v1.RBDVolumeSource": {"pool": "rbd", "user": "admin", "keyring": "/etc/ceph/keyring"},
    "io.k8s.api.core.v1.RBDPersistentVolumeSource": {"pool": "rbd", "user": "admin", "keyring": "/etc/ceph/keyring"},
    "io.k8s.api.core.v1.ScaleIOVolumeSource": {"storageMode": "ThinProvisioned", "fsType": "xfs"},
    "io.k8s.api.core.v1.ScaleIOPersistentVolumeSource": {"storageMode": "ThinProvisioned", "fsType": "xfs"},
    "io.k8s.api.core.v1.GRPCAction": {"service": ""},
}

OVERRIDES: dict[str, dict[str, Any]] = {
    "io.k8s.apimachinery.pkg.api.resource.Quantity": {"type": "string"},
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": {
        "type": "string",
        "format": "int-or-string",
        "x-kubernetes-int-or-string": True,
    },
}

KEPT = {
    "required", "format", "enum", "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-map-type",
    "x-kubernetes-patch-strategy", "x-kubernetes-patch-merge-key", "x-kubernetes-group-version-kind", "x-kubernetes-unions",
}  # fmt: skip


def normalise(node: dict[str, Any]) -> dict[str, Any]:
    """One schema node in served form."""
    out: dict[str, Any] = {}
    kind = node.get("type")
    if kind is not None:
        out["type"] = next(t for t in kind if t != "null") if isinstance(kind, list) else kind
    for key, value in node.items():
        if key == "properties":
            out["properties"] = {name: normalise(child) for name, child in value.items()}
        elif key in ("items", "additionalProperties"):
            out[key] = normalise(value)
        elif key in KEPT:
            out[key] = value
        elif key not in ("type", "description", "$ref"):
            raise SystemExit(f"unexpected schema key {key!r}")
    if "$ref" in node:
        reference = {"$ref": node["$ref"].replace("#/$defs/", "#/components/schemas/")}
        out.pop("type", None)
        return {"allOf": [reference], **out} if out else reference
    return out


def references(node: Any) -> set[str]:
    if isinstance(node, list):
        return set().union(*map(references, node)) if node else set()
    if not isinstance(node, dict):
        return set()
    found = {node["$ref"].rpartition("/")[2]} if isinstance(node.get("$ref"), str) else set()
    return found.union(*map(references, node.values()))


def build() -> dict[str, Any]:
    source = importlib.resources.files("kubernetes_validate") / "kubernetes-json-schema" / VERSION / "_definitions.json"
    definitions: dict[str, Any] = json.loads(source.read_text())["$defs"]
    out: dict[str, Any] = {}
    for name, definition in definitions.items():
        kinds = definition.get("x-kubernetes-group-version-kind") or []
        properties = definition.get("properties") or {}
        if kinds:
            # The source pins apiVersion and kind with an enum, which the server's own document does not.
            for pinned in ("apiVersion", "kind"):
                properties.get(pinned, {}).pop("enum", None)
        out[name] = OVERRIDES.get(name) or normalise(definition)
        if kinds:
            out[name]["x-kubernetes-group-version-kind"] = [
                kind for kind in kinds if kind["group"] in SERVED and kind["version"] in STABLE
            ]
            if not out[name]["x-kubernetes-group-version-kind"]:
                del out[name]["x-kubernetes-group-version-kind"]
        for field, default in DEFAULTS.get(name, {}).items():
            out[name]["properties"][field]["default"] = default
    roots = {name for name, definition in out.items() if definition.get("x-kubernetes-group-version-kind")}
    roots |= {name for name in out if name.startswith("io.k8s.apimachinery.")}
    reached: set[str] = set()
    while roots:
        name = roots.pop()
        reached.add(name)
        roots |= references(out[name]) - reached
    return {name: out[name] for name in sorted(reached)}


def main() -> None:
    definitions = build()
    encoded = json.dumps(definitions, separators=(",", ":"), sort_keys=True).encode()
    TARGET.write_bytes(zlib.compress(encoded, 9))
    sys.stdout.write(
        f"{len(definitions)} definitions, {len(encoded)} bytes, {TARGET.stat().st_size} in {TARGET.name}\n"
    )


if __name__ == "__main__":
    main()
