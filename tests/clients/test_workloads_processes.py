"""Workloads whose pods are real processes: controllers, scheduler, volumes, node and kubectl together."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from sampan.testing import Platform

from .kubectl import Command, kubectl
from .test_workloads import NGINX, WEB

pytestmark = pytest.mark.xdist_group("node-workloads")

HELLO = """
apiVersion: batch/v1
kind: CronJob
metadata: {name: hello}
spec:
  schedule: "0 * * * *"
  jobTemplate:
    spec:
      template:
        spec:
          containers:
          - name: hello
            image: busybox:1.28
            imagePullPolicy: IfNotPresent
            command: [/bin/sh, -c, "date; echo Hello from the Kubernetes cluster"]
          restartPolicy: OnFailure
"""

SQUARES = """
apiVersion: batch/v1
kind: Job
metadata: {name: squares}
spec:
  completions: 4
  parallelism: 2
  completionMode: Indexed
  backoffLimitPerIndex: 0
  template:
    spec:
      restartPolicy: Never
      containers:
      - name: c
        image: busybox
        command: [sh, -c, 'echo "$JOB_COMPLETION_INDEX squared is $((JOB_COMPLETION_INDEX * JOB_COMPLETION_INDEX))"; [ "$JOB_COMPLETION_INDEX" != 3 ]']
"""


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with Platform(only=["kubernetes", "node", "workloads"]) as running:
        yield running


@pytest.fixture
def ctl(platform: Platform, tmp_path: Path) -> Iterator[Command]:
    """kubectl in a namespace of its own."""
    plain = Command(kubectl(), platform.kubeconfig, tmp_path)
    name = f"p-{time.time_ns():x}"
    plain("create", "namespace", name)
    yield Command(plain.binary, plain.kubeconfig, tmp_path, name)
    plain("delete", "namespace", name, "--wait=false")


def addresses(ctl: Command, service: str) -> list[str]:
    """The ready addresses behind a Service."""
    slices = json.loads(ctl("get", "endpointslices", "-l", f"kubernetes.io/service-name={service}", "-o", "json"))
    return [
        f"{address}:{port['port']}"
        for one in slices["items"]
        for endpoint in one.get("endpoints") or ()
        if endpoint["conditions"]["ready"]
        for address in endpoint["addresses"]
        for port in one["ports"]
    ]


def answer(address: str) -> int:
    """The status of ``GET /``, once the server listens (the tutorial's pods have no readiness probe)."""
    until = time.monotonic() + 20
    while True:
        try:
            return requests.get(f"http://{address}/", timeout=10).status_code
        except requests.ConnectionError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def test_a_deployment_serves_through_its_endpoints_and_rolls(ctl: Command) -> None:
    ctl("apply", "-f", "-", stdin=NGINX)
    ctl("expose", "deployment", "nginx-deployment", "--port=80")
    ctl("rollout", "status", "deployment/nginx-deployment", "--timeout=50s")
    ctl("wait", "--for=jsonpath={.subsets[0].addresses[2].ip}", "endpoints/nginx-deployment", "--timeout=30s")
    before = addresses(ctl, "nginx-deployment")
    assert len(before) == 3
    assert [answer(one) for one in before] == [200, 200, 200]
    ctl("set", "image", "deployment/nginx-deployment", "nginx=nginx:1.16.1")
    ctl("rollout", "status", "deployment/nginx-deployment", "--timeout=50s")
    assert answer(addresses(ctl, "nginx-deployment")[0]) == 200


def test_a_stateful_sets_data_outlives_its_pod(ctl: Command) -> None:
    ctl("apply", "-f", "-", stdin=WEB)
    ctl("rollout", "status", "sts/web", "--timeout=50s")
    ctl("exec", "web-0", "--", "sh", "-c", "echo $(hostname) > /usr/share/nginx/html/index.html")
    uid = ctl("get", "pod", "web-0", "-o", "jsonpath={.metadata.uid}")
    ctl("delete", "pod", "web-0", "--timeout=50s")
    ctl("rollout", "status", "sts/web", "--timeout=50s")
    assert ctl("get", "pod", "web-0", "-o", "jsonpath={.metadata.uid}") != uid
    assert ctl("exec", "web-0", "--", "cat", "/usr/share/nginx/html/index.html") == "web-0\n"
    assert ctl("exec", "web-1", "--", "ls", "/usr/share/nginx/html") == ""


def test_a_cron_job_runs_when_the_clock_jumps(platform: Platform, ctl: Command) -> None:
    platform.clock.jump(5400 - platform.clock.time() % 3600)  # half past: the jump passes one full hour, and only one
    ctl("apply", "-f", "-", stdin=HELLO)
    platform.clock.jump(3600)
    ctl("wait", "--for=jsonpath={.status.lastSuccessfulTime}", "cronjob/hello", "--timeout=50s")
    (job,) = ctl("get", "jobs", "-o", "name").split()
    assert "Hello from the Kubernetes cluster" in ctl("logs", job)


def test_an_indexed_job_counts_what_really_happened(ctl: Command) -> None:
    ctl("apply", "-f", "-", stdin=SQUARES)
    ctl("wait", "--for=condition=Failed", "job/squares", "--timeout=50s")
    status = json.loads(ctl("get", "job", "squares", "-o", "json"))["status"]
    assert (status["completedIndexes"], status["failedIndexes"], status["succeeded"], status["failed"]) == (
        "0-2",
        "3",
        3,
        1,
    )
    assert ctl("logs", "-l", "batch.kubernetes.io/job-completion-index=2") == "2 squared is 4\n"
