"""Defaults: what clients find in an object that they left incomplete."""

from typing import Any

import pytest

from sampan.kube.objects import Object, copy
from sampan.kube.types.builtin import builtin_types

STRATEGIES = {(kind.resource.api_version, kind.kind): kind.strategy for kind in builtin_types()}
CONTAINER = {
    "name": "c",
    "image": "nginx:1.27",
    "imagePullPolicy": "IfNotPresent",
    "terminationMessagePath": "/dev/termination-log",
    "terminationMessagePolicy": "File",
    "resources": {},
}
POD_SPEC = {
    "containers": [CONTAINER],
    "restartPolicy": "Always",
    "dnsPolicy": "ClusterFirst",
    "schedulerName": "default-scheduler",
    "securityContext": {},
    "terminationGracePeriodSeconds": 30,
    "enableServiceLinks": True,
}
TEMPLATE = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "nginx:1.27"}]}}
FULL_TEMPLATE = {"metadata": {"labels": {"a": "b"}}, "spec": POD_SPEC}


def defaulted(api_version: str, kind: str, metadata: Object | None = None, **fields: Any) -> Object:
    obj = {"apiVersion": api_version, "kind": kind, "metadata": metadata or {"name": "x"}, **copy(fields)}
    strategy = STRATEGIES[api_version, kind]
    strategy.default(obj)
    once = copy(obj)
    strategy.default(obj)
    assert obj == once, "defaulting twice changes nothing"
    return obj


def test_a_pods_spec() -> None:
    pod = defaulted("v1", "Pod", spec={"containers": [{"name": "c", "image": "nginx:1.27"}]})
    assert pod["spec"] == POD_SPEC


@pytest.mark.parametrize(
    ("image", "policy"),
    [
        ("nginx", "Always"),
        ("nginx:latest", "Always"),
        ("nginx:1", "IfNotPresent"),
        ("host:5000/nginx", "Always"),
        ("host:5000/nginx:1", "IfNotPresent"),
        ("nginx@sha256:abc", "IfNotPresent"),
    ],
)
def test_pull_policy_follows_the_tag(image: str, policy: str) -> None:
    pod = defaulted("v1", "Pod", spec={"containers": [{"name": "c", "image": image}]})
    assert pod["spec"]["containers"][0]["imagePullPolicy"] == policy


def test_container_details() -> None:
    container = {
        "name": "c",
        "image": "x:1",
        "ports": [{"containerPort": 80}],
        "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}},
        "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "livenessProbe": {"httpGet": {"port": 80}},
        "readinessProbe": {"grpc": {"port": 80}, "periodSeconds": 3},
        "lifecycle": {"preStop": {"httpGet": {"port": 80}}},
    }
    pod = defaulted("v1", "Pod", spec={"containers": [container], "hostNetwork": True})
    full = pod["spec"]["containers"][0]
    assert full["ports"] == [{"containerPort": 80, "protocol": "TCP", "hostPort": 80}]
    assert full["resources"]["requests"] == {"cpu": "500m", "memory": "1Gi"}
    assert full["env"][0]["valueFrom"]["fieldRef"]["apiVersion"] == "v1"
    assert full["livenessProbe"] == {
        "httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
        "timeoutSeconds": 1,
        "periodSeconds": 10,
        "successThreshold": 1,
        "failureThreshold": 3,
    }
    assert full["readinessProbe"]["periodSeconds"] == 3
    assert full["readinessProbe"]["grpc"] == {"port": 80, "service": ""}
    assert full["lifecycle"]["preStop"]["httpGet"]["scheme"] == "HTTP"


@pytest.mark.parametrize(
    ("volume", "full"),
    [
        ({}, {"emptyDir": {}}),
        ({"configMap": {"name": "a"}}, {"configMap": {"name": "a", "defaultMode": 420}}),
        ({"secret": {"secretName": "a"}}, {"secret": {"secretName": "a", "defaultMode": 420}}),
        ({"hostPath": {"path": "/a"}}, {"hostPath": {"path": "/a", "type": ""}}),
        (
            {"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}},
            {
                "projected": {
                    "sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 3600}}],
                    "defaultMode": 420,
                }
            },
        ),
    ],
)
def test_volumes(volume: Object, full: Object) -> None:
    pod = defaulted("v1", "Pod", spec={"containers": [], "volumes": [{"name": "v", **volume}]})
    assert pod["spec"]["volumes"] == [{"name": "v", **full}]


WORKLOADS = [
    (
        ("apps/v1", "Deployment"),
        {"template": TEMPLATE},
        {
            "replicas": 1,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "revisionHistoryLimit": 10,
            "progressDeadlineSeconds": 600,
            "template": FULL_TEMPLATE,
        },
    ),
    (("apps/v1", "ReplicaSet"), {"template": TEMPLATE}, {"replicas": 1, "template": FULL_TEMPLATE}),
    (
        ("apps/v1", "DaemonSet"),
        {"template": TEMPLATE},
        {
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
            "revisionHistoryLimit": 10,
            "template": FULL_TEMPLATE,
        },
    ),
    (
        ("apps/v1", "StatefulSet"),
        {"template": TEMPLATE, "volumeClaimTemplates": [{"metadata": {"name": "d"}, "spec": {}}]},
        {
            "replicas": 1,
            "podManagementPolicy": "OrderedReady",
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
            "revisionHistoryLimit": 10,
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
            "template": FULL_TEMPLATE,
            "volumeClaimTemplates": [
                {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    "metadata": {"name": "d"},
                    "spec": {"volumeMode": "Filesystem"},
                    "status": {"phase": "Pending"},
                }
            ],
        },
    ),
    (
        ("batch/v1", "Job"),
        {"template": TEMPLATE},
        {
            "completions": 1,
            "parallelism": 1,
            "backoffLimit": 6,
            "completionMode": "NonIndexed",
            "suspend": False,
            "podReplacementPolicy": "TerminatingOrFailed",
            "template": FULL_TEMPLATE,
        },
    ),
    (
        ("batch/v1", "CronJob"),
        {"jobTemplate": {"spec": {"template": TEMPLATE}}},
        {
            "concurrencyPolicy": "Allow",
            "suspend": False,
            "successfulJobsHistoryLimit": 3,
            "failedJobsHistoryLimit": 1,
            "jobTemplate": {"spec": {"template": FULL_TEMPLATE}},
        },
    ),
    (
        ("v1", "Service"),
        {"ports": [{"port": 80}]},
        {
            "type": "ClusterIP",
            "sessionAffinity": "None",
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
            "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
        },
    ),
    (("v1", "PersistentVolumeClaim"), {}, {"volumeMode": "Filesystem"}),
    (("v1", "PersistentVolume"), {}, {"volumeMode": "Filesystem", "persistentVolumeReclaimPolicy": "Retain"}),
    (
        ("networking.k8s.io/v1", "NetworkPolicy"),
        {"egress": [{}]},
        {"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "egress": [{}]},
    ),
    (
        ("autoscaling/v2", "HorizontalPodAutoscaler"),
        {"maxReplicas": 2},
        {
            "maxReplicas": 2,
            "minReplicas": 1,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}},
                }
            ],
        },
    ),
    (
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
        {"names": {"kind": "Widget", "plural": "widgets"}},
        {
            "names": {"kind": "Widget", "plural": "widgets", "singular": "widget", "listKind": "WidgetList"},
            "conversion": {"strategy": "None"},
        },
    ),
]


@pytest.mark.parametrize(("kind", "spec", "full"), WORKLOADS, ids=[kind[1] for kind, _, _ in WORKLOADS])
def test_specs(kind: tuple[str, str], spec: Object, full: Object) -> None:
    assert defaulted(*kind, spec=spec)["spec"] == full


def test_parallelism_alone_leaves_completions_open() -> None:
    job = defaulted("batch/v1", "Job", spec={"parallelism": 3})
    assert "completions" not in job["spec"]


def test_a_node_port_service_has_an_external_policy() -> None:
    service = defaulted("v1", "Service", spec={"type": "LoadBalancer", "ports": []})
    assert service["spec"]["externalTrafficPolicy"] == "Cluster"
    assert service["spec"]["allocateLoadBalancerNodePorts"] is True


def test_a_replaced_service_keeps_what_was_allocated() -> None:
    strategy = STRATEGIES["v1", "Service"]
    old = {
        "metadata": {"name": "s"},
        "spec": {
            "type": "NodePort",
            "clusterIP": "10.0.0.1",
            "clusterIPs": ["10.0.0.1"],
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30001}],
        },
    }
    new = {"metadata": {"name": "s"}, "spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}}
    strategy.prepare_update(new, old)
    assert new["spec"] == old["spec"]


def test_secrets_take_plain_text_once() -> None:
    secret = defaulted("v1", "Secret", stringData={"a": "hi"}, data={"b": "aGk="})
    assert secret["type"] == "Opaque"
    assert secret["data"] == {"a": "aGk=", "b": "aGk="}
    assert "stringData" not in secret


def test_bindings_name_their_group() -> None:
    binding = defaulted(
        "rbac.authorization.k8s.io/v1",
        "RoleBinding",
        roleRef={"kind": "Role", "name": "r"},
        subjects=[{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s", "namespace": "n"}],
    )
    assert binding["roleRef"]["apiGroup"] == "rbac.authorization.k8s.io"
    assert binding["subjects"][0]["apiGroup"] == "rbac.authorization.k8s.io"
    assert "apiGroup" not in binding["subjects"][1]


def test_webhooks() -> None:
    obj = defaulted(
        "admissionregistration.k8s.io/v1",
        "MutatingWebhookConfiguration",
        webhooks=[{"name": "a.b.c", "clientConfig": {"service": {"name": "s", "namespace": "n"}}, "rules": [{}]}],
    )
    assert obj["webhooks"][0] == {
        "name": "a.b.c",
        "clientConfig": {"service": {"name": "s", "namespace": "n", "port": 443}},
        "rules": [{"scope": "*"}],
        "failurePolicy": "Fail",
        "matchPolicy": "Equivalent",
        "namespaceSelector": {},
        "objectSelector": {},
        "timeoutSeconds": 10,
        "reinvocationPolicy": "Never",
    }


def test_a_jobs_selector_is_its_own_uid() -> None:
    job = defaulted("batch/v1", "Job", {"name": "j", "uid": "u-1"}, spec={"template": {"spec": {"containers": []}}})
    STRATEGIES["batch/v1", "Job"].prepare_create(job)
    assert job["spec"]["selector"] == {"matchLabels": {"batch.kubernetes.io/controller-uid": "u-1"}}
    labels = {
        "batch.kubernetes.io/controller-uid": "u-1",
        "batch.kubernetes.io/job-name": "j",
        "controller-uid": "u-1",
        "job-name": "j",
    }
    assert job["spec"]["template"]["metadata"]["labels"] == labels
    assert job["metadata"]["labels"] == labels


@pytest.mark.parametrize(
    ("resources", "quality"),
    [
        ({}, "BestEffort"),
        ({"requests": {"cpu": "1"}}, "Burstable"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}}, "Guaranteed"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}, "Burstable"),
    ],
)
def test_new_pods_are_pending_with_their_quality_of_service(resources: Object, quality: str) -> None:
    pod = defaulted("v1", "Pod", spec={"containers": [{"name": "c", "image": "x", "resources": resources}]})
    STRATEGIES["v1", "Pod"].prepare_create(pod)
    assert pod["status"] == {"phase": "Pending", "qosClass": quality}


def test_a_namespace_starts_active_and_labelled() -> None:
    namespace = defaulted("v1", "Namespace", {"name": "blue"})
    STRATEGIES["v1", "Namespace"].prepare_create(namespace)
    assert namespace["metadata"]["labels"] == {"kubernetes.io/metadata.name": "blue"}
    assert namespace["spec"]["finalizers"] == ["kubernetes"]
    assert namespace["status"] == {"phase": "Active"}


@pytest.mark.parametrize(
    ("spec", "status", "requested", "grace"),
    [
        ({"nodeName": "n"}, {}, None, 30),
        ({"nodeName": "n", "terminationGracePeriodSeconds": 5}, {}, None, 5),
        ({"nodeName": "n"}, {}, 7, 7),
        ({"nodeName": "n"}, {}, 0, 0),
        ({}, {}, 7, 0),
        ({"nodeName": "n"}, {"phase": "Succeeded"}, 7, 0),
    ],
)
def test_pods_are_given_time_to_end(spec: Object, status: Object, requested: int | None, grace: int) -> None:
    assert STRATEGIES["v1", "Pod"].deletion_grace({"spec": spec, "status": status}, requested) == grace
