"""The delta stream as a playbook, and any sequence of what an Envoy may do against a model of it."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from sampan.parts.traffic.xds import schema
from sampan.parts.traffic.xds.delta import Request, Response, Stream
from sampan.parts.traffic.xds.snapshot import TYPES, Resource, Snapshot


def snapshot(**content: str) -> Snapshot:
    """Clusters, endpoints and routes with these names and contents."""
    resources = [Resource.of(name, text.encode()) for name, text in content.items()]
    return Snapshot.build({schema.CLUSTER: resources, schema.ENDPOINTS: resources, schema.ROUTES: resources})


def names(responses: list[Response]) -> list[tuple[str, list[str], list[str]]]:
    return [
        (one.type_url.rpartition(".")[2], sorted(resource.name for resource in one.resources), sorted(one.removed))
        for one in responses
    ]


def taken(stream: Stream, responses: list[Response]) -> list[Response]:
    """The responses, acknowledged; nothing more comes of that."""
    for one in responses:
        assert stream.request(Request(one.type_url, nonce=one.nonce)) == []
    return responses


def test_a_wildcard_gets_everything_and_an_empty_answer_where_there_is_nothing() -> None:
    assert names(Stream(snapshot(a="1", b="1")).request(Request(schema.CLUSTER))) == [("Cluster", ["a", "b"], [])]
    assert names(Stream(Snapshot()).request(Request(schema.CLUSTER))) == [("Cluster", [], [])]


def test_an_unknown_name_is_said_to_be_gone_and_sent_once_it_exists() -> None:
    stream = Stream(snapshot(a="1"))
    first = taken(stream, stream.request(Request(schema.ROUTES, ("a", "x"))))
    assert names(first) == [("RouteConfiguration", ["a"], ["x"])]
    assert names(stream.update(snapshot(a="1", x="1"), removals=True)) == [("RouteConfiguration", ["x"], [])]


def test_only_changes_are_sent_and_removals_only_when_asked() -> None:
    stream = Stream(snapshot(a="1", b="1"))
    taken(stream, stream.request(Request(schema.CLUSTER)))
    assert stream.update(snapshot(a="1", b="1"), removals=True) == []
    assert names(taken(stream, stream.update(snapshot(a="2"), removals=False))) == [("Cluster", ["a"], [])]
    assert names(stream.update(snapshot(a="2"), removals=True)) == [("Cluster", [], ["b"])]


def test_asking_again_gets_the_resource_again() -> None:
    stream = Stream(snapshot(a="1"))
    stream.request(Request(schema.ENDPOINTS, ("a",)))
    assert names(stream.request(Request(schema.ENDPOINTS, ("a",)))) == [("ClusterLoadAssignment", ["a"], [])]


def test_every_secret_comes_by_itself_because_envoy_refuses_one_only_once() -> None:
    made = Snapshot.build({schema.SECRET: [Resource.of(name, name.encode()) for name in "ab"]})
    stream = Stream(made)
    responses = stream.request(Request(schema.SECRET, ("a", "b", "x")))
    gone, first, second = sorted(responses, key=lambda one: [resource.name for resource in one.resources])
    assert names([gone, first, second]) == [("Secret", [], ["x"]), ("Secret", ["a"], []), ("Secret", ["b"], [])]
    assert stream.request(Request(schema.SECRET, nonce=gone.nonce)) == []
    assert stream.request(Request(schema.SECRET, nonce=second.nonce, error="weak")) == []
    assert stream.rejected == {(schema.SECRET, "b"): (made.of(schema.SECRET)["b"].version, "weak")}
    assert stream.request(Request(schema.SECRET, nonce=first.nonce)) == []
    assert stream.pending == frozenset()


def test_a_reconnecting_envoy_is_sent_what_changed_meanwhile() -> None:
    old = Resource.of("a", b"1")
    stream = Stream(snapshot(a="1", b="1"))
    first = Request(schema.CLUSTER, initial_versions={"a": old.version, "gone": "v"})
    assert names(taken(stream, stream.request(first))) == [("Cluster", ["b"], [])]
    assert names(stream.update(snapshot(a="1", b="1"), removals=True)) == [("Cluster", [], ["gone"])]


def test_a_replaced_cluster_is_followed_by_its_endpoints() -> None:
    stream = Stream(snapshot(a="1", b="1"))
    taken(stream, stream.request(Request(schema.CLUSTER)))
    taken(stream, stream.request(Request(schema.ENDPOINTS, ("a", "b"))))
    newer = snapshot(a="1", b="1")
    clusters = {**newer.of(schema.CLUSTER), "a": Resource.of("a", b"2")}
    newer = Snapshot({**newer.resources, schema.CLUSTER: clusters})
    assert names(stream.update(newer, removals=False)) == [
        ("Cluster", ["a"], []),
        ("ClusterLoadAssignment", ["a"], []),
    ]


def test_a_refused_response_is_taken_apart_and_the_bad_one_left_out_until_it_changes() -> None:
    stream = Stream(snapshot(good="1", bad="1"))
    (response,) = stream.request(Request(schema.ROUTES, ("good", "bad")))
    again = stream.request(Request(schema.ROUTES, nonce=response.nonce, error="no"))
    again.sort(key=lambda one: one.resources[0].name)
    assert names(again) == [("RouteConfiguration", ["bad"], []), ("RouteConfiguration", ["good"], [])]
    stream.request(Request(schema.ROUTES, nonce=again[0].nonce, error="bad is bad"))
    stream.request(Request(schema.ROUTES, nonce=again[1].nonce))
    assert stream.pending == frozenset()
    assert {name: why for (_, name), (_, why) in stream.rejected.items()} == {"bad": "bad is bad"}
    assert stream.update(snapshot(good="1", bad="1"), removals=True) == []
    (repaired,) = stream.update(snapshot(good="1", bad="2"), removals=True)
    stream.request(Request(schema.ROUTES, nonce=repaired.nonce))
    assert stream.rejected == {}


def test_endpoints_follow_a_new_cluster_unasked_and_are_not_sent_twice() -> None:
    stream = Stream(snapshot(a="1"))
    taken(stream, stream.request(Request(schema.CLUSTER)))
    taken(stream, stream.request(Request(schema.ENDPOINTS, ("a",))))
    cluster, endpoints = stream.update(snapshot(a="1", b="1"), [schema.CLUSTER, schema.ENDPOINTS], removals=False)
    assert names([cluster, endpoints]) == [("Cluster", ["b"], []), ("ClusterLoadAssignment", ["b"], [])]
    assert stream.request(Request(schema.ENDPOINTS, ("b",))) == []
    taken(stream, [cluster, endpoints])
    assert names(stream.update(snapshot(a="1", b="2"), [schema.ENDPOINTS], removals=False)) == [
        ("ClusterLoadAssignment", ["b"], [])
    ]


def test_endpoints_that_came_too_early_are_sent_again() -> None:
    stream = Stream(snapshot(a="1"))
    taken(stream, stream.request(Request(schema.CLUSTER)))
    taken(stream, stream.request(Request(schema.ENDPOINTS, ("a",))))
    taken(stream, stream.update(snapshot(a="1", b="1"), [schema.CLUSTER], removals=False))
    assert names(stream.request(Request(schema.ENDPOINTS, ("b",)))) == [("ClusterLoadAssignment", ["b"], [])]


def test_who_does_not_answer_is_owed_one_difference_in_order() -> None:
    stream = Stream(snapshot(a="1", gone="1"))
    taken(stream, stream.request(Request(schema.CLUSTER)))
    taken(stream, stream.request(Request(schema.ENDPOINTS, ("a", "gone"))))
    taken(stream, stream.request(Request(schema.ROUTES, ("a",))))
    sent = stream.update(snapshot(a="2", gone="1"), [schema.CLUSTER], removals=False)
    assert names(sent) == [("Cluster", ["a"], [])]
    for number in range(3, 1000):
        assert stream.update(snapshot(a=str(number)), removals=True) == []
    assert len(stream.pending) == 1
    steps = []
    while sent:
        steps.append(names(sent))
        sent = [one for each in sent for one in stream.request(Request(each.type_url, nonce=each.nonce))]
    assert steps == [
        [("Cluster", ["a"], [])],
        [("Cluster", ["a"], []), ("ClusterLoadAssignment", ["a"], [])],
        [("RouteConfiguration", ["a"], [])],
        [("Cluster", [], ["gone"]), ("ClusterLoadAssignment", [], ["gone"])],
    ]
    assert stream.settled


class Envoy:
    """What an Envoy does with responses: it takes everything but resources whose content is ``bad``.

    It asks for the endpoints of its clusters, at once or (while it starts) some time later, and drops others.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.follows: set[str] = set()
        self.has: dict[str, dict[str, str]] = {type_url: {} for type_url in TYPES}
        self.queue: list[Response] = []

    def answer(self, *, lazy: bool = False) -> None:
        """Take the oldest response and acknowledge or refuse it; ``lazy``: ask for endpoints some other time."""
        response = self.queue.pop(0)
        bad = [one for one in response.resources if one.data == b"bad"]
        if not bad:
            for one in response.resources:
                if response.type_url != schema.ENDPOINTS or one.name in self.follows:
                    self.has[response.type_url][one.name] = one.data.decode()
            for name in response.removed:
                self.has[response.type_url].pop(name, None)
        if not lazy and response.type_url == schema.CLUSTER:
            self.follow()
        error = "bad" if bad else None
        self.queue += self.stream.request(Request(response.type_url, nonce=response.nonce, error=error))
        if not lazy:
            self.follow()

    def follow(self) -> None:
        """Ask for the endpoints of the clusters there are, and of no others."""
        clusters = self.has[schema.CLUSTER].keys()
        new, gone = clusters - self.follows, self.follows - clusters
        if new or gone:
            self.follows = set(clusters)
            for name in gone:
                self.has[schema.ENDPOINTS].pop(name, None)
            self.queue += self.stream.request(Request(schema.ENDPOINTS, tuple(new), tuple(gone)))


CONTENT = st.dictionaries(st.sampled_from("abcd"), st.sampled_from(["1", "2", "bad"]), max_size=4)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), CONTENT),
        st.tuples(st.just("answer"), st.just({})),
        st.tuples(st.just("answer lazily"), st.just({})),
        st.tuples(st.just("subscribe"), CONTENT),
        st.tuples(st.just("unsubscribe"), CONTENT),
    ),
    max_size=20,
)


@given(STEPS)
@example(
    [
        ("publish", {"a": "1"}),
        ("publish", {"c": "bad"}),
        ("publish", {}),
        *[("answer", {})] * 3,
        ("publish", {"c": "bad"}),
    ]
)
@settings(deadline=None)
def test_any_sequence_ends_with_envoy_holding_what_it_wants(steps: list[tuple[str, dict[str, str]]]) -> None:
    stream = Stream(Snapshot())
    envoy = Envoy(stream)
    envoy.queue += stream.request(Request(schema.CLUSTER))
    wanted: set[str] = set()
    current: dict[str, str] = {}
    for kind, content in steps:
        if kind == "publish":
            current = content
            envoy.queue += stream.update(snapshot(**content), removals=True)
        elif kind.startswith("answer") and envoy.queue:
            envoy.answer(lazy=kind == "answer lazily")
        elif kind == "subscribe" and content:
            wanted |= content.keys()
            envoy.queue += stream.request(Request(schema.ROUTES, tuple(content)))
        elif kind == "unsubscribe" and wanted & content.keys():
            gone = wanted & content.keys()
            wanted -= gone
            for name in gone:
                envoy.has[schema.ROUTES].pop(name, None)
            envoy.queue += stream.request(Request(schema.ROUTES, unsubscribe=tuple(gone)))
    for _ in range(200):
        if not envoy.queue:
            break
        envoy.answer()
    envoy.follow()
    while envoy.queue:
        envoy.answer()
    assert stream.settled
    good = {name: text for name, text in current.items() if text != "bad"}
    held = envoy.has[schema.CLUSTER]
    assert {name: held.get(name) for name in good} == good
    assert held.keys() <= current.keys()
    assert {name: envoy.has[schema.ENDPOINTS].get(name) for name in good} == good
    for name in wanted & good.keys():
        assert envoy.has[schema.ROUTES].get(name) == good[name]
    refused = {name for (type_url, name), _ in stream.rejected.items() if type_url == schema.CLUSTER}
    assert {name for name, text in current.items() if text == "bad"} <= refused
