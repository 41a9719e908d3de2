"""The broker's exception family: each error names a `Reason`; a front maps reasons to its wire codes in one table."""

from __future__ import annotations

from enum import Enum, auto

from sampan.kernel.errors import SampanError


class Reason(Enum):
    """Why the broker refuses, independent of any protocol."""

    BAD_REQUEST = auto()
    ILLEGAL_ACCESS_POINT = auto()
    ILLEGAL_TOPIC = auto()
    ILLEGAL_GROUP = auto()
    ILLEGAL_TAG = auto()
    ILLEGAL_KEY = auto()
    ILLEGAL_MESSAGE_GROUP = auto()
    ILLEGAL_PROPERTY = auto()
    INVALID_TRANSACTION = auto()
    ILLEGAL_MESSAGE_ID = auto()
    ILLEGAL_FILTER = auto()
    ILLEGAL_INVISIBLE_TIME = auto()
    ILLEGAL_DELIVERY_TIME = auto()
    INVALID_RECEIPT_HANDLE = auto()
    TYPE_MISMATCH = auto()
    UNKNOWN_CLIENT = auto()
    MESSAGE_CORRUPTED = auto()
    CLIENT_ID_REQUIRED = auto()
    ILLEGAL_POLLING_TIME = auto()
    ILLEGAL_OFFSET = auto()
    ILLEGAL_LITE_TOPIC = auto()
    UNAUTHORIZED = auto()
    FORBIDDEN = auto()
    NOT_FOUND = auto()
    MESSAGE_NOT_FOUND = auto()
    TOPIC_NOT_FOUND = auto()
    GROUP_NOT_FOUND = auto()
    OFFSET_NOT_FOUND = auto()
    BODY_TOO_LARGE = auto()
    BODY_EMPTY = auto()
    PROPERTIES_TOO_LARGE = auto()
    TOO_MANY_REQUESTS = auto()
    LITE_TOPIC_QUOTA = auto()
    LITE_SUBSCRIPTION_QUOTA = auto()
    DISK_FULL = auto()
    NOT_PERSISTED = auto()
    NOT_IMPLEMENTED = auto()
    UNSUPPORTED = auto()
    INTERNAL = auto()


class MessagingError(SampanError):
    """A refused operation: its `Reason` and a sentence that says what to change."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class StorageError(SampanError):
    """A file of the broker's store is damaged or of a version this release does not read."""
