"""How custom resources behave: pruned, defaulted, validated, ratcheted, printed, as the definition says."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from sampan.kube.objects import Kind, Resource, copy
from sampan.kube.types.custom import openapi_definitions, resource_types
from sampan.kube.types.custom.columns import JsonPathError, cell, find, json_path
from sampan.kube.types.custom.served import version_rank
from tests.unit.kube_custom.widgets import definition, widget

[TYPE] = resource_types(definition())
STRATEGY = TYPE.strategy
NOW = datetime(2024, 1, 1, 0, 5, tzinfo=UTC)


def messages(problems: Any) -> list[str]:
    return [f"{problem.field}: {problem.message}" for problem in problems]


def spec_of(obj: dict[str, Any]) -> dict[str, Any]:
    """The schema of ``spec`` in the first version."""
    return obj["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]  # type: ignore[no-any-return]


def test_the_type_follows_the_definition() -> None:
    assert (TYPE.resource, TYPE.kind, TYPE.singular) == (Resource("example.com", "v1", "widgets"), "Widget", "widget")
    assert (TYPE.short_names, TYPE.categories, TYPE.list_kind) == (("wd",), ("all",), "WidgetList")
    assert TYPE.definition == "com.example.v1.Widget"
    assert TYPE.subresources["status"].kind == Kind("example.com", "v1", "Widget")
    assert TYPE.subresources["scale"].kind == Kind("autoscaling", "v1", "Scale")
    assert TYPE.scale.selector == ("status", "selector")
    assert (TYPE.custom, TYPE.namespaced, TYPE.schema_revision, TYPE.owner) == (True, True, 7, "widgets.example.com")
    assert STRATEGY.has_status
    assert STRATEGY.has_generation
    assert not STRATEGY.unconditional_update


def test_unserved_versions_are_not_served_and_the_others_come_in_order_of_preference() -> None:
    obj = copy(definition())
    first = obj["spec"]["versions"][0]
    for name, served in (("v1beta1", True), ("v2", True), ("v3", False)):
        obj["spec"]["versions"].append({**first, "name": name, "storage": False, "served": served})
    assert [kind.resource.version for kind in resource_types(obj)] == ["v2", "v1", "v1beta1"]
    assert {kind.stored_as.version for kind in resource_types(obj)} == {"v1"}
    ranked = sorted(["v1alpha1", "foo", "v10", "v1", "v1beta2", "v1beta10", "v2"], key=version_rank)
    assert ranked == ["v10", "v2", "v1", "v1beta10", "v1beta2", "v1alpha1", "foo"]


def test_what_is_stored_has_the_shape_of_the_storage_version() -> None:
    obj = copy(definition())
    loose = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    obj["spec"]["versions"].append(
        {"name": "v2", "served": True, "storage": False, "schema": {"openAPIV3Schema": loose}}
    )
    newer = resource_types(obj)[0]
    assert newer.to_storage is not None
    given = {**widget(frob=1), "apiVersion": "example.com/v2"}
    assert newer.to_storage(given)["spec"] == {"size": 1, "max": 10}
    assert newer.to_storage(given)["apiVersion"] == "example.com/v1"
    assert given["spec"] == {"size": 1, "frob": 1}


def test_unknown_fields_are_dropped_and_named() -> None:
    template = {"apiVersion": "v1", "kind": "P", "metadata": {"name": "x"}, "z": 1}
    obj = widget(frob=1, any={"x": {"y": 1}, "known": {"a": "1", "b": 2}}, template=template)
    obj["extra"] = 1
    assert sorted(STRATEGY.prune(obj)) == ["extra", "spec.any.known.b", "spec.frob"]
    assert obj["spec"]["any"] == {"x": {"y": 1}, "known": {"a": "1"}}
    assert obj["spec"]["template"]["z"] == 1


def test_defaults_fill_what_is_missing_or_null() -> None:
    obj = widget(max=None, note=None)
    STRATEGY.default(obj)
    assert obj["spec"] == {"size": 1, "max": 10, "note": None}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, []),
        ({"size": -1}, ["spec.size: Invalid value: -1: spec.size in body should be greater than or equal to 0"]),
        ({"size": "x"}, ['spec.size: Invalid value: "string": spec.size in body must be of type integer: "string"']),
        ({"color": "green"}, ['spec.color: Unsupported value: "green": supported values: "red", "blue"']),
        ({"size": 11, "max": 10}, ['spec.size: Invalid value: "object": size may not exceed max']),
        ({"ports": [{"port": 1}, {"port": 1}]}, ['spec.ports[1]: Duplicate value: map[string]interface {}{"port":1}']),
    ],
)
def test_creation_is_validated(spec: dict[str, Any], expected: list[str]) -> None:
    obj = widget(**spec)
    STRATEGY.default(obj)
    assert messages(STRATEGY.validate(obj)) == expected


def test_transition_rules_compare_with_the_old_object() -> None:
    old = widget(color="red", ports=[{"port": 1, "count": 5}, {"port": 2, "count": 5}])
    STRATEGY.default(old)
    new = copy(old)
    new["spec"]["color"] = "blue"
    new["spec"]["ports"] = [{"port": 2, "count": 4}, {"port": 3, "count": 1}]
    assert messages(STRATEGY.validate_change(new, old)) == [
        'spec.color: Invalid value: "string": color is immutable',
        "spec.ports[0].count: Forbidden: 4 is below 5",
    ]
    del old["spec"]["color"]
    old["spec"]["ports"] = []
    assert STRATEGY.validate_change(new, old) == []


def test_what_was_invalid_and_did_not_change_is_tolerated() -> None:
    old = widget(size=-1, color="green")
    STRATEGY.default(old)
    new = copy(old)
    new["metadata"]["labels"] = {"a": "b"}
    assert STRATEGY.validate_change(new, old) == []
    new["spec"]["size"] = -2
    assert [problem.field for problem in STRATEGY.validate_change(new, old)] == ["spec.size"]


def test_optional_old_self_sees_creations_too() -> None:
    obj = copy(definition())
    spec_of(obj)["properties"]["size"]["x-kubernetes-validations"] = [
        {"rule": "oldSelf.hasValue() ? self >= oldSelf.value() : self == 1", "optionalOldSelf": True}
    ]
    strategy = resource_types(obj)[0].strategy
    one, two = widget(size=1), widget(size=2)
    for each in (one, two):
        strategy.default(each)
    assert strategy.validate(one) == []
    assert len(strategy.validate(two)) == 1
    assert strategy.validate_change(two, one) == []
    assert len(strategy.validate_change(one, two)) == 1


def test_rules_that_fail_to_evaluate_say_so() -> None:
    obj = copy(definition())
    spec_of(obj)["x-kubernetes-validations"] = [{"rule": "10 / self.size > 1"}]
    strategy = resource_types(obj)[0].strategy
    assert messages(strategy.validate(widget(size=0))) == [
        'spec: Invalid value: "object": division by zero evaluating rule: failed rule: 10 / self.size > 1'
    ]


def test_rules_at_the_root_see_the_name() -> None:
    obj = copy(definition())
    root = obj["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    root["x-kubernetes-validations"] = [{"rule": "self.metadata.name.startsWith('a') && self.kind == 'Widget'"}]
    rules = [
        text for text in messages(resource_types(obj)[0].strategy.validate(widget(max=1))) if "failed rule" in text
    ]
    assert rules == [
        "<nil>: Invalid value: \"object\": failed rule: self.metadata.name.startsWith('a') && self.kind == 'Widget'"
    ]


def test_rules_have_a_budget() -> None:
    obj = copy(definition())
    root = obj["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    root["properties"]["list"] = {
        "type": "array",
        "items": {"type": "integer"},
        "x-kubernetes-validations": [
            {"rule": "self.all(a, self.all(b, self.all(c, a + b + c >= 0)))"},
            {"rule": "false"},
        ],
    }
    found = resource_types(obj)[0].strategy.validate({**widget(max=1), "list": list(range(150))})
    assert messages(found) == [
        'list: Invalid value: "array": validation failed due to running out of cost budget, no further validation rules will be run'
    ]


def test_status_stays_on_its_own_path() -> None:
    old = {**widget(), "status": {"ready": 1}}
    new = {**widget(size=2), "status": {"ready": 9}}
    STRATEGY.prepare_update(new, old)
    assert new["status"] == {"ready": 1}
    created = {**widget(), "status": {"ready": 1}}
    STRATEGY.prepare_create(created)
    assert "status" not in created
    bad = {**widget(), "status": {"ready": "x"}}
    assert [problem.field for problem in STRATEGY.validate_status_update(bad, old)] == ["status.ready"]


def test_rows_follow_the_printer_columns() -> None:
    obj = widget()
    obj["status"] = {"conditions": [{"type": "Other", "status": "x"}, {"type": "Ready", "status": "True"}]}
    assert [(column.name, column.type) for column in STRATEGY.columns] == [
        ("Name", "string"),
        ("Size", "integer"),
        ("Ready", "string"),
        ("Age", "date"),
    ]
    assert STRATEGY.row(obj, NOW) == ["w", 1, "True", "5m"]
    assert STRATEGY.row(widget(), NOW) == ["w", 1, None, "5m"]


def test_without_printer_columns_there_is_the_age() -> None:
    obj = copy(definition())
    del obj["spec"]["versions"][0]["additionalPrinterColumns"]
    strategy = resource_types(obj)[0].strategy
    assert [column.name for column in strategy.columns] == ["Name", "Age"]
    assert strategy.row(widget(), NOW) == ["w", "5m"]


def test_selectable_fields() -> None:
    assert STRATEGY.selectable == {"metadata.name", "metadata.namespace", "spec.color"}
    assert STRATEGY.fields(widget(color="red"))["spec.color"] == "red"
    assert STRATEGY.fields(widget())["spec.color"] == ""


def test_deprecated_versions_warn() -> None:
    obj = copy(definition())
    obj["spec"]["versions"][0]["deprecated"] = True
    assert resource_types(obj)[0].strategy.warnings(widget()) == ["example.com/v1 Widget is deprecated"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (".a.b", [1]),
        (".a['b']", [1]),
        (".list[0].n", ["x"]),
        (".list[-1].n", ["y"]),
        (".list[*].n", ["x", "y"]),
        (".list[0:1].n", ["x"]),
        ('.list[?(@.n=="y")].v', [2]),
        (".list[?(@.v>1)].n", ["y"]),
        (".list[?(@.missing)].n", []),
        ('.words[?(@ == "b")]', ["b"]),
        ('.a.b[?(@ == "b")]', []),
        (r".a.x\.y", [3]),
        (".missing.b", []),
        ("{.a.b}", [1]),
    ],
)
def test_json_paths(path: str, expected: list[Any]) -> None:
    assert (
        find({"a": {"b": 1, "x.y": 3}, "words": ["a", "b"], "list": [{"n": "x", "v": 1}, {"n": "y", "v": 2}]}, path)
        == expected
    )


def test_cells_have_the_columns_type() -> None:
    obj = {"n": 1, "f": 1.5, "b": True, "o": {"a": [1]}, "d": "yesterday"}

    def shown(kind: str, path: str) -> Any:
        return cell({"type": kind, "jsonPath": path}, obj, NOW)

    assert shown("integer", ".f") == 1
    assert shown("number", ".f") == 1.5
    assert shown("boolean", ".b") is True
    assert shown("integer", ".b") is None
    assert shown("string", ".o") == '{"a":[1]}'
    assert shown("string", ".n") == "1"
    assert shown("date", ".d") == "<invalid>"
    with pytest.raises(JsonPathError):
        json_path(".a[")


def test_openapi_has_the_kind_and_its_list() -> None:
    found = openapi_definitions(definition(), "v1")
    assert set(found) == {"com.example.v1.Widget", "com.example.v1.WidgetList"}
    kind = found["com.example.v1.Widget"]
    assert kind["properties"]["metadata"]["allOf"][0]["$ref"].endswith("meta.v1.ObjectMeta")
    assert kind["properties"]["spec"] is spec_of(definition())
    assert kind["x-kubernetes-group-version-kind"] == [{"group": "example.com", "version": "v1", "kind": "Widget"}]
    with pytest.raises(KeyError):
        openapi_definitions(definition(), "v9")


def test_a_new_object_begins_with_the_status_that_the_definition_says() -> None:
    obj = copy(definition())
    status = obj["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    status["default"] = {"conditions": [{"type": "Ready", "status": "Unknown"}]}
    (kind,) = resource_types(obj)
    made = {**widget(), "status": {"ready": 5}}
    kind.strategy.prepare_create(made)
    assert made["status"] == {"conditions": [{"type": "Ready", "status": "Unknown"}]}
    plain = {**widget(), "status": {"ready": 5}}
    STRATEGY.prepare_create(plain)
    assert "status" not in plain
