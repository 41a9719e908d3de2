"""The Gateway API's HTTP behaviour with the real Envoy: the scenarios a conformance suite asks about."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sampan.kube.objects import Object
from tests.clients.gateway_harness import Bench, bench, http_listener, reasons, route, to


@pytest.fixture(scope="module")
def gw() -> Iterator[Bench]:
    with bench() as made:
        yield made


def test_matching_follows_path_elements_headers_and_methods(gw: Bench) -> None:
    ns = gw.namespace("matching")
    for name in ("v1", "v2", "v3"):
        gw.service(ns, name)
    address = gw.gateway(ns, "gw")
    rules: list[Object] = [
        {
            "matches": [{"path": {"value": "/"}}, {"headers": [{"name": "version", "value": "one"}]}],
            "backendRefs": to("v1"),
        },
        {
            "matches": [{"path": {"value": "/v2"}}, {"headers": [{"name": "Version", "value": "two"}]}],
            "backendRefs": to("v2"),
        },
        {"matches": [{"path": {"type": "Exact", "value": "/v2/exact"}}], "backendRefs": to("v3")},
        {"matches": [{"method": "PATCH", "path": {"value": "/v2"}}], "backendRefs": to("v1")},
        {
            "matches": [{"queryParams": [{"name": "animal", "value": "whale"}], "path": {"value": "/q"}}],
            "backendRefs": to("v2"),
        },
        {
            "matches": [
                {
                    "queryParams": [{"name": "animal", "value": "whale"}, {"name": "color", "value": "blue"}],
                    "path": {"value": "/q"},
                }
            ],
            "backendRefs": to("v3"),
        },
        {"matches": [{"path": {"type": "RegularExpression", "value": "/re/[0-9]+"}}], "backendRefs": to("v3")},
    ]
    gw.route(route(ns, "r", "gw", rules))
    for path, headers, method, backend in (
        ("/", {}, "GET", "v1"),
        ("/example", {}, "GET", "v1"),
        ("/", {"Version": "one"}, "GET", "v1"),
        ("/v2", {}, "GET", "v2"),
        ("/v2/", {}, "GET", "v2"),
        ("/v2/deep?x=1", {}, "GET", "v2"),
        ("/v2example", {}, "GET", "v1"),
        ("/foo", {"version": "two"}, "GET", "v2"),
        ("/v2/exact", {}, "GET", "v3"),
        ("/v2/exact/", {}, "GET", "v2"),
        ("/v2/x", {}, "PATCH", "v1"),
        ("/q", {}, "GET", "v1"),
        ("/q?animal=whale", {}, "GET", "v2"),
        ("/q?color=blue&animal=whale", {}, "GET", "v3"),
        ("/re/42", {}, "GET", "v3"),
        ("/re/x", {}, "GET", "v1"),
    ):
        answer = gw.ask(address, path=path, headers=headers, method=method)
        assert answer.backend == backend, (path, headers, method)


def test_no_rule_matches_is_404(gw: Bench) -> None:
    ns = gw.namespace("nomatch")
    gw.service(ns, "v1")
    address = gw.gateway(ns, "gw")
    gw.route(route(ns, "r", "gw", [{"matches": [{"path": {"value": "/only"}}], "backendRefs": to("v1")}], "a.com"))
    assert gw.ask(address, "a.com", "/only").backend == "v1"
    assert gw.ask(address, "a.com", "/other").status == 404
    assert gw.ask(address, "b.com", "/only").status == 404


def test_header_precedence_and_order_of_routes(gw: Bench) -> None:
    ns = gw.namespace("precedence")
    for name in ("v1", "v2", "v3"):
        gw.service(ns, name)
    address = gw.gateway(ns, "gw")
    one = {"name": "color", "value": "blue"}
    two = {"name": "animal", "value": "dog"}
    gw.route(route(ns, "b-older", "gw", [{"matches": [{"headers": [one]}], "backendRefs": to("v1")}]))
    gw.route(
        route(
            ns,
            "a-newer",
            "gw",
            [
                {"matches": [{"headers": [one]}], "backendRefs": to("v3")},
                {"matches": [{"headers": [one, two]}], "backendRefs": to("v2")},
            ],
        )
    )
    assert gw.ask(address, headers={"color": "blue", "animal": "dog"}).backend == "v2"
    # both were made within a second: names decide
    assert gw.ask(address, headers={"color": "blue"}).backend in ("v1", "v3")


def test_hostnames_of_listeners_and_routes_intersect(gw: Bench) -> None:
    ns = gw.namespace("hostnames")
    for name in ("v1", "v2", "v3"):
        gw.service(ns, name)
    address = gw.gateway(
        ns,
        "gw",
        http_listener("specific", "very.specific.com"),
        http_listener("wild", "*.wildcard.io"),
        http_listener("other", "*.anotherwildcard.io"),
    )
    gw.route(
        route(
            ns,
            "specific",
            "gw",
            [{"matches": [{"path": {"value": "/s1"}}], "backendRefs": to("v1")}],
            "non.matching.com",
            "*.nonmatchingwildcard.io",
            "very.specific.com",
        )
    )
    gw.route(
        route(
            ns,
            "wild",
            "gw",
            [{"matches": [{"path": {"value": "/s2"}}], "backendRefs": to("v2")}],
            "*.wildcard.io",
            "wildcard.io",
            "foo.wildcard.io",
        )
    )
    gw.route(
        route(
            ns, "exact", "gw", [{"matches": [{"path": {"value": "/s3"}}], "backendRefs": to("v3")}], "very.specific.com"
        )
    )
    status = gw.route(route(ns, "nothing", "gw", [{"backendRefs": to("v3")}], "specific.but.wrong.com"))
    assert reasons(status["parents"][0])["Accepted"] == "False NoMatchingListenerHostname"
    for host, path, backend in (
        ("very.specific.com", "/s1", "v1"),
        ("very.specific.com", "/s3", "v3"),
        ("very.specific.com:1234", "/s3", "v3"),
        ("very.specific.com.", "/s3", "v3"),
        ("VERY.Specific.com", "/s3", "v3"),
        ("non.matching.com", "/s1", "404"),
        ("foo.nonmatchingwildcard.io", "/s1", "404"),
        ("foo.wildcard.io", "/s2", "v2"),
        ("bar.wildcard.io", "/s2", "v2"),
        ("foo.bar.wildcard.io", "/s2", "v2"),
        ("wildcard.io", "/s2", "404"),
        ("very.specific.com", "/s2", "404"),
        ("specific.but.wrong.com", "/", "404"),
    ):
        assert gw.ask(address, host, path).backend == backend, (host, path)
    assert gw.until(
        lambda: (
            {one["name"]: one["attachedRoutes"] for one in gw.get("Gateway", "gw", ns)["status"]["listeners"]}
            == {"specific": 2, "wild": 1, "other": 0}
        )
    )


def test_a_request_belongs_to_the_most_specific_listener_alone(gw: Bench) -> None:
    ns = gw.namespace("isolation")
    for name in ("v1", "v2", "v3", "v4"):
        gw.service(ns, name)
    address = gw.gateway(
        ns,
        "gw",
        http_listener("empty"),
        http_listener("wild", "*.example.com"),
        http_listener("deeper", "*.foo.example.com"),
        http_listener("exact", "abc.foo.example.com"),
    )
    for section, backend, path in (
        ("empty", "v1", "/e"),
        ("wild", "v2", "/w"),
        ("deeper", "v3", "/d"),
        ("exact", "v4", "/x"),
    ):
        made = route(ns, section, "gw", [{"matches": [{"path": {"value": path}}], "backendRefs": to(backend)}])
        made["spec"]["parentRefs"][0]["sectionName"] = section
        gw.route(made)
    for host, served in (
        ("bar.com", "/e"),
        ("bar.example.com", "/w"),
        ("bar.foo.example.com", "/d"),
        ("abc.foo.example.com", "/x"),
    ):
        for path in ("/e", "/w", "/d", "/x"):
            assert (gw.ask(address, host, path).status == 200) == (path == served), (host, path)


def test_two_gateways_with_the_same_host_do_not_mix(gw: Bench) -> None:
    ns = gw.namespace("two")
    for name in ("v1", "v2"):
        gw.service(ns, name)
    one, other = gw.gateway(ns, "one"), gw.gateway(ns, "other")
    assert one != other
    gw.route(route(ns, "r1", "one", [{"backendRefs": to("v1")}], "same.com"))
    gw.route(route(ns, "r2", "other", [{"backendRefs": to("v2")}], "same.com"))
    assert gw.ask(one, "same.com").backend == "v1"
    assert gw.ask(other, "same.com").backend == "v2"
    host, _, port = gw.platform.address("gateway").partition(":")
    assert gw.ask(host, "same.com", port=int(port)).status == 200


def test_header_modifiers(gw: Bench) -> None:
    ns = gw.namespace("headers")
    gw.service(ns, "v1")
    address = gw.gateway(ns, "gw")
    modify = {
        "set": [{"name": "X-Set", "value": "new 100%"}],
        "add": [{"name": "X-Add", "value": "more"}],
        "remove": ["X-Remove"],
    }
    respond = {
        "set": [{"name": "X-Backend", "value": "hidden"}],
        "add": [{"name": "X-New", "value": "1"}],
        "remove": ["X-Drop"],
    }
    gw.route(
        route(
            ns,
            "r",
            "gw",
            [
                {
                    "matches": [{"path": {"value": "/request"}}],
                    "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": modify}],
                    "backendRefs": to("v1"),
                },
                {
                    "matches": [{"path": {"value": "/response"}}],
                    "filters": [{"type": "ResponseHeaderModifier", "responseHeaderModifier": respond}],
                    "backendRefs": to("v1"),
                },
                {
                    "matches": [{"path": {"value": "/backend"}}],
                    "backendRefs": [
                        {
                            **to("v1")[0],
                            "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": modify}],
                        }
                    ],
                },
            ],
        )
    )
    for path in ("/request", "/backend"):
        seen = gw.ask(address, path=path, headers={"X-Set": "old", "X-Add": "a", "X-Remove": "b", "X-Keep": "c"}).seen
        assert seen["headers"]["x-set"] == "new 100%"
        assert "x-remove" not in seen["headers"]
        assert seen["headers"]["x-keep"] == "c"
        assert seen["headers"]["x-add"] in ("a,more", "more", "a")
        assert [name.lower() for name in seen["names"]].count("x-add") in (1, 2)
    answer = gw.ask(address, path="/response")
    assert answer.headers["x-backend"] == "hidden"
    assert answer.headers["x-new"] == "1"
    assert "x-drop" not in answer.headers


def redirect(**more: object) -> list[dict[str, object]]:
    return [{"type": "RequestRedirect", "requestRedirect": more}]


def test_redirects(gw: Bench) -> None:
    ns = gw.namespace("redirects")
    gw.service(ns, "v1")
    address = gw.gateway(ns, "gw", http_listener(), http_listener("other", port=8080))
    prefix = {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"}
    table: list[tuple[str, dict[str, object], str, int, str]] = [
        ("/host", {"hostname": "example.org"}, "/host", 302, "http://example.org/host"),
        (
            "/status",
            {"hostname": "example.org", "statusCode": 301},
            "/status?a=b",
            301,
            "http://example.org/status?a=b",
        ),
        ("/scheme", {"scheme": "https"}, "/scheme", 302, "https://example.com/scheme"),
        ("/both", {"scheme": "https", "hostname": "example.org"}, "/both", 302, "https://example.org/both"),
        ("/port", {"port": 8083}, "/port", 302, "http://example.com:8083/port"),
        ("/p80", {"port": 80}, "/p80", 302, "http://example.com/p80"),
        ("/s443", {"scheme": "https", "port": 443}, "/s443", 302, "https://example.com/s443"),
        ("/s8443", {"scheme": "https", "port": 8443}, "/s8443", 302, "https://example.com:8443/s8443"),
        ("/old", {"path": prefix}, "/old/x", 302, "http://example.com/new/x"),
        (
            "/root",
            {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}},
            "/root/x",
            302,
            "http://example.com/x",
        ),
        (
            "/full",
            {"path": {"type": "ReplaceFullPath", "replaceFullPath": "/all"}},
            "/full/x",
            302,
            "http://example.com/all",
        ),
        ("/308", {"statusCode": 308, "hostname": "h.org"}, "/308", 308, "http://h.org/308"),
    ]
    rules = [{"matches": [{"path": {"value": path}}], "filters": redirect(**what)} for path, what, *_ in table]
    gw.route(route(ns, "r", "gw", rules))
    for _, what, path, status, location in table:
        answer = gw.ask(address, path=path)
        assert (answer.status, answer.headers["location"]) == (status, location), what
    # on another port the Location names it, where neither a port nor a scheme was asked for
    answer = gw.ask(address, path="/host", port=8080)
    assert answer.headers["location"] == "http://example.org:8080/host"
    # and on the gateway's convenient ports it stays usable
    host, _, port = gw.platform.address("gateway").partition(":")
    tls_port = gw.platform.address("gateway.tls").partition(":")[2]
    assert gw.ask(host, path="/host", port=int(port)).headers["location"] == f"http://example.org:{port}/host"
    assert gw.ask(host, path="/scheme", port=int(port)).headers["location"] == f"https://example.com:{tls_port}/scheme"


def test_rewrites(gw: Bench) -> None:
    ns = gw.namespace("rewrites")
    gw.service(ns, "v1")
    address = gw.gateway(ns, "gw")

    def rewrite(**what: object) -> list[dict[str, object]]:
        return [{"type": "URLRewrite", "urlRewrite": what}]

    def prefix(value: str) -> dict[str, object]:
        return {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": value}}

    table: list[tuple[str, dict[str, object], str, str, str]] = [
        ("/prefix/one", prefix("/one"), "/prefix/one/two?q=1", "/one/two?q=1", "example.com"),
        ("/strip", prefix("/"), "/strip/x", "/x", "example.com"),
        ("/strip2", prefix(""), "/strip2", "/", "example.com"),
        ("/slash/", prefix("/to/"), "/slash/x", "/to/x", "example.com"),
        (
            "/full",
            {"path": {"type": "ReplaceFullPath", "replaceFullPath": "/one"}},
            "/full/x?q=2",
            "/one?q=2",
            "example.com",
        ),
        ("/h", {"hostname": "one.example.org"}, "/h/x", "/h/x", "one.example.org"),
        ("/all", {"hostname": "two.org", **prefix("/p")}, "/all/x", "/p/x", "two.org"),
    ]
    rules = [
        {"matches": [{"path": {"value": path}}], "filters": rewrite(**what), "backendRefs": to("v1")}
        for path, what, *_ in table
    ]
    gw.route(route(ns, "r", "gw", rules))
    for _, _, asked, path, host in table:
        seen = gw.ask(address, path=asked).seen
        assert (seen["path"], seen["host"]) == (path, host)


def test_weights_and_invalid_references(gw: Bench) -> None:
    ns = gw.namespace("weights")
    gw.service(ns, "v1")
    gw.service(ns, "v2")
    gw.service(ns, "empty", target=0)
    address = gw.gateway(ns, "gw")
    refs = [{**to("v1")[0], "weight": 9}, {**to("v2")[0], "weight": 1}, {**to("empty")[0], "weight": 0}]
    status = gw.route(
        route(
            ns,
            "r",
            "gw",
            [
                {"matches": [{"path": {"value": "/split"}}], "backendRefs": refs},
                {"matches": [{"path": {"value": "/half"}}], "backendRefs": to("v1", "missing")},
                {"matches": [{"path": {"value": "/missing"}}], "backendRefs": to("missing")},
                {"matches": [{"path": {"value": "/empty"}}], "backendRefs": to("empty")},
                {"matches": [{"path": {"value": "/none"}}]},
                {"matches": [{"path": {"value": "/zero"}}], "backendRefs": [{**to("v1")[0], "weight": 0}]},
                {
                    "matches": [{"path": {"value": "/kind"}}],
                    "backendRefs": [{"name": "x", "kind": "Odd", "group": "odd.io"}],
                },
            ],
        )
    )
    assert reasons(status["parents"][0]) == {"Accepted": "True Accepted", "ResolvedRefs": "False BackendNotFound"}
    counts = [gw.ask(address, path="/split").backend for _ in range(100)]
    assert 80 <= counts.count("v1") <= 98
    assert counts.count("v1") + counts.count("v2") == 100
    halves = [gw.ask(address, path="/half").status for _ in range(40)]
    assert set(halves) == {200, 500}
    for path, code in (("/missing", 500), ("/empty", 503), ("/none", 500), ("/zero", 500), ("/kind", 500)):
        assert gw.ask(address, path=path).status == code, path


def test_references_across_namespaces_need_a_grant(gw: Bench) -> None:
    ns, other = gw.namespace("asking"), gw.namespace("giving")
    gw.service(other, "v1")
    address = gw.gateway(ns, "gw")
    status = gw.route(route(ns, "r", "gw", [{"backendRefs": [{**to("v1")[0], "namespace": other}]}]))
    assert reasons(status["parents"][0])["ResolvedRefs"] == "False RefNotPermitted"
    assert gw.ask(address).status == 500
    gw.apply(
        {
            "apiVersion": "gateway.networking.k8s.io/v1beta1",
            "kind": "ReferenceGrant",
            "metadata": {"name": "allow", "namespace": other},
            "spec": {
                "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": ns}],
                "to": [{"group": "", "kind": "Service", "name": "v1"}],
            },
        }
    )
    gw.until(lambda: gw.ask(address).backend == "v1")
    gw.delete("ReferenceGrant", "allow", other)
    gw.until(lambda: gw.ask(address).status == 500)


def test_timeouts(gw: Bench) -> None:
    ns = gw.namespace("timeouts")
    gw.service(ns, "v1")
    address = gw.gateway(ns, "gw")
    gw.route(
        route(
            ns,
            "r",
            "gw",
            [
                {
                    "matches": [{"path": {"value": "/request"}}],
                    "timeouts": {"request": "200ms"},
                    "backendRefs": to("v1"),
                },
                {
                    "matches": [{"path": {"value": "/backend"}}],
                    "timeouts": {"request": "5s", "backendRequest": "200ms"},
                    "backendRefs": to("v1"),
                },
                {"matches": [{"path": {"value": "/off"}}], "timeouts": {"request": "0s"}, "backendRefs": to("v1")},
            ],
        )
    )
    for path in ("/request", "/backend"):
        assert gw.ask(address, path=path).status == 200
        assert gw.ask(address, path=f"{path}?delay=0.6").status == 504
    assert gw.ask(address, path="/off?delay=0.6").status == 200


def test_mirrors(gw: Bench) -> None:
    ns = gw.namespace("mirrors")
    for name in ("v1", "mirror-a", "mirror-b"):
        gw.service(ns, name)
    address = gw.gateway(ns, "gw")
    filters = [
        {"type": "RequestMirror", "requestMirror": {"backendRef": to(name)[0], **more}}
        for name, more in (("mirror-a", {}), ("mirror-b", {"percent": 0}))
    ]
    gw.route(route(ns, "r", "gw", [{"filters": filters, "backendRefs": to("v1")}]))
    assert gw.ask(address, path="/mirrored").backend == "v1"
    gw.until(lambda: "/mirrored" in gw.backends.received["mirror-a"])
    assert gw.backends.received["mirror-b"] == []


def test_cors(gw: Bench) -> None:
    ns = gw.namespace("cors")
    gw.service(ns, "v1")
    address = gw.gateway(ns, "gw")
    cors = {
        "allowOrigins": ["https://www.foo.com", "https://*.bar.com"],
        "allowMethods": ["GET", "OPTIONS"],
        "allowHeaders": ["x-custom"],
        "exposeHeaders": ["x-shown"],
        "allowCredentials": True,
        "maxAge": 60,
    }
    gw.route(route(ns, "r", "gw", [{"filters": [{"type": "CORS", "cors": cors}], "backendRefs": to("v1")}]))
    preflight = {"Access-Control-Request-Method": "GET"}
    for origin in ("https://www.foo.com", "https://a.bar.com"):
        answer = gw.ask(address, method="OPTIONS", headers={"Origin": origin, **preflight})
        assert answer.status in (200, 204)
        assert answer.headers["access-control-allow-origin"] == origin
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert answer.headers["access-control-max-age"] == "60"
        assert "GET" in answer.headers["access-control-allow-methods"]
        assert "x-custom" in answer.headers["access-control-allow-headers"]
    actual = gw.ask(address, headers={"Origin": "https://www.foo.com"})
    assert actual.headers["access-control-expose-headers"] == "x-shown"
    refused = gw.ask(address, method="OPTIONS", headers={"Origin": "https://evil.com", **preflight})
    assert "access-control-allow-origin" not in refused.headers


def test_attachment_is_limited_by_namespaces_kinds_sections_and_ports(gw: Bench) -> None:
    ns, friend, stranger = gw.namespace("owner"), gw.namespace("friend", {"team": "a"}), gw.namespace("stranger")
    for one in (ns, friend, stranger):
        gw.service(one, "v1")
    selector = {"namespaces": {"from": "Selector", "selector": {"matchLabels": {"team": "a"}}}}
    gw.gateway(
        ns,
        "gw",
        http_listener("same"),
        http_listener("friends", "friends.com", allowedRoutes=selector),
        http_listener("grpc", "grpc.com", allowedRoutes={"kinds": [{"kind": "GRPCRoute"}]}),
    )

    def attach(namespace: str, name: str, **parent: object) -> str:
        made = route(namespace, name, "gw", [{"backendRefs": to("v1")}])
        made["spec"]["parentRefs"] = [{"name": "gw", "namespace": ns, **parent}]
        status = gw.route(made)
        return reasons(status["parents"][0])["Accepted"]

    assert attach(ns, "a", sectionName="same") == "True Accepted"
    assert attach(friend, "b", sectionName="friends") == "True Accepted"
    assert attach(stranger, "c", sectionName="friends") == "False NotAllowedByListeners"
    assert attach(friend, "d", sectionName="same") == "False NotAllowedByListeners"
    assert attach(ns, "e", sectionName="grpc") == "False NotAllowedByListeners"
    assert attach(ns, "f", sectionName="nowhere") == "False NoMatchingParent"
    assert attach(ns, "g", port=80) == "True Accepted"
    assert attach(ns, "h", port=81) == "False NoMatchingParent"


def test_a_rule_that_cannot_be_served_is_told_and_the_others_work(gw: Bench) -> None:
    ns = gw.namespace("partly")
    gw.service(ns, "v1")
    address = gw.gateway(ns, "gw")
    bad = {"matches": [{"path": {"type": "RegularExpression", "value": "/(?=x)"}}], "backendRefs": to("v1")}
    good = {"matches": [{"path": {"value": "/good"}}], "backendRefs": to("v1")}
    told = reasons(gw.route(route(ns, "r", "gw", [bad, good]))["parents"][0])
    assert told == {
        "Accepted": "True Accepted",
        "ResolvedRefs": "True ResolvedRefs",
        "PartiallyInvalid": "True UnsupportedValue",
    }
    assert gw.ask(address, path="/good").backend == "v1"
    told = reasons(gw.route(route(ns, "r2", "gw", [bad]))["parents"][0])
    assert told["Accepted"] == "False UnsupportedValue"
    unknown = [{"type": "ExtensionRef", "extensionRef": {"group": "x.io", "kind": "Odd", "name": "n"}}]
    status = gw.route(
        route(ns, "r3", "gw", [{"matches": [{"path": {"value": "/ext"}}], "filters": unknown, "backendRefs": to("v1")}])
    )
    assert reasons(status["parents"][0])["ResolvedRefs"].startswith("False")
    assert gw.ask(address, path="/ext").status == 500
