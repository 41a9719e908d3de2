"""Quantities are exact and are written canonically."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.kube.types import quantity
from sampan.kube.types.selectors import matches


@pytest.mark.parametrize(
    ("text", "amount", "canonical"),
    [
        ("100m", "0.1", "100m"),
        ("0.1", "0.1", "100m"),
        ("1000m", "1", "1"),
        ("1500m", "1.5", "1500m"),
        ("1Gi", "1073741824", "1Gi"),
        ("1.5Gi", "1610612736", "1536Mi"),
        ("1024Mi", "1073741824", "1Gi"),
        ("100Ki", "102400", "100Ki"),
        ("0.5Ki", "512", "512"),
        ("1000k", "1000000", "1M"),
        ("1e3", "1000", "1e3"),
        ("12E", "9223372036854775807", "9223372036854775807"),
        ("5", "5", "5"),
        (".5", "0.5", "500m"),
        ("-2k", "-2000", "-2k"),
        ("0", "0", "0"),
        ("0.0000000001", "0.000000001", "1n"),
        (2, "2", "2"),
    ],
)
def test_a_quantity_has_an_amount_and_one_canonical_text(text: str, amount: str, canonical: str) -> None:
    assert quantity.parse(text) == Decimal(amount)
    assert quantity.canonical(text) == canonical


@pytest.mark.parametrize("text", ["", "m", "1x", "1 Gi", "1GB", "--1", "1.2.3", "e3", "٣", "1" * 41, "nan", "inf"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="quantities must match"):
        quantity.parse(text)


@given(st.integers(-(2**62), 2**62), st.sampled_from(["", "Ki", "m", "k", "n", "u", "Mi"]))
def test_the_canonical_text_means_the_same(number: int, suffix: str) -> None:
    text = f"{number}{suffix}"
    canonical = quantity.canonical(text)
    assert quantity.parse(canonical) == quantity.parse(text)
    assert quantity.canonical(canonical) == canonical


@pytest.mark.parametrize(
    ("selector", "matched"),
    [
        (None, False),
        ({}, True),
        ({"matchLabels": {"a": "1"}}, True),
        ({"matchLabels": {"a": "2"}}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, False),
        ({"matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["1"]}]}, True),
        ({"matchExpressions": [{"key": "b", "operator": "Exists"}]}, False),
        ({"matchExpressions": [{"key": "b", "operator": "DoesNotExist"}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "Like", "values": ["1"]}]}, False),
    ],
)
def test_a_label_selector_matches_when_all_of_it_holds(selector: dict[str, object] | None, matched: bool) -> None:
    assert matches(selector, {"a": "1"}) is matched


def test_sums_keep_the_notation_of_the_left() -> None:
    assert quantity.add("1Gi", "1024Mi") == "2Gi"
    assert quantity.add("500m", 1) == "1500m"
    assert quantity.add("0", "1Gi") == "1Gi"


def test_comparison_is_exact_across_notations() -> None:
    assert quantity.compare("1Ki", "1024") == 0
    assert quantity.compare("999m", "1") < 0
    assert quantity.compare(2, "1999m") > 0
