"""An API that another server answers for, seen through kubectl."""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from sampan.kube.client import Client
from sampan.kube.resources import API_SERVICES, ENDPOINT_SLICES, SERVICES
from sampan.testing import Platform

from .kubectl import Command, kubectl

GROUP = "boats.example.com"


class BoatServer:
    """Serves one resource, as an extension API server does."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.requests: list[web.BaseRequest] = []
        self.peers: list[Any] = []

    async def start(self) -> int:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.runner = web.ServerRunner(web.Server(self._handle))
        await self.runner.setup()
        context = self.platform.kernel.authority.server_context(
            ["boats.default.svc"], leaf="test-boats", verify_clients=True
        )
        await web.SockSite(self.runner, listener, ssl_context=context).start()
        return int(listener.getsockname()[1])

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(request)
        assert request.transport is not None
        self.peers.append(request.transport.get_extra_info("peercert"))
        if request.path == f"/apis/{GROUP}/v1":
            resource = {
                "name": "boats",
                "singularName": "boat",
                "namespaced": True,
                "kind": "Boat",
                "verbs": ["get", "list"],
                "shortNames": ["bt"],
            }
            return web.json_response(
                {"kind": "APIResourceList", "groupVersion": f"{GROUP}/v1", "resources": [resource]}
            )
        boat = {"kind": "Boat", "apiVersion": f"{GROUP}/v1", "metadata": {"name": "sampan", "namespace": "default"}}
        if request.path.endswith("/boats"):
            return web.json_response({"kind": "BoatList", "apiVersion": f"{GROUP}/v1", "metadata": {}, "items": [boat]})
        return web.json_response(boat)


@pytest.fixture
def boats(tmp_path: Path) -> Iterator[tuple[Platform, BoatServer, Command]]:
    with Platform(only=["kubernetes"]) as platform:
        server = BoatServer(platform)
        port = platform.run(server.start())
        bundle = base64.b64encode(platform.kernel.authority.certificate_pem).decode()

        async def objects() -> None:
            client = platform.get(Client)
            named = {"name": "boats", "namespace": "default"}
            await client.create(SERVICES, {"metadata": named, "spec": {"ports": [{"port": 443}]}})
            await client.create(
                ENDPOINT_SLICES,
                {
                    "metadata": {**named, "labels": {"kubernetes.io/service-name": "boats"}},
                    "addressType": "IPv4",
                    "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": True}}],
                    "ports": [{"name": "", "port": port, "protocol": "TCP"}],
                },
            )
            spec = {
                "group": GROUP,
                "version": "v1",
                "groupPriorityMinimum": 1000,
                "versionPriority": 10,
                "service": {"name": "boats", "namespace": "default", "port": 443},
                "caBundle": bundle,
            }
            await client.create(API_SERVICES, {"metadata": {"name": f"v1.{GROUP}"}, "spec": spec})

        platform.run(objects())
        yield platform, server, Command(kubectl(), platform.kubeconfig, tmp_path)
        platform.run(server.runner.cleanup())


def available(ctl: Command, wanted: str) -> dict[str, Any]:
    for _ in range(300):
        condition = (
            json.loads(ctl("get", "apiservice", f"v1.{GROUP}", "-o", "json")).get("status", {}).get("conditions")
        )
        if condition and condition[0]["status"] == wanted:
            return dict(condition[0])
        time.sleep(0.1)
    raise AssertionError(f"{condition} never became {wanted}")


def test_requests_reach_the_other_server_with_the_users_name(
    boats: tuple[Platform, BoatServer, Command],
) -> None:
    platform, server, ctl = boats
    assert available(ctl, "True")["reason"] == "Passed"
    assert "boats.boats.example.com" in ctl("api-resources", "-o", "name")
    assert "sampan" in ctl("get", "bt")
    assert ctl("get", "boats", "sampan", "--as=alice", "--as-group=sailors", "-o", "name", fails=True)
    assert ctl("get", "boats", "sampan", "-o", "name").strip() == "boat.boats.example.com/sampan"
    headers = server.requests[-1].headers
    assert headers["X-Remote-User"] == "kubernetes-admin"
    assert "system:masters" in headers.getall("X-Remote-Group")
    assert (("commonName", "front-proxy-client"),) in server.peers[-1]["subject"]
    platform.run(server.runner.cleanup())
    assert "error trying to reach service" in ctl("get", "--raw", f"/apis/{GROUP}/v1/boats", fails=True)
    platform.clock.jump(31)
    assert available(ctl, "False")["reason"] == "FailedDiscoveryCheck"
    assert ctl("get", "configmaps", "-A"), "the other groups go on"
