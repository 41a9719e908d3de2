"""Knative's internal Ingresses, by value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampan.kube.objects import Key, Object
from sampan.parts.traffic.model import Certificate, Forward, rank
from sampan.parts.traffic.references import Backends
from sampan.parts.traffic.resources import KNATIVE_INGRESSES
from sampan.parts.traffic.sources import knative as module
from sampan.parts.traffic.sources.gateway_api import Result
from sampan.parts.traffic.sources.knative import LIMIT_ANNOTATION, LONGEST_WAIT, KnativeSource
from sampan.parts.traffic.world import Changes
from tests.unit.traffic.world_made import MadeWorld

PUBLIC, SECURE, PRIVATE, SEALED = 80, 443, 8080, 8443


def ingress(name: str, spec: Any) -> Object:
    return {"metadata": {"name": name, "namespace": "default", "generation": 3}, "spec": spec}


def translated(*ingresses: Object) -> Result:
    made = MadeWorld()
    made.service("hello", 80)
    for one in ingresses:
        change(made, "put", one)
    return source(lambda: 0.0).translate(made.world, made.backends)


def source(now: Callable[[], float]) -> KnativeSource:
    return KnativeSource("127.0.0.1", PUBLIC, SECURE, (PRIVATE, SEALED), now)


def served(result: Result, port: int) -> set[str]:
    return {host for one in result.listeners if one.port == port for host in one.hosts}


def splits_to(service: str) -> Object:
    split = {**SPLIT, "serviceName": service}
    return {"rules": [{"hosts": ["hello.example.com"], "http": {"paths": [{"splits": [split]}]}}]}


SPLIT = {"serviceNamespace": "default", "serviceName": "hello", "servicePort": 80}
GOOD = splits_to("hello")


def path_with(**fields: Any) -> Object:
    return {"rules": [{"hosts": ["a.example.com"], "http": {"paths": [{"splits": [SPLIT], **fields}]}}]}


@pytest.mark.parametrize(
    "spec",
    [
        {"tls": [{"hosts": ["a.example.com"]}]},
        {"tls": "all"},
        {"tls": [{"secretName": "x", "secretNamespace": ["default"]}]},
        {"rules": 3},
        {"rules": [3]},
        {"rules": [{"hosts": "a.example.com", "http": {"paths": []}}]},
        {"rules": [{"hosts": [1], "http": {"paths": []}}]},
        {"rules": [{"hosts": ["a\nb.example.com"], "http": {"paths": []}}]},
        {"rules": [{"hosts": ["a.example.com"], "http": {"paths": [{"splits": [{}]}]}}]},
        path_with(path={"a": 1}),
        path_with(headers={"x": {"exact": ["a"]}}),
        path_with(rewriteHost=["a"]),
        path_with(appendHeaders={"x": ["a"]}),
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


def test_hosts_that_differ_in_case_are_one() -> None:
    shouted = {"rules": [{**splits_to("hello")["rules"][0], "hosts": ["Hello.Example.com"]}]}
    assert served(translated(ingress("shouted", shouted), ingress("good", GOOD)), PUBLIC) == {"hello.example.com"}


def test_a_cluster_stays_for_requests_that_wait_in_the_gate() -> None:
    made, now = MadeWorld(), 0.0
    followed = source(lambda: now)

    def split_to(service: str) -> set[str]:
        made.service(service, 80)
        change(made, "put", ingress("one", splits_to(service)))
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


SERVICES = st.sampled_from(["s", "t", "u"])
HOSTS = st.sampled_from(["one.example.com", "two.example.com", "three.example.com"])


@st.composite
def ingresses(draw: Any) -> Object:
    rules = []
    for _ in range(draw(st.integers(0, 2))):
        splits = [
            {"serviceNamespace": "default", "serviceName": name, "servicePort": 80, "percent": 50}
            for name in draw(st.lists(SERVICES, min_size=1, max_size=2, unique=True))
        ]
        rule: Object = {"hosts": draw(st.lists(HOSTS, max_size=2)), "http": {"paths": [{"splits": splits}]}}
        if draw(st.booleans()):
            rule["visibility"] = "ClusterLocal"
        rules.append(rule)
    spec: Object = {"rules": rules}
    if hosts := draw(st.lists(HOSTS, max_size=2, unique=True)):
        spec["tls"] = [{"hosts": hosts, "secretName": draw(st.sampled_from(["first", "second"]))}]
        spec["httpOption"] = draw(st.sampled_from(["Enabled", "Redirected"]))
    return ingress(draw(st.sampled_from("abc")), draw(st.sampled_from([spec, spec, spec, {"rules": 3}])))


CHANGES = st.one_of(
    st.tuples(st.just("put"), ingresses()),
    st.tuples(st.just("take"), st.sampled_from("abc")),
    st.tuples(st.sampled_from(["service", "no service", "limited", "cold", "ready", "announced"]), SERVICES),
    st.tuples(st.sampled_from(["secret", "no secret"]), st.sampled_from(["first", "second"])),
)


def change(made: MadeWorld, what: str, value: Any) -> None:
    world, key = made.world, Key("default", value if isinstance(value, str) else "")
    match what:
        case "put":
            made.knative_ingresses[Key.of(value)] = value
            world.note("knative_ingresses", Key.of(value))
        case "take":
            made.knative_ingresses.pop(key, None)
            world.note("knative_ingresses", key)
        case "service":
            made.service(value, 80)
        case "no service":
            made.services.pop(key, None)
            world.note("services", key)
        case "limited" | "cold":
            limit = {"annotations": {LIMIT_ANNOTATION: "1"}} if what == "limited" else {}
            made.serverless_services[key] = {"metadata": {"name": value, "namespace": "default", **limit}}
            world.note("serverless_services", key)
            if what == "cold":
                made.slices.pop(key, None)
                world.changed.endpoints.add(key)
        case "ready":
            made.slices[key] = [{"endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": True}}]}]
            world.changed.endpoints.add(key)
        case "announced":
            world.early[key] = frozenset({("10.0.0.2", 8080)})
            world.changed.endpoints.add(key)
        case "secret":
            world.secrets[key] = {"data": {"tls.crt": value}}
            world.version += 1
        case "no secret":
            world.secrets.pop(key, None)
            world.version += 1


def outcome(result: Result) -> object:
    listeners = {
        (one.port, one.hostname): (
            {host: sorted(found.rules, key=repr) for host, found in one.hosts.items()},
            sorted(one.certificates),
        )
        for one in result.listeners
    }
    ordered = [[list(found.ordered()) for found in one.hosts.values()] for one in result.listeners]
    assert all(rules == sorted(rules, key=rank) for hosts in ordered for rules in hosts)
    return listeners, result.statuses


@settings(max_examples=150, deadline=None)
@given(st.lists(CHANGES, max_size=12))
def test_what_is_made_of_changes_one_by_one_is_what_would_be_made_of_all_at_once(
    changes: list[tuple[str, Any]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "read_certificate", lambda key, secret: Certificate(str(key), b"", b""))
        made, followed = MadeWorld(), source(lambda: 0.0)
        told: dict[Any, Any] = {}
        for what, value in changes:
            change(made, what, value)
            made.backends.follow()
            result = followed.translate(made.world, made.backends)
            made.world.changed = Changes()
            told |= {entry: result.statuses.get(entry) for entry in result.changed}
            fresh = Backends(made.world)
            made.world.changed.knative_ingresses |= made.knative_ingresses.keys()
            whole = source(lambda: 0.0).translate(made.world, fresh)
            made.world.changed = Changes()
            assert outcome(result) == outcome(whole)
            assert {entry: status for entry, status in told.items() if status is not None} == whole.statuses
            assert {name: made.backends.made[name] for name in fresh.made} == fresh.made


def test_an_announced_address_translates_nothing_anew() -> None:
    made, followed = MadeWorld(), source(lambda: 0.0)
    change(made, "service", "hello")
    change(made, "cold", "hello")
    change(made, "put", ingress("one", GOOD))

    def state(result: Result) -> object:
        return [(one.shape, [host.version for host in one.hosts.values()]) for one in result.listeners]

    states = []
    for what in ("announced", "announced", "ready"):
        result = followed.translate(made.world, made.backends)
        states.append(state(result))
        made.world.changed = Changes()
        change(made, what, "hello")
    assert states[0] == states[1] == states[2]
    result = followed.translate(made.world, made.backends)
    assert states[2] != state(result)


def test_cluster_local_names_have_a_port_of_their_own_for_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_certificate", lambda key, secret: Certificate(str(key), b"", b""))
    made = MadeWorld()
    made.service("hello", 80)
    made.world.secrets[Key("default", "own")] = {"data": {}}
    inner = {**splits_to("hello")["rules"][0], "hosts": ["hello.default.svc"], "visibility": "ClusterLocal"}
    tls = [{"hosts": ["hello.default.svc"], "secretName": "own"}]
    spec = {"rules": [*GOOD["rules"], inner], "tls": tls, "httpOption": "Redirected"}
    one = ingress("one", spec)
    change(made, "put", one)
    result = source(lambda: 0.0).translate(made.world, made.backends)
    assert served(result, SEALED) == {"hello.default.svc"}
    assert served(result, SECURE) == set()
    assert served(result, PRIVATE) == {"hello.default.svc", "hello.example.com"}
    plain = next(one for one in result.listeners if one.port == PRIVATE)
    assert all(isinstance(rule.action, Forward) for host in plain.hosts.values() for rule in host.rules)


def test_the_secret_of_another_namespace_is_not_served_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_certificate", lambda key, secret: Certificate(str(key), b"", b""))
    made = MadeWorld()
    made.service("hello", 80)
    for key in (Key("default", "own"), Key("bank", "own")):
        made.world.secrets[key] = {"data": {}}
    for namespace, served_hosts in (("default", {"hello.example.com"}), ("bank", set())):
        tls = [{"hosts": ["hello.example.com"], "secretName": "own", "secretNamespace": namespace}]
        one = ingress("one", {**GOOD, "tls": tls})
        change(made, "put", one)
        result = source(lambda: 0.0).translate(made.world, made.backends)
        assert served(result, SECURE) == served_hosts
        assert served(result, PUBLIC) == {"hello.example.com"}
