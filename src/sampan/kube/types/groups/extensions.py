"""What extends the API: apiextensions.k8s.io/v1, apiregistration.k8s.io/v1, and the stored-only flowcontrol group."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sampan.kube.objects import Object, copy, dig
from sampan.kube.status import FieldError
from sampan.kube.types import names
from sampan.kube.types.groups import cells
from sampan.kube.types.groups.declare import declare, status
from sampan.kube.types.metadata import validate_metadata, validate_metadata_update
from sampan.kube.types.problems import Problems
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import CREATED_AT, NAME, BuiltinStrategy, columns


class CustomResourceDefinitionStrategy(BuiltinStrategy):
    """CustomResourceDefinitions."""

    columns = (NAME, CREATED_AT)
    namespaced = False
    has_generation = True

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        given = spec.setdefault("names", {})
        if kind := given.get("kind"):
            if not given.get("singular"):
                given["singular"] = kind.lower()
            if not given.get("listKind"):
                given["listKind"] = f"{kind}List"
        conversion = spec.setdefault("conversion", {})
        if not conversion.get("strategy"):
            conversion["strategy"] = "None"
        service = ((conversion.get("webhook") or {}).get("clientConfig") or {}).get("service")
        if service is not None:
            service.setdefault("port", 443)
        if spec.get("preserveUnknownFields") is False:
            del spec["preserveUnknownFields"]

    def prepare_create(self, obj: Object) -> None:
        stored = [one.get("name") or "" for one in obj["spec"].get("versions") or () if one.get("storage")]
        obj["status"] = {"storedVersions": stored[:1]}

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [obj["metadata"]["name"], cells.created(obj)]

    def prepare_update(self, new: Object, old: Object) -> None:
        from sampan.kube.types.custom import definition

        super().prepare_update(new, old)
        if new["spec"] != old["spec"]:
            new["status"] = copy(new.get("status") or {})
            definition.note_stored_version(new)

    # Imported where they are needed: most platforms start without looking at a definition.

    def check(self, obj: Object, problems: Problems) -> None:
        from sampan.kube.types.custom import definition

        definition.check(obj, problems)

    def check_update(self, new: Object, old: Object, problems: Problems) -> None:
        from sampan.kube.types.custom import definition

        definition.check_change(new, old, problems)

    def validate(self, obj: Object) -> list[FieldError]:
        problems = Problems()
        validate_metadata(obj, False, self.name_rule, problems, any_finalizer=True)
        self.check(obj, problems)
        return problems

    def validate_change(self, new: Object, old: Object) -> list[FieldError]:
        if new["spec"] != old["spec"]:
            return super().validate_change(new, old)
        problems = Problems()
        validate_metadata(new, False, self.name_rule, problems, any_finalizer=True)
        validate_metadata_update(new, old, problems)
        return problems

    def validate_status_update(self, new: Object, old: Object) -> list[FieldError]:
        from sampan.kube.types.custom import definition

        problems = Problems(super().validate_status_update(new, old))
        definition.check_status(new, problems)
        return problems


class APIServiceStrategy(BuiltinStrategy):
    """APIServices."""

    columns = columns("Service", "Available")
    namespaced = False
    name_rule = staticmethod(names.path_segment)

    def default(self, obj: Object) -> None:
        service = (obj.setdefault("spec", {})).get("service")
        if service is not None:
            service.setdefault("port", 443)

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {}

    def row(self, obj: Object, now: datetime) -> list[Any]:
        service = dig(obj, "spec", "service")
        available = cells.condition(obj, "Available")
        state = available.get("status") or "Unknown"
        if available and state != "True":
            state += f" ({available.get('reason')})"
        shown = f"{service.get('namespace')}/{service.get('name')}" if service else "Local"
        return [obj["metadata"]["name"], shown, state, cells.age(obj, now)]

    def check(self, obj: Object, problems: Problems) -> None:
        spec = obj.get("spec") or {}
        wanted = f"{spec.get('version') or ''}.{spec.get('group') or ''}"
        if obj["metadata"].get("name") != wanted:
            why = f'must be `spec.version+"."+spec.group`: {wanted!r}'
            problems.invalid("metadata.name", obj["metadata"].get("name") or "", why)
        for field, most in (("groupPriorityMinimum", 20000), ("versionPriority", 1000)):
            value = spec.get(field) or 0
            if not 0 < value <= most:
                problems.invalid(f"spec.{field}", value, f"must be positive and less than {most}")
        service = spec.get("service")
        if service is not None:
            for field in ("namespace", "name"):
                if not service.get(field):
                    problems.required(f"spec.service.{field}")
        if spec.get("insecureSkipTLSVerify") and spec.get("caBundle"):
            why = "may not be true if caBundle is specified"
            problems.invalid("spec.insecureSkipTLSVerify", True, why)


class FlowSchemaStrategy(BuiltinStrategy):
    """FlowSchemas: kept for tools that list them; this server has no request queues."""

    columns = columns("PriorityLevel", "MatchingPrecedence:integer", "DistinguisherMethod", "MissingPL", age_at=4)
    namespaced = False
    has_generation = True

    def default(self, obj: Object) -> None:
        obj.setdefault("spec", {}).setdefault("matchingPrecedence", 1000)

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec = obj.get("spec") or {}
        return [
            obj["metadata"]["name"],
            dig(spec, "priorityLevelConfiguration", "name", default=""),
            spec.get("matchingPrecedence") or 0,
            dig(spec, "distinguisherMethod", "type", default=cells.NONE),
            cells.age(obj, now),
            cells.condition(obj, "Dangling").get("status") or "?",
        ]


class PriorityLevelStrategy(BuiltinStrategy):
    """PriorityLevelConfigurations: kept like FlowSchemas."""

    columns = columns("Type", "NominalConcurrencyShares:integer", "Queues", "HandSize", "QueueLengthLimit")
    namespaced = False
    has_generation = True

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec = obj.get("spec") or {}
        limited = spec.get("limited") or spec.get("exempt") or {}
        queuing = dig(limited, "limitResponse", "queuing", default={})
        return [
            obj["metadata"]["name"],
            spec.get("type") or "",
            limited.get("nominalConcurrencyShares") or 0,
            *(str(queuing.get(field) or cells.NONE) for field in ("queues", "handSize", "queueLengthLimit")),
            cells.age(obj, now),
        ]


def types() -> list[ResourceType]:
    """The kinds of this module."""
    api = ("api-extensions",)
    flow_control = "flowcontrol.apiserver.k8s.io/v1"
    return [
        declare(
            "apiextensions.k8s.io/v1",
            "customresourcedefinitions",
            "CustomResourceDefinition",
            CustomResourceDefinitionStrategy(),
            short=("crd", "crds"),
            categories=api,
            subresources=(status("CustomResourceDefinition"),),
        ),
        declare(
            "apiregistration.k8s.io/v1",
            "apiservices",
            "APIService",
            APIServiceStrategy(),
            categories=api,
            subresources=(status("APIService"),),
        ),
        declare(flow_control, "flowschemas", "FlowSchema", FlowSchemaStrategy(), subresources=(status("FlowSchema"),)),
        declare(
            flow_control,
            "prioritylevelconfigurations",
            "PriorityLevelConfiguration",
            PriorityLevelStrategy(),
            subresources=(status("PriorityLevelConfiguration"),),
        ),
    ]
