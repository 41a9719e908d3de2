"""kubectl, newest and two old generations, against a whole platform."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sampan.testing import Platform

from .kubectl import Command, helm, kubectl

VERSIONS = ["newest", "1.32", "1.29"]

WEB = """
apiVersion: v1
kind: Service
metadata: {name: web, labels: {app: web}}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  paused: true
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: c, image: nginx, ports: [{containerPort: 80}]}]
"""


@pytest.fixture(params=VERSIONS)
def ctl(request: pytest.FixtureRequest, shared_platform: Platform, tmp_path: Path) -> Iterator[Command]:
    """kubectl of one generation in a namespace of its own."""
    plain = Command(kubectl(request.param), shared_platform.kubeconfig, tmp_path)
    name = f"k-{time.time_ns():x}"
    plain("create", "namespace", name)
    yield Command(plain.binary, plain.kubeconfig, tmp_path, name)
    plain("delete", "namespace", name, "--wait=false")


def test_apply_creates_changes_and_leaves_alone(ctl: Command) -> None:
    assert ctl("apply", "-f", "-", stdin=WEB).splitlines() == ["service/web created", "deployment.apps/web created"]
    assert "unchanged" in ctl("apply", "-f", "-", stdin=WEB)
    changed = WEB.replace("replicas: 2", "replicas: 3")
    assert "deployment.apps/web configured" in ctl("apply", "-f", "-", stdin=changed)
    assert ctl("get", "deploy", "web", "-o", "jsonpath={.spec.replicas}") == "3"
    ctl("diff", "-f", "-", stdin=changed)
    ctl("diff", "-f", "-", stdin=WEB, fails=True)
    assert "deleted" in ctl("delete", "-f", "-", "--wait=false", stdin=WEB)


def test_server_side_apply_conflicts_and_forces(ctl: Command) -> None:
    ctl("apply", "--server-side", "--field-manager=one", "-f", "-", stdin=WEB)
    changed = WEB.replace("replicas: 2", "replicas: 5")
    said = ctl("apply", "--server-side", "--field-manager=two", "-f", "-", stdin=changed, fails=True)
    assert 'conflict with "one"' in said and ".spec.replicas" in said
    ctl("apply", "--server-side", "--field-manager=two", "--force-conflicts", "-f", "-", stdin=changed)
    owners = json.loads(ctl("get", "deploy", "web", "-o", "json", "--show-managed-fields"))["metadata"]["managedFields"]
    assert {owner["manager"] for owner in owners} >= {"one", "two"}


def test_typed_creation_edits_and_columns(ctl: Command) -> None:
    ctl("create", "configmap", "c", "--from-literal=a=b")
    ctl("create", "secret", "generic", "s", "--from-literal=p=q")
    ctl("create", "deployment", "d", "--image=nginx", "--replicas=0")
    ctl("create", "role", "r", "--verb=get", "--resource=pods")
    ctl("create", "serviceaccount", "robot")
    ctl("create", "job", "j", "--image=busybox", "--", "true")
    ctl("create", "quota", "q", "--hard=pods=50")
    ctl("label", "configmap", "c", "x=y")
    ctl("annotate", "configmap", "c", "n=1")
    ctl("scale", "deploy", "d", "--replicas=1")
    ctl("set", "image", "deploy/d", "nginx=busybox:1")
    ctl("patch", "configmap", "c", "--type=json", "-p", '[{"op":"add","path":"/data/k","value":"v"}]')
    assert ctl("get", "cm", "c", "-o", "jsonpath={.data.k}{.metadata.labels.x}") == "vy"
    table = ctl("get", "deploy", "-o", "wide").splitlines()
    assert table[0].split() == ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE", "CONTAINERS", "IMAGES", "SELECTOR"]
    assert ctl("get", "cm", "-l", "x=y", "-o", "name").strip() == "configmap/c"
    assert ctl("get", "cm", "--field-selector", "metadata.name=c", "--no-headers").split()[0] == "c"
    assert "Name:" in ctl("describe", "deploy", "d")
    assert ctl("get", "cm", "--sort-by=.metadata.name", "-o", "name").splitlines()[0].startswith("configmap/c")


def test_errors_are_what_users_know(ctl: Command) -> None:
    assert 'Error from server (NotFound): configmaps "no" not found' in ctl("get", "cm", "no", fails=True)
    ctl("create", "configmap", "c")
    assert 'configmaps "c" already exists' in ctl("create", "configmap", "c", fails=True)
    wrong = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\nspec: {a: 1}\n"
    assert 'unknown field "spec"' in ctl("create", "-f", "-", stdin=wrong, fails=True)
    bad = WEB.replace("{name: web,", "{name: Web_,")
    assert 'metadata.name: Invalid value: "Web_"' in ctl("apply", "-f", "-", stdin=bad, fails=True)
    unknown = "apiVersion: example.com/v1\nkind: Nothing\nmetadata: {name: x}\n"
    assert 'no matches for kind "Nothing"' in ctl("create", "-f", "-", stdin=unknown, fails=True)


def test_watch_and_wait_see_changes(ctl: Command) -> None:
    ctl("create", "deployment", "d", "--image=nginx", "--replicas=0")
    watching = ctl.start("get", "cm", "-w", "-o", "name")
    waiting = ctl.start("wait", "--for=delete", "deploy/d", "--timeout=20s")
    time.sleep(0.4)
    ctl("create", "configmap", "seen")
    ctl("delete", "deploy", "d")
    assert waiting.wait(20) == 0
    assert watching.stdout is not None
    try:
        for line in watching.stdout:
            if line.strip() == "configmap/seen":
                break
        else:
            raise AssertionError("the watch ended without the event")
    finally:
        watching.kill()
        watching.wait()


def test_discovery_and_documentation(ctl: Command) -> None:
    names = ctl("api-resources", "-o", "name").split()
    assert {"pods", "deployments.apps", "cronjobs.batch", "leases.coordination.k8s.io"} <= set(names)
    assert "apps/v1" in ctl("api-versions").split()
    assert "replicas" in ctl("explain", "deployment.spec")


def test_dry_run_and_replace(ctl: Command) -> None:
    ctl("create", "configmap", "c", "--dry-run=server")
    assert "NotFound" in ctl("get", "cm", "c", fails=True)
    ctl("create", "-f", "-", stdin=WEB)
    assert "replaced" in ctl("replace", "-f", "-", stdin=WEB.replace("replicas: 2", "replicas: 7"))
    assert ctl("get", "deploy", "web", "-o", "jsonpath={.spec.replicas}") == "7"


def test_access_is_asked_and_answered(ctl: Command) -> None:
    assert ctl("auth", "can-i", "create", "deployments").strip() == "yes"
    ctl("auth", "can-i", "create", "deployments", "--as=nobody", fails=True)
    assert "forbidden" in ctl("get", "secrets", "--as=nobody", fails=True)


@pytest.fixture
def chart(tmp_path: Path) -> Path:
    folder = tmp_path / "chart"
    (folder / "templates" / "tests").mkdir(parents=True)
    (folder / "Chart.yaml").write_text("apiVersion: v2\nname: demo\nversion: 0.1.0\nkubeVersion: '>=1.25.0'\n")
    (folder / "values.yaml").write_text("greeting: hello\n")
    (folder / "templates" / "cm.yaml").write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {{ .Release.Name }}-cm}\ndata: {greeting: {{ .Values.greeting }}}\n"
        "---\napiVersion: v1\nkind: Service\nmetadata: {name: {{ .Release.Name }}}\nspec: {ports: [{port: 80}]}\n"
    )
    return folder


def test_helm_installs_upgrades_rolls_back_and_uninstalls(
    shared_platform: Platform, tmp_path: Path, chart: Path
) -> None:
    ctl = Command(kubectl(), shared_platform.kubeconfig, tmp_path)
    name = f"h-{time.time_ns():x}"
    run = Command(helm(), shared_platform.kubeconfig, tmp_path, name)
    assert "STATUS: deployed" in run("install", "r", str(chart), "--create-namespace", "--wait", "--timeout=20s")
    run("upgrade", "r", str(chart), "--set", "greeting=bye", "--wait", "--timeout=20s")
    here = Command(ctl.binary, ctl.kubeconfig, tmp_path, name)
    assert here("get", "cm", "r-cm", "-o", "jsonpath={.data.greeting}") == "bye"
    run("rollback", "r", "1", "--wait", "--timeout=20s")
    assert here("get", "cm", "r-cm", "-o", "jsonpath={.data.greeting}") == "hello"
    assert "3" in run("history", "r")
    run("uninstall", "r", "--wait", "--timeout=20s")
    assert "NotFound" in here("get", "cm", "r-cm", fails=True)
    ctl("delete", "namespace", name, "--wait=false")
