"""Knative Eventing's published samples, as a newcomer applies them: kubectl, curl from a pod, and the logs of event_display."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sampan.cli.demo import SHARED_PORTS
from sampan.testing import Platform

SAMPLES = Path(__file__).parent / "eventing_samples.yaml"
PATIENCE = 60.0
CRON = """
apiVersion: batch/v1
kind: CronJob
metadata: {name: heartbeat-cron, namespace: event-example}
spec:
  schedule: "*/1 * * * *"
  jobTemplate:
    metadata: {labels: {app: heartbeat-cron}}
    spec:
      template:
        spec:
          restartPolicy: Never
          containers:
          - name: single-heartbeat
            image: gcr.io/knative-nightly/knative.dev/eventing/cmd/heartbeats
            args: [--period=1, --eventType=from.a.bound.job]
            env: [{name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
"""

Kubectl = Callable[..., str]


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with Platform() as running:
        yield running


@pytest.fixture(scope="module")
def kubectl(platform: Platform) -> Kubectl:
    environment = {**os.environ, "KUBECONFIG": str(platform.kubeconfig)}

    def run(*arguments: str, given: str | None = None) -> str:
        command = ["kubectl", "-n", "event-example", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, env=environment, input=given)
        assert done.returncode == 0, f"{' '.join(arguments)}: {done.stderr}"
        return done.stdout

    isolation = run("get", "nodes", "-o", "jsonpath={..conditions[?(@.type=='PodIsolation')].message}")
    if SHARED_PORTS in isolation:
        pytest.skip(f"pods do not find the cluster's names here: {isolation}")
    run("apply", "-f", str(SAMPLES))
    for kind in ("broker", "trigger", "channel.messaging", "subscription", "sequence", "parallel", "ksvc", "pod/curl"):
        run("wait", "--for=condition=Ready", "--timeout=60s", *([kind] if "/" in kind else ["--all", kind]))
    for kind in ("apiserversource", "containersource", "pingsource", "sinkbinding", "jobsink"):
        run("wait", "--for=condition=Ready", "--timeout=60s", "--all", kind)
    run("rollout", "status", "deployment/event-display", "--timeout=60s")
    return run


def displayed(kubectl: Kubectl, *texts: str) -> str:
    """The log of event_display once all texts are in one event of it."""
    end = time.monotonic() + PATIENCE
    while True:
        log = kubectl("logs", "-l", "app=event-display", "--tail=-1")
        for event in log.split("☁️  cloudevents.Event"):
            if all(text in event for text in texts):
                return event
        assert time.monotonic() < end, f"{texts} are in no event of:\n{log[-3000:]}"
        time.sleep(0.2)


def curl(kubectl: Kubectl, url: str, kind: str, body: str = '{"msg": "Hello Knative!"}') -> str:
    headers = [f"Ce-Id: {kind}", "Ce-Specversion: 1.0", f"Ce-Type: {kind}", "Ce-Source: not-sendoff"]
    headers.append("Content-Type: application/json")
    told = [word for header in headers for word in ("-H", header)]
    return kubectl("exec", "curl", "--", "curl", "-sS", "-w", "%{http_code}", url, "-X", "POST", *told, "-d", body)


def test_an_event_goes_from_a_pod_through_the_broker_to_the_display(kubectl: Kubectl) -> None:
    broker = "http://broker-ingress.knative-eventing.svc.cluster.local/event-example/default"
    assert curl(kubectl, broker, "greeting") == "202"
    event = displayed(kubectl, "type: greeting")
    assert event.startswith("\nContext Attributes,\n  specversion: 1.0\n  type: greeting\n  source: not-sendoff\n")
    assert "  datacontenttype: application/json\nExtensions,\n  knativearrivaltime: " in event
    assert 'Data,\n  {\n    "msg": "Hello Knative!"\n  }\n' in event


def test_a_channel_brings_events_to_its_subscription(kubectl: Kubectl) -> None:
    url = kubectl("get", "channel.messaging", "testchannel", "-o", "jsonpath={.status.address.url}")
    assert curl(kubectl, url, "through.a.channel") == "202"
    displayed(kubectl, "type: through.a.channel")


def test_a_parallel_serves_both_branches(kubectl: Kubectl) -> None:
    url = kubectl("get", "parallel", "parallel", "-o", "jsonpath={.status.address.url}")
    assert curl(kubectl, url, "both", '{"message": "x"}') == "202"
    displayed(kubectl, "type: both", "x - Handled by 0")
    displayed(kubectl, "type: samples.done", "x - Handled by 1 - Handled by 0")


def test_sources_bring_what_happens(kubectl: Kubectl) -> None:
    kubectl("create", "secret", "generic", "seen", "--from-literal=a=b")
    displayed(kubectl, "type: dev.knative.apiserver.resource.add", "secrets/seen")
    event = displayed(kubectl, "type: dev.knative.eventing.samples.heartbeat", "event-test/mypod")
    assert "  heart: yes\n" in event


def test_a_job_sink_runs_a_job_with_the_event(kubectl: Kubectl) -> None:
    url = kubectl("get", "jobsink", "job-sink-logger", "-o", "jsonpath={.status.address.url}")
    assert curl(kubectl, url, "for.a.job").endswith("202")
    selector = "sinks.knative.dev/job-sink-name=job-sink-logger"
    kubectl("wait", "--for=condition=Complete", "--timeout=60s", "job", "-l", selector)
    (job,) = kubectl("get", "jobs", "-l", selector, "-o", "name").split()
    assert '"type":"for.a.job"' in kubectl("logs", job).replace(": ", ":")


def test_the_clock_rings_the_ping_and_starts_the_bound_job(platform: Platform, kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", given=CRON)
    platform.clock.jump(121)
    displayed(kubectl, "type: samples.done", "Hello world! - Handled by 0 - Handled by 1")
    displayed(kubectl, "type: from.a.bound.job", "heartbeats/#default/heartbeat-cron-")
