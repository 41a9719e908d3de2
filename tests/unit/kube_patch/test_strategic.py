"""Strategic merge patch by example: each directive, and the order of merged lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from sampan.kube.patch.strategic import apply
from sampan.kube.status import ApiError

DEFINITIONS: dict[str, Any] = {
    "Container": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "image": {"type": "string"},
            "args": {"type": "array", "items": {"type": "string"}},
            "env": {
                "type": "array",
                "items": {"type": "object", "properties": {"name": {}, "value": {}}},
                "x-kubernetes-patch-strategy": "merge",
                "x-kubernetes-patch-merge-key": "name",
            },
            "ports": {
                "type": "array",
                "items": {"type": "object"},
                "x-kubernetes-patch-strategy": "merge",
                "x-kubernetes-patch-merge-key": "containerPort",
            },
        },
    }
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "metadata": {
            "type": "object",
            "properties": {
                "finalizers": {"type": "array", "items": {"type": "string"}, "x-kubernetes-patch-strategy": "merge"},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            },
        },
        "spec": {
            "type": "object",
            "properties": {
                "containers": {
                    "type": "array",
                    "items": {"$ref": "#/Container"},
                    "x-kubernetes-patch-strategy": "merge",
                    "x-kubernetes-patch-merge-key": "name",
                },
                "volumes": {
                    "type": "array",
                    "items": {"type": "object"},
                    "x-kubernetes-patch-strategy": "merge,retainKeys",
                    "x-kubernetes-patch-merge-key": "name",
                },
                "strategy": {"type": "object", "x-kubernetes-patch-strategy": "retainKeys"},
                "whole": {"type": "object", "x-kubernetes-patch-strategy": "replace"},
            },
        },
    },
}


def resolve(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    return DEFINITIONS["Container"] if "$ref" in schema else schema


def patched(doc: Any, patch: Any) -> Any:
    before = repr((doc, patch))
    result = apply(doc, patch, SCHEMA, resolve)
    assert repr((doc, patch)) == before
    return result


def containers(*items: Any) -> Any:
    return {"spec": {"containers": list(items)}}


def test_items_merge_by_their_key() -> None:
    doc = containers({"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "1"})
    assert patched(doc, containers({"name": "b", "image": "2"})) == containers(
        {"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "2"}
    )


def test_a_new_item_comes_before_those_the_patch_does_not_name() -> None:
    assert patched(containers({"name": "a"}, {"name": "b"}), containers({"name": "c"})) == containers(
        {"name": "c"}, {"name": "a"}, {"name": "b"}
    )


def test_lists_nested_in_items_merge_through_references() -> None:
    doc = containers({"name": "a", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]})
    patch = containers({"name": "a", "env": [{"name": "Y", "value": "3"}]})
    assert patched(doc, patch) == containers(
        {"name": "a", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "3"}]}
    )


def test_integer_merge_keys() -> None:
    doc = containers({"name": "a", "ports": [{"containerPort": 80}]})
    patch = containers({"name": "a", "ports": [{"containerPort": 80, "name": "http"}]})
    assert patched(doc, patch) == containers({"name": "a", "ports": [{"containerPort": 80, "name": "http"}]})


def test_lists_without_a_strategy_are_replaced() -> None:
    doc = containers({"name": "a", "args": ["x", "y"]})
    assert patched(doc, containers({"name": "a", "args": ["z"]})) == containers({"name": "a", "args": ["z"]})


def test_null_deletes() -> None:
    doc = {"metadata": {"labels": {"a": "1", "b": "2"}}}
    assert patched(doc, {"metadata": {"labels": {"a": None, "c": None}}}) == {"metadata": {"labels": {"b": "2"}}}


def test_an_item_marked_delete_goes() -> None:
    doc = containers({"name": "a"}, {"name": "b"})
    assert patched(doc, containers({"name": "a", "$patch": "delete"})) == containers({"name": "b"})


def test_an_element_marked_replace_replaces_the_list() -> None:
    doc = containers({"name": "a"}, {"name": "b"})
    assert patched(doc, containers({"name": "c"}, {"$patch": "replace"})) == containers({"name": "c"})


def test_a_map_marked_replace_or_delete() -> None:
    doc = {"spec": {"strategy": {"type": "A", "x": 1}}}
    assert patched(doc, {"spec": {"strategy": {"$patch": "replace", "type": "B"}}}) == {
        "spec": {"strategy": {"type": "B"}}
    }
    assert patched(doc, {"spec": {"strategy": {"$patch": "delete"}}}) == {"spec": {"strategy": {}}}


def test_a_replace_strategy_replaces_the_map() -> None:
    assert patched({"spec": {"whole": {"a": 1}}}, {"spec": {"whole": {"b": 1}}}) == {"spec": {"whole": {"b": 1}}}


def test_scalars_merge_as_a_set_and_leave_by_directive() -> None:
    doc = {"metadata": {"finalizers": ["a", "b"]}}
    assert patched(doc, {"metadata": {"finalizers": ["b", "c"]}}) == {"metadata": {"finalizers": ["a", "b", "c"]}}
    assert patched(doc, {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}}) == {
        "metadata": {"finalizers": ["b"]}
    }


def test_set_element_order_moves_named_items_and_keeps_the_others_beside_their_neighbours() -> None:
    doc = containers({"name": "a"}, {"name": "b"}, {"name": "c"})
    patch = {
        "spec": {
            "$setElementOrder/containers": [{"name": "c"}, {"name": "d"}, {"name": "a"}],
            "containers": [{"name": "c", "image": "2"}, {"name": "d"}],
        }
    }
    assert patched(doc, patch) == containers({"name": "b"}, {"name": "c", "image": "2"}, {"name": "d"}, {"name": "a"})


def test_set_element_order_creates_nothing() -> None:
    patch = {"spec": {"$setElementOrder/containers": [{"name": "z"}, {"name": "a"}]}}
    assert patched(containers({"name": "a"}), patch) == containers({"name": "a"})
    assert patched({"spec": {}}, patch) == {"spec": {}}


def test_set_element_order_of_primitives() -> None:
    doc = {"metadata": {"finalizers": ["a", "b", "c"]}}
    patch = {
        "metadata": {
            "$setElementOrder/finalizers": ["d", "a"],
            "$deleteFromPrimitiveList/finalizers": ["b"],
            "finalizers": ["d"],
        }
    }
    assert patched(doc, patch) == {"metadata": {"finalizers": ["d", "a", "c"]}}


def test_retain_keys_drops_the_others() -> None:
    doc = {"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}
    patch = {"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}
    assert patched(doc, patch) == {"spec": {"strategy": {"type": "Recreate"}}}


def test_retain_keys_in_items() -> None:
    doc = {"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}
    patch = {"spec": {"volumes": [{"$retainKeys": ["name", "configMap"], "name": "v", "configMap": {"name": "c"}}]}}
    assert patched(doc, patch) == {"spec": {"volumes": [{"name": "v", "configMap": {"name": "c"}}]}}


def test_what_is_new_carries_no_directives() -> None:
    patch = {
        "spec": {
            "strategy": {"$retainKeys": ["type"], "type": "A", "rollingUpdate": None},
            "containers": [{"name": "a", "$patch": "delete"}, {"name": "b", "$setElementOrder/env": [], "args": None}],
        }
    }
    assert patched({}, patch) == {"spec": {"strategy": {"type": "A"}, "containers": [{"name": "b"}]}}


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        ([], "is an object"),
        (containers({"image": "x"}), "does not contain declared merge key: name"),
        ({"spec": {"strategy": {"$patch": "burn"}}}, 'Unknown patch type found: "burn"'),
        ({"spec": {"strategy": {"$retainKeys": ["a"], "b": 1}}}, "retainKeys"),
        ({"spec": {"$setElementOrder/containers": {}}}, "setElementOrder"),
        (
            {"spec": {"$setElementOrder/containers": [{"name": "b"}], "containers": [{"name": "a"}]}},
            "doesn't match $setElementOrder list",
        ),
        ({"metadata": {"$deleteFromPrimitiveList/finalizers": [{}]}}, "primitive list"),
    ],
)
def test_malformed_patches_are_400(patch: Any, words: str) -> None:
    doc = {"metadata": {"finalizers": ["a"]}, "spec": {"containers": [{"name": "a"}], "strategy": {"x": 1}}}
    with pytest.raises(ApiError) as caught:
        patched(doc, patch)
    assert caught.value.code == 400
    assert words in caught.value.message
