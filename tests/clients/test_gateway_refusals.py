"""What passes our checks and Envoy refuses all the same costs the object it comes from, and nobody else.

Our own checks of regular expressions and keys are blinded here, so that real refusals reach the platform.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sampan.kube.objects import Object
from sampan.parts.traffic.model import Backend
from tests.clients.certificates_made import MadeAuthority, self_signed, tls_secret
from tests.clients.gateway_harness import Bench, bench, endpoint_slice, reasons, route, to

pytestmark = pytest.mark.xdist_group("gateway")

BAD = "/[a-"


@pytest.fixture(scope="module")
def gw() -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sampan.parts.traffic.sources.routes._regex", lambda pattern: pattern)
        patch.setattr("sampan.parts.traffic.references.unusable", lambda key: "")
        with bench() as made:
            yield made


def rule(path: str, kind: str = "PathPrefix") -> Object:
    return {"matches": [{"path": {"type": kind, "value": path}}], "backendRefs": to("v1")}


def parent(gw: Bench, namespace: str, name: str) -> Object:
    status: Object = gw.get("HTTPRoute", name, namespace).get("status") or {}
    return next(iter(status.get("parents") or ()), {"conditions": []})


def message(entry: Object, kind: str) -> str:
    text: str = next(one["message"] for one in entry["conditions"] if one["type"] == kind)
    return text


def test_one_refused_rule_is_told_and_everything_else_goes_on(gw: Bench) -> None:
    ns = gw.namespace("refused")
    gw.service(ns, "v1")
    address = gw.gateway(ns, "gw")
    gw.route(route(ns, "good", "gw", [rule("/good")]))
    bad = gw.route(route(ns, "bad", "gw", [rule(BAD, "RegularExpression")]))["parents"][0]
    assert reasons(bad)["Accepted"] == "False UnsupportedValue"
    assert "missing ]" in message(bad, "Accepted"), "Envoy's own words"
    mixed = gw.route(route(ns, "mixed", "gw", [rule("/fine"), rule(f"{BAD}2", "RegularExpression")]))["parents"][0]
    assert reasons(mixed)["Accepted"] == "True Accepted"
    assert reasons(mixed)["PartiallyInvalid"] == "True UnsupportedValue"
    later = gw.route(route(ns, "later", "gw", [rule("/later")]))["parents"][0]
    assert reasons(later)["Accepted"] == "True Accepted"
    for path in ("/good", "/fine", "/later"):
        assert gw.ask(address, path=path).backend == "v1"
    assert gw.ask(address, path="/elsewhere").status == 404
    mended = gw.route(route(ns, "bad", "gw", [rule("/mended")]))["parents"][0]
    assert reasons(mended)["Accepted"] == "True Accepted"
    assert gw.ask(address, path="/mended").backend == "v1"


def test_the_bad_ones_are_found_among_many_that_came_at_once(gw: Bench) -> None:
    ns = gw.namespace("many")
    gw.service(ns, "v1")
    bad = {3, 17, 18}
    routes = [
        route(ns, f"r{n}", "gw", [rule(f"{BAD}{n}", "RegularExpression") if n in bad else rule(f"/p{n}")])
        for n in range(24)
    ]
    gw.apply(*routes)
    address = gw.gateway(ns, "gw")
    for n in range(24):
        expected = "False UnsupportedValue" if n in bad else "True Accepted"

        def told(n: int = n, expected: str = expected) -> bool:
            return reasons(parent(gw, ns, f"r{n}")).get("Accepted") == expected

        gw.until(told)
        if n not in bad:
            assert gw.ask(address, path=f"/p{n}").backend == "v1"
    assert gw.platform.run(facts(gw)) == []


async def facts(gw: Bench) -> list[str]:
    """What `sampan status` says is refused as a whole."""
    status = await gw.platform.kernel.status()
    traffic = next(part.facts for part in status.parts if part.name == "traffic")
    return [name for name in traffic if name.startswith("rejected")]


def test_a_certificate_envoy_refuses_is_told_on_its_listener(gw: Bench) -> None:
    ns = gw.namespace("weak")
    gw.service(ns, "v1")
    good = MadeAuthority()
    gw.apply(good.secret(ns, "good", "good.com"), tls_secret(ns, "weak", *self_signed("weak.com", bits=1024)))
    address = gw.gateway(
        ns, "gw", https_listener("good", "good", "good.com"), https_listener("weak", "weak", "weak.com")
    )
    gw.route(route(ns, "r", "gw", [{"backendRefs": to("v1")}]))
    gw.until(lambda: gw.ask_tls(address, "good.com").backend == "v1")

    def listeners() -> list[Object]:
        found: list[Object] = gw.get("Gateway", "gw", ns)["status"]["listeners"]
        return found

    gw.until(lambda: reasons(listeners()[1])["ResolvedRefs"] == "False InvalidCertificateRef")
    assert "2048" in message(listeners()[1], "ResolvedRefs"), "Envoy's own words"
    assert reasons(listeners()[1])["Programmed"] == "False Invalid"
    assert reasons(listeners()[0])["Programmed"] == "True Programmed"
    assert gw.ask_tls(address, "good.com").backend == "v1"
    gw.apply(good.secret(ns, "weak", "weak.com"))
    gw.until(lambda: reasons(listeners()[1])["Programmed"] == "True Programmed")
    gw.until(lambda: gw.ask_tls(address, "weak.com").backend == "v1")


def test_a_backend_envoy_refuses_is_told_on_its_routes(gw: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from sampan.parts.traffic.envoy import clusters

    there = clusters.cluster

    def cluster(backend: Backend) -> Object:
        made = there(backend)
        return {**made, "connectTimeout": "0s"} if "/odd/" in backend.name else made

    monkeypatch.setattr(clusters, "cluster", cluster)
    ns = gw.namespace("backends")
    gw.service(ns, "v1")
    gw.service(ns, "odd")
    address = gw.gateway(ns, "gw")
    odd = {"matches": [{"path": {"value": "/odd"}}], "backendRefs": to("odd")}
    gw.route(route(ns, "odd", "gw", [odd]))
    gw.route(route(ns, "even", "gw", [rule("/even")]))
    gw.until(lambda: reasons(parent(gw, ns, "odd")).get("ResolvedRefs") == "False BackendNotFound")
    assert reasons(parent(gw, ns, "even"))["ResolvedRefs"] == "True ResolvedRefs"
    assert gw.ask(address, path="/even").backend == "v1"
    assert gw.ask(address, path="/odd").status in (500, 503)
    assert any("/odd/" in name for name in gw.platform.run(facts(gw)))
    monkeypatch.setattr(clusters, "cluster", there)
    gw.service(ns, "odd", app_protocol="http")
    gw.apply(endpoint_slice(ns, "odd", [("127.0.0.1", gw.backends.port("odd"))], suffix="again"))
    gw.delete("HTTPRoute", "odd", ns)
    gw.route(route(ns, "odd", "gw", [odd]))
    gw.until(lambda: gw.ask(address, path="/odd").backend == "odd")


def https_listener(name: str, secret: str, hostname: str) -> Object:
    return {
        "name": name,
        "port": 443,
        "protocol": "HTTPS",
        "hostname": hostname,
        "tls": {"certificateRefs": [{"name": secret}]},
    }


def test_an_object_nobody_thought_of_costs_itself_alone(gw: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    ns = gw.namespace("odd")
    gw.service(ns, "v1")
    address = gw.gateway(ns, "gw")
    from sampan.parts.traffic.sources import routes

    there = routes._http_match

    def match(source: Object) -> object:
        if source["path"]["value"] == "/odd":
            raise ZeroDivisionError("nobody thought of this")
        return there(source)

    monkeypatch.setattr(routes, "_http_match", match)
    odd = gw.route(route(ns, "odd", "gw", [rule("/odd")]))["parents"][0]
    assert reasons(odd)["Accepted"] == "False UnsupportedValue"
    assert "nobody thought of this" in message(odd, "Accepted")
    gw.route(route(ns, "even", "gw", [rule("/even")]))
    assert gw.ask(address, path="/even").backend == "v1"
