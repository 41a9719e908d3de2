"""The gRPC API's status codes, and the one table from the core's reasons to them."""

from __future__ import annotations

from functools import lru_cache

from sampan.parts.messaging.errors import MessagingError, Reason
from sampan.proto import messaging_pb2 as pb

OK = 20000
MULTIPLE_RESULTS = 30000
BAD_REQUEST = 40000
MESSAGE_NOT_FOUND = 40401
INTERNAL_ERROR = 50000

CODES: dict[Reason, int] = {
    Reason.BAD_REQUEST: 40000,
    Reason.ILLEGAL_ACCESS_POINT: 40001,
    Reason.ILLEGAL_TOPIC: 40002,
    Reason.ILLEGAL_GROUP: 40003,
    Reason.ILLEGAL_TAG: 40004,
    Reason.ILLEGAL_KEY: 40005,
    Reason.ILLEGAL_MESSAGE_GROUP: 40006,
    Reason.ILLEGAL_PROPERTY: 40007,
    Reason.INVALID_TRANSACTION: 40008,
    Reason.ILLEGAL_MESSAGE_ID: 40009,
    Reason.ILLEGAL_FILTER: 40010,
    Reason.ILLEGAL_INVISIBLE_TIME: 40011,
    Reason.ILLEGAL_DELIVERY_TIME: 40012,
    Reason.INVALID_RECEIPT_HANDLE: 40013,
    Reason.TYPE_MISMATCH: 40014,
    Reason.UNKNOWN_CLIENT: 40015,
    Reason.MESSAGE_CORRUPTED: 40016,
    Reason.CLIENT_ID_REQUIRED: 40017,
    Reason.ILLEGAL_POLLING_TIME: 40018,
    Reason.ILLEGAL_OFFSET: 40019,
    Reason.ILLEGAL_LITE_TOPIC: 40020,
    Reason.UNAUTHORIZED: 40100,
    Reason.FORBIDDEN: 40300,
    Reason.NOT_FOUND: 40400,
    Reason.MESSAGE_NOT_FOUND: 40401,
    Reason.TOPIC_NOT_FOUND: 40402,
    Reason.GROUP_NOT_FOUND: 40403,
    Reason.OFFSET_NOT_FOUND: 40404,
    Reason.BODY_TOO_LARGE: 41301,
    Reason.BODY_EMPTY: 41302,
    Reason.TOO_MANY_REQUESTS: 42900,
    Reason.LITE_TOPIC_QUOTA: 42901,
    Reason.LITE_SUBSCRIPTION_QUOTA: 42902,
    Reason.PROPERTIES_TOO_LARGE: 43101,
    Reason.INTERNAL: 50000,
    Reason.DISK_FULL: 50001,
    Reason.NOT_IMPLEMENTED: 50100,
    Reason.NOT_PERSISTED: 50401,
    Reason.UNSUPPORTED: 50500,
}


@lru_cache(maxsize=256)
def status(code: int, message: str = "OK") -> pb.Status:
    """A status message; shared, so copy it into an answer."""
    return pb.Status(code=code, message=message)


def of(error: MessagingError) -> pb.Status:
    """The status of a refusal."""
    return pb.Status(code=CODES[error.reason], message=str(error))


SUCCESS = status(OK)
