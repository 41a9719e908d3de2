"""What field ownership, apply and CEL cost, beside encoding the same object as JSON once (the least any write does).

Run: ``python bench/patch.py``; no platform is started. The Rust library is measured where it is installed
(``pip install common-expression-language``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from sampan.kube import cel
from sampan.kube.objects import copy
from sampan.kube.patch import merge_patch, strategic
from sampan.kube.patch.managed import record_update, server_side_apply
from sampan.kube.types import schemas
from sampan.kube.types.builtin import builtin_types

POD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "web", "namespace": "default", "uid": "u", "labels": {"app": "web", "tier": "front"}},
    "spec": {
        "restartPolicy": "Always",
        "dnsPolicy": "ClusterFirst",
        "schedulerName": "default-scheduler",
        "securityContext": {},
        "terminationGracePeriodSeconds": 30,
        "containers": [
            {
                "name": f"c{number}",
                "image": "nginx",
                "imagePullPolicy": "Always",
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1"}},
                "ports": [{"containerPort": 80 + number, "protocol": "TCP", "name": f"http{number}"}],
                "env": [{"name": f"E{index}", "value": "v"} for index in range(5)],
                "readinessProbe": {"httpGet": {"path": "/", "port": 80, "scheme": "HTTP"}, "periodSeconds": 10},
            }
            for number in range(3)
        ],
    },
}


def microseconds(work: Callable[[], object]) -> float:
    """The best of five rounds, for one call."""
    count = 200
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(count):
            work()
        best = min(best, (time.perf_counter() - began) / count)
    return best * 1e6


def main() -> None:
    pods = next(kind for kind in builtin_types() if kind.resource == ("", "v1", "pods"))
    now = datetime.now(UTC)
    encode = msgspec.json.Encoder().encode
    created = copy(POD)
    record_update(None, created, "m", "", now, pods)
    changed = copy(created)
    changed["spec"]["containers"][1]["image"] = "nginx:2"
    patch = {"spec": {"containers": [{"name": "c1", "image": "nginx:2"}]}}
    one = encode(POD)
    base = microseconds(lambda: encode(POD))
    print(f"pod of {len(one)} bytes; encoding it as JSON takes {base:.1f} µs")
    print(f"{'':44}{'µs':>8}{'× encoding':>12}")

    def row(name: str, work: Callable[[], object]) -> float:
        taken = microseconds(work)
        print(f"{name:44}{taken:8.1f}{taken / base:12.1f}")
        return taken

    row("create: record ownership", lambda: record_update(None, created, "m", "", now, pods))

    def update() -> None:
        changed["metadata"]["managedFields"] = created["metadata"]["managedFields"]
        record_update(created, changed, "k", "", now, pods)

    row("update: record ownership", update)
    row("server-side apply", lambda: server_side_apply(created, POD, "a", False, "", now, pods))
    row("strategic merge patch", lambda: strategic.apply(POD, patch, pods.schema, schemas.resolve))
    row("merge patch", lambda: merge_patch.apply(POD, patch))

    expression = "self.spec.containers.all(c, c.resources.limits.cpu == '1') && self.metadata.name.size() < 10"
    program = cel.compile(expression, {"self": cel.DYN})
    ours = row("CEL rule over the pod", lambda: program.evaluate({"self": POD}))
    row("CEL: compile", lambda: cel.compile(expression + " && 1 == 1", {"self": cel.DYN}))
    try:
        from cel import compile as rust_compile
    except ImportError:
        return
    rust = rust_compile(expression)
    theirs = row("the same rule, common-expression-language", lambda: rust.execute({"self": POD}))
    print(f"the Rust library takes {theirs / ours:.1f} times as long: it converts the whole object first")


if __name__ == "__main__":
    main()
