"""Between the version an object is stored in and the version it is asked for in.

Nearly every kind is stored as it is served, so bytes from the store go out untouched. The exceptions are kinds that share one
store (the two shapes of events, the two versions of the autoscaler) and custom resources, whose stored version and schema
can change while objects written earlier stay as they are: those are converted, pruned and defaulted as they are read.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from sampan.kube.objects import Object, decode, encode
from sampan.kube.types.resource import ResourceType

_REVISION_AT = len(b'{"metadata":{"resourceVersion":"')


class _Head(msgspec.Struct):
    apiVersion: str = ""


_head = msgspec.json.Decoder(_Head)


def revision_of(value: bytes) -> int:
    """The resourceVersion of a canonical encoding."""
    return int(value[_REVISION_AT : value.index(b'"', _REVISION_AT)])


def as_stored(type: ResourceType, value: bytes) -> bool:
    """The encoding is what is served: nothing to convert, prune or default."""
    if not type.custom:
        return type.storage is None and type.from_storage is None
    if revision_of(value) <= type.schema_revision:
        return False
    return _head.decode(value).apiVersion == type.resource.api_version


def served(type: ResourceType, value: bytes) -> bytes:
    """A stored encoding in the served version."""
    if as_stored(type, value):
        return value
    return encode(_converted(type, decode(value)), revision_of(value))


def served_object(type: ResourceType, value: bytes) -> Object:
    """A stored encoding, decoded, in the served version; the object is the caller's."""
    if as_stored(type, value):
        return decode(value)
    return _converted(type, decode(value))


def _converted(type: ResourceType, obj: Object) -> Object:
    if type.from_storage is not None:
        obj = type.from_storage(obj)
    obj["apiVersion"] = type.resource.api_version
    obj["kind"] = type.kind
    if type.custom:
        type.strategy.prune(obj)
        type.strategy.default(obj)
    return obj


async def prepared(type: ResourceType, values: Iterable[bytes]) -> None:
    """Have a webhook convert stored encodings, where one does, before `served` and `served_object` are asked for them.

    Raises:
        ApiError: 500, the webhook fails.
    """
    if type.conversion is not None:
        wanted = type.resource.api_version
        await type.conversion.prepare(
            [decode(value) for value in values if _head.decode(value).apiVersion != wanted], wanted
        )


async def stored_form(type: ResourceType, obj: Object) -> Object:
    """`stored`, asking a webhook first where one converts; then every served version of the object is at hand.

    Raises:
        ApiError: 500, the webhook fails.
    """
    if type.conversion is None:
        return stored(type, obj)
    await type.conversion.prepare([obj], type.stored_as.api_version)
    form = stored(type, obj)
    await type.conversion.spread(form)
    return form


def stored(type: ResourceType, obj: Object) -> Object:
    """The form in which an object of the served version is stored; may be the object itself."""
    if type.to_storage is not None:
        return type.to_storage(obj)
    if type.storage is not None and type.storage.api_version != type.resource.api_version:
        return {**obj, "apiVersion": type.storage.api_version}
    return obj
