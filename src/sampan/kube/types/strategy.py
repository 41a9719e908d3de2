"""The strategy all built-in kinds share: unknown fields against their schema, metadata rules, and table cells as columns.

A kind's own strategy (in ``groups``) derives from `BuiltinStrategy` and overrides what it adds: `default`, `check` for the
fields of a new or changed object, `check_update` for what may not change, `row` for its table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, ClassVar

from sampan.kube.objects import Kind, Object, dig
from sampan.kube.status import FieldError
from sampan.kube.types import names
from sampan.kube.types.duration import age
from sampan.kube.types.metadata import validate_metadata, validate_metadata_update
from sampan.kube.types.problems import Problems
from sampan.kube.types.resource import Column, Strategy
from sampan.kube.types.schema_check import conform, conform_change

NAME = Column("Name", format="name", description="Name must be unique within a namespace.")
AGE = Column("Age", description="How long ago the object was created.")
CREATED_AT = Column("Created At", description="When the object was created.")


def columns(*names_and_types: str, wide: Sequence[str] = (), age_at: int | None = None) -> tuple[Column, ...]:
    """Name, the given columns (``"Ready:integer"``; string without a type), Age (last, or at a position), the wide ones."""

    def column(text: str, priority: int = 0) -> Column:
        name, _, type_ = text.partition(":")
        return Column(name, type_ or "string", priority=priority)

    shown = [NAME, *map(column, names_and_types)]
    shown.insert(len(shown) if age_at is None else age_at, AGE)
    return (*shown, *(column(text, 1) for text in wide))


class BuiltinStrategy(Strategy):
    """Base of every built-in kind's strategy."""

    namespaced: ClassVar[bool] = True
    name_rule: ClassVar[staticmethod[[str], list[str]]] = staticmethod(names.dns_subdomain)
    definition: str = ""
    """OpenAPI definition name; set by `bind`."""
    kind: Kind = Kind("", "", "")
    """The kind this strategy serves; set by `bind`."""
    selectable_paths: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Selectable fields beyond name and namespace, with the path each reads."""

    def bind(self, definition: str, kind: Kind) -> None:
        """Tie the strategy to the kind that it serves, once, before it is used."""
        self.definition = definition
        self.kind = kind

    @cached_property
    def selectable(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"metadata.name", "metadata.namespace", *self.selectable_paths})

    def fields(self, obj: Object) -> Mapping[str, str]:
        metadata = obj["metadata"]
        values = {"metadata.name": metadata["name"], "metadata.namespace": metadata.get("namespace", "")}
        for label, path in self.selectable_paths.items():
            value = dig(obj, *path, default="")
            values[label] = ("true" if value else "false") if isinstance(value, bool) else str(value)
        return values

    def prune(self, obj: Object) -> list[str]:
        return conform(obj, self.definition, self.kind)

    def prune_change(self, obj: Object, old: Object) -> list[str]:
        return conform_change(obj, old, self.definition, self.kind)

    def prepare_create(self, obj: Object) -> None:
        if self.has_status:
            obj.pop("status", None)

    def prepare_update(self, new: Object, old: Object) -> None:
        if self.has_status:
            if "status" in old:
                new["status"] = old["status"]
            else:
                new.pop("status", None)

    def check(self, obj: Object, problems: Problems) -> None:
        """Report what is wrong with an object apart from its metadata."""

    def check_update(self, new: Object, old: Object, problems: Problems) -> None:
        """Report what may not change."""

    def validate(self, obj: Object) -> list[FieldError]:
        problems = Problems()
        validate_metadata(obj, self.namespaced, self.name_rule, problems)
        self.check(obj, problems)
        return problems

    def validate_update(self, new: Object, old: Object) -> list[FieldError]:
        problems = Problems()
        validate_metadata_update(new, old, problems)
        self.check_update(new, old, problems)
        return problems

    def validate_status_update(self, new: Object, old: Object) -> list[FieldError]:
        problems = Problems()
        validate_metadata_update(new, old, problems)
        return problems

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [obj["metadata"]["name"], age_of(obj, now)]


def age_of(obj: Object, now: datetime) -> str:
    """The Age cell."""
    return age(obj["metadata"].get("creationTimestamp"), now)
