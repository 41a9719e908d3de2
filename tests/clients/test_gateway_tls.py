"""TLS at the gateway: server names, misdirected requests, references to certificates, passthrough, TLS to backends."""

from __future__ import annotations

import base64
import socket
import ssl
from collections.abc import Iterator

import pytest
from cryptography import x509

from sampan.kube.objects import Object
from tests.clients.certificates_made import MadeAuthority, self_signed, tls_secret
from tests.clients.gateway_harness import GATEWAY_API, Bench, bench, reasons, route, to


@pytest.fixture(scope="module")
def gw() -> Iterator[Bench]:
    with bench() as made:
        yield made


@pytest.fixture(scope="module")
def authority() -> MadeAuthority:
    return MadeAuthority()


def https_listener(name: str, secret: str | Object, hostname: str = "", *, port: int = 443) -> Object:
    reference = {"name": secret} if isinstance(secret, str) else secret
    made: Object = {"name": name, "port": port, "protocol": "HTTPS", "tls": {"certificateRefs": [reference]}}
    if hostname:
        made["hostname"] = hostname
    return made


def served_names(address: str, server_name: str, port: int = 443) -> list[str]:
    """DNS names of the certificate a server name is answered with."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((address, port), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname=server_name) as secured,
    ):
        certificate = x509.load_der_x509_certificate(secured.getpeercert(True) or b"")
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return list(names.get_values_for_type(x509.DNSName))


def test_https_and_misdirected_requests(gw: Bench, authority: MadeAuthority) -> None:
    ns = gw.namespace("https")
    for name in ("v1", "v2", "v3"):
        gw.service(ns, name)
    gw.apply(authority.secret(ns, "one", "example.org"), authority.secret(ns, "wild", "*.wild.org"))
    gw.apply(authority.secret(ns, "any", "any.org"))
    address = gw.gateway(
        ns,
        "gw",
        https_listener("one", "one", "example.org"),
        https_listener("wild", "wild", "*.wild.org"),
        https_listener("any", "any"),
    )
    for section, backend in (("one", "v1"), ("wild", "v2"), ("any", "v3")):
        made = route(ns, section, "gw", [{"matches": [{"path": {"value": "/in"}}], "backendRefs": to(backend)}])
        made["spec"]["parentRefs"][0]["sectionName"] = section
        gw.route(made)
    assert served_names(address, "example.org") == ["example.org"]
    assert served_names(address, "a.wild.org") == ["*.wild.org"]
    assert served_names(address, "else.org") == ["any.org"]
    for name, host, path, expected in (
        ("example.org", "example.org", "/in", "v1"),
        ("example.org", "example.org", "/out", "404"),
        ("a.wild.org", "a.wild.org", "/in", "v2"),
        ("a.wild.org", "b.wild.org", "/in", "v2"),
        ("else.org", "else.org", "/in", "v3"),
        ("", "else.org", "/in", "v3"),
        ("example.org", "a.wild.org", "/in", "421"),
        ("example.org", "else.org", "/in", "421"),
        ("else.org", "example.org", "/in", "421"),
        ("a.wild.org", "example.org", "/in", "421"),
    ):
        assert gw.ask_tls(address, name, host, path).backend == expected, (name, host, path)


def test_a_certificate_can_be_rotated_and_is_checked(gw: Bench, authority: MadeAuthority) -> None:
    ns = gw.namespace("rotation")
    gw.service(ns, "v1")
    gw.apply(authority.secret(ns, "cert", "first.org"))
    address = gw.gateway(ns, "gw", https_listener("tls", "cert"))
    gw.route(route(ns, "r", "gw", [{"backendRefs": to("v1")}]))
    assert served_names(address, "first.org") == ["first.org"]
    gw.apply(authority.secret(ns, "cert", "second.org"))
    gw.until(lambda: served_names(address, "first.org") == ["second.org"])
    # a key of another certificate: told, and nobody is cut off from other listeners
    chain, _ = authority.leaf("a.org")
    _, key = authority.leaf("b.org")
    gw.apply(tls_secret(ns, "mixed", chain, key), tls_secret(ns, "weak", *self_signed("weak.org", bits=1024)))
    for secret, namespace in (("missing", ns), ("mixed", ns), ("weak", ns)):
        gw.gateway(namespace, f"gw-{secret}", https_listener("tls", secret), https_listener("ok", "cert", port=8443))
        status = gw.settled("Gateway", f"gw-{secret}", ns)
        listener, good = status["listeners"]
        told = reasons(listener)
        assert told["ResolvedRefs"] == "False InvalidCertificateRef"
        assert told["Programmed"] == "False Invalid"
        assert reasons(good)["Programmed"] == "True Programmed"


def test_a_certificate_in_another_namespace_needs_a_grant(gw: Bench, authority: MadeAuthority) -> None:
    ns, other = gw.namespace("cert-asking"), gw.namespace("cert-giving")
    gw.apply(authority.secret(other, "cert", "far.org"))
    listener = https_listener("tls", {"name": "cert", "namespace": other})
    address = gw.gateway(ns, "gw", listener)
    assert reasons(gw.settled("Gateway", "gw", ns)["listeners"][0])["ResolvedRefs"] == "False RefNotPermitted"
    gw.apply(
        {
            "apiVersion": "gateway.networking.k8s.io/v1beta1",
            "kind": "ReferenceGrant",
            "metadata": {"name": "allow", "namespace": other},
            "spec": {
                "from": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": ns}],
                "to": [{"group": "", "kind": "Secret"}],
            },
        }
    )
    gw.until(lambda: served_names(address, "far.org") == ["far.org"])
    assert gw.until(
        lambda: reasons(gw.get("Gateway", "gw", ns)["status"]["listeners"][0])["ResolvedRefs"] == "True ResolvedRefs"
    )


def test_tls_routes_pass_through_or_terminate(gw: Bench, authority: MadeAuthority) -> None:
    ns = gw.namespace("tlsroutes")
    gw.service(ns, "secure", port=443, target=gw.backends.port("secure", authority.server("abc.org")))
    gw.service(ns, "plain")
    gw.apply(authority.secret(ns, "cert", "term.org"))
    address = gw.gateway(
        ns,
        "gw",
        {"name": "pass", "port": 443, "protocol": "TLS", "hostname": "abc.org", "tls": {"mode": "Passthrough"}},
        {
            "name": "term",
            "port": 443,
            "protocol": "TLS",
            "hostname": "term.org",
            "tls": {"mode": "Terminate", "certificateRefs": [{"name": "cert"}]},
        },
    )
    for name, backend, port in (("pass", "secure", 443), ("term", "plain", 8080)):
        status = gw.route(
            {
                "apiVersion": GATEWAY_API,
                "kind": "TLSRoute",
                "metadata": {"name": name, "namespace": ns},
                "spec": {
                    "parentRefs": [{"name": "gw", "sectionName": name}],
                    "hostnames": ["abc.org" if name == "pass" else "term.org"],
                    "rules": [{"backendRefs": to(backend, port=port)}],
                },
            }
        )
        assert reasons(status["parents"][0]) == {"Accepted": "True Accepted", "ResolvedRefs": "True ResolvedRefs"}
    assert served_names(address, "abc.org") == ["abc.org"]
    assert gw.ask_tls(address, "abc.org").backend == "secure"
    assert served_names(address, "term.org") == ["term.org"]
    assert gw.ask_tls(address, "term.org").backend == "plain"
    with pytest.raises((OSError, ssl.SSLError)):
        gw.ask_tls(address, "unknown.org")


def test_tls_to_a_backend_is_verified_or_refused(gw: Bench, authority: MadeAuthority) -> None:
    ns = gw.namespace("upstream")
    for name in ("good", "bad"):
        gw.service(ns, name, port=443, target=gw.backends.port(f"tls-{name}", authority.server("abc.org")))
    address = gw.gateway(ns, "gw")
    rules = [
        {"matches": [{"path": {"value": f"/{name}"}}], "backendRefs": to(name, port=443)} for name in ("good", "bad")
    ]
    gw.route(route(ns, "r", "gw", rules))
    for name, pem in (("good", authority.pem), ("bad", MadeAuthority("another").pem)):
        gw.apply(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": name, "namespace": ns},
                "data": {"ca.crt": pem.decode()},
            },
            backend_tls(ns, name, name),
        )
    assert gw.until(lambda: gw.ask(address, path="/good").backend == "tls-good")
    gw.until(lambda: gw.ask(address, path="/bad").status == 503)
    status = gw.settled("BackendTLSPolicy", "good", ns)
    assert reasons(status["ancestors"][0]) == {"Accepted": "True Accepted", "ResolvedRefs": "True ResolvedRefs"}
    assert status["ancestors"][0]["ancestorRef"]["name"] == "gw"
    gw.apply(backend_tls(ns, "bad", "nowhere"))
    status = gw.settled("BackendTLSPolicy", "bad", ns)
    assert reasons(status["ancestors"][0]) == {
        "Accepted": "False NoValidCACertificate",
        "ResolvedRefs": "False InvalidCACertificateRef",
    }
    assert gw.ask(address, path="/bad").status == 503


def test_the_names_a_backend_may_have_are_checked(gw: Bench, authority: MadeAuthority) -> None:
    ns = gw.namespace("names")
    gw.service(ns, "v1", port=443, target=gw.backends.port("tls-names", authority.server("abc.org", "inner.org")))
    address = gw.gateway(ns, "gw")
    gw.route(route(ns, "r", "gw", [{"backendRefs": to("v1", port=443)}]))
    bundle = {"name": "ca", "namespace": ns}
    gw.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": bundle, "data": {"ca.crt": authority.pem.decode()}})
    policy = backend_tls(ns, "v1", "ca")
    for name, status in (("inner.org", 200), ("other.org", 503), ("abc.org", 200)):
        policy["spec"]["validation"]["subjectAltNames"] = [{"type": "Hostname", "hostname": name}]
        gw.apply(policy)

        def answered(status: int = status) -> bool:
            return gw.ask(address).status == status

        gw.until(answered)


def backend_tls(namespace: str, service: str, authority: str) -> Object:
    return {
        "apiVersion": GATEWAY_API,
        "kind": "BackendTLSPolicy",
        "metadata": {"name": service, "namespace": namespace},
        "spec": {
            "targetRefs": [{"group": "", "kind": "Service", "name": service}],
            "validation": {
                "hostname": "abc.org",
                "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": authority}],
            },
        },
    }


def test_client_certificates_can_be_demanded(gw: Bench, authority: MadeAuthority) -> None:
    ns = gw.namespace("mutual")
    gw.service(ns, "v1")
    gw.apply(
        authority.secret(ns, "cert", "mutual.org"),
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "clients", "namespace": ns},
            "data": {"ca.crt": authority.pem.decode()},
        },
        {
            "apiVersion": GATEWAY_API,
            "kind": "Gateway",
            "metadata": {"name": "gw", "namespace": ns},
            "spec": {
                "gatewayClassName": "sampan",
                "listeners": [https_listener("tls", "cert"), https_listener("lenient", "cert", port=8443)],
                "tls": {
                    "frontend": {
                        "default": {"validation": {"caCertificateRefs": [config_map("clients")]}},
                        "perPort": [
                            {
                                "port": 8443,
                                "tls": {
                                    "validation": {
                                        "caCertificateRefs": [config_map("clients")],
                                        "mode": "AllowInsecureFallback",
                                    }
                                },
                            }
                        ],
                    }
                },
            },
        },
    )
    address = gw.settled("Gateway", "gw", ns)["addresses"][0]["value"]
    gw.route(route(ns, "r", "gw", [{"backendRefs": to("v1")}]))
    assert gw.ask_tls(address, "mutual.org", port=8443).status == 200
    with pytest.raises((OSError, ssl.SSLError)):
        gw.ask_tls(address, "mutual.org")
    context = ssl.create_default_context(cadata=authority.pem.decode())
    authority.load(context, "client.org")
    with (
        socket.create_connection((address, 443), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname="mutual.org") as secured,
    ):
        secured.sendall(b"GET / HTTP/1.1\r\nHost: mutual.org\r\nConnection: close\r\n\r\n")
        assert secured.recv(100).startswith(b"HTTP/1.1 200")


def config_map(name: str) -> Object:
    return {"group": "", "kind": "ConfigMap", "name": name}


def test_tls_secrets_never_appear_in_a_status(gw: Bench, authority: MadeAuthority) -> None:
    ns = gw.namespace("quiet")
    chain, _ = authority.leaf("quiet.org")
    broken = base64.b64encode(b"-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n").decode()
    secret = tls_secret(ns, "cert", chain, b"")
    secret["data"]["tls.key"] = broken
    gw.apply(secret)
    gw.gateway(ns, "gw", https_listener("tls", "cert"))
    status = gw.settled("Gateway", "gw", ns)
    assert reasons(status["listeners"][0])["ResolvedRefs"] == "False InvalidCertificateRef"
    assert "secret\n" not in str(status)
