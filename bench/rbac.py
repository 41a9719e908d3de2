"""What a request pays at the gates: authentication, authorization and the admission of a pod, in CPU time an operation.

Run alone: ``python bench/rbac.py``. The cluster has 500 roles, 500 bindings and 1,000 pods under a quota; the ratio is to one
P-256 signature check, which every uncached ServiceAccount token costs.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

from sampan.kernel.clock import Clock
from sampan.kube.access.admission import AdmissionChain
from sampan.kube.access.interface import MASTER, AdmissionRequest, Attributes, User
from sampan.kube.access.plugins import first_plugins, last_plugins
from sampan.kube.access.plugins.plugin import PluginContext
from sampan.kube.access.rbac import AuthorizerChain, NodeAuthorizer, RbacAuthorizer
from sampan.kube.access.tokens import SigningKey, Tokens
from sampan.kube.objects import Object, Resource, copy
from sampan.kube.resources import (
    NAMESPACES,
    PODS,
    RESOURCE_QUOTAS,
    ROLE_BINDINGS,
    ROLES,
    SERVICE_ACCOUNTS,
)
from sampan.kube.types.resource import ResourceType, Strategy


class Cache:
    """A fixed cluster."""

    def __init__(self) -> None:
        self.all: dict[Resource, dict[tuple[str, str], Object]] = {}
        self.spaced: dict[tuple[Resource, str | None], list[Object]] = {}
        self.changes = 0

    def put(self, resource: Resource, name: str, namespace: str, **fields: Any) -> None:
        uid = f"{resource.plural}-{name}"
        metadata = {"name": name, "namespace": namespace, "uid": uid, "resourceVersion": "1"}
        self.all.setdefault(resource, {})[namespace, name] = {"metadata": metadata, **fields}

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        return self.all.get(resource, {}).get((namespace, name))

    def objects(self, resource: Resource, namespace: str | None = None) -> list[Object]:
        key = (resource, namespace)
        if key not in self.spaced:
            found = self.all.get(resource, {}).items()
            self.spaced[key] = [obj for (space, _), obj in found if namespace in (None, space)]
        return self.spaced[key]

    def generation(self, resource: Resource) -> int:
        return self.changes


def cluster() -> Cache:
    cache = Cache()
    cache.put(NAMESPACES, "ns", "")
    cache.put(SERVICE_ACCOUNTS, "default", "ns")
    for i in range(500):
        rules = [{"apiGroups": [""], "resources": [f"kind{i}", "pods"], "verbs": ["get", "list"]}]
        cache.put(ROLES, f"r{i}", "ns", rules=rules)
        subjects = [{"kind": "User", "name": f"user{i % 50}"}]
        cache.put(ROLE_BINDINGS, f"b{i}", "ns", roleRef={"kind": "Role", "name": f"r{i}"}, subjects=subjects)
    resources = {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "100m", "memory": "64Mi"}}
    for i in range(1000):
        cache.put(PODS, f"p{i}", "ns", spec={"containers": [{"name": "c", "resources": resources}]})
    cache.put(
        RESOURCE_QUOTAS, "q", "ns", spec={"hard": {"pods": "5000", "requests.cpu": "100", "limits.memory": "1Ti"}}
    )
    return cache


def timed(work: Callable[[], object], times: int) -> float:
    """Best of five, microseconds of CPU a call."""
    best = float("inf")
    for _ in range(5):
        began = process_time()
        for _ in range(times):
            work()
        best = min(best, process_time() - began)
    return best / times * 1e6


def main() -> None:
    cache, clock = cluster(), Clock()
    rbac = RbacAuthorizer(cache)
    chain = AuthorizerChain([NodeAuthorizer(cache), rbac])
    user = User("user7", ("dev", "system:authenticated"))
    known = Attributes(user, "get", PODS, namespace="ns", name="p1")
    names = iter(Attributes(user, "get", PODS, namespace="ns", name=f"n{i}") for i in range(10**7))
    tokens = Tokens(SigningKey(Path(tempfile.mkdtemp()) / "key"), cache, clock)
    account = cache.get(SERVICE_ACCOUNTS, "ns", "default")
    assert account is not None
    token = tokens.request(MASTER, account, {"spec": {}})["status"]["token"]

    def changed() -> None:
        cache.changes += 1
        chain.authorize(known)

    def fresh() -> None:
        tokens._seen.clear()
        tokens.verify(token)

    admission = AdmissionChain(
        *(plugins(PluginContext(cache, clock, chain)) for plugins in (first_plugins, last_plugins))
    )
    kind = ResourceType(PODS, "Pod", "pod", True, Strategy())
    resources = {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "100m", "memory": "64Mi"}}
    pod = {
        "metadata": {"name": "n", "namespace": "ns"},
        "spec": {"containers": [{"name": "c", "resources": resources}]},
    }

    async def admit() -> None:
        request = AdmissionRequest("CREATE", kind, user, "ns", "n", copy(pod))
        await admission.admit(request)
        await admission.validate(request)
        for finished in request.finished:
            finished()

    loop = asyncio.new_event_loop()
    check = timed(fresh, 200)
    rows = [
        ("authorize, question asked before", timed(lambda: chain.authorize(known), 20_000)),
        ("authorize, another object name", timed(lambda: chain.authorize(next(names)), 5_000)),
        ("authorize, first after a role changed", timed(changed, 50)),
        ("ServiceAccount token, seen before", timed(lambda: tokens.verify(token), 5_000)),
        ("ServiceAccount token, first time", check),
        ("admit a pod, 1,000 pods under a quota", timed(lambda: loop.run_until_complete(admit()), 50)),
    ]
    print(f"{'operation':42}{'µs CPU':>10}{'of a signature check':>24}")
    for label, cost in rows:
        print(f"{label:42}{cost:>10.1f}{cost / check:>23.2f}x")


if __name__ == "__main__":
    main()
