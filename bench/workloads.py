"""How fast workloads come up, without processes: the controllers, the scheduler and the store, with a played kubelet.

    python bench/workloads.py [--store memory]

Four figures: from the Deployment's creation to its pod's binding (what a cold start of a serverless function waits for), beside
the writes that path cannot do without; a Deployment of 200 pods; a rolling update of 20 replicas; pods bound a second on 1 and on
50 nodes. The peer is a bare write: one durable write of an object of the same size, in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.kubelet import FakeKubelet

from sampan.kube.client import Client
from sampan.kube.control.controller import ControlContext
from sampan.kube.control.interface import Informer, Informers
from sampan.kube.objects import Object
from sampan.kube.resources import CONFIG_MAPS, DEPLOYMENTS, PODS
from sampan.testing import Platform

ROUNDS = 40
NECESSARY = 4
"""Durable writes one after the other on the way to a bound pod: Deployment, ReplicaSet, Pod, binding."""


def deployment(name: str, replicas: int, image: str = "nginx:1") -> Object:
    labels = {"app": name}
    container = {"name": "c", "image": image, "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}}}
    return {
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


async def until(informer: Informer, condition: Any) -> float:
    """The moment ``condition()`` first holds, looked at after every change of the informer."""
    done = asyncio.get_running_loop().create_future()

    def look(old: Object | None, new: Object | None) -> None:
        if not done.done() and condition():
            done.set_result(time.perf_counter())

    informer.on_change(look)
    if not done.done() and condition():
        done.set_result(time.perf_counter())
    moment: float = await done
    return moment


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)]


def row(what: str, figure: str, remark: str = "") -> None:
    print(f"{what:<46} {figure:>14}   {remark}")


async def bare_writes(client: Client) -> float:
    """Milliseconds of one durable write with nothing else going on, median."""
    taken = []
    for number in range(ROUNDS):
        began = time.perf_counter()
        await client.create(CONFIG_MAPS, {"metadata": {"name": f"bare-{number}"}, "data": {"x": "y" * 1200}}, "default")
        taken.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(0.01)
    return statistics.median(taken)


async def critical_path(client: Client, pods: Informer) -> list[float]:
    """Milliseconds from a Deployment's creation to its pod's binding."""
    taken = []
    for number in range(ROUNDS):
        name = f"cold-{number}"
        began = time.perf_counter()
        await client.create(DEPLOYMENTS, deployment(name, 1), "default")
        bound = await until(
            pods, lambda name=name: any(p["spec"].get("nodeName") for p in pods.objects("default", {"app": name}))
        )
        taken.append((bound - began) * 1000)
        await asyncio.sleep(0.03)
    return taken


async def many(client: Client, pods: Informer, count: int) -> float:
    """Seconds from a Deployment's creation until all its pods are bound."""
    began = time.perf_counter()
    await client.create(DEPLOYMENTS, deployment("many", count), "default")
    bound = await until(
        pods, lambda: sum(bool(p["spec"].get("nodeName")) for p in pods.objects("default", {"app": "many"})) == count
    )
    return bound - began


async def rolling(client: Client, informers: Informers) -> float:
    """Seconds of a rolling update of 20 replicas whose pods are ready at once."""
    deployments = informers.informer(DEPLOYMENTS)

    def complete(generation: int) -> bool:
        for one in deployments.objects("default", {}):
            status = one.get("status") or {}
            if one["metadata"]["name"] == "roll" and status.get("observedGeneration", 0) >= generation:
                return bool(
                    status.get("updatedReplicas") == status.get("availableReplicas") == status.get("replicas") == 20
                )
        return False

    await client.create(DEPLOYMENTS, deployment("roll", 20), "default")
    await until(deployments, lambda: complete(1))
    began = time.perf_counter()
    image = {
        "spec": {
            "template": {
                "spec": {"containers": [deployment("roll", 20, "nginx:2")["spec"]["template"]["spec"]["containers"][0]]}
            }
        }
    }
    await client.patch(DEPLOYMENTS, "roll", image, "default")
    return await until(deployments, lambda: complete(2)) - began


async def scheduling(store: str, nodes: int, count: int) -> float:
    """Pods bound a second, of pods that are all there before the nodes are."""
    async with Platform(only=["workloads"], settings={"kubernetes.store": store}) as platform:
        context, client = platform.get(ControlContext), platform.get(Client)
        kubelet = FakeKubelet(context)  # not started: pods stay where the scheduler put them
        pods = context.informers.informer(PODS)
        spec = deployment("x", 1)["spec"]["template"]
        for start in range(0, count, 50):
            batch = range(start, min(start + 50, count))
            await asyncio.gather(
                *(
                    client.create(
                        PODS, {"metadata": {"name": f"p{n}", **spec["metadata"]}, "spec": spec["spec"]}, "default"
                    )
                    for n in batch
                )
            )
        await asyncio.sleep(0.2)
        # every pod has been looked at once and waits; the first node sets them off after their backoff
        await asyncio.gather(*(kubelet.add_node(f"node-{n}", pod_limit=count) for n in range(nodes)))
        kubelet.nodes.clear()
        first: list[float] = []

        def bound() -> int:
            found = sum(bool(p["spec"].get("nodeName")) for p in pods.objects("default"))
            if found and not first:
                first.append(time.perf_counter())
            return found

        last = await until(pods, lambda: bound() == count)
        return (count - 1) / (last - first[0])


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", choices=("sqlite", "memory"), default="sqlite")
    store = parser.parse_args().store
    async with Platform(only=["workloads"], settings={"kubernetes.store": store}) as platform:
        context, client = platform.get(ControlContext), platform.get(Client)
        kubelet = FakeKubelet(context)
        await kubelet.start()
        await kubelet.add_node(pod_limit=1000, cpu="64", memory="256Gi")
        pods = context.informers.informer(PODS)
        bare = await bare_writes(client)
        row("one durable write, alone (median)", f"{bare:.1f} ms")
        path = await critical_path(client, pods)
        median = statistics.median(path)
        row(
            "Deployment created -> pod bound (median)",
            f"{median:.1f} ms",
            f"{median / bare / NECESSARY:.1f}x its {NECESSARY} writes",
        )
        row("Deployment created -> pod bound (best)", f"{min(path):.1f} ms", f"p90 {percentile(path, 0.9):.1f} ms")
        seconds = await many(client, pods, 200)
        row("Deployment of 200 pods -> all bound", f"{seconds:.2f} s", f"{seconds * 1000 / 200:.1f} ms a pod")
        seconds = await rolling(client, context.informers)
        row("rolling update of 20 replicas", f"{seconds:.2f} s")
    for nodes in (1, 50):
        row(f"pods bound a second, {nodes} node{'s' * (nodes > 1)}", f"{await scheduling(store, nodes, 300):.0f} /s")


if __name__ == "__main__":
    asyncio.run(main())
