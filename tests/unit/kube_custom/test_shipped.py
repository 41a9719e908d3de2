"""The definitions that come with Sampan pass the checks that are left out when they are installed."""

from __future__ import annotations

import pkgutil
from importlib import import_module

import pytest

import sampan.parts
from sampan.kube.objects import Object
from sampan.kube.types.custom.structure import check_schema, is_shipped, trust_schemas
from sampan.kube.types.problems import Problems

MODULES = [
    one.name
    for one in pkgutil.walk_packages(sampan.parts.__path__, "sampan.parts.")
    if one.name.endswith(".definitions")
]


def shipped() -> list[Object]:
    return [definition for name in MODULES for definition in import_module(name).all_definitions()]


@pytest.mark.parametrize("definition", shipped(), ids=lambda one: str(one["metadata"]["name"]))
def test_the_schemas_of_a_shipped_definition_are_structural(definition: Object) -> None:
    for version in definition["spec"]["versions"]:
        problems = Problems()
        check_schema(version["schema"]["openAPIV3Schema"], "schema", problems)
        assert not problems


def test_a_schema_that_differs_from_what_is_shipped_is_checked() -> None:
    schema = {"type": "object", "properties": {"size": {"type": "integer"}}}
    version = {"name": "v1", "schema": {"openAPIV3Schema": schema}}
    trust_schemas({"metadata": {"name": "boats.example.org"}, "spec": {"versions": [version]}})
    assert is_shipped("boats.example.org", "v1", dict(schema))
    assert not is_shipped("boats.example.org", "v1", {**schema, "properties": {"size": {"type": "string"}}})
    assert not is_shipped("boats.example.org", "v2", schema) and not is_shipped("others.example.org", "v1", schema)
