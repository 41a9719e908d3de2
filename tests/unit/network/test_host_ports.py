"""Ports of the node that lead to pods."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.kube.control import ControlContext, SharedInformers
from sampan.kube.objects import Key
from sampan.kube.resources import PODS
from sampan.parts.network.control.host_ports import HostPorts, host_ports
from sampan.parts.network.services import Backends, Frontend
from tests.unit.kube_control.cluster import Cluster


def pod(
    name: str = "p", *ports: dict[str, Any], node: str = "n", phase: str = "Running", **spec: Any
) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i", "ports": list(ports)}], **spec},
        "status": {"podIP": "10.244.0.2", "phase": phase},
    }


def test_each_host_port_leads_to_the_container_port() -> None:
    found = host_ports(
        pod(
            "p",
            {"containerPort": 80, "hostPort": 8080, "name": "web"},
            {"containerPort": 53, "hostPort": 5353, "protocol": "UDP", "hostIP": "127.0.0.9"},
            {"containerPort": 90},
        ),
        "127.0.0.1",
    )
    assert {frontend: backends.endpoints for frontend, backends in found.items()} == {
        Frontend("127.0.0.1", 8080, "TCP"): (("10.244.0.2", 80),),
        Frontend("127.0.0.9", 5353, "UDP"): (("10.244.0.2", 53),),
    }


@pytest.mark.parametrize(
    "given",
    [
        pod("p", {"containerPort": 80, "hostPort": 80}, phase="Succeeded"),
        pod("p", {"containerPort": 80, "hostPort": 80}, phase="Failed"),
        pod("p", {"containerPort": 80, "hostPort": 80}, hostNetwork=True),
        {**pod("p", {"containerPort": 80, "hostPort": 80}), "status": {}},
    ],
)
def test_none_leads_to_what_does_not_run_or_is_on_the_host_itself(given: dict[str, Any]) -> None:
    assert host_ports(given, "127.0.0.1") == {}


class Path:
    """A data path that notes what it carries."""

    def __init__(self) -> None:
        self.carried: dict[Frontend, Backends] = {}
        self.taken: set[int] = set()

    async def put(self, frontend: Frontend, backends: Backends) -> None:
        if frontend.port in self.taken:
            raise OSError(errno.EADDRINUSE, "in use")
        self.carried[frontend] = backends

    async def drop(self, frontend: Frontend) -> None:
        self.carried.pop(frontend, None)


async def test_ports_follow_the_pods_of_this_node_and_failures_are_said_once() -> None:
    clock, path = Clock(), Path()
    cluster = await Cluster.started(clock)
    async with Tasks(clock) as tasks:
        control = ControlContext(cluster, SharedInformers(cluster, clock, tasks), clock, tasks)
        ports = HostPorts(control, path, "127.0.0.1", lambda: "n")  # type: ignore[arg-type]
        said: list[str] = []
        ports.recorder.event = lambda obj, kind, reason, message, **_: said.append(message)  # type: ignore[method-assign]
        await control.informers.informer(PODS).wait_synced()
        key = Key("default", "p")

        async def look(given: dict[str, Any] | None) -> float | None:
            ports.informer(PODS).get = lambda _: given  # type: ignore[method-assign,assignment]
            return await ports.reconcile(key)

        port = {"containerPort": 80, "hostPort": 8080}
        assert await look(pod("p", port)) is None
        assert [frontend.port for frontend in path.carried] == [8080]
        assert await look(pod("p", port, node="elsewhere")) is None
        assert not path.carried
        path.taken.add(8080)
        for _ in range(3):
            assert await look(pod("p", port)) is not None
        assert len(said) == 1
        assert "in use" in said[0]
        path.taken.clear()
        assert await look(pod("p", port)) is None
        assert await look(None) is None
        assert not path.carried
