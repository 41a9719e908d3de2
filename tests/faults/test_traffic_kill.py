"""The gateway when Envoy, the control plane or both are killed, and when everything changes under load."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sampan.kernel import detached
from sampan.kube.client.http import HttpClient
from sampan.kube.objects import Object
from sampan.parts.traffic.xds import server
from tests.clients.certificates_made import MadeAuthority
from tests.clients.gateway_harness import bench, endpoint_slice, gateway, route, to
from tests.faults.traffic_kill import Command, Load, answering, api, kill


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    made = Command(tmp_path)
    yield made
    made.clean()


def test_envoy_comes_back_by_itself() -> None:
    with bench() as gw:
        ns = gw.namespace("kill")
        gw.service(ns, "v1")
        address = gw.gateway(ns, "gw")
        gw.route(route(ns, "r", "gw", [{"backendRefs": to("v1")}]))
        for _ in range(2):
            first = detached.living(gw.platform.kernel.directory.run, "traffic-envoy")
            assert first is not None
            first.kill()
            gw.until(lambda: gw.ask(address).backend == "v1")
            second = detached.living(gw.platform.kernel.directory.run, "traffic-envoy")
            assert second is not None
            assert second.pid != first.pid
        gw.route(route(ns, "r", "gw", [{"backendRefs": to("v1")}], "new.com"))
        gw.until(lambda: gw.ask(address).status == 404)
        assert gw.ask(address, "new.com").backend == "v1"
    assert second is not None
    assert ended(second.pid)


def test_an_envoy_that_hangs_holds_nothing_up_and_catches_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "HANG_UP", 10.0)
    with bench() as gw:
        ns, address = answering(gw, "hang")
        gw.service(ns, "v2")
        # whatever the platform's clock does, who waits for a process outside waits on the machine's
        gw.platform.clock.freeze()
        envoy = detached.living(gw.platform.kernel.directory.run, "traffic-envoy")
        assert envoy is not None
        envoy.suspend()
        # only now: before, it is the machine that may be slow
        monkeypatch.setattr(server, "ACK_TIMEOUT", 0.2)
        monkeypatch.setattr(server, "HANG_UP", 1.0)
        try:
            for number in range(20):
                gw.route(route(ns, "r", "gw", [{"backendRefs": to("v1" if number % 2 else "v2")}], f"n{number}.com"))
            gw.until(lambda: "its stream is ended" in caplog.text)
        finally:
            envoy.resume()
        gw.until(lambda: gw.ask(address, "n18.com").status == 404)
        assert gw.ask(address, "n19.com").backend == "v1"


def ended(pid: int) -> bool:
    """Gone, but for a zombie where nobody takes care of orphans."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_traffic_goes_on_while_the_core_is_dead_and_after(command: Command) -> None:
    command.up()
    with api(command) as gw:
        ns, address = answering(gw, "core")
        envoy, shared = command.envoy(), command.address("gateway")
        with Load(address) as load:
            command.kill_core()
            time.sleep(0.2)
            command.up()
            assert command.envoy() == envoy, "the living Envoy was not adopted"
            assert command.address("gateway") == shared
            gw.close()
            gw.client = gw.backends.run(reconnect(command))
            gw.route(route(ns, "other", "gw", [{"backendRefs": to("v1")}], "other.com"))
            gw.until(lambda: gw.ask(address, "other.com").backend == "v1")
        assert load.failures == []
        # an Envoy that was started differently, say by an older version: another takes over its sockets
        with Load(address) as load:
            command.kill_core()
            state = command.data / "parts" / "traffic" / "envoy" / "envoy.json"
            state.write_text(state.read_text().replace('"warning"', '"error"'))
            command.up()
            assert command.envoy() not in (0, envoy)
            gw.until(lambda: gw.ask(address, "other.com").backend == "v1")
            time.sleep(0.5)
        assert load.failures == []
        gw.close()
        command("down")
        assert command.envoy() == 0
        assert ended(envoy)
        # a core that dies without a successor: `down` still cleans up
        command.up()
        envoy = command.envoy()
        command.kill_core()
        assert not ended(envoy)
        assert "traffic-envoy" in command("down")
        assert ended(envoy)


def test_a_kill_costs_what_was_under_way_and_a_kill_of_the_core_nothing(command: Command) -> None:
    command.up()
    with api(command) as gw:
        _, address = answering(gw, "kill")
        gw.close()
        assert kill("core", command, address).failed == 0
        assert kill("both", command, address).asked
        assert kill("envoy", command, address).asked
    # down right after: whatever is on its way must not be left behind
    envoy = command.envoy()
    command("down")
    assert command.envoy() == 0
    assert ended(envoy)


def test_down_right_after_a_hot_restart_leaves_no_envoy(command: Command) -> None:
    command.up()
    first = command.envoy()
    command.kill_core()
    state = command.data / "parts" / "traffic" / "envoy" / "envoy.json"
    state.write_text(state.read_text().replace('"warning"', '"error"'))
    command.up()
    second = command.envoy()
    assert second not in (0, first)
    # the first one still drains for seconds
    command("down")
    assert command.envoy() == 0
    assert ended(first)
    assert ended(second)


async def reconnect(command: Command) -> HttpClient:
    client = HttpClient.from_kubeconfig(command.directory.kubeconfig)
    await client.__aenter__()
    return client


def test_three_hundred_changes_under_load_fail_no_request() -> None:
    authority = MadeAuthority()
    with bench() as gw:
        ns = gw.namespace("changes")
        ports = [gw.backends.port(f"v{number}") for number in range(3)]
        gw.apply(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": "changing", "namespace": ns},
                "spec": {"ports": [{"name": "main", "port": 8080}]},
            },
            authority.secret(ns, "cert", "load.com"),
        )
        for number, port in enumerate(ports):
            gw.apply(endpoint_slice(ns, "changing", [("127.0.0.1", port)], suffix=str(number)))
            gw.service(ns, f"v{number}")
        secure = {
            "name": "tls",
            "port": 443,
            "protocol": "HTTPS",
            "tls": {"certificateRefs": [{"name": "cert"}]},
        }
        address = gw.gateway(ns, "gw", *gateway(ns, "gw")["spec"]["listeners"], secure)
        gw.route(route(ns, "r", "gw", [{"backendRefs": to("changing")}]))
        gw.until(lambda: gw.ask_tls(address, "load.com").status == 200)
        with Load(address) as load, Load(address, 443, tls=True) as secured:
            for number in range(100):
                gw.apply(change_of_route(ns, number))
                if number % 2:
                    gw.delete("EndpointSlice", "changing-0", ns)
                else:
                    gw.apply(endpoint_slice(ns, "changing", [("127.0.0.1", ports[0])], suffix="0"))
                gw.apply(authority.secret(ns, "cert", "load.com", f"n{number}.com"))
        assert load.failures == []
        assert secured.failures == []


def change_of_route(namespace: str, number: int) -> Object:
    rules: list[Any] = [
        {"backendRefs": to("changing")},
        {"backendRefs": to(f"v{number % 3}")},
        {"matches": [{"headers": [{"name": "never", "value": "set"}]}], "backendRefs": to("v0")},
    ]
    chosen = rules[: 1 + number % 3]
    return route(namespace, "r", "gw", chosen)
