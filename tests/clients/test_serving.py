"""Knative Services through kubectl and the gateway."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.serving_world import World, service, serving_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with serving_world(tmp_path_factory.mktemp("home")) as made:
        yield made


def test_a_service_gets_a_url_and_answers(world: World) -> None:
    world.apply(service("hello", env={"TARGET": "Sampan"}))
    ready = world.ready("hello")
    assert ready["status"]["url"] == "http://hello.default.localhost"
    assert world.get("hello.default.localhost").text == "Hello Sampan!\n"


def test_it_sleeps_when_idle_and_wakes_on_the_first_request(world: World) -> None:
    world.apply(service("sleeper"))
    world.ready("sleeper")
    world.sleep_to_zero("sleeper")
    assert world.condition("revision", "sleeper-00001", "Active")[:2] == ("False", "NoTraffic")
    assert world.condition("ksvc", "sleeper")[0] == "True"
    assert world.get("sleeper.default.localhost").status_code == 200
