"""RFC 7386's own table, and the properties that follow from it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.kube.patch.merge_patch import apply
from sampan.kube.status import ApiError


@pytest.mark.parametrize(
    ("doc", "patch", "expected"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_rfc_7386(doc: Any, patch: Any, expected: Any) -> None:
    assert apply(doc, patch) == expected


def test_a_list_is_no_merge_patch() -> None:
    with pytest.raises(ApiError) as caught:
        apply({}, [])  # type: ignore[arg-type]
    assert caught.value.code == 400


json = st.recursive(
    st.none() | st.integers(0, 3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
maps = st.dictionaries(st.sampled_from("abc"), json, max_size=3)


@given(maps, maps)
def test_twice_is_as_good_as_once(doc: dict[str, Any], patch: dict[str, Any]) -> None:
    once = apply(doc, patch)
    assert apply(once, patch) == once
