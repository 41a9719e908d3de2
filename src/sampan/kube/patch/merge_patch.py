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
    return _merged(doc, patch)


def _merged(doc: Any, patch: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if isinstance(doc, dict):
        for key, value in doc.items():
            if key not in patch:
                result[key] = copy(value)
            elif (change := patch[key]) is not None:
                result[key] = _merged(value, change) if isinstance(change, dict) else copy(change)
    for key, change in patch.items():
        if change is not None and key not in result:
            result[key] = _merged(None, change) if isinstance(change, dict) else copy(change)
    return result
