"""kubectl's workload verbs against all controllers and a played kubelet, with the manifests of upstream's tutorials."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sampan.kube.control.controller import ControlContext
from sampan.testing import Platform
from tests.clients.guestbook import GUESTBOOK
from tests.kubelet import FakeKubelet

from .kubectl import Command, kubectl

NGINX = """
apiVersion: apps/v1
kind: Deployment
metadata:
  name: nginx-deployment
  labels: {app: nginx}
spec:
  replicas: 3
  selector:
    matchLabels: {app: nginx}
  template:
    metadata:
      labels: {app: nginx}
    spec:
      containers:
      - name: nginx
        image: nginx:1.14.2
        ports:
        - containerPort: 80
"""

WEB = """
apiVersion: v1
kind: Service
metadata: {name: nginx, labels: {app: nginx}}
spec:
  ports: [{port: 80, name: web}]
  clusterIP: None
  selector: {app: nginx}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: nginx}}
  serviceName: nginx
  replicas: 3
  minReadySeconds: 0
  template:
    metadata: {labels: {app: nginx}}
    spec:
      terminationGracePeriodSeconds: 10
      containers:
      - name: nginx
        image: registry.k8s.io/nginx-slim:0.24
        ports: [{containerPort: 80, name: web}]
        volumeMounts: [{name: www, mountPath: /usr/share/nginx/html}]
  volumeClaimTemplates:
  - metadata: {name: www}
    spec:
      accessModes: [ReadWriteOnce]
      resources: {requests: {storage: 1Gi}}
"""

FLUENTD = """
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: fluentd-elasticsearch, labels: {k8s-app: fluentd-logging}}
spec:
  selector: {matchLabels: {name: fluentd-elasticsearch}}
  template:
    metadata: {labels: {name: fluentd-elasticsearch}}
    spec:
      tolerations:
      - {key: node-role.kubernetes.io/control-plane, operator: Exists, effect: NoSchedule}
      containers:
      - name: fluentd-elasticsearch
        image: quay.io/fluentd_elasticsearch/fluentd:v5.0.1
        resources: {limits: {memory: 200Mi}, requests: {cpu: 100m, memory: 200Mi}}
        volumeMounts: [{name: varlog, mountPath: /var/log}]
      terminationGracePeriodSeconds: 30
      volumes: [{name: varlog, hostPath: {path: /var/log}}]
"""

PI = """
apiVersion: batch/v1
kind: Job
metadata: {name: pi}
spec:
  template:
    metadata: {annotations: {play/exit: "0"}}
    spec:
      containers:
      - name: pi
        image: perl:5.34.0
        command: ["perl", "-Mbignum=bpi", "-wle", "print bpi(2000)"]
      restartPolicy: Never
  backoffLimit: 4
"""


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Platform, FakeKubelet]]:
    """A platform with every workload controller, and two played nodes."""
    with Platform(only=["workloads"]) as platform:

        async def play() -> FakeKubelet:
            kubelet = FakeKubelet(platform.get(ControlContext))
            await kubelet.start()
            for name in ("node-1", "node-2"):
                await kubelet.add_node(name)
            return kubelet

        yield platform, platform.run(play())


@pytest.fixture
def ctl(world: tuple[Platform, FakeKubelet], tmp_path: Path) -> Iterator[Command]:
    """kubectl in a namespace of its own."""
    plain = Command(kubectl(), world[0].kubeconfig, tmp_path)
    name = f"w-{time.time_ns():x}"
    plain("create", "namespace", name)
    yield Command(plain.binary, plain.kubeconfig, tmp_path, name)
    plain("delete", "namespace", name, "--wait=false")


def images(ctl: Command, selector: str) -> set[str]:
    path = "jsonpath={range .items[*]}{.spec.containers[0].image}{'\\n'}{end}"
    return set(ctl("get", "pods", "-l", selector, "--field-selector=status.phase=Running", "-o", path).split())


def test_the_deployment_tutorial(ctl: Command) -> None:
    ctl("apply", "-f", "-", stdin=NGINX)
    assert "successfully rolled out" in ctl("rollout", "status", "deployment/nginx-deployment", "--timeout=30s")
    assert ctl("get", "deploy", "nginx-deployment", "--no-headers").split()[1:4] == ["3/3", "3", "3"]
    ctl("set", "image", "deployment/nginx-deployment", "nginx=nginx:1.16.1")
    ctl("rollout", "status", "deployment/nginx-deployment", "--timeout=30s")
    assert images(ctl, "app=nginx") == {"nginx:1.16.1"}
    ctl("annotate", "deployment/nginx-deployment", "kubernetes.io/change-cause=image updated to 1.16.1")
    history = ctl("rollout", "history", "deployment/nginx-deployment")
    assert "image updated to 1.16.1" in history
    assert "nginx:1.14.2" in ctl("rollout", "history", "deployment/nginx-deployment", "--revision=1")
    ctl("rollout", "undo", "deployment/nginx-deployment")
    ctl("rollout", "status", "deployment/nginx-deployment", "--timeout=30s")
    assert images(ctl, "app=nginx") == {"nginx:1.14.2"}
    ctl("rollout", "undo", "deployment/nginx-deployment", "--to-revision=2")
    ctl("rollout", "status", "deployment/nginx-deployment", "--timeout=30s")
    assert images(ctl, "app=nginx") == {"nginx:1.16.1"}
    ctl("scale", "deployment/nginx-deployment", "--replicas=5")
    ctl("wait", "--for=jsonpath={.status.availableReplicas}=5", "deployment/nginx-deployment", "--timeout=30s")
    described = ("describe", "deployment", "nginx-deployment")
    ctl.shows(*described, words=("NewReplicaSetAvailable", "ScalingReplicaSet"))


def test_pause_resume_and_restart(ctl: Command) -> None:
    ctl("apply", "-f", "-", stdin=NGINX)
    ctl("rollout", "status", "deployment/nginx-deployment", "--timeout=30s")
    ctl("rollout", "pause", "deployment/nginx-deployment")
    ctl("set", "image", "deployment/nginx-deployment", "nginx=nginx:1.17")
    ctl("set", "resources", "deployment/nginx-deployment", "-c=nginx", "--limits=cpu=200m,memory=512Mi")
    assert len(ctl("get", "rs", "-o", "name").split()) == 1
    ctl("rollout", "resume", "deployment/nginx-deployment")
    ctl("rollout", "status", "deployment/nginx-deployment", "--timeout=30s")
    assert images(ctl, "app=nginx") == {"nginx:1.17"}
    assert len(ctl("get", "rs", "-o", "name").split()) == 2
    before = set(ctl("get", "pods", "-o", "name").split())
    ctl("rollout", "restart", "deployment/nginx-deployment")
    ctl("rollout", "status", "deployment/nginx-deployment", "--timeout=30s")
    ctl("wait", "--for=delete", *sorted(before), "--timeout=30s")


def test_a_failed_rollout_is_told(ctl: Command) -> None:
    stuck = NGINX.replace("  replicas: 3", "  replicas: 1\n  progressDeadlineSeconds: 1").replace(
        "      labels: {app: nginx}\n    spec",
        '      labels: {app: nginx}\n      annotations: {play/ready: "false"}\n    spec',
    )
    ctl("apply", "-f", "-", stdin=stuck)
    assert "exceeded its progress deadline" in ctl(
        "rollout", "status", "deployment/nginx-deployment", "--timeout=30s", fails=True
    )


def test_the_guestbook(ctl: Command) -> None:
    ctl("apply", "-f", "-", stdin=GUESTBOOK)
    ctl("wait", "--for=condition=Available", "deployment", "--all", "--timeout=30s")
    ctl("rollout", "status", "deployment/frontend", "--timeout=30s")
    slices = json.loads(ctl("get", "endpointslices", "-l", "kubernetes.io/service-name=frontend", "-o", "json"))
    assert len(slices["items"][0]["endpoints"]) == 3
    ctl("expose", "deployment", "frontend", "--name=second", "--port=8000", "--target-port=80")
    ctl("wait", "--for=jsonpath={.subsets[0].addresses[2].ip}", "endpoints/second", "--timeout=30s")
    ctl("delete", "-f", "-", "--timeout=30s", stdin=GUESTBOOK)
    ctl("wait", "--for=delete", "pod", "--all", "--timeout=30s")


def test_the_stateful_set_tutorial(ctl: Command) -> None:
    ctl("apply", "-f", "-", stdin=WEB)
    ctl("rollout", "status", "statefulset/web", "--timeout=30s")
    assert ctl("get", "pods", "-o", "name", "-l", "app=nginx").split() == ["pod/web-0", "pod/web-1", "pod/web-2"]
    claims = ctl("get", "pvc", "-l", "app=nginx", "--no-headers").splitlines()
    assert [line.split()[:2] for line in claims] == [[f"www-web-{n}", "Bound"] for n in range(3)]
    ctl(
        "patch",
        "sts",
        "web",
        "-p",
        '{"spec":{"updateStrategy":{"type":"RollingUpdate","rollingUpdate":{"partition":2}}}}',
    )
    ctl("set", "image", "sts/web", "nginx=registry.k8s.io/nginx-slim:0.25")
    assert "partitioned roll out complete" in ctl("rollout", "status", "sts/web", "--timeout=30s")
    assert ctl("get", "pod", "web-1", "-o", "jsonpath={.spec.containers[0].image}").endswith("0.24")
    ctl("patch", "sts", "web", "-p", '{"spec":{"updateStrategy":{"rollingUpdate":{"partition":0}}}}')
    ctl("rollout", "status", "sts/web", "--timeout=30s")
    assert images(ctl, "app=nginx") == {"registry.k8s.io/nginx-slim:0.25"}
    ctl("rollout", "undo", "sts/web")
    ctl("rollout", "status", "sts/web", "--timeout=30s")
    assert images(ctl, "app=nginx") == {"registry.k8s.io/nginx-slim:0.24"}
    ctl("scale", "sts", "web", "--replicas=1")
    ctl("wait", "--for=delete", "pod/web-1", "--timeout=30s")
    ctl("delete", "statefulset", "web", "--cascade=orphan")
    ctl("get", "pod", "web-0")
    ctl("apply", "-f", "-", stdin=WEB)
    ctl("rollout", "status", "statefulset/web", "--timeout=30s")
    ctl("delete", "statefulset", "web", "--cascade=foreground", "--timeout=30s")
    assert ctl("get", "pods", "-o", "name") == ""
    assert len(ctl("get", "pvc", "-o", "name").split()) == 3


def test_a_daemon_set_rolls_on_every_node(ctl: Command) -> None:
    ctl("apply", "-f", "-", stdin=FLUENTD)
    ctl("rollout", "status", "ds/fluentd-elasticsearch", "--timeout=30s")
    assert ctl("get", "ds", "--no-headers").split()[1:6] == ["2"] * 5
    ctl("set", "image", "ds/fluentd-elasticsearch", "fluentd-elasticsearch=quay.io/fluentd_elasticsearch/fluentd:v5.1")
    ctl("rollout", "status", "ds/fluentd-elasticsearch", "--timeout=30s")
    ctl("rollout", "undo", "ds/fluentd-elasticsearch")
    ctl("rollout", "status", "ds/fluentd-elasticsearch", "--timeout=30s")
    assert images(ctl, "name=fluentd-elasticsearch") == {"quay.io/fluentd_elasticsearch/fluentd:v5.0.1"}


def test_jobs_and_cron_jobs(ctl: Command) -> None:
    ctl("apply", "-f", "-", stdin=PI)
    ctl("wait", "--for=condition=complete", "job/pi", "--timeout=30s")
    assert ctl("get", "job", "pi", "--no-headers").split()[1:3] == ["Complete", "1/1"]
    ctl("create", "cronjob", "hello", "--image=busybox", "--schedule=*/5 * * * *", "--", "date")
    ctl("create", "job", "now", "--from=cronjob/hello")
    ctl("wait", "--for=jsonpath={.status.ready}=1", "job/now", "--timeout=30s")
    ctl("create", "job", "once", "--image=busybox", "--", "true")
    ctl("delete", "job", "once", "now", "--timeout=30s")
    ctl("wait", "--for=delete", "pod", "-l", "job-name=once", "--timeout=30s")
    ctl("delete", "cronjob", "hello")


def test_autoscale_creates_an_autoscaler_that_explains_itself(ctl: Command) -> None:
    ctl("apply", "-f", "-", stdin=NGINX)
    ctl("autoscale", "deployment/nginx-deployment", "--min=4", "--max=6", "--cpu-percent=80")
    ctl("wait", "--for=jsonpath={.spec.replicas}=4", "deployment/nginx-deployment", "--timeout=30s")
    ctl.shows("describe", "hpa", "nginx-deployment", words=("SuccessfulRescale",))


def test_cordon_drain_and_back(ctl: Command) -> None:
    ctl("apply", "-f", "-", stdin=NGINX)
    ctl("create", "poddisruptionbudget", "careful", "--selector=app=nginx", "--min-available=2")
    ctl("rollout", "status", "deployment/nginx-deployment", "--timeout=30s")
    try:
        drained = ctl("drain", "node-1", "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=60s")
        assert "node/node-1 drained" in drained
        ctl("rollout", "status", "deployment/nginx-deployment", "--timeout=30s")
        path = "jsonpath={range .items[*]}{.spec.nodeName}{'\\n'}{end}"
        assert set(ctl("get", "pods", "-l", "app=nginx", "-o", path).split()) == {"node-2"}
        assert "SchedulingDisabled" in ctl("get", "node", "node-1")
    finally:
        ctl("uncordon", "node-1")


@pytest.mark.parametrize("cascade", ["background", "foreground", "orphan"])
def test_deletion_cascades_as_asked(ctl: Command, cascade: str) -> None:
    ctl("apply", "-f", "-", stdin=NGINX)
    ctl("rollout", "status", "deployment/nginx-deployment", "--timeout=30s")
    ctl("delete", "deployment", "nginx-deployment", f"--cascade={cascade}", "--timeout=30s")
    if cascade == "orphan":
        assert len(ctl("get", "pods", "-o", "name").split()) == 3
        assert len(ctl("get", "rs", "-o", "name").split()) == 1
    else:
        ctl("wait", "--for=delete", "pod", "--all", "--timeout=30s")
        assert ctl("get", "rs", "-o", "name") == ""


def test_replacing_a_running_job_by_force(ctl: Command) -> None:
    running = PI.replace('play/exit: "0"', 'play/linger: "1"')
    ctl("apply", "-f", "-", stdin=running)
    ctl("wait", "--for=jsonpath={.status.ready}=1", "job/pi", "--timeout=30s")
    ctl("replace", "--force", "-f", "-", stdin=PI)
    ctl("wait", "--for=condition=complete", "job/pi", "--timeout=30s")
