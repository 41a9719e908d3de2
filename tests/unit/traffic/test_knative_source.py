"""Knative's internal Ingresses, by value."""

from __future__ import annotations

from typing import Any

import pytest

from sampan.kube.objects import Key, Object
from sampan.parts.traffic.resources import KNATIVE_INGRESSES
from sampan.parts.traffic.sources.gateway_api import Result
from sampan.parts.traffic.sources.knative import KnativeSource
from tests.unit.traffic.world_made import MadeWorld

PUBLIC, SECURE, PRIVATE = 80, 443, 8080


def ingress(name: str, spec: Any) -> Object:
    return {"metadata": {"name": name, "namespace": "default", "generation": 3}, "spec": spec}


def translated(*ingresses: Object) -> Result:
    made = MadeWorld()
    made.service("hello", 80)
    made.world.knative_ingresses = {Key.of(one): one for one in ingresses}
    return KnativeSource("127.0.0.1", PUBLIC, SECURE, PRIVATE).translate(made.world, made.backends)


def served(result: Result, port: int) -> set[str]:
    return {host for one in result.listeners if one.port == port for host in one.hosts}


GOOD = {
    "rules": [
        {
            "hosts": ["hello.example.com"],
            "http": {
                "paths": [{"splits": [{"serviceNamespace": "default", "serviceName": "hello", "servicePort": 80}]}]
            },
        }
    ]
}


@pytest.mark.parametrize(
    "spec",
    [
        {"tls": [{"hosts": ["a.example.com"]}]},
        {"tls": "all"},
        {"rules": 3},
        {"rules": [3]},
        {"rules": [{"hosts": "a.example.com", "http": {"paths": []}}]},
        {"rules": [{"hosts": [1], "http": {"paths": []}}]},
        {"rules": [{"hosts": ["a.example.com"], "http": {"paths": [{"splits": [{}]}]}}]},
        None,
    ],
)
def test_a_malformed_one_keeps_no_other_from_being_served(spec: Any) -> None:
    result = translated(ingress("a-bad-one", spec), ingress("good", GOOD))
    assert served(result, PUBLIC) == served(result, PRIVATE) == {"hello.example.com"}
    states = {
        key.name: status["conditions"][-1]["status"]
        for (_, key), status in result.statuses.items()
        if status is not None
    }
    assert states == {"a-bad-one": "Unknown", "good": "True"}
    assert all(resource == KNATIVE_INGRESSES for resource, _ in result.statuses)
