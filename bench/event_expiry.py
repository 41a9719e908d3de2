"""What it costs to expire many Events at once: CPU an Event, commits, and how long the event loop is held at a time.

    python bench/event_expiry.py [--events 2000]

An API server without its transport over a log on disk, as many Events as are asked for, and then the hour in which they
expire. A turn is the time between two looks of the event loop at its sockets. The peer is a deletion of the same Events as a
collection, by `kubectl delete events --all`.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from sampan.kernel.clock import Clock
from sampan.kernel.collection import Collector
from sampan.kernel.tasks import Tasks
from sampan.kube.access.control import access_control
from sampan.kube.access.interface import MASTER
from sampan.kube.client.inprocess import InProcessClient
from sampan.kube.control import ControlContext, SharedInformers
from sampan.kube.control.ttl import TTL, EventExpiry
from sampan.kube.resources import EVENTS, NAMESPACES
from sampan.kube.server.cache import StoreCache
from sampan.kube.server.verbs import Api
from sampan.kube.store.core import Store
from sampan.kube.store.sqlite import SqliteLog
from sampan.kube.types.builtin import builtin_types
from sampan.kube.types.resource import TypeRegistry

EVENT = {
    "involvedObject": {"kind": "Pod", "namespace": "default", "name": "web", "uid": "u"},
    "reason": "Started",
    "message": "Started container user-container",
    "source": {"component": "kubelet"},
    "count": 1,
    "type": "Normal",
}


class Turns:
    """The longest turn of an event loop since it was asked last."""

    def __init__(self) -> None:
        loop: Any = asyncio.get_running_loop()
        select = loop._selector.select
        self._longest = 0.0
        self._woke = time.perf_counter()

        def watched(timeout: float | None) -> Any:
            self._longest = max(self._longest, time.perf_counter() - self._woke)
            try:
                return select(timeout)
            finally:
                self._woke = time.perf_counter()

        loop._selector.select = watched

    def longest(self) -> float:
        """Milliseconds; begins anew."""
        longest, self._longest = self._longest, 0.0
        return longest * 1000


async def measure(events: int, folder: Path, way: str) -> tuple[float, float, int, float]:
    """Wall ms, CPU microseconds an Event, commits, longest turn in ms."""
    clock = Clock()
    store = Store(SqliteLog(folder / f"{way}.db"), clock)
    await store.open()
    types = TypeRegistry(builtin_types())
    cache = StoreCache(store, types)
    gates = access_control(cache=cache, types=types, clock=clock, directory=folder)
    api = Api(store, types, clock, cache=cache, authorizer=gates.authorizer, admission=gates.admission)
    client = InProcessClient(api, MASTER)
    await client.create(NAMESPACES, {"metadata": {"name": "default"}})
    async with Tasks(clock) as tasks:
        for start in range(0, events, 100):
            names = (f"web.{index}" for index in range(start, min(start + 100, events)))
            bodies = ({"metadata": {"name": name, "namespace": "default"}, **EVENT} for name in names)
            await asyncio.gather(*(client.create(EVENTS, body) for body in bodies))
        if way == "expiry":
            context = ControlContext(client, SharedInformers(client, clock, tasks), clock, tasks, CollectorRegistry())
            await EventExpiry(context).start()
            await asyncio.sleep(0.5)
        collector = Collector()
        collector.begin()
        turns = Turns()
        commits, began, cpu = store.commits, time.perf_counter(), time.process_time()
        if way == "expiry":
            gone = asyncio.Event()
            left = store.count("/registry/core/events/")

            def deleted(_: object) -> None:
                nonlocal left
                left -= 1
                if not left:
                    gone.set()

            store.subscribe("/registry/core/events/", deleted)
            clock.jump(TTL)
            await gone.wait()
        else:
            await client.delete_collection(EVENTS, "default")
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        await asyncio.sleep(0)
        collector.end()
        figures = wall * 1000, cpu / events * 1e6, store.commits - commits, turns.longest()
    await store.close()
    return figures


def main() -> None:
    """Measure both and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=2000)
    events = parser.parse_args().events
    print(f"{events} Events    wall ms   CPU us an Event   commits   longest turn ms")
    with tempfile.TemporaryDirectory() as folder:
        for way in ("collection", "expiry"):
            wall, cpu, commits, turn = asyncio.run(measure(events, Path(folder), way))
            print(f"{way:12}{wall:12.0f}{cpu:18.0f}{commits:10}{turn:18.2f}")


if __name__ == "__main__":
    main()
