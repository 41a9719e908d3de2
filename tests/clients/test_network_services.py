"""Services, DNS and policy for real pods, as their processes see them."""

from __future__ import annotations

import asyncio
import http.client
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import sampan.testing
from sampan.kube.client.http import HttpClient
from sampan.kube.objects import Object
from sampan.kube.resources import NETWORK_POLICIES, PODS, SERVICES

ONLY = ["kubernetes", "workloads", "node", "network"]
# a resolver that refuses at once: names outside do not exist here, whatever the machine is connected to
SETTINGS = {"kubernetes.store": "memory", "network.upstream": ["127.0.0.1:1"]}
SERVE = "import http.server as h; h.HTTPServer(('', 8080), h.SimpleHTTPRequestHandler).serve_forever()"
# asks for urls and names one a line, and says what came of each
ASK = """
import socket, ssl, sys, urllib.request
sys.stdout = open("/dev/termination-log", "w")
context = ssl._create_unverified_context()
for what in sys.argv[1:]:
    try:
        if "://" in what:
            try:
                print(urllib.request.urlopen(what, timeout=5, context=context).status)
            except urllib.error.HTTPError as error:
                print(error.code)
        else:
            print(sorted({one[4][0] for one in socket.getaddrinfo(what, 80, socket.AF_INET)}))
    except OSError as error:
        reason = getattr(error, "reason", error)
        print(type(reason).__name__)
"""

pytestmark = [pytest.mark.xdist_group("network-services")]


def _pod(name: str, *command: str, **spec: Any) -> Object:
    container = {"name": "c", "image": "python", "command": ["python", "-c", *command]}
    return {
        "metadata": {"name": name, "labels": {"app": name.partition("-")[0]}},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 1, "restartPolicy": "Never", **spec},
    }


async def _until_pod(client: HttpClient, name: str, *phases: str) -> Object:
    async with asyncio.timeout(60):
        while True:
            pod = await client.get(PODS, name, "default")
            ready = any(
                one["type"] == "Ready" and one["status"] == "True" for one in pod["status"].get("conditions", ())
            )
            if pod["status"].get("phase") in phases and (ready or "Running" not in phases):
                return pod
            await asyncio.sleep(0.02)


class Asker:
    """Runs the asking script in pods of its own."""

    def __init__(self, client: HttpClient) -> None:
        self.client = client
        self.count = 0

    async def ask(self, *what: str, app: str = "ask") -> list[str]:
        self.count += 1
        name = f"{app}-{self.count}"
        await self.client.create(PODS, _pod(name, ASK, *what), "default")
        pod = await _until_pod(self.client, name, "Succeeded", "Failed")
        message: str = pod["status"]["containerStatuses"][0]["state"]["terminated"].get("message", "")
        return message.splitlines()


async def _settled(ask: Callable[[], Awaitable[object]], wanted: object) -> None:
    """What was written takes a moment to reach the tables."""
    async with asyncio.timeout(60):
        while (found := await ask()) != wanted:
            print(found)


async def _listening(host: str, port: int) -> None:
    """A pod without a readiness probe is ready before its program is."""
    async with asyncio.timeout(30):
        while True:
            try:
                return (await asyncio.open_connection(host, port))[1].close()
            except OSError:
                await asyncio.sleep(0.01)


def _get(host: str, port: int) -> int:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    connection.request("GET", "/")
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: pods with addresses of their own")
async def test_pods_reach_services_by_name_and_policies_hold() -> None:
    async with (
        sampan.testing.Platform(only=ONLY, settings=SETTINGS) as platform,
        platform.client() as client,
    ):
        asker = Asker(client)
        await client.create(PODS, _pod("web", SERVE), "default")
        service: Object = {
            "metadata": {"name": "web"},
            "spec": {
                "type": "LoadBalancer",
                "selector": {"app": "web"},
                "ports": [{"name": "http", "port": 8000, "targetPort": 8080}],
            },
        }
        made = await client.create(SERVICES, service, "default")
        address = made["spec"]["clusterIP"]
        web = await _until_pod(client, "web", "Running")
        await _listening(web["status"]["podIP"], 8080)

        # names, the Service by name and address, the API server, a port that is not there
        asked = (
            "web",
            "web.default.svc.cluster.local",
            "http://web:8000/",
            f"http://{address}:8000/",
            "https://kubernetes.default.svc/healthz",
            f"http://{address}:8001/",
            "absent.default",
        )
        answers = [f"['{address}']", f"['{address}']", "200", "200", "200", "ConnectionRefusedError", "gaierror"]
        await _settled(lambda: asker.ask(*asked), answers)

        # from the host: the pod itself, its node port, its load balancer
        assert await asyncio.to_thread(_get, web["status"]["podIP"], 8080) == 200
        assert await asyncio.to_thread(_get, "127.0.0.1", made["spec"]["ports"][0]["nodePort"]) == 200
        async with asyncio.timeout(30):
            while not (given := (await client.get(SERVICES, "web", "default"))["status"]["loadBalancer"]):
                await asyncio.sleep(0.02)
        assert await asyncio.to_thread(_get, given["ingress"][0]["ip"], 8000) == 200

        # only pods labelled app=friend
        policy: Object = {
            "metadata": {"name": "friends"},
            "spec": {
                "podSelector": {"matchLabels": {"app": "web"}},
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}], "ports": [{"port": 8080}]}],
            },
        }
        await client.create(NETWORK_POLICIES, policy, "default")
        await _settled(lambda: asker.ask("http://web:8000/"), ["TimeoutError"])
        await _settled(lambda: asker.ask("http://web:8000/", app="friend"), ["200"])
        assert await asyncio.to_thread(_get, web["status"]["podIP"], 8080) == 200
        await client.delete(NETWORK_POLICIES, "friends", "default")
        await _settled(lambda: asker.ask("http://web:8000/"), ["200"])

        await client.delete(SERVICES, "web", "default")
        await _settled(lambda: asker.ask("web"), ["gaierror"])


async def test_pods_that_share_the_hosts_addresses_reach_services_by_name() -> None:
    if not _may_bind_low_ports():
        pytest.skip("port 53 needs root or net.ipv4.ip_unprivileged_port_start")
    settings = {**SETTINGS, "node.tier": "T2"}
    async with (
        sampan.testing.Platform(only=ONLY, settings=settings) as platform,
        platform.client() as client,
    ):
        asker = Asker(client)
        pod = _pod("web", SERVE.replace("''", "__import__('os').environ['POD_IP']"))
        pod["spec"]["containers"][0]["env"] = [
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
        ]
        await client.create(PODS, pod, "default")
        ports = [{"name": "http", "port": 8000, "targetPort": 8080}]
        service: Object = {"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": ports}}
        made = await client.create(SERVICES, service, "default")
        await _until_pod(client, "web", "Running")
        shown = "127." + made["spec"]["clusterIP"].partition(".")[2]
        await _settled(
            lambda: asker.ask("web", "http://web:8000/", f"http://{shown}:8001/"),
            [f"['{shown}']", "200", "ConnectionRefusedError"],
        )
        environment = "import os; open('/dev/termination-log', 'w').write(os.environ['KUBERNETES_SERVICE_PORT'])"
        await client.create(PODS, _pod("environment", environment), "default")
        done = await _until_pod(client, "environment", "Succeeded", "Failed")
        message = done["status"]["containerStatuses"][0]["state"]["terminated"]["message"]
        assert message == platform.address("kubernetes").rpartition(":")[2]


def _may_bind_low_ports() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("127.96.0.10", 53))
        except OSError:
            return False
    return True
