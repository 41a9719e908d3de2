"""Gateway API objects to statuses and configuration, by value."""

from __future__ import annotations

import pytest

from sampan.kube.objects import Key, Object
from sampan.parts.traffic import resources
from sampan.parts.traffic.control.publisher import refuse
from sampan.parts.traffic.sources.gateway_api import Result
from sampan.parts.traffic.xds import schema
from tests.unit.traffic.world_made import MadeWorld, gateway, http_route, listener, told


def gateway_status(result: Result, name: str = "gw") -> Object:
    return result.statuses[resources.GATEWAYS, Key("default", name)]


def route_status(result: Result, name: str) -> Object:
    status = result.statuses[resources.HTTP_ROUTES, Key("default", name)]
    parent: Object = status["parents"][0]
    return parent


@pytest.mark.parametrize(
    ("listeners", "expected"),
    [
        ([listener()], ["False NoConflicts"]),
        ([listener("a"), listener("b")], ["True HostnameConflict"] * 2),
        ([listener("a", hostname="a.com"), listener("b", hostname="b.com")], ["False NoConflicts"] * 2),
        ([listener("a"), listener("b", protocol="TCP")], ["True ProtocolConflict"] * 2),
        ([listener("a"), listener("b", port=81)], ["False NoConflicts"] * 2),
        ([listener("a", 53, "UDP"), listener("b", 53, "TCP")], ["False NoConflicts"] * 2),
    ],
)
def test_listeners_that_cannot_share_a_port_are_conflicted(listeners: list[Object], expected: list[str]) -> None:
    made = MadeWorld()
    made.put(gateway("gw", *listeners))
    status = gateway_status(made.translate())
    assert [told(one)["Conflicted"] for one in status["listeners"]] == expected


def test_a_gateway_with_one_good_listener_is_accepted_and_says_so() -> None:
    made = MadeWorld()
    made.put(gateway("gw", listener(), listener("odd", 99, "SCTP"), listener("tls", 443, "HTTPS", tls={})))
    status = gateway_status(made.translate())
    assert told(status) == {"Accepted": "True ListenersNotValid", "Programmed": "True Programmed"}
    good, odd, tls = status["listeners"]
    assert told(good)["Programmed"] == "True Programmed"
    assert told(odd)["Accepted"] == "False UnsupportedProtocol"
    assert told(tls)["ResolvedRefs"] == "False InvalidCertificateRef"
    assert all(one["observedGeneration"] == 1 for one in status["conditions"])


def test_allowed_kinds_that_cannot_be_served() -> None:
    made = MadeWorld()
    made.put(
        gateway(
            "gw",
            listener("mixed", allowedRoutes={"kinds": [{"kind": "HTTPRoute"}, {"kind": "Odd"}]}),
            listener("none", 81, allowedRoutes={"kinds": [{"kind": "TCPRoute"}]}),
        )
    )
    mixed, none = gateway_status(made.translate())["listeners"]
    assert [one["kind"] for one in mixed["supportedKinds"]] == ["HTTPRoute"]
    assert told(mixed)["ResolvedRefs"] == told(none)["ResolvedRefs"] == "False InvalidRouteKinds"
    assert none["supportedKinds"] == []


def test_gateways_have_addresses_of_their_own_that_stay() -> None:
    made = MadeWorld()
    made.put(gateway("one", listener()), gateway("two", listener()))
    made.put(gateway("asks", listener(), addresses=[{"value": "127.1.2.3"}]))
    made.put(gateway("wrong", listener(), addresses=[{"value": "8.8.8.8"}]))
    addresses = [gateway_status(made.translate(), name)["addresses"][0]["value"] for name in ("one", "two", "asks")]
    assert addresses == [
        gateway_status(made.translate(), name)["addresses"][0]["value"] for name in ("one", "two", "asks")
    ]
    assert len(set(addresses)) == 3
    assert addresses[2] == "127.1.2.3"
    assert told(gateway_status(made.translate(), "wrong"))["Accepted"] == "False UnsupportedAddress"
    first, shared = made.translate().listeners[:2]
    assert (shared.address, shared.port) == ("127.0.0.1", 9080)
    assert first.port == 80
    moved = MadeWorld(low_ports=False)
    moved.put(gateway("gw", listener()))
    assert moved.translate().listeners[0].port == 9080


def test_statuses_of_other_controllers_are_kept_and_ours_go_with_the_gateway() -> None:
    made = MadeWorld()
    made.service("a")
    made.put(gateway("gw", listener()))
    theirs = {"parentRef": {"name": "else"}, "controllerName": "x.io/y", "conditions": []}
    ours = {"parentRef": {"name": "gw"}, "controllerName": "sampan.dev/gateway-controller", "conditions": []}
    made.put({**http_route("r", "a"), "status": {"parents": [theirs, ours]}})
    status = made.translate().statuses[resources.HTTP_ROUTES, Key("default", "r")]
    assert [one["controllerName"] for one in status["parents"]] == ["x.io/y", "sampan.dev/gateway-controller"]
    del made.world.gateways[Key("default", "gw")]  # type: ignore[attr-defined]
    made.world.version += 1
    assert made.translate().statuses[resources.HTTP_ROUTES, Key("default", "r")] == {"parents": [theirs]}


def test_a_changed_service_is_noticed_by_routes_that_did_not_change() -> None:
    made = MadeWorld()
    made.put(gateway("gw", listener()), http_route("r", "late"))
    assert told(route_status(made.translate(), "r"))["ResolvedRefs"] == "False BackendNotFound"
    made.service("late")
    assert told(route_status(made.translate(), "r"))["ResolvedRefs"] == "True ResolvedRefs"
    assert made.backends.made.keys() == {"default/late/80"}
    made.translate()
    assert made.backends.made.keys() == {"default/late/80"}, "a cluster of an unchanged route went missing"


def test_an_unchanged_world_gives_the_same_bytes_and_one_route_changes_one_resource() -> None:
    made = MadeWorld()
    made.service("a")
    made.service("b")
    made.put(gateway("gw", listener()), http_route("r", "a"), http_route("s", "a", hostnames=["s.com"]))
    first = made.snapshot()
    assert made.snapshot() == first
    made.put(http_route("r", "b"))
    second = made.snapshot()
    changed = {
        (type_url, name)
        for type_url, found in second.resources.items()
        for name, one in found.items()
        if first.of(type_url).get(name) != one
    }
    names = {name for type_url, name in changed if type_url == schema.ROUTES}
    assert len(names) == 1, "the Gateway's own and the shared address share their routes"
    assert {name for type_url, name in changed if type_url == schema.CLUSTER} == {"default/b/80"}
    assert not {name for type_url, name in changed if type_url == schema.LISTENER}


@pytest.mark.parametrize("value", ["line\nbreak", "zero\0"])
def test_header_values_envoy_would_refuse_are_told(value: str) -> None:
    made = MadeWorld()
    made.service("a")
    modifier = {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "x", "value": value}]}}
    made.put(gateway("gw", listener()))
    made.put(http_route("r", rules=[{"filters": [modifier], "backendRefs": [{"name": "a", "port": 80}]}]))
    assert told(route_status(made.translate(), "r"))["Accepted"] == "False UnsupportedValue"


def test_what_envoy_refuses_is_told_on_the_listener_it_belongs_to() -> None:
    made = MadeWorld()
    made.put(gateway("gw", listener(), listener("other", 81)))
    status = gateway_status(made.translate())
    address = status["addresses"][0]["value"]
    spec = made.world.gateways[Key("default", "gw")]["spec"]
    refuse(status, spec, made.places, "10.0.0.1:80", "elsewhere")
    refuse(status, spec, made.places, f"{address}:81", "cannot bind: Address already in use")
    good, bad = status["listeners"]
    assert told(good)["Programmed"] == "True Programmed"
    assert told(bad)["Programmed"] == "False Invalid"
    assert told(bad)["Accepted"] == "False PortUnavailable"
    assert told(status)["Programmed"] == "True Programmed"
