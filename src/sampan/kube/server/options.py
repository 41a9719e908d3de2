"""The options of each verb, read from query parameters (and DeleteOptions bodies) as the Go servers read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sampan.kube.objects import Object
from sampan.kube.status import ApiError, FieldError, bad_request, invalid

Query = Mapping[str, Sequence[str]]
FieldValidation = Literal["Ignore", "Warn", "Strict"]
Propagation = Literal["Background", "Foreground", "Orphan"]

MANAGER_LIMIT = 128
"""Characters of a field manager's name."""


def flag(query: Query, name: str) -> bool:
    """A boolean as Go's query decoding has it: absent, ``false`` and ``0`` are false, everything else is true."""
    values = query.get(name)
    return values is not None and values[0].lower() not in ("false", "0")


def text(query: Query, name: str) -> str:
    """The first value of a parameter, or an empty string."""
    values = query.get(name)
    return values[0] if values else ""


def number(query: Query, name: str) -> int | None:
    """An integer parameter, or None when it is absent or empty.

    Raises:
        ApiError: 400, not an integer.
    """
    value = text(query, name)
    if not value:
        return None
    try:
        return int(value)
    except ValueError:
        raise bad_request(f'strconv.ParseInt: parsing "{value}": invalid syntax') from None


@dataclass(slots=True)
class WriteOptions:
    """Options of create, update, patch and apply."""

    dry_run: bool = False
    manager: str = "unknown"
    """Field manager: the parameter, else the User-Agent up to its first slash."""
    manager_given: bool = False
    field_validation: FieldValidation = "Warn"
    validation_given: bool = False
    force: bool | None = None
    kind: str = "CreateOptions"

    def as_object(self) -> Object:
        """The options as admission shows them to webhooks."""
        options: Object = {"kind": self.kind, "apiVersion": "meta.k8s.io/v1"}
        if self.dry_run:
            options["dryRun"] = ["All"]
        if self.manager_given:
            options["fieldManager"] = self.manager
        if self.validation_given:
            options["fieldValidation"] = self.field_validation
        if self.force is not None:
            options["force"] = self.force
        return options


def default_manager(user_agent: str) -> str:
    """The field manager of a request that names none."""
    return (user_agent.partition("/")[0] or "unknown")[:MANAGER_LIMIT]


def _problems(kind: str, errors: Sequence[FieldError]) -> ApiError:
    return invalid("meta.k8s.io", kind, "", errors)


def _dry_run(values: Sequence[str], kind: str) -> bool:
    if any(value != "All" for value in values):
        shown = ", ".join(f'"{value}"' for value in values)
        error = FieldError("dryRun", "FieldValueNotSupported", f'Unsupported value: {shown}: supported values: "All"')
        raise _problems(kind, [error])
    return bool(values)


def write_options(query: Query, user_agent: str, kind: str) -> WriteOptions:
    """Options of a writing request; ``kind`` is ``CreateOptions``, ``UpdateOptions`` or ``PatchOptions``.

    Raises:
        ApiError: 422, a value is not supported.
    """
    if not query:
        return WriteOptions(manager=default_manager(user_agent), kind=kind)
    manager = text(query, "fieldManager")
    if len(manager) > MANAGER_LIMIT:
        message = f"Too long: may not be more than {MANAGER_LIMIT} bytes"
        raise _problems(kind, [FieldError("fieldManager", "FieldValueTooLong", message)])
    if not manager.isprintable():
        message = f'Invalid value: "{manager}": should only contain printable characters'
        raise _problems(kind, [FieldError("fieldManager", "FieldValueInvalid", message)])
    validation = text(query, "fieldValidation")
    if validation not in ("", "Ignore", "Warn", "Strict"):
        message = f'Unsupported value: "{validation}": supported values: "Ignore", "Strict", "Warn"'
        raise _problems(kind, [FieldError("fieldValidation", "FieldValueNotSupported", message)])
    return WriteOptions(
        dry_run=_dry_run(query.get("dryRun", ()), kind),
        manager=manager or default_manager(user_agent),
        manager_given=bool(manager),
        field_validation=validation or "Warn",  # type: ignore[arg-type]
        validation_given=bool(validation),
        force=flag(query, "force") if "force" in query else None,
        kind=kind,
    )


@dataclass(slots=True)
class DeleteOptions:
    """Options of delete and deletecollection."""

    grace_period: int | None = None
    """Seconds; None: the kind's own."""
    propagation: Propagation | None = None
    orphan_dependents: bool | None = None
    uid: str | None = None
    revision: str | None = None
    dry_run: bool = False

    def as_object(self) -> Object:
        """The options as admission shows them to webhooks."""
        options: Object = {"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"}
        if self.grace_period is not None:
            options["gracePeriodSeconds"] = self.grace_period
        if self.propagation is not None:
            options["propagationPolicy"] = self.propagation
        if self.uid or self.revision:
            options["preconditions"] = {
                **({"uid": self.uid} if self.uid else {}),
                **({"resourceVersion": self.revision} if self.revision else {}),
            }
        if self.dry_run:
            options["dryRun"] = ["All"]
        return options


def delete_options(query: Query, body: Mapping[str, Any] | None) -> DeleteOptions:
    """Options of a deletion; the body wins over the query.

    Raises:
        ApiError: 400 or 422, a value is malformed or not supported.
    """
    body = body or {}
    grace = body.get("gracePeriodSeconds", number(query, "gracePeriodSeconds"))
    if grace is not None and (not isinstance(grace, int) or isinstance(grace, bool)):
        raise bad_request("DeleteOptions.gracePeriodSeconds: expected an integer")
    policy: Any = body.get("propagationPolicy") or text(query, "propagationPolicy") or None
    if policy not in (None, "Background", "Foreground", "Orphan"):
        message = f'Unsupported value: "{policy}": supported values: "Background", "Foreground", "Orphan"'
        raise _problems("DeleteOptions", [FieldError("propagationPolicy", "FieldValueNotSupported", message)])
    orphan = body.get("orphanDependents")
    if orphan is None and "orphanDependents" in query:
        orphan = flag(query, "orphanDependents")
    if orphan is not None and policy is not None:
        message = "Invalid value: orphanDependents and deletionPropagation cannot be both set"
        raise _problems("DeleteOptions", [FieldError("propagationPolicy", "FieldValueInvalid", message)])
    preconditions = body.get("preconditions") or {}
    if not isinstance(preconditions, Mapping):
        raise bad_request("DeleteOptions.preconditions: expected an object")
    return DeleteOptions(
        grace_period=grace,
        propagation=policy,
        orphan_dependents=orphan,
        uid=preconditions.get("uid"),
        revision=preconditions.get("resourceVersion"),
        dry_run=_dry_run(body.get("dryRun") or query.get("dryRun", ()), "DeleteOptions"),
    )


@dataclass(slots=True)
class ListOptions:
    """Options of list, watch and deletecollection."""

    label_selector: str = ""
    field_selector: str = ""
    revision: str = ""
    revision_match: str = ""
    limit: int = 0
    continue_token: str = ""
    timeout: int | None = None
    """Seconds a watch lasts; None: the server's choice."""
    bookmarks: bool = False
    send_initial_events: bool | None = None
    extra: dict[str, str] = field(default_factory=dict)


def list_options(query: Query, *, watch: bool) -> ListOptions:
    """Options of a list or a watch, checked together as upstream checks them.

    Raises:
        ApiError: 400 or 422.
    """
    if not query:
        return ListOptions()
    options = ListOptions(
        label_selector=text(query, "labelSelector"),
        field_selector=text(query, "fieldSelector"),
        revision=text(query, "resourceVersion"),
        revision_match=text(query, "resourceVersionMatch"),
        limit=number(query, "limit") or 0,
        continue_token=text(query, "continue"),
        timeout=number(query, "timeoutSeconds"),
        bookmarks=flag(query, "allowWatchBookmarks"),
        send_initial_events=flag(query, "sendInitialEvents") if "sendInitialEvents" in query else None,
    )
    check_list_options(options, watch=watch)
    return options


def check_list_options(options: ListOptions, *, watch: bool) -> None:
    """Refuse contradictions among the options.

    Raises:
        ApiError: 400 or 422.
    """
    errors: list[FieldError] = []
    match = options.revision_match
    if options.revision and not (options.revision.isdecimal() and len(options.revision) <= 20):
        message = (
            f'Invalid value: "{options.revision}": strconv.ParseUint: parsing "{options.revision}": invalid syntax'
        )
        raise _problems("ListOptions", [FieldError("resourceVersion", "FieldValueInvalid", message)])
    if match not in ("", "Exact", "NotOlderThan"):
        message = f'Unsupported value: "{match}": supported values: "Exact", "NotOlderThan"'
        errors.append(FieldError("resourceVersionMatch", "FieldValueNotSupported", message))
    if watch:
        if options.send_initial_events is not None and match != "NotOlderThan":
            message = "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            errors.append(FieldError("resourceVersionMatch", "FieldValueForbidden", message))
        if match and options.send_initial_events is None:
            message = "Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
            errors.append(FieldError("resourceVersionMatch", "FieldValueForbidden", message))
        if options.send_initial_events and not options.bookmarks:
            message = "Forbidden: sendInitialEvents requires allowWatchBookmarks"
            errors.append(FieldError("sendInitialEvents", "FieldValueForbidden", message))
    else:
        if options.send_initial_events is not None:
            message = "Forbidden: sendInitialEvents is forbidden for list"
            errors.append(FieldError("sendInitialEvents", "FieldValueForbidden", message))
        if match and options.continue_token:
            message = "Forbidden: resourceVersionMatch is forbidden when continue is provided"
            errors.append(FieldError("resourceVersionMatch", "FieldValueForbidden", message))
        elif match and not options.revision:
            message = "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"
            errors.append(FieldError("resourceVersionMatch", "FieldValueForbidden", message))
        elif match == "Exact" and options.revision == "0":
            message = 'Forbidden: resourceVersionMatch "exact" is forbidden for resourceVersion "0"'
            errors.append(FieldError("resourceVersionMatch", "FieldValueForbidden", message))
        if options.continue_token and options.revision not in ("", "0"):
            raise bad_request("specifying resource version is not allowed when using continue")
    if errors:
        raise _problems("ListOptions", errors)
