"""JSON merge patch (RFC 7386): a partial document whose nulls delete and whose lists replace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sampan.kube.objects import copy
from sampan.kube.status import bad_request


def apply(doc: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """The document after the patch; shares nothing mutable with either argument.

    Raises:
        ApiError: 400, the patch is not an object.
    """
    if not isinstance(patch, dict):
        raise bad_request("error decoding patch: a merge patch is an object")
    result: dict[str, Any] = copy(dict(doc))
    _merge(result, patch)
    return result


def _merge(target: dict[str, Any], patch: Mapping[str, Any]) -> None:
    """Merge a patch into a document of one's own."""
    for key, change in patch.items():
        if change is None:
            target.pop(key, None)
        elif isinstance(change, dict):
            below = target.get(key)
            if not isinstance(below, dict):
                below = target[key] = {}
            _merge(below, change)
        else:
            target[key] = copy(change)
