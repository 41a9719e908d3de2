"""A hand-made object cache and shorthand for the objects that access decides from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sampan.kube.objects import Object, Resource


class Cache:
    """Objects by resource, namespace and name, as the API server's own cache would answer."""

    def __init__(self) -> None:
        self._objects: dict[Resource, dict[tuple[str, str], Object]] = {}
        self._generations: dict[Resource, int] = {}

    def put(self, resource: Resource, *objects: Object) -> None:
        for obj in objects:
            metadata = obj["metadata"]
            key = (metadata.get("namespace", ""), metadata["name"])
            self._objects.setdefault(resource, {})[key] = obj
            self._generations[resource] = self._generations.get(resource, 0) + 1

    def drop(self, resource: Resource, namespace: str, name: str) -> None:
        del self._objects[resource][(namespace, name)]
        self._generations[resource] += 1

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        return self._objects.get(resource, {}).get((namespace, name))

    def objects(self, resource: Resource, namespace: str | None = None) -> list[Object]:
        found = self._objects.get(resource, {}).items()
        return [obj for (space, _), obj in found if namespace is None or space == namespace]

    def generation(self, resource: Resource) -> int:
        return self._generations.get(resource, 0)


def named(name: str, namespace: str = "", **fields: Any) -> Object:
    metadata: Object = {"name": name, "uid": f"uid-{name}"}
    if namespace:
        metadata["namespace"] = namespace
    return {"metadata": metadata, **fields}


def rule(groups: Iterable[str], resources: Iterable[str], verbs: Iterable[str], names: Iterable[str] = ()) -> Object:
    made: Object = {"apiGroups": list(groups), "resources": list(resources), "verbs": list(verbs)}
    if names:
        made["resourceNames"] = list(names)
    return made


def binding(name: str, role: tuple[str, str], *subjects: tuple[str, str], namespace: str = "") -> Object:
    made = named(name, namespace)
    made["roleRef"] = {"apiGroup": "rbac.authorization.k8s.io", "kind": role[0], "name": role[1]}
    made["subjects"] = []
    for kind, subject in subjects:
        if kind == "ServiceAccount":
            space, _, account = subject.partition("/")
            made["subjects"].append({"kind": kind, "namespace": space, "name": account})
        else:
            made["subjects"].append({"kind": kind, "name": subject})
    return made
