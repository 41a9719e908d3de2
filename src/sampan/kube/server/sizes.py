"""How large a stored object may be, and how deep."""

from __future__ import annotations

from typing import Any

from sampan.kube.objects import Object, encode
from sampan.kube.status import ApiError, bad_request

OBJECT_LIMIT = 3 * 1024 * 1024
"""Bytes of one stored object: patches could otherwise let it grow without end."""
DEEPEST = 256
"""Levels of maps and lists in one: who reads an object goes through it by recursion, and one object that nobody can go through
would keep all of its kind from every controller."""


def bounded(obj: Object, revision: int) -> bytes:
    """The canonical encoding of an object that is small enough to be stored.

    Raises:
        ApiError: 413, it is not; 400, it is nested too deep.
    """
    try:
        value = encode(obj, revision)
    except RecursionError:
        raise _too_deep() from None
    if len(value) > OBJECT_LIMIT:
        message = f"Request entity too large: the object has {len(value)} bytes, the limit is {OBJECT_LIMIT}"
        raise ApiError(413, "RequestEntityTooLarge", message)
    if value.count(b"{") + value.count(b"[") > DEEPEST and _deep(obj):
        raise _too_deep()
    return value


def _deep(obj: Object) -> bool:
    level: list[Any] = [obj]
    for _ in range(DEEPEST):
        parts = (part for whole in level for part in (whole.values() if isinstance(whole, dict) else whole))
        level = [part for part in parts if isinstance(part, (dict, list))]
        if not level:
            return False
    return True


def _too_deep() -> ApiError:
    return bad_request(f"exceeded max depth: the object is nested more than {DEEPEST} levels deep")
