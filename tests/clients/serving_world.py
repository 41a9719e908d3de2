"""A platform with Knative Services whose pods are small web servers inside the test process.

Between the API and the client everything is real: controllers, gate, Envoy. Only the node is played: a pod bound to it gets an
address of its own on the loopback and a server there, and its status is reported as a kubelet would. A pod's template directs the
play by annotations::

    play/start-after: "0.2"     seconds (machine time) until the server listens
    play/stagger: "0.5"         the same for each further pod of its Service
    play/pull: "false"          the image cannot be pulled
    play/exit: "3"              the container ends with this code at once
    play/grpc: "true"           a gRPC server (`Echo`) instead of a web server
    play/ready: "false"         runs and listens, but is never reported ready
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import requests
from aiohttp import WSMsgType, web

from sampan.kube.client.resources import NODES, PODS
from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.interface import For, Source
from sampan.kube.objects import Key, Object, dig
from sampan.kube.status import ApiError
from sampan.testing import Platform
from tests.clients.kubectl import Command, kubectl

NODE = "worker"
HEARTBEAT = 10.0


def _claim() -> tuple[int, socket.socket]:
    """A second byte of 127/8 that no other test on this machine uses, as long as the socket lives."""
    for number in range(100, 250):
        holder = socket.socket()
        try:
            holder.bind((f"127.{number}.255.254", 9))
        except OSError:
            holder.close()
            continue
        return number, holder
    raise RuntimeError("every subnet is taken")


@dataclass
class PodServer:
    """The server of one pod, and what it saw."""

    name: str
    environment: dict[str, str]
    runner: web.AppRunner | None = None
    grpc: grpc.aio.Server | None = None
    now: int = 0
    most: int = 0
    """The most requests it ever had at once."""
    served: int = 0
    released: bool = False
    """Whether requests that are held may go on."""
    stopping: bool = False

    def application(self) -> web.Application:
        """``/`` greets, ``/?seconds=`` waits, ``/?held`` waits to be released, ``/headers`` echoes, ``/drip?parts=&pause=`` sends bytes with pauses in between,
        ``/stream`` and ``/ws`` do what they say."""
        made = web.Application(client_max_size=64 << 20)
        made.router.add_get("/ws", self._socket)
        made.router.add_get("/stream", self._stream)
        made.router.add_get("/drip", self._drip)
        made.router.add_route("*", "/{path:.*}", self._plain)
        return made

    async def _plain(self, request: web.Request) -> web.Response:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            body = await request.read()
            while "held" in request.query and not self.released:
                await asyncio.sleep(0.01)
            if "seconds" in request.query:
                await asyncio.sleep(float(request.query["seconds"]))
            self.served += 1
            if request.path == "/headers":
                return web.json_response({key.lower(): value for key, value in request.headers.items()})
            if request.path == "/environment":
                return web.json_response(self.environment)
            if request.path == "/size":
                return web.Response(text=str(len(body)))
            if request.path == "/die":
                raise web.HTTPInternalServerError(text="sorry")
            revision = self.environment.get("K_REVISION", "")
            return web.Response(
                text=f"Hello {self.environment.get('TARGET', 'World')}!\n", headers={"x-revision": revision}
            )
        finally:
            self.now -= 1

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for number in range(5):
            await response.write(f"part {number}\n".encode())
            await asyncio.sleep(0.02)
        await response.write_eof()
        return response

    async def _drip(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(int(request.query["parts"])):
            await response.write(b".")
            await asyncio.sleep(float(request.query["pause"]))
        await response.write_eof()
        return response

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if message.type == WSMsgType.TEXT:
                await socket.send_str(f"echo {message.data}")
        return socket


class Echo(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """``/echo/Once`` gives back what it gets, ``/echo/Stream`` every message of a stream."""

    def service(self, call: Any) -> Any:
        if call.method == "/echo/Once":
            return grpc.unary_unary_rpc_method_handler(self._once)
        return grpc.stream_stream_rpc_method_handler(self._stream)

    async def _once(self, request: bytes, _: Any) -> bytes:
        return request

    async def _stream(self, messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for message in messages:
            yield message
        context.set_trailing_metadata((("seen", "all"),))


class PodPlayer(Controller):
    """The node ``worker``."""

    name = "pod-player"
    workers = 16

    def __init__(self, context: ControlContext) -> None:
        super().__init__(context)
        self.servers: dict[str, PodServer] = {}
        """By pod uid, the ended ones too."""
        self._subnet, self._claimed = _claim()
        self._addresses = itertools.count(2)

    def sources(self) -> list[Source]:
        return [For(PODS)]

    async def register(self) -> None:
        """The node, and its heartbeat."""
        await self.client.create(NODES, {"metadata": {"name": NODE, "labels": {"kubernetes.io/hostname": NODE}}})
        await self._beat()
        self.context.tasks.keep("pod-player-heartbeat", self._heartbeat)

    async def close(self) -> None:
        """End the servers that still run."""
        self._claimed.close()
        for server in list(self.servers.values()):  # closing one may take others away
            if server.grpc is not None:
                await server.grpc.stop(None)
            if server.runner is not None:
                await server.runner.cleanup()

    async def _heartbeat(self) -> None:
        while True:
            await self.clock.sleep(HEARTBEAT)
            await self._beat()

    async def _beat(self) -> None:
        amounts = {"cpu": "64", "memory": "64Gi", "pods": "500"}
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "message": "",
            "lastHeartbeatTime": self._stamp(),
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        status = {"allocatable": amounts, "capacity": amounts, "conditions": [ready]}
        await self.client.patch(NODES, NODE, {"status": status}, subresource="status")

    def _stamp(self) -> str:
        return self.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ")

    async def reconcile(self, key: Key) -> float | None:
        pod = self.informer(PODS).get(key)
        if pod is None or dig(pod, "spec", "nodeName") != NODE:
            return None
        try:
            if pod["metadata"].get("deletionTimestamp"):
                await self._end(pod)
            elif pod["metadata"]["uid"] not in self.servers:
                await self._begin(pod)
        except ApiError as error:
            if not (error.not_found or error.conflict):
                raise
        return None

    async def _begin(self, pod: Object) -> None:
        play = pod["metadata"].get("annotations") or {}
        container = next(one for one in pod["spec"]["containers"] if one.get("ports"))
        server = PodServer(
            pod["metadata"]["name"], {one["name"]: one.get("value", "") for one in container.get("env") or ()}
        )
        self.servers[pod["metadata"]["uid"]] = server
        if play.get("play/pull") == "false":
            waiting = {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}
            await self._report(pod, "Pending", "", waiting, ready=False)
            return
        if "play/exit" in play:
            ended = {"terminated": {"exitCode": int(play["play/exit"]), "reason": "Error", "message": "it broke"}}
            await self._report(pod, "Running", "", ended, ready=False)
            return
        number = next(self._addresses)
        address = f"127.{self._subnet}.{number // 250}.{number % 250 + 1}"
        running = {"running": {"startedAt": self._stamp()}}
        await self._report(pod, "Running", address, running, ready=False)
        before = [one for one in self.servers.values() if one.environment == server.environment and not one.stopping]
        late = float(play.get("play/stagger", 0)) * (len(before) - 1)
        await asyncio.sleep(float(play.get("play/start-after", 0)) + late)
        if "play/grpc" in play:
            server.grpc = grpc.aio.server()
            server.grpc.add_generic_rpc_handlers([Echo()])
            server.grpc.add_insecure_port(f"{address}:{container['ports'][0]['containerPort']}")
            await server.grpc.start()
            await self._report(pod, "Running", address, running, ready=True)
            return
        server.runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=2)
        await server.runner.setup()
        await web.TCPSite(server.runner, address, container["ports"][0]["containerPort"]).start()
        if play.get("play/ready") != "false":
            await self._report(pod, "Running", address, running, ready=True)

    async def _report(self, pod: Object, phase: str, address: str, state: Object, *, ready: bool) -> None:
        statuses = [
            {
                "name": one["name"],
                "image": one["image"],
                "imageID": f"sha256:{1:064x}",
                "ready": ready,
                "restartCount": 0,
                "state": state,
            }
            for one in pod["spec"]["containers"]
        ]
        truth = {"status": str(ready), "lastTransitionTime": self._stamp()}
        status: Object = {
            "phase": phase,
            "conditions": [{"type": "ContainersReady", **truth}, {"type": "Ready", **truth}],
            "containerStatuses": statuses,
        }
        if address:
            status |= {"podIP": address, "podIPs": [{"ip": address}]}
        metadata = pod["metadata"]
        await self.client.patch(PODS, metadata["name"], {"status": status}, metadata["namespace"], subresource="status")

    async def _end(self, pod: Object) -> None:
        server = self.servers.get(pod["metadata"]["uid"])
        if server is not None and server.stopping:
            return
        if server is not None:
            server.stopping = True
            if server.grpc is not None:
                await server.grpc.stop(1)
            if server.runner is not None:
                hooks = [dig(one, "lifecycle", "preStop", "sleep", "seconds") for one in pod["spec"]["containers"]]
                await asyncio.sleep(max(filter(None, hooks), default=0))
                await server.runner.cleanup()
                server.runner = None
        await self.client.delete(PODS, pod["metadata"]["name"], pod["metadata"]["namespace"], grace_period=0)


@dataclass
class World:
    """What a test holds."""

    platform: Platform
    player: PodPlayer
    kubectl: Command
    session: requests.Session = field(default_factory=requests.Session)

    @property
    def gateway(self) -> str:
        return self.platform.address("gateway")

    def apply(self, *manifests: Object) -> None:
        """``kubectl apply`` them."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(listed))

    def refused(self, manifest: Object) -> str:
        """What kubectl says of a manifest that is not accepted."""
        return self.kubectl("apply", "-f", "-", stdin=json.dumps(manifest), fails=True)

    def object(self, kind: str, name: str, namespace: str = "default") -> Any:
        return json.loads(self.kubectl("get", kind, name, "-n", namespace, "-o", "json"))

    def objects(self, kind: str, namespace: str = "default") -> list[Any]:
        items: list[Any] = json.loads(self.kubectl("get", kind, "-n", namespace, "-o", "json"))["items"]
        return items

    def condition(self, kind: str, name: str, type_: str = "Ready", namespace: str = "default") -> tuple[str, str, str]:
        """(status, reason, message)."""
        for one in dig(self.object(kind, name, namespace), "status", "conditions", default=[]):
            if one["type"] == type_:
                return one["status"], one.get("reason", ""), one.get("message", "")
        return "", "", ""

    def ready(self, name: str, kind: str = "ksvc", namespace: str = "default") -> Any:
        """Wait until it is ready in its current generation; the object."""

        def arrived() -> Any:
            obj = self.object(kind, name, namespace)
            current = dig(obj, "status", "observedGeneration") == obj["metadata"]["generation"]
            state = [one["status"] for one in dig(obj, "status", "conditions", default=[]) if one["type"] == "Ready"]
            return obj if current and state == ["True"] else None

        return self.until(arrived)

    def until(self, truth: Callable[[], Any], seconds: float = 40.0) -> Any:
        """Wait for something to become true; what it was."""
        deadline = time.monotonic() + seconds
        while not (found := truth()):
            assert time.monotonic() < deadline, f"still {found!r} after {seconds} s"
            time.sleep(0.02)
        return found

    def get(self, host: str, path: str = "/", **options: Any) -> requests.Response:
        headers = {"Host": host, **options.pop("headers", {})}
        return self.session.request(
            options.pop("method", "GET"),
            f"http://{self.gateway}{path}",
            headers=headers,
            timeout=options.pop("timeout", 40),
            **options,
        )

    def servers(self, service: str) -> list[PodServer]:
        """Servers of a Service's pods that have not been told to stop."""
        found = list(self.player.servers.values())
        return [one for one in found if one.environment.get("K_SERVICE") == service and not one.stopping]

    def release(self, service: str) -> None:
        """Let the requests go on that a Service's pods hold."""
        for server in self.servers(service):
            server.released = True

    def pass_time(self, seconds: float, step: float = 2.0) -> None:
        """Let the platform's clock pass in steps, with time in between for what is due."""
        passed = 0.0
        while passed < seconds:
            self.platform.clock.jump(step)
            passed += step
            time.sleep(0.03)

    def sleep_to_zero(self, *services: str) -> None:
        """Let the clock pass until no pod is left."""

        def gone() -> bool:
            self.pass_time(10, 5)
            return not any(self.servers(service) for service in services)

        self.until(gone, 60)


@contextmanager
def serving_world(home: Path, **options: Any) -> Iterator[World]:
    """A platform with the node ``worker``."""
    without = [
        name for name in ("node", "network", "messaging", "eventing", "discovery", "transactions") if name in _parts()
    ]
    with Platform(without=without, **options) as platform:

        async def start() -> PodPlayer:
            player = PodPlayer(platform.get(ControlContext))
            await player.start()
            await player.register()
            return player

        player = platform.run(start())
        try:
            yield World(platform, player, Command(kubectl(), platform.kubeconfig, home))
        finally:
            platform.run(player.close())


def _parts() -> set[str]:
    from sampan.parts import PARTS

    return set(PARTS)


def service(
    name: str,
    *,
    spec: Object | None = None,
    annotations: Object | None = None,
    env: Object | None = None,
    metadata: Object | None = None,
    traffic: list[Object] | None = None,
    revision: str = "",
    container: Object | None = None,
) -> Object:
    """A Service's manifest."""
    variables = [{"name": key, "value": value} for key, value in (env or {}).items()]
    template: Object = {
        "metadata": {"annotations": annotations or {}},
        "spec": {
            "containers": [{"image": "ghcr.io/knative/helloworld-go:latest", "env": variables, **(container or {})}],
            **(spec or {}),
        },
    }
    if revision:
        template["metadata"]["name"] = revision
    made: Object = {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": name, **(metadata or {})},
        "spec": {"template": template},
    }
    if traffic is not None:
        made["spec"]["traffic"] = traffic
    return made
