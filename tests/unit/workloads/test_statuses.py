"""The merge patch between two statuses."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sampan.kube.patch import merge_patch
from sampan.parts.workloads.statuses import difference

values = st.recursive(
    st.integers() | st.text(max_size=3) | st.booleans() | st.lists(st.integers(), max_size=3),
    lambda inner: st.dictionaries(st.text("abc", max_size=2), inner, max_size=4),
    max_leaves=8,
)
statuses = st.dictionaries(st.text("abc", max_size=2), values, max_size=5)


@given(old=statuses, new=statuses)
def test_the_difference_makes_one_into_the_other(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert merge_patch.apply(old, difference(old, new)) == new
    assert difference(new, new) == {}
