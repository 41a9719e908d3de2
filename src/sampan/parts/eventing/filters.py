"""Trigger filters: the dialects of ``spec.filters`` and the older ``spec.filter.attributes``, compiled to one predicate. No I/O.

Every dialect looks at context attributes in their string form, never at the data. A filter that is there but empty matches
everything; an attribute that is not there matches nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sampan.parts.eventing import cesql
from sampan.parts.eventing.cloudevents import Event
from sampan.parts.eventing.errors import ExpressionError

Predicate = Callable[[Event], bool]

DIALECTS = ("exact", "prefix", "suffix", "all", "any", "not", "cesql")
DEPTH_LIMIT = 50
_NAME = re.compile(r"[a-z][a-z0-9]*")


def everything(event: Event) -> bool:
    """The filter of a Trigger without filters."""
    return True


def of_trigger(spec: Mapping[str, Any]) -> Predicate:
    """The predicate of a Trigger's spec: ``filters`` where there are any, else ``filter``.

    Raises:
        ExpressionError: a filter is invalid.
    """
    if filters := spec.get("filters"):
        return all_of([compile_filter(one) for one in filters])
    return by_attributes((spec.get("filter") or {}).get("attributes") or {})


def by_attributes(wanted: Mapping[str, str]) -> Predicate:
    """The older filter: every attribute equal, "" standing for any value."""
    if not wanted:
        return everything
    pairs = [(_checked(name), value) for name, value in wanted.items()]

    def matches(event: Event) -> bool:
        for name, value in pairs:
            found = event.text(name)
            if found is None or (value and found != value):
                return False
        return True

    return matches


def compile_filter(given: Mapping[str, Any], depth: int = 0) -> Predicate:
    """The predicate of one element of ``filters``.

    Raises:
        ExpressionError: not exactly one known dialect, a bad attribute name, an empty value, or CESQL that does not parse.
    """
    if depth > DEPTH_LIMIT:
        raise ExpressionError(f"filters are nested more than {DEPTH_LIMIT} deep")
    present = {name: value for name, value in given.items() if value is not None}
    if len(present) != 1:
        raise ExpressionError(f"a filter has exactly one dialect of {', '.join(DIALECTS)}; found {len(present)}")
    ((dialect, value),) = present.items()
    match dialect:
        case "exact":
            return _attributes(value, lambda found, wanted: found == wanted)
        case "prefix":
            return _attributes(value, lambda found, wanted: found.startswith(wanted))
        case "suffix":
            return _attributes(value, lambda found, wanted: found.endswith(wanted))
        case "all":
            return all_of([compile_filter(one, depth + 1) for one in _filled(dialect, value)])
        case "any":
            inner = [compile_filter(one, depth + 1) for one in _filled(dialect, value)]
            return lambda event: any(one(event) for one in inner)
        case "not":
            denied = compile_filter(value, depth + 1)
            return lambda event: not denied(event)
        case "cesql":
            evaluate = cesql.compile_expression(value)
            return lambda event: cesql.matches(evaluate, event.attributes)
    raise ExpressionError(f"unknown filter dialect {dialect!r}; there are {', '.join(DIALECTS)}")


def all_of(predicates: Sequence[Predicate]) -> Predicate:
    """Every one holds."""
    if len(predicates) == 1:
        return predicates[0]
    return lambda event: all(one(event) for one in predicates)


def _filled(dialect: str, value: Sequence[Any]) -> Sequence[Any]:
    if not value:
        raise ExpressionError(f"the filter {dialect} is empty")
    return value


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ExpressionError(f"attribute name {name!r} must start with a letter and have only a-z and 0-9")
    return name


def _attributes(wanted: Mapping[str, str], compare: Callable[[str, str], bool]) -> Predicate:
    if not wanted:
        raise ExpressionError("the filter names no attribute")
    pairs = [(_checked(name), value) for name, value in wanted.items()]
    for name, value in pairs:
        if not value:
            raise ExpressionError(f"the value for attribute {name} is empty")

    def matches(event: Event) -> bool:
        for name, value in pairs:
            found = event.text(name)
            if found is None or not compare(found, value):
                return False
        return True

    return matches
