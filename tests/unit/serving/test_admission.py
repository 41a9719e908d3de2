"""Knative's defaults and refusals."""

from __future__ import annotations

from typing import Any

import pytest

from sampan.kube.objects import Key, copy
from sampan.kube.status import ApiError
from sampan.parts.serving import defaults, validation
from sampan.parts.serving.configmaps import Config, RevisionDefaults
from sampan.parts.serving.resources import SYSTEM_NAMESPACE


def config(**maps: dict[str, str]) -> Config:
    found = {Key(SYSTEM_NAMESPACE, name.replace("_", "-")): {"data": data} for name, data in maps.items()}
    return Config(found.get, "localhost")


def ksvc(**container: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "hello", "namespace": "default"},
        "spec": {"template": {"spec": {"containers": [{"image": "app", **container}]}}},
    }


def defaulted(service: dict[str, Any], old: dict[str, Any] | None = None) -> dict[str, Any]:
    made: dict[str, Any] = copy(service)
    defaults.default_service(made, old, "alice", RevisionDefaults())
    return made


def refusal(service: dict[str, Any], old: dict[str, Any] | None = None, settings: Config | None = None) -> str:
    with pytest.raises(ApiError) as caught:
        validation.service(service, old, settings or config())
    assert caught.value.code == 400
    return caught.value.message


def test_a_bare_service_gets_knatives_defaults() -> None:
    made = defaulted(ksvc())
    spec = made["spec"]["template"]["spec"]
    assert spec["timeoutSeconds"] == 300
    assert spec["containerConcurrency"] == 0
    assert spec["enableServiceLinks"] is False
    assert "responseStartTimeoutSeconds" not in spec
    container = spec["containers"][0]
    assert container["name"] == "user-container"
    assert container["readinessProbe"] == {"tcpSocket": {"port": 0}, "successThreshold": 1}
    assert made["spec"]["traffic"] == [{"percent": 100, "latestRevision": True}]
    assert made["metadata"]["annotations"]["serving.knative.dev/creator"] == "alice"
    validation.service(made, None, config())


def test_defaulting_twice_changes_nothing() -> None:
    once = defaulted(ksvc())
    assert defaulted(once, once) == once


def test_several_containers_are_numbered() -> None:
    service = ksvc(ports=[{"containerPort": 8080}])
    service["spec"]["template"]["spec"]["containers"].append({"image": "sidecar"})
    names = [one["name"] for one in defaulted(service)["spec"]["template"]["spec"]["containers"]]
    assert names == ["user-container-0", "user-container-1"]


def test_a_named_template_stays_as_it_was() -> None:
    old = defaulted(ksvc())
    old["spec"]["template"]["metadata"] = {"name": "hello-one"}
    del old["spec"]["template"]["spec"]["timeoutSeconds"]
    assert "timeoutSeconds" not in defaulted(old, old)["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    ("traffic", "text"),
    [
        ([{"percent": 50, "latestRevision": True}], "Traffic targets sum to 50, want 100"),
        ([{"percent": 101, "latestRevision": True}], "expected 0 <= 101 <= 100"),
        (
            [{"percent": 50, "latestRevision": True, "tag": "a"}, {"percent": 50, "revisionName": "r", "tag": "a"}],
            'Multiple definitions for "a"',
        ),
        ([{"percent": 100, "configurationName": "x"}], "must not set the field(s): spec.traffic[0].configurationName"),
        ([{"percent": 100, "revisionName": "r", "latestRevision": True}], "invalid value: true"),
        (
            [{"percent": 100, "latestRevision": True, "url": "http://x"}],
            "must not set the field(s): spec.traffic[0].url",
        ),
    ],
)
def test_traffic_is_checked(traffic: list[dict[str, Any]], text: str) -> None:
    service = defaulted(ksvc())
    service["spec"]["traffic"] = traffic
    assert text in refusal(service)


@pytest.mark.parametrize(
    ("container", "text"),
    [
        ({"image": ""}, "missing field(s)"),
        ({"name": "queue-proxy"}, '"queue-proxy" is a reserved container name'),
        ({"env": [{"name": "PORT", "value": "1"}]}, '"PORT" is a reserved environment variable'),
        ({"ports": [{"containerPort": 8012}]}, "8012 is a reserved port"),
        ({"ports": [{"containerPort": 80, "name": "web"}]}, "Port name web is not allowed"),
        ({"ports": [{"containerPort": 80}, {"containerPort": 81}]}, "more than one container port is set"),
        ({"lifecycle": {"preStop": {}}}, "must not set the field(s)"),
        ({"volumeMounts": [{"name": "v", "mountPath": "/dev"}]}, 'mountPath "/dev" is a reserved path'),
    ],
)
def test_containers_are_checked(container: dict[str, Any], text: str) -> None:
    service = defaulted(ksvc())
    service["spec"]["template"]["spec"]["containers"][0].update(container)
    assert text in refusal(service)


OPEN = {
    "kubernetes.podspec-fieldref": "enabled",
    "kubernetes.podspec-init-containers": "enabled",
    "kubernetes.podspec-persistent-volume-claim": "enabled",
    "kubernetes.podspec-persistent-volume-write": "enabled",
    "kubernetes.podspec-volumes-hostpath": "enabled",
    "multi-container-probing": "enabled",
}
SPEC = "spec.template.spec"
FIELD = {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}


@pytest.mark.parametrize(
    ("spec", "text", "with_flags"),
    [
        ({"containers": [{"image": "app", "env": [FIELD]}]}, f"{SPEC}.containers[0].env[0].valueFrom.fieldRef", True),
        (
            {"initContainers": [{"image": "app"}]},
            "pod spec support for init-containers is off, but found 1 init containers",
            True,
        ),
        (
            {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]},
            "Persistent volume write support is disabled, but found persistent volume claim c that is not read-only",
            True,
        ),
        ({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}, "HostPath volume support is disabled", True),
        (
            {
                "containers": [
                    {"image": "a", "ports": [{"containerPort": 80}]},
                    {"image": "b", "livenessProbe": {"tcpSocket": {"port": 81}}},
                ]
            },
            f"must not set the field(s): {SPEC}.containers[1].livenessProbe.tcpSocket",
            True,
        ),
        ({"volumes": [{"name": "v"}]}, f"expected exactly one, got neither: {SPEC}.volumes[0].configMap", False),
        ({"serviceAccountName": "foo@bar.baz"}, f"invalid value: foo@bar.baz: {SPEC}.serviceAccountName\n", False),
        (
            {"containers": [{"image": "Not An Image"}]},
            f"Failed to parse image reference: {SPEC}.containers[0].image",
            False,
        ),
        (
            {"containers": [{"image": "a", "tty": True, "stdin": True}]},
            f"must not set the field(s): {SPEC}.containers[0].stdin, {SPEC}.containers[0].tty",
            False,
        ),
        (
            {"containers": [{"image": "a", "securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}}]},
            f"must not set the field(s): {SPEC}.containers[0].securityContext.capabilities.add",
            False,
        ),
        (
            {"containers": [{"image": "a", "securityContext": {"runAsUser": -10}}]},
            f"expected 0 <= -10 <= 2147483647: {SPEC}.containers[0].securityContext.runAsUser",
            False,
        ),
        (
            {"containers": [{"image": "a", "readinessProbe": {"failureThreshold": 2}}]},
            "failureThreshold is disallowed when periodSeconds is zero",
            False,
        ),
        (
            {"containers": [{"image": "a", "livenessProbe": {"httpGet": {"port": "web"}}}]},
            f"invalid value: web: {SPEC}.containers[0].livenessProbe.httpGet.port\nProbe port must match container port",
            False,
        ),
        ({"containers": [{"image": "a", "envFrom": [{}]}]}, f"got neither: {SPEC}.containers[0].envFrom[0].", False),
        ({"hostname": "h"}, f"must not set the field(s): {SPEC}.hostname", False),
    ],
)
def test_a_pod_says_only_what_knative_takes(spec: dict[str, Any], text: str, with_flags: bool) -> None:
    service = ksvc()
    template = service["spec"]["template"]["spec"]
    template |= spec
    for volume in template.get("volumes") or ():
        template["containers"][0]["volumeMounts"] = [{"name": volume["name"], "mountPath": "/v"}]
    made = defaulted(service)
    assert text in refusal(made)
    if with_flags:
        flags = config(config_features=OPEN)
        for container in made["spec"]["template"]["spec"]["containers"]:
            for mount in container.get("volumeMounts") or ():
                mount["readOnly"] = True
        validation.service(made, None, flags)


def test_a_claim_may_be_mounted_for_reading_without_the_flag_for_writing() -> None:
    service = ksvc(volumeMounts=[{"name": "v", "mountPath": "/v", "readOnly": True}])
    claim = {"name": "v", "persistentVolumeClaim": {"claimName": "c", "readOnly": True}}
    service["spec"]["template"]["spec"]["volumes"] = [claim]
    flags = config(config_features={"kubernetes.podspec-persistent-volume-claim": "enabled"})
    validation.service(defaulted(service), None, flags)


def test_names_that_the_user_gave_are_not_given_again() -> None:
    service = ksvc(ports=[{"containerPort": 8080}])
    containers = service["spec"]["template"]["spec"]["containers"]
    containers += [{"image": "b", "name": "user-container-0"}, {"image": "c"}]
    names = [one["name"] for one in defaulted(service)["spec"]["template"]["spec"]["containers"]]
    assert names == ["user-container-1", "user-container-0", "user-container-2"]


def test_names_follow_the_template_of_the_cluster() -> None:
    made = ksvc()
    defaults.default_service(made, None, "alice", RevisionDefaults.parse({"container-name-template": "{{.Name}}"}))
    assert made["spec"]["template"]["spec"]["containers"][0]["name"] == "hello"


@pytest.mark.parametrize(("state", "as_user"), [("enabled", True), ("allowrootbounded", None)])
def test_pods_are_made_secure_where_the_cluster_says_so(state: str, as_user: bool | None) -> None:
    made = ksvc(ports=[{"containerPort": 80}])
    defaults.default_service(made, None, "alice", RevisionDefaults(), state)
    context = made["spec"]["template"]["spec"]["containers"][0]["securityContext"]
    assert context.get("runAsNonRoot") is as_user
    assert context["allowPrivilegeEscalation"] is False
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert context["capabilities"] == {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}
    validation.service(made, None, config(config_features={"secure-pod-defaults": state}))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"revision-timeout-seconds": "700"}, "cannot be greater than max-revision-timeout-seconds (600)"),
        ({"revision-idle-timeout-seconds": "301"}, "cannot be greater than revision-timeout-seconds (300)"),
        ({"container-concurrency": "1001"}, "expected 0 <= 1001 <= 1000: container-concurrency"),
        ({"container-concurrency-max-limit": "0"}, "expected 1 <= 0"),
    ],
)
def test_defaults_that_contradict_each_other_are_refused(data: dict[str, str], text: str) -> None:
    with pytest.raises(ApiError) as caught:
        validation.config_map({"metadata": {"name": "config-defaults"}, "data": data})
    assert text in caught.value.message


def test_no_limit_may_be_forbidden() -> None:
    settings = config(config_defaults={"allow-container-concurrency-zero": "false"})
    assert "expected 1 <= 0 <= 1000" in refusal(defaulted(ksvc()), None, settings)


def test_a_pod_field_needs_its_flag() -> None:
    service = defaulted(ksvc())
    service["spec"]["template"]["spec"]["nodeSelector"] = {"a": "b"}
    assert "must not set the field(s): spec.template.spec.nodeSelector" in refusal(service)
    validation.service(service, None, config(config_features={"kubernetes.podspec-nodeselector": "enabled"}))


def test_autoscaling_annotations_belong_to_the_template() -> None:
    service = defaulted(ksvc())
    service["metadata"]["annotations"]["autoscaling.knative.dev/min-scale"] = "1"
    assert "autoscaling annotations must be put under spec.template" in refusal(service)


@pytest.mark.parametrize("value", ["-1", "x", "0.001"])
def test_bad_autoscaling_values_are_refused(value: str) -> None:
    service = defaulted(ksvc())
    service["spec"]["template"]["metadata"] = {"annotations": {"autoscaling.knative.dev/target": value}}
    assert "autoscaling.knative.dev/target" in refusal(service)


def test_a_template_name_must_carry_the_services() -> None:
    service = defaulted(ksvc())
    service["spec"]["template"]["metadata"] = {"name": "other-one"}
    assert 'must have prefix "hello-"' in refusal(service)


def test_a_template_cannot_change_under_its_name() -> None:
    old = defaulted(ksvc())
    old["spec"]["template"]["metadata"] = {"name": "hello-one"}
    new = copy(old)
    new["spec"]["template"]["spec"]["containers"][0]["image"] = "changed"
    assert "Saw the following changes without a name change" in refusal(new, old)


def test_timeouts_and_concurrency_have_bounds() -> None:
    service = defaulted(ksvc())
    service["spec"]["template"]["spec"]["timeoutSeconds"] = 601
    assert "expected 0 <= 601 <= 600" in refusal(service)
    service["spec"]["template"]["spec"] |= {"timeoutSeconds": 10, "containerConcurrency": 1001}
    assert "expected 0 <= 1001 <= 1000" in refusal(service)


def test_a_revision_never_changes() -> None:
    old = {"metadata": {"name": "r"}, "spec": {"containers": [{"image": "a"}]}}
    new = {"metadata": {"name": "r"}, "spec": {"containers": [{"image": "b"}]}}
    with pytest.raises(ApiError, match="Immutable fields changed"):
        validation.revision(new, old, config())


@pytest.mark.parametrize(
    ("labels", "domain"), [({}, "example.com"), ({"app": "x"}, "special.com"), ({"app": "y"}, "example.com")]
)
def test_the_most_specific_domain_wins(labels: dict[str, str], domain: str) -> None:
    settings = config(config_domain={"example.com": "", "special.com": "selector:\n  app: x\n"})
    assert settings.domain(labels) == domain


@pytest.mark.parametrize(
    "spec",
    [
        {"hostNetwork": False, "dnsPolicy": "", "restartPolicy": ""},
        {"containers": [{"image": "my_registry:5000/app"}]},
        {
            "containers": [
                {"image": "a", "readinessProbe": {"periodSeconds": 9, "failureThreshold": 0, "timeoutSeconds": 0}}
            ]
        },
    ],
)
def test_what_go_takes_for_absent_is_taken(spec: dict[str, Any]) -> None:
    service = ksvc()
    service["spec"]["template"]["spec"] |= spec
    validation.service(defaulted(service), None, config())


def test_who_is_secure_by_default_may_choose_another_seccomp_profile_for_the_pod() -> None:
    def asked(**context: Any) -> dict[str, Any]:
        service = ksvc()
        service["spec"]["template"]["spec"]["securityContext"] = context
        return defaulted(service)

    secure = config(config_features={"secure-pod-defaults": "Enabled"})
    validation.service(asked(seccompProfile={"type": "Unconfined"}), None, secure)
    assert "spec.securityContext.runAsUser" in refusal(asked(runAsUser=7), settings=secure)
    assert refusal(asked(seccompProfile={"type": "Unconfined"})).endswith("spec.template.spec.securityContext")
