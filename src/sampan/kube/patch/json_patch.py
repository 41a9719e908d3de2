"""JSON patch (RFC 6902), with the limits and the errors of a Kubernetes API server.

A patch is a list of operations that either all apply or none: `apply` works on a copy, so a failing operation leaves the
document as it was. Upstream answers a malformed patch with 400, too many operations with 413, and an operation that does
not apply with a 422 whose cause says which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from sampan.kube.objects import copy
from sampan.kube.status import ApiError, bad_request

OPERATION_LIMIT = 10_000
"""Operations in one patch at most."""

COPY_LIMIT = 3 * 1024 * 1024
"""Bytes of JSON that the ``copy`` operations of one patch may copy together: each can double the document."""

_INDEX_LENGTH = 20
_ABSENT: Any = object()
_encode = msgspec.json.Encoder().encode


class _DoesNotApplyError(Exception):
    """An operation names something that is not there, or a test failed."""


def apply(doc: Any, operations: Sequence[Mapping[str, Any]]) -> Any:
    """The document after all operations; shares nothing mutable with ``doc``.

    Raises:
        ApiError: 400 malformed, 413 too many operations, 422 an operation does not apply.
    """
    if not isinstance(operations, list | tuple):
        raise bad_request("error decoding patch: a JSON patch is a list of operations")
    if len(operations) > OPERATION_LIMIT:
        raise ApiError(
            413,
            "RequestEntityTooLarge",
            f"Request entity too large: The allowed maximum operations in a JSON patch is {OPERATION_LIMIT}, "
            f"got {len(operations)}",
        )
    doc = copy(doc)
    try:
        copied = 0
        for operation in operations:
            if isinstance(operation, dict) and operation.get("op") == "copy":
                # before it is made: afterwards the source may be gone, under what was copied over it
                source = _get(doc, _pointer(operation, "from"), "copy")
                copied += len(_encode(source)) if source is not _ABSENT else 0
                if copied > COPY_LIMIT:
                    raise ApiError(
                        413,
                        "RequestEntityTooLarge",
                        f"Request entity too large: Unable to complete the copy, the accumulated size increase of copy "
                        f"is {copied}, exceeding the limit {COPY_LIMIT}",
                    )
            doc = _apply_one(doc, operation)
    except _DoesNotApplyError as error:
        causes = [{"reason": "UnexpectedServerResponse", "message": str(error), "field": "patch"}]
        raise ApiError(
            422,
            "Invalid",
            "the server rejected our request due to an error in our request",
            details={"causes": causes},
        ) from None
    return doc


def _apply_one(doc: Any, operation: Mapping[str, Any]) -> Any:
    if not isinstance(operation, dict):
        raise bad_request("error decoding patch: an operation of a JSON patch is an object")
    kind = operation.get("op")
    path = _pointer(operation, "path")
    if kind == "add":
        return _add(doc, path, copy(_value(operation)), "add")
    if kind == "replace":
        value = copy(_value(operation))
        if not path:
            return value
        if _get(doc, path, "replace") is _ABSENT:
            raise _DoesNotApplyError(
                f"replace operation does not apply: doc is missing key: {_text(path)}: missing value"
            )
        return _put(doc, path, value)
    if kind == "remove":
        return _remove(doc, path, "remove")[0]
    if kind == "test":
        if not _same(_get(doc, path, "test"), operation.get("value")):
            raise _DoesNotApplyError(f"testing value {_text(path)} failed: test failed")
        return doc
    if kind == "move":
        source = _pointer(operation, "from")
        if path[: len(source)] == source and len(path) > len(source):
            raise _DoesNotApplyError(f"move operation does not apply: {_text(path)} is inside {_text(source)}")
        doc, value = _remove(doc, source, "move")
        return _add(doc, path, value, "move")
    if kind == "copy":
        value = _get(doc, _pointer(operation, "from"), "copy")
        if value is _ABSENT:
            raise _DoesNotApplyError(
                f"copy operation does not apply: doc is missing from path: {operation['from']}: missing value"
            )
        return _add(doc, path, copy(value), "copy")
    raise bad_request(f"error decoding patch: unexpected kind: {kind}")


def _value(operation: Mapping[str, Any]) -> Any:
    if "value" not in operation:
        raise bad_request(f"error decoding patch: operation {operation.get('op')!r} needs a value")
    return operation["value"]


def _pointer(operation: Mapping[str, Any], member: str) -> list[str]:
    pointer = operation.get(member)
    if not isinstance(pointer, str):
        raise bad_request(f"error decoding patch: operation {operation.get('op')!r} needs a {member!r}")
    if pointer == "":
        return []
    if not pointer.startswith("/"):
        raise bad_request(f"error decoding patch: a path begins with a slash: {pointer!r}")
    return [step.replace("~1", "/").replace("~0", "~") for step in pointer[1:].split("/")]


def _text(path: Sequence[str]) -> str:
    return "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in path)


def _index(items: list[Any], step: str, path: Sequence[str], kind: str, *, insert: bool = False) -> int:
    """The list index a step names; negative ones count from the end, as upstream's library allows."""
    if not (step.isascii() and step.removeprefix("-").isdecimal() and len(step) <= _INDEX_LENGTH):
        raise _DoesNotApplyError(f"{kind} operation does not apply: {_text(path)}: {step!r} is not a list index")
    index = int(step)
    size = len(items) + insert
    if index < -size or index >= size:
        raise _DoesNotApplyError(
            f"{kind} operation does not apply: {_text(path)}: Unable to access invalid index: {index}: invalid index referenced"
        )
    return index + size if index < 0 else index


def _parent(doc: Any, path: Sequence[str], kind: str) -> Any:
    """The container the last step of a non-empty path stands in."""
    for step in path[:-1]:
        if isinstance(doc, dict):
            doc = doc.get(step)
        elif isinstance(doc, list):
            doc = doc[_index(doc, step, path, kind)]
    if not isinstance(doc, dict | list):
        raise _DoesNotApplyError(f"{kind} operation does not apply: doc is missing path: {_text(path)}: missing value")
    return doc


def _get(doc: Any, path: Sequence[str], kind: str) -> Any:
    if not path:
        return doc
    parent = _parent(doc, path, kind)
    if isinstance(parent, dict):
        return parent.get(path[-1], _ABSENT)
    return parent[_index(parent, path[-1], path, kind)]


def _put(doc: Any, path: Sequence[str], value: Any) -> Any:
    parent = _parent(doc, path, "replace")
    if isinstance(parent, dict):
        parent[path[-1]] = value
    else:
        parent[_index(parent, path[-1], path, "replace")] = value
    return doc


def _add(doc: Any, path: Sequence[str], value: Any, kind: str) -> Any:
    if not path:
        return value
    parent = _parent(doc, path, kind)
    if isinstance(parent, dict):
        parent[path[-1]] = value
    elif path[-1] == "-":
        parent.append(value)
    else:
        parent.insert(_index(parent, path[-1], path, kind, insert=True), value)
    return doc


def _remove(doc: Any, path: Sequence[str], kind: str) -> tuple[Any, Any]:
    """The document without the value at ``path``, and that value."""
    if not path:
        return None, doc
    parent = _parent(doc, path, kind)
    if isinstance(parent, dict):
        if path[-1] not in parent:
            raise _DoesNotApplyError(
                f"{kind} operation does not apply: doc is missing path: {_text(path)}: "
                f"Unable to remove nonexistent key: {path[-1]}: missing value"
            )
        return doc, parent.pop(path[-1])
    return doc, parent.pop(_index(parent, path[-1], path, kind))


def _same(live: Any, wanted: Any) -> bool:
    """JSON equality, which tells true from 1; an absent value equals null, as upstream's test has it."""
    if live is _ABSENT:
        return wanted is None
    if isinstance(live, dict) and isinstance(wanted, dict):
        return live.keys() == wanted.keys() and all(_same(value, wanted[key]) for key, value in live.items())
    if isinstance(live, list) and isinstance(wanted, list):
        return len(live) == len(wanted) and all(map(_same, live, wanted))
    return isinstance(live, bool) == isinstance(wanted, bool) and bool(live == wanted)
