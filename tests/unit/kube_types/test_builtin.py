"""The table of built-in resources, against what clients look for in discovery."""

import pytest

from sampan.kube.objects import Kind, Resource
from sampan.kube.types.builtin import builtin_types
from sampan.kube.types.resource import ResourceType, TypeRegistry

REGISTRY = TypeRegistry(builtin_types())


def find(api_version: str, plural: str) -> ResourceType:
    group, _, version = api_version.rpartition("/")
    found = REGISTRY.find(Resource(group, version, plural))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("api_version", "plural", "subresource", "kind", "verbs"),
    [
        ("v1", "pods", "eviction", Kind("policy", "v1", "Eviction"), {"create"}),
        ("v1", "pods", "binding", Kind("", "v1", "Binding"), {"create"}),
        ("v1", "pods", "ephemeralcontainers", Kind("", "v1", "Pod"), {"get", "patch", "update"}),
        ("v1", "pods", "exec", Kind("", "v1", "PodExecOptions"), {"create", "get"}),
        ("v1", "pods", "log", Kind("", "v1", "Pod"), {"get"}),
        (
            "v1",
            "serviceaccounts",
            "token",
            Kind("authentication.k8s.io", "v1", "TokenRequest"),
            {"create"},
        ),
        ("v1", "namespaces", "finalize", Kind("", "v1", "Namespace"), {"update"}),
        ("apps/v1", "deployments", "scale", Kind("autoscaling", "v1", "Scale"), {"get", "patch", "update"}),
        ("apps/v1", "deployments", "status", Kind("apps", "v1", "Deployment"), {"get", "patch", "update"}),
    ],
)
def test_subresources_have_the_kind_and_verbs_that_clients_test(
    api_version: str, plural: str, subresource: str, kind: Kind, verbs: set[str]
) -> None:
    found = find(api_version, plural).subresources[subresource]
    assert (found.kind, set(found.verbs)) == (kind, verbs)


def test_kubectl_get_all_covers_the_ten_workload_resources() -> None:
    everything = {kind.resource.plural for kind in builtin_types() if "all" in kind.categories}
    assert everything == {
        "pods",
        "replicationcontrollers",
        "services",
        "daemonsets",
        "deployments",
        "replicasets",
        "statefulsets",
        "horizontalpodautoscalers",
        "cronjobs",
        "jobs",
    }


def test_short_names_are_upstreams() -> None:
    short = {name: kind.resource.plural for kind in reversed(builtin_types()) for name in kind.short_names}
    names = {
        "cm": "configmaps", "cs": "componentstatuses", "ep": "endpoints", "ev": "events", "limits": "limitranges",
        "ns": "namespaces", "no": "nodes", "pvc": "persistentvolumeclaims", "pv": "persistentvolumes", "po": "pods",
        "rc": "replicationcontrollers", "quota": "resourcequotas", "sa": "serviceaccounts", "svc": "services",
        "crd": "customresourcedefinitions", "crds": "customresourcedefinitions", "ds": "daemonsets",
        "deploy": "deployments", "rs": "replicasets", "sts": "statefulsets", "hpa": "horizontalpodautoscalers",
        "cj": "cronjobs", "csr": "certificatesigningrequests", "ing": "ingresses", "netpol": "networkpolicies",
        "pdb": "poddisruptionbudgets", "pc": "priorityclasses", "sc": "storageclasses",
    }  # fmt: skip
    assert short == names


def test_delete_answers_with_the_object_for_exactly_upstreams_kinds() -> None:
    kinds = {kind.kind for kind in builtin_types() if kind.strategy.delete_returns_object}
    assert kinds == {
        "Pod", "Service", "ServiceAccount", "PersistentVolumeClaim", "PersistentVolume", "PodTemplate", "ResourceQuota",
        "StorageClass", "CSIDriver", "CSINode", "VolumeAttachment",
    }  # fmt: skip


def test_every_schema_is_the_kinds_own() -> None:
    for kind in builtin_types():
        assert kind.schema is not None
        gvk = {"group": kind.resource.group, "version": kind.resource.version, "kind": kind.kind}
        assert gvk in kind.schema["x-kubernetes-group-version-kind"]


def test_jobs_and_replication_controllers_orphan_by_default() -> None:
    orphaning = {kind.kind for kind in builtin_types() if kind.strategy.default_propagation == "Orphan"}
    assert orphaning == {"Job", "ReplicationController"}


def test_an_event_round_trips_between_its_two_shapes() -> None:
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "e", "namespace": "d"},
        "involvedObject": {"kind": "Pod", "name": "p"},
        "message": "hello",
        "count": 2,
        "source": {"component": "kubelet"},
        "reportingComponent": "kubelet",
    }
    new_shape = find("events.k8s.io/v1", "events")
    assert new_shape.from_storage is not None
    assert new_shape.to_storage is not None
    served = new_shape.from_storage(event)
    assert served["regarding"]["name"] == "p"
    assert served["note"] == "hello"
    assert served["deprecatedSource"] == {"component": "kubelet"}
    assert new_shape.to_storage(served) == event


def test_an_autoscaler_survives_the_v1_view() -> None:
    stored = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "h", "namespace": "d"},
        "spec": {
            "maxReplicas": 3,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}},
                },
                {"type": "Pods", "pods": {"metric": {"name": "rps"}, "target": {"type": "AverageValue"}}},
            ],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 10}},
        },
        "status": {"conditions": [{"type": "AbleToScale", "status": "True"}], "desiredReplicas": 1},
    }
    v1 = find("autoscaling/v1", "horizontalpodautoscalers")
    assert v1.from_storage is not None
    assert v1.to_storage is not None
    served = v1.from_storage(stored)
    assert served["spec"] == {"maxReplicas": 3, "targetCPUUtilizationPercentage": 70}
    assert v1.to_storage(served) == stored
