"""What happens to a request between its client and a pod of a Knative Service: certificates, headers, deadlines, lines."""

from __future__ import annotations

import json
import socket
import ssl
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from sampan.kube.objects import dig
from sampan.parts.serving.activator import throttle
from tests.clients.serving_world import World, service, serving_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with serving_world(tmp_path_factory.mktemp("home")) as made:
        yield made


@pytest.fixture
def tls(world: World) -> Iterator[None]:
    """``external-domain-tls`` is on."""
    network(world, {"external-domain-tls": "Enabled"})
    yield
    network(world, {"external-domain-tls": None})


def network(world: World, data: dict[str, str | None]) -> None:
    patch = json.dumps({"data": data})
    world.kubectl("patch", "cm", "config-network", "-n", "knative-serving", "--type=merge", "-p", patch)


def over_tls(world: World, host: str, listener: str = "gateway.tls") -> str:
    """The answer to ``GET /`` over TLS, the certificate checked for the host against the platform's authority alone."""
    address, _, port = world.platform.address(listener).rpartition(":")
    context = ssl.create_default_context(cafile=str(world.platform.kernel.authority.certificate_path))
    plain = socket.create_connection((address, int(port)), 20)
    with context.wrap_socket(plain, server_hostname=host) as secure:
        secure.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while part := secure.recv(65536):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), answer
    return body.decode()


# -- certificates


def test_names_get_certificates_of_the_platforms_authority(world: World, tls: None) -> None:
    traffic = [{"latestRevision": True, "percent": 100, "tag": "now"}]
    world.apply(service("sealed", env={"TARGET": "sealed"}, traffic=traffic))

    def secured() -> Any:
        found = world.ready("sealed")
        return found if found["status"]["url"].startswith("https:") else None

    status = world.until(secured)["status"]
    assert status["url"] == "https://sealed.default.localhost"
    assert status["address"]["url"] == "http://sealed.default.svc.cluster.local"
    assert status["traffic"][0]["url"] == "https://now-sealed.default.localhost"
    assert world.condition("route", "sealed", "CertificateProvisioned")[0] == "True"
    assert over_tls(world, "sealed.default.localhost") == "Hello sealed!\n"
    assert over_tls(world, "now-sealed.default.localhost") == "Hello sealed!\n"
    # plain HTTP goes on, and a sleeping Service wakes for either
    assert world.get("sealed.default.localhost").status_code == 200
    world.sleep_to_zero("sealed")
    assert over_tls(world, "sealed.default.localhost") == "Hello sealed!\n"
    secrets = [one for one in world.objects("secret") if one["metadata"]["name"].startswith("route-")]
    assert {one["type"] for one in secrets} == {"kubernetes.io/tls"}
    # a Secret that is lost comes back; a tag that is gone takes its certificate along
    world.kubectl("delete", "secret", secrets[0]["metadata"]["name"])
    world.until(lambda: len([one for one in world.objects("secret") if one["type"] == "kubernetes.io/tls"]) == 2)
    world.apply(service("sealed", env={"TARGET": "sealed"}, traffic=[{"latestRevision": True, "percent": 100}]))
    world.until(lambda: len(world.objects("kcert")) == 1)


def test_names_inside_get_certificates_of_their_own(world: World) -> None:
    network(world, {"cluster-local-domain-tls": "Enabled"})
    traffic = [{"latestRevision": True, "percent": 100, "tag": "now"}]
    world.apply(service("whisper", env={"TARGET": "whisper"}, traffic=traffic))
    world.apply(service("inward", metadata={"labels": {"networking.knative.dev/visibility": "cluster-local"}}))

    def address(name: str) -> str:
        return str(dig(world.ready(name), "status", "address", "url"))

    world.until(lambda: address("whisper") == "https://whisper.default.svc.cluster.local")
    assert world.ready("whisper")["status"]["url"] == "http://whisper.default.localhost"
    world.until(lambda: world.ready("inward")["status"]["url"] == "https://inward.default.svc.cluster.local")
    assert world.condition("route", "whisper", "CertificateProvisioned")[:2] == ("True", "")
    inside = "gateway.internal.tls"
    for ending in ("", ".svc", ".svc.cluster.local"):
        assert over_tls(world, f"whisper.default{ending}", inside) == "Hello whisper!\n"
        assert over_tls(world, f"now-whisper.default{ending}", inside) == "Hello whisper!\n"
    world.sleep_to_zero("whisper")
    assert over_tls(world, "whisper.default.svc.cluster.local", inside) == "Hello whisper!\n"
    # nothing of it is to be had outside, and names that are visible there are not served inside
    with pytest.raises(ssl.SSLError):
        over_tls(world, "whisper.default.svc.cluster.local")
    bundle = world.kubectl(
        "get", "cm", "-n", "knative-serving", "-l", "networking.knative.dev/trust-bundle=true", "-o", "json"
    )
    assert world.platform.kernel.authority.certificate_pem.decode() in json.loads(bundle)["items"][0]["data"].values()

    network(world, {"cluster-local-domain-tls": None})
    world.until(lambda: address("whisper") == "http://whisper.default.svc.cluster.local")
    world.until(lambda: not world.objects("kcert"))
    inner = world.platform.address("gateway.internal")
    answer = requests.get(f"http://{inner}/", headers={"Host": "whisper.default.svc.cluster.local"}, timeout=10)
    assert answer.text == "Hello whisper!\n"


def test_nobody_gets_a_certificate_for_the_platforms_own_name(world: World) -> None:
    own = world.platform.kernel.authority
    world.platform.call(lambda: own.server_context(["platform.example.com"]))  # as for the setting kubernetes.names
    for name in ("platform.example.com", "*.example.com"):
        certificate = {
            "apiVersion": "networking.internal.knative.dev/v1alpha1",
            "kind": "Certificate",
            "metadata": {"name": "taken"},
            "spec": {"dnsNames": [name], "secretName": "taken"},
        }
        world.apply(certificate)
        world.until(lambda: world.condition("kcert", "taken")[:2] == ("False", "CertificateProvisionFailed"))
        assert name in world.condition("kcert", "taken")[2]
        assert not [one for one in world.objects("secret") if one["metadata"]["name"] == "taken"]
        world.kubectl("delete", "kcert", "taken")


def test_settings_of_the_network_that_mean_nothing_are_refused(world: World) -> None:
    for name in ("cluster-local-domain-tls", "system-internal-tls", "http-protocol"):
        patch = json.dumps({"data": {name: "Sometimes"}})
        told = world.kubectl(
            "patch", "cm", "config-network", "-n", "knative-serving", "--type=merge", "-p", patch, fails=True
        )
        assert f'{name} with value: "Sometimes" in config-network ConfigMap is not supported' in told


def test_plain_http_is_redirected_where_asked(world: World, tls: None) -> None:
    world.apply(service("away", metadata={"annotations": {"networking.knative.dev/http-protocol": "Redirected"}}))
    world.ready("away")
    port = world.platform.address("gateway.tls").rpartition(":")[2]

    def redirected() -> bool:
        answer = world.get("away.default.localhost", "/x?y=1", allow_redirects=False)
        return (answer.status_code, answer.headers.get("location")) == (
            301,
            f"https://away.default.localhost:{port}/x?y=1",
        )

    world.until(redirected)
    assert over_tls(world, "away.default.localhost") == "Hello World!\n"


def test_one_service_may_stay_without_tls(world: World, tls: None) -> None:
    annotations = {"networking.knative.dev/disable-external-domain-tls": "true"}
    world.apply(service("open", metadata={"annotations": annotations}))
    assert world.ready("open")["status"]["url"] == "http://open.default.localhost"
    status, reason, message = world.condition("route", "open", "CertificateProvisioned")
    assert (status, reason, message) == ("True", "TLSNotEnabled", "external-domain-tls is not enabled")


def test_a_domain_brings_its_own_certificate(world: World) -> None:
    world.apply(service("boutique", env={"TARGET": "boutique"}))
    world.ready("boutique")
    pair = world.platform.kernel.authority.server_certificate(["boutique.example.com"])
    world.kubectl("create", "secret", "tls", "own", f"--cert={pair.certificate}", f"--key={pair.key}")
    reference = {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": "boutique"}
    world.apply(
        {
            "apiVersion": "serving.knative.dev/v1beta1",
            "kind": "DomainMapping",
            "metadata": {"name": "boutique.example.com"},
            "spec": {"ref": reference, "tls": {"secretName": "own"}},
        }
    )
    ready = world.ready("boutique.example.com", "domainmapping")
    assert ready["status"]["url"] == "https://boutique.example.com"
    kind = "CertificateProvisioned"
    assert world.condition("domainmapping", "boutique.example.com", kind)[1] == "CertificateExternallyProvided"
    assert over_tls(world, "boutique.example.com") == "Hello boutique!\n"


# -- headers


def test_forwarded_tells_who_asked_unless_the_client_says(world: World) -> None:
    world.apply(service("heads"))
    world.ready("heads")
    headers = world.get("heads.default.localhost", "/headers").json()
    assert headers["forwarded"] == f"for={headers['x-forwarded-for']};proto=http"
    headers = world.get("heads.default.localhost", "/headers", headers={"Forwarded": "for=192.0.2.1"}).json()
    assert headers["forwarded"] == "for=192.0.2.1"


@pytest.mark.parametrize(
    ("told", "forwarded"),
    [
        ({"X-Forwarded-For": "192.0.2.1"}, "for=192.0.2.1;proto=http, for=US"),
        ({"X-Forwarded-For": "2001:db8::7, 192.0.2.1"}, 'for="[2001:db8::7]";proto=http, for=192.0.2.1, for=US'),
        ({"X-Forwarded-Host": "shop.example.com"}, "for=US;host=shop.example.com;proto=http"),
        (
            {"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Host": "shop.example.com", "Forwarded": "for=192.0.2.9"},
            "for=192.0.2.9",
        ),
    ],
)
def test_forwarded_tells_of_every_proxy_and_the_host_that_was_asked(
    world: World, told: dict[str, str], forwarded: str
) -> None:
    world.apply(service("hops"))
    world.ready("hops")
    headers = world.get("hops.default.localhost", "/headers", headers=told).json()
    us = headers["x-forwarded-for"].rpartition(",")[2].strip()
    assert headers["forwarded"] == forwarded.replace("US", us)


def test_a_long_line_of_spaces_among_the_proxies_holds_nobody_up(world: World) -> None:
    world.apply(service("hops"))
    world.ready("hops")
    long = world.get("hops.default.localhost", "/", headers={"X-Forwarded-For": f"a{' ' * 55_000}b"}, timeout=8)
    assert long.status_code == 400, "the application takes no line that long, but it was asked"
    told = {"X-Forwarded-For": "192.0.2.1  ,  , 192.0.2.3\t"}
    headers = world.get("hops.default.localhost", "/headers", headers=told).json()
    us = headers["x-forwarded-for"].rpartition(",")[2].strip()
    assert headers["forwarded"] == f"for=192.0.2.1;proto=http, for=192.0.2.3, for={us}"


def test_services_of_others_on_the_same_port_get_no_such_header(world: World) -> None:
    rule = {"host": "plain.example.com", "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": {}}]}}
    rule["http"]["paths"][0]["backend"] = {"service": {"name": "plain-00001", "port": {"number": 80}}}  # type: ignore[index]
    world.apply(service("plain", annotations={"autoscaling.knative.dev/min-scale": "1"}))
    world.ready("plain")
    ingress = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": "plain"},
        "spec": {"ingressClassName": "sampan", "rules": [rule]},
    }
    world.apply(ingress)
    told = {"X-Forwarded-For": "192.0.2.1"}
    world.until(lambda: world.get("plain.example.com", "/headers", headers=told).status_code == 200)
    assert "forwarded" not in world.get("plain.example.com", "/headers", headers=told).json()


# -- deadlines


def test_a_response_that_does_not_begin_in_time_is_answered_504(world: World) -> None:
    world.apply(service("prompt", spec={"timeoutSeconds": 300, "responseStartTimeoutSeconds": 1}))
    world.ready("prompt")
    late = world.get("prompt.default.localhost", "/?seconds=15")
    assert (late.status_code, late.text) == (504, "request timeout")  # and not 200 after its whole time


def test_a_request_over_its_time_is_answered_504(world: World) -> None:
    world.apply(service("hasty", spec={"timeoutSeconds": 2, "responseStartTimeoutSeconds": 1}))
    world.ready("hasty")
    late = world.get("hasty.default.localhost", "/?seconds=5")
    assert (late.status_code, late.text) == (504, "request timeout")
    # a stream that has begun in time ends with its whole time, under the status it began with
    began = world.get("hasty.default.localhost", "/drip?parts=100&pause=0.1", stream=True)
    assert began.status_code == 200
    parts = 0
    with pytest.raises(Exception, match=r"(?i)prematurely|incomplete|broken|reset"):
        for _ in began.iter_content(1):
            parts += 1
    assert parts


def test_an_application_that_falls_silent_is_given_up(world: World) -> None:
    world.apply(service("silent", spec={"timeoutSeconds": 60, "idleTimeoutSeconds": 2}))
    world.ready("silent")
    late = world.get("silent.default.localhost", "/?seconds=10")
    assert (late.status_code, late.text) == (504, "request timeout")
    # one that speaks now and then is not
    assert len(world.get("silent.default.localhost", "/drip?parts=6&pause=0.5").content) == 6


def test_revisions_of_one_route_keep_their_own_deadlines_and_shares(world: World) -> None:
    whole = [{"revisionName": "mixed-1", "percent": 100}]
    parts = [{"revisionName": "mixed-1", "percent": 30}, {"revisionName": "mixed-2", "percent": 70}]
    for number, seconds, traffic in ((1, 1, whole), (2, 3, parts)):
        revision, spec = f"mixed-{number}", {"timeoutSeconds": seconds}
        world.apply(service("mixed", spec=spec, env={"TARGET": str(number)}, revision=revision, traffic=traffic))
        world.ready("mixed")
    world.until(lambda: len(dig(world.object("ksvc", "mixed"), "status", "traffic", default=[])) == 2)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: world.get("mixed.default.localhost", "/?seconds=1.6").status_code, range(60)))
        assert set(answers) == {200, 504}
        told = Counter(pool.map(lambda _: world.get("mixed.default.localhost").text, range(600)))
    assert 100 < told["Hello 1!\n"] < 260, told


# -- lines


def test_a_line_that_is_full_answers_503(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "QUEUE_DEPTH", 2)
    limits = {"autoscaling.knative.dev/max-scale": "1"}
    world.apply(service("narrow", spec={"containerConcurrency": 1}, annotations=limits))
    world.ready("narrow")
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(world.get, "narrow.default.localhost", "/?held")
        world.until(lambda: sum(one.now for one in world.servers("narrow")))
        held = [pool.submit(world.get, "narrow.default.localhost") for _ in range(2)]
        world.until(lambda: waiting(world) == 2)
        beyond = world.get("narrow.default.localhost")
        assert (beyond.status_code, beyond.text) == (503, "pending request queue full")
        world.release("narrow")
        assert [one.result().status_code for one in (first, *held)] == [200, 200, 200]


def waiting(world: World) -> int:
    parts = world.platform.run(world.platform.kernel.status()).parts
    return int(next(one.facts["waiting"] for one in parts if one.name == "serving"))
