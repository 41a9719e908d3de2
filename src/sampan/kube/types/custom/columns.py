"""Printer columns: a JSONPath a column, and the cell it gives.

The paths are kubectl's simple JSONPath: fields (``.spec.a``, ``['a']``, ``.a\\.b``), indexes and slices, ``[*]``, and filters
``[?(@.type=="Ready")]`` that compare with a literal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

import msgspec

from sampan.kernel.errors import SampanError
from sampan.kube.types.duration import human, parse_time
from sampan.kube.types.resource import Column

Step = Callable[[Any], Iterator[Any]]
"""Gives the values a step leads to from one value."""

_STEP = re.compile(
    r"""
    \.(?P<field>(?:\\.|[^.\[\]\\'"\s])+)
  | \[\s*(?P<quote>['"])(?P<quoted>(?:\\.|(?!(?P=quote)).)*)(?P=quote)\s*\]
  | \[\s*(?P<index>-?\d+)\s*\]
  | \[\s*(?P<start>-?\d*)\s*:\s*(?P<end>-?\d*)\s*\]
  | (?P<all>\[\s*\*\s*\]|\.\*)
  | \[\s*\?\(\s*@(?P<path>(?:\.[^\s=<>!)]+|\[[^\]]+\])*)\s*(?:(?P<op>==|!=|<=|>=|<|>)\s*(?P<value>'[^']*'|"[^"]*"|[^\s)]+))?\s*\)\s*\]
    """,
    re.VERBOSE,
)


class JsonPathError(SampanError):
    """A text that is no simple JSONPath."""


def _field(name: str) -> Step:
    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, dict) and name in value:
            yield value[name]

    return step


def _slice(start: int | None, end: int | None) -> Step:
    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, list):
            yield from value[start:end]

    return step


def _index(index: int) -> Step:
    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, list) and -len(value) <= index < len(value):
            yield value[index]

    return step


def _every(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": lambda a, b: bool(a == b),
    "!=": lambda a, b: bool(a != b),
    "<": lambda a, b: bool(a < b),
    "<=": lambda a, b: bool(a <= b),
    ">": lambda a, b: bool(a > b),
    ">=": lambda a, b: bool(a >= b),
}


def _literal(text: str) -> Any:
    if text[0] in "'\"":
        return text[1:-1]
    try:
        return msgspec.json.decode(text.encode())
    except msgspec.DecodeError:
        return text


def _filter(path: str, op: str | None, text: str | None) -> Step:
    inner = _steps(path)
    wanted = _literal(text) if text else None
    compare = _COMPARE[op] if op else None

    def keeps(item: Any) -> bool:
        for found in _walk(item, inner):
            if compare is None:
                return True
            try:
                if compare(found, wanted):
                    return True
            except TypeError:
                continue
        return False

    def step(value: Any) -> Iterator[Any]:
        yield from (item for item in _every(value) if keeps(item))

    return step


def _steps(path: str) -> tuple[Step, ...]:
    steps: list[Step] = []
    at = 0
    while at < len(path):
        match = _STEP.match(path, at)
        if match is None:
            raise JsonPathError(f"unrecognized part of a JSON path: {path[at:]!r}")
        at = match.end()
        if match["field"] is not None:
            steps.append(_every if match["field"] == "*" else _field(re.sub(r"\\(.)", r"\1", match["field"])))
        elif match["quoted"] is not None:
            steps.append(_field(re.sub(r"\\(.)", r"\1", match["quoted"])))
        elif match["index"] is not None:
            steps.append(_index(int(match["index"])))
        elif match["start"] is not None:
            steps.append(
                _slice(int(match["start"]) if match["start"] else None, int(match["end"]) if match["end"] else None)
            )
        elif match["path"] is not None:
            steps.append(_filter(match["path"], match["op"], match["value"]))
        else:
            steps.append(_every)
    return tuple(steps)


def _walk(value: Any, steps: Iterable[Step]) -> list[Any]:
    found = [value]
    for step in steps:
        found = [item for one in found for item in step(one)]
    return found


@lru_cache(maxsize=4096)
def json_path(text: str) -> tuple[Step, ...]:
    """The steps of a path such as ``.spec.replicas``.

    Raises:
        JsonPathError: it is none.
    """
    text = text.strip()
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    return _steps(text.removeprefix("$"))


def find(obj: Any, path: str) -> list[Any]:
    """All values a path leads to."""
    return _walk(obj, json_path(path))


def cell(column: Mapping[str, Any], obj: Any, now: datetime) -> Any:
    """The cell of a printer column; None where the path leads nowhere."""
    found = find(obj, column["jsonPath"])
    if not found or found[0] is None:
        return None
    value = found[0]
    match column["type"]:
        case "integer":
            return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
        case "number":
            return value if isinstance(value, int | float) and not isinstance(value, bool) else None
        case "boolean":
            return value if isinstance(value, bool) else None
        case "date":
            try:
                return human(now - parse_time(value))
            except (ValueError, TypeError):
                return "<invalid>"
        case "string" if isinstance(value, str):
            return value
        case "string":
            return msgspec.json.encode(value).decode()
        case _:
            return None


def printed(columns: Iterable[Mapping[str, Any]]) -> list[Column]:
    """Table columns of a version: Name, then its printer columns."""
    given = [
        Column(
            one["name"],
            one["type"],
            one.get("description") or f"Custom resource definition column (in JSONPath format): {one['jsonPath']}",
            one.get("format") or "",
            one.get("priority") or 0,
        )
        for one in columns
    ]
    return [Column("Name", format="name", description="Name must be unique within a namespace."), *given]


AGE_ONLY = (
    {
        "name": "Age",
        "type": "date",
        "jsonPath": ".metadata.creationTimestamp",
        "description": "How long ago the object was created.",
    },
)
"""Printer columns of a version that declares none."""
