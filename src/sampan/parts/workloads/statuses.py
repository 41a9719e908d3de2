"""Writing an object's status without being in anybody's way.

A status has one writer, its controller, which works on one object at a time. So it is written as a patch without a resource
version: it cannot collide with those who change the spec meanwhile (a Deployment scaling its replica sets, a user), and nobody's
change is lost. What the controller has seen, ``observedGeneration`` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sampan.kube.client import Client
from sampan.kube.objects import Object, Resource


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> Object:
    """The JSON merge patch that makes ``old`` into ``new``."""
    patch: Object = dict.fromkeys(name for name in old if name not in new)
    for name, value in new.items():
        before = old.get(name)
        if before == value and name in old:
            continue
        patch[name] = difference(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return patch


async def write(client: Client, resource: Resource, obj: Object, status: Object) -> Object:
    """Make ``obj``'s status, as it stands in ``obj``, into ``status``; returns the object as stored (or as it was)."""
    changes = difference(obj.get("status") or {}, status)
    if not changes:
        return obj
    metadata = obj["metadata"]
    patch = {"metadata": {"uid": metadata["uid"]}, "status": changes}
    return await client.patch(resource, metadata["name"], patch, metadata.get("namespace"), subresource="status")
