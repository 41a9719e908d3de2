"""What a CustomResourceDefinition may say, and upstream's words when it may not."""

from __future__ import annotations

from typing import Any

import pytest

from sampan.kube.objects import copy
from sampan.kube.types.custom.definition import check, check_change, note_stored_version
from sampan.kube.types.problems import Problems
from tests.unit.kube_custom.widgets import definition


def problems(obj: dict[str, Any]) -> dict[str, str]:
    found = Problems()
    check(obj, found)
    return {problem.field: problem.message for problem in found}


def with_schema(**properties: Any) -> dict[str, Any]:
    obj: dict[str, Any] = copy(definition())
    obj["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"] = properties
    return obj


def test_a_sound_definition_has_no_problems() -> None:
    assert problems(definition()) == {}


@pytest.mark.parametrize(
    ("path", "value", "field", "message"),
    [
        (["metadata", "name"], "x.example.com", "metadata.name", 'Invalid value: "x.example.com": must be spec.names.plural+"."+spec.group'),
        (["spec", "group"], "example", "spec.group", 'Invalid value: "example": should be a domain with at least one dot'),
        (["spec", "scope"], "Galaxy", "spec.scope", 'Unsupported value: "Galaxy": supported values: "Cluster", "Namespaced"'),
        (["spec", "names", "kind"], "", "spec.names.kind", "Required value"),
        (["spec", "names", "listKind"], "Widget", "spec.names.listKind", 'Invalid value: "Widget": kind and listKind may not be the same'),
        (["spec", "names", "shortNames"], ["W_"], "spec.names.shortNames[0]", None),
        (["spec", "preserveUnknownFields"], True, "spec.preserveUnknownFields", None),
        (["spec", "versions", 0, "storage"], False, "spec.versions", 'Invalid value: ["v1"]: must have exactly one version marked as storage version'),
        (["spec", "versions", 0, "name"], "V1", "spec.versions[0].name", None),
        (["spec", "versions", 0, "schema"], {}, "spec.versions[0].schema.openAPIV3Schema", "Required value: schemas are required"),
        (["spec", "versions", 0, "subresources", "scale", "specReplicasPath"], ".replicas", "spec.versions[0].subresources.scale.specReplicasPath", 'Invalid value: ".replicas": should be a json path under .spec'),
        (["spec", "versions", 0, "additionalPrinterColumns", 0, "jsonPath"], ".a[", "spec.versions[0].additionalPrinterColumns[0].jsonPath", None),
        (["spec", "versions", 0, "additionalPrinterColumns", 0, "type"], "text", "spec.versions[0].additionalPrinterColumns[0].type", None),
        (["spec", "conversion"], {"strategy": "Webhook"}, "spec.conversion.webhook.clientConfig", "Required value: required when strategy is set to Webhook"),
    ],
)  # fmt: skip
def test_problems_of_a_definition(path: list[Any], value: Any, field: str, message: str | None) -> None:
    obj = copy(definition())
    place = obj
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    found = problems(obj)
    assert field in found
    if message is not None:
        assert found[field] == message


ROOT = "spec.versions[0].schema.openAPIV3Schema"


@pytest.mark.parametrize(
    ("schema", "field", "message"),
    [
        ({"description": "x"}, ".type", "Required value: must not be empty for specified object fields"),
        ({"type": "array"}, ".items", "Required value: must be specified"),
        ({"type": "array", "items": {}}, ".items.type", "Required value: must not be empty for specified array items"),
        ({"type": "string", "x-kubernetes-int-or-string": True}, ".type", "Forbidden: must be empty if x-kubernetes-int-or-string is true"),
        ({"type": "object", "additionalProperties": {"type": "string"}, "properties": {"a": {"type": "string"}}}, ".additionalProperties", "Forbidden: additionalProperties and properties are mutual exclusive"),
        ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, ".uniqueItems", "Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic"),
        ({"$ref": "#/x", "type": "object"}, ".$ref", "Forbidden: $ref is not supported"),
        ({"type": "integer", "anyOf": [{"type": "integer"}]}, ".anyOf[0].type", "Forbidden: must be empty to be structural"),
        ({"type": "object", "not": {"properties": {"b": {"minimum": 1}}}}, ".properties[b]", f"Required value: because it is defined in {ROOT}.properties[x].not.properties[b]"),
        ({"type": "integer", "default": "a"}, ".default", None),
        ({"type": "string", "pattern": "("}, ".pattern", None),
        ({"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "map"}, ".x-kubernetes-list-map-keys", "Required value: must not be empty if x-kubernetes-list-type is map"),
        ({"type": "array", "items": {"type": "object", "properties": {"k": {"type": "string"}}}, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"]}, ".items.properties[k].default", None),
        ({"type": "string", "x-kubernetes-validations": [{"rule": "self.size() > nope"}]}, ".x-kubernetes-validations[0].rule", "Invalid value: \"self.size() > nope\": compilation failed: ERROR: <input>:1:15: undeclared reference to 'nope' (in container '')\n | self.size() > nope\n | ..............^"),
        ({"type": "string", "x-kubernetes-validations": [{"rule": "size(self)"}]}, ".x-kubernetes-validations[0].rule", 'Invalid value: "size(self)": cel expression must evaluate to a bool'),
        ({"type": "string", "x-kubernetes-validations": [{"rule": "true", "messageExpression": "1"}]}, ".x-kubernetes-validations[0].messageExpression", None),
        ({"type": "array", "items": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}}, ".items.x-kubernetes-validations[0].rule", f'Invalid value: "self == oldSelf": oldSelf cannot be used on the uncorrelatable portion of the schema within {ROOT}.properties[x].items'),
        ({"type": "string", "x-kubernetes-validations": [{"rule": "true", "reason": "Nope"}]}, ".x-kubernetes-validations[0].reason", None),
    ],
)  # fmt: skip
def test_problems_of_a_schema(schema: dict[str, Any], field: str, message: str | None) -> None:
    found = problems(with_schema(x=schema))
    place = f"{ROOT}.properties[x]{field}"
    assert place in found, found
    if message is not None:
        assert found[place] == message


def test_the_root_is_an_object_and_metadata_stays_implicit() -> None:
    obj = definition()
    metadata = {"type": "object", "properties": {"labels": {}}}
    obj["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = {"properties": {"metadata": metadata}}
    found = problems(obj)
    assert found[f"{ROOT}.type"] == "Required value: must not be empty at the root"
    assert found[f"{ROOT}.properties[metadata]"].startswith("Forbidden: must not specify anything other than name")


def test_protected_groups_need_an_approval() -> None:
    obj = copy(definition())
    obj["spec"]["group"] = "gateway.networking.k8s.io"
    obj["metadata"]["name"] = "widgets.gateway.networking.k8s.io"
    path = "metadata.annotations[api-approved.kubernetes.io]"
    assert problems(obj)[path].startswith("Required value: protected groups must have approval annotation")
    obj["metadata"]["annotations"] = {"api-approved.kubernetes.io": "https://github.com/x"}
    assert path not in problems(obj)


def test_what_an_update_may_not_change() -> None:
    old = copy(definition())
    old["status"]["conditions"] = [{"type": "Established", "status": "True"}]
    new = copy(old)
    new["spec"]["scope"] = "Cluster"
    new["spec"]["versions"][0]["name"] = "v2"
    found = Problems()
    check_change(new, old, found)
    assert [problem.field for problem in found] == ["spec.scope", "status.storedVersions[0]", "status.storedVersions"]


def test_stored_versions_accumulate() -> None:
    obj = copy(definition())
    obj["spec"]["versions"].insert(0, {"name": "v2", "storage": True})
    obj["spec"]["versions"][1]["storage"] = False
    note_stored_version(obj)
    note_stored_version(obj)
    assert obj["status"]["storedVersions"] == ["v1", "v2"]
