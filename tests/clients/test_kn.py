"""Knative's own command line against the platform."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients.kn import kn
from tests.clients.serving_world import World, serving_world

pytestmark = pytest.mark.skipif(kn() is None, reason="kn is not installed; python -m tests.clients.kn builds it")
IMAGE = "ghcr.io/knative/helloworld-go"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with serving_world(tmp_path_factory.mktemp("home")) as made:
        yield made


Run = Callable[..., str]


@pytest.fixture
def run(world: World, tmp_path: Path) -> Run:
    """``run(*arguments, fails=False)``: what kn prints."""

    def made(*arguments: str, fails: bool = False) -> str:
        environment = {**os.environ, "KUBECONFIG": str(world.platform.kubeconfig), "HOME": str(tmp_path)}
        line = [str(kn()), *arguments]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    return made


def test_a_service_is_made_changed_tagged_and_rolled_back(world: World, run: Run) -> None:
    made = run("service", "create", "hello", "--image", IMAGE, "--env", "TARGET=a", "--concurrency-limit", "5")
    assert "Ready to serve." in made
    assert "'hello-00001' is available at URL:\nhttp://hello.default.localhost" in made
    assert re.search(r"hello +http://hello.default.localhost +hello-00001 .* 3 OK / 3 +True", run("service", "list"))
    assert re.search(rf"Image: +{IMAGE} \(pinned to", run("service", "describe", "hello"))

    changed = run("service", "update", "hello", "--env", "TARGET=b", "--tag", "hello-00001=old")
    assert "'hello-00002' is available" in changed
    assert world.get("hello.default.localhost").text == "Hello b!\n"
    assert world.get("old-hello.default.localhost").text == "Hello a!\n"

    run("service", "update", "hello", "--traffic", "hello-00001=100")
    world.until(lambda: world.get("hello.default.localhost").text == "Hello a!\n")
    listed = run("revision", "list")
    assert re.search(r"hello-00001 +hello +100% +old +1 .* 4 OK / 4 +True", listed)
    assert re.search(r"hello-00002 +hello +2 ", listed)
    assert "100%  hello-00001 #old" in run("route", "describe", "hello")

    run("revision", "delete", "hello-00002")
    run("service", "delete", "hello")
    assert "No services found" in run("service", "list")


def test_the_same_applied_twice_makes_one_revision(world: World, run: Run) -> None:
    for _ in range(2):
        told = run("service", "apply", "applied", "--image", IMAGE, "--env", "TARGET=a")
    assert "unchanged" in told
    assert [one["metadata"]["name"] for one in revisions(run, "applied")] == ["applied-00001"]
    assert "already exists" in run("service", "create", "applied", "--image", IMAGE, fails=True)


def test_domains_are_mapped(world: World, run: Run) -> None:
    run("service", "create", "mapped", "--image", IMAGE, "--env", "TARGET=m")
    run("domain", "create", "kn.example.com", "--ref", "ksvc:mapped")
    world.until(lambda: re.search(r"kn.example.com +http://kn.example.com +True +mapped", run("domain", "list")))
    assert world.get("kn.example.com").text == "Hello m!\n"


def test_a_failure_is_told_while_it_waits(run: Run) -> None:
    options = ("--annotation-revision", "play/pull=false", "--wait-timeout", "30")
    told = run("service", "create", "broken", "--image", IMAGE, *options, fails=True)
    assert f'RevisionFailed: Revision "broken-00001" failed with message: Unable to fetch image "{IMAGE}"' in told
    told = run("service", "create", "wrong", "--image", IMAGE, "--env", "PORT=1", fails=True)
    assert 'denied the request: validation failed: "PORT" is a reserved environment variable' in told


def revisions(run: Run, service: str) -> list[dict[str, dict[str, str]]]:
    found: list[dict[str, dict[str, str]]] = json.loads(run("revision", "list", "-s", service, "-o", "json"))["items"]
    return found
