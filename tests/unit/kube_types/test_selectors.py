"""Selectors: grammar, matching and refusals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.kube.status import ApiError
from sampan.kube.types import selectors
from sampan.kube.types.problems import Problems

LABELS = {"app": "web", "tier": "front", "weight": "10"}


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", True), ("app=web", True), ("app==web", True), ("app = web , tier=front", True), ("app=db", False),
        ("app!=web", False), ("app!=db", True), ("missing!=x", True), ("app in (web, db)", True), ("app in (db)", False),
        ("app notin (db)", True), ("missing notin (db)", True), ("app", True), ("missing", False), ("!missing", True),
        ("!app", False), ("weight>9", True), ("weight>10", False), ("weight<11", True), ("missing>1", False),
        ("app=web,tier in (front,back),!canary", True), ("app=", False), ("missing=", False), ("app in (,web)", True),
        ("example.com/app!=x", True),
    ],
)  # fmt: skip
def test_label_selectors(text: str, matches: bool) -> None:
    assert selectors.parse_labels(text).matches(LABELS) is matches


@pytest.mark.parametrize(
    "text",
    ["app=web tier=x", "=x", "app in web", "app in (web", "app,,tier", "a b", "-x=y", "x=-y", "w>a", "app=a=b", ","],
)
def test_bad_label_selectors_are_refused(text: str) -> None:
    with pytest.raises(ApiError) as caught:
        selectors.parse_labels(text)
    assert caught.value.code == 400


def test_the_text_of_a_selector_parses_to_the_same_selector() -> None:
    selector = selectors.parse_labels("!c,app in (b,a),x=1,y!=2,w>3")
    assert selectors.parse_labels(str(selector)) == selector


def test_selector_objects() -> None:
    selector = selectors.of_object(
        {"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["back"]}]}
    )
    assert selector.matches(LABELS)
    assert not selector.matches({"app": "web", "tier": "back"})
    assert not selectors.of_object(None).matches(LABELS)
    assert selectors.of_object({}).matches(None)
    assert not selectors.of_map({}).matches(LABELS)


def test_bad_selector_objects_are_reported() -> None:
    problems = Problems()
    selector = {
        "matchLabels": {"-": "x"},
        "matchExpressions": [{"key": "a", "operator": "In"}, {"key": "b", "operator": "Exists", "values": ["x"]}, {"key": "c", "operator": "Is"}],
    }  # fmt: skip
    selectors.validate_object(selector, "spec.selector", problems)
    assert [problem.field for problem in problems] == [
        "spec.selector.matchLabels",
        "spec.selector.matchExpressions[0].values",
        "spec.selector.matchExpressions[1].values",
        "spec.selector.matchExpressions[2].operator",
    ]


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", True), ("metadata.name=a", True), ("metadata.name==a", True), ("metadata.name!=a", False),
        ("metadata.name=a,status.phase!=Failed", True), ("note=x\\,y\\=z\\\\", True), ("spec.nodeName=", True),
    ],
)  # fmt: skip
def test_field_selectors(text: str, matches: bool) -> None:
    fields = {"metadata.name": "a", "status.phase": "Running", "note": "x,y=z\\", "spec.nodeName": ""}
    selector = selectors.parse_fields(text)
    assert selector.matches(fields) is matches
    assert selectors.parse_fields(str(selector)) == selector


@pytest.mark.parametrize("text", ["metadata.name", "a=b=c", "a=\\x", "a=b\\"])
def test_bad_field_selectors_are_refused(text: str) -> None:
    with pytest.raises(ApiError) as caught:
        selectors.parse_fields(text)
    assert caught.value.code == 400


def test_fields_that_cannot_be_selected_by_are_named() -> None:
    with pytest.raises(ApiError, match=r"field label not supported: spec\.x"):
        selectors.parse_fields("spec.x=1").check({"metadata.name", "metadata.namespace", "status.phase"})
    with pytest.raises(ApiError, match=r'"spec\.x" is not a known field selector: only "metadata\.name"'):
        selectors.parse_fields("spec.x=1").check({"metadata.name", "metadata.namespace"})
    assert selectors.parse_fields("metadata.name=a").exact("metadata.name") == "a"


@given(st.text("ab=!,() in<>\\", max_size=14))
def test_any_text_is_a_selector_or_a_bad_request(text: str) -> None:
    for parse in (selectors.parse_labels, selectors.parse_fields):
        try:
            parse(text)
        except ApiError as error:
            assert error.code == 400
