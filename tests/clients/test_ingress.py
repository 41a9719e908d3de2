"""Ingress v1 with the real Envoy: hosts, paths, default backends, classes, TLS."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

import pytest
from cryptography import x509

from sampan.kube.client import resources as core
from sampan.kube.objects import Object
from tests.clients.certificates_made import MadeAuthority
from tests.clients.gateway_harness import Bench, bench


@pytest.fixture(scope="module")
def gw() -> Iterator[Bench]:
    with bench() as made:
        yield made


def backend(name: str, port: int | str = 8080) -> Object:
    return {"service": {"name": name, "port": {"number": port} if isinstance(port, int) else {"name": port}}}


def ingress(namespace: str, name: str, *rules: tuple[str, str, str, str], **spec: object) -> Object:
    """Rules are (host, path, path type, service)."""
    made: Object = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": name, "namespace": namespace},
        "spec": dict(spec),
    }
    if rules:
        made["spec"]["rules"] = [
            {
                **({"host": host} if host else {}),
                "http": {"paths": [{"path": path, "pathType": kind, "backend": backend(service)}]},
            }
            for host, path, kind, service in rules
        ]
    return made


def ask(gw: Bench, host: str, path: str = "/") -> str:
    address, _, port = gw.platform.address("gateway").partition(":")
    return gw.ask(address, host, path, port=int(port)).backend


def ready(gw: Bench, namespace: str, name: str) -> None:
    gw.until(lambda: gw.get("Ingress", name, namespace)["status"].get("loadBalancer", {}).get("ingress"))


def test_paths_follow_the_documented_table(gw: Bench) -> None:
    ns = gw.namespace("paths")
    for name in ("root", "exact", "prefix", "longer", "slash", "free"):
        gw.service(ns, name)
    gw.apply(
        ingress(
            ns,
            "paths",
            ("p.com", "/", "Prefix", "root"),
            ("p.com", "/foo", "Exact", "exact"),
            ("p.com", "/foo", "Prefix", "prefix"),
            ("p.com", "/foo/bar", "Prefix", "longer"),
            ("p.com", "/end/", "Prefix", "slash"),
            ("p.com", "/free", "ImplementationSpecific", "free"),
        )
    )
    ready(gw, ns, "paths")
    for path, expected in (
        ("/", "root"),
        ("/any/thing", "root"),
        ("/foo", "exact"),
        ("/foo/", "prefix"),
        ("/foo/x", "prefix"),
        ("/foobar", "root"),
        ("/foo/bar", "longer"),
        ("/foo/bar/baz", "longer"),
        ("/foo/barbaz", "prefix"),
        ("/end", "slash"),
        ("/end/x", "slash"),
        ("/free/x", "free"),
        ("/foo?x=/foo/bar", "exact"),
    ):
        assert ask(gw, "p.com", path) == expected, path


def test_hosts_and_wildcards_of_one_label(gw: Bench) -> None:
    ns = gw.namespace("hosts")
    for name in ("exact", "wild"):
        gw.service(ns, name)
    gw.apply(ingress(ns, "hosts", ("bar.foo.com", "/", "Prefix", "exact"), ("*.foo.com", "/", "Prefix", "wild")))
    ready(gw, ns, "hosts")
    for host, expected in (
        ("bar.foo.com", "exact"),
        ("baz.foo.com", "wild"),
        ("baz.foo.com:9080", "wild"),
        ("a.baz.foo.com", "404"),
        ("foo.com", "404"),
    ):
        assert ask(gw, host) == expected, host


def test_default_backends_and_missing_services(gw: Bench) -> None:
    ns = gw.namespace("defaults")
    for name in ("some", "fallback"):
        gw.service(ns, name)
    made = ingress(ns, "d", ("d.com", "/some", "Prefix", "some"), ("d.com", "/gone", "Prefix", "gone"))
    gw.apply({**made, "spec": {**made["spec"], "defaultBackend": backend("fallback", "main")}})
    ready(gw, ns, "d")
    for host, path, expected in (
        ("d.com", "/some", "some"),
        ("d.com", "/other", "fallback"),
        ("elsewhere.com", "/", "fallback"),
        ("d.com", "/gone", "503"),
    ):
        assert ask(gw, host, path) == expected, (host, path)
    gw.delete("Ingress", "d", ns)
    gw.until(lambda: ask(gw, "elsewhere.com") == "404")


def test_only_ingresses_of_our_class_are_served(gw: Bench) -> None:
    ns = gw.namespace("classes")
    gw.service(ns, "v1")
    gw.apply(
        ingress(ns, "ours", ("ours.com", "/", "Prefix", "v1"), ingressClassName="sampan"),
        ingress(ns, "default", ("default.com", "/", "Prefix", "v1")),
        ingress(ns, "theirs", ("theirs.com", "/", "Prefix", "v1"), ingressClassName="nginx"),
    )
    ready(gw, ns, "default")
    assert (ask(gw, "ours.com"), ask(gw, "default.com"), ask(gw, "theirs.com")) == ("v1", "v1", "404")
    assert "ingress" not in gw.get("Ingress", "theirs", ns).get("status", {}).get("loadBalancer", {})


def certificate_names(gw: Bench, server_name: str) -> list[str]:
    address, _, port = gw.platform.address("gateway.tls").partition(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((address, int(port)), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname=server_name) as secured,
    ):
        certificate = x509.load_der_x509_certificate(secured.getpeercert(True) or b"")
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return list(names.get_values_for_type(x509.DNSName))


def test_tls_by_host_and_the_default_certificate(gw: Bench) -> None:
    ns, authority = gw.namespace("tls"), MadeAuthority()
    gw.service(ns, "v1")
    gw.apply(authority.secret(ns, "cert", "*.tls.com"))
    gw.apply(
        ingress(
            ns,
            "tls",
            ("a.tls.com", "/", "Prefix", "v1"),
            ("plain.com", "/", "Prefix", "v1"),
            tls=[{"hosts": ["*.tls.com"], "secretName": "cert"}],
        ),
        ingress(
            ns,
            "bad",
            ("bad.com", "/", "Prefix", "v1"),
            tls=[{"hosts": ["bad.com"], "secretName": "missing"}],
        ),
    )
    ready(gw, ns, "bad")
    address, _, port = gw.platform.address("gateway.tls").partition(":")
    for host, names in (("a.tls.com", ["*.tls.com"]), ("plain.com", ["localhost"]), ("bad.com", ["localhost"])):
        assert certificate_names(gw, host) == names
        assert gw.ask_tls(address, host, port=int(port)).backend == "v1"

    async def told() -> bool:
        found = await gw.client.list(core.EVENTS, ns)
        return any(one["reason"] == "InvalidCertificate" and "missing" in one["message"] for one in found.items)

    gw.until(lambda: gw.backends.run(told()))
