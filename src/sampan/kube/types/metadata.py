"""What every object's ``metadata`` must look like, on its own and against the stored one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sampan.kube.objects import Object
from sampan.kube.types import names
from sampan.kube.types.names import NameRule
from sampan.kube.types.problems import Problems

ANNOTATIONS_LIMIT = 256 * 1024
"""Bytes of all annotation keys and values together."""
STANDARD_FINALIZERS = frozenset({"kubernetes", "orphan", "foregroundDeletion"})


def validate_labels(labels: Mapping[str, str], path: str, problems: Problems) -> None:
    """Keys are qualified names, values label values."""
    for key, value in labels.items():
        for why in names.qualified_name(key):
            problems.invalid(path, key, why)
        for why in names.label_value(value):
            problems.invalid(path, value, why)


def validate_annotations(annotations: Mapping[str, str], path: str, problems: Problems) -> None:
    """Keys are qualified names (in lower case), everything together is bounded."""
    size = 0
    for key, value in annotations.items():
        for why in names.qualified_name(key.lower()):
            problems.invalid(path, key, why)
        size += len(key.encode()) + len(value.encode())
    if size > ANNOTATIONS_LIMIT:
        problems.too_long(path, ANNOTATIONS_LIMIT)


def validate_metadata(
    obj: Object, namespaced: bool, rule: NameRule, problems: Problems, *, any_finalizer: bool = False
) -> None:
    """The metadata of an object on its way into the store.

    ``any_finalizer``: finalizers need no domain (definitions and custom resources; upstream's own kinds are stricter).
    """
    metadata: Mapping[str, Any] = obj.get("metadata") or {}
    if generate_name := metadata.get("generateName"):
        # Something follows the base, so a final dash or dot is fine.
        for why in rule(generate_name[:-1] + "a" if generate_name[-1] in "-." else generate_name):
            problems.invalid("metadata.generateName", generate_name, why)
    name = metadata.get("name") or ""
    if not name:
        problems.required("metadata.name", "name or generateName is required")
    else:
        problems.invalid_all("metadata.name", name, rule(name))
    namespace = metadata.get("namespace") or ""
    if namespaced:
        if not namespace:
            problems.required("metadata.namespace")
        else:
            problems.invalid_all("metadata.namespace", namespace, names.dns_label(namespace))
    elif namespace:
        problems.forbidden("metadata.namespace", "not allowed on this type")
    if labels := metadata.get("labels"):
        validate_labels(labels, "metadata.labels", problems)
    if annotations := metadata.get("annotations"):
        validate_annotations(annotations, "metadata.annotations", problems)
    if owners := metadata.get("ownerReferences"):
        _validate_owners(owners, problems)
    if finalizers := metadata.get("finalizers"):
        _validate_finalizers(finalizers, problems, any_finalizer)


def _validate_owners(owners: list[Mapping[str, Any]], problems: Problems) -> None:
    controllers = []
    for index, owner in enumerate(owners):
        path = f"metadata.ownerReferences[{index}]"
        group, slash, version = (owner.get("apiVersion") or "").rpartition("/")
        if not version or (slash and not group):
            problems.invalid(f"{path}.apiVersion", owner.get("apiVersion") or "", "version must not be empty")
        for field in ("kind", "name", "uid"):
            if not owner.get(field):
                problems.invalid(f"{path}.{field}", owner.get(field) or "", f"{field} must not be empty")
        if owner.get("controller"):
            controllers.append(owner.get("name"))
    if len(controllers) > 1:
        why = f"Only one reference can have Controller set to true. Found {' and '.join(quoted for quoted in _show(controllers))}"
        problems.invalid("metadata.ownerReferences", owners, why)


def _show(controllers: list[Any]) -> list[str]:
    return [f'"true" in references for {name}' for name in controllers]


def _validate_finalizers(finalizers: list[str], problems: Problems, any_finalizer: bool) -> None:
    for finalizer in finalizers:
        for why in names.qualified_name(finalizer):
            problems.invalid("metadata.finalizers", finalizer, why)
        if not any_finalizer and "/" not in finalizer and finalizer not in STANDARD_FINALIZERS:
            why = "name is neither a standard finalizer name nor is it fully qualified"
            problems.invalid("metadata.finalizers", finalizer, why)
    if "orphan" in finalizers and "foregroundDeletion" in finalizers:
        why = "finalizer orphan and foregroundDeletion cannot be both set"
        problems.invalid("metadata.finalizers", finalizers, why)


def validate_metadata_update(new: Object, old: Object, problems: Problems) -> None:
    """What no update may change in metadata."""
    fresh, stored = new["metadata"], old["metadata"]
    for field in ("name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"):
        problems.immutable(f"metadata.{field}", fresh.get(field), stored.get(field))
    if (fresh.get("generation") or 0) < (stored.get("generation") or 0):
        problems.invalid("metadata.generation", fresh.get("generation") or 0, "must not be decremented")
    if stored.get("deletionTimestamp"):
        added = sorted(set(fresh.get("finalizers") or ()) - set(stored.get("finalizers") or ()))
        if added:
            why = (
                f"no new finalizers can be added if the object is being deleted, found new finalizers {_go_list(added)}"
            )
            problems.forbidden("metadata.finalizers", why)


def _go_list(items: list[str]) -> str:
    return "[]string{" + ", ".join(f'"{item}"' for item in items) + "}"
