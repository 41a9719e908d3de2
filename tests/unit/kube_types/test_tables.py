"""Table rows: what kubectl get prints."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sampan.kube.objects import Object
from sampan.kube.types import duration
from sampan.kube.types.builtin import builtin_types
from sampan.kube.types.resource import ResourceType

NOW = datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
CREATED = "2024-01-02T02:59:05Z"
TYPES = builtin_types()
STRATEGIES = {kind.resource: kind.strategy for kind in TYPES}


def row(kind: str, **fields: Any) -> dict[str, Any]:
    strategy = next(t.strategy for t in TYPES if t.kind == kind)
    obj = {
        "metadata": {"name": "x", "namespace": "d", "creationTimestamp": CREATED, **fields.pop("metadata", {})},
        **fields,
    }
    names = [column.name for column in strategy.columns]
    cells = strategy.row(obj, NOW)
    assert len(names) == len(cells)
    return dict(zip(names, cells, strict=True))


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: str(kind.resource))
def test_every_kind_has_a_cell_for_each_column_even_of_an_empty_object(kind: ResourceType) -> None:
    obj = {"apiVersion": kind.resource.api_version, "kind": kind.kind, "metadata": {"name": "x"}}
    cells = kind.strategy.row(obj, NOW)
    assert len(cells) == len(kind.strategy.columns)
    assert not any(isinstance(cell, (dict, list)) for cell in cells)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "<invalid>"), (-1, "0s"), (0, "0s"), (5, "5s"), (119, "119s"), (120, "2m"), (182, "3m2s"), (599, "9m59s"),
        (600, "10m"), (10799, "179m"), (10800, "3h"), (14700, "4h5m"), (28800, "8h"), (172799, "47h"), (183600, "2d3h"),
        (691200, "8d"), (63071999, "729d"), (63072000, "2y"), (63158400, "2y1d"), (252288000, "8y"),
    ],
)  # fmt: skip
def test_durations_are_kubectls(seconds: int, text: str) -> None:
    assert duration.human(timedelta(seconds=seconds)) == text


def running(**more: Any) -> Object:
    return {"name": "c", "ready": True, "restartCount": 0, "state": {"running": {}}, **more}


def waiting(reason: str, **more: Any) -> Object:
    return {"name": "c", "ready": False, "restartCount": 0, "state": {"waiting": {"reason": reason}}, **more}


def ended(**terminated: Any) -> Object:
    return {"name": "c", "ready": False, "restartCount": 0, "state": {"terminated": terminated}}


ONE = {"containers": [{"name": "c"}]}
INIT = {"containers": [{"name": "c"}], "initContainers": [{"name": "i"}, {"name": "j"}]}
SIDECAR = {"containers": [{"name": "c"}], "initContainers": [{"name": "c", "restartPolicy": "Always"}]}
READY = [{"type": "Ready", "status": "True"}]
INITIALIZED = [{"type": "Initialized", "status": "True"}]


@pytest.mark.parametrize(
    ("spec", "status", "metadata", "ready", "state"),
    [
        (ONE, {"phase": "Pending"}, {}, "0/1", "Pending"),
        (ONE, {"phase": "Running", "containerStatuses": [running()]}, {}, "1/1", "Running"),
        (ONE, {"phase": "Pending", "containerStatuses": [waiting("ContainerCreating")]}, {}, "0/1", "ContainerCreating"),
        (ONE, {"phase": "Running", "containerStatuses": [waiting("CrashLoopBackOff")]}, {}, "0/1", "CrashLoopBackOff"),
        (ONE, {"phase": "Succeeded", "containerStatuses": [ended(exitCode=0, reason="Completed")]}, {}, "0/1", "Completed"),
        (ONE, {"phase": "Failed", "containerStatuses": [ended(exitCode=3)]}, {}, "0/1", "ExitCode:3"),
        (ONE, {"phase": "Failed", "containerStatuses": [ended(exitCode=137, signal=9)]}, {}, "0/1", "Signal:9"),
        (ONE, {"phase": "Failed", "reason": "Evicted"}, {}, "0/1", "Evicted"),
        (ONE, {"phase": "Running", "containerStatuses": [running()]}, {"deletionTimestamp": CREATED}, "1/1", "Terminating"),
        (ONE, {"phase": "Running", "reason": "NodeLost"}, {"deletionTimestamp": CREATED}, "0/1", "Unknown"),
        (ONE, {"phase": "Succeeded"}, {"deletionTimestamp": CREATED}, "0/1", "Succeeded"),
        (ONE, {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}, {}, "0/1", "SchedulingGated"),
        (INIT, {"phase": "Pending", "initContainerStatuses": [ended(exitCode=0), waiting("PodInitializing")]}, {}, "0/1", "Init:1/2"),
        (INIT, {"phase": "Pending", "initContainerStatuses": [waiting("CrashLoopBackOff")]}, {}, "0/1", "Init:CrashLoopBackOff"),
        (INIT, {"phase": "Pending", "initContainerStatuses": [ended(exitCode=1, reason="Error")]}, {}, "0/1", "Init:Error"),
        (INIT, {"phase": "Pending", "initContainerStatuses": [ended(exitCode=2)]}, {}, "0/1", "Init:ExitCode:2"),
        (SIDECAR, {"phase": "Running", "conditions": INITIALIZED, "initContainerStatuses": [running(started=True)], "containerStatuses": [running()]}, {}, "2/2", "Running"),
        (
            {"containers": [{"name": "a"}, {"name": "b"}]},
            {"phase": "Running", "containerStatuses": [ended(exitCode=0, reason="Completed"), running()], "conditions": READY},
            {}, "1/2", "Running",
        ),
        (
            {"containers": [{"name": "a"}, {"name": "b"}]},
            {"phase": "Running", "containerStatuses": [ended(exitCode=0, reason="Completed"), running()]},
            {}, "1/2", "NotReady",
        ),
    ],
)  # fmt: skip
def test_a_pods_state(spec: Object, status: Object, metadata: Object, ready: str, state: str) -> None:
    cells = row("Pod", spec=spec, status=status, metadata=metadata)
    assert (cells["Ready"], cells["Status"]) == (ready, state)


def test_restarts_say_when_the_last_was() -> None:
    last = {"lastState": {"terminated": {"finishedAt": "2024-01-02T02:59:05Z"}}, "restartCount": 3}
    cells = row("Pod", spec=ONE, status={"phase": "Running", "containerStatuses": [running(**last)]})
    assert cells["Restarts"] == "3 (5m ago)"
    assert cells["Age"] == "5m"
    assert cells["Node"] == "<none>"


def test_finished_pods_carry_a_row_condition() -> None:
    strategy = next(t.strategy for t in TYPES if t.kind == "Pod")
    assert strategy.row_conditions({"metadata": {}, "status": {"phase": "Succeeded"}})[0]["reason"] == "Succeeded"
    assert strategy.row_conditions({"metadata": {}, "status": {"phase": "Running"}}) == []


TEMPLATE = {"spec": {"containers": [{"name": "a", "image": "i:1"}, {"name": "b", "image": "j"}]}}
SELECTOR = {"matchLabels": {"app": "web"}}


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        (
            "Deployment",
            {"spec": {"replicas": 3, "template": TEMPLATE, "selector": SELECTOR}, "status": {"readyReplicas": 1, "updatedReplicas": 2}},
            {"Ready": "1/3", "Up-to-date": 2, "Available": 0, "Containers": "a,b", "Images": "i:1,j", "Selector": "app=web"},
        ),
        ("StatefulSet", {"spec": {"replicas": 2}, "status": {"readyReplicas": 2}}, {"Ready": "2/2"}),
        ("DaemonSet", {"spec": {"template": {"spec": {"nodeSelector": {"a": "b"}}}}}, {"Node Selector": "a=b", "Desired": 0}),
        (
            "Job",
            {"spec": {"completions": 3}, "status": {"succeeded": 3, "startTime": CREATED, "completionTime": "2024-01-02T02:59:12Z", "conditions": [{"type": "Complete", "status": "True"}]}},
            {"Status": "Complete", "Completions": "3/3", "Duration": "7s"},
        ),
        ("Job", {"spec": {"parallelism": 2}}, {"Status": "Running", "Completions": "0/1 of 2", "Duration": ""}),
        ("CronJob", {"spec": {"schedule": "* * * * *", "suspend": False}, "status": {"active": [{}]}}, {"Suspend": "False", "Active": 1, "Last Schedule": "<none>", "Timezone": "<none>"}),
        (
            "Service",
            {"spec": {"type": "NodePort", "clusterIP": "10.0.0.1", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30001}, {"port": 53, "protocol": "UDP"}], "selector": {"a": "b"}}},
            {"Cluster-IP": "10.0.0.1", "External-IP": "<none>", "Port(s)": "80:30001/TCP,53/UDP", "Selector": "a=b"},
        ),
        ("Service", {"spec": {"type": "LoadBalancer"}}, {"External-IP": "<pending>", "Port(s)": "<none>"}),
        ("Service", {"spec": {"type": "ExternalName", "externalName": "example.com"}}, {"External-IP": "example.com", "Cluster-IP": "<none>"}),
        (
            "Node",
            {"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}, "spec": {"unschedulable": True}, "status": {"conditions": READY, "nodeInfo": {"kubeletVersion": "v1"}, "addresses": [{"type": "InternalIP", "address": "10.0.0.9"}]}},
            {"Status": "Ready,SchedulingDisabled", "Roles": "control-plane", "Version": "v1", "Internal-IP": "10.0.0.9", "OS-Image": "<unknown>"},
        ),
        ("Ingress", {"spec": {"ingressClassName": "n", "tls": [{}], "rules": [{"host": "a"}, {"host": "b"}]}}, {"Class": "n", "Hosts": "a,b", "Ports": "80, 443", "Address": ""}),
        ("Secret", {"type": "Opaque", "data": {"a": "", "b": ""}}, {"Type": "Opaque", "Data": 2}),
        ("PersistentVolumeClaim", {"spec": {"volumeName": "v", "storageClassName": "s"}, "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]}}, {"Status": "Bound", "Volume": "v", "Capacity": "1Gi", "Access Modes": "RWO", "StorageClass": "s"}),
        ("PodDisruptionBudget", {"spec": {"minAvailable": "50%"}, "status": {"disruptionsAllowed": 1}}, {"Min Available": "50%", "Max Unavailable": "N/A", "Allowed Disruptions": 1}),
        ("Endpoints", {"subsets": [{"addresses": [{"ip": f"10.0.0.{i}"} for i in range(1, 6)], "ports": [{"port": 80}]}]}, {"Endpoints": "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more..."}),
        ("RoleBinding", {"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "namespace": "n", "name": "s"}]}, {"Role": "Role/r", "Users": "u", "ServiceAccounts": "n/s", "Groups": ""}),
        ("ResourceQuota", {"status": {"hard": {"pods": "2", "limits.cpu": "1"}, "used": {"pods": "1"}}}, {"Request": "pods: 1/2", "Limit": "limits.cpu: 0/1"}),
        ("StorageClass", {"metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "p"}, {"Name": "x (default)", "Provisioner": "p"}),
        ("CertificateSigningRequest", {"spec": {"signerName": "s", "expirationSeconds": 3600}, "status": {"conditions": [{"type": "Approved", "status": "True"}], "certificate": "x"}}, {"Condition": "Approved,Issued", "RequestedDuration": "60m"}),
        ("NetworkPolicy", {"spec": {"podSelector": {}}}, {"Pod-Selector": "<none>"}),
        (
            "HorizontalPodAutoscaler",
            {
                "spec": {
                    "maxReplicas": 5, "minReplicas": 1, "scaleTargetRef": {"kind": "Deployment", "name": "w"},
                    "metrics": [
                        {"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 80}}},
                        {"type": "Pods", "pods": {"target": {"averageValue": "1k"}}},
                        {"type": "External", "external": {"target": {"value": "5"}}},
                    ],
                },
                "status": {"currentMetrics": [{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 10}}}]},
            },
            {"Reference": "Deployment/w", "Targets": "cpu: 10%/80%, <unknown>/1k + 1 more...", "MinPods": "1", "MaxPods": 5, "Replicas": 0},
        ),
        ("Event", {"involvedObject": {"kind": "Pod", "name": "p"}, "lastTimestamp": CREATED, "type": "Normal", "reason": "R", "message": "m\n", "source": {"component": "kubelet", "host": "n"}}, {"Last Seen": "5m", "Object": "pod/p", "Message": "m", "Source": "kubelet, n"}),
    ],
)  # fmt: skip
def test_cells(kind: str, fields: Object, expected: dict[str, Any]) -> None:
    cells = row(kind, **fields)
    assert {name: cells[name] for name in expected} == expected


def test_pod_columns_are_in_kubectls_order() -> None:
    columns = next(t.strategy for t in TYPES if t.kind == "Pod").columns
    names = ["Name", "Ready", "Status", "Restarts", "Age", "IP", "Node", "Nominated Node", "Readiness Gates"]
    assert [column.name for column in columns] == names
    assert [column.name for column in columns if column.priority] == names[5:]
