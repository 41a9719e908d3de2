"""Benchmark of the object store: durable creates, opening, memory an object, fan-out to watches.

    python bench/store.py [--objects 100000] [--seconds 3] [--dir DIR]

Durable creates are set against two limits measured in the same run on the same disk: SQLite alone doing the same inserts
(one transaction each, and all in one), and a bare ``write`` + ``fdatasync`` of the same bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sqlite3
import tempfile
import time
import tracemalloc
from functools import partial
from pathlib import Path

import psutil

from sampan.kernel.clock import Clock
from sampan.kube.client import WatchEvent
from sampan.kube.control import SharedInformer
from sampan.kube.objects import Object, decode, encode
from sampan.kube.resources import PODS
from sampan.kube.store import MemoryLog, Record, Store
from sampan.kube.store.sqlite import SqliteLog

PREFIX = "/registry/core/pods/"


def pod(number: int) -> Object:
    """A pod as the API server stores it: about 2.5 KB."""
    name = f"web-6d4b75cb6d-{number:06d}"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": f"ns-{number % 20}",
            "uid": f"00000000-0000-4000-8000-{number:012d}",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app": "web", "pod-template-hash": "6d4b75cb6d", "tier": "front", "release": f"r{number % 7}"},
            "ownerReferences": [
                {
                    "apiVersion": "apps/v1",
                    "kind": "ReplicaSet",
                    "name": "web-6d4b75cb6d",
                    "uid": "11111111-0000-4000-8000-000000000000",
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
            "managedFields": [
                {
                    "manager": "kube-controller-manager",
                    "operation": "Update",
                    "apiVersion": "v1",
                    "time": "2026-01-01T00:00:00Z",
                    "fieldsType": "FieldsV1",
                    "fieldsV1": {
                        "f:metadata": {
                            "f:labels": {".": {}, "f:app": {}, "f:tier": {}},
                            "f:ownerReferences": {".": {}},
                        },
                        "f:spec": {"f:containers": {'k:{"name":"web"}': {".": {}, "f:image": {}, "f:ports": {}}}},
                    },
                }
            ],
        },
        "spec": {
            "containers": [
                {
                    "name": "web",
                    "image": "nginx:1.27",
                    "imagePullPolicy": "IfNotPresent",
                    "ports": [{"containerPort": 80, "protocol": "TCP", "name": "http"}],
                    "env": [
                        {"name": "POD", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}}
                    ],
                    "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                    "terminationMessagePath": "/dev/termination-log",
                    "terminationMessagePolicy": "File",
                }
            ],
            "restartPolicy": "Always",
            "dnsPolicy": "ClusterFirst",
            "nodeName": "sampan",
            "schedulerName": "default-scheduler",
            "serviceAccountName": "default",
            "securityContext": {},
            "terminationGracePeriodSeconds": 30,
            "tolerations": [
                {
                    "key": f"node.kubernetes.io/{key}",
                    "operator": "Exists",
                    "effect": "NoExecute",
                    "tolerationSeconds": 300,
                }
                for key in ("not-ready", "unreachable")
            ],
        },
        "status": {
            "phase": "Running",
            "podIP": f"10.1.{number // 250 % 250}.{number % 250}",
            "conditions": [
                {"type": type, "status": "True", "lastTransitionTime": "2026-01-01T00:00:01Z"}
                for type in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
            ],
            "containerStatuses": [
                {
                    "name": "web",
                    "image": "nginx:1.27",
                    "imageID": "sha256:4f67c83422ec747235357c04556616234e66fc3fa39cb4f40b2d4441ddd8f100",
                    "containerID": f"process://{number:064d}",
                    "ready": True,
                    "started": True,
                    "restartCount": 0,
                    "state": {"running": {"startedAt": "2026-01-01T00:00:01Z"}},
                }
            ],
        },
    }


def key_of(number: int) -> str:
    return f"{PREFIX}ns-{number % 20}/web-6d4b75cb6d-{number:06d}"


def row(label: str, figure: str, beside: str = "") -> None:
    print(f"{label:<52}{figure:>14}  {beside}")


def limits(folder: Path, seconds: float) -> tuple[float, float, float]:
    """(fdatasync/s, SQLite single-row commits/s, SQLite rows/s in batches of 8) with pod-sized values."""
    value = encode(pod(0), 1)
    handle = os.open(folder / "raw", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        os.write(handle, value)
        os.fdatasync(handle)
        count += 1
    raw = count / (time.perf_counter() - began)
    os.close(handle)

    def inserts(batch: int) -> float:
        path = folder / f"limit{batch}.db"
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE log (revision INTEGER PRIMARY KEY, key TEXT, value BLOB)")
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            connection.execute("BEGIN")
            connection.executemany(
                "INSERT INTO log VALUES (?, ?, ?)", [(count + i, key_of(count + i), value) for i in range(batch)]
            )
            connection.execute("COMMIT")
            count += batch
        connection.close()
        return count / (time.perf_counter() - began)

    return raw, inserts(1), inserts(8)


async def creates(folder: Path, writers: int, seconds: float) -> tuple[float, float]:
    """(durable creates/s, CPU µs a create) with so many writers that each wait for their own write."""
    store = Store(SqliteLog(folder / f"creates{writers}.db"), Clock())
    await store.open()
    objects = [pod(number) for number in range(1000)]
    numbers = iter(range(10_000_000))
    began, cpu = time.perf_counter(), time.process_time()

    async def writer() -> None:
        while time.perf_counter() - began < seconds:
            number = next(numbers)
            await store.put(key_of(number), partial(encode, objects[number % 1000]), 0)

    await asyncio.gather(*(writer() for _ in range(writers)))
    done, elapsed, used = next(numbers), time.perf_counter() - began, time.process_time() - cpu
    await store.close()
    return done / elapsed, used / done * 1e6


async def opening(folder: Path, objects: int) -> tuple[float, float, float, float]:
    """(seconds to open, bytes an object in the store, the same and in an informer's cache, seconds for a list of 5,000)."""
    path = folder / "open.db"
    log = SqliteLog(path)
    log.open()
    for start in range(0, objects, 2000):
        log.append(
            [
                Record(n + 2, key_of(n), n + 2, 0, encode(pod(n), n + 2))
                for n in range(start, min(start + 2000, objects))
            ]
        )
    while log.compact(objects + 1):
        pass
    log.close()
    del log
    gc.collect()
    before = psutil.Process().memory_info().rss
    began = time.perf_counter()
    store = Store(SqliteLog(path), Clock())
    await store.open()
    opened = time.perf_counter() - began
    memory = (psutil.Process().memory_info().rss - before) / objects
    began = time.perf_counter()
    joined = b",".join([entry.value for entry in store.range(PREFIX, limit=5000)])
    listed = time.perf_counter() - began
    assert len(joined) > 5_000_000 or objects < 5000
    del joined
    informer = SharedInformer(PODS)
    for entry in store.range(PREFIX):
        informer.change(WatchEvent("ADDED", decode(entry.value)))
    gc.collect()
    cached = (psutil.Process().memory_info().rss - before) / objects
    await store.close()
    return opened, memory, cached, listed


async def fanout(watchers: int, idle: int) -> tuple[float, float]:
    """(seconds until the last of ``watchers`` tasks has one write, bytes an idle watch)."""
    store = Store(MemoryLog(), Clock())
    await store.open()
    tracemalloc.start()
    sleeping = [store.watch(f"/registry/core/configmaps/{number}/", store.revision) for number in range(idle)]
    memory = tracemalloc.get_traced_memory()[0] / idle
    tracemalloc.stop()
    arrived: list[float] = []

    async def reader() -> None:
        async for _ in store.watch(PREFIX, store.revision):
            arrived.append(time.perf_counter())
            break

    tasks = [asyncio.create_task(reader()) for _ in range(watchers)]
    await asyncio.sleep(0.1)
    began = time.perf_counter()
    await store.put(key_of(1), lambda revision: encode(pod(1), revision), 0)
    await asyncio.gather(*tasks)
    assert len(arrived) == watchers and len(sleeping) == idle
    await store.close()
    return max(arrived) - began, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--objects", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument(
        "--dir", type=Path, default=None, help="folder on the disk to measure (default: the temporary one)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        folder = Path(name)
        print(f"one pod: {len(encode(pod(0), 1))} bytes; disk: {folder.parent}")
        opened, memory, cached, listed = asyncio.run(opening(folder, options.objects))
        row(f"open with {options.objects:,} objects", f"{opened:.2f} s")
        row("memory a stored pod (core only)", f"{memory / 1024:.1f} KB")
        row("memory a stored pod with an informer's cache", f"{cached / 1024:.1f} KB", "limit 12 KB in all")
        row("list of 5,000, bytes joined", f"{listed * 1e3:.1f} ms")
        raw, single, batched = limits(folder, options.seconds / 2)
        row("limit: write + fdatasync", f"{raw:,.0f}/s")
        row("limit: SQLite, a commit a row", f"{single:,.0f}/s")
        row("limit: SQLite, a commit 8 rows", f"{batched:,.0f}/s")
        for writers in (1, 8, 64):
            rate, cpu = asyncio.run(creates(folder, writers, options.seconds))
            row(
                f"durable creates, {writers} writers",
                f"{rate:,.0f}/s",
                f"{rate / single:.2f}x SQLite, {cpu:.0f} µs CPU each",
            )
    took, idle = asyncio.run(fanout(1000, 10_000))
    row("one write to 1,000 watches (beside 10,000 idle)", f"{took * 1e3:.1f} ms", f"{idle:.0f} bytes an idle watch")


if __name__ == "__main__":
    main()
