"""What a request path names: a resource, an object, a subresource, or none of them.

The grammar is Kubernetes' own: ``/api/<version>/...`` for the core group, ``/apis/<group>/<version>/...`` for all others,
an optional ``watch/`` after the version (the old prefix form), an optional ``namespaces/<namespace>/``, then
``<plural>[/<name>[/<subresource>[/<path>]]]``. Namespace objects themselves share the ``namespaces/<name>`` shape with
namespaced collections, so their subresources are told apart by name.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

from sampan.kube.objects import Resource

_NAMESPACE_SUBRESOURCES = frozenset({"status", "finalize"})


class Target(NamedTuple):
    """What a resource path names; absent pieces are empty."""

    resource: Resource
    namespace: str
    name: str
    subresource: str
    rest: str
    """What follows the subresource, still percent-encoded (``proxy/<rest>``); with its leading slash when there is one."""
    watch: bool
    """The path has the old ``watch/`` prefix."""


def parse(path: str) -> Target | None:
    """The target of a raw (percent-encoded) path without its query; None: not a resource path (or not one in full)."""
    segments = path.split("/")
    if len(segments) < 4 or segments[0]:
        return None
    if segments[1] == "api":
        group, version, rest = "", segments[2], 3
    elif segments[1] == "apis" and len(segments) >= 5:
        group, version, rest = segments[2], segments[3], 4
    else:
        return None
    parts = segments[rest:]
    if parts and parts[-1] == "" and "proxy" not in parts:
        parts = parts[:-1]
    watch = bool(parts) and parts[0] == "watch" and len(parts) > 1
    if watch:
        parts = parts[1:]
    if not parts or not parts[0]:
        return None
    namespace = ""
    if parts[0] == "namespaces" and len(parts) > 2 and not (not group and _names_the_namespace(parts)):
        namespace, parts = unquote(parts[1]), parts[2:]
    plural = parts[0]
    name = unquote(parts[1]) if len(parts) > 1 else ""
    subresource = parts[2] if len(parts) > 2 else ""
    tail = ""
    if len(parts) > 3:
        if subresource != "proxy":
            return None
        tail = "/" + "/".join(parts[3:])
    if len(parts) > 1 and not name:
        return None
    return Target(Resource(group, version, plural), namespace, name, subresource, tail, watch)


def _names_the_namespace(parts: list[str]) -> bool:
    return len(parts) == 3 and parts[2] in _NAMESPACE_SUBRESOURCES


def query(text: str) -> dict[str, list[str]]:
    """The parameters of a query string, in order, blank values kept."""
    parameters: dict[str, list[str]] = {}
    if text:
        for key, value in parse_qsl(text, keep_blank_values=True):
            parameters.setdefault(key, []).append(value)
    return parameters
