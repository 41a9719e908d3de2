"""Whom the platform's authority vouches for."""

from __future__ import annotations

import pytest

from sampan.parts.serving.control.certificate import is_reserved


@pytest.mark.parametrize(
    "name",
    [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "Kubernetes.Default.SVC",
        "kubernetes.default.svc.cluster.local",
        "kubernetes.default.svc.cluster.local.",
        "127.0.0.1",
        "::1",
    ],
)
def test_names_of_the_platforms_own_servers_are_not_the_users(name: str) -> None:
    assert is_reserved(name, "default", set().__contains__)


@pytest.mark.parametrize(
    "name", ["hello.default.localhost", "hello.default.127.0.0.1.sslip.io", "shop.example.com", "hello.corp.local"]
)
def test_names_visible_outside_are(name: str) -> None:
    assert not is_reserved(name, "default", {"default", "shop", "hello"}.__contains__)


@pytest.mark.parametrize("ending", ["", ".svc", ".svc.cluster.local"])
def test_of_the_names_inside_a_namespace_has_those_of_its_own_services(ending: str) -> None:
    def is_namespace(name: str) -> bool:
        return name in ("default", "bank")

    assert not is_reserved(f"hello.bank{ending}", "bank", is_namespace)
    assert is_reserved(f"hello.bank{ending}", "default", is_namespace)
    assert is_reserved(f"kubernetes.default{ending}", "default", is_namespace)
    assert is_reserved(f"one.pod.bank{ending}", "bank", is_namespace) == bool(ending)
