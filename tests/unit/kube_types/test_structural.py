"""Custom resources: pruning, defaulting and validation by structural schema, with the real server's texts."""

from typing import Any

import pytest

from sampan.kube.objects import Kind, Object, copy
from sampan.kube.status import ApiError
from sampan.kube.types.resource import Schema
from sampan.kube.types.structural import apply_defaults, prune
from sampan.kube.types.structural_validation import validate

KIND = Kind("example.com", "v1", "Widget")
STRING = {"type": "string"}


def of(**properties: Schema) -> Object:
    return {"type": "object", "properties": properties}


SCHEMA = of(
    spec=of(
        name=STRING,
        open={"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": {"known": of(a=STRING)}},
        labels={"type": "object", "additionalProperties": STRING},
        items={"type": "array", "items": of(a=STRING)},
        template={"type": "object", "x-kubernetes-embedded-resource": True, "properties": {"spec": of(a=STRING)}},
    )
)


def widget(**spec: Any) -> Object:
    return {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": spec}


@pytest.mark.parametrize(
    ("spec", "kept", "dropped"),
    [
        ({"name": "a", "x": 1}, {"name": "a"}, ["spec.x"]),
        ({"open": {"x": 1, "known": {"a": "b", "x": 1}}}, {"open": {"x": 1, "known": {"a": "b"}}}, ["spec.open.known.x"]),
        ({"labels": {"a": "b"}}, {"labels": {"a": "b"}}, []),
        ({"items": [{"a": "b", "x": 1}]}, {"items": [{"a": "b"}]}, ["spec.items[0].x"]),
        (
            {"template": {"kind": "A", "apiVersion": "v1", "metadata": {"name": "n", "x": 1}, "spec": {"x": 1}, "y": 1}},
            {"template": {"kind": "A", "apiVersion": "v1", "metadata": {"name": "n"}, "spec": {}}},
            ["spec.template.metadata.x", "spec.template.spec.x", "spec.template.y"],
        ),
        ({"name": {"wrong": "type"}}, {"name": {}}, ["spec.name.wrong"]),
    ],
)  # fmt: skip
def test_pruning(spec: Object, kept: Object, dropped: list[str]) -> None:
    obj = widget(**copy(spec))
    assert prune(obj, SCHEMA, KIND) == dropped
    assert obj == widget(**kept)


def test_metadata_is_decoded_strictly() -> None:
    obj = widget()
    obj["metadata"]["labels"] = {"a": 1}
    with pytest.raises(
        ApiError, match=r"cannot unmarshal number into Go struct field ObjectMeta\.labels of type string"
    ):
        prune(obj, SCHEMA, KIND)


def test_defaults() -> None:
    schema = of(
        spec=of(
            size={"type": "integer", "default": 3},
            mode={"type": "string", "nullable": True, "default": "x"},
            note=STRING,
            nested={**of(a={"type": "string", "default": "b"}), "default": {}},
            absent=of(a={"type": "string", "default": "b"}),
            many={"type": "array", "items": of(a={"type": "integer", "default": 1})},
            each={"type": "object", "additionalProperties": of(a={"type": "integer", "default": 1})},
        )
    )
    value: Object = {"spec": {"size": None, "mode": None, "note": None, "many": [{}], "each": {"k": {}}}}
    apply_defaults(value, schema)
    assert value == {
        "spec": {"size": 3, "mode": None, "nested": {"a": "b"}, "many": [{"a": 1}], "each": {"k": {"a": 1}}}
    }
    assert "default" in schema["properties"]["spec"]["properties"]["nested"]
    assert schema["properties"]["spec"]["properties"]["nested"]["default"] == {}


@pytest.mark.parametrize(
    ("schema", "value", "message"),
    [
        ({"type": "integer", "minimum": 0}, -1, "spec.x: Invalid value: -1: spec.x in body should be greater than or equal to 0"),
        ({"type": "integer", "minimum": 0, "exclusiveMinimum": True}, 0, "spec.x: Invalid value: 0: spec.x in body should be greater than 0"),
        ({"type": "number", "maximum": 1.5}, 2, "spec.x: Invalid value: 2: spec.x in body should be less than or equal to 1.5"),
        ({"type": "integer", "multipleOf": 3}, 4, "spec.x: Invalid value: 4: spec.x in body should be a multiple of 3"),
        ({"type": "integer"}, "a", 'spec.x: Invalid value: "string": spec.x in body must be of type integer: "string"'),
        ({"type": "string"}, None, 'spec.x: Invalid value: "null": spec.x in body must be of type string: "null"'),
        ({"type": "string"}, 1, 'spec.x: Invalid value: "integer": spec.x in body must be of type string: "integer"'),
        ({"type": "string", "enum": ["a", "b"]}, "c", 'spec.x: Unsupported value: "c": supported values: "a", "b"'),
        ({"type": "string", "pattern": "^a+$"}, "b", 'spec.x: Invalid value: "b": spec.x in body should match \'^a+$\''),
        ({"type": "string", "minLength": 2}, "b", 'spec.x: Invalid value: "b": spec.x in body should be at least 2 chars long'),
        ({"type": "string", "maxLength": 2}, "bcd", "spec.x: Too long: may not be more than 2 bytes"),
        ({"type": "string", "format": "date-time"}, "b", 'spec.x: Invalid value: "b": spec.x in body must be of type date-time: "b"'),
        ({"type": "array", "maxItems": 1, "items": STRING}, ["a", "b"], "spec.x: Too many: 2: must have at most 1 items"),
        ({"type": "array", "minItems": 1, "items": STRING}, [], "spec.x: Invalid value: []interface {}{}: spec.x in body should have at least 1 items"),
        ({"type": "array", "items": STRING, "x-kubernetes-list-type": "set"}, ["a", "a"], 'spec.x[1]: Duplicate value: "a"'),
        (
            {"type": "array", "items": of(k=STRING), "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"]},
            [{"k": "a"}, {"k": "a"}],
            'spec.x[1]: Duplicate value: map[string]interface {}{"k":"a"}',
        ),
        ({**of(a=STRING), "required": ["a"]}, {}, "spec.x.a: Required value"),
        ({"type": "object", "maxProperties": 1, "additionalProperties": STRING}, {"a": "", "b": ""}, "spec.x: Too many: 2: must have at most 1 items"),
        ({"type": "object", "additionalProperties": STRING}, {"a": 1}, 'spec.x.a: Invalid value: "integer": spec.x.a in body must be of type string: "integer"'),
        ({"type": "string", "not": {"enum": ["a"]}}, "a", 'spec.x: Invalid value: "a": spec.x in body must not validate the schema (not)'),
        (
            {"type": "object", "properties": {}, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
            {},
            "spec.x: Invalid value: map[string]interface {}{}: spec.x in body must validate one and only one schema (oneOf). Found none valid",
        ),
        ({"x-kubernetes-int-or-string": True}, True, 'spec.x: Invalid value: "boolean": spec.x in body must be of type integer,string: "boolean"'),
    ],
)  # fmt: skip
def test_validation_texts(schema: Schema, value: Any, message: str) -> None:
    errors = validate({"spec": {"x": value}}, of(spec=of(x=schema)))
    assert [f"{error.field}: {error.message}" for error in errors][:1] == [message]


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "integer"}, 1.0),
        ({"type": "string", "nullable": True}, None),
        ({"x-kubernetes-int-or-string": True}, "50%"),
        ({"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}, 5),
        ({"x-kubernetes-preserve-unknown-fields": True}, {"any": ["thing"]}),
        ({"type": "string", "format": "date-time"}, "2024-01-02T03:04:05+02:00"),
        ({"type": "string", "format": "duration"}, "1h30m"),
        ({"type": "string", "format": "ipv4"}, "10.0.0.1"),
        ({"type": "string", "format": "cidr"}, "10.0.0.0/8"),
        ({"type": "string", "format": "uuid"}, "6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
        ({"type": "string", "format": "uri"}, "https://example.com/x"),
        ({"type": "string", "format": "byte"}, "aGk="),
        ({"type": "string", "format": "no-such-format"}, "x"),
    ],
)
def test_valid_values(schema: Schema, value: Any) -> None:
    assert validate({"x": value}, of(x=schema)) == []


def test_what_did_not_change_is_not_judged_again() -> None:
    schema = of(
        spec=of(
            a={"type": "string", "maxLength": 1},
            b={
                "type": "array",
                "items": of(k=STRING, v={"type": "integer", "maximum": 1}),
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["k"],
            },
        )
    )
    old = {"spec": {"a": "long", "b": [{"k": "x", "v": 5}]}}
    new = {"spec": {"a": "long", "b": [{"k": "y", "v": 7}, {"k": "x", "v": 5}]}}
    assert [error.field for error in validate(new, schema, old)] == ["spec.b[0].v"]
