"""Which test shows each feature the GatewayClass promises, and the features that have no scenario elsewhere."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from concurrent import futures
from http.cookies import SimpleCookie

import grpc
import pytest

from sampan.kube.objects import Object
from sampan.parts.traffic.sources.gateway_api import SUPPORTED_FEATURES
from tests.clients.gateway_harness import (
    GATEWAY_API,
    Bench,
    bench,
    endpoint_slice,
    gateway,
    http_listener,
    reasons,
    route,
    to,
)
from tests.clients.test_gateway_protocols import Echo

pytestmark = pytest.mark.xdist_group("gateway-features")

SHOWN_BY = {
    "BackendTLSPolicy": "tls.test_tls_to_a_backend_is_verified_or_refused",
    "BackendTLSPolicySANValidation": "tls.test_the_names_a_backend_may_have_are_checked",
    "GRPCRoute": "protocols.test_grpc_routes",
    "Gateway": "http.test_hostnames_of_listeners_and_routes_intersect",
    "GatewayHTTPListenerIsolation": "http.test_a_request_belongs_to_the_most_specific_listener_alone",
    "GatewayPort8080": "http.test_redirects",
    "GatewayStaticAddresses": "features.test_a_gateway_may_ask_for_its_address",
    "HTTPRoute": "http.test_matching_follows_path_elements_headers_and_methods",
    "HTTPRoute303RedirectStatusCode": "http.test_redirects",
    "HTTPRoute307RedirectStatusCode": "http.test_redirects",
    "HTTPRoute308RedirectStatusCode": "http.test_redirects",
    "HTTPRouteBackendProtocolH2C": "features.test_a_backend_that_speaks_http_2_in_the_clear",
    "HTTPRouteBackendProtocolWebSocket": "protocols.test_websockets_on_any_backend",
    "HTTPRouteBackendRequestHeaderModification": "http.test_header_modifiers",
    "HTTPRouteBackendTimeout": "http.test_timeouts",
    "HTTPRouteCORS": "http.test_cors",
    "HTTPRouteDestinationPortMatching": "http.test_attachment_is_limited_by_namespaces_kinds_sections_and_ports",
    "HTTPRouteHostRewrite": "http.test_rewrites",
    "HTTPRouteMethodMatching": "http.test_matching_follows_path_elements_headers_and_methods",
    "HTTPRouteNamedRouteRule": "features.test_rules_may_have_names",
    "HTTPRouteParentRefPort": "http.test_attachment_is_limited_by_namespaces_kinds_sections_and_ports",
    "HTTPRoutePathRedirect": "http.test_redirects",
    "HTTPRoutePathRewrite": "http.test_rewrites",
    "HTTPRoutePortRedirect": "http.test_redirects",
    "HTTPRouteQueryParamMatching": "http.test_matching_follows_path_elements_headers_and_methods",
    "HTTPRouteRequestMirror": "http.test_mirrors",
    "HTTPRouteRequestMultipleMirrors": "http.test_mirrors",
    "HTTPRouteRequestPercentageMirror": "http.test_mirrors",
    "HTTPRouteRequestTimeout": "http.test_timeouts",
    "HTTPRouteResponseHeaderModification": "http.test_header_modifiers",
    "HTTPRouteSchemeRedirect": "http.test_redirects",
    "ListenerSet": "features.test_listeners_of_a_set_are_served_beside_the_gateways_own",
    "ReferenceGrant": "http.test_references_across_namespaces_need_a_grant",
    "TCPRoute": "protocols.test_tcp_and_udp_routes",
    "TLSRoute": "tls.test_tls_routes_pass_through_or_terminate",
    "TLSRouteModeTerminate": "tls.test_tls_routes_pass_through_or_terminate",
    "UDPRoute": "protocols.test_tcp_and_udp_routes",
}


@pytest.fixture(scope="module")
def gw() -> Iterator[Bench]:
    with bench() as made:
        yield made


def test_every_feature_that_is_promised_is_shown() -> None:
    assert sorted(SHOWN_BY) == SUPPORTED_FEATURES
    for place in SHOWN_BY.values():
        module, _, name = place.partition(".")
        assert hasattr(importlib.import_module(f"tests.clients.test_gateway_{module}"), name), place


def test_the_class_tells_its_features(gw: Bench) -> None:
    status = gw.settled("GatewayClass", "sampan", None)
    assert [one["name"] for one in status["supportedFeatures"]] == SUPPORTED_FEATURES


def test_a_gateway_may_ask_for_its_address(gw: Bench) -> None:
    ns = gw.namespace("static")
    gw.service(ns, "v1")
    made = gateway(ns, "gw")
    made["spec"]["addresses"] = [{"type": "IPAddress", "value": "127.91.17.33"}]
    gw.apply(made)
    assert gw.settled("Gateway", "gw", ns)["addresses"] == [{"type": "IPAddress", "value": "127.91.17.33"}]
    gw.route(route(ns, "r", "gw", [{"backendRefs": to("v1")}]))
    assert gw.ask("127.91.17.33").backend == "v1"
    made["spec"]["addresses"] = [{"type": "IPAddress", "value": "192.0.2.1"}]
    gw.apply(made)
    assert reasons(gw.settled("Gateway", "gw", ns))["Accepted"] == "False UnsupportedAddress"


def test_two_platforms_never_share_an_address_and_port(gw: Bench) -> None:
    ns, address = gw.namespace("neighbours"), "127.91.17.34"

    def claimed(by: Bench, name: str) -> Object:
        by.service(ns, name)
        made = gateway(ns, "gw")
        made["spec"]["addresses"] = [{"type": "IPAddress", "value": address}]
        by.apply(made)
        by.route(route(ns, "r", "gw", [{"backendRefs": to(name)}]))
        status: Object = by.settled("Gateway", "gw", ns)["listeners"][0]
        return status

    assert reasons(claimed(gw, "first"))["Programmed"] == "True Programmed"
    gw.until(lambda: gw.ask(address).backend == "first")
    with bench() as neighbour:
        neighbour.namespace(ns)
        claimed(neighbour, "second")

        def refused() -> bool:
            (listener,) = neighbour.get("Gateway", "gw", ns)["status"]["listeners"]
            told = reasons(listener)
            return (told["Accepted"], told["Programmed"]) == ("False PortUnavailable", "False Invalid")

        neighbour.until(refused)
        assert {gw.ask(address).backend for _ in range(20)} == {"first"}
        # what the platforms chose themselves is apart
        assert gw.gateway(ns, "own") != neighbour.gateway(ns, "own")


def test_a_backend_that_speaks_http_2_in_the_clear(gw: Bench) -> None:
    ns = gw.namespace("h2c")
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[Echo()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        gw.service(ns, "h2c", target=port, app_protocol="kubernetes.io/h2c")
        address = gw.gateway(ns, "gw")
        gw.route(route(ns, "r", "gw", [{"backendRefs": to("h2c")}]))
        with grpc.insecure_channel(f"{address}:80") as channel:
            # an HTTPRoute, and a server that understands nothing but HTTP/2
            assert channel.unary_unary("/any.Thing/Do", None, None)(b"x", timeout=10) == b"/any.Thing/Do:x"
    finally:
        server.stop(None)


def test_rules_may_have_names(gw: Bench) -> None:
    ns = gw.namespace("named")
    gw.service(ns, "v1")
    gw.service(ns, "v2")
    address = gw.gateway(ns, "gw")
    rules: list[Object] = [
        {"name": "first", "matches": [{"path": {"value": "/one"}}], "backendRefs": to("v1")},
        {"name": "second", "matches": [{"path": {"value": "/two"}}], "backendRefs": to("v2")},
    ]
    assert reasons(gw.route(route(ns, "r", "gw", rules))["parents"][0])["Accepted"] == "True Accepted"
    assert (gw.ask(address, path="/one").backend, gw.ask(address, path="/two").backend) == ("v1", "v2")
    assert [rule["name"] for rule in gw.get("HTTPRoute", "r", ns)["spec"]["rules"]] == ["first", "second"]


def test_listeners_of_a_set_are_served_beside_the_gateways_own(gw: Bench) -> None:
    ns, other = gw.namespace("sets"), gw.namespace("sets-elsewhere")
    for name in ("own", "extra"):
        gw.service(ns, name)
    made = gateway(ns, "gw", http_listener("own", "own.com"))
    made["spec"]["allowedListeners"] = {"namespaces": {"from": "Same"}}
    gw.apply(made)

    def listener_set(namespace: str) -> Object:
        return {
            "apiVersion": GATEWAY_API,
            "kind": "ListenerSet",
            "metadata": {"name": "more", "namespace": namespace},
            "spec": {
                "parentRef": {"name": "gw", "namespace": ns},
                "listeners": [http_listener("extra", "extra.com"), http_listener("clash", "own.com")],
            },
        }

    gw.apply(listener_set(ns), listener_set(other))
    status = gw.settled("ListenerSet", "more", ns)
    assert reasons(status)["Accepted"] == "True ListenersNotValid"
    extra, clash = status["listeners"]
    assert reasons(extra)["Programmed"] == "True Programmed"
    assert reasons(clash)["Conflicted"] == "True HostnameConflict"
    assert reasons(gw.settled("ListenerSet", "more", other))["Accepted"] == "False NotAllowed"
    address = gw.until(lambda: gw.get("Gateway", "gw", ns)["status"]["addresses"][0]["value"])
    gw.route(route(ns, "own", "gw", [{"backendRefs": to("own")}]))
    attached = route(ns, "extra", "more", [{"backendRefs": to("extra")}])
    attached["spec"]["parentRefs"] = [{"kind": "ListenerSet", "name": "more"}]
    gw.route(attached)
    assert gw.ask(address, "own.com").backend == "own"
    assert gw.ask(address, "extra.com").backend == "extra"
    gw.until(lambda: gw.get("Gateway", "gw", ns)["status"].get("attachedListenerSets") == 1)
    gw.delete("ListenerSet", "more", ns)
    gw.until(lambda: gw.ask(address, "extra.com").status == 404)
    assert gw.ask(address, "own.com").backend == "own"


# -- sessions (no feature of upstream's list names them)


def three(gw: Bench, namespace: str, service: str) -> None:
    """A Service of three pods."""
    ports = [gw.backends.port(f"{service}-{number}") for number in range(3)]
    gw.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": service, "namespace": namespace},
            "spec": {"ports": [{"name": "main", "port": 8080}]},
        },
        *(
            endpoint_slice(namespace, service, [("127.0.0.1", port)], suffix=str(number))
            for number, port in enumerate(ports)
        ),
    )


def test_a_session_in_a_cookie_stays_with_its_pod_and_moves_when_that_is_gone(gw: Bench) -> None:
    ns = gw.namespace("sessions")
    three(gw, ns, "shop")
    address = gw.gateway(ns, "gw")
    session = {
        "sessionName": "cart",
        "absoluteTimeout": "1h",
        "cookieConfig": {"lifetimeType": "Permanent"},
    }
    rules: list[Object] = [
        {"matches": [{"path": {"value": "/shop"}}], "sessionPersistence": session, "backendRefs": to("shop")},
        {"backendRefs": to("shop")},
    ]
    gw.route(route(ns, "r", "gw", rules))
    seen = set()
    for _ in range(4):
        first = gw.ask(address, path="/shop")
        cookie = SimpleCookie(first.headers["set-cookie"])["cart"]
        assert (cookie["path"], cookie["max-age"]) == ("/shop", "3600")
        again = {gw.ask(address, path="/shop/x", headers={"Cookie": f"cart={cookie.value}"}).backend for _ in range(12)}
        assert again == {first.backend}
        seen.add(first.backend)
    assert len(seen) > 1, "without a cookie it is anybody's turn"
    assert gw.ask(address).headers["set-cookie"] is None
    gw.delete("EndpointSlice", f"shop-{first.backend[-1]}", ns)
    moved = gw.until(
        lambda: (
            (answer := gw.ask(address, path="/shop", headers={"Cookie": f"cart={cookie.value}"})).backend
            != first.backend
            and answer
        )
    )
    cookie = SimpleCookie(moved.headers["set-cookie"])["cart"]
    again = {gw.ask(address, path="/shop", headers={"Cookie": f"cart={cookie.value}"}).backend for _ in range(8)}
    assert again == {moved.backend}


def test_a_session_in_a_header(gw: Bench) -> None:
    ns = gw.namespace("header")
    three(gw, ns, "api")
    address = gw.gateway(ns, "gw")
    session = {"type": "Header", "sessionName": "x-session"}
    gw.route(route(ns, "r", "gw", [{"sessionPersistence": session, "backendRefs": to("api")}]))
    first = gw.ask(address)
    given = first.headers["x-session"]
    assert {gw.ask(address, headers={"X-Session": given}).backend for _ in range(12)} == {first.backend}
    assert gw.ask(address, headers={"X-Session": "nonsense"}).status == 200


def test_sessions_over_several_backends_last_while_new_ones_go_by_weight(gw: Bench) -> None:
    ns = gw.namespace("weighted")
    gw.service(ns, "old")
    three(gw, ns, "new")
    address = gw.gateway(ns, "gw")
    session = {"sessionName": "cart"}

    def split(old: int, new: int) -> Object:
        backends = [{**one, "weight": weight} for one, weight in zip(to("old", "new"), (old, new), strict=True)]
        return route(ns, "r", "gw", [{"sessionPersistence": session, "backendRefs": backends}])

    gw.route(split(75, 25))
    cookies: dict[str, str] = {}
    seen = []
    for _ in range(200):
        answer = gw.ask(address)
        cookies[answer.backend] = SimpleCookie(answer.headers["set-cookie"])["cart"].value
        seen.append(answer.backend)
    assert 120 < seen.count("old") < 180
    assert cookies.keys() == {"old", "new-0", "new-1", "new-2"}
    gw.route(split(1, 99))
    gw.until(lambda: [gw.ask(address).backend for _ in range(10)].count("old") < 3)
    for backend, cookie in cookies.items():
        assert {gw.ask(address, headers={"Cookie": f"cart={cookie}"}).backend for _ in range(6)} == {backend}
    # endpoints come and go as they do elsewhere
    gw.delete("EndpointSlice", "new-1", ns)
    gw.until(lambda: gw.ask(address, headers={"Cookie": f"cart={cookies['new-1']}"}).backend != "new-1")
    assert gw.ask(address, headers={"Cookie": f"cart={cookies['new-2']}"}).backend == "new-2"
    # a backend without a share serves nobody any more
    gw.route(split(0, 1))
    gw.until(lambda: gw.ask(address, headers={"Cookie": f"cart={cookies['old']}"}).backend != "old")


@pytest.mark.parametrize(
    "session",
    [
        {"idleTimeout": "5s"},
        {"sessionName": "no name"},
        {"type": "Header", "absoluteTimeout": "5s"},
        {"several": "with filters"},
        {"several": "protocols"},
    ],
)
def test_sessions_that_cannot_be_had_are_told(gw: Bench, session: Object) -> None:
    session = dict(session)
    ns = gw.namespace("no-session")
    gw.service(ns, "v1")
    gw.gateway(ns, "gw")
    gw.service(ns, "h2", app_protocol="kubernetes.io/h2c")
    backends = to("v1")
    match session.pop("several", None):
        case "protocols":
            backends = to("v1", "h2")
        case "with filters":
            added = {"type": "RequestHeaderModifier", "requestHeaderModifier": {"add": [{"name": "x", "value": "y"}]}}
            backends = [*to("v1"), {**to("v1")[0], "filters": [added]}]
    status = gw.route(route(ns, "r", "gw", [{"sessionPersistence": session, "backendRefs": backends}]))
    assert reasons(status["parents"][0])["Accepted"] == "False UnsupportedValue"
