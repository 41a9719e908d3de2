"""What a message must look like to be accepted, whatever protocol brings it. Pure functions; the codes are the reference's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from sampan.parts.messaging.broker import Limits
from sampan.parts.messaging.errors import MessagingError, Reason
from sampan.parts.messaging.record import RESERVED

ID_LIMIT = 255
"""Characters of a message id; the clients' own have 34."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def check_body(body: bytes, limits: Limits) -> None:
    """Refuse an empty or oversized body."""
    if not body:
        raise MessagingError(Reason.BODY_EMPTY, "the message body is empty")
    if len(body) > limits.max_body_bytes:
        raise MessagingError(
            Reason.BODY_TOO_LARGE, f"the message body has {len(body)} bytes; {limits.max_body_bytes} are allowed"
        )


def check_id(identifier: str) -> None:
    """Refuse a message id that is blank, too long or could be taken for something else where properties are stored."""
    if not identifier.strip():
        raise MessagingError(Reason.ILLEGAL_MESSAGE_ID, "the message id is blank")
    if len(identifier) > ID_LIMIT or _CONTROL.search(identifier):
        raise MessagingError(
            Reason.ILLEGAL_MESSAGE_ID, f"the message id is longer than {ID_LIMIT} or contains a control character"
        )


def check_trace(context: str) -> None:
    """Refuse a trace context that could be taken for something else where properties are stored."""
    if _CONTROL.search(context):
        raise MessagingError(Reason.BAD_REQUEST, "the trace context contains a control character")


def check_tag(tag: str) -> None:
    """Refuse a tag that could not be filtered by."""
    if not tag.strip():
        raise MessagingError(Reason.ILLEGAL_TAG, "the tag is blank")
    if "|" in tag or _CONTROL.search(tag):
        raise MessagingError(Reason.ILLEGAL_TAG, "the tag contains | or a control character")


def check_keys(keys: Iterable[str]) -> None:
    """Refuse keys that could not be looked up."""
    for key in keys:
        if not key.strip():
            raise MessagingError(Reason.ILLEGAL_KEY, "a message key is blank")
        if _CONTROL.search(key):
            raise MessagingError(Reason.ILLEGAL_KEY, "a message key contains a control character")


def check_group(group: str, limits: Limits) -> None:
    """Refuse a message group that is blank or too long."""
    if not group.strip():
        raise MessagingError(Reason.ILLEGAL_MESSAGE_GROUP, "the message group is blank")
    if len(group.encode()) > limits.max_message_group_bytes:
        raise MessagingError(
            Reason.ILLEGAL_MESSAGE_GROUP, f"the message group is longer than {limits.max_message_group_bytes} bytes"
        )
    if _CONTROL.search(group):
        raise MessagingError(Reason.ILLEGAL_MESSAGE_GROUP, "the message group contains a control character")


def check_properties(properties: Mapping[str, str], extra_bytes: int, limits: Limits) -> None:
    """Refuse reserved names, control characters, and too many or too large properties (``extra_bytes``: tag and keys)."""
    if len(properties) > limits.max_properties:
        raise MessagingError(
            Reason.PROPERTIES_TOO_LARGE,
            f"the message has {len(properties)} properties; {limits.max_properties} are allowed",
        )
    size = extra_bytes
    for name, value in properties.items():
        size += len(name.encode()) + len(value.encode())
        if name in RESERVED:
            raise MessagingError(Reason.ILLEGAL_PROPERTY, f"the property name {name} is reserved")
        if not name or _CONTROL.search(name) or _CONTROL.search(value):
            raise MessagingError(
                Reason.ILLEGAL_PROPERTY, f"the property {name!r} is blank or contains a control character"
            )
    if size > limits.max_properties_bytes:
        raise MessagingError(
            Reason.PROPERTIES_TOO_LARGE, f"the properties have {size} bytes; {limits.max_properties_bytes} are allowed"
        )
