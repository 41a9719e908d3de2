"""How large a stored object may be."""

from __future__ import annotations

from sampan.kube.objects import Object, encode
from sampan.kube.status import ApiError

OBJECT_LIMIT = 3 * 1024 * 1024
"""Bytes of one stored object: patches could otherwise let it grow without end."""


def bounded(obj: Object, revision: int) -> bytes:
    """The canonical encoding of an object that is small enough to be stored.

    Raises:
        ApiError: 413, it is not.
    """
    value = encode(obj, revision)
    if len(value) > OBJECT_LIMIT:
        message = f"Request entity too large: the object has {len(value)} bytes, the limit is {OBJECT_LIMIT}"
        raise ApiError(413, "RequestEntityTooLarge", message)
    return value
