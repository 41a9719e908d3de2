"""Objects of Knative that cannot be read: refused in Go's words, whatever is in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.unit.serving.test_admission import config

from sampan.kube.objects import copy
from sampan.kube.status import ApiError
from sampan.parts.serving import decoding, defaults, validation
from sampan.parts.serving.configmaps import RevisionDefaults

CONTAINER: dict[str, Any] = {
    "name": "app",
    "image": "app",
    "args": ["a"],
    "env": [{"name": "A", "value": "b"}, {"name": "B", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}],
    "envFrom": [{"configMapRef": {"name": "x"}}],
    "ports": [{"containerPort": 8080, "name": "h2c"}],
    "resources": {"limits": {"cpu": "0.5"}},
    "securityContext": {
        "runAsUser": 1,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    },
    "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 5},
    "livenessProbe": {"grpc": {"port": 1}},
    "volumeMounts": [{"name": "v", "mountPath": "/v"}, {"name": "p", "mountPath": "/p"}],
}
POD: dict[str, Any] = {
    "containers": [CONTAINER],
    "volumes": [
        {"name": "v", "secret": {"secretName": "s", "items": [{"key": "a", "path": "b"}]}},
        {"name": "p", "projected": {"sources": [{"secret": {"name": "x"}}]}},
    ],
    "timeoutSeconds": 10,
    "responseStartTimeoutSeconds": 3,
    "containerConcurrency": 1,
}
TEMPLATE = {"metadata": {"name": "hello-1", "annotations": {"a": "b"}}, "spec": POD}
SERVICE: dict[str, Any] = {
    "metadata": {"name": "hello", "namespace": "default"},
    "spec": {"template": TEMPLATE, "traffic": [{"percent": 100, "latestRevision": True, "tag": "now"}]},
}
NONSENSE: tuple[Any, ...] = (None, "x", 5, True, 1.5, [], {}, [None], ["x"], {"x": 1}, -1)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in steps:
        yield (*path, name)
        yield from places(inner, (*path, name))


def taken(service: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = copy(service)
    decoding.read("services", made)
    defaults.default_service(made, None, "alice", RevisionDefaults(), "enabled")
    validation.service(made, None, config())
    return made


def put(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    made: dict[str, Any] = copy(SERVICE)
    place: Any = made
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return made


def test_nothing_in_any_place_is_more_than_refused() -> None:
    assert taken(SERVICE)["spec"]["template"]["spec"]["containers"][0]["resources"] == {"limits": {"cpu": "0.5"}}
    refused = 0
    for path in places(SERVICE["spec"]):
        for nonsense in NONSENSE:
            try:
                taken(put(("spec", *path), nonsense))
            except ApiError as error:
                assert error.code == 400, (path, nonsense)
                refused += 1
    assert refused > 400


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        (("template", "spec", "containers"), "x", "cannot unmarshal string into Go struct field"),
        (("template", "spec", "containers", 0, "env"), {"A": "b"}, "cannot unmarshal object into Go struct field"),
        (("template", "spec", "timeoutSeconds"), "10", "string into Go struct field spec.template.spec.timeoutSeconds"),
        (("template", "metadata", "annotations"), ["x"], "cannot unmarshal array into Go struct field"),
        (("traffic",), {"tag": "x"}, "cannot unmarshal object into Go struct field spec.traffic"),
        (("traffic", 0, "percent"), "all", "string into Go struct field spec.traffic.percent of type int64"),
    ],
)
def test_what_cannot_be_read_is_refused_in_the_webhooks_words(path: tuple[Any, ...], value: Any, why: str) -> None:
    with pytest.raises(ApiError) as caught:
        decoding.read("services", put(("spec", *path), value))
    assert caught.value.message.startswith(
        'admission webhook "webhook.serving.knative.dev" denied the request: mutation'
    )
    assert "cannot decode incoming new object: json: " in caught.value.message
    assert why in caught.value.message


def test_null_stands_for_absent() -> None:
    nulls = {"readinessProbe": None, "env": None, "resources": None, "securityContext": None, "ports": None}
    made = put(("spec", "template", "spec", "containers"), [{"name": "app", "image": "app", **nulls}])
    made["spec"]["template"]["metadata"]["creationTimestamp"] = None
    made["spec"]["template"]["spec"] |= {"volumes": None, "initContainers": None, "nodeSelector": None}
    made["spec"]["traffic"] = None
    template = taken(made)["spec"]["template"]
    assert template["metadata"] == TEMPLATE["metadata"]
    assert template["spec"]["containers"][0]["readinessProbe"] == {"tcpSocket": {"port": 0}, "successThreshold": 1}
    assert not template["spec"].keys() & {"volumes", "initContainers", "nodeSelector"}
