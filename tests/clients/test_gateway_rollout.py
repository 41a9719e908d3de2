"""Pods behind the gateway come and go while clients ask without pause: nobody notices."""

from __future__ import annotations

from pathlib import Path

import pytest

from sampan.testing import Platform
from tests.clients.gateway_harness import eventually
from tests.clients.kubectl import Command, kubectl
from tests.faults.traffic_kill import Load

pytestmark = pytest.mark.xdist_group("node-workloads")

WEB = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: python
        command: [python, -m, http.server, "8000"]
        readinessProbe: {httpGet: {port: 8000}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8000}]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec:
  defaultBackend: {service: {name: web, port: {number: 80}}}
"""


def test_a_rollout_and_scaling_fail_no_request(tmp_path: Path) -> None:
    with Platform(only=["kubernetes", "node", "workloads", "traffic"]) as platform:
        ctl = Command(kubectl(), platform.kubeconfig, tmp_path)
        manifest = tmp_path / "web.yaml"
        manifest.write_text(WEB)
        ctl("apply", "-f", str(manifest))
        ctl("rollout", "status", "deployment/web", "--timeout=60s")
        host, _, port = platform.address("gateway").rpartition(":")
        with Load(host, int(port)) as load:
            # programs that end at once on SIGTERM, with all that is under way
            ctl("rollout", "restart", "deployment/web")
            ctl("rollout", "status", "deployment/web", "--timeout=60s")
            ctl("scale", "deployment/web", "--replicas=1")
            eventually(lambda: ctl("get", "pods", "-o", "name").count("pod/") == 1)
            ctl("scale", "deployment/web", "--replicas=2")
            ctl("rollout", "status", "deployment/web", "--timeout=60s")
            before = load.good
            eventually(lambda: load.good > before + 50)
        assert load.failures == []
