"""CEL validation of custom resources: ``x-kubernetes-validations`` anywhere in a schema.

Rules are compiled when a version is first validated, each for the type of the node it stands at (`self`, and for transition
rules `oldSelf`). The walk goes only where rules are. An old value is found along maps, properties and map-lists; under any
other list there is none. Rules of a part that did not change are not judged again (ratcheting), except transition rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from sampan.kube import cel
from sampan.kube.cel.types import optional_of
from sampan.kube.cel.values import NONE, Optional
from sampan.kube.objects import alike
from sampan.kube.status import FieldError
from sampan.kube.types.resource import Schema
from sampan.kube.types.structural import beside

VALIDATIONS = "x-kubernetes-validations"
MISSING: Any = object()
OBJECT_BUDGET = 10 * cel.BUDGET
"""Cost units of all rules of one object together."""

Check = Callable[[Any, Any, Any, str, "_Run"], None]
"""Judges (value, old value or MISSING, twin or MISSING, path)."""


class _Node(NamedTuple):
    """The rules of a schema node and of all below it."""

    check: Check
    transitions: bool
    """One of them looks at the old value."""


@dataclass
class _Run:
    """One validation: what was found, and what may still be spent."""

    problems: list[FieldError]
    budget: cel.Budget
    exhausted: bool = False


@dataclass(frozen=True)
class Rule:
    """One compiled rule at one node."""

    given: Mapping[str, Any]
    program: cel.Program
    message: cel.Program | None
    transition: bool
    optional_old: bool
    kind: str
    field: str
    """Suffix of the path that errors are reported at."""

    def judge(self, value: Any, old: Any, path: str, run: _Run) -> None:
        """Evaluate the rule once."""
        if run.exhausted:
            return
        if self.transition and old is MISSING and not self.optional_old:
            return
        bindings = {"self": value}
        if self.optional_old:
            bindings["oldSelf"] = NONE if old is MISSING else Optional(old)
        elif self.transition:
            bindings["oldSelf"] = old
        try:
            purse = cel.Budget(min(cel.BUDGET, run.budget.left))
            before = purse.left
            try:
                if self.program.evaluate(bindings, purse) is True:
                    return
            finally:
                run.budget.left -= before - max(purse.left, 0)
        except cel.BudgetError:
            run.exhausted = True
            self._report(
                path,
                "validation failed due to running out of cost budget, no further validation rules will be run",
                run,
            )
            return
        except cel.CelError as error:
            self._report(path, f"{error} evaluating rule: {self._default()}", run)
            return
        self._report(path, self._said(bindings) or self._default(), run)

    def _default(self) -> str:
        return (self.given.get("message") or "").strip() or f"failed rule: {self.given['rule'].strip()}"

    def _said(self, bindings: Mapping[str, Any]) -> str:
        """What ``messageExpression`` gives; empty when it fails or gives nothing usable."""
        if self.message is None:
            return ""
        try:
            text = self.message.evaluate(bindings)
        except cel.CelError:
            return ""
        return text.strip() if isinstance(text, str) and "\n" not in text and len(text) <= 5120 else ""

    def _report(self, path: str, detail: str, run: _Run) -> None:
        reason = self.given.get("reason") or "FieldValueInvalid"
        place = path + self.field
        place = place.lstrip(".") or "<nil>"
        if reason == "FieldValueForbidden":
            message = f"Forbidden: {detail}"
        elif reason == "FieldValueRequired":
            message = f"Required value: {detail}"
        elif reason == "FieldValueDuplicate":
            message = f'Duplicate value: "{self.kind}"'
        else:
            message = f'Invalid value: "{self.kind}": {detail}'
        run.problems.append(FieldError(place, reason, message))


def compile_rule(given: Mapping[str, Any], schema: Schema, root: bool) -> Rule:
    """Compile one rule for a schema node.

    Raises:
        cel.CompileError: the rule or its message does not fit the schema.
        ValueError: it does not give a boolean, or its message no string.
    """
    self_type = cel.of_schema(schema, root)
    optional_old = bool(given.get("optionalOldSelf"))
    variables = {"self": self_type, "oldSelf": optional_of(self_type) if optional_old else self_type}
    program = cel.compile(given["rule"], variables)
    if program.type.name not in ("bool", "dyn"):
        raise ValueError("cel expression must evaluate to a bool")
    message = cel.compile(given["messageExpression"], variables) if given.get("messageExpression") else None
    if message is not None and message.type.name not in ("string", "dyn"):
        raise ValueError("messageExpression must evaluate to a string")
    field = given.get("fieldPath") or ""
    return Rule(
        given,
        program,
        message,
        "oldSelf" in program.variables or (message is not None and "oldSelf" in message.variables),
        optional_old,
        schema.get("type") or "object",
        field if not field or field.startswith(("[", ".")) else f".{field}",
    )


def _of_node(schema: Schema, root: bool) -> _Node | None:
    """The check of a node and all below it; None when no rule is there."""
    rules = [compile_rule(given, schema, root) for given in schema.get(VALIDATIONS) or ()]
    properties = {
        name: below for name, field in (schema.get("properties") or {}).items() if (below := _of_node(field, False))
    }
    extra = schema.get("additionalProperties")
    others = _of_node(extra, False) if isinstance(extra, Mapping) else None
    items = schema.get("items")
    item = _of_node(items, False) if isinstance(items, Mapping) else None
    if not (rules or properties or others or item):
        return None
    keys: Sequence[str] = schema.get("x-kubernetes-list-map-keys") or ()
    by_keys = bool(schema.get("x-kubernetes-list-type") == "map" and keys)
    every = [*properties.values(), *(each for each in (others, item) if each is not None)]
    transitions = any(rule.transition for rule in rules) or any(each.transitions for each in every)

    def identity(entry: Any) -> tuple[Any, ...] | None:
        return tuple(entry.get(key) for key in keys) if isinstance(entry, dict) else None

    def check(value: Any, old: Any, twin: Any, path: str, run: _Run) -> None:
        if value is None:
            return
        same = old is not MISSING and alike(old, value)
        if same and not transitions:
            return
        if twin is not MISSING and old is MISSING and alike(twin, value):
            return
        for rule in rules:
            if not same or rule.transition:
                rule.judge(value, old, path, run)
        if isinstance(value, dict):
            before: Mapping[str, Any] = old if isinstance(old, dict) else {}
            known: Mapping[str, Any] = twin if isinstance(twin, dict) else {}
            for name, field in properties.items():
                if name in value:
                    given = value[name]
                    field.check(given, before.get(name, MISSING), known.get(name, MISSING), f"{path}.{name}", run)
            if others is not None:
                for name, entry in value.items():
                    if name not in (schema.get("properties") or {}):
                        vouched = known.get(name, MISSING)
                        others.check(entry, before.get(name, MISSING), vouched, f"{path}[{name}]", run)
        elif isinstance(value, list) and item is not None:
            if by_keys:
                olds, twins = (_by_identity(value, each, identity) for each in (old, twin))
            else:
                olds, twins = [MISSING] * len(value), beside(value, twin, MISSING)
            for index, entry in enumerate(value):
                item.check(entry, olds[index], twins[index], f"{path}[{index}]", run)

    return _Node(check, transitions)


def _by_identity(items: Sequence[Any], old: Any, identity: Callable[[Any], Any]) -> Sequence[Any]:
    """For each item of a map-list the old one with its keys."""
    if not isinstance(old, list) or not old:
        return [MISSING] * len(items)
    known = {identity(entry): entry for entry in old}
    return [known.get(identity(entry), MISSING) for entry in items]


class Rules:
    """All rules of one version's schema; compiled at first use."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._compiled = False
        self._node: _Node | None = None

    def validate(
        self, obj: Mapping[str, Any], old: Mapping[str, Any] | None = None, *, sure: bool = False
    ) -> list[FieldError]:
        """Problems of an object, against its old state where there is one; ``sure``: that one is known to have none."""
        if not self._compiled:
            self._node = _of_node(self._schema, True) if has_rules(self._schema) else None
            self._compiled = True
        if self._node is None:
            return []
        run = _Run([], cel.Budget(OBJECT_BUDGET))
        before = MISSING if old is None else old
        self._node.check(obj, before, before if sure else MISSING, "", run)
        return run.problems


def has_rules(schema: Schema) -> bool:
    """Whether there is a rule anywhere."""
    return bool(schema.get(VALIDATIONS)) or any(has_rules(below) for below in _below(schema))


def _below(schema: Schema) -> Iterator[Schema]:
    yield from (schema.get("properties") or {}).values()
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), Mapping):
            yield schema[key]


@lru_cache(maxsize=1)
def known_reasons() -> tuple[str, ...]:
    """What ``reason`` of a rule may be."""
    return ("FieldValueRequired", "FieldValueInvalid", "FieldValueForbidden", "FieldValueDuplicate")
