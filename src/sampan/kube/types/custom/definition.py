"""What may stand in a CustomResourceDefinition, and what may change in one. The texts are upstream's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sampan.kube.objects import Object
from sampan.kube.types import names
from sampan.kube.types.custom.columns import JsonPathError, json_path
from sampan.kube.types.custom.structure import check_schema, is_shipped
from sampan.kube.types.problems import Problems

APPROVAL = "api-approved.kubernetes.io"
_PROTECTED = ("k8s.io", "kubernetes.io")
_COLUMN_TYPES = ("integer", "number", "string", "boolean", "date")


def check(definition: Object, problems: Problems) -> None:
    """Report what is wrong with a definition (apart from its metadata)."""
    spec = definition.get("spec") or {}
    group = spec.get("group") or ""
    given = spec.get("names") or {}
    if definition["metadata"].get("name") != f"{given.get('plural') or ''}.{group}":
        problems.invalid(
            "metadata.name", definition["metadata"].get("name"), 'must be spec.names.plural+"."+spec.group'
        )
    _approval(definition, group, problems)
    if not group:
        problems.required("spec.group")
    else:
        problems.invalid_all("spec.group", group, names.dns_subdomain(group))
        if "." not in group:
            problems.invalid("spec.group", group, "should be a domain with at least one dot")
    problems.one_of("spec.scope", spec.get("scope"), ("Cluster", "Namespaced"))
    if spec.get("preserveUnknownFields"):
        problems.invalid(
            "spec.preserveUnknownFields",
            True,
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
        )
    _names(given, problems)
    _versions(definition["metadata"].get("name") or "", spec.get("versions") or [], problems)
    _conversion(spec.get("conversion") or {}, problems)


def check_change(new: Object, old: Object, problems: Problems) -> None:
    """Report what may not change."""
    problems.immutable("spec.group", new["spec"].get("group"), old["spec"].get("group"))
    problems.immutable("spec.names.plural", new["spec"]["names"].get("plural"), old["spec"]["names"].get("plural"))
    if _established(old):
        problems.immutable("spec.scope", new["spec"].get("scope"), old["spec"].get("scope"))
        problems.immutable("spec.names.kind", new["spec"]["names"].get("kind"), old["spec"]["names"].get("kind"))
    check_status(new, problems)


def check_status(definition: Object, problems: Problems) -> None:
    """Report what the status may not say: every stored version must still exist."""
    known = [version.get("name") for version in definition["spec"].get("versions") or ()]
    stored = (definition.get("status") or {}).get("storedVersions") or ()
    for index, version in enumerate(stored):
        if version not in known:
            problems.invalid(
                f"status.storedVersions[{index}]", version, "missing from spec.versions; must appear in spec.versions"
            )
    storage = next(
        (version.get("name") or "" for version in definition["spec"].get("versions") or () if version.get("storage")),
        None,
    )
    if storage is not None and storage not in stored:
        problems.invalid("status.storedVersions", list(stored), f"must have the storage version {storage}")


def note_stored_version(definition: Object) -> None:
    """Add the storage version to ``status.storedVersions``, in place."""
    stored = definition.setdefault("status", {}).setdefault("storedVersions", [])
    for version in definition["spec"].get("versions") or ():
        name = version.get("name") or ""
        if version.get("storage") and name not in stored:
            stored.append(name)


def _established(definition: Object) -> bool:
    conditions = (definition.get("status") or {}).get("conditions") or ()
    return any(one.get("type") == "Established" and one.get("status") == "True" for one in conditions)


def _approval(definition: Object, group: str, problems: Problems) -> None:
    if not any(group == one or group.endswith(f".{one}") for one in _PROTECTED):
        return
    value = (definition["metadata"].get("annotations") or {}).get(APPROVAL)
    path = f"metadata.annotations[{APPROVAL}]"
    if not value:
        problems.required(
            path,
            f'protected groups must have approval annotation "{APPROVAL}", see https://github.com/kubernetes/enhancements/pull/1111',
        )
    elif not value.startswith(("https://", "http://", "unapproved")):
        problems.invalid(
            path,
            value,
            'protected groups must have approval annotation with either a URL or a reason starting with "unapproved"',
        )


def _names(given: Mapping[str, Any], problems: Problems) -> None:
    for field in ("plural", "singular", "kind", "listKind"):
        value = given.get(field) or ""
        if not value:
            if field in ("plural", "kind"):
                problems.required(f"spec.names.{field}")
            continue
        problems.invalid_all(
            f"spec.names.{field}", value, names.dns_label_1035(value.lower() if "ind" in field else value)
        )
    if given.get("kind") and given.get("kind") == given.get("listKind"):
        problems.invalid("spec.names.listKind", given["listKind"], "kind and listKind may not be the same")
    for field in ("shortNames", "categories"):
        for index, value in enumerate(given.get(field) or ()):
            problems.invalid_all(f"spec.names.{field}[{index}]", value, names.dns_label_1035(value))


def _versions(name: str, versions: list[Mapping[str, Any]], problems: Problems) -> None:
    known = [version.get("name") for version in versions]
    if len(set(known)) != len(known):
        problems.invalid("spec.versions", known, "must contain unique version names")
    if sum(1 for version in versions if version.get("storage")) != 1:
        problems.invalid("spec.versions", known, "must have exactly one version marked as storage version")
    for index, version in enumerate(versions):
        path = f"spec.versions[{index}]"
        problems.invalid_all(f"{path}.name", version.get("name") or "", names.dns_label_1035(version.get("name") or ""))
        if version.get("deprecationWarning") and not version.get("deprecated"):
            problems.invalid(
                f"{path}.deprecationWarning", version["deprecationWarning"], "can only be set for deprecated versions"
            )
        schema = (version.get("schema") or {}).get("openAPIV3Schema")
        if not is_shipped(name, str(version.get("name")), schema):
            check_schema(schema, f"{path}.schema.openAPIV3Schema", problems)
        _scale((version.get("subresources") or {}).get("scale"), f"{path}.subresources.scale", problems)
        for place, column in enumerate(version.get("additionalPrinterColumns") or ()):
            _column(column, f"{path}.additionalPrinterColumns[{place}]", problems)
        for place, field in enumerate(version.get("selectableFields") or ()):
            _json_path(field.get("jsonPath"), f"{path}.selectableFields[{place}].jsonPath", problems)


def _scale(scale: Mapping[str, Any] | None, path: str, problems: Problems) -> None:
    if scale is None:
        return
    for field, roots, required in (
        ("specReplicasPath", (".spec.",), True),
        ("statusReplicasPath", (".status.",), True),
        ("labelSelectorPath", (".spec.", ".status."), False),
    ):
        value = scale.get(field) or ""
        if not value:
            if required:
                problems.required(f"{path}.{field}")
            continue
        try:
            json_path(value)
        except JsonPathError as error:
            problems.invalid(f"{path}.{field}", value, str(error))
            continue
        if not value.startswith(roots):
            problems.invalid(
                f"{path}.{field}", value, f"should be a json path under {' or '.join(root[:-1] for root in roots)}"
            )


def _column(column: Mapping[str, Any], path: str, problems: Problems) -> None:
    if not column.get("name"):
        problems.required(f"{path}.name")
    problems.one_of(f"{path}.type", column.get("type"), _COLUMN_TYPES)
    _json_path(column.get("jsonPath"), f"{path}.jsonPath", problems)


def _json_path(value: str | None, path: str, problems: Problems) -> None:
    if not value:
        problems.required(path)
        return
    try:
        if not value.startswith("."):
            raise JsonPathError("must be a simple json path starting with .")
        json_path(value)
    except JsonPathError as error:
        problems.invalid(path, value, f"is an invalid path: {error}")


def _conversion(conversion: Mapping[str, Any], problems: Problems) -> None:
    strategy = conversion.get("strategy")
    problems.one_of("spec.conversion.strategy", strategy, ("None", "Webhook"), required=False)
    webhook = conversion.get("webhook")
    if strategy != "Webhook":
        if webhook:
            problems.forbidden("spec.conversion.webhook", "should not be set when strategy is not set to Webhook")
        return
    client = (webhook or {}).get("clientConfig")
    if not client:
        problems.required("spec.conversion.webhook.clientConfig", "required when strategy is set to Webhook")
    elif bool(client.get("url")) == bool(client.get("service")):
        problems.required("spec.conversion.webhook.clientConfig", "exactly one of url or service is required")
    elif client.get("url") and not client["url"].startswith("https://"):
        problems.invalid("spec.conversion.webhook.clientConfig.url", client["url"], "must use https")
    reviews = (webhook or {}).get("conversionReviewVersions") or []
    if not reviews:
        problems.required("spec.conversion.webhook.conversionReviewVersions")
    elif not set(reviews) & {"v1", "v1beta1"}:
        problems.invalid(
            "spec.conversion.webhook.conversionReviewVersions", reviews, "must include at least one of v1, v1beta1"
        )
