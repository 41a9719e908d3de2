"""No object whose shape is right, however odd its content, may break a strategy: errors are reported, never raised."""

import random
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampan.kube.objects import copy
from sampan.kube.types import schemas
from sampan.kube.types.builtin import builtin_types
from sampan.kube.types.resource import ResourceType, Schema

NOW = datetime(2024, 1, 2, tzinfo=UTC)
TYPES = builtin_types()
TEXTS = [
    "",
    "a",
    "web",
    "Always",
    "None",
    "ClientIP",
    "RollingUpdate",
    "Recreate",
    "10.0.0.1",
    "a/b",
    "*",
    "50%",
    "-",
    "é",
    "x" * 70,
]


def value(source: random.Random, schema: Schema, depth: int) -> Any:
    """A random value of a schema."""
    reference = schema.get("$ref") or (schema.get("allOf") or [{}])[0].get("$ref") or ""
    if reference.endswith("Quantity"):
        return source.choice(["0", "1", "100m", "1Gi", "-1", "1e3"])
    schema = schemas.resolve(schema)
    kind = schema.get("type")
    if kind == "object":
        if "properties" in schema:
            chance = 0.7 if depth < 3 else 0.25
            return {
                name: value(source, child, depth + 1)
                for name, child in schema["properties"].items()
                if depth < 9 and source.random() < chance and name not in ("managedFields", "apiVersion", "kind")
            }
        if "additionalProperties" in schema:
            return {
                source.choice(TEXTS): value(source, schema["additionalProperties"], depth + 1)
                for _ in range(source.randrange(3))
            }
        return {"any": "thing"}
    if kind == "array":
        return [value(source, schema["items"], depth + 1) for _ in range(source.randrange(3))] if depth < 10 else []
    if kind == "integer":
        return source.choice([-1, 0, 1, 80, 70000])
    if kind == "boolean":
        return source.random() < 0.5
    if kind == "number":
        return 1.5
    if kind == "string":
        form = schema.get("format")
        if form == "int-or-string":
            return source.choice([0, 1, -1, "10%", "http", ""])
        if form == "date-time":
            return "2024-01-01T00:00:00Z"
        return "aGk=" if form == "byte" else source.choice(TEXTS)
    return {"any": ["thing"]}


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: str(kind.resource))
@given(seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_strategies_take_any_object_of_the_right_shape(kind: ResourceType, seed: int) -> None:
    # Seeds, not hypothesis' own draws: whole objects are too large for it to build and shrink.
    source, strategy = random.Random(seed), kind.strategy
    assert kind.schema is not None
    old = value(source, kind.schema, 0) | {"apiVersion": kind.resource.api_version, "kind": kind.kind}
    old.setdefault("metadata", {}).setdefault("name", "x")
    assert strategy.prune(old) == []
    strategy.default(old)
    assert strategy.prune(old) == [], "defaults are known fields"
    other = copy(value(source, kind.schema, 0))
    mixed = copy(old) | {key: other[key] for key in other if source.random() < 0.5} | {"unknown": 1}
    part, whole = copy(mixed), copy(mixed)
    assert strategy.prune_change(part, copy(old)) == strategy.prune(whole)
    strategy.default(part)
    strategy.default(whole)
    assert part == whole, "what did not change need not be looked at again"
    strategy.prepare_create(old)
    strategy.validate(old)
    new = copy(value(source, kind.schema, 0)) | {"apiVersion": kind.resource.api_version, "kind": kind.kind}
    new.setdefault("metadata", {}).setdefault("name", "x")
    strategy.default(new)
    strategy.prepare_update(new, old)
    strategy.validate(new)
    strategy.validate_update(new, old)
    strategy.validate_status_update(new, old)
    assert len(strategy.row(new, NOW)) == len(strategy.columns)
    strategy.row_conditions(new)
    assert all(isinstance(warning, str) for warning in strategy.warnings(new))
    assert all(isinstance(field, str) for field in strategy.fields(new).values())
    assert strategy.deletion_grace(new, None) >= 0
    for convert in (kind.from_storage, kind.to_storage):
        if convert is not None:
            convert(copy(new))
