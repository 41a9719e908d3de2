"""SQL92 filters: the table of the reference, and three-valued logic against SQLite."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.parts.messaging.errors import MessagingError, Reason
from sampan.parts.messaging.filters import EVERYTHING, sql_filter, tag_filter
from sampan.parts.messaging.sql import parse

PROPERTIES = {"a": "5", "b": "hello", "c": "true", "neg": "-3", "TAGS": "red", "f": "2.5", "word": "x"}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("a = 5", True),
        ("a = '5'", True),
        ("a <> 5", False),
        ("a != 6", True),
        ("a > 4 AND a < 6", True),
        ("a >= 5.0 and f <= 2.5", True),
        ("neg = -3", True),
        ("neg < +0", True),
        ("a BETWEEN 1 AND 5", True),
        ("a NOT BETWEEN 1 AND 4", True),
        ("b IN ('x', 'hello')", True),
        ("b NOT IN ('x')", True),
        ("b CONTAINS 'ell' AND b STARTSWITH 'he' AND b ENDSWITH 'lo'", True),
        ("b NOT CONTAINS 'ell'", False),
        ("b = 'it''s'", False),
        ("missing IS NULL", True),
        ("b IS NOT NULL", True),
        ("c = TRUE", True),
        ("c", True),
        ("NOT c", False),
        ("NOT NOT c", True),
        ("missing = 1", None),
        ("missing <> 1", None),
        ("NOT (missing = 1)", None),
        ("missing = 1 OR a = 5", True),
        ("missing = 1 AND a = 6", False),
        ("missing IN ('x')", None),
        ("word > 1", None),
        ("TAGS = 'red' AND (a > 100 OR b = 'hello')", True),
        ("NULL IS NULL", True),
        ("a > 1 OR NULL", True),
    ],
)
def test_an_expression_means_what_the_reference_says(expression: str, expected: bool | None) -> None:
    assert parse(expression)(PROPERTIES) is expected
    assert sql_filter(expression).matches(PROPERTIES) is (expected is True)


@pytest.mark.parametrize(
    "expression",
    [
        "",
        " ",
        "a >",
        "a > 'x'",
        "'x' < a",
        "a BETWEEN 'a' AND 'b'",
        "a IN ()",
        "a IN (1)",
        "(a = 1",
        "a = 1)",
        "a NOT 5",
        "a == 1",
        "a = 1 b",
        "; DROP",
        "a = 99999999999999999999",
        "(" * 60 + "a = 1" + ")" * 60,
        "a IS 5",
        "'open",
    ],
)
def test_what_cannot_be_read_is_refused(expression: str) -> None:
    with pytest.raises(MessagingError) as caught:
        parse(expression)
    assert caught.value.reason is Reason.ILLEGAL_FILTER


conditions = st.recursive(
    st.sampled_from(["x = 1", "y = 1", "x IS NULL", "y IS NOT NULL", "x <> y", "x > 0", "y BETWEEN 0 AND 1"]),
    lambda inner: st.one_of(
        st.builds("({} AND {})".format, inner, inner),
        st.builds("({} OR {})".format, inner, inner),
        st.builds("NOT ({})".format, inner),
    ),
    max_leaves=8,
)
values = st.sampled_from([None, 0, 1, 2])


@given(conditions, values, values)
def test_three_valued_logic_agrees_with_sqlite(expression: str, x: int | None, y: int | None) -> None:
    with sqlite3.connect(":memory:") as database:
        [[expected]] = database.execute(f"SELECT {expression} FROM (SELECT ? AS x, ? AS y)", (x, y)).fetchall()
    properties = {name: str(value) for name, value in (("x", x), ("y", y)) if value is not None}
    result = parse(expression)(properties)
    assert result == (None if expected is None else bool(expected))


@given(st.text(max_size=40))
def test_no_text_breaks_the_parser(expression: str) -> None:
    try:
        parse(expression)(PROPERTIES)
    except MessagingError as error:
        assert error.reason is Reason.ILLEGAL_FILTER


@pytest.mark.parametrize("digits", ["9" * 19, "9" * 5000, "1" + "0" * 30])
def test_a_number_beyond_a_long_is_the_filters_fault(digits: str) -> None:
    with pytest.raises(MessagingError, match="does not fit a long"):
        parse(f"a = {digits}")
    assert parse(f"a = {'0' * 30}5")(PROPERTIES)


def test_tags_of_equal_hash_are_told_apart() -> None:
    wanted = tag_filter(" AaAa ||c ")
    from sampan.parts.messaging.record import java_hash

    assert wanted.maybe(java_hash("BBBB"))
    assert not wanted.matches({"TAGS": "BBBB"})
    assert wanted.matches({"TAGS": "AaAa"})
    assert tag_filter("*") is EVERYTHING
    assert tag_filter("") is EVERYTHING
