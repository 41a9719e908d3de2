"""helm installs, upgrades, tests, rolls back and uninstalls a chart of the shape `helm create` makes, waiting each time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sampan.kube.control.controller import ControlContext
from sampan.testing import Platform
from tests.kubelet import FakeKubelet

from .kubectl import Command, helm, kubectl

CHART = {
    "Chart.yaml": """
apiVersion: v2
name: shop
description: A web shop
type: application
version: 0.1.0
appVersion: "1.16.0"
""",
    "values.yaml": """
replicaCount: 2
image: {repository: nginx, tag: "1.16.0"}
service: {type: ClusterIP, port: 80}
autoscaling: {enabled: false, minReplicas: 1, maxReplicas: 5}
ready: "true"
""",
    "templates/serviceaccount.yaml": """
apiVersion: v1
kind: ServiceAccount
metadata: {name: "{{ .Release.Name }}-shop"}
automountServiceAccountToken: true
""",
    "templates/deployment.yaml": """
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .Release.Name }}-shop
  labels: {app.kubernetes.io/name: shop, app.kubernetes.io/instance: "{{ .Release.Name }}", app.kubernetes.io/managed-by: Helm}
spec:
  {{- if not .Values.autoscaling.enabled }}
  replicas: {{ .Values.replicaCount }}
  {{- end }}
  selector:
    matchLabels: {app.kubernetes.io/name: shop, app.kubernetes.io/instance: "{{ .Release.Name }}"}
  template:
    metadata:
      labels: {app.kubernetes.io/name: shop, app.kubernetes.io/instance: "{{ .Release.Name }}"}
      annotations: {play/ready: "{{ .Values.ready }}"}
    spec:
      serviceAccountName: {{ .Release.Name }}-shop
      containers:
      - name: shop
        image: "{{ .Values.image.repository }}:{{ .Values.image.tag }}"
        imagePullPolicy: IfNotPresent
        ports: [{name: http, containerPort: 80, protocol: TCP}]
        livenessProbe: {httpGet: {path: /, port: http}}
        readinessProbe: {httpGet: {path: /, port: http}}
""",
    "templates/service.yaml": """
apiVersion: v1
kind: Service
metadata: {name: "{{ .Release.Name }}-shop"}
spec:
  type: {{ .Values.service.type }}
  ports: [{port: {{ .Values.service.port }}, targetPort: http, protocol: TCP, name: http}]
  selector: {app.kubernetes.io/name: shop, app.kubernetes.io/instance: "{{ .Release.Name }}"}
""",
    "templates/claim.yaml": """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: "{{ .Release.Name }}-data"}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: now
  resources: {requests: {storage: 1Gi}}
""",
    "templates/migrate.yaml": """
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ .Release.Name }}-migrate
  annotations: {helm.sh/hook: "post-install,pre-upgrade", helm.sh/hook-delete-policy: before-hook-creation}
spec:
  template:
    metadata: {annotations: {play/exit: "0"}}
    spec:
      restartPolicy: Never
      containers: [{name: migrate, image: busybox}]
""",
    "templates/tests/connection.yaml": """
apiVersion: v1
kind: Pod
metadata:
  name: "{{ .Release.Name }}-test-connection"
  annotations: {helm.sh/hook: test, play/exit: "0"}
spec:
  containers: [{name: wget, image: busybox, command: [wget], args: ["{{ .Release.Name }}-shop:80"]}]
  restartPolicy: Never
""",
}
NOW = """
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: now}
provisioner: sampan.dev/local
volumeBindingMode: Immediate
"""


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    """Every workload controller and a played node."""
    with Platform(only=["workloads"]) as platform:

        async def play() -> None:
            kubelet = FakeKubelet(platform.get(ControlContext))
            await kubelet.start()
            await kubelet.add_node()

        platform.run(play())
        yield platform


@pytest.fixture
def chart(tmp_path: Path) -> str:
    """The chart's folder."""
    for name, text in CHART.items():
        path = tmp_path / "shop" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(tmp_path / "shop")


def test_a_release_lives_its_life(platform: Platform, chart: str, tmp_path: Path) -> None:
    namespace = f"h-{time.time_ns():x}"
    ctl = Command(kubectl(), platform.kubeconfig, tmp_path, namespace)
    run = Command(helm(), platform.kubeconfig, tmp_path, namespace)
    ctl("apply", "-f", "-", stdin=NOW)
    wait = ("--wait", "--wait-for-jobs", "--timeout", "30s")
    run("install", "demo", chart, "--create-namespace", *wait)
    assert ctl("get", "deploy", "demo-shop", "-o", "jsonpath={.status.availableReplicas}") == "2"
    assert ctl("get", "pvc", "demo-data", "-o", "jsonpath={.status.phase}") == "Bound"
    assert "Succeeded" in run("test", "demo", "--timeout", "30s")
    run("upgrade", "demo", chart, "--set", "image.tag=1.17.0", "--set", "replicaCount=3", *wait)
    assert (
        ctl("get", "deploy", "demo-shop", "-o", "jsonpath={.spec.template.spec.containers[0].image}") == "nginx:1.17.0"
    )
    failed = run("upgrade", "demo", chart, "--set", "ready=false", "--wait", "--timeout", "3s", fails=True)
    assert "deadline exceeded" in failed or "timed out" in failed
    run("rollback", "demo", "2", "--wait", "--timeout", "30s")
    history = json.loads(run("history", "demo", "-o", "json"))
    assert [one["status"] for one in history] == ["superseded", "superseded", "failed", "deployed"]
    assert ctl("get", "deploy", "demo-shop", "-o", "jsonpath={.status.availableReplicas}") == "3"
    run("uninstall", "demo", "--wait", "--timeout", "30s")
    ctl("wait", "--for=delete", "pod", "-l", "app.kubernetes.io/name=shop", "--timeout=30s")
    ctl("delete", "namespace", namespace, "--wait=false")
