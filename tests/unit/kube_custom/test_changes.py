"""Judging only what a write changes comes to the same as judging everything."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from sampan.kube.objects import copy, encode
from sampan.kube.types.custom import resource_types
from sampan.kube.types.custom.strategy import CustomStrategy
from tests.unit.kube_custom.widgets import definition, widget

ITEM: dict[str, Any] = {
    "type": "object",
    "required": ["a"],
    "x-kubernetes-validations": [
        {"rule": "self.a != 2 || has(self.b)", "message": "2 needs b"},
        {"rule": "self.a <= oldSelf.a + 1", "message": "grows by one"},
        {"rule": "!oldSelf.hasValue() || self.a != 3", "optionalOldSelf": True, "message": "3 only at first"},
    ],
    "properties": {
        "a": {"type": "integer", "maximum": 3},
        "b": {"type": "string", "default": "x", "maxLength": 2, "x-kubernetes-validations": [{"rule": "self != 'zz'"}]},
        "set": {"type": "array", "x-kubernetes-list-type": "set", "maxItems": 2, "items": {"type": "string"}},
        "inner": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"c": {"type": "integer", "default": 1, "enum": [1, 2]}},
                "x-kubernetes-validations": [{"rule": "self.c != 2 || size(self.c == 2 ? 'no' : '') == 2"}],
            },
        },
        "either": {"oneOf": [{"minimum": 1}, {"maximum": -1}], "type": "integer"},
    },
}
SPEC: dict[str, Any] = {
    "type": "object",
    "x-kubernetes-validations": [{"rule": "!has(self.plain) || size(self.plain) < 4", "message": "too many"}],
    "properties": {
        "plain": {"type": "array", "items": ITEM},
        "keyed": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["a"],
            "items": ITEM,
        },
        "named": {"type": "object", "additionalProperties": ITEM},
        "one": ITEM,
        "loose": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    },
}

items = st.fixed_dictionaries(
    {"a": st.sampled_from([0, 1, 2, 3, 4, True, 1.0])},
    optional={
        "b": st.sampled_from(["x", "zz", "long", None, 1]),
        "set": st.lists(st.sampled_from("pqr"), max_size=3),
        "inner": st.lists(st.fixed_dictionaries({}, optional={"c": st.sampled_from([1, 2, 3])}), max_size=2),
        "either": st.sampled_from([-2, 0, 2]),
        "unknown": st.just(1),
    },
)
specs = st.fixed_dictionaries(
    {},
    optional={
        "plain": st.lists(items, max_size=4),
        "keyed": st.lists(items, max_size=3),
        "named": st.dictionaries(st.sampled_from("mn"), items, max_size=2),
        "one": items,
        "loose": st.dictionaries(st.sampled_from("uv"), st.sampled_from([1, True, 1.0, None]), max_size=2),
        "unknown": items,
    },
)


@st.composite
def changed(draw: st.DrawFn, spec: Any) -> Any:
    """A spec that has most of its parts from another."""
    other = draw(specs)
    result = copy(spec)
    for key in draw(st.sets(st.sampled_from(sorted({*spec, *other, "plain"})), max_size=2)):
        if isinstance(result.get(key), list) and result[key] and draw(st.booleans()):
            at = draw(st.integers(0, len(result[key]) - 1))
            match draw(st.sampled_from(["replace", "insert", "remove", "leaf"])):
                case "replace":
                    result[key][at] = draw(items)
                case "insert":
                    result[key].insert(at, draw(items))
                case "remove":
                    del result[key][at]
                case "leaf":
                    result[key][at]["a"] = draw(st.sampled_from([0, 1, 2, 3, True]))
        elif key in other:
            result[key] = other[key]
        else:
            result.pop(key, None)
    return result


def strategy() -> CustomStrategy:
    given_ = definition()
    given_["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] = SPEC
    [kind] = resource_types(given_)
    assert isinstance(kind.strategy, CustomStrategy)
    return kind.strategy


STRATEGY = strategy()


def written(spec: Any, old: dict[str, Any] | None = None) -> dict[str, Any]:
    """An object on its way into the store, whole or by what it changes."""
    obj: dict[str, Any] = {**widget(), "spec": copy(spec)}
    if old is None:
        STRATEGY.prune(obj)
        STRATEGY.default(obj)
    else:
        STRATEGY.prune_change(obj, old)
        STRATEGY.default_change(obj, old)
    return obj


def told(problems: Any) -> list[tuple[str, str, str]]:
    return sorted((problem.field, problem.reason, problem.message) for problem in problems)


@settings(max_examples=400)
@given(st.data())
def test_a_change_is_pruned_defaulted_and_judged_as_the_whole_would_be(data: st.DataObject) -> None:
    old = written(data.draw(specs))
    spec = data.draw(changed(old["spec"]))
    new = written(spec, copy(old))
    assert encode(new, 1) == encode(written(spec), 1)
    if STRATEGY._judged(old, None, False):
        return  # never stored: nothing is taken for granted of it
    before, after = encode(old, 1), encode(new, 1)
    assert told(STRATEGY._judged(new, old, True)) == told(STRATEGY._judged(new, old, False))
    assert (encode(old, 1), encode(new, 1)) == (before, after)


@settings(max_examples=50)
@given(st.lists(specs, min_size=1, max_size=5))
@example([{"one": {"a": 1, "b": "x"}}, {"one": {"a": True, "b": "x"}}])
@example([{"plain": [{"a": 1, "b": "x"}]}, {"plain": [{"a": True, "b": "x"}]}])
def test_one_write_after_the_other_is_judged_as_by_a_strategy_without_memory(states: list[Any]) -> None:
    remembering = strategy()
    old: dict[str, Any] | None = None
    for revision, spec in enumerate(states, 1):
        new = written(spec)
        mine = remembering.validate(new) if old is None else remembering.validate_change(new, old)
        theirs = STRATEGY.validate(new) if old is None else STRATEGY.validate_change(new, old)
        assert told(mine) == told(theirs)
        if not mine:
            remembering.stored(new, old, revision)
            new["metadata"]["resourceVersion"] = str(revision)
            old = new


def test_what_was_let_through_is_not_taken_for_good() -> None:
    """Ratcheting lets an invalid part stay; an equal part elsewhere is still refused."""
    bad = {"a": 9, "b": "x"}
    remembering = strategy()
    old = written({"one": bad})
    old["metadata"]["resourceVersion"] = "1"
    new = written({"one": bad, "loose": {"u": 1}})
    assert not remembering.validate_change(new, old)
    remembering.stored(new, old, 2)
    new["metadata"]["resourceVersion"] = "2"
    listed = written({"one": bad, "plain": [bad]})
    problems = remembering.validate_change(listed, new)
    assert [problem.field for problem in problems] == ["spec.plain[0].a"]
