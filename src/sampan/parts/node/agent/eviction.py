"""Eviction: a pod that takes more disk than it may, or that a node short of disk or memory cannot carry, is ended as Failed.

Two things are looked at every `housekeeping` seconds. A pod with limits on local storage (``ephemeral-storage``, an emptyDir's
``sizeLimit``) is measured and evicted when it exceeds one. And when the disk under the data directory or the machine's memory
falls below what is to stay free, the node says so (DiskPressure, MemoryPressure, which keep further pods away), gives back what
images can be made from again, and, if that is not enough, evicts one pod a round: one that uses more than it asked for, of the
lowest priority, that uses most.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import psutil

from sampan.kube.objects import Object, dig
from sampan.kube.types import quantity
from sampan.parts.node.agent.state import roles
from sampan.parts.node.errors import RuntimeLostError
from sampan.parts.node.runtime.layout import Layout

if TYPE_CHECKING:
    from sampan.parts.node.agent.agent import Agent
    from sampan.parts.node.agent.worker import PodWorker

log = logging.getLogger(__name__)

STORAGE = "ephemeral-storage"
TRANSITION = 300.0
"""Seconds without shortage until the node says that it is over."""
GRACE = 1.0
"""Seconds an evicted pod's containers are given."""

Pressure = Literal["DiskPressure", "MemoryPressure"]


class Reserve(NamedTuple):
    """What is to stay free, bytes."""

    disk: int
    memory: int


NOTHING_RESERVED = Reserve(disk=0, memory=0)


@dataclass
class LocalStorage:
    """The local disk a pod uses, bytes."""

    layers: dict[str, int] = field(default_factory=dict)
    """Container → its writable layer and its logs."""
    empty_dirs: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.layers.values()) + sum(self.empty_dirs.values())


def empty_dirs(pod: Object) -> dict[str, str]:
    """The emptyDir volumes on disk, with their ``sizeLimit`` ("" for none)."""
    found = {}
    for volume in pod["spec"].get("volumes") or ():
        options = volume.get("emptyDir")
        if options is not None and options.get("medium") != "Memory":
            found[volume["name"]] = str(options.get("sizeLimit") or "")
    return found


def limited(pod: Object) -> bool:
    """The pod has a limit on local storage."""
    return any(empty_dirs(pod).values()) or any(
        STORAGE in dig(spec, "resources", "limits", default={}) for spec, _role in roles(pod)
    )


def overrun(pod: Object, used: LocalStorage) -> str:
    """What a pod exceeds, in the kubelet's words; "" where it keeps its limits."""
    for name, limit in empty_dirs(pod).items():
        if limit and quantity.parse(limit) > 0 and used.empty_dirs.get(name, 0) > quantity.parse(limit):
            return f'Usage of EmptyDir volume "{name}" exceeds the limit "{limit}". '
    limits: list[tuple[str, str]] = [
        (spec["name"], str(dig(spec, "resources", "limits", STORAGE, default=""))) for spec, _role in roles(pod)
    ]
    mains = {spec["name"] for spec, role in roles(pod) if role in ("main", "sidecar")}
    told = [limit for name, limit in limits if name in mains]
    if told and all(told):
        total = sum((quantity.parse(limit) for limit in told), Decimal(0))
        if used.total > total:
            words = told[0] if len(told) == 1 else str(int(total))
            return f"Pod ephemeral local storage usage exceeds the total limit of containers {words}. "
    for name, limit in limits:
        if limit and used.layers.get(name, 0) > quantity.parse(limit):
            return f'Container {name} exceeded its local ephemeral storage limit "{limit}". '
    return ""


class Candidate(NamedTuple):
    """A pod that may have to go."""

    uid: str
    used: int
    requested: int
    priority: int


def victim(candidates: Iterable[Candidate]) -> Candidate | None:
    """Who goes first: over its request, then of low priority, then by how much it is over."""
    return min(
        candidates,
        key=lambda one: (one.used <= one.requested, one.priority, one.requested - one.used),
        default=None,
    )


def requested(pod: Object, resource: str) -> int:
    """What a pod asks for of memory or local storage, bytes."""
    amounts = [dig(spec, "resources", "requests", resource) for spec, role in roles(pod) if role in ("main", "sidecar")]
    return int(sum((quantity.parse(amount) for amount in amounts if amount), Decimal(0)))


# -- looking at the disk


def measure(layout: Layout, pod: Object, containers: Mapping[str, str]) -> LocalStorage:
    """The disk a pod uses; ``containers`` are the runtime's ids by name. Blocks."""
    uid = pod["metadata"]["uid"]
    used = LocalStorage()
    for name in empty_dirs(pod):
        used.empty_dirs[name] = disk_used(layout.volume(uid, name))
    for name, identity in containers.items():
        logs = disk_used(layout.log(uid, name, 0).parent)
        used.layers[name] = logs + (_written(layout.container(uid, identity)) if identity else 0)
    return used


def disk_used(directory: Path | str) -> int:
    """Bytes of disk under a directory; what vanishes meanwhile counts as nothing."""
    total = 0
    stack = [str(directory)]
    while stack:
        try:
            with os.scandir(stack.pop()) as entries:
                for entry in entries:
                    try:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
                        if entry.is_dir(follow_symlinks=False):
                            stack.append(entry.path)
                    except OSError:
                        continue
        except OSError:
            continue
    return total


def _written(directory: Path) -> int:
    """What a container wrote into its root: on disk, or in the tmpfs that takes its place where overlays cannot lie on it."""
    found = sum(disk_used(upper) for upper in directory.glob("upper-*"))
    try:
        pid = json.loads((directory / "started.json").read_bytes())["pid"]
        inside, here = os.statvfs(f"/proc/{pid}/root"), os.statvfs(directory)
    except (OSError, ValueError, KeyError):
        return found
    if (inside.f_blocks, inside.f_files) != (here.f_blocks, here.f_files):
        found += (inside.f_blocks - inside.f_bfree) * inside.f_frsize
    return found


class Eviction:
    """Watches the disk and the memory of one node."""

    def __init__(self, agent: Agent, reserve: Reserve, housekeeping: float) -> None:
        self._agent = agent
        self._reserve = reserve
        self._every = housekeeping
        self._short: dict[Pressure, float] = {}
        """Pressures in force, with the monotonic second they were last felt."""

    @property
    def pressures(self) -> frozenset[Pressure]:
        """The conditions in force."""
        return frozenset(self._short)

    async def run(self) -> None:
        """Look around again and again."""
        while True:
            await self._agent.clock.sleep(self._every)
            await self._keep_limits()
            await self._keep_free()

    def _alive(self) -> list[PodWorker]:
        return [
            worker
            for worker in self._agent.workers.values()
            if worker.state.sandbox and not (worker.state.finished or worker.state.ending)
        ]

    async def _measure(self, worker: PodWorker) -> LocalStorage:
        containers = {name: state.id for name, state in worker.state.containers.items()}
        return await asyncio.to_thread(measure, self._agent.layout, worker.pod, containers)

    async def _keep_limits(self) -> None:
        for worker in self._alive():
            if limited(worker.pod) and (message := overrun(worker.pod, await self._measure(worker))):
                worker.evict(message, GRACE)

    async def _keep_free(self) -> None:
        free = await asyncio.to_thread(self._free)
        now = self._agent.clock.monotonic()
        before = self.pressures
        for kind, (available, wanted) in free.items():
            if available < wanted:
                self._short[kind] = now
            elif kind in self._short and now - self._short[kind] >= TRANSITION:
                del self._short[kind]
        if self.pressures != before:
            await self._agent.registration.post()
        if self._short.get("DiskPressure") == now:
            log.warning("the disk under %s is nearly full", self._agent.layout.base)
            await self._agent.reclaim_images()
            available = (await asyncio.to_thread(self._free))["DiskPressure"][0]
            if available < self._reserve.disk:
                await self._evict_for(STORAGE, self._reserve.disk, available)
        if self._short.get("MemoryPressure") == now:
            await self._evict_for("memory", self._reserve.memory, free["MemoryPressure"][0])

    def _free(self) -> dict[Pressure, tuple[int, int]]:
        disk = os.statvfs(self._agent.layout.base)
        return {
            "DiskPressure": (disk.f_bavail * disk.f_frsize, self._reserve.disk),
            "MemoryPressure": (psutil.virtual_memory().available, self._reserve.memory),
        }

    async def _evict_for(self, resource: str, wanted: int, available: int) -> None:
        """End the one pod that this shortage is best met by."""
        workers = {worker.uid: worker for worker in self._alive()}
        used: dict[str, dict[str, int]] = {}
        if resource == "memory":
            running = {
                c.id: (uid, c.name) for uid, w in workers.items() for c in w.state.containers.values() if c.running
            }
            try:
                usage = await self._agent.runtime.usage(list(running))
            except RuntimeLostError:
                return  # whatever it is short of, nothing of this node's runs
            for identity, one in usage.items():
                uid, name = running[identity]
                used.setdefault(uid, {})[name] = one.memory_bytes
        else:
            for uid, worker in workers.items():
                storage = await self._measure(worker)
                used[uid] = dict(storage.layers)
                if storage.empty_dirs and storage.layers:
                    first = next(iter(storage.layers))
                    used[uid][first] += sum(storage.empty_dirs.values())
        chosen = victim(
            Candidate(
                uid,
                sum(amounts.values()),
                requested(workers[uid].pod, resource),
                int(workers[uid].pod["spec"].get("priority") or 0),
            )
            for uid, amounts in used.items()
        )
        if chosen is None or chosen.used == 0:
            return
        words = [
            f"The node was low on resource: {resource}. Threshold quantity: {kibibytes(wanted)}, "
            f"available: {kibibytes(available)}. "
        ]
        asked = {
            spec["name"]: dig(spec, "resources", "requests", resource, default="0")
            for spec, _ in roles(workers[chosen.uid].pod)
        }
        words += [
            f"Container {name} was using {kibibytes(amount)}, request is {asked[name]}, "
            f"has larger consumption of {resource}. "
            for name, amount in used[chosen.uid].items()
            if amount > quantity.parse(str(asked[name]))
        ]
        workers[chosen.uid].evict("".join(words), GRACE, disruption=True)


def kibibytes(amount: int) -> str:
    """Bytes as upstream writes such amounts."""
    return f"{amount // 1024}Ki"
