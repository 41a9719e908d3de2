"""helm with real pods: --wait waits for what really runs, and `helm test` runs a pod to its end."""

from __future__ import annotations

from pathlib import Path

import sampan.testing
from tests.clients.kubectl import Command, helm, kubectl

CHART = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: "{{ .Release.Name }}"}
spec:
  replicas: {{ .Values.replicas }}
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}, annotations: {greeting: "{{ .Values.greeting }}"}}
    spec:
      containers:
      - name: web
        image: nginx
        readinessProbe: {httpGet: {port: 80, path: /}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: "{{ .Release.Name }}"}
spec: {selector: {app: web}, ports: [{port: 80}]}
"""
TEST = """\
apiVersion: v1
kind: Pod
metadata:
  name: "{{ .Release.Name }}-reaches"
  annotations: {helm.sh/hook: test, helm.sh/hook-delete-policy: "before-hook-creation"}
spec:
  restartPolicy: Never
  containers:
  - {name: try, image: busybox, command: [sh, -c, "echo tested {{ .Values.greeting }}"]}
"""


def test_helm_waits_for_pods_and_tests_the_release(tmp_path: Path) -> None:
    chart = tmp_path / "chart"
    (chart / "templates" / "tests").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("apiVersion: v2\nname: demo\nversion: 0.1.0\n")
    (chart / "values.yaml").write_text("greeting: hello\nreplicas: 2\n")
    (chart / "templates" / "web.yaml").write_text(CHART)
    (chart / "templates" / "tests" / "reaches.yaml").write_text(TEST)
    with sampan.testing.Platform(only=["workloads", "node"]) as platform:
        run = Command(helm(), platform.kubeconfig, tmp_path, "default")
        ctl = Command(kubectl(), platform.kubeconfig, tmp_path, "default")
        available = ("get", "deployment", "r", "-o", "jsonpath={.status.availableReplicas} {.status.updatedReplicas}")
        assert "STATUS: deployed" in run("install", "r", str(chart), "--wait", "--timeout=50s")
        assert ctl(*available) == "2 2"
        tested = run("test", "r", "--logs", "--timeout=30s")
        assert "Phase:          Succeeded" in tested and "tested hello" in tested
        run("upgrade", "r", str(chart), "--set", "greeting=bye,replicas=1", "--wait", "--timeout=50s")
        assert ctl(*available) == "1 1"
        assert "tested bye" in run("test", "r", "--logs", "--timeout=30s")
        run("rollback", "r", "1", "--wait", "--timeout=50s")
        assert ctl(*available) == "2 2"
        run("uninstall", "r", "--wait", "--timeout=50s")
        assert "NotFound" in ctl("get", "deployment", "r", fails=True)
