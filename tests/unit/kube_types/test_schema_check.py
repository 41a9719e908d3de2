"""The shape of built-in kinds: unknown fields, wrong types, canonical values."""

from typing import Any

import pytest

from sampan.kube.objects import Object, copy
from sampan.kube.status import ApiError
from sampan.kube.types.builtin import builtin_types

STRATEGIES = {kind.kind: kind.strategy for kind in builtin_types()}
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "web", "labels": {"app": "web"}, "creationTimestamp": "2024-01-02T03:04:05Z"},
    "spec": {
        "containers": [
            {
                "name": "c",
                "image": "nginx",
                "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "1"}},
                "livenessProbe": {"httpGet": {"port": "http"}},
            }
        ],
    },
}


def pod_with(path: str, value: Any) -> Object:
    obj: Object = copy(POD)
    *steps, last = [int(step) if step.isdigit() else step for step in path.split("/")]
    place: Any = obj
    for step in steps:
        place = place[step]
    place[last] = value
    return obj


def test_a_good_object_is_left_as_it_is() -> None:
    obj = copy(POD)
    assert STRATEGIES["Pod"].prune(obj) == []
    assert obj == POD


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata/annotations", {}),
        ("spec/volumes", []),
        ("spec/hostNetwork", False),
        ("spec/nodeName", ""),
        ("spec/containers/0/command", []),
        ("spec/containers/0/livenessProbe/initialDelaySeconds", 0),
    ],
)
def test_what_go_leaves_out_when_it_is_empty_is_absent(path: str, value: Any) -> None:
    obj = pod_with(path, value)
    assert STRATEGIES["Pod"].prune(obj) == []
    assert obj == POD
    obj = pod_with(path, value)
    obj["spec"]["colour"] = "blue"
    assert STRATEGIES["Pod"].prune(obj) == ["spec.colour"]
    assert obj == POD


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec/terminationGracePeriodSeconds", 0),
        ("spec/automountServiceAccountToken", False),
        ("spec/volumes", [{"name": "v", "emptyDir": {}}]),
        ("spec/containers/0/securityContext", {"runAsNonRoot": False}),
        ("spec/containers/0/resources", {}),
        ("spec/securityContext", {}),
    ],
)
def test_a_zero_that_means_something_stays(path: str, value: Any) -> None:
    obj = pod_with(path, value)
    expected = copy(obj)
    assert STRATEGIES["Pod"].prune(obj) == []
    assert obj == expected


@pytest.mark.parametrize(
    ("path", "unknown"),
    [
        ("spec/colour", "spec.colour"),
        ("spec/containers/0/colour", "spec.containers[0].colour"),
        ("metadata/colour", "metadata.colour"),
        ("colour", "colour"),
        ("spec/containers/0/ports/0/colour", "spec.containers[0].ports[0].colour"),
    ],
)
def test_unknown_fields_are_dropped_and_named(path: str, unknown: str) -> None:
    obj = pod_with(path, {"a": 1})
    assert STRATEGIES["Pod"].prune(obj) == [unknown]
    assert obj == POD


@pytest.mark.parametrize("path", ["metadata/generateName", "spec/volumes", "spec/containers/0/env", "status"])
def test_null_is_absent(path: str) -> None:
    obj = pod_with(path, None)
    assert STRATEGIES["Pod"].prune(obj) == []
    assert obj == POD


def test_null_in_a_map_is_the_zero_value() -> None:
    obj = pod_with("metadata/annotations", {"a": None})
    STRATEGIES["Pod"].prune(obj)
    assert obj["metadata"]["annotations"] == {"a": ""}


@pytest.mark.parametrize(
    ("value", "canonical"), [("1000m", "1"), (1, "1"), (0.5, "500m"), ("1024Mi", "1Gi"), ("100m", "100m")]
)
def test_quantities_become_canonical(value: Any, canonical: str) -> None:
    obj = pod_with("spec/containers/0/resources/limits/cpu", value)
    STRATEGIES["Pod"].prune(obj)
    assert obj["spec"]["containers"][0]["resources"]["limits"]["cpu"] == canonical


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("spec/hostNetwork", "yes", "json: cannot unmarshal string into Go struct field PodSpec.spec.hostNetwork of type bool"),
        (
            "spec/containers/0/ports/0/containerPort",
            "80",
            "json: cannot unmarshal string into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32",
        ),
        ("spec/containers", {}, "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container"),
        ("spec", [], "json: cannot unmarshal array into Go struct field Pod.spec of type v1.PodSpec"),
        ("metadata/labels/app", 1, "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string"),
        (
            "spec/terminationGracePeriodSeconds",
            1.5,
            "json: cannot unmarshal number 1.5 into Go struct field PodSpec.spec.terminationGracePeriodSeconds of type int64",
        ),
        (
            "spec/containers/0/ports/0/containerPort",
            2**40,
            "json: cannot unmarshal number 1099511627776 into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32",
        ),
        ("spec/containers/0/resources/limits/cpu", "lots", "quantities must match the regular expression"),
        ("metadata/creationTimestamp", "soon", 'parsing time "soon"'),
        (
            "spec/containers/0/livenessProbe/httpGet/port",
            True,
            "json: cannot unmarshal bool into Go struct field HTTPGetAction.spec.containers.livenessProbe.httpGet.port of type string",
        ),
    ],
)  # fmt: skip
def test_wrong_types_are_refused_in_gos_words(path: str, value: Any, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        STRATEGIES["Pod"].prune(pod_with(path, value))
    assert caught.value.code == 400
    assert caught.value.message.startswith('Pod in version "v1" cannot be handled as a Pod: ')
    assert message in caught.value.message


def test_bytes_must_be_base64() -> None:
    secret: Object = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"a": "aGk="}}
    assert STRATEGIES["Secret"].prune(secret) == []
    secret["data"]["a"] = "aG\nk="
    STRATEGIES["Secret"].prune(secret)
    assert secret["data"]["a"] == "aGk="
    secret["data"]["a"] = "aG!k"
    with pytest.raises(ApiError, match="illegal base64 data at input byte 2"):
        STRATEGIES["Secret"].prune(secret)


def test_free_form_values_pass() -> None:
    revision = {"kind": "ControllerRevision", "apiVersion": "apps/v1", "revision": 1, "data": {"spec": {"x": None}}}
    assert STRATEGIES["ControllerRevision"].prune(revision) == []
    assert revision["data"] == {"spec": {"x": None}}


def test_crd_schemas_are_not_pruned() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string", "default": "x"}}}}
    crd: Object = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "x"},
        "spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": copy(schema)}}]},
    }
    assert STRATEGIES["CustomResourceDefinition"].prune(crd) == []
    assert crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"] == schema
