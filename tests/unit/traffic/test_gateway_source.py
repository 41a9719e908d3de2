"""Gateway API objects to statuses and configuration, by value."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sampan.kube.objects import Key, Object
from sampan.parts.traffic import resources
from sampan.parts.traffic.control.refusals import overlaid
from sampan.parts.traffic.control.statuses import dated
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
    current = {"parents": [theirs, ours]}
    made.put({**http_route("r", "a"), "status": current})
    status = dated(made.translate().statuses[resources.HTTP_ROUTES, Key("default", "r")], current, "now")
    assert [one["controllerName"] for one in status["parents"]] == ["x.io/y", "sampan.dev/gateway-controller"]
    made.take(gateway("gw"))
    status = dated(made.translate().statuses[resources.HTTP_ROUTES, Key("default", "r")], current, "now")
    assert status == {"parents": [theirs]}


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


FULL, PREFIX = "ReplaceFullPath", "ReplacePrefixMatch"


@pytest.mark.parametrize("value", ["line\nbreak", "zero\0"])
@pytest.mark.parametrize(
    "filter",
    [
        lambda value: {
            "type": "RequestHeaderModifier",
            "requestHeaderModifier": {"set": [{"name": "x", "value": value}]},
        },
        lambda value: {"type": "URLRewrite", "urlRewrite": {"path": {"type": FULL, "replaceFullPath": value}}},
        lambda value: {"type": "URLRewrite", "urlRewrite": {"path": {"type": PREFIX, "replacePrefixMatch": value}}},
        lambda value: {
            "type": "RequestRedirect",
            "requestRedirect": {"path": {"type": FULL, "replaceFullPath": value}},
        },
    ],
)
def test_text_that_envoy_would_refuse_is_told(filter: Callable[[str], Object], value: str) -> None:
    made = MadeWorld()
    made.service("a")
    made.put(gateway("gw", listener()))
    made.put(http_route("r", rules=[{"filters": [filter(value)], "backendRefs": [{"name": "a", "port": 80}]}]))
    assert told(route_status(made.translate(), "r"))["Accepted"] == "False UnsupportedValue"


def test_what_envoy_refuses_is_told_on_the_listener_it_belongs_to() -> None:
    made = MadeWorld()
    made.put(gateway("gw", listener(), listener("other", 81)))
    result = made.translate()
    address = gateway_status(result)["addresses"][0]["value"]
    rejected = {
        (schema.LISTENER, "10.0.0.1:80"): ("1", "elsewhere"),
        (schema.LISTENER, f"{address}:81"): ("1", "cannot bind: Address already in use"),
    }
    status = overlaid(made.source, result.statuses, rejected, {})[resources.GATEWAYS, Key("default", "gw")]
    good, bad = status["listeners"]
    assert told(good)["Programmed"] == "True Programmed"
    assert told(bad)["Programmed"] == "False Invalid"
    assert told(bad)["Accepted"] == "False PortUnavailable"
    assert told(status)["Programmed"] == "True Programmed"
    assert told(gateway_status(result)["listeners"][1])["Programmed"] == "True Programmed", "the source's own is kept"


def listener_set(name: str, *listeners: Object, namespace: str = "default", parent: str = "gw") -> Object:
    return {
        "kind": "ListenerSet",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"parentRef": {"name": parent, "namespace": "default"}, "listeners": list(listeners)},
    }


def set_status(result: Result, name: str, namespace: str = "default") -> Object:
    return result.statuses[resources.LISTENER_SETS, Key(namespace, name)]


def test_a_listener_set_needs_leave_and_yields_to_the_gateway_and_older_sets() -> None:
    made = MadeWorld()
    made.service("a")
    made.put(gateway("shut", listener()), listener_set("extra", listener("more", 81), parent="shut"))
    assert told(set_status(made.translate(), "extra"))["Accepted"] == "False NotAllowed"
    made.put(gateway("gw", listener(), allowedListeners={"namespaces": {"from": "Same"}}))
    made.put(listener_set("one", listener("dup", 80), listener("own", 81)))
    made.put(listener_set("two", listener("late", 81), listener("alone", 82, hostname="x.com")))
    made.put(listener_set("far", listener("far", 83), namespace="elsewhere"))
    result = made.translate()
    assert told(gateway_status(result)["listeners"][0])["Conflicted"] == "False NoConflicts"
    assert gateway_status(result)["attachedListenerSets"] == 2
    dup, own = set_status(result, "one")["listeners"]
    assert told(dup)["Conflicted"] == "True HostnameConflict"
    assert told(own)["Programmed"] == "True Programmed"
    assert told(set_status(result, "one"))["Accepted"] == "True ListenersNotValid"
    late, alone = set_status(result, "two")["listeners"]
    assert told(late)["Accepted"] == "False HostnameConflict"
    assert told(alone)["Accepted"] == "True Accepted"
    assert told(set_status(result, "far", "elsewhere"))["Accepted"] == "False NotAllowed"


def test_a_route_attaches_to_a_listener_set_by_name_and_not_to_its_gateway() -> None:
    made = MadeWorld()
    made.service("a")
    made.put(gateway("gw", listener(), allowedListeners={"namespaces": {"from": "All"}}))
    made.put(listener_set("extra", listener("more", 81)))
    made.put(http_route("r", "a", parentRefs=[{"kind": "ListenerSet", "name": "extra"}]))
    result = made.translate()
    assert told(route_status(result, "r"))["Accepted"] == "True Accepted"
    assert set_status(result, "extra")["listeners"][0]["attachedRoutes"] == 1
    assert gateway_status(result)["listeners"][0]["attachedRoutes"] == 0
    served = {(one.address, one.port) for one in result.listeners if one.hosts}
    address = gateway_status(result)["addresses"][0]["value"]
    assert served == {(address, 81), ("127.0.0.1", 9081)}
