"""Knative's internal Ingresses, by value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sampan.kube.objects import Key, Object
from sampan.parts.traffic.resources import KNATIVE_INGRESSES
from sampan.parts.traffic.sources.gateway_api import Result
from sampan.parts.traffic.sources.knative import LONGEST_WAIT, KnativeSource
from tests.unit.traffic.world_made import MadeWorld

PUBLIC, SECURE, PRIVATE = 80, 443, 8080


def ingress(name: str, spec: Any) -> Object:
    return {"metadata": {"name": name, "namespace": "default", "generation": 3}, "spec": spec}


def translated(*ingresses: Object) -> Result:
    made = MadeWorld()
    made.service("hello", 80)
    made.world.knative_ingresses = {Key.of(one): one for one in ingresses}
    return source(lambda: 0.0).translate(made.world, made.backends)


def source(now: Callable[[], float]) -> KnativeSource:
    return KnativeSource("127.0.0.1", PUBLIC, SECURE, PRIVATE, now)


def served(result: Result, port: int) -> set[str]:
    return {host for one in result.listeners if one.port == port for host in one.hosts}


def splits_to(service: str) -> Object:
    split = {"serviceNamespace": "default", "serviceName": service, "servicePort": 80}
    return {"rules": [{"hosts": ["hello.example.com"], "http": {"paths": [{"splits": [split]}]}}]}


GOOD = splits_to("hello")


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


def test_a_cluster_stays_for_requests_that_wait_in_the_gate() -> None:
    made, now = MadeWorld(), 0.0
    followed = source(lambda: now)

    def split_to(service: str) -> set[str]:
        made.service(service, 80)
        made.world.knative_ingresses = {Key("default", "one"): ingress("one", splits_to(service))}
        made.world.version += 1
        followed.translate(made.world, made.backends)
        return set(made.backends.made)

    assert split_to("one") == {"default/one/80"}
    assert split_to("two") == {"default/one/80", "default/two/80"}
    now = LONGEST_WAIT - 1
    assert split_to("three") == {"default/one/80", "default/two/80", "default/three/80"}
    now = LONGEST_WAIT
    assert split_to("two") == {"default/two/80", "default/three/80"}
    now = 3 * LONGEST_WAIT
    assert split_to("two") == {"default/two/80"}
    assert split_to("three") == {"default/two/80", "default/three/80"}
