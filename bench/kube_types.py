"""What a pod costs on its way in, step by step, beside decoding its JSON (the floor any server pays).

Run alone: ``python bench/kube_types.py``. Best of several runs, microseconds of one core.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import timeit
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from sampan.kube.objects import copy
from sampan.kube.types import protobuf
from sampan.kube.types.builtin import builtin_types

POD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web", "tier": "front"}},
    "spec": {
        "containers": [
            {
                "name": "c",
                "image": "nginx:1.27",
                "ports": [{"containerPort": 80, "name": "http"}],
                "env": [
                    {"name": "A", "value": "b"},
                    {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                ],
                "resources": {
                    "requests": {"cpu": "100m", "memory": "128Mi"},
                    "limits": {"cpu": "1", "memory": "256Mi"},
                },
                "readinessProbe": {"httpGet": {"path": "/", "port": 80}},
                "volumeMounts": [{"name": "v", "mountPath": "/v"}],
            }
        ],
        "volumes": [{"name": "v", "emptyDir": {}}],
        "tolerations": [{"key": "a", "operator": "Exists"}],
    },
}
BODIES = Path(__file__).parent.parent / "tests/unit/kube_types/kubectl_bodies.json"


def best(work: Callable[[], object], number: int = 1000) -> float:
    """Microseconds of one call, best of seven."""
    return min(timeit.repeat(work, number=number, repeat=7)) / number * 1e6


def main() -> None:
    strategy = next(kind.strategy for kind in builtin_types() if kind.kind == "Pod")
    encoded = msgspec.json.encode(POD)
    deployment = base64.b64decode(json.loads(BODIES.read_text())[0]["body"])
    full = copy(POD)
    strategy.default(full)
    strategy.prepare_create(full)
    now = datetime(2024, 1, 1, tzinfo=UTC)
    floor = best(lambda: msgspec.json.decode(encoded))
    steps: dict[str, Callable[[], object]] = {
        "decode JSON (the floor)": lambda: msgspec.json.decode(encoded),
        "decode protobuf (kubectl's Deployment)": lambda: protobuf.decode(deployment),
        "check the shape": lambda: strategy.prune(full),
        "copy and default": lambda: strategy.default(copy(POD)),
        "copy": lambda: copy(POD),
        "validate": lambda: strategy.validate(full),
        "table row": lambda: strategy.row(full, now),
    }
    print(f"{'step':42} {'µs':>8} {'× floor':>8}")
    for name, work in steps.items():
        spent = best(work)
        print(f"{name:42} {spent:8.1f} {spent / floor:8.1f}")
    script = (
        "import pathlib, time, sampan.kube.types.resource\n"
        "def resident(): return int(pathlib.Path('/proc/self/statm').read_text().split()[1]) * 4096\n"
        "before, start = resident(), time.perf_counter()\n"
        "from sampan.kube.types.builtin import builtin_types; builtin_types()\n"
        "print(time.perf_counter() - start, resident() - before)"
    )
    runs = [
        [
            float(word)
            for word in subprocess.run(
                [sys.executable, "-c", script], capture_output=True, text=True, check=True
            ).stdout.split()
        ]
        for _ in range(5)
    ]
    print(
        f"\nimport and build all types: {min(run[0] for run in runs) * 1000:.1f} ms, {min(run[1] for run in runs) / 2**20:.1f} MiB"
    )


if __name__ == "__main__":
    main()
