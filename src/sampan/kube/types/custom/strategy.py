"""The behaviour of a custom resource in one of its versions, all of it from the definition.

Everything costly (validators, rules, columns) is made at first use: a platform installs dozens of definitions at start and
touches few of them.

Judging a whole object is the larger part of what a write costs, and most writes change a leaf of it. What did not change is
let through as upstream does (ratcheting); beyond that the strategy remembers which stored revisions passed every check of this
very schema, and then only judges what differs from them, also inside lists that upstream judges anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from sampan.kube.objects import Kind, Object
from sampan.kube.status import FieldError
from sampan.kube.types import names
from sampan.kube.types.custom import columns
from sampan.kube.types.custom.rules import Rules
from sampan.kube.types.metadata import validate_metadata, validate_metadata_update
from sampan.kube.types.problems import Problems
from sampan.kube.types.resource import Column, Schema, Strategy
from sampan.kube.types.structural import Defaulter, compile_defaults, prune
from sampan.kube.types.structural_validation import MISSING, Validator, compile_schema

VETTED = 10_000
"""Objects remembered as having passed."""
_DOUBTFUL = ""


class CustomStrategy(Strategy):
    """Pruning, defaulting, validation and printing of one version of a definition."""

    has_generation = True
    unconditional_update = False

    def __init__(self, definition: Object, version: Mapping[str, Any]) -> None:
        spec = definition["spec"]
        self._version = version
        self._namespaced = spec.get("scope") == "Namespaced"
        self._kind = Kind(spec["group"], version["name"], spec["names"]["kind"])
        self._schema: Schema = (version.get("schema") or {}).get("openAPIV3Schema") or {
            "type": "object",
            "x-kubernetes-preserve-unknown-fields": True,
        }
        self._deprecation = ""
        if version.get("deprecated"):
            self._deprecation = (
                version.get("deprecationWarning") or f"{self._kind.api_version} {self._kind.kind} is deprecated"
            )
        self._rules = Rules(self._schema)
        self._vetted: dict[str, str] = {}
        """By uid the revision that passed every check; `_DOUBTFUL`: the object does not pass them all, it was let through."""
        self.has_status = "status" in (version.get("subresources") or {})
        self._selectable = {
            field["jsonPath"].lstrip("."): field["jsonPath"] for field in version.get("selectableFields") or ()
        }
        self.selectable = frozenset({"metadata.name", "metadata.namespace", *self._selectable})

    @cached_property
    def _validator(self) -> Validator:
        return compile_schema(self._schema)

    @cached_property
    def _defaulter(self) -> Defaulter:
        return compile_defaults(self._schema)

    @cached_property
    def _columns(self) -> Sequence[Mapping[str, Any]]:
        return self._version.get("additionalPrinterColumns") or columns.AGE_ONLY

    @cached_property
    def columns(self) -> Sequence[Column]:  # type: ignore[override]
        return columns.printed(self._columns)

    # -- in

    def prune(self, obj: Object) -> list[str]:
        return prune(obj, self._schema, self._kind)

    def default(self, obj: Object) -> None:
        self._defaulter(obj, None)

    def prune_change(self, obj: Object, old: Object) -> list[str]:
        return prune(obj, self._schema, self._kind, old)

    def default_change(self, obj: Object, old: Object) -> None:
        self._defaulter(obj, old)

    def prepare_create(self, obj: Object) -> None:
        if self.has_status:
            obj.pop("status", None)
            self.default(obj)  # the definition may say what a status begins with

    def prepare_update(self, new: Object, old: Object) -> None:
        if self.has_status:
            if "status" in old:
                new["status"] = old["status"]
            else:
                new.pop("status", None)

    # -- judged

    def validate(self, obj: Object) -> list[FieldError]:
        problems = self._metadata(obj)
        self._judge(obj, None, problems)
        return problems

    def validate_change(self, new: Object, old: Object) -> list[FieldError]:
        """An object that replaces another: what did not change is not judged again."""
        problems = self._metadata(new)
        validate_metadata_update(new, old, problems)
        self._judge(new, old, problems)
        return problems

    def validate_update(self, new: Object, old: Object) -> list[FieldError]:
        problems = Problems()
        validate_metadata_update(new, old, problems)
        return problems

    def validate_status_update(self, new: Object, old: Object) -> list[FieldError]:
        problems = Problems()
        validate_metadata_update(new, old, problems)
        self._judge(new, old, problems)
        return problems

    def _metadata(self, obj: Object) -> Problems:
        problems = Problems()
        validate_metadata(obj, self._namespaced, names.dns_subdomain, problems, any_finalizer=True)
        return problems

    def _judge(self, obj: Object, old: Object | None, problems: Problems) -> None:
        problems.extend(self._judged(obj, old, old is not None and self._passes(old)))

    def _passes(self, stored: Object) -> bool:
        """Whether a stored object is known to pass every check."""
        metadata = stored["metadata"]
        revision = metadata.get("resourceVersion")
        return revision is not None and self._vetted.get(metadata["uid"]) == revision

    def _judged(self, obj: Object, old: Object | None, sure: bool) -> list[FieldError]:
        """The schema first; rules only see objects that fit it."""
        found = Problems()
        self._validator(obj, "", found, MISSING if old is None else old, sure)
        if not any(problem.reason == "FieldValueTypeInvalid" for problem in found):
            found.extend(self._rules.validate(obj, old, sure=sure))
        return found

    def stored(self, obj: Object, old: Object | None, revision: int) -> None:
        uid = obj["metadata"]["uid"]
        if self._vetted.get(uid) == _DOUBTFUL:
            return
        # Judged on top of a state that this process has not judged, what did not change was left out.
        passes = old is None or self._passes(old) or not self._judged(obj, None, False)
        self._vetted.pop(uid, None)
        self._vetted[uid] = str(revision) if passes else _DOUBTFUL
        if len(self._vetted) > VETTED:
            del self._vetted[next(iter(self._vetted))]

    # -- out

    def fields(self, obj: Object) -> Mapping[str, str]:
        metadata = obj["metadata"]
        values = {"metadata.name": metadata["name"], "metadata.namespace": metadata.get("namespace") or ""}
        for label, path in self._selectable.items():
            found = columns.find(obj, path)
            value = found[0] if found else ""
            values[label] = ("true" if value else "false") if isinstance(value, bool) else str(value)
        return values

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [obj["metadata"]["name"], *(columns.cell(column, obj, now) for column in self._columns)]

    def warnings(self, obj: Object) -> list[str]:
        return [self._deprecation] if self._deprecation else []
