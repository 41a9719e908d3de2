"""Upstream's walk-throughs with real processes, Services and names: the guestbook, and autoscaling under real load."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sampan.testing import Platform

from .guestbook import GUESTBOOK
from .kubectl import Command, kubectl

pytestmark = [
    pytest.mark.xdist_group("walkthroughs"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: pods with addresses of their own"),
]

PHP_APACHE = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: php-apache}
spec:
  selector: {matchLabels: {run: php-apache}}
  template:
    metadata: {labels: {run: php-apache}}
    spec:
      containers:
      - name: php-apache
        image: registry.k8s.io/hpa-example
        ports: [{containerPort: 80}]
        resources: {limits: {cpu: 500m}, requests: {cpu: 200m}}
---
apiVersion: v1
kind: Service
metadata: {name: php-apache, labels: {run: php-apache}}
spec:
  ports: [{port: 80}]
  selector: {run: php-apache}
"""
LOAD = "while sleep 0.01; do wget -q -O- http://php-apache; done"


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    # a resolver that refuses at once: names outside do not exist here, whatever the machine is connected to
    with Platform(
        only=["kubernetes", "node", "workloads", "network"], settings={"network.upstream": ["127.0.0.1:1"]}
    ) as running:
        yield running


@pytest.fixture
def ctl(platform: Platform, tmp_path: Path) -> Iterator[Command]:
    """kubectl in a namespace of its own."""
    plain = Command(kubectl(), platform.kubeconfig, tmp_path)
    name = f"w-{time.time_ns():x}"
    plain("create", "namespace", name)
    yield Command(plain.binary, plain.kubeconfig, tmp_path, name)
    plain("delete", "namespace", name, "--wait=false")


def until(look: Callable[[], str], wanted: Callable[[str], bool], seconds: float = 30.0) -> str:
    ends = time.monotonic() + seconds
    while not wanted(found := look()):
        assert time.monotonic() < ends, found
        time.sleep(0.2)
    return found


def test_the_guestbook_remembers_what_was_written(ctl: Command) -> None:
    ctl("apply", "-f", "-", stdin=GUESTBOOK)
    for name in ("agnhost-primary", "agnhost-replica", "frontend"):
        ctl("rollout", "status", f"deployment/{name}", "--timeout=50s")
    ctl("run", "visitor", "--image=busybox", "--", "sleep", "1000")
    ctl("wait", "--for=condition=Ready", "pod/visitor", "--timeout=30s")

    def ask(query: str) -> str:
        url = f"http://frontend/guestbook?{query}"
        return ctl("exec", "visitor", "--", "sh", "-c", f"wget -q -O- '{url}' || echo no answer")

    until(lambda: ask("cmd=get&key=messages&value="), lambda text: json_of(text) == {"data": ""})
    until(lambda: ask("cmd=set&key=messages&value=TestEntry"), lambda text: json_of(text) == {})
    for _ in range(4):  # both replicas have it
        until(lambda: ask("cmd=get&key=messages&value="), lambda text: json_of(text) == {"data": "TestEntry"})


def json_of(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def test_load_brings_replicas_and_its_end_takes_them_away(platform: Platform, ctl: Command) -> None:
    ctl("apply", "-f", "-", stdin=PHP_APACHE)
    ctl("rollout", "status", "deployment/php-apache", "--timeout=50s")
    # the platform's seconds pass ten times as fast, so a processor's second is a tenth of one
    ctl("autoscale", "deployment", "php-apache", "--cpu-percent=2", "--min=1", "--max=3")
    platform.clock.run(10)
    try:
        ctl("run", "load-generator", "--image=busybox:1.28", "--restart=Never", "--", "/bin/sh", "-c", LOAD)

        def replicas() -> str:
            return ctl("get", "hpa", "php-apache", "-o", "jsonpath={.status.desiredReplicas} {.status.conditions}")

        until(replicas, lambda text: text[:1] in ("2", "3"), 40)
        assert int(ctl("get", "deployment", "php-apache", "-o", "jsonpath={.spec.replicas}")) >= 2
        ctl.shows("get", "events", words=("SuccessfulRescale",))
        ctl("delete", "pod", "load-generator", "--grace-period=0", "--force")
        ctl("wait", "--for=delete", "pod/load-generator", "--timeout=30s")
        platform.clock.run(1)

        def a_minute_later() -> str:
            platform.clock.jump(60)
            return replicas()

        # five minutes without load
        until(a_minute_later, lambda text: text.startswith("1 "), 60)
    finally:
        platform.clock.run(1)
