"""Look-ups find what going over a whole namespace would."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sampan.kube.client import WatchEvent
from sampan.kube.control.indexes import SLICES_OF_SERVICE, BySelector, Lookup
from sampan.kube.control.informer import SharedInformer
from sampan.kube.objects import Key, Object, encode
from sampan.kube.resources import ENDPOINT_SLICES, REPLICA_SETS
from sampan.kube.types.selectors import matches

labels = st.dictionaries(st.sampled_from("abc"), st.sampled_from("xy"), max_size=3)
expressions = st.lists(
    st.fixed_dictionaries(
        {"key": st.sampled_from("abc"), "operator": st.sampled_from(["Exists", "DoesNotExist"])},
    ),
    max_size=2,
)
selecting = st.none() | st.fixed_dictionaries({}, optional={"matchLabels": labels, "matchExpressions": expressions})


def named(number: int, namespace: str, **fields: Any) -> Object:
    metadata = {"name": f"o{number}", "namespace": namespace, "resourceVersion": str(number), "uid": str(number)}
    return {"metadata": {**metadata, **fields.pop("metadata", {})}, **fields}


@given(st.lists(st.tuples(st.sampled_from("nm"), selecting), max_size=8), labels)
def test_what_selects_labels_is_among_the_candidates(
    selectors: list[tuple[str, dict[str, Any] | None]], carried: dict[str, str]
) -> None:
    informer = SharedInformer(REPLICA_SETS)
    informer.replace(
        [
            named(number, namespace, spec={"selector": selector})
            for number, (namespace, selector) in enumerate(selectors, 1)
        ]
    )
    by_selector = BySelector(lambda one: one["spec"].get("selector"))
    for namespace in "nm":
        found = [one["metadata"]["name"] for one in by_selector.candidates(informer, namespace, carried)]
        assert len(found) == len(set(found))
        expected = {
            one["metadata"]["name"]
            for one in informer.objects(namespace)
            if matches(one["spec"].get("selector"), carried)
        }
        assert expected <= set(found)


def test_only_those_that_want_one_of_the_labels_are_candidates() -> None:
    informer = SharedInformer(REPLICA_SETS)
    wanted = [{"app": f"a{number}", "pod-template-hash": f"h{number}"} for number in range(100)]
    informer.replace(
        [named(number, "n", spec={"selector": {"matchLabels": each}}) for number, each in enumerate(wanted, 1)]
    )
    by_selector = BySelector(lambda one: one["spec"].get("selector"))
    (found,) = by_selector.candidates(informer, "n", {"app": "a7", "pod-template-hash": "h7", "x": "y"})
    assert found["metadata"]["name"] == "o8"


def test_what_is_held_encoded_is_found_by_what_it_wants_now_however_that_is_ordered() -> None:
    informer, written = SharedInformer(REPLICA_SETS), dict[Key, bytes]()
    informer.replace([])
    informer.freezable(lambda key, obj: written[key])
    by_selector = BySelector(lambda one: {"matchLabels": one["spec"]["selector"]})

    def write(revision: int, **selector: str) -> None:
        obj = named(
            1, "n", spec={"selector": selector}, metadata={"resourceVersion": str(revision), "labels": {"r": "s"}}
        )
        written[Key.of(obj)] = encode(obj, revision)
        informer.change(WatchEvent("MODIFIED", obj))

    def found(**carried: str) -> int:
        return len(list(by_selector.candidates(informer, "n", carried)))

    write(1, a="1", b="2")
    assert found(a="1", b="2") == 1
    write(2, b="2", a="1")
    for _ in range(2):
        list(informer.rest())
    assert found(a="1", b="2") == 1
    for _ in range(2):
        list(informer.rest())
    write(3, c="3")
    assert (found(a="1", b="2"), found(c="3")) == (0, 1)
    informer.change(WatchEvent("DELETED", named(1, "n", spec={"selector": {"c": "3"}})))
    assert found(a="1", b="2", c="3") == 0


def test_an_object_that_an_index_cannot_read_keeps_no_other_from_being_found() -> None:
    informer = SharedInformer(REPLICA_SETS)
    by_app = Lookup("app", lambda one: [one["spec"]["app"]])
    informer.replace([named(1, "n", spec={"app": "a"}), named(2, "n")])
    assert [one["metadata"]["name"] for one in by_app(informer, "a")] == ["o1"]
    informer.replace([named(1, "n", spec={"app": "a"}), named(3, "n"), named(4, "n", spec={"app": "a"})])
    assert [one["metadata"]["name"] for one in by_app(informer, "a")] == ["o1", "o4"]
    assert len(informer) == 3


def test_slices_are_found_by_their_service() -> None:
    informer = SharedInformer(ENDPOINT_SLICES)
    informer.replace(
        [
            named(number, namespace, metadata={"labels": {"kubernetes.io/service-name": name}} if name else {})
            for number, (namespace, name) in enumerate([("n", "a"), ("n", "b"), ("m", "a"), ("n", "a"), ("n", "")], 1)
        ]
    )
    assert [one["metadata"]["name"] for one in SLICES_OF_SERVICE(informer, "n/a")] == ["o1", "o4"]
    assert SLICES_OF_SERVICE(informer, "n/") == []
