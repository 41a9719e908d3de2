"""RFC 6902 as a table, and upstream's errors."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.kube.patch.json_patch import apply
from sampan.kube.status import ApiError


@pytest.mark.parametrize(
    ("doc", "operations", "expected"),
    [
        ({"foo": "bar"}, [{"op": "add", "path": "/baz", "value": "qux"}], {"foo": "bar", "baz": "qux"}),
        ({"foo": [1, 3]}, [{"op": "add", "path": "/foo/1", "value": 2}], {"foo": [1, 2, 3]}),
        ({"foo": [1]}, [{"op": "add", "path": "/foo/-", "value": 2}], {"foo": [1, 2]}),
        ({"foo": 1}, [{"op": "add", "path": "/foo", "value": None}], {"foo": None}),
        ({"a": 1, "b": 2}, [{"op": "remove", "path": "/a"}], {"b": 2}),
        ({"a": [1, 2, 3]}, [{"op": "remove", "path": "/a/1"}], {"a": [1, 3]}),
        ({"a": {"b": 1}}, [{"op": "replace", "path": "/a/b", "value": [2]}], {"a": {"b": [2]}}),
        ({"a": 1}, [{"op": "replace", "path": "", "value": {"b": 2}}], {"b": 2}),
        ({"a": {"b": 1}}, [{"op": "move", "from": "/a/b", "path": "/c"}], {"a": {}, "c": 1}),
        ({"a": {"b": 1}}, [{"op": "copy", "from": "/a", "path": "/c"}], {"a": {"b": 1}, "c": {"b": 1}}),
        ({"a": {"b": {"c": 1}}}, [{"op": "copy", "from": "/a/b", "path": "/a"}], {"a": {"c": 1}}),
        ({"a": {"b": {"c": 1}}}, [{"op": "copy", "from": "/a/b", "path": ""}], {"c": 1}),
        ({"a": [1, 2]}, [{"op": "copy", "from": "/a/1", "path": "/a/0"}], {"a": [2, 1, 2]}),
        ({"a/b": {"m~n": 1}}, [{"op": "test", "path": "/a~1b/m~0n", "value": 1}], {"a/b": {"m~n": 1}}),
        ({"a": 1}, [{"op": "test", "path": "/missing", "value": None}], {"a": 1}),
        ({"a": [1, 2]}, [{"op": "replace", "path": "/a/-1", "value": 3}], {"a": [1, 3]}),
        ({}, [], {}),
    ],
)
def test_operations(doc: Any, operations: Any, expected: Any) -> None:
    before = repr(doc)
    assert apply(doc, operations) == expected
    assert repr(doc) == before


@pytest.mark.parametrize(
    ("doc", "operations", "cause"),
    [
        ({"a": 1}, [{"op": "test", "path": "/a", "value": 2}], "testing value /a failed: test failed"),
        ({"a": 1}, [{"op": "test", "path": "/a", "value": True}], "testing value /a failed: test failed"),
        (
            {},
            [{"op": "add", "path": "/a/b", "value": 1}],
            "add operation does not apply: doc is missing path: /a/b: missing value",
        ),
        (
            {},
            [{"op": "replace", "path": "/a", "value": 1}],
            "replace operation does not apply: doc is missing key: /a: missing value",
        ),
        (
            {},
            [{"op": "remove", "path": "/a"}],
            "remove operation does not apply: doc is missing path: /a: Unable to remove nonexistent key: a: missing value",
        ),
        ({"a": []}, [{"op": "remove", "path": "/a/0"}], None),
        ({"a": []}, [{"op": "add", "path": "/a/1", "value": 1}], None),
        ({"a": []}, [{"op": "add", "path": "/a/x", "value": 1}], None),
        ({"a": []}, [{"op": "add", "path": "/a/" + "9" * 5000, "value": 1}], None),
        ({"a": {"b": 1}}, [{"op": "move", "from": "/a", "path": "/a/b"}], None),
        ({}, [{"op": "copy", "from": "/a", "path": "/b"}], None),
    ],
)
def test_what_does_not_apply_is_422_with_the_cause(doc: Any, operations: Any, cause: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        apply(doc, operations)
    assert (caught.value.code, caught.value.reason) == (422, "Invalid")
    assert caught.value.message == "the server rejected our request due to an error in our request"
    if cause is not None:
        assert caught.value.details["causes"][0]["message"] == cause


@pytest.mark.parametrize(
    "operations",
    [
        {"op": "add"},
        [1],
        [{"op": "frobnicate", "path": "/a"}],
        [{"op": "add", "path": "/a"}],
        [{"op": "add", "path": "a", "value": 1}],
        [{"op": "move", "path": "/a"}],
    ],
)
def test_a_malformed_patch_is_400(operations: Any) -> None:
    with pytest.raises(ApiError) as caught:
        apply({"a": 1}, operations)
    assert caught.value.code == 400


def test_too_many_operations_are_413() -> None:
    with pytest.raises(ApiError) as caught:
        apply({"a": 1}, [{"op": "test", "path": "/a", "value": 1}] * 10_001)
    assert caught.value.code == 413


json = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab/~", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab/~", max_size=2), inner, max_size=3),
    max_leaves=6,
)


@given(json, json)
def test_replacing_the_root_gives_any_document(before: Any, after: Any) -> None:
    assert (
        apply(before, [{"op": "replace", "path": "", "value": after}, {"op": "test", "path": "", "value": after}])
        == after
    )


@given(st.dictionaries(st.text("ab/~", max_size=2), json, max_size=3), st.text("ab/~", max_size=3), json)
def test_add_then_remove_leaves_the_rest(doc: dict[str, Any], key: str, value: Any) -> None:
    pointer = "/" + key.replace("~", "~0").replace("/", "~1")
    added = [{"op": "add", "path": pointer, "value": value}, {"op": "test", "path": pointer, "value": value}]
    result = apply(doc, [*added, {"op": "remove", "path": pointer}])
    assert result == {other: item for other, item in doc.items() if other != key}
