"""Compacted objects are equal to what they were made of, whatever was seen before."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sampan.kube.control.compact import Compactor
from sampan.kube.objects import copy, encode

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
