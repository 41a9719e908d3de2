"""Knative Services that grow, fall asleep and roll out while clients ask, and the account of every answer.

``python -m tests.faults.serving_churn CYCLES ROLLOUTS [LIMIT]`` runs it as a soak on a node with real processes: clients ask without a
pause, some for answers that take a while, while the Service is scaled up by load and down by the clock, and then while revision
follows revision. ``LIMIT`` is the Service's ``containerConcurrency`` (0: none). No answer may be anything but 200.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from sampan.kube.client.http import HttpClient
from sampan.kube.client.resources import NODES, PODS
from sampan.kube.objects import Object, Resource, dig
from sampan.kube.status import ApiError
from sampan.testing import Platform
from tests.faults.soak import numbers

KSVC = Resource("serving.knative.dev", "v1", "services")
IMAGE = "ghcr.io/knative/autoscale-go:latest"
NAME = "churn"
HASTE = 0.2
"""Seconds the clock jumps at every look while clients ask: a pod's second of grace is to stay long enough for Envoy to hear of it."""
STEADY = 6
"""Clients that never stop."""
SLOW = 150
"""Milliseconds every fourth request takes."""


@dataclass
class Account:
    """What clients were told."""

    told: Counter[str] = field(default_factory=Counter)
    """Answers by status; failures by what they were."""
    sizes: Counter[int] = field(default_factory=Counter)
    """How often the Service was seen with so many ready pods."""
    slowest: float = 0.0

    @property
    def lost(self) -> dict[str, int]:
        return {what: count for what, count in self.told.items() if what != "200"}


class Churn:
    """One Service, its clients, and what is done to it meanwhile."""

    def __init__(self, platform: Platform, client: HttpClient, limit: int) -> None:
        self.platform, self.client, self.limit = platform, client, limit
        self.account = Account()
        self._stopped = False

    def manifest(self, version: int) -> Object:
        annotations = {
            "autoscaling.knative.dev/target": "4",
            "autoscaling.knative.dev/max-scale": "4",
            "autoscaling.knative.dev/window": "6s",
        }
        container = {"image": IMAGE, "env": [{"name": "VERSION", "value": str(version)}]}
        spec: Object = {"containers": [container], "timeoutSeconds": 60}
        if self.limit:
            spec["containerConcurrency"] = self.limit
        return {
            "apiVersion": "serving.knative.dev/v1",
            "kind": "Service",
            "metadata": {"name": NAME, "namespace": "default"},
            "spec": {"template": {"metadata": {"annotations": annotations}, "spec": spec}},
        }

    async def asks(self, session: aiohttp.ClientSession, path: str) -> None:
        """One request, and what became of it."""
        began = time.perf_counter()
        url = f"http://{self.platform.address('gateway')}{path}"
        try:
            async with session.get(url, headers={"Host": f"{NAME}.default.localhost"}) as answer:
                body = await answer.text()
                self.account.told[str(answer.status) if answer.status == 200 else f"{answer.status} {body[:160]}"] += 1
        except (aiohttp.ClientError, TimeoutError) as error:
            self.account.told[f"{type(error).__name__}: {error}"[:160]] += 1
        self.account.slowest = max(self.account.slowest, time.perf_counter() - began)

    @asynccontextmanager
    async def clients(self, count: int, *, busy: bool = False) -> Any:
        """So many clients that ask one request after the other for the time of the body, ``busy`` ones only slow requests."""
        stopped = False

        async def ask(number: int) -> None:
            # a connection of its own, as a browser or a proxy keeps one
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session:
                for turn in itertools.count(number):
                    if stopped:
                        return
                    await self.asks(session, f"/?sleep={SLOW}" if busy or turn % 4 == 0 else "/")
                    await asyncio.sleep(0.01)

        tasks = [asyncio.create_task(ask(number)) for number in range(count)]
        try:
            yield
        finally:
            stopped = True
            await asyncio.gather(*tasks)

    async def pods(self) -> list[Object]:
        """Pods that are ready and not told to stop."""
        listed = (await self.client.list(PODS, "default")).items
        return [
            one
            for one in listed
            if one["metadata"].get("labels", {}).get("serving.knative.dev/service") == NAME
            and not one["metadata"].get("deletionTimestamp")
            and any(
                item["type"] == "Ready" and item["status"] == "True"
                for item in dig(one, "status", "conditions", default=[])
            )
        ]

    async def until(self, truth: Callable[[], Any], seconds: float = 60, step: float = 0.0) -> None:
        """Wait for something; the platform's clock runs ahead by ``step`` seconds at every look."""
        deadline = time.perf_counter() + seconds
        while not await truth():
            assert time.perf_counter() < deadline, f"waited too long; told so far: {self.account.told}"
            if step:
                await asyncio.to_thread(self.platform.clock.jump, step)
            await asyncio.sleep(0.05)

    async def has(self, low: int, high: int) -> bool:
        size = len(await self.pods())
        self.account.sizes[size] += 1
        return low <= size <= high

    async def cycle(self, *, to_zero: bool) -> None:
        """Up by load, down by the clock; to zero with no client left, and woken by the next."""
        async with self.clients(16, busy=True):
            await self.until(lambda: self.has(2, 9))
        if to_zero:
            await self.until(lambda: self.has(0, 0), step=3)
        else:
            async with self.clients(1):
                await self.until(lambda: self.has(1, 1), step=HASTE)

    async def roll_out(self, version: int) -> None:
        """A new revision; returns once all traffic is on it."""
        while True:
            current = await self.client.get(KSVC, NAME, "default")
            try:
                await self.client.update(KSVC, {**current, "spec": self.manifest(version)["spec"]})
                break
            except ApiError as error:
                if not error.conflict:
                    raise

        async def moved() -> bool:
            found = await self.client.get(KSVC, NAME, "default")
            status = found.get("status") or {}
            latest = status.get("latestCreatedRevisionName")
            return bool(
                status.get("observedGeneration") == found["metadata"]["generation"]
                and latest == status.get("latestReadyRevisionName")
                and [one["revisionName"] for one in status.get("traffic") or ()] == [latest]
                and all(one["status"] == "True" for one in status["conditions"])
            )

        await self.until(moved)

    async def ready(self) -> None:
        async def nodes() -> bool:
            return bool((await self.client.list(NODES)).items)

        async def is_ready() -> bool:
            found = await self.client.get(KSVC, NAME, "default")
            conditions = dig(found, "status", "conditions", default=[])
            return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)

        await self.until(nodes)
        await self.client.create(KSVC, self.manifest(0), "default")
        await self.until(is_ready)


async def churn(platform: Platform, cycles: int, rollouts: int, limit: int = 0) -> Account:
    """The account of so many cycles and rollouts."""
    async with platform.client() as client:
        made = Churn(platform, client, limit)
        await made.ready()
        for number in range(cycles):
            await made.cycle(to_zero=number % 2 == 1)
        async with made.clients(STEADY):
            for version in range(1, rollouts + 1):
                await made.roll_out(version)
                # old revisions fall asleep while the new one is asked
                for _ in range(20):
                    await asyncio.to_thread(platform.clock.jump, HASTE)
                    await asyncio.sleep(0.05)
        return made.account


def main() -> None:
    cycles, rollouts, limit = numbers(50, 20, 0)
    began = time.perf_counter()
    with Platform(without=["messaging", "eventing"]) as platform:
        account = asyncio.run(churn(platform, cycles, rollouts, limit))
    asked = sum(account.told.values())
    print(
        f"{cycles} cycles, {rollouts} rollouts in {time.perf_counter() - began:.0f} s: {asked} requests, {account.lost}"
    )
    print(f"slowest answer {account.slowest:.2f} s; ready pods seen: {dict(sorted(account.sizes.items()))}")
    sys.exit(1 if account.lost else 0)


if __name__ == "__main__":
    main()
