"""What is made of changes one by one is what would be made of the whole world at once."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sampan.kube.objects import Key, Object
from tests.unit.traffic.world_made import MadeWorld, gateway, http_route, listener

NAMES = st.sampled_from(["a", "b", "c"])
HOSTS = st.lists(st.sampled_from(["one.example.com", "*.example.com", "two.example.com"]), max_size=2, unique=True)
REDIRECT = [{"type": "RequestRedirect", "requestRedirect": {"scheme": "https"}}]


@st.composite
def routes(draw: Any) -> Object:
    name, parent = draw(NAMES), draw(st.sampled_from(["gw", "other", "nobody"]))
    rules = [
        {"matches": [{"path": {"type": "PathPrefix", "value": path}}], "backendRefs": [{"name": backend, "port": 80}]}
        if backend
        else {"matches": [{"path": {"type": "PathPrefix", "value": path}}], "filters": REDIRECT}
        for path, backend in draw(
            st.lists(
                st.tuples(st.sampled_from(["/", "/x", "/y"]), st.sampled_from(["s", "t", "u", ""])),
                min_size=1,
                max_size=3,
            )
        )
    ]
    made: Object = http_route(f"r-{name}", parent=parent, rules=rules)
    if hosts := draw(HOSTS):
        made["spec"]["hostnames"] = hosts
    return made


GATEWAYS = {
    "gw": gateway("gw", listener()),
    "other": gateway("other", listener(hostname="*.example.com"), listener("more", 8080)),
}
CHANGES = st.one_of(
    st.tuples(st.just("put"), routes()),
    st.tuples(st.just("take"), routes()),
    st.tuples(st.just("service"), st.sampled_from(["s", "t", "u"])),
    st.tuples(st.just("no service"), st.sampled_from(["s", "t", "u"])),
    st.tuples(st.just("gateway"), st.sampled_from(sorted(GATEWAYS))),
    st.tuples(st.just("no gateway"), st.sampled_from(sorted(GATEWAYS))),
)


def change(made: MadeWorld, what: str, value: Any) -> None:
    match what:
        case "put":
            made.put(value)
        case "take":
            made.take(value)
        case "service":
            made.service(value, *([80] if value != "t" else [80, 81]))
        case "no service":
            made.take({"kind": "Service", "metadata": {"name": value}})
        case "gateway":
            made.put(GATEWAYS[value])
        case "no gateway":
            made.take(GATEWAYS[value])


def copied(made: MadeWorld) -> MadeWorld:
    """The same objects, of which nothing has been made yet."""
    fresh = MadeWorld()
    for kinds in ("gateways", "http_routes", "services"):
        objects: dict[Key, Object] = getattr(made.world, kinds)
        for one in objects.values():
            fresh.put(one)
    fresh.slices.update(made.slices)
    return fresh


@settings(max_examples=60, deadline=None)
@given(st.lists(CHANGES, min_size=1, max_size=12))
def test_changes_one_by_one_come_to_the_same_as_all_at_once(changes: list[tuple[str, Any]]) -> None:
    made = MadeWorld()
    for what, value in changes:
        change(made, what, value)
        snapshot = made.snapshot()
        fresh = copied(made)
        assert snapshot == fresh.snapshot()
        ours = {entry: status for entry, status in made.translate().statuses.items() if status != {"parents": []}}
        assert ours == fresh.translate().statuses


def test_a_changed_route_leaves_the_other_rules_as_the_objects_they_are() -> None:
    made = MadeWorld()
    made.service("a")
    made.service("b")
    made.put(gateway("gw", listener()), http_route("r", "a"), http_route("s", "a", hostnames=["s.com"]))
    first = [rule for host in made.translate().listeners[0].hosts.values() for rule in host.rules]
    made.put(http_route("r", "b"))
    second = [rule for host in made.translate().listeners[0].hosts.values() for rule in host.rules]
    kept = {id(rule) for rule in first} & {id(rule) for rule in second}
    assert len(first) == len(second) == 2
    assert len(kept) == 1, "the wire form of an unchanged rule must be kept"


def test_a_cluster_goes_with_its_last_route() -> None:
    made = MadeWorld()
    made.service("a")
    made.put(gateway("gw", listener()), http_route("r", "a"), http_route("s", "a"))
    made.translate()
    made.take(http_route("r"))
    made.translate()
    assert made.backends.made.keys() == {"default/a/80"}
    made.take(http_route("s"))
    made.translate()
    assert not made.backends.made


def test_a_cluster_over_several_backends_follows_them_and_goes_with_its_route() -> None:
    made = MadeWorld()
    made.put(gateway("gw", listener()))
    made.service("a")
    made.service("b")
    refs = [{"name": "a", "port": 80, "weight": 3}, {"name": "b", "port": 80}]
    route = http_route("r", rules=[{"backendRefs": refs, "sessionPersistence": {}}])
    made.put(route)

    def endpoints() -> list[tuple[str, int]]:
        made.translate()
        (union,) = (one for name, one in made.backends.made.items() if "+" in name)
        return [(one.address, one.weight) for one in union.endpoints]

    for name, addresses in (("a", ["10.0.0.1", "10.0.0.2"]), ("b", ["10.0.1.1"])):
        key = Key("default", name)
        made.slices[key][0]["endpoints"] = [{"addresses": [one]} for one in addresses]
        made.world.changed.endpoints.add(key)
    assert endpoints() == [("10.0.0.1", 375_000), ("10.0.0.2", 375_000), ("10.0.1.1", 250_000)]
    made.slices[Key("default", "a")][0]["endpoints"].pop()
    made.world.changed.endpoints.add(Key("default", "a"))
    assert endpoints() == [("10.0.0.1", 750_000), ("10.0.1.1", 250_000)]
    made.take(route)
    made.translate()
    assert made.backends.made == {}
