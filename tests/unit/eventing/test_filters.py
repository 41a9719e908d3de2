"""Filters: every dialect, and CESQL by its table of rules."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampan.parts.eventing import cesql, filters
from sampan.parts.eventing.cloudevents import Event
from sampan.parts.eventing.errors import EvaluationError, ExpressionError

EVENT = Event(
    {
        "specversion": "1.0",
        "id": "7",
        "source": "/shop/eu",
        "type": "order.placed",
        "amount": "120",
        "count": 3,
        "paid": True,
        "note": "10% off",
    }
)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("-7 / 2", -3),
        ("-7 % 2", -1),
        ("10 - 2 - 3", 5),
        ("amount > 100", True),
        ("amount = 120", True),
        ("type = 'order.placed' and count >= 3", True),
        ("paid = 'true'", True),
        ("NOT paid", False),
        ("TRUE OR missing", True),
        ("FALSE AND missing", False),
        ("TRUE XOR TRUE", False),
        ("FALSE AND FALSE OR TRUE", False),
        ("EXISTS missing", False),
        ("EXISTS paid AND NOT EXISTS missing", True),
        ("count IN ('1', '3')", True),
        ("type NOT IN ('a', 'b')", True),
        ("type LIKE 'order._laced'", True),
        ("type NOT LIKE '%x'", True),
        (r"note LIKE '10\% %'", True),
        (r"type LIKE '10\%'", False),
        ("count LIKE '3'", True),
        ("'it''s' = \"it's\"", True),
        (r"'it\'s'", "it's"),
        ("LENGTH('héé')", 3),
        ("CONCAT('a', 1, true)", "a1true"),
        ("CONCAT_WS('-', 'a', 'b')", "a-b"),
        ("UPPER(LOWER('aB'))", "AB"),
        ("TRIM('  x ')", "x"),
        ("LEFT('abc', 2)", "ab"),
        ("RIGHT('abc', 2)", "bc"),
        ("RIGHT('abc', 0)", ""),
        ("SUBSTRING('abcde', 2)", "bcde"),
        ("SUBSTRING('abcde', -3, 2)", "cd"),
        ("SUBSTRING('abcde', 0)", ""),
        ("IS_INT('12') AND NOT IS_INT('x')", True),
        ("IS_BOOL('TRUE')", True),
        ("ABS(-4)", 4),
        ("INT('12') + 1", 13),
        ("BOOL('false')", False),
        ("STRING(12)", "12"),
        ("1 <> 2", True),
        ("3 != 3", False),
    ],
)
def test_an_expression_has_its_value(expression: str, value: Any) -> None:
    found = cesql.compile_expression(expression)(EVENT.attributes)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "expression",
    [
        "missing = 1",
        "1 / 0",
        "1 % 0",
        "INT('x')",
        "BOOL('x')",
        "2147483647 + 1",
        "SUBSTRING('a', 9)",
        "ABS(-2147483647 - 1)",
        "LEFT('a', -1)",
    ],
)
def test_an_expression_without_a_value_is_no_match(expression: str) -> None:
    compiled = cesql.compile_expression(expression)
    with pytest.raises(EvaluationError):
        compiled(EVENT.attributes)
    assert not cesql.matches(compiled, EVENT.attributes)


@pytest.mark.parametrize(
    ("expression", "what"),
    [
        ("", "ends"),
        ("a =", "ends"),
        ("a = = b", "found '='"),
        ("(a", "expected '\\)'"),
        ("a b", "expected the end"),
        ("'open", "unexpected"),
        ("NOFUNCTION(1)", "no function"),
        ("LENGTH()", "0 arguments"),
        ("a LIKE b", "string after LIKE"),
        ("99999999999", "32-bit"),
        ("(" * 200 + "1" + ")" * 200, "nested"),
        ("NOT " * 5000 + "true", "longer|nested"),
    ],
)
def test_a_broken_expression_is_refused_with_the_place(expression: str, what: str) -> None:
    with pytest.raises(ExpressionError, match=what):
        cesql.compile_expression(expression)


@given(st.text(alphabet="ab%_", max_size=8), st.text(alphabet="ab", max_size=8))
def test_like_agrees_with_its_definition(pattern: str, text: str) -> None:
    def fits(pattern: str, text: str) -> bool:
        if not pattern:
            return not text
        if pattern[0] == "%":
            return any(fits(pattern[1:], text[at:]) for at in range(len(text) + 1))
        return bool(text) and pattern[0] in ("_", text[0]) and fits(pattern[1:], text[1:])

    compiled = cesql.compile_expression(f"t LIKE '{pattern}'")
    assert cesql.matches(compiled, {"t": text}) == fits(pattern, text)


def test_a_pattern_of_many_wildcards_is_no_bomb() -> None:
    compiled = cesql.compile_expression("t LIKE '" + "%a" * 500 + "%b'")
    assert not cesql.matches(compiled, {"t": "a" * 5000})


@pytest.mark.parametrize("piece", ["1 + ", "1 * ", "1 = ", "TRUE AND "])
def test_a_chain_too_long_to_evaluate_is_refused_when_it_is_written(piece: str) -> None:
    cesql.matches(cesql.compile_expression(piece * 300 + "1"), {})
    with pytest.raises(ExpressionError, match="operators"):
        cesql.compile_expression(piece * 301 + "1")


@given(st.text(alphabet="abNOT IN()'\"=<>+-*/%,1 LIKEXSTRUandor_\\", max_size=40))
@settings(max_examples=300)
def test_no_text_breaks_the_compiler(expression: str) -> None:
    try:
        compiled = cesql.compile_expression(expression)
    except ExpressionError:
        return
    assert cesql.matches(compiled, EVENT.attributes) in (True, False)


@given(st.integers(-1000, 1000), st.integers(-1000, 1000), st.integers(1, 1000))
def test_arithmetic_agrees_with_the_definition(a: int, b: int, c: int) -> None:
    found = cesql.compile_expression(f"({a} + {b}) / {c} * {c} + ({a} + {b}) % {c}")({})
    assert found == a + b


@pytest.mark.parametrize(
    ("spec", "matches"),
    [
        ({}, True),
        ({"filter": {}}, True),
        ({"filter": {"attributes": {"type": "order.placed"}}}, True),
        ({"filter": {"attributes": {"type": ""}}}, True),
        ({"filter": {"attributes": {"missing": ""}}}, False),
        ({"filter": {"attributes": {"type": "x"}}, "filters": [{"exact": {"type": "order.placed"}}]}, True),
        ({"filters": [{"prefix": {"type": "order.", "source": "/shop"}}]}, True),
        ({"filters": [{"suffix": {"source": "/eu"}}, {"prefix": {"type": "x"}}]}, False),
        ({"filters": [{"any": [{"exact": {"id": "1"}}, {"exact": {"id": "7"}}]}]}, True),
        ({"filters": [{"all": [{"exact": {"count": "3"}}, {"exact": {"paid": "true"}}]}]}, True),
        ({"filters": [{"not": {"exact": {"missing": "1"}}}]}, True),
        ({"filters": [{"cesql": "amount > 100"}]}, True),
        ({"filters": [{"cesql": "missing > 100"}]}, False),
    ],
)
def test_a_trigger_matches(spec: dict[str, Any], matches: bool) -> None:
    assert filters.of_trigger(spec)(EVENT) is matches


@pytest.mark.parametrize(
    "given_filter",
    [
        {},
        {"exact": {"id": "1"}, "prefix": {"id": "1"}},
        {"exact": {}},
        {"exact": {"id": ""}},
        {"exact": {"Id": "1"}},
        {"all": []},
        {"sql": "x"},
        {"cesql": "x ="},
        {"not": {"any": [{"exact": {}}]}},
    ],
)
def test_an_invalid_filter_is_refused(given_filter: dict[str, Any]) -> None:
    with pytest.raises(ExpressionError):
        filters.compile_filter(given_filter)
