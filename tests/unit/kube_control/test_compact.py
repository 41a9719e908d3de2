"""Compacted objects are equal to what they were made of, whatever was seen before."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.kube.control.compact import Compactor
from sampan.kube.objects import alike, copy, encode

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(0, 2)
    | st.sampled_from([0.0, 1.0, "a", "True", "x" * 300])
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)
objects = st.fixed_dictionaries(
    {"metadata": st.dictionaries(st.sampled_from(["labels", "name"]), values), "spec": values}
)


@given(st.lists(objects, max_size=8))
def test_compacting_changes_nothing_but_identity(seen: list[dict[str, Any]]) -> None:
    compactor = Compactor()
    for obj in seen:
        before = copy(obj)
        small = compactor.compact(obj)
        assert encode(small, 1) == encode(before, 1) and encode(obj, 1) == encode(before, 1)


def test_equal_parts_are_the_same_part_and_managed_fields_are_gone() -> None:
    def pod(name: str) -> dict[str, Any]:
        metadata = {"name": name, "labels": {"app": "web"}, "managedFields": [{"manager": "x"}]}
        return {"metadata": metadata, "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80}]}]}}

    compactor = Compactor()
    one, two = compactor.compact(pod("one")), compactor.compact(pod("two"))
    assert one["spec"]["containers"] is two["spec"]["containers"]
    assert one["metadata"]["labels"] is two["metadata"]["labels"]
    assert "managedFields" not in one["metadata"] and one["metadata"]["name"] == "one"


@given(st.lists(objects, min_size=1, max_size=8))
def test_a_change_compacts_to_what_it_is_whatever_was_there_before(states: list[dict[str, Any]]) -> None:
    compactor = Compactor()
    old: dict[str, Any] | None = None
    for state in states:
        was = None if old is None else encode(old, 1)
        old, before = compactor.compact(state, old), old
        assert encode(old, 1) == encode(state, 1)
        assert before is None or encode(before, 1) == was


@given(values, values)
def test_values_are_alike_when_json_says_so(one: Any, other: Any) -> None:
    def canonical(value: Any) -> str:
        return json.dumps(value, sort_keys=True)

    assert alike(one, other) is (canonical(one) == canonical(other))
    assert alike(one, copy(one))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"a": 1}, {"a": True}, False),
        ([1], [1.0], False),
        ({"a": 1, "b": [2]}, {"b": [2], "a": 1}, True),
        ({"a": {"b": 1, "c": 0}}, {"a": {"c": 0, "b": True}}, False),
        ("\ud800", "\ud800", True),
        (["\ud800"], ["\ud800"], True),
    ],
)
def test_python_takes_for_equal_what_json_does_not(one: Any, other: Any, expected: bool) -> None:
    assert alike(one, other) is expected


def test_a_copy_shares_nothing_and_keeps_every_value() -> None:
    value = {"a": [1, 2.0, True, None, 2**70, -0.5], "b": {"c": "\u2028\x00é"}}
    assert json.dumps(copy(value)) == json.dumps(value)
    assert copy(value)["a"] is not value["a"]
    broken = {"a": ["\ud800"]}
    assert copy(broken) == broken and copy(broken)["a"] is not broken["a"]
