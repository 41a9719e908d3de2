"""What a write costs the API server in CPU, by kind and verb, without sockets and disk: the part that is Python.

    python bench/writes.py [--profile "HTTPRoute merge patch"] [--times 2000]

The verbs run with everything a request meets behind its transport (admission, validation, ownership, storing, a listener that
decodes), over a log in memory. Beside each stands the ratio to decoding and encoding the same object once, which no write
can do without.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import itertools
import pstats
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from sampan.kernel.clock import Clock
from sampan.kube.access.control import access_control
from sampan.kube.access.interface import MASTER
from sampan.kube.client.inprocess import InProcessClient
from sampan.kube.control.compact import Compactor
from sampan.kube.control.informer import SharedInformer
from sampan.kube.control.local import LocalFeed
from sampan.kube.objects import Object, Resource, decode, encode
from sampan.kube.server.cache import StoreCache
from sampan.kube.server.verbs import Api
from sampan.kube.store.core import Store
from sampan.kube.store.memory import MemoryLog
from sampan.kube.types.builtin import builtin_types
from sampan.kube.types.custom.served import resource_types
from sampan.kube.types.resource import TypeRegistry

PODS = Resource("", "v1", "pods")
EVENTS = Resource("", "v1", "events")
DEPLOYMENTS = Resource("apps", "v1", "deployments")
SLICES = Resource("discovery.k8s.io", "v1", "endpointslices")
CONFIG_MAPS = Resource("", "v1", "configmaps")
HTTP_ROUTES = Resource("gateway.networking.k8s.io", "v1", "httproutes")
AUTOSCALERS = Resource("autoscaling.internal.knative.dev", "v1alpha1", "podautoscalers")
NAMED = {"name": "web", "namespace": "default"}

POD_SPEC: Object = {
    "containers": [
        {
            "name": "user-container",
            "image": "dev.local/hello",
            "ports": [{"containerPort": 8080, "name": "user-port"}],
            "env": [{"name": f"E{index}", "value": "v"} for index in range(6)],
            "readinessProbe": {"httpGet": {"port": 8080, "path": "/"}},
            "resources": {"requests": {"cpu": "100m"}},
        }
    ],
}
ROUTE: Object = {
    "metadata": NAMED,
    "spec": {
        "parentRefs": [{"name": "main"}],
        "hostnames": ["a.example.com"],
        "rules": [
            {
                "matches": [{"path": {"type": "PathPrefix", "value": f"/{index}"}}],
                "filters": [
                    {
                        "type": "RequestHeaderModifier",
                        "requestHeaderModifier": {"set": [{"name": "x-version", "value": "0"}]},
                    }
                ],
                "backendRefs": [{"name": "web", "port": 80, "weight": 1}, {"name": "next", "port": 80, "weight": 0}],
            }
            for index in range(2)
        ],
    },
}
ROUTE_STATUS: Object = {
    "parents": [
        {
            "parentRef": {"name": "main"},
            "controllerName": "sampan.dev/gateway",
            "conditions": [
                {
                    "type": type,
                    "status": "True",
                    "reason": type,
                    "message": "",
                    "observedGeneration": 1,
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }
                for type in ("Accepted", "ResolvedRefs")
            ],
        }
    ]
}


def conditions(**values: str) -> list[Object]:
    at = "2026-01-01T00:00:00Z"
    return [{"type": type, "status": value, "lastTransitionTime": at} for type, value in values.items()]


class Bench:
    """An API server without its transport, some objects, and one kind of write after the other."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.store = Store(MemoryLog(), self.clock)
        self.types = TypeRegistry(builtin_types())
        self.folder = folder
        self.count = itertools.count()

    async def open(self) -> None:
        await self.store.open()
        cache = StoreCache(self.store, self.types)
        gates = access_control(cache=cache, types=self.types, clock=self.clock, directory=self.folder)
        self.api = Api(
            self.store,
            self.types,
            self.clock,
            cache=cache,
            authorizer=gates.authorizer,
            admission=gates.admission,
        )
        self.client = InProcessClient(self.api, MASTER)
        from sampan.parts.serving.definitions import all_definitions as serving
        from sampan.parts.traffic.definitions import all_definitions as traffic

        for definition in (*traffic(), *serving()):
            definition["metadata"]["generation"] = 1
            definition["status"] = {"acceptedNames": definition["spec"]["names"]}
            self.types.add(resource_types(definition))
        feed = LocalFeed(self.store, self.types, custom=True)
        compactor = Compactor()
        for resource in (PODS, EVENTS, DEPLOYMENTS, SLICES, CONFIG_MAPS, HTTP_ROUTES, AUTOSCALERS):
            feed.follow(resource, SharedInformer(resource, compactor))
        await self.client.create(Resource("", "v1", "namespaces"), {"metadata": {"name": "default"}})
        await self.client.create(
            Resource("", "v1", "serviceaccounts"), {"metadata": {"name": "default", "namespace": "default"}}
        )
        labels = {"app": "web", "pod-template-hash": "abcdef"}
        await self.client.create(PODS, {"metadata": {**NAMED, "labels": labels}, "spec": POD_SPEC})
        template = {"metadata": {"labels": labels}, "spec": POD_SPEC}
        spec: Object = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
        await self.client.create(DEPLOYMENTS, {"metadata": NAMED, "spec": spec})
        await self.client.create(HTTP_ROUTES, ROUTE)
        await self.client.update(
            HTTP_ROUTES,
            {**await self.client.get(HTTP_ROUTES, "web", "default"), "status": ROUTE_STATUS},
            subresource="status",
        )
        applied = {**ROUTE, "apiVersion": HTTP_ROUTES.api_version, "kind": "HTTPRoute"}
        self.applied: Object = {**applied, "metadata": {**NAMED, "name": "applied"}}
        await self.client.apply(HTTP_ROUTES, self.applied, field_manager="kubectl")
        reference = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}
        autoscaler = {"scaleTargetRef": reference, "reachability": "Reachable", "protocolType": "http1"}
        await self.client.create(AUTOSCALERS, {"metadata": NAMED, "spec": autoscaler})
        await self.client.create(
            SLICES,
            {
                "metadata": {**NAMED, "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": "IPv4",
                "endpoints": [],
                "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            },
        )

    # -- the writes

    def next(self) -> str:
        return str(next(self.count))

    async def merge_patch(self) -> None:
        rules = decode(encode(ROUTE["spec"], 1))["rules"]
        rules[0]["filters"][0]["requestHeaderModifier"]["set"][0]["value"] = self.next()
        await self.client.patch(HTTP_ROUTES, "web", {"spec": {"rules": rules}}, "default")

    async def json_patch(self) -> None:
        path = "/spec/rules/0/filters/0/requestHeaderModifier/set/0/value"
        operation = {"op": "replace", "path": path, "value": self.next()}
        await self.client.patch(HTTP_ROUTES, "web", [operation], "default", patch_type="json")

    async def apply(self) -> None:
        config = decode(encode(self.applied, 1))
        del config["metadata"]["resourceVersion"]
        config["spec"]["rules"][0]["filters"][0]["requestHeaderModifier"]["set"][0]["value"] = self.next()
        await self.client.apply(HTTP_ROUTES, config, field_manager="kubectl")

    async def route_status(self) -> None:
        parents = decode(encode(ROUTE_STATUS, 1))["parents"]
        parents[0]["conditions"][0]["message"] = self.next()
        await self.client.patch(HTTP_ROUTES, "web", {"status": {"parents": parents}}, "default", subresource="status")

    async def pod_create(self) -> None:
        metadata = {"name": f"p{self.next()}", "namespace": "default", "labels": {"app": "web"}}
        await self.client.create(PODS, {"metadata": metadata, "spec": POD_SPEC})

    async def pod_status(self) -> None:
        pod = await self.client.get(PODS, "web", "default")
        pod["status"] = {
            "phase": "Running",
            "conditions": conditions(Initialized="True", Ready="True", ContainersReady="True", PodScheduled="True"),
            "podIP": "10.0.0.1",
            "podIPs": [{"ip": "10.0.0.1"}],
            "startTime": "2026-01-01T00:00:00Z",
            "containerStatuses": [
                {
                    "name": "user-container",
                    "image": "dev.local/hello",
                    "imageID": "x",
                    "ready": True,
                    "restartCount": next(self.count),
                    "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
                }
            ],
        }
        await self.client.update(PODS, pod, subresource="status")

    async def pod_label(self) -> None:
        await self.client.patch(PODS, "web", {"metadata": {"labels": {"n": self.next()}}}, "default")

    async def deployment_scale(self) -> None:
        await self.client.patch(DEPLOYMENTS, "web", {"spec": {"replicas": next(self.count)}}, "default")

    async def deployment_status(self) -> None:
        deployment = await self.client.get(DEPLOYMENTS, "web", "default")
        deployment["status"] = {
            "observedGeneration": next(self.count),
            "replicas": 1,
            "conditions": conditions(Available="True", Progressing="True"),
        }
        await self.client.update(DEPLOYMENTS, deployment, subresource="status")

    async def slice_update(self) -> None:
        entry = await self.client.get(SLICES, "web", "default")
        ready = {"ready": next(self.count) % 2 == 0, "serving": True, "terminating": False}
        target = {"kind": "Pod", "name": "web", "namespace": "default", "uid": "u"}
        entry["endpoints"] = [{"addresses": ["10.0.0.1"], "conditions": ready, "targetRef": target}]
        await self.client.update(SLICES, entry)

    async def autoscaler_status(self) -> None:
        status = {"desiredScale": next(self.count), "conditions": conditions(Ready="True", Active="True")}
        await self.client.patch(AUTOSCALERS, "web", {"status": status}, "default", subresource="status")

    async def event_create(self) -> None:
        name = f"web.{self.next()}"
        await self.client.create(
            EVENTS,
            {
                "metadata": {"name": name, "namespace": "default"},
                "involvedObject": {"kind": "Pod", "namespace": "default", "name": "web", "uid": "u"},
                "reason": "Started",
                "message": "Started container user-container",
                "source": {"component": "kubelet"},
                "firstTimestamp": "2026-01-01T00:00:00Z",
                "lastTimestamp": "2026-01-01T00:00:00Z",
                "count": 1,
                "type": "Normal",
            },
        )

    async def config_map_create(self) -> None:
        metadata = {"name": f"c{self.next()}", "namespace": "default"}
        await self.client.create(CONFIG_MAPS, {"metadata": metadata, "data": {"key": "v" * 200}})


WRITES: tuple[tuple[str, str, Callable[[Bench], Awaitable[None]]], ...] = (
    ("HTTPRoute merge patch", "httproutes/default/web", Bench.merge_patch),
    ("HTTPRoute JSON patch", "httproutes/default/web", Bench.json_patch),
    ("HTTPRoute apply", "httproutes/default/applied", Bench.apply),
    ("HTTPRoute status", "httproutes/default/web", Bench.route_status),
    ("Pod create", "pods/default/web", Bench.pod_create),
    ("Pod status", "pods/default/web", Bench.pod_status),
    ("Pod label", "pods/default/web", Bench.pod_label),
    ("Deployment scale", "deployments/default/web", Bench.deployment_scale),
    ("Deployment status", "deployments/default/web", Bench.deployment_status),
    ("EndpointSlice update", "endpointslices/default/web", Bench.slice_update),
    ("PodAutoscaler status", "podautoscalers/default/web", Bench.autoscaler_status),
    ("Event create", "", Bench.event_create),
    ("ConfigMap create", "", Bench.config_map_create),
)


async def measured(bench: Bench, write: Callable[[Bench], Awaitable[None]], times: int) -> float:
    """Microseconds of CPU a write: the best of four rounds."""
    best = float("inf")
    for _ in range(20):
        await write(bench)
    for _ in range(4):
        began = time.process_time()
        for _ in range(times // 4):
            await write(bench)
        best = min(best, (time.process_time() - began) / (times // 4))
    return best * 1e6


def stored(bench: Bench, place: str) -> bytes:
    """The encoding of the object that a write changes."""
    entries = bench.store.range("/registry/")
    newest = max(entries, key=lambda entry: entry.revision)
    return next((entry.value for entry in entries if place and entry.key.endswith(place)), newest.value)


def decoding_and_encoding(value: bytes) -> float:
    """Microseconds to decode and encode an object."""
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(200):
            encode(decode(value), 1)
        best = min(best, (time.perf_counter() - began) / 200)
    return best * 1e6


async def run(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        await bench.open()
        gc.freeze()
        if not arguments.profile:
            print(f"{'':24}{'µs CPU':>8}{'bytes':>8}{'× decoding and encoding':>26}")
        for name, place, write in WRITES:
            if arguments.profile and arguments.profile != name:
                continue
            if arguments.profile:
                for _ in range(50):
                    await write(bench)
                profiler = cProfile.Profile()
                profiler.enable()
                for _ in range(arguments.times):
                    await write(bench)
                profiler.disable()
                pstats.Stats(profiler).sort_stats(arguments.sort).print_stats(45)
                continue
            taken = await measured(bench, write, arguments.times)
            value = stored(bench, place)
            print(f"{name:24}{taken:8.0f}{len(value):8}{taken / decoding_and_encoding(value):26.1f}")
        await bench.store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="", help="the name of one write: its cProfile instead of the table")
    parser.add_argument("--sort", default="tottime")
    parser.add_argument("--times", type=int, default=1200)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
