"""Envoy dies while requests wait for a pod or hold a place on one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.clients.serving_world import World, service, serving_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with serving_world(tmp_path_factory.mktemp("home")) as made:
        yield made


def envoy(world: World) -> int:
    parts = world.platform.run(world.platform.kernel.status()).parts
    return int(next(one.facts["envoy"] for one in parts if one.name == "traffic"))


def waiting(world: World) -> int:
    parts = world.platform.run(world.platform.kernel.status()).parts
    return int(next(one.facts["waiting"] for one in parts if one.name == "serving"))


def attempt(world: World, host: str, path: str) -> int:
    """The status, 0 for a connection that broke."""
    try:
        return requests.get(f"http://{world.gateway}{path}", headers={"Host": host}, timeout=30).status_code
    except requests.RequestException:
        return 0


def test_a_cold_start_survives_the_death_of_envoy(world: World) -> None:
    world.apply(service("phoenix", annotations={"play/start-after": "2"}))
    world.ready("phoenix")
    world.sleep_to_zero("phoenix")
    world.until(lambda: all(one.runner is None for one in world.player.servers.values()))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(attempt, world, "phoenix.default.localhost", "/")
        world.until(lambda: waiting(world) == 1)
        before = envoy(world)
        os.kill(before, signal.SIGKILL)
        assert first.result() == 0  # its connection died with Envoy; it was told so at once
    world.until(lambda: waiting(world) == 0)
    world.until(lambda: attempt(world, "phoenix.default.localhost", "/") == 200)
    assert envoy(world) != before
    assert served(world, "phoenix") == 1, "the request that was told it failed must not be done as well"


def served(world: World, service: str) -> int:
    """Requests its pods have answered."""
    return sum(one.served for one in world.player.servers.values() if one.environment.get("K_SERVICE") == service)


def test_a_cold_start_survives_the_death_of_the_gate(world: World) -> None:
    world.apply(service("sentinel", annotations={"play/start-after": "2"}))
    world.ready("sentinel")
    world.sleep_to_zero("sentinel")
    old = [one for one in world.player.servers.values() if one.environment.get("K_SERVICE") == "sentinel"]
    world.until(lambda: all(one.runner is None for one in old))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(attempt, world, "sentinel.default.localhost", "/")
        world.until(lambda: waiting(world) == 1)
        world.platform.call(lambda: world.platform.kernel._runs["serving"].fail(OSError("the gate went away")))
        assert first.result() == 503  # at once, and for good: the next gate does not know of it
    world.until(lambda: attempt(world, "sentinel.default.localhost", "/") == 200)
    assert served(world, "sentinel") == 1


def test_a_limit_holds_over_the_death_of_the_gate(world: World) -> None:
    limits = {"autoscaling.knative.dev/max-scale": "1"}
    world.apply(service("strict", spec={"containerConcurrency": 1}, annotations=limits))
    world.ready("strict")
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(attempt, world, "strict.default.localhost", "/?seconds=5")
        world.until(lambda: sum(one.now for one in world.servers("strict")))
        world.platform.call(lambda: world.platform.kernel._runs["serving"].fail(OSError("the gate went away")))
        others = [pool.submit(attempt, world, "strict.default.localhost", "/") for _ in range(6)]
        assert first.result() == 200
        assert {one.result() for one in others} <= {200, 503}
    world.until(lambda: attempt(world, "strict.default.localhost", "/") == 200)
    assert max(one.most for one in world.servers("strict")) == 1


def test_places_held_through_a_dead_envoy_are_free_again(world: World) -> None:
    limits = {"autoscaling.knative.dev/max-scale": "1"}
    world.apply(service("single", spec={"containerConcurrency": 1}, annotations=limits))
    world.ready("single")
    world.until(lambda: attempt(world, "single.default.localhost", "/") == 200)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(attempt, world, "single.default.localhost", "/?seconds=20")
        world.until(lambda: sum(one.now for one in world.servers("single")))
        os.kill(envoy(world), signal.SIGKILL)
        assert held.result() == 0
    world.until(lambda: attempt(world, "single.default.localhost", "/") == 200)
