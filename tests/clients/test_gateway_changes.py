"""Gateway API objects that come, change and go while others stay: what is served, and what the statuses say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from sampan.kube.objects import Object
from sampan.parts.traffic.xds import server
from tests.clients.certificates_made import MadeAuthority
from tests.clients.gateway_harness import KINDS, Bench, bench, conditions, gateway, http_listener, reasons, route, to


@pytest.fixture(scope="module")
def gw() -> Iterator[Bench]:
    with bench() as made:
        yield made


def parents(gw: Bench, namespace: str, name: str = "r") -> list[Object]:
    found: list[Object] = (gw.get("HTTPRoute", name, namespace).get("status") or {}).get("parents") or []
    return found


def attached(gw: Bench, namespace: str, name: str) -> int:
    count: int = gw.get("Gateway", name, namespace)["status"]["listeners"][0]["attachedRoutes"]
    return count


def test_a_route_that_moves_leaves_nothing_behind(gw: Bench) -> None:
    ns = gw.namespace("moving")
    gw.service(ns, "v1")
    first, second = gw.gateway(ns, "first"), gw.gateway(ns, "second")
    gw.route(route(ns, "r", "first", [{"backendRefs": to("v1")}]))
    assert gw.ask(first).backend == "v1"
    gw.route(route(ns, "r", "second", [{"backendRefs": to("v1")}]))
    gw.until(lambda: gw.ask(second).status == 200 and gw.ask(first).status == 404)
    assert [one["parentRef"]["name"] for one in parents(gw, ns)] == ["second"]
    gw.until(lambda: (attached(gw, ns, "first"), attached(gw, ns, "second")) == (0, 1))
    gw.delete("Gateway", "second", ns)
    gw.until(lambda: parents(gw, ns) == [])
    second = gw.gateway(ns, "second")
    gw.until(lambda: gw.ask(second).backend == "v1")
    assert reasons(parents(gw, ns)[0])["Accepted"] == "True Accepted"
    gw.delete("HTTPRoute", "r", ns)
    gw.until(lambda: gw.ask(second).status == 404 and attached(gw, ns, "second") == 0)


def test_a_namespace_joins_and_leaves_by_its_labels(gw: Bench) -> None:
    ns, guest = gw.namespace("host"), gw.namespace("guest")
    gw.service(guest, "v1")
    selector = {"from": "Selector", "selector": {"matchLabels": {"may": "attach"}}}
    address = gw.gateway(ns, "gw", http_listener(allowedRoutes={"namespaces": selector}))
    asked = route(guest, "r", "gw", [{"backendRefs": to("v1")}], parentRefs=[{"name": "gw", "namespace": ns}])

    def label(value: str | None) -> None:
        patch: Object = {"metadata": {"labels": {"may": value}}}
        gw.backends.run(gw.client.patch(KINDS["Namespace"], guest, patch))

    gw.route(asked)
    assert reasons(parents(gw, guest)[0])["Accepted"] == "False NotAllowedByListeners"
    label("attach")
    gw.until(lambda: gw.ask(address).backend == "v1")
    gw.until(lambda: reasons(parents(gw, guest)[0])["Accepted"] == "True Accepted")
    label(None)
    gw.until(lambda: gw.ask(address).status == 404)
    gw.until(lambda: reasons(parents(gw, guest)[0])["Accepted"] == "False NotAllowedByListeners")


def test_a_class_may_come_later_and_others_classes_are_left_alone(gw: Bench) -> None:
    ns = gw.namespace("classes")
    for name in ("later", "foreign"):
        made = gateway(ns, name)
        made["spec"]["gatewayClassName"] = name
        gw.apply(made)
    gw.apply(gateway_class("foreign", "example.com/controller"))
    gw.apply(gateway_class("later", "sampan.dev/gateway-controller"))
    assert reasons(gw.settled("Gateway", "later", ns))["Accepted"] == "True Accepted"
    assert reasons(gw.settled("GatewayClass", "later", None))["Accepted"] == "True Accepted"
    pending = gw.get("Gateway", "foreign", ns)["status"]
    assert {one["reason"] for one in conditions(pending)} == {"Pending"}
    assert not pending.get("listeners")


def test_every_condition_is_of_the_newest_generation(gw: Bench) -> None:
    ns = gw.namespace("generations")
    gw.service(ns, "v1")
    gw.gateway(ns, "gw")
    gw.route(route(ns, "r", "gw", [{"backendRefs": to("v1")}]))
    # nothing that is served changes by these
    gw.apply({**gateway(ns, "gw"), "spec": {**gateway(ns, "gw")["spec"], "infrastructure": {"labels": {"a": "b"}}}})
    status = gw.settled("Gateway", "gw", ns)
    assert {one["observedGeneration"] for one in conditions(status)} == {2}
    status = gw.route(route(ns, "r", "gw", [{"name": "named", "backendRefs": to("v1")}]))
    assert {one["observedGeneration"] for one in conditions(status)} == {2}


def test_a_backend_comes_changes_and_goes(gw: Bench) -> None:
    ns = gw.namespace("coming")
    address = gw.gateway(ns, "gw")
    gw.route(route(ns, "r", "gw", [{"backendRefs": to("v1")}]))

    def resolved() -> str:
        return reasons(parents(gw, ns)[0])["ResolvedRefs"]

    assert (gw.ask(address).status, resolved()) == (500, "False BackendNotFound")
    gw.service(ns, "v1", target=0)
    gw.until(lambda: (gw.ask(address).status, resolved()) == (503, "True ResolvedRefs"))
    gw.service(ns, "v1")
    gw.until(lambda: gw.ask(address).backend == "v1")
    port = {"name": "main", "port": 9999, "protocol": "TCP"}
    gw.backends.run(gw.client.patch(KINDS["Service"], "v1", {"spec": {"ports": [port]}}, ns))
    gw.until(lambda: (gw.ask(address).status, resolved()) == (500, "False BackendNotFound"))
    gw.route(route(ns, "r", "gw", [{"backendRefs": to("v1", port=9999)}]))
    gw.until(lambda: gw.ask(address).backend == "v1")
    gw.delete("Service", "v1", ns)
    gw.until(lambda: (gw.ask(address).status, resolved()) == (500, "False BackendNotFound"))


def test_a_cluster_that_nothing_refers_to_lingers_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LINGER", 0.5)
    with bench() as gw:
        ns = gw.namespace("lingering")
        for name in ("old", "new"):
            gw.service(ns, name)
        address = gw.gateway(ns, "gw")
        host, _, port = gw.platform.address("gateway.metrics").rpartition(":")

        def clusters() -> set[str]:
            text = gw.ask(host, path="/metrics", port=int(port)).body.decode()
            found = re.findall(r'envoy_cluster_membership_total{envoy_cluster_name="(.+?)"}', text)
            return {one for one in found if one.startswith(ns)}

        def switch(backend: str) -> None:
            gw.route(route(ns, "r", "gw", [{"backendRefs": to(backend)}]))
            gw.until(lambda: gw.ask(address).backend == backend)

        for backend in ("old", "new", "old", "new"):
            switch(backend)
        gw.until(lambda: clusters() == {"lingering/new/8080"})
        switch("old")


def test_listeners_come_and_go_beside_others(gw: Bench) -> None:
    authority = MadeAuthority()
    ns = gw.namespace("listening")
    gw.service(ns, "v1")
    secure = {"name": "tls", "port": 443, "protocol": "HTTPS", "tls": {"certificateRefs": [{"name": "cert"}]}}
    address = gw.gateway(ns, "gw", http_listener(), secure)
    gw.route(route(ns, "r", "gw", [{"backendRefs": to("v1")}]))

    def told() -> dict[str, str]:
        status = gw.get("Gateway", "gw", ns)["status"]
        return {one["name"]: reasons(one)["ResolvedRefs"] for one in status["listeners"]}

    assert gw.ask(address).backend == "v1"
    assert told() == {"http": "True ResolvedRefs", "tls": "False InvalidCertificateRef"}
    gw.apply(authority.secret(ns, "cert", "secure.com"))
    gw.until(lambda: gw.ask_tls(address, "secure.com").backend == "v1")
    gw.delete("Secret", "cert", ns)
    gw.until(lambda: told()["tls"] == "False InvalidCertificateRef")
    assert gw.ask(address).backend == "v1"
    gw.apply(authority.secret(ns, "cert", "secure.com"))
    gw.until(lambda: gw.ask_tls(address, "secure.com").backend == "v1")
    gw.apply(gateway(ns, "gw", http_listener(), http_listener("more", port=8123)))
    gw.until(lambda: gw.ask(address, port=8123).backend == "v1")

    def closed() -> bool:
        try:
            gw.ask_tls(address, "secure.com")
        except OSError:
            return True
        return False

    gw.until(closed)
    gw.apply(gateway(ns, "gw", http_listener()))

    def gone() -> bool:
        try:
            gw.ask(address, port=8123)
        except ConnectionRefusedError:
            return True
        return False

    gw.until(gone)
    assert gw.ask(address).backend == "v1"


@pytest.mark.parametrize("host", ["NAMED.Example.COM", "named.example.com:80", "named.example.com.", "x.WILD.com"])
def test_host_names_are_the_same_however_they_are_written(gw: Bench, host: str) -> None:
    ns = gw.namespace("hosts")
    gw.service(ns, "v1")
    address = gw.gateway(ns, "gw")
    gw.route(route(ns, "r", "gw", [{"backendRefs": to("v1")}], "named.example.com", "*.wild.com"))
    assert gw.ask(address, host).backend == "v1"
    assert gw.ask(address, "wild.com").status == 404


@pytest.mark.parametrize(
    ("of", "to_"),
    [
        ({"namespace": "asking"}, {"name": "other"}),
        ({"namespace": "elsewhere"}, {}),
        ({"namespace": "asking", "kind": "GRPCRoute"}, {}),
        ({"namespace": "asking", "group": ""}, {}),
        ({"namespace": "asking"}, {"kind": "Secret"}),
    ],
)
def test_a_grant_permits_what_it_names_and_nothing_else(gw: Bench, of: Object, to_: Object) -> None:
    asking, giving = gw.namespace("asking"), gw.namespace("giving")
    gw.service(giving, "v1")
    address = gw.gateway(asking, "gw")
    refs = [{**to("v1")[0], "namespace": giving}]
    gw.route(route(asking, "r", "gw", [{"backendRefs": refs}]))

    def grant(source: Object, target: Object) -> Object:
        return {
            "apiVersion": "gateway.networking.k8s.io/v1beta1",
            "kind": "ReferenceGrant",
            "metadata": {"name": "grant", "namespace": giving},
            "spec": {
                "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", **source}],
                "to": [{"group": "", "kind": "Service", **target}],
            },
        }

    def permitted() -> Any:
        return gw.ask(address).status, reasons(parents(gw, asking)[0])["ResolvedRefs"]

    gw.until(lambda: permitted() == (500, "False RefNotPermitted"))
    gw.apply(grant({"namespace": asking}, {"name": "v1"}))
    gw.until(lambda: permitted() == (200, "True ResolvedRefs"))
    gw.apply(grant(of, to_))
    gw.until(lambda: permitted() == (500, "False RefNotPermitted"))
    gw.delete("ReferenceGrant", "grant", giving)


def gateway_class(name: str, controller: str) -> Object:
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "GatewayClass",
        "metadata": {"name": name},
        "spec": {"controllerName": controller},
    }
